"""Studies on their way to an answer: which have settled, and what is known about one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from uuid import UUID

from sqlalchemy import Exists, and_, exists, or_, select

from db.engine import NoSuchRecord, Session
from db.facts.images import ImageFacts, images_of_study
from db.facts.reports import ReportFacts, current_report
from db.tables import Association, Hold, Instance, Job, JobKind, JobState, Study, rows_of

_STUDIES, _INSTANCES, _ASSOCIATIONS, _JOBS = rows_of(Study), rows_of(Instance), rows_of(Association), rows_of(Job)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyFacts:
    """What a report is made from."""

    study_id: UUID
    study_instance_uid: str
    hold: Hold | None
    revision: int
    """Of the current report; 0 = none yet."""
    calling_ae_title: str
    study_date: date | None
    priority: int
    first_received_at: datetime
    last_received_at: datetime
    unreported_since: datetime | None
    purged_at: datetime | None
    images: tuple[ImageFacts, ...]
    """In order of reception."""
    current_report: ReportFacts | None


_ROW = (
    _STUDIES.c.id.label("study_id"),
    *(_STUDIES.c[n] for n in StudyFacts.__dataclass_fields__ if n not in ("study_id", "images", "current_report")),
)


def settled_studies(
    session: Session,
    *,
    settle_s: float,
    idle_s: float,
    report_wait_s: float,
    now: datetime,
    passing_over: Collection[UUID] = (),
    limit: int = 100,
) -> list[UUID]:
    """Return the studies whose next report is due, the longest waiting first; held ones too (their delivery is held).

    A study has settled when its reception is over and nothing about it is being judged.

    Parameters
    ----------
    settle_s
        Reception is over this long after the last image, if no open association has sent to the study.
    idle_s
        Reception is over this long after the last image, even if an association stays open.
    report_wait_s
        Judging is waited for this long after the last image, or after the first result that the last report missed.
    passing_over
        Studies to leave out.
    """
    silent_since = _STUDIES.c.last_received_at

    def ago(seconds: float) -> datetime:
        return now - timedelta(seconds=seconds)

    is_received = or_(silent_since <= ago(idle_s), and_(silent_since <= ago(settle_s), ~is_sent_to()))
    is_waited_for = and_(silent_since <= ago(report_wait_s), _STUDIES.c.unreported_since <= ago(report_wait_s))
    query = (
        select(_STUDIES.c.id)
        .where(_STUDIES.c.unreported_since.is_not(None), is_received, or_(~is_being_judged(), is_waited_for))
        .where(_STUDIES.c.id.not_in(list(passing_over)))
        .order_by(_STUDIES.c.unreported_since, _STUDIES.c.id)
        .limit(limit)
    )
    return list(session.execute(query).scalars())


def is_sent_to() -> Exists:
    """An open association has sent to the study."""
    return exists().where(
        _INSTANCES.c.study_id == _STUDIES.c.id,
        _INSTANCES.c.association_id == _ASSOCIATIONS.c.id,
        _ASSOCIATIONS.c.released_at.is_(None),
    )


def is_being_judged() -> Exists:
    """An image of the study waits for the worker or is with it."""
    return exists().where(
        _JOBS.c.study_id == _STUDIES.c.id,
        _JOBS.c.kind == JobKind.INFER,
        _JOBS.c.state.in_([JobState.READY, JobState.RUNNING]),
    )


def study_facts(session: Session, study_id: UUID, lock: bool) -> StudyFacts:
    """Return what is known about a study.

    Parameters
    ----------
    lock
        Keep everybody else from changing the study, its images and its reports until the transaction ends.

    Raises
    ------
    NoSuchRecord
        There is no such study.
    """
    query = select(*_ROW).where(_STUDIES.c.id == study_id)
    if lock:
        query = query.with_for_update(key_share=True)
    row = session.execute(query).mappings().one_or_none()
    if row is None:
        raise NoSuchRecord(f"no study {study_id}")
    return StudyFacts(
        **row, images=images_of_study(session, study_id), current_report=current_report(session, study_id)
    )
