"""Studies that are held: nothing about them leaves the node until an admin decides."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import ColumnElement, case, exists, func, select, update

from db import audit, queue
from db.audit import Action
from db.engine import NoSuchRecord, Session
from db.tables import PRIOR, Delivery, DeliveryState, Hold, JobKind, Report, Study, rows_of

_STUDIES, _DELIVERIES, _REPORTS = rows_of(Study), rows_of(Delivery), rows_of(Report)


def hold_study(session: Session, study_id: UUID, hold: Hold, *, actor: str, now: datetime) -> None:
    """Hold a study, and what waits to be delivered about it; audited once.

    A rejection note is not held: it says nothing new of the patient, and takes back what is seen already.
    """
    is_other = (_STUDIES.c.id == study_id) & _STUDIES.c.hold.is_distinct_from(hold)
    held = session.execute(update(_STUDIES).where(is_other).values(hold=hold).returning(_STUDIES.c.id)).first()
    if held is None:
        return
    waiting = _of_study(study_id) & (_DELIVERIES.c.state == DeliveryState.WAITING)
    waiting &= _DELIVERIES.c.withdrawn_at.is_(None)
    session.execute(update(_DELIVERIES).where(waiting).values(state=DeliveryState.HELD, reason=hold.value))
    audit.append(session, Action.STUDY_HELD, actor=actor, subject_id=study_id, details={"hold": hold.value}, now=now)


def release_study(session: Session, study_id: UUID, *, actor: str, now: datetime) -> int:
    """Let go what is held about a study; return how many deliveries wait to be sent now.

    A held study whose current report was withdrawn is reported anew: its withdrawal is taken back.

    Raises
    ------
    NoSuchRecord
        There is no such study.
    """
    study = session.execute(
        select(_STUDIES.c.hold, _STUDIES.c.priority).where(_STUDIES.c.id == study_id).with_for_update(key_share=True)
    ).one_or_none()
    if study is None:
        raise NoSuchRecord(f"no study {study_id}")
    is_said_again = exists().where(
        _REPORTS.c.study_id == _STUDIES.c.id,
        _REPORTS.c.revision == _STUDIES.c.revision,
        _REPORTS.c.withdrawn_at.is_not(None),
        _STUDIES.c.hold.is_not(None),
    )
    since = case((is_said_again, func.coalesce(_STUDIES.c.unreported_since, now)), else_=_STUDIES.c.unreported_since)
    session.execute(update(_STUDIES).where(_STUDIES.c.id == study_id).values(hold=None, unreported_since=since))
    held = _of_study(study_id) & (_DELIVERIES.c.state == DeliveryState.HELD)
    if study.hold is not None:  # what is held for its age as well needs a release of its own
        held &= _DELIVERIES.c.reason != PRIOR
    waiting = update(_DELIVERIES).where(held).values(state=DeliveryState.WAITING, reason="").returning(_DELIVERIES.c.id)
    released = session.execute(waiting).scalars().all()
    for delivery_id in released:
        queue.enqueue(session, JobKind.DELIVER, delivery_id, study_id, priority=study.priority, now=now)
        queue.requeue(session, JobKind.DELIVER, delivery_id, now=now)
    details = {"hold": study.hold.value if study.hold else None, "deliveries": len(released)}
    audit.append(session, Action.STUDY_RELEASED, actor=actor, subject_id=study_id, details=details, now=now)
    return len(released)


def _of_study(study_id: UUID) -> ColumnElement[bool]:
    return _DELIVERIES.c.report_id.in_(select(_REPORTS.c.id).where(_REPORTS.c.study_id == study_id))
