"""What readers said about the model's answers, for the quality page: one row for each word that still stands.

A review stands until another names it as its predecessor; withdrawals and comments are no readings, nor is what was
said of a report that was withdrawn: its answer counts no more. No row names a patient: of the patient only the age in
years at the study is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime

from sqlalchemy import ColumnElement, Text, and_, case, exists, func, select

from db.engine import Session
from db.facts.quality import Scope, in_scope
from db.facts.study_filters import CURRENT
from db.tables import Answer, Instance, InstanceState, Report, Review, Study, Verdict, rows_of

COUNTED = (Verdict.AGREE, Verdict.DISAGREE, Verdict.UNSURE)
SEVERAL = "several"
ROWS_MAX = 200_000
"""Newest readings that are counted; a page that would need more says so by its period."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One reader's word on one answer of the model."""

    at: datetime
    answer: Answer
    verdict: Verdict
    corrected_finding: str | None
    model_name: str
    model_version: str
    calling_ae_title: str
    device: str
    """What took the images that were judged; empty = not known, `SEVERAL` = more than one."""
    view: str
    """Of the images that were judged, as `device`."""
    age_years: int | None
    """At the study; None = not known."""
    is_blind: bool
    """Given before its reader saw the model's answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """How many studies with this answer a reader has looked at."""

    answer: Answer
    reviewed: int
    studies: int


_REVIEWS, _REPORTS, _STUDIES, _INSTANCES = rows_of(Review), rows_of(Report), rows_of(Study), rows_of(Instance)
_BOTH = (True, False)


def _one_of(column: ColumnElement[str]) -> ColumnElement[str]:
    """Return what all rows of a group say, or `SEVERAL`."""
    return case((func.min(column) == func.max(column), func.min(column)), else_=SEVERAL)


_LATER = _REVIEWS.alias("later")
_STANDS = and_(_REVIEWS.c.verdict.in_(COUNTED), ~exists().where(_LATER.c.predecessor_id == _REVIEWS.c.id))
_TAKEN = (
    select(_INSTANCES.c.study_id, *(_one_of(_INSTANCES.c[name]).label(name) for name in ("device", "view")))
    .where(_INSTANCES.c.state == InstanceState.ANALYSED)
    .group_by(_INSTANCES.c.study_id)
    .subquery()
)
"""Of each study, what took its analysed images and how."""
_COUNTS = _REPORTS.c.withdrawn_at.is_(None)


def list_readings(session: Session, scope: Scope) -> list[Reading]:
    """Return the readings of the period that stand, the newest first."""
    query = (
        select(
            *(_REVIEWS.c[name] for name in ("created_at", "verdict", "corrected_finding", "is_blind")),
            *(_REPORTS.c[name] for name in ("answer", "model_name", "model_version")),
            *(_STUDIES.c[name] for name in ("calling_ae_title", "patient_birth_date", "study_date")),
            *(func.coalesce(_TAKEN.c[name], "").label(name) for name in ("device", "view")),
        )
        .join(_REPORTS, _REPORTS.c.id == _REVIEWS.c.report_id)
        .join(_STUDIES, _STUDIES.c.id == _REVIEWS.c.study_id)
        .outerjoin(_TAKEN, _TAKEN.c.study_id == _REVIEWS.c.study_id)
        .where(_STANDS, _COUNTS, _REVIEWS.c.created_at >= scope.since, _REVIEWS.c.created_at < scope.until)
        .where(*in_scope(scope))
        .order_by(_REVIEWS.c.created_at.desc())
        .limit(ROWS_MAX)
    )
    return [
        Reading(
            at=row.created_at,
            answer=row.answer,
            verdict=row.verdict,
            corrected_finding=row.corrected_finding,
            model_name=row.model_name,
            model_version=row.model_version,
            calling_ae_title=row.calling_ae_title,
            device=row.device,
            view=row.view,
            is_blind=row.is_blind,
            age_years=_age_years(row.patient_birth_date, row.study_date or row.created_at.date()),
        )
        for row in session.execute(query)
    ]


def coverage(session: Session, scope: Scope) -> list[Coverage]:
    """Return, for each answer, how many of the period's studies a reader has looked at."""
    is_read = exists().where(_REVIEWS.c.report_id == _REPORTS.c.id, _STANDS)
    chosen = (
        select(_REPORTS.c.answer.cast(Text).label("answer"), is_read.label("is_read"))
        .select_from(_STUDIES)
        .join(_REPORTS, CURRENT)
        .where(_COUNTS, _STUDIES.c.first_received_at >= scope.since, _STUDIES.c.first_received_at < scope.until)
        .where(*in_scope(scope))
        .subquery()
    )
    query = select(chosen.c.answer, chosen.c.is_read, func.count()).group_by(chosen.c.answer, chosen.c.is_read)
    found = {(said, bool(read)): count for said, read, count in session.execute(query)}
    return [
        Coverage(answer=said, reviewed=found.get((said, True), 0), studies=sum(found.get((said, r), 0) for r in _BOTH))
        for said in Answer
    ]


def _age_years(birth_date: str, on: date) -> int | None:
    """Return the completed years at that day, from a DICOM date (PS3.5 6.2, DA)."""
    try:
        born = datetime.strptime(birth_date, "%Y%m%d").date()  # noqa: DTZ007 - a day, not an instant
    except ValueError:
        return None
    years = on.year - born.year - ((on.month, on.day) < (born.month, born.day))
    return years if years >= 0 else None
