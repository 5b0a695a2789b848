"""What a model version said, when the version turns out to be bad: found, taken back, judged anew.

A recalled version is marked first (`db.facts.models.recall_model`): from then on a worker that still holds it records
nothing, and no report is frozen over its word. A recall then goes from study to study under the study's lock, which is
the lock under which a report is frozen: so none slips through, whatever runs meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import ColumnElement, and_, or_, select

from db import audit, queue
from db.audit import Action
from db.engine import Session, add_if_new
from db.facts.deliveries import DeliveryFacts, deliveries_of
from db.facts.judgements import take_back_judgement
from db.tables import Answer, Instance, JobKind, Prediction, Recall, RejectedObject, Report, Study, rows_of

Model = tuple[str, str]
"""Name and version."""


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


_REPORTS, _STUDIES, _RECALLS = rows_of(Report), rows_of(Study), rows_of(Recall)
_INSTANCES, _PREDICTIONS, _REJECTED = rows_of(Instance), rows_of(Prediction), rows_of(RejectedObject)


def studies_judged_by(session: Session, model: Model) -> tuple[UUID, ...]:
    """Return the studies about an image of which a model version ever said something, in order of their ids."""
    judged = _INSTANCES.join(_PREDICTIONS, _PREDICTIONS.c.instance_id == _INSTANCES.c.id)
    query = select(_INSTANCES.c.study_id).select_from(judged).where(_is_by([model])).distinct()
    return tuple(session.execute(query.order_by(_INSTANCES.c.study_id)).scalars())


def said_by_model(
    session: Session, study_id: UUID, model: Model, *, since: datetime | None = None
) -> tuple[RecallFacts, ...]:
    """Return every report of a study with a prediction of a model version in it, the oldest first.

    Parameters
    ----------
    since
        Only reports of this instant and later.
    """
    query = (
        select(
            _REPORTS.c.id,
            _REPORTS.c.revision,
            _REPORTS.c.answer,
            _REPORTS.c.images,
            _STUDIES.c.revision.label("newest"),
            _STUDIES.c.purged_at,
            _RECALLS.c.recalled_at,
        )
        .join(_STUDIES, _STUDIES.c.id == _REPORTS.c.study_id)
        .outerjoin(_RECALLS, _RECALLS.c.report_id == _REPORTS.c.id)
        .where(_REPORTS.c.study_id == study_id, _REPORTS.c.review_id.is_(None))  # a reviewer's word is not the model's
        .order_by(_REPORTS.c.revision)
    )
    if since is not None:
        query = query.where(_REPORTS.c.content_at >= since)
    return tuple(
        RecallFacts(
            report_id=row.id,
            study_id=study_id,
            revision=row.revision,
            answer=row.answer,
            is_current=row.revision == row.newest,
            is_purged=row.purged_at is not None,
            recalled_at=row.recalled_at,
            instance_ids=spoken,
            deliveries=deliveries_of(session, row.id),
        )
        for row in session.execute(query).all()
        if (spoken := _spoken_of(row.images, model))
    )


def _spoken_of(images: Iterable[dict[str, object]], model: Model) -> tuple[UUID, ...]:
    """Return the frozen images about which this model version said something."""
    return tuple(
        UUID(str(image["instance_id"]))
        for image in images
        for prediction in image["predictions"][:1]  # type: ignore[index]
        if (prediction["model_name"], prediction["model_version"]) == model
    )


def recall_report(session: Session, report_id: UUID, *, model: Model, actor: str, now: datetime) -> bool:
    """Mark a report as called back; False when it was called back before."""
    row = {"report_id": report_id, "model_name": model[0], "model_version": model[1]}
    if add_if_new(session, _RECALLS, ("report_id",), row | {"actor": actor, "recalled_at": now}) is None:
        return False
    details = {"model": " ".join(model)}
    audit.append(session, Action.REPORT_RECALLED, actor=actor, subject_id=report_id, details=details, now=now)
    return True


def judged_by(
    session: Session,
    study_id: UUID,
    models: Collection[Model],
    *,
    since: datetime | None = None,
    or_among: Collection[UUID] = (),
) -> tuple[UUID, ...]:
    """Return the images of a study about which these model versions have the last word and which can be judged anew.

    Parameters
    ----------
    since
        Only what was said at this instant and later.
    or_among
        Images whatever the time.
    """
    if not models:
        return ()
    query = (
        select(_INSTANCES.c.id)
        .join(_PREDICTIONS, _PREDICTIONS.c.instance_id == _INSTANCES.c.id)
        .join(_STUDIES, _STUDIES.c.id == _INSTANCES.c.study_id)
        .where(_INSTANCES.c.study_id == study_id, _STUDIES.c.purged_at.is_(None))
        .where(_PREDICTIONS.c.superseded_at.is_(None), _is_by(models))
        .distinct()
        .order_by(_INSTANCES.c.id)
    )
    if since is not None:
        query = query.where(or_(_PREDICTIONS.c.created_at >= since, _INSTANCES.c.id.in_(or_among)))
    return tuple(session.execute(query).scalars())


def judge_anew(session: Session, instance_ids: Collection[UUID], *, actor: str, now: datetime) -> None:
    """Take back what was said about images, and queue them to be judged by the model that is active then."""
    for instance_id in instance_ids:
        take_back_judgement(session, instance_id, actor=actor, now=now)
        queue.requeue(session, JobKind.INFER, instance_id, now=now)


def judge_again(session: Session, instance_ids: Collection[UUID], *, now: datetime) -> int:
    """Queue images to be judged by the model that is active then; what was said stands until then. Return how many."""
    rejected = select(_REJECTED.c.sop_instance_uid).where(_REJECTED.c.applied_at.is_not(None))
    can_be = and_(_INSTANCES.c.id.in_(instance_ids), _INSTANCES.c.sop_instance_uid.not_in(rejected))
    here = select(_INSTANCES.c.id).where(_INSTANCES.c.gone_at.is_(None))
    again = session.execute(here.where(can_be)).scalars().all()
    for instance_id in again:
        queue.requeue(session, JobKind.INFER, instance_id, now=now)
    return len(again)


def _is_by(models: Collection[Model]) -> ColumnElement[bool]:
    row = _PREDICTIONS.c
    return or_(*(and_(row.model_name == name, row.model_version == version) for name, version in models))
