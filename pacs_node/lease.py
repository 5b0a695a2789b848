"""Keeps the leases of the jobs a process works on alive, from a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from uuid import UUID

from sqlalchemy.engine import Engine

from db import queue
from db.engine import DatabaseAway, db_now, session_scope
from db.queue import Job, QueuePolicy

logger = logging.getLogger(__name__)


class LeaseKeeper:
    """Beats for every held job three times per lease; a job that was lost meanwhile is noticed when it is finished."""

    def __init__(self, engine: Engine, *, owner: str, policy: QueuePolicy) -> None:
        self._engine, self._owner, self._policy = engine, owner, policy
        self._held: dict[UUID, Job] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease-keeper", daemon=True)

    def __enter__(self) -> LeaseKeeper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def hold(self, jobs: Sequence[Job]) -> None:
        with self._lock:
            self._held.update({job.id: job for job in jobs})

    def let_go(self, jobs: Sequence[Job]) -> None:
        with self._lock:
            for job in jobs:
                self._held.pop(job.id, None)

    def _run(self) -> None:
        while not self._stop.wait(self._policy.lease_s / 3):
            with self._lock:
                jobs = list(self._held.values())
            if not jobs:
                continue
            try:
                with session_scope(self._engine) as session:
                    queue.heartbeat(session, jobs, owner=self._owner, policy=self._policy, now=db_now(session))
            except DatabaseAway:
                logger.warning(
                    "Leases could not be renewed: the database is away", extra={"action": "heartbeat_missed"}
                )
