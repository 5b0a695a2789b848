"""Lists as files, CSV or NDJSON, with the filters of their lists; each one is audited before its first line leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from db import facts
from db.audit import Action
from db.engine import Session, db_now, read_scope
from db.facts import Asked
from pacs_node.web.access import Role, requires
from pacs_node.web.admin_schemas import AuditOut
from pacs_node.web.context import Web, WebContext
from pacs_node.web.exporting import MEDIA_TYPES, ROWS, FileKind, file_name, lines_of
from pacs_node.web.listing import (
    Filters,
    Listed,
    OfDeliveries,
    OfEvents,
    OfImages,
    OfReports,
    OfResults,
    OfReviews,
    OfWarnings,
)
from pacs_node.web.problems import documented
from pacs_node.web.routes import API
from pacs_node.web.schemas import (
    PATIENT,
    DeliveryDetail,
    InstanceLine,
    ReportLine,
    ResultOut,
    ReviewOut,
    Schema,
    StudyLine,
    WarningLine,
)
from pacs_node.web.study_query import Wanted

router = APIRouter(
    prefix=f"{API}/exports",
    tags=["exports"],
    responses=documented(422),
    dependencies=[requires(Role.ADMIN, password=True)],
)

Kind = Annotated[FileKind, Query(alias="format")]
FILE: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            "text/csv": {"example": "study_id,state\r\n0193a1c2-6b5e-7c3a-9d2f-3b1c5a7e9f10,answered\r\n"},
            "application/x-ndjson": {"example": '{"state": "answered", "answer": "absent"}\n'},
        }
    }
}
WithPatient = Annotated[bool, Query(description="With the patient's name and id and the accession number.")]
Found = tuple[list[Any], str | None]
"""Rows of facts, and the cursor of the next page."""
STREAMED: dict[str, Any] = {"response_class": StreamingResponse, "responses": FILE}


@router.get("/studies", summary="Export studies", **STREAMED)
def export_studies(
    web: WebContext, wanted: Wanted, kind: Kind = "csv", with_patient: WithPatient = False
) -> StreamingResponse:
    """Return the worklist, the newest first; the patient's attributes stay out unless they are asked for."""
    without = frozenset() if with_patient else PATIENT
    listed = partial(facts.list_studies, **wanted, limit=ROWS)
    return _file(web, "studies", kind, StudyLine, listed, asked=dict(wanted), without=without)


@router.get("/instances", summary="Export images", **STREAMED)
def export_instances(web: WebContext, asked: Listed, wanted: OfImages, kind: Kind = "csv") -> StreamingResponse:
    """Return images with the state they are in."""
    return _list(web, "instances", kind, InstanceLine, facts.list_instances, asked, wanted)


@router.get("/results", summary="Export results", **STREAMED)
def export_results(web: WebContext, asked: Listed, wanted: OfResults, kind: Kind = "csv") -> StreamingResponse:
    """Return what the model said about every image."""
    return _list(web, "results", kind, ResultOut, facts.list_results, asked, wanted)


@router.get("/warnings", summary="Export warnings", **STREAMED)
def export_warnings(web: WebContext, asked: Listed, wanted: OfWarnings, kind: Kind = "csv") -> StreamingResponse:
    """Return what was remarked about every image."""
    return _list(web, "warnings", kind, WarningLine, facts.list_warnings, asked, wanted)


@router.get("/reports", summary="Export reports", **STREAMED)
def export_reports(web: WebContext, asked: Listed, wanted: OfReports, kind: Kind = "csv") -> StreamingResponse:
    """Return every revision of every report."""
    return _list(web, "reports", kind, ReportLine, facts.list_reports, asked, wanted)


@router.get("/deliveries", summary="Export deliveries", **STREAMED)
def export_deliveries(web: WebContext, asked: Listed, wanted: OfDeliveries, kind: Kind = "csv") -> StreamingResponse:
    """Return where reports stand."""
    return _list(web, "deliveries", kind, DeliveryDetail, facts.list_deliveries, asked, wanted)


@router.get("/reviews", summary="Export reviews", **STREAMED)
def export_reviews(web: WebContext, asked: Listed, wanted: OfReviews, kind: Kind = "csv") -> StreamingResponse:
    """Return what readers said."""
    return _list(web, "reviews", kind, ReviewOut, facts.list_reviews, asked, wanted)


@router.get("/audit", summary="Export the audit trail", **STREAMED)
def export_audit(web: WebContext, wanted: OfEvents, kind: Kind = "csv") -> StreamingResponse:
    """Return who did what, when and to what, the newest first."""
    listed = partial(facts.list_events, **wanted, limit=ROWS)
    return _file(web, "audit", kind, AuditOut, listed, asked=wanted)


def _list(
    web: Web,
    subject: str,
    kind: FileKind,
    schema: type[Schema],
    list_rows: Callable[..., Found],
    asked: Asked,
    wanted: Filters,
) -> StreamingResponse:
    """Return a list from where the caller said to its end."""

    def listed(session: Session, cursor: str | None) -> Found:
        return list_rows(session, replace(asked, limit=ROWS, cursor=cursor or asked.cursor), **wanted)

    told = {name: getattr(asked, name) for name in ("study_id", "calling_ae_title", "since", "until", "cursor")}
    return _file(web, subject, kind, schema, listed, asked=told | wanted)


def _file(
    web: Web,
    subject: str,
    kind: FileKind,
    schema: type[Schema],
    listed: Callable[..., Found],
    *,
    asked: dict[str, Any],
    without: frozenset[str] = frozenset(),
) -> StreamingResponse:
    def read(cursor: str | None) -> tuple[list[Schema], str | None]:
        with read_scope(web.engine) as session:
            rows, following = listed(session, cursor=cursor)
        return [schema.model_validate(row) for row in rows], following

    filters = {name: str(value) for name, value in asked.items() if value is not None and name != "visible"}
    details = {"list": subject, "format": kind, "filters": filters, "with_names": not without and schema is StudyLine}
    web.note(Action.LIST_EXPORTED, details=details)
    with read_scope(web.engine) as session:
        name = file_name(subject, kind, db_now(session))
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    lines = lines_of(kind, schema, read, without=without)
    return StreamingResponse(lines, media_type=MEDIA_TYPES[kind], headers=headers)
