"""Reports: frozen before anything is built from them, one chain of revisions per study."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, exists, func, insert, select, update

from db import audit, queue
from db.audit import Action
from db.engine import NoSuchRecord, Session, add_if_new
from db.facts.images import ImageFacts, freeze, images_of_study, thaw
from db.tables import Answer, Delivery, DeliveryState, JobKind, ObjectKind, OwnObject, Report, Study, new_id, rows_of


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltObject:
    """A DICOM object made from a report: the report in each SR Class that a destination may want, and its pictures."""

    sop_instance_uid: str
    sop_class_uid: str
    path: str
    digest: str
    kind: ObjectKind = ObjectKind.SR


@dataclass(frozen=True, slots=True, kw_only=True)
class PredecessorFacts:
    """An earlier report that a report names, and what it said."""

    report_id: UUID
    revision: int
    answer: Answer
    probability: float | None
    model_name: str
    content_at: datetime
    objects: tuple[BuiltObject, ...]
    """Empty while it is not built."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFacts:
    """What a report says, as it was frozen."""

    report_id: UUID
    study_id: UUID
    revision: int
    predecessor: PredecessorFacts | None
    """What the model said before: the newest earlier report that was to leave the house, and stood or may have left."""
    answer: Answer
    probability: float | None
    contents: dict[str, Any]
    model_name: str
    model_version: str
    content_at: datetime
    """ContentDate and ContentTime."""
    is_sent: bool
    """False when the answer stays in the house: of no chest, with nothing said before; or wanted at no destination."""
    built_at: datetime | None
    review_id: UUID | None = None
    """Whose word it is; None = the model's."""
    withdrawn_at: datetime | None = None
    """Since then nothing of it leaves the node."""
    replaced: PredecessorFacts | None = None
    """The same reader's report that this one takes the place of."""
    codes: dict[str, Any] | None = None
    """Codes that the configuration named when it was frozen; None = as shipped."""


_REPORTS, _STUDIES, _OBJECTS, _DELIVERIES = rows_of(Report), rows_of(Study), rows_of(OwnObject), rows_of(Delivery)
_NAMES = [n for n in ReportFacts.__dataclass_fields__ if n not in ("report_id", "predecessor", "replaced")]
_OBJECT = tuple(_OBJECTS.c[name] for name in BuiltObject.__dataclass_fields__)


def freeze_report(
    session: Session,
    study_id: UUID,
    *,
    answer: Answer,
    probability: float | None,
    contents: dict[str, Any],
    model_name: str,
    model_version: str,
    is_sent: bool,
    now: datetime,
    codes: dict[str, Any] | None = None,
) -> UUID | None:
    """Freeze the study's next report and queue its building; None when it would say what the current one says.

    Other `codes` alone are nothing new: what was said is not said again because a table changed. What was withdrawn is.

    The images are kept by value as they stand now: hold the study's lock (`study_facts`) from reading to this call.

    Raises
    ------
    NoSuchRecord
        There is no such study.
    """
    locked = select(_STUDIES.c.priority).where(_STUDIES.c.id == study_id).with_for_update(key_share=True)
    study = session.execute(locked).one_or_none()
    if study is None:
        raise NoSuchRecord(f"no study {study_id}")
    current = _row_of_current(session, study_id)
    contents = json.loads(json.dumps(contents))
    says = (current.answer, current.contents, current.withdrawn_at) if current else None
    if says == (answer, contents, None):
        session.execute(update(_STUDIES).where(_STUDIES.c.id == study_id).values(unreported_since=None))
        return None
    report_id, revision = new_id(), next_revision(session, study_id)
    row = {
        "id": report_id,
        "study_id": study_id,
        "revision": revision,
        "predecessor_id": _said_before(session, study_id),
    }
    row |= {"answer": answer, "probability": probability, "contents": contents, "content_at": now, "is_sent": is_sent}
    row |= {"model_name": model_name, "model_version": model_version, "codes": codes or None}
    row["images"] = [freeze(image) for image in images_of_study(session, study_id)]
    session.execute(insert(_REPORTS), row)
    shown = {"answer": answer, "probability": probability, "model_version": model_version}
    is_this = _STUDIES.c.id == study_id
    session.execute(update(_STUDIES).where(is_this).values(revision=revision, unreported_since=None, **shown))
    queue.enqueue(session, JobKind.REPORT, report_id, study_id, priority=study.priority, now=now)
    details = {"study_id": str(study_id), "revision": revision, "answer": answer.value}
    audit.append(session, Action.REPORT_FROZEN, actor="tick", subject_id=report_id, details=details, now=now)
    return report_id


