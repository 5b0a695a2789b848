"""Images, warnings, reports and deliveries as lists for scripts: filtered, the newest first, page by page.

Each walks an index in the order of its list; who sent a study is looked up row by row, so that no plan sorts a table.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement, Select, select

from db.engine import Session
from db.facts.paging import older_than, page
from db.tables import (
    Answer,
    Delivery,
    DeliveryState,
    Instance,
    InstanceState,
    Report,
    Study,
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
    visible: Collection[str] | None = None
    """Sending AE titles whose studies may be seen; None = all."""
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
class WarningLine:
    """One warning of an image's newest judgement."""

    warning_id: UUID
    study_id: UUID
    instance_id: UUID
    code: str
    severity: str
    text: str
    created_at: datetime


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
    destination: str
    state: DeliveryState
    reason: str
    sop_class_uid: str | None
    sop_instance_uid: str | None
    created_at: datetime
    sent_at: datetime | None


_INSTANCES, _WARNINGS, _REPORTS = rows_of(Instance), rows_of(Warning), rows_of(Report)
_DELIVERIES, _STUDIES = rows_of(Delivery), rows_of(Study)


def list_instances(
    session: Session, asked: Asked, *, state: InstanceState | None = None
) -> tuple[list[InstanceLine], str | None]:
    """Return one page of images, the last received first, and the cursor of the next page."""
    columns = {"instance_id": _INSTANCES.c.id} | _named(InstanceLine, _INSTANCES, "instance_id")
    query = _asked(select(*_labelled(columns)), asked, at=_INSTANCES.c.received_at, study_id=_INSTANCES.c.study_id)
    if state is not None:
        query = query.where(_INSTANCES.c.state == state)
    query = older_than(query, _INSTANCES.c.received_at, _INSTANCES.c.id, asked.cursor, asked.limit)
    return _page(session, query, InstanceLine, asked, "received_at", "instance_id")


def list_warnings(
    session: Session, asked: Asked, *, code: str | None = None, severity: str | None = None
) -> tuple[list[WarningLine], str | None]:
    """Return one page of the newest judgements' warnings, the newest first, and the cursor of the next page."""
    columns: dict[str, ColumnElement[Any]] = {"warning_id": _WARNINGS.c.id, "study_id": _INSTANCES.c.study_id}
    columns |= _named(WarningLine, _WARNINGS, *columns)
    query = select(*_labelled(columns)).join(_INSTANCES, _INSTANCES.c.id == _WARNINGS.c.instance_id)
    query = query.where(_WARNINGS.c.superseded_at.is_(None))
    query = _asked(query, asked, at=_WARNINGS.c.created_at, study_id=_INSTANCES.c.study_id)
    if code is not None:
        query = query.where(_WARNINGS.c.code == code)
    if severity is not None:
        query = query.where(_WARNINGS.c.severity == severity)
    query = older_than(query, _WARNINGS.c.created_at, _WARNINGS.c.id, asked.cursor, asked.limit)
    return _page(session, query, WarningLine, asked, "created_at", "warning_id")


def list_reports(
    session: Session, asked: Asked, *, answer: Answer | None = None, model_version: str | None = None
) -> tuple[list[ReportLine], str | None]:
    """Return one page of reports, every revision, the newest first, and the cursor of the next page."""
    columns = {"report_id": _REPORTS.c.id} | _named(ReportLine, _REPORTS, "report_id")
    query = _asked(select(*_labelled(columns)), asked, at=_REPORTS.c.content_at, study_id=_REPORTS.c.study_id)
    if answer is not None:
        query = query.where(_REPORTS.c.answer == answer)
    if model_version is not None:
        query = query.where(_REPORTS.c.model_version == model_version)
    query = older_than(query, _REPORTS.c.content_at, _REPORTS.c.id, asked.cursor, asked.limit)
    return _page(session, query, ReportLine, asked, "content_at", "report_id")


def list_deliveries(
    session: Session, asked: Asked, *, state: DeliveryState | None = None, destination: str | None = None
) -> tuple[list[DeliveryOfReport], str | None]:
    """Return one page of deliveries, the newest first, and the cursor of the next page."""
    columns: dict[str, Any] = {
        "delivery_id": _DELIVERIES.c.id,
        "study_id": _REPORTS.c.study_id,
        "revision": _REPORTS.c.revision,
    }
    columns |= _named(DeliveryOfReport, _DELIVERIES, *columns)
    query = select(*_labelled(columns)).join(_REPORTS, _REPORTS.c.id == _DELIVERIES.c.report_id)
    query = _asked(query, asked, at=_DELIVERIES.c.created_at, study_id=_REPORTS.c.study_id)
    if state is not None:
        query = query.where(_DELIVERIES.c.state == state)
    if destination is not None:
        query = query.where(_DELIVERIES.c.destination == destination)
    query = older_than(query, _DELIVERIES.c.created_at, _DELIVERIES.c.id, asked.cursor, asked.limit)
    return _page(session, query, DeliveryOfReport, asked, "created_at", "delivery_id")


def sent_by(study_id: ColumnElement[UUID], titles: Collection[str]) -> ColumnElement[bool]:
    """Match the rows of studies that one of these AE titles sent, looked up row by row."""
    sender = select(_STUDIES.c.calling_ae_title).where(_STUDIES.c.id == study_id).scalar_subquery()
    return sender.in_(list(titles))


def _asked(
    query: Select[Any], asked: Asked, *, at: ColumnElement[datetime], study_id: ColumnElement[UUID]
) -> Select[Any]:
    if asked.study_id is not None:
        query = query.where(study_id == asked.study_id)
    if asked.since is not None:
        query = query.where(at >= asked.since)
    if asked.until is not None:
        query = query.where(at < asked.until)
    if asked.calling_ae_title is not None:
        query = query.where(sent_by(study_id, [asked.calling_ae_title]))
    if asked.visible is not None:
        query = query.where(sent_by(study_id, asked.visible))
    return query


def _named(line: Any, table: Any, *others: str) -> dict[str, ColumnElement[Any]]:
    return {name: table.c[name] for name in line.__dataclass_fields__ if name not in others}


def _labelled(columns: Mapping[str, ColumnElement[Any]]) -> list[ColumnElement[Any]]:
    return [column.label(name) for name, column in columns.items()]


def _page(
    session: Session, query: Select[Any], line: type[Line], asked: Asked, at: str, row_id: str
) -> tuple[list[Line], str | None]:
    rows = [line(**row) for row in session.execute(query).mappings()]
    return page(rows, asked.limit, lambda row: (getattr(row, at), getattr(row, row_id)))
