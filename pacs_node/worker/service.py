"""The worker role: judges images and builds reports, in batches, under leases.

Takes jobs from `db.queue`. Hides the overlap of decoding and the forward pass, the choice of the active model and what
a fault of the device means. Several workers, on one machine or many, never do a job twice in effect.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence

from sqlalchemy.engine import Engine

from db import audit, facts, queue
from db.audit import Action
from db.engine import DatabaseAway, check_revision, db_now, make_engine, read_scope, session_scope
from db.queue import Job, QueuePolicy
from db.tables import JobKind
from models.card import ModelCard
from models.errors import ModelError
from models.predictor import Predictor
from models.registry import Registry
from models.suitability import load_libraries
from pacs_node.decoding import DecodingPool, result_of
from pacs_node.lease import LeaseKeeper
from pacs_node.log import describe
from pacs_node.settings import Settings
from pacs_node.store import ObjectStore
from pacs_node.wiring import active_card, queue_policy, registry_of, worker_name
from pacs_node.worker import judging
from pacs_node.worker.judging import Judgement
from pacs_node.worker.reporting import Reporter

logger = logging.getLogger(__name__)

KINDS = (JobKind.INFER, JobKind.REPORT)
POLL_S = 0.1
MODEL_CHECK_S = 2.0
"""How soon a running worker takes up another active model."""
BATCHES_AHEAD = 2
"""One in the network, one being decoded."""
DATABASE_RETRY_S = 1.0


class Worker:
    """Owns one predictor, one decoding pool and the batches in flight."""

    def __init__(self, settings: Settings, engine: Engine, stop: threading.Event, pool: DecodingPool) -> None:
        self._settings, self._engine, self._stop, self._pool = settings, engine, stop, pool
        self._owner = worker_name()
        self._policy: QueuePolicy = queue_policy(settings.queue)
        self._store = ObjectStore(settings.store_dir)
        self._registry: Registry = registry_of(settings)
        self._pending: deque[judging.Batch] = deque()
        self._predictor = self._load_predictor()
        self._model_checked_at = time.monotonic()
        self._leases = LeaseKeeper(engine, owner=self._owner, policy=self._policy)
        self._reporter = Reporter(
            engine=engine,
            store=self._store,
            pool=self._pool,
            registry=self._registry,
            settings=settings,
            policy=self._policy,
        )

    def run(self) -> None:
        """Work until asked to stop, then finish what is in flight."""
        with self._leases:
            while not self._stop.is_set():
                self._turn()
            while self._pending:
                self._judge_oldest()

    def _turn(self) -> None:
        try:
            due = self._due()
            is_busy = JobKind.INFER in due and self._take_batch()
            if len(self._pending) >= BATCHES_AHEAD or (self._pending and not is_busy):
                self._judge_oldest()
                is_busy = True
            if JobKind.REPORT in due:
                is_busy |= self._report_some()
            self._follow_active_model()
        except DatabaseAway:
            logger.warning("The database is away; trying again", extra={"action": "database_away"})
            self._stop.wait(DATABASE_RETRY_S)
            return
        if not is_busy:
            self._stop.wait(POLL_S)

    def _take_batch(self) -> bool:
        if len(self._pending) >= BATCHES_AHEAD or self._must_wait(()):
            return False
        with session_scope(self._engine) as session:
            jobs = queue.claim(
                session,
                JobKind.INFER,
                owner=self._owner,
                limit=self._settings.worker.batch_size,
                policy=self._policy,
                now=db_now(session),
            )
            if self._must_wait(jobs):
                queue.release(session, jobs, now=db_now(session))
                return False
            files = facts.instance_files(session, [job.subject_id for job in jobs])
        if jobs:
            self._leases.hold(jobs)
            batch = judging.start_batch(
                jobs,
                files,
                store=self._store,
                pool=self._pool,
                card=self._predictor.card,
                age_policy=self._settings.model.age_policy,
            )
            self._pending.append(batch)
        return bool(jobs)

    def _must_wait(self, jobs: Sequence[Job]) -> bool:
        """Whether jobs may not be in hand beside what is: a job that crashed before would take the others along."""
        return bool(self._pending) and any(map(_is_suspect, (*jobs, *self._pending[-1].jobs)))

    def _judge_oldest(self) -> None:
        batch = self._pending.popleft()
        judgements = self._judge(batch)
        while True:
            try:
                if judging.record(self._engine, judgements, policy=self._policy):
                    self._model_checked_at = -math.inf  # it was recalled: take up the active one now
                break
            except DatabaseAway:  # the answers are at hand: keep them and the leases until the database is back
                logger.warning("The database is away; results wait", extra={"action": "database_away"})
                time.sleep(DATABASE_RETRY_S)
        self._leases.let_go(batch.jobs)

    def _judge(self, batch: judging.Batch) -> Sequence[Judgement]:
        """Judge a batch; where one image spoils the forward pass of all, each by itself."""
        try:
            return judging.judge(batch, self._predictor)
        except ArithmeticError as error:
            if len(batch.jobs) == 1:
                extra = {"action": "judging_failed", "instance_id": batch.jobs[0].subject_id}
                logger.exception("An image could not be judged", extra=extra)
                return [Judgement(job=batch.jobs[0], error=describe(error))]
        alone = (judging.Batch(jobs=(j,), decoding=(d,)) for j, d in zip(batch.jobs, batch.decoding, strict=True))
        return [judgement for one in alone for judgement in self._judge(one)]

    def _report_some(self) -> bool:
        with session_scope(self._engine) as session:
            jobs = queue.claim(
                session,
                JobKind.REPORT,
                owner=self._owner,
                limit=self._settings.worker.batch_size,
                policy=self._policy,
                now=db_now(session),
            )
        self._leases.hold(jobs)
        try:
            for job in jobs:
                self._reporter.report(job)
        finally:
            self._leases.let_go(jobs)
        return bool(jobs)

    def _due(self) -> frozenset[JobKind]:
        """Look before claiming: a claim takes SQLite's write lock."""
        with read_scope(self._engine) as session:
            return queue.due_kinds(session, KINDS, now=db_now(session))

    def _follow_active_model(self) -> None:
        if time.monotonic() - self._model_checked_at < MODEL_CHECK_S:
            return
        self._model_checked_at = time.monotonic()
        try:
            card = active_card(self._engine, self._registry)
            if (card.name, card.version) == (self._predictor.card.name, self._predictor.card.version):
                return
            predictor = self._load_predictor()
        except ModelError:
            logger.exception("The active model cannot be used; the former one goes on", extra={"action": "model_kept"})
            return
        while self._pending:  # they were admitted by the former card
            self._judge_oldest()
        self._predictor = predictor

    def _load_predictor(self) -> Predictor:
        card = active_card(self._engine, self._registry)
        worker = self._settings.worker
        predictor = Predictor(card, device=worker.device, precision=worker.precision, threads=worker.threads or None)
        result_of(self._pool.warm())  # only now can this worker take an image
        self._keep(card)
        loaded = {
            "model": f"{card.name} {card.version}",
            "device": str(predictor.device),
            "precision": predictor.precision,
        }
        with session_scope(self._engine) as session:
            audit.append(session, Action.MODEL_LOADED, actor=self._owner, details=loaded, now=db_now(session))
        logger.info("The model is loaded", extra={"action": "model_loaded", **loaded})
        return predictor

    def _keep(self, card: ModelCard) -> None:
        """Keep what answers beyond the release that brought it: reports and the way back need it."""
        try:
            self._registry.keep(card)
        except OSError as error:
            logger.warning("The model could not be kept", extra={"action": "model_not_kept", "why": describe(error)})


def _is_suspect(job: Job) -> bool:
    return job.crashes > 0


def run_worker(settings: Settings, stop: threading.Event) -> None:
    """Serve as one worker until `stop` is set.

    Raises
    ------
    SchemaMismatch, WeightsMismatch, UnknownModel
        Refused to start.
    """
    engine = make_engine(settings.database_url)
    check_revision(engine)
    worker = settings.worker
    pool = DecodingPool(
        processes=worker.decode_processes,
        timeout_s=worker.decode_timeout_s,
        memory_mb=worker.decode_memory_mb,
        prepare=load_libraries,
    )
    try:
        pool.warm()  # while the model loads
        Worker(settings, engine, stop, pool).run()
    finally:
        pool.close()
