"""Deliveries: one report to one destination, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import exists, select, update

from db import audit, queue
from db.audit import Action
from db.engine import NoSuchRecord, Session
from db.facts.arrival import clean
from db.facts.reports import BuiltObject, objects_of
from db.tables import Delivery, DeliveryState, Job, JobKind, JobState, Report, Study, rows_of


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryFacts:
    """What to send where."""

    delivery_id: UUID
    report_id: UUID
    study_id: UUID
    destination: str
    state: DeliveryState
    reason: str
    sop_class_uid: str | None
    """What this destination was chosen to get; None before the first try."""
    sop_instance_uid: str | None
    objects: tuple[BuiltObject, ...]
    revision: int
    is_superseded: bool
    """The study has a newer report."""


_DELIVERIES, _REPORTS, _STUDIES, _JOBS = rows_of(Delivery), rows_of(Report), rows_of(Study), rows_of(Job)
_ACTIONS = {
    DeliveryState.WAITING: Action.DELIVERY_DELAYED,
    DeliveryState.HELD: Action.DELIVERY_HELD,
    DeliveryState.FAILED: Action.DELIVERY_FAILED,
}


def delivery_facts(session: Session, delivery_id: UUID) -> DeliveryFacts:
    """Return a delivery with the objects to choose from.

    Raises
    ------
    NoSuchRecord
        There is no such delivery.
    """
    row = session.execute(_select().where(_DELIVERIES.c.id == delivery_id)).mappings().one_or_none()
    if row is None:
        raise NoSuchRecord(f"no delivery {delivery_id}")
    return DeliveryFacts(**row, objects=objects_of(session, row["report_id"]))


def earlier_deliveries(session: Session, delivery: DeliveryFacts) -> tuple[DeliveryFacts, ...]:
    """Return the deliveries of the study's earlier reports to the same destination, the first report's first."""
    query = _select().where(
        _REPORTS.c.study_id == delivery.study_id,
        _REPORTS.c.revision < delivery.revision,
        _DELIVERIES.c.destination == delivery.destination,
    )
    rows = session.execute(query.order_by(_REPORTS.c.revision)).mappings().all()
    return tuple(DeliveryFacts(**row, objects=objects_of(session, row["report_id"])) for row in rows)


def _select() -> Any:
    names = ("report_id", "destination", "state", "reason", "sop_class_uid", "sop_instance_uid")
    return (
        select(
            _DELIVERIES.c.id.label("delivery_id"),
            *(_DELIVERIES.c[name] for name in names),
            _REPORTS.c.study_id,
            _REPORTS.c.revision,
            (_STUDIES.c.revision > _REPORTS.c.revision).label("is_superseded"),
        )
        .join(_REPORTS, _REPORTS.c.id == _DELIVERIES.c.report_id)
        .join(_STUDIES, _STUDIES.c.id == _REPORTS.c.study_id)
    )


def record_choice(session: Session, delivery_id: UUID, *, sop_class_uid: str, sop_instance_uid: str) -> None:
    """Keep what this destination will get, before it is sent: another try never sends another UID."""
    _set(session, delivery_id, sop_class_uid=sop_class_uid, sop_instance_uid=sop_instance_uid)


def record_sent(
    session: Session, delivery_id: UUID, *, sop_class_uid: str, sop_instance_uid: str, now: datetime
) -> None:
    """Record that the destination stored the report. Recording twice changes nothing."""
    is_sent = select(_DELIVERIES.c.state).where(_DELIVERIES.c.id == delivery_id)
    if session.execute(is_sent).scalar_one_or_none() is DeliveryState.SENT:
        return
    values = {"sop_class_uid": sop_class_uid, "sop_instance_uid": sop_instance_uid, "sent_at": now, "reason": ""}
    destination = _set(session, delivery_id, state=DeliveryState.SENT, **values)
    details = {"destination": destination, "sop_class_uid": sop_class_uid, "sop_instance_uid": sop_instance_uid}
    audit.append(session, Action.DELIVERY_SENT, actor="deliver", subject_id=delivery_id, details=details, now=now)


def record_not_sent(session: Session, delivery_id: UUID, *, state: DeliveryState, reason: str, now: datetime) -> None:
    """Record that a try ended without success: it waits for the next one, is held, or has failed for good."""
    reason = clean(reason)
    destination = _set(session, delivery_id, state=state, reason=reason)
    details = {"destination": destination}  # a peer's own words may name a patient: they stay out of the trail
    audit.append(session, _ACTIONS[state], actor="deliver", subject_id=delivery_id, details=details, now=now)


def _set(session: Session, delivery_id: UUID, **values: object) -> str:
    changed = (
        update(_DELIVERIES).where(_DELIVERIES.c.id == delivery_id).values(**values).returning(_DELIVERIES.c.destination)
    )
    destination: str | None = session.execute(changed).scalar_one_or_none()
    if destination is None:
        raise NoSuchRecord(f"no delivery {delivery_id}")
    return destination


def requeue_waiting_deliveries(session: Session, *, now: datetime) -> int:
    """Queue again what waits to be sent though its job is over; return how many.

    A study that is released while a worker still looks at its held delivery ends so.
    """
    its_job = (_JOBS.c.kind == JobKind.DELIVER) & (_JOBS.c.subject_id == _DELIVERIES.c.id)
    is_over = exists().where(its_job, _JOBS.c.state == JobState.DONE)
    query = select(_DELIVERIES.c.id).where(_DELIVERIES.c.state == DeliveryState.WAITING, is_over)
    stranded = session.execute(query).scalars().all()
    for delivery_id in stranded:
        queue.requeue(session, JobKind.DELIVER, delivery_id, now=now)
    return len(stranded)
