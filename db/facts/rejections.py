"""Images that their senders take back (IHE IOCM), and what was said about them."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from uuid import UUID

from sqlalchemy import ColumnElement, and_, delete, exists, or_, select, update

from db import audit
from db.audit import Action
from db.engine import Session, add_if_new
from db.facts.images import WarningFacts
from db.facts.judgements import record_judgement
from db.facts.withdrawals import withdraw_report
from db.tables import (
    Association,
    Instance,
    InstanceState,
    Job,
    JobKind,
    JobState,
    RejectedObject,
    Report,
    Study,
    rows_of,
)

REJECTED = "rejected_by_sender"
"""Code of the warning that takes a rejected image out of its study's answer."""

_INSTANCES, _STUDIES, _REPORTS, _JOBS = rows_of(Instance), rows_of(Study), rows_of(Report), rows_of(Job)
_REJECTED, _ASSOCIATIONS = rows_of(RejectedObject), rows_of(Association)
_APPLIED = _REJECTED.alias("applied")


def note_rejection(
    session: Session,
    *,
    sop_instance_uids: Collection[str],
    study_instance_uid: str,
    code: str,
    note_uid: str,
    calling_ae_title: str,
    is_trusted: bool,
    now: datetime,
) -> None:
    """Remember which objects a sender rejected; they need not have come yet. Its last word without effect counts.

    Parameters
    ----------
    is_trusted
        It may reject what others sent; else its word counts for the images alone that it sends itself.
    """
    word = {"code": code, "note_uid": note_uid, "is_trusted": is_trusted, "received_at": now}
    for uid in sop_instance_uids:
        key = {"study_instance_uid": study_instance_uid, "sop_instance_uid": uid, "calling_ae_title": calling_ae_title}
        if add_if_new(session, _REJECTED, tuple(key), key | word) is None:
            is_this = and_(*(_REJECTED.c[name] == value for name, value in key.items()))
            session.execute(update(_REJECTED).where(is_this, _REJECTED.c.applied_at.is_(None)).values(**word))


def apply_rejections(session: Session, *, text: str, now: datetime) -> int:
    """Take rejected images out of their studies' answers, and withdraw what was said about them; return how many.

    A queued or running job of such an image is ended: a worker that judges it just now loses its result.

    Parameters
    ----------
    text
        The sentence of the image's warning.
    """
    query = (
        select(_INSTANCES.c.id, _INSTANCES.c.study_id, _INSTANCES.c.is_judged, _REJECTED)
        .select_from(_REJECTED.join(_INSTANCES, _INSTANCES.c.sop_instance_uid == _REJECTED.c.sop_instance_uid))
        .where(_counts())
    )
    applied = 0
    for row in session.execute(query.order_by(_INSTANCES.c.study_id).limit(500)).all():
        is_this = _REJECTED.c.study_instance_uid == row.study_instance_uid
        is_this &= (_REJECTED.c.sop_instance_uid == row.sop_instance_uid) & _REJECTED.c.applied_at.is_(None)
        marked = update(_REJECTED).where(is_this).values(applied_at=now).returning(_REJECTED.c.sop_instance_uid)
        if session.execute(marked).first() is None:  # as another sender said too
            continue
        applied += 1
        if row.is_judged:
            _take_out(session, row.id, text, now)
            _withdraw_what_was_said(session, row, now)
        details = {"code": row.code, "sop_instance_uid": row.sop_instance_uid, "is_judged": row.is_judged}
        actor = audit.peer(row.calling_ae_title)
        audit.append(session, Action.IMAGE_REJECTED, actor=actor, subject_id=row.id, details=details, now=now)
    return applied


def has_open_rejections(session: Session) -> bool:
    """Tell, without a lock, whether `apply_rejections` would find something."""
    here = _INSTANCES.c.sop_instance_uid == _REJECTED.c.sop_instance_uid
    query = select(_INSTANCES.c.id).join(_REJECTED, here).where(_counts())
    return session.execute(query.limit(1)).first() is not None


def purge_rejections(session: Session, *, before: datetime) -> None:
    """Delete what was said before then of objects that never came; what was said of an image stands."""
    is_here = exists().where(_INSTANCES.c.sop_instance_uid == _REJECTED.c.sop_instance_uid)
    session.execute(delete(_REJECTED).where(_REJECTED.c.received_at < before, ~is_here))


def _counts() -> ColumnElement[bool]:
    """Whether a note of `_REJECTED` is to take an image of `_INSTANCES` out: of that study, by who may say so."""
    is_of_study = exists().where(
        _STUDIES.c.id == _INSTANCES.c.study_id, _STUDIES.c.study_instance_uid == _REJECTED.c.study_instance_uid
    )
    is_own = exists().where(
        _ASSOCIATIONS.c.id == _INSTANCES.c.association_id,
        _ASSOCIATIONS.c.calling_ae_title == _REJECTED.c.calling_ae_title,
    )
    is_out = exists().where(
        _APPLIED.c.sop_instance_uid == _REJECTED.c.sop_instance_uid,
        _APPLIED.c.study_instance_uid == _REJECTED.c.study_instance_uid,
        _APPLIED.c.applied_at.is_not(None),
    )
    return and_(_REJECTED.c.applied_at.is_(None), ~is_out, is_of_study, or_(_REJECTED.c.is_trusted, is_own))


def _take_out(session: Session, instance_id: UUID, text: str, now: datetime) -> None:
    job = and_(_JOBS.c.kind == JobKind.INFER, _JOBS.c.subject_id == instance_id)
    ended = {"state": JobState.DONE, "lease_owner": None, "lease_until": None, "finished_at": now, "error": None}
    session.execute(update(_JOBS).where(job, _JOBS.c.state != JobState.DONE).values(**ended))
    warning = WarningFacts(code=REJECTED, severity="forbids", text=text)
    record_judgement(session, instance_id, predictions=[], warnings=[warning], voi=None, now=now)


def _withdraw_what_was_said(session: Session, rejected: object, now: datetime) -> None:
    """Withdraw each report in which the model said something about the image."""
    instance_id, study_id = str(rejected.id), rejected.study_id  # type: ignore[attr-defined]
    query = select(_REPORTS.c.id, _REPORTS.c.contents).where(_REPORTS.c.study_id == study_id)
    for report in session.execute(query.order_by(_REPORTS.c.revision)):
        images = report.contents["images"]
        if any(
            image["instance_id"] == instance_id and image["state"] == InstanceState.ANALYSED.value for image in images
        ):
            code, actor = rejected.code, audit.peer(rejected.calling_ae_title)  # type: ignore[attr-defined]
            withdraw_report(session, report.id, code=code, actor=actor, now=now)
