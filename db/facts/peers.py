"""Whom the node talks to: when senders last came, and how destinations take what they are sent."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select

from db.engine import Session
from db.tables import Association, Delivery, Job, JobKind, JobState, rows_of

_ASSOCIATIONS, _DELIVERIES, _JOBS = rows_of(Association), rows_of(Delivery), rows_of(Job)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a destination takes what it is sent."""

    last_sent_at: datetime | None
    put_off: int
    """Deliveries that did not get through and are tried again."""
    failed: int
    """Deliveries that wait for a person."""


def destination_standings(session: Session) -> dict[str, Standing]:
    """Return, by destination, when it last took a delivery and how many it did not take."""
    last = dict(
        session.execute(
            select(_DELIVERIES.c.destination, func.max(_DELIVERIES.c.sent_at)).group_by(_DELIVERIES.c.destination)
        ).all()
    )
    missed = (
        select(_DELIVERIES.c.destination, _JOBS.c.state, func.count())
        .join(_JOBS, (_JOBS.c.kind == JobKind.DELIVER) & (_JOBS.c.subject_id == _DELIVERIES.c.id))
        .where((_JOBS.c.state == JobState.FAILED) | ((_JOBS.c.state == JobState.READY) & (_JOBS.c.attempts > 0)))
        .group_by(_DELIVERIES.c.destination, _JOBS.c.state)
    )
    counted = {(destination, state): count for destination, state, count in session.execute(missed)}
    return {
        destination: Standing(
            last_sent_at=at,
            put_off=counted.get((destination, JobState.READY), 0),
            failed=counted.get((destination, JobState.FAILED), 0),
        )
        for destination, at in last.items()
    }


def last_seen(session: Session) -> dict[str, datetime]:
    """Return, by calling AE title, when a peer last opened an association."""
    query = select(_ASSOCIATIONS.c.calling_ae_title, func.max(_ASSOCIATIONS.c.opened_at))
    return dict(session.execute(query.group_by(_ASSOCIATIONS.c.calling_ae_title)).all())
