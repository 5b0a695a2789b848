"""Who may go on: one machine at a time for a task, one transaction at a time for a thing.

A task's lock is a row with an end, by the database's clock; a transaction's ends with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

from sqlalchemy import BigInteger, delete, func, literal, select

from db.engine import Engine, Session, db_now, insert_into, session_scope
from db.tables import TaskLock, rows_of


@contextmanager
def task_lock(engine: Engine, name: str, *, holder: str, for_s: float) -> Iterator[bool]:
    """Try to take the lock `name`; yield True when it is ours, and give it back at the end.

    Parameters
    ----------
    holder
        Who asks; for people to read. Two tasks of one holder exclude each other too.
    for_s
        Seconds after which a holder that died loses it: longer than the task takes.
    """
    until = _take(engine, name, holder, for_s)
    try:
        yield until is not None
    finally:
        if until is not None:
            _give_back(engine, name, holder, until)


def _take(engine: Engine, name: str, holder: str, for_s: float) -> datetime | None:
    table = rows_of(TaskLock)
    with session_scope(engine) as session:
        now = db_now(session)
        until = now + timedelta(seconds=for_s)
        statement = insert_into(session, table).values(name=name, holder=holder, held_until=until)
        statement = statement.on_conflict_do_update(
            index_elements=["name"],
            set_={"holder": holder, "held_until": until},
            where=table.c.held_until <= now,
        )
        return session.execute(statement.returning(table.c.held_until)).scalar_one_or_none()


def _give_back(engine: Engine, name: str, holder: str, until: datetime) -> None:
    with session_scope(engine) as session:
        is_ours = (TaskLock.name == name) & (TaskLock.holder == holder) & (TaskLock.held_until == until)
        session.execute(delete(TaskLock).where(is_ours))


def wait_turn(session: Session, thing: str) -> None:
    """Wait until no other transaction has this turn; on SQLite BEGIN IMMEDIATE has waited already."""
    if session.get_bind().dialect.name != "sqlite":
        key = int.from_bytes(hashlib.blake2b(thing.encode(), digest_size=8).digest(), signed=True)
        session.execute(select(func.pg_advisory_xact_lock(literal(key, BigInteger))))
