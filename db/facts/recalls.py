"""Results that are taken back: because a model was bad, or because the sender rejected the image (IHE IOCM)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import ColumnElement, and_, exists, or_, select, update

from db import audit, queue
from db.audit import Action
from db.engine import Session, add_if_new
from db.facts.deliveries import DeliveryFacts, deliveries_of
from db.facts.judgements import NewWarning, record_judgement
from db.facts.reports import BuiltObject, objects_of
from db.tables import (
    Answer,
    Association,
    Delivery,
    DeliveryState,
    Instance,
    InstanceState,
    Job,
    JobKind,
    JobState,
    OwnObject,
    Prediction,
    Recall,
    RejectedObject,
    Report,
    Study,
    rows_of,
)

REJECTED = "rejected_by_sender"
"""Code of the warning that takes a rejected image out of its study's answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallFacts:
    """One report that says what a model said, and where it went."""

    report_id: UUID
    study_id: UUID
    revision: int
    answer: Answer
    is_current: bool
    """The study has no newer report."""
    is_purged: bool
    """The study's images are gone: they cannot be judged anew."""
    recalled_at: datetime | None
    instance_ids: tuple[UUID, ...]
    """The images about which the model said it."""
    deliveries: tuple[DeliveryFacts, ...]


_DELIVERIES, _REPORTS, _STUDIES, _RECALLS = rows_of(Delivery), rows_of(Report), rows_of(Study), rows_of(Recall)
_INSTANCES, _PREDICTIONS, _JOBS = rows_of(Instance), rows_of(Prediction), rows_of(Job)
_REJECTED, _OBJECTS, _ASSOCIATIONS = rows_of(RejectedObject), rows_of(OwnObject), rows_of(Association)


def said_by_model(
    session: Session, model_name: str, model_version: str, *, since: datetime | None = None
) -> tuple[RecallFacts, ...]:
    """Return every report with a prediction of a model version in it, the oldest first.

    Parameters
    ----------
    since
        Only reports of this instant and later.
    """
    judged = (
        select(_INSTANCES.c.study_id)
        .join(_PREDICTIONS, _PREDICTIONS.c.instance_id == _INSTANCES.c.id)
        .where(_PREDICTIONS.c.model_name == model_name, _PREDICTIONS.c.model_version == model_version)
    )
    query = (
        select(
            _REPORTS.c.id,
            _REPORTS.c.study_id,
            _REPORTS.c.revision,
            _REPORTS.c.answer,
            _REPORTS.c.images,
            _STUDIES.c.revision.label("newest"),
            _STUDIES.c.purged_at,
            _RECALLS.c.recalled_at,
        )
        .join(_STUDIES, _STUDIES.c.id == _REPORTS.c.study_id)
        .outerjoin(_RECALLS, _RECALLS.c.report_id == _REPORTS.c.id)
        .where(_REPORTS.c.study_id.in_(judged), _REPORTS.c.review_id.is_(None))  # a reviewer's word is not the model's
        .order_by(_REPORTS.c.content_at, _REPORTS.c.id)
    )
    if since is not None:
        query = query.where(_REPORTS.c.content_at >= since)
    found = []
    for row in session.execute(query):
        spoken = _spoken_of(row.images, model_name, model_version)
        if spoken:
            found.append(
                RecallFacts(
                    report_id=row.id,
                    study_id=row.study_id,
                    revision=row.revision,
                    answer=row.answer,
                    is_current=row.revision == row.newest,
                    is_purged=row.purged_at is not None,
                    recalled_at=row.recalled_at,
                    instance_ids=spoken,
                    deliveries=deliveries_of(session, row.id),
                )
            )
    return tuple(found)


def _spoken_of(images: Iterable[dict[str, object]], model_name: str, model_version: str) -> tuple[UUID, ...]:
    """Return the frozen images about which this model version said something."""
    return tuple(
        UUID(str(image["instance_id"]))
        for image in images
        for prediction in image["predictions"][:1]  # type: ignore[index]
        if (prediction["model_name"], prediction["model_version"]) == (model_name, model_version)
    )


def recall_report(
    session: Session, report_id: UUID, *, model_name: str, model_version: str, actor: str, now: datetime
) -> bool:
    """Mark a report as called back and withdraw it everywhere; False when it was called back before."""
    row = {"report_id": report_id, "model_name": model_name, "model_version": model_version}
    if add_if_new(session, _RECALLS, ("report_id",), row | {"actor": actor, "recalled_at": now}) is None:
        return False
    details = {"model": f"{model_name} {model_version}"}
    audit.append(session, Action.REPORT_RECALLED, actor=actor, subject_id=report_id, details=details, now=now)
    return True


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
    session.execute(update(_REPORTS).where(is_first).values(withdrawn_at=now, withdrawal=code))
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
        details = {"destination": delivery.destination, "code": code, "may_be_there": delivery.may_be_there}
        audit.append(
            session,
            Action.DELIVERY_WITHDRAWN,
            actor=actor,
            subject_id=delivery.delivery_id,
            details=details,
            now=now,
        )
    return told


