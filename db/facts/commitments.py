"""Storage commitment: what destinations keep of ours (what peers ask of us: `db.facts.keeping`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, and_, delete, func, select, update

from db import audit, queue
from db.audit import DELIVERER, Action
from db.engine import Session, add_if_new
from db.tables import (
    Commitment,
    DeliveredObject,
    Delivery,
    DeliveryState,
    Job,
    JobKind,
    JobState,
    rows_of,
)

REASONS = {
    0x0110: "processing failure",
    0x0112: "no such object",
    0x0119: "the SOP Class is another one",
    0x0122: "the SOP Class is not supported",
    0x0131: "the transaction UID was used before",
    0x0213: "no room",
}
"""Failure Reasons (PS3.3 C.14.1.1)."""
CLASS_NOT_SUPPORTED = 0x0122
"""No other copy of the object changes this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a destination is asked to keep, under one Transaction UID."""

    delivery_ids: tuple[UUID, ...]
    objects: tuple[tuple[str, str], ...]
    """(SOP Class UID, SOP Instance UID)"""
    again_at: datetime
    """When the same is asked again unless it is postponed."""


_DELIVERIES, _DELIVERED, _JOBS = rows_of(Delivery), rows_of(DeliveredObject), rows_of(Job)
_COMMITMENTS = rows_of(Commitment)


def commitments_due(session: Session, destinations: Collection[str], *, now: datetime) -> frozenset[str]:
    """Return which of these destinations are to be asked now whether they keep what they got."""
    due = select(_DELIVERIES.c.destination).where(_is_due(now), _DELIVERIES.c.destination.in_(destinations))
    return frozenset(session.execute(due.distinct()).scalars())


def open_commitment(
    session: Session, destination: str, *, transaction_uid: str, limit: int, again_at: datetime, now: datetime
) -> Question | None:
    """Take what is to be asked of a destination and record the question, before it is asked; None if there is nothing.

    Parameters
    ----------
    again_at
        When the same is asked again, should this process end before it has asked.
    """
    first = select(_DELIVERIES.c.id).where(_is_due(now), _DELIVERIES.c.destination == destination)
    first = first.order_by(_DELIVERIES.c.commit_due_at).limit(limit).with_for_update(skip_locked=True)
    taken = (
        update(_DELIVERIES)
        .where(_DELIVERIES.c.id.in_(first))
        .values(commit_due_at=again_at, commit_asked=_DELIVERIES.c.commit_asked + 1)
        .returning(_DELIVERIES.c.id)
    )
    ids = tuple(session.execute(taken).scalars())
    to_ask = and_(_DELIVERED.c.sent_at.is_not(None), _DELIVERED.c.archived_at.is_(None))
    query = select(_DELIVERED.c.sop_class_uid, _DELIVERED.c.sop_instance_uid).where(
        _DELIVERED.c.delivery_id.in_(ids), to_ask
    )
    objects = tuple((row.sop_class_uid, row.sop_instance_uid) for row in session.execute(query))
    if not objects:
        session.execute(update(_DELIVERIES).where(_DELIVERIES.c.id.in_(ids)).values(commit_due_at=None))
        return None
    row = {"transaction_uid": transaction_uid, "destination": destination, "asked_at": now}
    add_if_new(session, _COMMITMENTS, ("transaction_uid",), row)
    details = {"destination": destination, "transaction_uid": transaction_uid, "objects": len(objects)}
    audit.append(session, Action.COMMITMENT_ASKED, actor=DELIVERER, details=details, now=now)
    return Question(delivery_ids=ids, objects=objects, again_at=again_at)


def postpone_commitment(session: Session, question: Question, *, until: datetime) -> None:
    """Ask again at `until`, unless an answer has come meanwhile."""
    is_open = _DELIVERIES.c.id.in_(question.delivery_ids) & (_DELIVERIES.c.commit_due_at == question.again_at)
    session.execute(update(_DELIVERIES).where(is_open).values(commit_due_at=until))


def purge_commitments(session: Session, *, before: datetime) -> None:
    """Delete the questions that were asked before then; what was promised stands with the deliveries."""
    session.execute(delete(_COMMITMENTS).where(_COMMITMENTS.c.asked_at < before))


def record_commitment(
    session: Session,
    transaction_uid: str,
    *,
    kept: Collection[str],
    failed: Mapping[str, int],
    max_failures: int,
    again_in_s: float,
    now: datetime,
) -> bool:
    """Record what a destination says it keeps; False for a Transaction UID that we never used, or long ago.

    A result is archived once all of its objects are. What the destination does not keep is sent again, until it said so
    `max_failures` times or gave a reason that another copy does not cure; then the delivery has failed.

    Parameters
    ----------
    kept, failed
        SOP Instance UIDs; those that failed with their Failure Reason.
    again_in_s
        Seconds before an object is sent again for the first time; four times as long before each next time.
    """
    answered = (
        update(_COMMITMENTS)
        .where(_COMMITMENTS.c.transaction_uid == transaction_uid)
        .values(answered_at=func.coalesce(_COMMITMENTS.c.answered_at, now))
        .returning(_COMMITMENTS.c.destination)
    )
    destination = session.execute(answered).scalar_one_or_none()
    if destination is None:
        return False
    named = _DELIVERED.c.sop_instance_uid.in_([*kept, *failed])
    there = (
        select(_DELIVERED.c.delivery_id, _DELIVERED.c.sop_instance_uid)
        .join(_DELIVERIES, _DELIVERIES.c.id == _DELIVERED.c.delivery_id)
        .where(_DELIVERIES.c.destination == destination, named, _DELIVERED.c.sent_at.is_not(None))
    )
    by_delivery: dict[UUID, list[str]] = {}
    for row in session.execute(there):
        by_delivery.setdefault(row.delivery_id, []).append(row.sop_instance_uid)
    for delivery_id, uids in by_delivery.items():
        lost = {uid: failed[uid] for uid in uids if uid in failed}
        _keep(session, delivery_id, [uid for uid in uids if uid not in lost], destination, now)
        if lost:
            _lose(session, delivery_id, lost, destination, (max_failures, again_in_s), now)
    return True


def _keep(session: Session, delivery_id: UUID, uids: list[str], destination: str, now: datetime) -> None:
    is_kept = (_DELIVERED.c.delivery_id == delivery_id) & _DELIVERED.c.sop_instance_uid.in_(uids)
    session.execute(update(_DELIVERED).where(is_kept, _DELIVERED.c.archived_at.is_(None)).values(archived_at=now))
    is_open = (_DELIVERED.c.delivery_id == delivery_id) & _DELIVERED.c.archived_at.is_(None)
    if session.execute(select(_DELIVERED.c.sop_instance_uid).where(is_open, _DELIVERED.c.refusal == "")).first():
        return
    archived = (
        update(_DELIVERIES)
        .where(_DELIVERIES.c.id == delivery_id, _DELIVERIES.c.archived_at.is_(None))
        .values(archived_at=now, commit_due_at=None, commit_asked=0)
        .returning(_DELIVERIES.c.id)
    )
    if session.execute(archived).first() is not None:
        details = {"destination": destination}
        audit.append(
            session, Action.DELIVERY_ARCHIVED, actor=DELIVERER, subject_id=delivery_id, details=details, now=now
        )


def _lose(
    session: Session,
    delivery_id: UUID,
    lost: Mapping[str, int],
    destination: str,
    limits: tuple[int, float],
    now: datetime,
) -> None:
    delivery = session.execute(
        select(_DELIVERIES.c.state, _DELIVERIES.c.commit_failures)
        .where(_DELIVERIES.c.id == delivery_id)
        .with_for_update(key_share=True)
    ).one()
    code = next(iter(lost.values()))
    details = {"destination": destination, "objects": len(lost), "failure_reason": f"{code:04X}"}
    audit.append(session, Action.COMMITMENT_FAILED, actor=DELIVERER, subject_id=delivery_id, details=details, now=now)
    if delivery.state is not DeliveryState.SENT:  # it is sent again already, or withdrawn
        return
    (max_failures, again_in_s), failures = limits, delivery.commit_failures + 1
    is_over = failures >= max_failures or CLASS_NOT_SUPPORTED in lost.values()
    reason = f"the destination does not keep it: {REASONS.get(code, 'reason')} ({code:04X})"
    is_lost = (_DELIVERED.c.delivery_id == delivery_id) & _DELIVERED.c.sop_instance_uid.in_(lost)
    session.execute(update(_DELIVERED).where(is_lost).values(sent_at=None, archived_at=None))
    state = DeliveryState.FAILED if is_over else DeliveryState.WAITING
    values = {"state": state, "reason": reason, "commit_due_at": None, "commit_failures": failures, "archived_at": None}
    session.execute(update(_DELIVERIES).where(_DELIVERIES.c.id == delivery_id).values(**values))
    if not is_over:
        again_at = now + timedelta(seconds=again_in_s * 4.0 ** min(failures - 1, 8))
        queue.requeue(session, JobKind.DELIVER, delivery_id, now=again_at)
        return
    its_job = (_JOBS.c.kind == JobKind.DELIVER) & (_JOBS.c.subject_id == delivery_id)
    is_done = its_job & (_JOBS.c.state == JobState.DONE)
    session.execute(update(_JOBS).where(is_done).values(state=JobState.FAILED, error=reason, finished_at=now))
    audit.append(
        session,
        Action.DELIVERY_FAILED,
        actor=DELIVERER,
        subject_id=delivery_id,
        details={"destination": destination},
        now=now,
    )


def _is_due(now: datetime) -> ColumnElement[bool]:
    return and_(_DELIVERIES.c.commit_due_at <= now, _DELIVERIES.c.state == DeliveryState.SENT)
