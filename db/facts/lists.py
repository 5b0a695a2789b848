"""Images, results, warnings, reports, deliveries and reviews as lists for scripts: filtered, page by page.

Each walks an index in the order of its list; where a study came from is looked up row by row, so that no plan sorts a
table. Where few studies came from there, those few are looked up first: a walk would pass all the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from operator import eq, ge, le
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement, FromClause, Select, and_, null, select
from sqlalchemy.sql.operators import is_

from db.engine import NoSuchRecord, Session
from db.facts.images import PredictionFacts, WarningFacts
from db.facts.paging import page, turn_to
from db.facts.reviews import ReviewFacts, review_from
from db.facts.study_filters import few_studies
from db.facts.visibility import Visible, may_see
from db.tables import (
    Answer,
    Delivery,
    DeliveryState,
    Instance,
    InstanceState,
    Prediction,
    Report,
    Review,
    Study,
    Verdict,
    Warning,
    rows_of,
)

Line = TypeVar("Line")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What every list of this room can be asked; None asks nothing."""

    study_id: UUID | None = None
    calling_ae_title: str | None = None
    """Who sent the study's first image."""
    since: datetime | None = None
    """Included."""
    until: datetime | None = None
    """Not included."""
    visible: Visible | None = None
    """What the caller may see; None = all."""
    is_oldest_first: bool = False
    limit: int = 50
    cursor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceLine:
    """One image of a list."""

    instance_id: UUID
    study_id: UUID
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    state: InstanceState
    is_judged: bool
    size_bytes: int
    received_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultFacts(PredictionFacts):
    """One prediction of an image's newest judgement."""

    study_id: UUID
    instance_id: UUID
    created_at: datetime
    superseded_at: datetime | None
    """Never in a list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarningLine(WarningFacts):
    """One warning of an image's newest judgement."""

    warning_id: UUID
    study_id: UUID
    instance_id: UUID
    created_at: datetime
    superseded_at: datetime | None
    """Never in a list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportLine:
    """One revision of a study's report."""

    report_id: UUID
    study_id: UUID
    revision: int
    answer: Answer
    probability: float | None
    model_name: str
    model_version: str
    content_at: datetime
    is_sent: bool
    built_at: datetime | None
    review_id: UUID | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryOfReport:
    """One report on its way to one destination."""

    delivery_id: UUID
    study_id: UUID
    report_id: UUID
    revision: int
    review_id: UUID | None
    destination: str
    state: DeliveryState
    reason: str
    sop_class_uid: str | None
    sop_instance_uid: str | None
    created_at: datetime
    sent_at: datetime | None


_INSTANCES, _PREDICTIONS, _WARNINGS = rows_of(Instance), rows_of(Prediction), rows_of(Warning)
_REPORTS, _DELIVERIES, _REVIEWS, _STUDIES = rows_of(Report), rows_of(Delivery), rows_of(Review), rows_of(Study)
_OF_RESULTS, _OF_WARNINGS = (_PREDICTIONS, _INSTANCES), (_WARNINGS, _INSTANCES)
_OF_REPORTS, _OF_DELIVERIES = (_REPORTS,), (_DELIVERIES, _REPORTS)
"""A list's own table, and the one that names the study where that is another."""
Filter = tuple[ColumnElement[Any], Callable[[Any, Any], ColumnElement[bool]], Any]
"""A column, how it is compared, and with what; None asks nothing."""


def list_instances(
    session: Session, asked: Asked, *, state: InstanceState | None = None
) -> tuple[list[InstanceLine], str | None]:
    """Return one page of images and the cursor of the next page."""
    filters = [(_INSTANCES.c.state, eq, state)]
    return _page(session, InstanceLine, (_INSTANCES,), asked, filters, at="received_at")


def list_results(
    session: Session,
    asked: Asked,
    *,
    finding: str | None = None,
    probability_from: float | None = None,
    probability_to: float | None = None,
    model_version: str | None = None,
) -> tuple[list[ResultFacts], str | None]:
    """Return one page of the newest judgements' predictions and the cursor of the next page."""
    row = _PREDICTIONS.c
    filters: list[Filter] = [
        (row.superseded_at, is_, null()),
        (row.finding, eq, finding),
        (row.probability, ge, probability_from),
        (row.probability, le, probability_to),
        (row.model_version, eq, model_version),
    ]
    return _page(session, ResultFacts, _OF_RESULTS, asked, filters)


def list_warnings(
    session: Session, asked: Asked, *, code: str | None = None, severity: str | None = None
) -> tuple[list[WarningLine], str | None]:
    """Return one page of the newest judgements' warnings and the cursor of the next page."""
    row = _WARNINGS.c
    filters: list[Filter] = [(row.superseded_at, is_, null()), (row.code, eq, code), (row.severity, eq, severity)]
    return _page(session, WarningLine, _OF_WARNINGS, asked, filters)


