"""Whom the node talks to: when senders last came, and how destinations take what they are sent."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import case, func, select

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
    closed: int
    """Deliveries that a person decided not to make."""


def destination_standings(session: Session) -> dict[str, Standing]:
    """Return, by destination, when it last took a delivery and how many it did not take."""
    last = dict(
        session.execute(
            select(_DELIVERIES.c.destination, func.max(_DELIVERIES.c.sent_at)).group_by(_DELIVERIES.c.destination)
        ).all()
    )
    open_states = [state for state in JobState if state is not JobState.DONE]  # by name: `<> done` is in no index
    is_put_off = _JOBS.c.state.in_([JobState.READY, JobState.RUNNING]) & (_JOBS.c.attempts > 0)
    missed = (
        select(
            _DELIVERIES.c.destination,
            *(
                func.sum(case((condition, 1), else_=0))
                for condition in (is_put_off, _JOBS.c.state == JobState.FAILED, _JOBS.c.state == JobState.CLOSED)
            ),
        )
        .join(_JOBS, _JOBS.c.subject_id == _DELIVERIES.c.id)
        .where(_JOBS.c.kind == JobKind.DELIVER, _JOBS.c.state.in_(open_states))
        .group_by(_DELIVERIES.c.destination)
    )
    counted = {destination: sums for destination, *sums in session.execute(missed)}
    standings = {}
    for destination, at in last.items():
        put_off, failed, closed = counted.get(destination, (0, 0, 0))
        standings[destination] = Standing(last_sent_at=at, put_off=put_off, failed=failed, closed=closed)
    return standings


def last_seen(session: Session) -> dict[str, datetime]:
    """Return, by calling AE title, when a peer last opened an association."""
    query = select(_ASSOCIATIONS.c.calling_ae_title, func.max(_ASSOCIATIONS.c.opened_at))
    return dict(session.execute(query.group_by(_ASSOCIATIONS.c.calling_ae_title)).all())