def next_revision(session: Session, study_id: UUID) -> int:
    """Return the revision that the study's next report bears, readers' reports counted; hold the study's lock."""
    highest = select(func.max(_REPORTS.c.revision)).where(_REPORTS.c.study_id == study_id)
    return (session.execute(highest).scalar_one() or 0) + 1


def next_predecessor(session: Session, study_id: UUID) -> PredecessorFacts | None:
    """Return what the study's next report would name; None where a destination neither has anything nor is to get it.

    Before it was sent, what was withdrawn is nowhere, and goes nowhere.
    """
    return _named(session, _said_before(session, study_id))


def report_facts(session: Session, report_id: UUID) -> ReportFacts:
    """Return a report as it was frozen.

    Raises
    ------
    NoSuchRecord
        There is no such report.
    """
    row = session.execute(_select().where(_REPORTS.c.id == report_id)).one_or_none()
    if row is None:
        raise NoSuchRecord(f"no report {report_id}")
    return _facts(session, row)


def current_report(session: Session, study_id: UUID) -> ReportFacts | None:
    """Return the newest report of a study in which the model speaks; None before the first."""
    row = _row_of_current(session, study_id)
    return None if row is None else _facts(session, row)


def reports_of_study(session: Session, study_id: UUID) -> tuple[ReportFacts, ...]:
    """Return every revision of a study's report, the first one first."""
    rows = session.execute(_select().where(_REPORTS.c.study_id == study_id).order_by(_REPORTS.c.revision)).all()
    return tuple(_facts(session, row) for row in rows)


def frozen_images(session: Session, report_id: UUID) -> tuple[ImageFacts, ...]:
    """Return the images exactly as they stood when the report was frozen, in order of reception."""
    frozen = session.execute(select(_REPORTS.c.images).where(_REPORTS.c.id == report_id)).scalar_one_or_none()
    if frozen is None:
        raise NoSuchRecord(f"no report {report_id}")
    return tuple(thaw(image) for image in frozen)


def record_report_built(
    session: Session,
    report_id: UUID,
    objects: Sequence[BuiltObject],
    destinations: Sequence[tuple[str, DeliveryState, str]],
    now: datetime,
) -> None:
    """Record the objects made from a report and one delivery per destination, and queue those that wait.

    Recording twice changes nothing.

    Parameters
    ----------
    destinations
        Name, state and the reason of that state. What would wait is held instead while the study is held; a report
        that was withdrawn meanwhile goes nowhere.
    """
    report = report_facts(session, report_id)
    locked = select(_STUDIES.c.hold, _STUDIES.c.priority).where(_STUDIES.c.id == report.study_id)
    study = session.execute(locked.with_for_update(key_share=True)).one()
    wanted = select(_REPORTS.c.withdrawn_at, _REPORTS.c.withdrawal).where(_REPORTS.c.id == report_id)
    withdrawn = session.execute(wanted).one()
    made = {"report_id": report_id, "created_at": now}
    for built in objects:
        add_if_new(session, _OBJECTS, ("sop_instance_uid",), asdict(built) | made)
    for name, state, reason in destinations:
        if study.hold is not None and state is DeliveryState.WAITING:
            state, reason = DeliveryState.HELD, study.hold.value
        if withdrawn.withdrawn_at is not None:
            state, reason = DeliveryState.WITHDRAWN, ""
        row = made | {"destination": name, "state": state, "reason": reason} | dict(withdrawn._mapping)
        delivery_id = add_if_new(session, _DELIVERIES, ("report_id", "destination"), row)
        if delivery_id is not None and state is DeliveryState.WAITING:
            queue.enqueue(session, JobKind.DELIVER, delivery_id, report.study_id, priority=study.priority, now=now)
    if report.built_at is None:
        session.execute(update(_REPORTS).where(_REPORTS.c.id == report_id).values(built_at=now))
        audit.append(
            session,
            Action.REPORT_BUILT,
            actor="worker",
            subject_id=report_id,
            details={"objects": len(objects)},
            now=now,
        )