def add_rejection_note(session: Session, report_id: UUID, note: BuiltObject, *, now: datetime) -> BuiltObject:
    """Record a rejection note as an object of ours; return it as it was recorded first."""
    add_if_new(session, _OBJECTS, ("sop_instance_uid",), asdict(note) | {"report_id": report_id, "created_at": now})
    return next(built for built in objects_of(session, report_id) if built.sop_instance_uid == note.sop_instance_uid)


def judge_again(session: Session, instance_ids: Collection[UUID], *, now: datetime) -> int:
    """Queue images to be judged anew by the model that is active then; return how many."""
    rejected = select(_REJECTED.c.sop_instance_uid).where(_REJECTED.c.applied_at.is_not(None))
    can_be = and_(_INSTANCES.c.id.in_(instance_ids), _INSTANCES.c.sop_instance_uid.not_in(rejected))
    query = select(_INSTANCES.c.id).join(_STUDIES, _STUDIES.c.id == _INSTANCES.c.study_id)
    again = session.execute(query.where(can_be, _STUDIES.c.purged_at.is_(None))).scalars().all()
    for instance_id in again:
        queue.requeue(session, JobKind.INFER, instance_id, now=now)
    return len(again)


# What senders reject


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
    """Remember which objects a sender rejected; they need not have come yet. Noting twice changes nothing.

    Parameters
    ----------
    is_trusted
        It may reject what others sent; else its word counts for the images alone that it sends itself.
    """
    row: dict[str, object] = {"study_instance_uid": study_instance_uid, "code": code, "note_uid": note_uid}
    row |= {"calling_ae_title": calling_ae_title, "is_trusted": is_trusted, "received_at": now}
    for uid in sop_instance_uids:
        key = {"study_instance_uid": study_instance_uid, "sop_instance_uid": uid}
        if add_if_new(session, _REJECTED, tuple(key), row | key) is None and is_trusted:
            is_this = (_REJECTED.c.study_instance_uid == study_instance_uid) & (_REJECTED.c.sop_instance_uid == uid)
            # What was said before without effect, by somebody whose word did not count.
            session.execute(update(_REJECTED).where(is_this, _REJECTED.c.applied_at.is_(None)).values(**row))


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
    rows = session.execute(query.order_by(_INSTANCES.c.study_id).limit(500)).all()
    for row in rows:
        is_this = _REJECTED.c.study_instance_uid == row.study_instance_uid
        is_this &= _REJECTED.c.sop_instance_uid == row.sop_instance_uid
        session.execute(update(_REJECTED).where(is_this).values(applied_at=now))
        if row.is_judged:
            _take_out(session, row.id, text, now)
            _withdraw_what_was_said(session, row, now)
        details = {"code": row.code, "sop_instance_uid": row.sop_instance_uid, "is_judged": row.is_judged}
        actor = f"ae:{row.calling_ae_title}"
        audit.append(session, Action.IMAGE_REJECTED, actor=actor, subject_id=row.id, details=details, now=now)
    return len(rows)


def has_open_rejections(session: Session) -> bool:
    """Tell, without a lock, whether `apply_rejections` would find something."""
    here = _INSTANCES.c.sop_instance_uid == _REJECTED.c.sop_instance_uid
    query = select(_INSTANCES.c.id).join(_REJECTED, here).where(_counts())
    return session.execute(query.limit(1)).first() is not None


def _counts() -> ColumnElement[bool]:
    """Whether a note of `_REJECTED` is to take an image of `_INSTANCES` out: of that study, by who may say so."""
    is_of_study = exists().where(
        _STUDIES.c.id == _INSTANCES.c.study_id, _STUDIES.c.study_instance_uid == _REJECTED.c.study_instance_uid
    )
    is_own = exists().where(
        _ASSOCIATIONS.c.id == _INSTANCES.c.association_id,
        _ASSOCIATIONS.c.calling_ae_title == _REJECTED.c.calling_ae_title,
    )
    return and_(_REJECTED.c.applied_at.is_(None), is_of_study, or_(_REJECTED.c.is_trusted, is_own))


def _take_out(session: Session, instance_id: UUID, text: str, now: datetime) -> None:
    job = and_(_JOBS.c.kind == JobKind.INFER, _JOBS.c.subject_id == instance_id)
    is_open = or_(_JOBS.c.state == JobState.READY, _JOBS.c.state == JobState.RUNNING, _JOBS.c.state == JobState.FAILED)
    ended = {"state": JobState.DONE, "lease_owner": None, "lease_until": None, "finished_at": now, "error": None}
    session.execute(update(_JOBS).where(job, is_open).values(**ended))
    warning = NewWarning(code=REJECTED, severity="forbids", text=text)
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
            code, actor = rejected.code, f"ae:{rejected.calling_ae_title}"  # type: ignore[attr-defined]
            withdraw_report(session, report.id, code=code, actor=actor, now=now)
