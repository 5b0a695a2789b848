"""A scheduled task runs on one machine at a time: a row with an end, by the database's clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

from sqlalchemy import delete

from db.engine import Engine, db_now, insert_into, session_scope
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
