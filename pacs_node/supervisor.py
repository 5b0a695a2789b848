"""One process per role, restarted when it dies; the only room that knows about processes.

The listeners inherit one DICOM socket, so that one that dies takes no queued connection along. A child watches its
standard input: when this process is gone, however it went, the child drains and stops.
"""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pacs_node.errors import ConfigError

logger = logging.getLogger(__name__)

BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
STEADY_S = 60.0
"""A role that ran this long starts its backoff anew."""
REFUSED_TO_START = 2
POLL_S = 0.1


@contextmanager
def only_node(data_dir: Path) -> Iterator[None]:
    """Hold `node.lock`; released by the kernel however this process ends.

    Raises
    ------
    ConfigError
        Another node runs on the same data folder.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    with (data_dir / "node.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{data_dir}: another node is running on this data folder; stop it first") from None
        yield


@dataclass(kw_only=True)
class Role:
    """One supervised process and what is known about its deaths."""

    name: str
    command: list[str]
    pass_fds: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    restart_at: float = 0.0
    deaths: int = field(default=0)

    def start(self, now: float) -> None:
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            pass_fds=self.pass_fds,
            start_new_session=True,  # Ctrl-C reaches the supervisor alone, which then stops the roles in order
        )
        self.started_at = now

    def note_death(self, now: float) -> float:
        """Return the seconds to wait before the next start."""
        self.deaths = 1 if now - self.started_at > STEADY_S else self.deaths + 1
        delay_s = BACKOFF_S[min(self.deaths, len(BACKOFF_S)) - 1]
        self.process, self.restart_at = None, now + delay_s
        return delay_s

    def ask_to_stop(self) -> None:
        if self.process and self.process.stdin:
            self.process.stdin.close()


def supervise(
    roles: list[Role],
    stop: threading.Event,
    audit_restart: Callable[[str, int], None],
    on_stop: Callable[[], None] = lambda: None,
    *,
    patience_s: float,
) -> None:
    """Keep every role running until `stop` is set, then ask all to stop and wait for them.

    Parameters
    ----------
    patience_s
        What has not ended so long after it was asked to stop is killed.

    Raises
    ------
    ConfigError
        A role refused to start; its own line on the terminal says why.
    """
    try:
        while not stop.is_set():
            for role in roles:
                _tend(role, time.monotonic(), audit_restart)
            stop.wait(POLL_S)
    finally:
        on_stop()
        _stop_all(roles, patience_s)


def _tend(role: Role, now: float, audit_restart: Callable[[str, int], None]) -> None:
    if role.process is None:
        if now >= role.restart_at:
            role.start(now)
        return
    code = role.process.poll()
    if code is None:
        return
    if code == REFUSED_TO_START and role.deaths == 0 and now - role.started_at < STEADY_S:
        raise ConfigError(f"the role `{role.name}` refused to start (its reason stands above)")
    delay_s = role.note_death(now)
    logger.error(
        "A role died and is started again", extra={"action": "role_restarted", "died": role.name, "exit_code": code}
    )
    audit_restart(role.name, code)
    if delay_s >= BACKOFF_S[-1]:
        logger.error("A role keeps dying: its log says why", extra={"action": "role_keeps_dying", "died": role.name})


def _stop_all(roles: list[Role], patience_s: float) -> None:
    for role in roles:
        role.ask_to_stop()
    deadline = time.monotonic() + patience_s
    for role in roles:
        if role.process is None:
            continue
        try:
            role.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            logger.error(
                "A role did not stop in time and is killed", extra={"action": "role_killed", "died": role.name}
            )
            role.process.kill()
            role.process.wait()


def stop_when_parent_is_gone(stop: threading.Event, pipe: IO[bytes] | None = None) -> None:
    """Set `stop` when the supervisor closes our standard input or dies."""

    def watch() -> None:
        while os.read((pipe or sys.stdin).fileno(), 1024):
            pass
        stop.set()

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