def record_report_failed(session: Session, report_id: UUID, *, now: datetime) -> None:
    """Record that a report could not be built: its failed job says why, and an operator runs it again."""
    audit.append(session, Action.REPORT_FAILED, actor="worker", subject_id=report_id, now=now)


def is_own_object(session: Session, sop_instance_uid: str) -> bool:
    """Tell whether this node made the SOP Instance."""
    return (
        session.execute(select(_OBJECTS.c.report_id).where(_OBJECTS.c.sop_instance_uid == sop_instance_uid)).first()
        is not None
    )


def objects_of(session: Session, report_id: UUID) -> tuple[BuiltObject, ...]:
    """Return all objects made from a report, of every kind, in order of SOP Class UID."""
    in_order = (_OBJECTS.c.sop_class_uid, _OBJECTS.c.sop_instance_uid)
    query = select(*_OBJECT).where(_OBJECTS.c.report_id == report_id).order_by(*in_order)
    return tuple(BuiltObject(**row) for row in session.execute(query).mappings())


def _select() -> Any:
    columns = ("id", "predecessor_id", "replaced_id", *_NAMES)
    return select(*(_REPORTS.c[name] for name in columns))


def _row_of_current(session: Session, study_id: UUID) -> Row[Any] | None:
    by_model = (_REPORTS.c.study_id == study_id) & _REPORTS.c.review_id.is_(None)
    newest = _select().where(by_model).order_by(_REPORTS.c.revision.desc()).limit(1)
    row: Row[Any] | None = session.execute(newest).one_or_none()
    return row


def _said_before(session: Session, study_id: UUID) -> UUID | None:
    """Return the newest report of the model that was to leave, and that stands or may be at a destination."""
    by_model = (_REPORTS.c.study_id == study_id) & _REPORTS.c.review_id.is_(None)
    is_chosen = _DELIVERIES.c.sop_instance_uid.is_not(None)  # before the first byte is sent
    may_be_there = exists().where(_DELIVERIES.c.report_id == _REPORTS.c.id, is_chosen)
    counts = _REPORTS.c.is_sent & (_REPORTS.c.withdrawn_at.is_(None) | may_be_there)
    newest = select(_REPORTS.c.id).where(by_model, counts).order_by(_REPORTS.c.revision.desc()).limit(1)
    report_id: UUID | None = session.execute(newest).scalar_one_or_none()
    return report_id


def _facts(session: Session, row: Row[Any]) -> ReportFacts:
    return ReportFacts(
        report_id=row.id,
        predecessor=_named(session, row.predecessor_id),
        replaced=_named(session, row.replaced_id),
        **{name: getattr(row, name) for name in _NAMES},
    )


def _named(session: Session, report_id: UUID | None) -> PredecessorFacts | None:
    if report_id is None:
        return None
    row = session.execute(_select().where(_REPORTS.c.id == report_id)).one()
    values = {
        name: getattr(row, name) for name in PredecessorFacts.__dataclass_fields__.keys() - {"report_id", "objects"}
    }
    return PredecessorFacts(report_id=row.id, objects=objects_of(session, row.id), **values)
