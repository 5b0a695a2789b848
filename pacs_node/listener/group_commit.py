"""Several threads' small transactions as one: whoever has the turn commits what all the others wait with.

Takes a function that writes to a session, gives what it returned, once committed. On SQLite writers take turns, each
for as long as the disk takes to sync, so that eight associations would wait for eight syncs; PostgreSQL writes at once
and groups its syncs itself.
"""

from __future__ import annotations

import collections
import fcntl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from db.engine import Engine, Session, session_scope

T = TypeVar("T")
LARGEST = 64
"""Transactions in one: bounds how long the first waits for the last."""
PATIENCE_S, LOOK_S = 0.1, 0.0002
"""How long a process stands in line, and how often it looks whether it is its turn."""


class _Ticket(Generic[T]):
    def __init__(self, write: Callable[[Session], T]) -> None:
        self.write = write
        self.is_done = False
        self.error: Exception | None = None
        self.value: T

    def result(self) -> T:
        if self.error is not None:
            raise self.error
        return self.value


class _Failed(Exception):
    """One of several writes raised: nothing of them is committed."""


class _Line:
    """The line of processes before one SQLite file.

    SQLite's own waiting sleeps 1, 2, 5, 10 ms ... however soon the lock is free: two listeners then lose a third of
    their speed (measured). This is a courtesy, not a lock: who waited `PATIENCE_S` goes on, and SQLite decides.
    """

    def __init__(self, database: str) -> None:
        self._file = Path(f"{database}.line").open("a")  # noqa: SIM115 - as long as this process files objects

    @contextmanager
    def turn(self) -> Iterator[None]:
        deadline = time.monotonic() + PATIENCE_S
        while not self._is_ours() and time.monotonic() < deadline:
            time.sleep(LOOK_S)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _is_ours(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


class GroupCommit:
    """The way of one process's threads to the database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._line = _Line(engine.url.database or "") if engine.dialect.name == "sqlite" else None
        self._waiting: collections.deque[_Ticket[object]] = collections.deque()
        self._turn = threading.Lock()

    def run(self, write: Callable[[Session], T]) -> T:
        """Return what `write` returned, after its transaction is committed.

        Parameters
        ----------
        write
            May be called twice: again in a transaction of its own after one that was rolled back.

        Raises
        ------
        DatabaseAway
            As `session_scope`; or whatever `write` itself raised, its own transaction then being rolled back.
        """
        if self._line is None:
            with session_scope(self._engine) as session:
                return write(session)
        ticket = _Ticket(write)
        self._waiting.append(ticket)  # type: ignore[arg-type]
        with self._turn:
            while not ticket.is_done:
                with self._line.turn():
                    self._commit([self._waiting.popleft() for _ in range(min(LARGEST, len(self._waiting)))])
        return ticket.result()

    def _commit(self, tickets: list[_Ticket[object]]) -> None:
        try:
            self._commit_together(tickets)
        except _Failed:
            for ticket in tickets:
                self._commit_alone(ticket)
        except Exception as error:  # noqa: BLE001 - the commit itself: it may have arrived, so it is not tried again
            for ticket in tickets:
                ticket.error = error
        for ticket in tickets:
            ticket.is_done = True

    def _commit_together(self, tickets: list[_Ticket[object]]) -> None:
        with session_scope(self._engine) as session:
            session.connection()  # begins: a database that is locked is nobody's own failure
            for ticket in tickets:
                try:
                    ticket.value = ticket.write(session)
                except Exception as error:  # the ticket is written anew, alone
                    raise _Failed from error

    def _commit_alone(self, ticket: _Ticket[object]) -> None:
        try:
            with session_scope(self._engine) as session:
                ticket.value = ticket.write(session)
        except Exception as error:  # noqa: BLE001 - told to the thread that waits for this one
            ticket.error = error