def list_reports(
    session: Session, asked: Asked, *, answer: Answer | None = None, model_version: str | None = None
) -> tuple[list[ReportLine], str | None]:
    """Return one page of reports, every revision, and the cursor of the next page."""
    filters: list[Filter] = [(_REPORTS.c.answer, eq, answer), (_REPORTS.c.model_version, eq, model_version)]
    return _page(session, ReportLine, _OF_REPORTS, asked, filters, at="content_at")


def list_deliveries(
    session: Session, asked: Asked, *, state: DeliveryState | None = None, destination: str | None = None
) -> tuple[list[DeliveryOfReport], str | None]:
    """Return one page of deliveries and the cursor of the next page."""
    filters: list[Filter] = [(_DELIVERIES.c.state, eq, state), (_DELIVERIES.c.destination, eq, destination)]
    return _page(session, DeliveryOfReport, _OF_DELIVERIES, asked, filters)


def list_reviews(
    session: Session, asked: Asked, *, verdict: Verdict | None = None
) -> tuple[list[ReviewFacts], str | None]:
    """Return one page of reviews and the cursor of the next page."""
    return _page(session, ReviewFacts, (_REVIEWS,), asked, [(_REVIEWS.c.verdict, eq, verdict)], make=review_from)


def one_result(session: Session, prediction_id: UUID) -> ResultFacts:
    """Return one prediction, of an earlier judgement too.

    Raises
    ------
    NoSuchRecord
        There is none of this id; so say the next three.
    """
    return _one(session, ResultFacts, _OF_RESULTS, "prediction", prediction_id)


def one_warning(session: Session, warning_id: UUID) -> WarningLine:
    """Return one warning, of an earlier judgement too."""
    return _one(session, WarningLine, _OF_WARNINGS, "warning", warning_id)


def one_report(session: Session, report_id: UUID) -> ReportLine:
    """Return one revision of a study's report."""
    return _one(session, ReportLine, _OF_REPORTS, "report", report_id)


def one_delivery(session: Session, delivery_id: UUID) -> DeliveryOfReport:
    """Return one report on its way to one destination."""
    return _one(session, DeliveryOfReport, _OF_DELIVERIES, "delivery", delivery_id)


def _page(
    session: Session,
    line: type[Line],
    tables: tuple[FromClause, ...],
    asked: Asked,
    filters: Iterable[Filter],
    *,
    at: str = "created_at",
    make: Callable[..., Line] | None = None,
) -> tuple[list[Line], str | None]:
    """Read one page.

    Parameters
    ----------
    line
        Its fields are columns of the tables, but one: the row's id, under the name of what it identifies.
    tables
        The list's own, and the one that names the study where that is another.
    at
        The column that the list is sorted by.
    make
        What makes a line of a row; None = `line` does.
    """
    own, owner = tables[0].c, tables[-1].c
    query, row_id = _lines(line, tables)
    query = query.where(*_asked(asked, own[at]), *_of_studies(session, asked, owner.study_id))
    query = query.where(*(compare(column, value) for column, compare, value in filters if value is not None))
    is_descending = not asked.is_oldest_first
    query = turn_to(query, [own[at]], own.id, cursor=asked.cursor, limit=asked.limit, is_descending=is_descending)
    rows = [(make or line)(**row) for row in session.execute(query).mappings()]
    return page(rows, asked.limit, lambda row: (getattr(row, at), getattr(row, row_id)))


def _lines(line: type[Line], tables: tuple[FromClause, ...]) -> tuple[Select[Any], str]:
    """Return the query of every line of a list, and which of the line's fields is the row's id."""
    own, owner = tables[0].c, tables[-1].c
    names = list(line.__dataclass_fields__)  # type: ignore[attr-defined]
    (row_id,) = (name for name in names if name not in own and name not in owner)
    columns = [own[name] if name in own else owner[name] for name in names if name != row_id]
    return select(own.id.label(row_id), *columns).select_from(reduce(FromClause.join, tables)), row_id


def _one(session: Session, line: type[Line], tables: tuple[FromClause, ...], what: str, row_id: UUID) -> Line:
    query, _ = _lines(line, tables)
    row = session.execute(query.where(tables[0].c.id == row_id)).mappings().one_or_none()
    if row is None:
        raise NoSuchRecord(f"no {what} {row_id}")
    return line(**row)


def _asked(asked: Asked, at: ColumnElement[Any]) -> Iterator[ColumnElement[bool]]:
    if asked.since is not None:
        yield at >= asked.since
    if asked.until is not None:
        yield at < asked.until


def _of_studies(session: Session, asked: Asked, study_id: ColumnElement[Any]) -> Iterator[ColumnElement[bool]]:
    if asked.study_id is not None:
        yield study_id == asked.study_id
    is_meant = [_STUDIES.c.calling_ae_title == asked.calling_ae_title] if asked.calling_ae_title is not None else []
    is_meant += [may_see(asked.visible)] if asked.visible is not None else []
    if not is_meant:
        return
    few = few_studies(session, select(_STUDIES.c.id).where(*is_meant))
    if few is not None:
        yield study_id.in_(few)
    else:  # a scalar: no plan turns it into a join
        yield select(and_(*is_meant)).where(_STUDIES.c.id == study_id).scalar_subquery()
