"""DICOM associations as the listeners see them: who is still sending, and how many are open."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import delete, exists, func, insert, select, update

from db.engine import Session
from db.tables import Association, Instance, Receipt, rows_of

_TABLE, _INSTANCES, _RECEIPTS = rows_of(Association), rows_of(Instance), rows_of(Receipt)
LOST = "lost"
"""What is written for an association whose listener fell silent."""


def open_association(
    session: Session,
    *,
    association_id: UUID,
    listener: str,
    calling_ae_title: str,
    called_ae_title: str,
    peer_address: str,
    now: datetime,
) -> None:
    """Record an association that `listener` accepted."""
    row = {"id": association_id, "listener": listener, "opened_at": now, "seen_at": now, "peer_address": peer_address}
    session.execute(insert(_TABLE), row | {"calling_ae_title": calling_ae_title, "called_ae_title": called_ae_title})


def close_association(session: Session, association_id: UUID, end: str, now: datetime) -> None:
    """Record how an association ended: released, aborted or lost. The first end stays."""
    is_open = (_TABLE.c.id == association_id) & _TABLE.c.released_at.is_(None)
    session.execute(update(_TABLE).where(is_open).values(released_at=now, end=end))


def beat(session: Session, listener: str, now: datetime) -> None:
    """Say that `listener` and its open associations are alive."""
    is_ours = (_TABLE.c.listener == listener) & _TABLE.c.released_at.is_(None)
    session.execute(update(_TABLE).where(is_ours).values(seen_at=now))


def lose_associations(session: Session, *, silent_for_s: float, now: datetime) -> int:
    """Count the associations of a listener that is silent for so long as released; return how many."""
    is_silent = _TABLE.c.released_at.is_(None) & (_TABLE.c.seen_at < now - timedelta(seconds=silent_for_s))
    lost = update(_TABLE).where(is_silent).values(released_at=now, end=LOST).returning(_TABLE.c.id)
    return len(session.execute(lost).all())


def count_open(session: Session, calling_ae_title: str | None = None) -> int:
    """Return how many associations are open, over all listeners; of one calling AE title if given."""
    query = select(func.count()).select_from(_TABLE).where(_TABLE.c.released_at.is_(None))
    if calling_ae_title is not None:
        query = query.where(_TABLE.c.calling_ae_title == calling_ae_title)
    return session.execute(query).scalar_one()


def empty_associations(
    session: Session, *, since: datetime, before: datetime, limit: int
) -> list[tuple[UUID, datetime]]:
    """Return associations that brought nothing and ended in this time, and when; the first ended first.

    The others stay with what they brought: they say who sent it.
    """
    is_named = (exists().where(table.c.association_id == _TABLE.c.id) for table in (_INSTANCES, _RECEIPTS))
    query = select(_TABLE.c.id, _TABLE.c.released_at).where(
        _TABLE.c.released_at >= since, _TABLE.c.released_at < before, *(~one for one in is_named)
    )
    rows = session.execute(query.order_by(_TABLE.c.released_at).limit(limit))
    return [(association_id, released_at) for association_id, released_at in rows]


def delete_associations(session: Session, association_ids: Collection[UUID]) -> None:
    """Delete associations that brought nothing."""
    session.execute(delete(_TABLE).where(_TABLE.c.id.in_(association_ids)))
