"""Which input bytes may go, and which files belong to something."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import and_, exists, func, select, update

from db import audit
from db.audit import Action
from db.engine import Session
from db.tables import (
    PRIOR,
    Delivery,
    DeliveryState,
    Heatmap,
    Hold,
    Instance,
    InstanceState,
    Job,
    JobState,
    ObjectKind,
    Outcome,
    OwnObject,
    Receipt,
    Report,
    Review,
    Study,
    Verdict,
    rows_of,
)

_STUDIES, _INSTANCES, _JOBS, _REPORTS = rows_of(Study), rows_of(Instance), rows_of(Job), rows_of(Report)
_DELIVERIES, _REVIEWS, _RECEIPTS = rows_of(Delivery), rows_of(Review), rows_of(Receipt)
_OBJECTS, _HEATMAPS = rows_of(OwnObject), rows_of(Heatmap)
_PICTURES = (ObjectKind.HEATMAP, ObjectKind.GSPS, ObjectKind.SEG)
_HEATMAP_PATHS = (
    select(_HEATMAPS.c.path)
    .join(_INSTANCES, _INSTANCES.c.id == _HEATMAPS.c.instance_id)
    .join(_STUDIES, _STUDIES.c.id == _INSTANCES.c.study_id)
)
_PICTURE_PATHS = (
    select(_OBJECTS.c.path)
    .join(_REPORTS, _REPORTS.c.id == _OBJECTS.c.report_id)
    .join(_STUDIES, _STUDIES.c.id == _REPORTS.c.study_id)
    .where(_OBJECTS.c.kind.in_(_PICTURES))
)
CHUNK = 500
"""Paths asked for in one statement."""


def bytes_per_day(session: Session, *, days: int, now: datetime) -> float:
    """Return how many bytes of new images came a day, lately or, if that is later, since the first one."""
    since = now - timedelta(days=days)
    size, first = func.coalesce(func.sum(_INSTANCES.c.size_bytes), 0), func.min(_INSTANCES.c.received_at)
    total = session.execute(select(size).where(_INSTANCES.c.received_at >= since)).scalar_one()
    begun = max(session.execute(select(first)).scalar_one() or now, since)
    return float(total) / max((now - begun) / timedelta(days=1), 1.0)


def purgeable_studies(session: Session, *, older_than: datetime, limit: int) -> list[tuple[UUID, tuple[str, ...]]]:
    """Return studies whose input bytes may be deleted, with the paths of these and their pictures; the oldest first.

    The last image came before `older_than`; nothing is held for a decision, unreported, waiting, failed or on its way
    (an image whose bytes are gone keeps none of the others, nor does what a person closed undone); every delivery was
    sent, was withdrawn and its destination told, or is that of a prior or of a withdrawn study, which is not to be
    sent; and the last reader with a verdict did not disagree (that keeps the images for the next training).
    """
    closed = select(_JOBS.c.subject_id).where(_JOBS.c.state == JobState.CLOSED)
    unsent = exists().where(
        _DELIVERIES.c.report_id == _REPORTS.c.id,
        _REPORTS.c.study_id == _STUDIES.c.id,
        _DELIVERIES.c.state.not_in([DeliveryState.SENT, DeliveryState.WITHDRAWN]),
        _DELIVERIES.c.id.not_in(closed),
        ~and_(_DELIVERIES.c.state == DeliveryState.HELD, _DELIVERIES.c.reason.in_([PRIOR, Hold.WITHDRAWN.value])),
    )
    of_study = _INSTANCES.c.study_id == _STUDIES.c.id
    gone = select(_INSTANCES.c.id).where(of_study, _INSTANCES.c.gone_at.is_not(None))
    is_open = _JOBS.c.state.not_in([JobState.DONE, JobState.CLOSED]) & _JOBS.c.subject_id.not_in(gone)
    unfinished = exists().where(_JOBS.c.study_id == _STUDIES.c.id, is_open)
    open_images = [InstanceState.WAITING, InstanceState.FAILED]
    unjudged = exists().where(
        of_study,
        _INSTANCES.c.state.in_(open_images),
        _INSTANCES.c.gone_at.is_(None),
        _INSTANCES.c.id.not_in(closed),
    )
    last_verdict = (
        select(_REVIEWS.c.verdict)
        .where(_REVIEWS.c.study_id == _STUDIES.c.id, _REVIEWS.c.verdict != Verdict.COMMENT)
        .order_by(_REVIEWS.c.created_at.desc(), _REVIEWS.c.id.desc())
        .limit(1)
        .scalar_subquery()
    )
    query = (
        select(_STUDIES.c.id)
        .where(_STUDIES.c.purged_at.is_(None), _STUDIES.c.last_received_at <= older_than)
        .where(func.coalesce(_STUDIES.c.hold, Hold.WITHDRAWN) == Hold.WITHDRAWN, _STUDIES.c.unreported_since.is_(None))
        .where(
            ~unsent, ~unfinished, ~unjudged, func.coalesce(last_verdict, Verdict.AGREE.value) != Verdict.DISAGREE.value
        )
        .order_by(_STUDIES.c.last_received_at, _STUDIES.c.id)
        .limit(limit)
    )
    return [(study_id, _paths(session, study_id)) for study_id in session.execute(query).scalars()]


def mark_purged(session: Session, study_id: UUID, now: datetime, *, paths: Collection[str] | None = None) -> bool:
    """Record that a study's input bytes are gone; False, and nothing is recorded, when an image or a job came since.

    Parameters
    ----------
    paths
        What was deleted, as `purgeable_studies` said; None = whatever the study has.
    """
    locked = select(_STUDIES.c.unreported_since).where(_STUDIES.c.id == study_id, _STUDIES.c.purged_at.is_(None))
    study = session.execute(locked.with_for_update(key_share=True)).one_or_none()
    here = set(_paths(session, study_id))
    images = select(_INSTANCES.c.id).where(_INSTANCES.c.study_id == study_id, _INSTANCES.c.gone_at.is_(None))
    is_wanted = exists().where(_JOBS.c.subject_id.in_(images), _JOBS.c.state.in_([JobState.READY, JobState.RUNNING]))
    if study is None or study.unreported_since is not None or (paths is not None and here - set(paths)):
        return False
    if session.execute(select(is_wanted)).scalar_one():
        return False
    session.execute(update(_STUDIES).where(_STUDIES.c.id == study_id).values(purged_at=now))
    is_here = (_INSTANCES.c.study_id == study_id) & _INSTANCES.c.gone_at.is_(None)
    session.execute(update(_INSTANCES).where(is_here).values(gone_at=now))
    audit.append(session, Action.STUDY_PURGED, actor="tick", subject_id=study_id, details={"files": len(here)}, now=now)
    return True


def purge_quarantined(session: Session, *, older_than: datetime, now: datetime) -> list[tuple[UUID, str]]:
    """Record that the bytes of at most `CHUNK` quarantined objects are gone; return them with their paths. Rows stay.

    They came before `older_than`, and no study that is held turns on them: an administrator may want to compare.
    """
    disputed = exists().where(
        _INSTANCES.c.id == _RECEIPTS.c.instance_id, _INSTANCES.c.study_id == _STUDIES.c.id, _STUDIES.c.hold.is_not(None)
    )
    query = (
        select(_RECEIPTS.c.id, _RECEIPTS.c.path)
        .where(_RECEIPTS.c.outcome == Outcome.QUARANTINED, _RECEIPTS.c.received_at <= older_than)
        .where(_RECEIPTS.c.path.is_not(None), ~disputed)
        .order_by(_RECEIPTS.c.received_at)
        .limit(CHUNK)
    )
    old = [(receipt_id, path) for receipt_id, path in session.execute(query)]
    for receipt_id, _ in old:
        session.execute(update(_RECEIPTS).where(_RECEIPTS.c.id == receipt_id).values(path=None))
        audit.append(session, Action.QUARANTINE_PURGED, actor="tick", subject_id=receipt_id, now=now)
    return old


def known_paths(session: Session, paths: Iterable[str]) -> set[str]:
    """Return those of `paths` that a row needs: an image's, a quarantined object's, or of an object we made.

    Images that are gone and the pictures of a purged study are not needed: a crash in the middle of its purge leaves
    them to the sweep.
    """
    wanted, known = list(paths), set[str]()
    kept = (
        (select(_INSTANCES.c.path).where(_INSTANCES.c.gone_at.is_(None)), _INSTANCES.c.path),
        (_HEATMAP_PATHS.where(_STUDIES.c.purged_at.is_(None)), _HEATMAPS.c.path),
        (_PICTURE_PATHS.where(_STUDIES.c.purged_at.is_(None)), _OBJECTS.c.path),
        (select(_OBJECTS.c.path).where(_OBJECTS.c.kind.not_in(_PICTURES)), _OBJECTS.c.path),
        (select(_RECEIPTS.c.path), _RECEIPTS.c.path),
    )
    for start in range(0, len(wanted), CHUNK):
        chunk = wanted[start : start + CHUNK]
        for query, column in kept:
            known.update(path for path in session.execute(query.where(column.in_(chunk))).scalars() if path)
    return known


def _paths(session: Session, study_id: UUID) -> tuple[str, ...]:
    """Return the files that go with a study: its images, and the pictures drawn of them; never its reports."""
    of_study = [
        select(_INSTANCES.c.path).where(_INSTANCES.c.study_id == study_id),
        _HEATMAP_PATHS.where(_STUDIES.c.id == study_id),
        _PICTURE_PATHS.where(_STUDIES.c.id == study_id),
    ]
    return tuple(path for query in of_study for path in session.execute(query).scalars())
