"""Deliveries: one report to one destination, and what became of each of its objects there."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import exists, select, update

from db import audit, queue
from db.audit import DELIVERER, Action
from db.engine import NoSuchRecord, Session, insert_into
from db.facts.arrival import clean
from db.facts.reports import BuiltObject, objects_of
from db.tables import (
    DeliveredObject,
    Delivery,
    DeliveryState,
    Hold,
    Job,
    JobKind,
    JobState,
    ObjectKind,
    Report,
    Study,
    rows_of,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """One object that a destination was offered."""

    sop_instance_uid: str
    sop_class_uid: str
    kind: ObjectKind
    sent_at: datetime | None
    """None: refused, or, without a refusal, to be sent again."""
    refusal: str
    archived_at: datetime | None

    @property
    def is_over(self) -> bool:
        """The destination has it, or does not want it."""
        return self.sent_at is not None or bool(self.refusal)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryFacts:
    """What to send where, and what is there already."""

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
    is_void: bool
    """The report was withdrawn: nothing of it is sent any more, whatever is left where it is already."""
    archived_at: datetime | None
    withdrawn_at: datetime | None
    """When the node decided that this result must no longer be shown there."""
    withdrawal: str | None
    """Why: the code value of a rejection note's title."""
    is_closed: bool
    """A person decided that it is not made."""
    hold: Hold | None
    """Of the study: nothing new about it leaves the node."""
    delivered: tuple[Delivered, ...]

    @property
    def may_be_there(self) -> bool:
        """Whether the destination may hold an object of it: a choice is recorded before the first byte is sent."""
        return self.sop_instance_uid is not None or any(one.sent_at is not None for one in self.delivered)


_DELIVERIES, _REPORTS, _STUDIES, _JOBS = rows_of(Delivery), rows_of(Report), rows_of(Study), rows_of(Job)
_DELIVERED = rows_of(DeliveredObject)
_ACTIONS = {
    DeliveryState.WAITING: Action.DELIVERY_DELAYED,
    DeliveryState.HELD: Action.DELIVERY_HELD,
    DeliveryState.FAILED: Action.DELIVERY_FAILED,
    DeliveryState.WITHDRAWN: Action.DELIVERY_WITHDRAWN,
}


def delivery_facts(session: Session, delivery_id: UUID, *, lock: bool = False) -> DeliveryFacts:
    """Return a delivery with the objects to choose from.

    Parameters
    ----------
    lock
        Keep everybody else from holding, releasing or withdrawing its study until the transaction ends.

    Raises
    ------
    NoSuchRecord
        There is no such delivery.
    """
    if lock:
        its_report = select(_DELIVERIES.c.report_id).where(_DELIVERIES.c.id == delivery_id).scalar_subquery()
        its_study = select(_REPORTS.c.study_id).where(_REPORTS.c.id == its_report).scalar_subquery()
        session.execute(select(_STUDIES.c.id).where(_STUDIES.c.id == its_study).with_for_update(key_share=True))
    row = session.execute(_select().where(_DELIVERIES.c.id == delivery_id)).mappings().one_or_none()
    if row is None:
        raise NoSuchRecord(f"no delivery {delivery_id}")
    return _facts(session, row)


def earlier_deliveries(session: Session, delivery: DeliveryFacts) -> tuple[DeliveryFacts, ...]:
    """Return the deliveries of the study's earlier reports to the same destination, the first report's first."""
    query = _select().where(
        _REPORTS.c.study_id == delivery.study_id,
        _REPORTS.c.revision < delivery.revision,
        _DELIVERIES.c.destination == delivery.destination,
    )
    rows = session.execute(query.order_by(_REPORTS.c.revision)).mappings().all()
    return tuple(_facts(session, row) for row in rows)


def deliveries_of(session: Session, report_id: UUID) -> tuple[DeliveryFacts, ...]:
    """Return every delivery of one report, in order of the destinations' names."""
    query = _select().where(_DELIVERIES.c.report_id == report_id).order_by(_DELIVERIES.c.destination)
    return tuple(_facts(session, row) for row in session.execute(query).mappings().all())


def _facts(session: Session, row: Any) -> DeliveryFacts:
    columns = [_DELIVERED.c[name] for name in Delivered.__dataclass_fields__]
    query = select(*columns).where(_DELIVERED.c.delivery_id == row["delivery_id"])
    found = session.execute(query.order_by(_DELIVERED.c.sop_instance_uid)).mappings()
    delivered = tuple(Delivered(**one) for one in found)
    return DeliveryFacts(**row, objects=objects_of(session, row["report_id"]), delivered=delivered)


