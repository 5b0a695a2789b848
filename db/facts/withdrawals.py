"""Reports that are withdrawn: nothing more of them leaves the node, and where they went they are rejected."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from datetime import datetime
from uuid import UUID

from sqlalchemy import select, update

from db import audit, queue
from db.audit import Action
from db.engine import NoSuchRecord, Session, add_if_new
from db.facts.deliveries import deliveries_of
from db.facts.holds import hold_study
from db.facts.reports import BuiltObject, objects_of
from db.tables import Delivery, DeliveryState, Hold, JobKind, OwnObject, Report, Study, rows_of

_REPORTS, _STUDIES, _OBJECTS, _DELIVERIES = rows_of(Report), rows_of(Study), rows_of(OwnObject), rows_of(Delivery)


def withdraw_report(
    session: Session,
    report_id: UUID,
    *,
    code: str,
    actor: str,
    now: datetime,
    only: Collection[str] | None = None,
) -> int:
    """Withdraw a report from destinations; return to how many of them it may have been sent.

    One that is not built yet goes nowhere (`db.facts.reports.record_report_built`). What was never sent is ended here;
    for the rest the delivery is queued once more, to send what the destination wants
    to be told. Withdrawing twice changes nothing.

    Parameters
    ----------
    code
        Code value of a rejection note's title (PS3.16 CID 7011).
    only
        Where it is elsewhere than at these destinations it stays as it is, for something else replaces it there.
    """
    # The study's lock is the one under which a report is recorded as built, with its deliveries.
    its_study = select(_REPORTS.c.study_id).where(_REPORTS.c.id == report_id).scalar_subquery()
    session.execute(select(_STUDIES.c.id).where(_STUDIES.c.id == its_study).with_for_update(key_share=True))
    is_first = (_REPORTS.c.id == report_id) & _REPORTS.c.withdrawn_at.is_(None)
    marked = update(_REPORTS).where(is_first).values(withdrawn_at=now, withdrawal=code).returning(_REPORTS.c.id)
    if session.execute(marked).first() is not None:
        details = {"code": code}
        audit.append(session, Action.REPORT_WITHDRAWN, actor=actor, subject_id=report_id, details=details, now=now)
    locked = select(_DELIVERIES.c.id).where(_DELIVERIES.c.report_id == report_id).with_for_update(key_share=True)
    session.execute(locked)
    told = 0
    for delivery in deliveries_of(session, report_id):
        is_left = only is not None and delivery.may_be_there and delivery.destination not in only
        if delivery.withdrawn_at is not None or is_left:
            continue
        state = DeliveryState.WAITING if delivery.may_be_there else DeliveryState.WITHDRAWN
        values = {"withdrawn_at": now, "withdrawal": code, "commit_due_at": None, "state": state, "reason": ""}
        session.execute(update(_DELIVERIES).where(_DELIVERIES.c.id == delivery.delivery_id).values(**values))
        if delivery.may_be_there:
            queue.enqueue(session, JobKind.DELIVER, delivery.delivery_id, delivery.study_id, now=now)
            queue.requeue(session, JobKind.DELIVER, delivery.delivery_id, now=now)
            told += 1
        said = {"destination": delivery.destination, "code": code, "may_be_there": delivery.may_be_there}
        audit.append(
            session,
            Action.DELIVERY_WITHDRAWN,
            actor=actor,
            subject_id=delivery.delivery_id,
            details=said,
            now=now,
        )
    return told


def withdraw_study(session: Session, study_id: UUID, *, code: str, actor: str, now: datetime) -> tuple[int, int]:
    """Withdraw every report of a study that stands; return how many, and to how many places they may have been sent.

    The study is held: what is said of it later leaves the node only when an administrator releases it.

    Parameters
    ----------
    code
        As for `withdraw_report`.

    Raises
    ------
    NoSuchRecord
        There is no such study.
    """
    locked = select(_STUDIES.c.id).where(_STUDIES.c.id == study_id).with_for_update(key_share=True)
    if session.execute(locked).first() is None:
        raise NoSuchRecord(f"no study {study_id}")
    standing = (_REPORTS.c.study_id == study_id) & _REPORTS.c.withdrawn_at.is_(None)
    reports = session.execute(select(_REPORTS.c.id).where(standing).order_by(_REPORTS.c.revision)).scalars().all()
    told = sum(withdraw_report(session, one, code=code, actor=actor, now=now) for one in reports)
    hold_study(session, study_id, Hold.WITHDRAWN, actor=actor, now=now)
    return len(reports), told


def add_rejection_note(session: Session, report_id: UUID, note: BuiltObject, *, now: datetime) -> BuiltObject:
    """Record a rejection note as an object of ours; return it as it was recorded first."""
    add_if_new(session, _OBJECTS, ("sop_instance_uid",), asdict(note) | {"report_id": report_id, "created_at": now})
    return next(built for built in objects_of(session, report_id) if built.sop_instance_uid == note.sop_instance_uid)