def _select() -> Any:
    names = (
        *("report_id", "destination", "state", "reason", "sop_class_uid", "sop_instance_uid"),
        *("archived_at", "withdrawn_at", "withdrawal"),
    )
    return (
        select(
            _DELIVERIES.c.id.label("delivery_id"),
            *(_DELIVERIES.c[name] for name in names),
            _REPORTS.c.study_id,
            _REPORTS.c.revision,
            _STUDIES.c.hold,
            _REPORTS.c.withdrawn_at.is_not(None).label("is_void"),
            exists()
            .where(
                _JOBS.c.kind == JobKind.DELIVER,
                _JOBS.c.subject_id == _DELIVERIES.c.id,
                _JOBS.c.state == JobState.CLOSED,
            )
            .label("is_closed"),
        )
        .join(_REPORTS, _REPORTS.c.id == _DELIVERIES.c.report_id)
        .join(_STUDIES, _STUDIES.c.id == _REPORTS.c.study_id)
    )


def record_choice(session: Session, delivery_id: UUID, *, sop_class_uid: str, sop_instance_uid: str) -> None:
    """Keep what this destination will get, before it is sent: another try never sends another UID."""
    _set(session, delivery_id, sop_class_uid=sop_class_uid, sop_instance_uid=sop_instance_uid)


def record_object_sent(session: Session, delivery_id: UUID, built: BuiltObject, *, now: datetime) -> None:
    """Record that the destination stored one object; another try does not send it again."""
    _put_delivered(session, delivery_id, built, sent_at=now, refusal="")
    details = {"kind": built.kind.value, "sop_class_uid": built.sop_class_uid}
    details |= {"sop_instance_uid": built.sop_instance_uid}
    audit.append(session, Action.OBJECT_SENT, actor=DELIVERER, subject_id=delivery_id, details=details, now=now)


def record_object_refused(
    session: Session, delivery_id: UUID, built: BuiltObject, *, reason: str, now: datetime
) -> None:
    """Record that the destination does not take one object beside the report: a note, no failure of the delivery."""
    _put_delivered(session, delivery_id, built, sent_at=None, refusal=clean(reason) or "refused")
    details = {"kind": built.kind.value, "sop_class_uid": built.sop_class_uid}  # the peer's own words stay outside
    audit.append(session, Action.OBJECT_REFUSED, actor=DELIVERER, subject_id=delivery_id, details=details, now=now)


def _put_delivered(
    session: Session, delivery_id: UUID, built: BuiltObject, *, sent_at: datetime | None, refusal: str
) -> None:
    values = {"sent_at": sent_at, "refusal": refusal, "archived_at": None}
    row = {"delivery_id": delivery_id, "sop_instance_uid": built.sop_instance_uid}
    row |= {"sop_class_uid": built.sop_class_uid, "kind": built.kind}
    statement = insert_into(session, _DELIVERED).values(**row, **values)
    session.execute(statement.on_conflict_do_update(index_elements=["delivery_id", "sop_instance_uid"], set_=values))


def record_sent(session: Session, delivery_id: UUID, *, now: datetime, commit_due_at: datetime | None = None) -> None:
    """Record that the destination has everything that it gets. Recording twice changes nothing.

    One that was withdrawn meanwhile waits instead, for its rejection note.

    Parameters
    ----------
    commit_due_at
        When the destination is to be asked whether it keeps what it got; None: it never is.
    """
    state, withdrawn_at = session.execute(
        select(_DELIVERIES.c.state, _DELIVERIES.c.withdrawn_at)
        .where(_DELIVERIES.c.id == delivery_id)
        .with_for_update(key_share=True)
    ).one()
    if state is DeliveryState.SENT:
        return
    if withdrawn_at is not None:
        _set(session, delivery_id, state=DeliveryState.WAITING, sent_at=now)
        return
    destination = _set(
        session, delivery_id, state=DeliveryState.SENT, sent_at=now, reason="", commit_due_at=commit_due_at
    )
    details = {"destination": destination}
    audit.append(session, Action.DELIVERY_SENT, actor=DELIVERER, subject_id=delivery_id, details=details, now=now)


def record_not_sent(session: Session, delivery_id: UUID, *, state: DeliveryState, reason: str, now: datetime) -> None:
    """Record that a try ended without success: it waits, is held, has failed for good, or is withdrawn."""
    reason = clean(reason)
    destination = _set(session, delivery_id, state=state, reason=reason)
    details = {"destination": destination}  # a peer's own words may name a patient: they stay out of the trail
    audit.append(session, _ACTIONS[state], actor=DELIVERER, subject_id=delivery_id, details=details, now=now)


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
