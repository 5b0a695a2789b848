"""Lists as files, CSV or NDJSON, with the filters of their lists; each one is audited before its first line leaves."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, HTTPException, Query
from fastapi.responses import FileResponse, StreamingResponse
from starlette.background import BackgroundTask

from db import facts
from db.audit import Action
from db.engine import db_now, read_scope
from db.facts import Asked
from pacs_node.web.access import Role, requires
from pacs_node.web.context import Web, WebContext
from pacs_node.web.exporting import MEDIA_TYPES, ROWS, FileKind, Read, file_name, lines_of
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
from pacs_node.web.query import Instant
from pacs_node.web.routes import API
from pacs_node.web.schemas import (
    AuditOut,
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
from pacs_node.web.training_export import NoExport, zipped_reviews
from pacs_node.web.training_export import Wanted as TrainingExport

router = APIRouter(
    prefix=f"{API}/exports",
    tags=["exports"],
    responses=documented(422),
    dependencies=[requires(Role.ADMIN)],
)

PATIENT = frozenset({"patient_name", "patient_id", "accession_number"})
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
Row = TypeVar("Row", bound=Schema)
ZIP: dict[int | str, dict[str, Any]] = {200: {"content": {"application/zip": {}}}}
Unstated = Annotated[bool, Query(description="Also images that do not say whether text is burned into their pixels.")]
STREAMED: dict[str, Any] = {"response_class": StreamingResponse, "responses": FILE}


@router.get("/studies", summary="Export studies", **STREAMED)
def export_studies(
    web: WebContext, wanted: Wanted, kind: Kind = "csv", with_patient: WithPatient = False
) -> StreamingResponse:
    """Return the worklist, the newest first; the patient's attributes stay out unless they are asked for."""

    def read(cursor: str | None) -> tuple[list[StudyLine], str | None]:
        with read_scope(web.engine) as session:
            return _as(StudyLine, facts.list_studies(session, **wanted, limit=ROWS, cursor=cursor))

    without = frozenset() if with_patient else PATIENT
    return _file(web, "studies", kind, StudyLine, read, asked=dict(wanted), without=without)


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

    def read(cursor: str | None) -> tuple[list[AuditOut], str | None]:
        with read_scope(web.engine) as session:
            return _as(AuditOut, facts.list_events(session, **wanted, limit=ROWS, cursor=cursor))

    return _file(web, "audit", kind, AuditOut, read, asked=wanted)


@router.get("/training", summary="Export reviewed images for training", response_class=FileResponse, responses=ZIP)
def export_training(web: WebContext, since: Instant | None = None, accept_unstated: Unstated = False) -> FileResponse:
    """Return the studies that readers judged as a training manifest with de-identified images, in a zip file.

    What `pacs-node export-reviews` writes; it takes a while. 503 where another one is being made.
    """
    wanted = TrainingExport(since=since, accept_unstated=accept_unstated, actor=web.caller.actor)
    filters = {"since": str(since), "accept_unstated": accept_unstated}
    web.note(Action.LIST_EXPORTED, details={"list": "training", "format": "zip", "filters": filters})
    with ExitStack() as kept:
        try:
            path = kept.enter_context(zipped_reviews(web.settings, wanted))
        except NoExport as why:
            raise HTTPException(503, str(why), {"Retry-After": "60"}) from why
        with read_scope(web.engine) as session:
            name = f"reviewed-{db_now(session):%Y%m%d-%H%M%S}.zip"
        sent = BackgroundTask(kept.pop_all().close)
        return FileResponse(path, media_type="application/zip", filename=name, background=sent)


def _list(
    web: Web,
    subject: str,
    kind: FileKind,
    schema: type[Row],
    listed: Callable[..., tuple[list[Any], str | None]],
    asked: Asked,
    wanted: Filters,
) -> StreamingResponse:
    """Return a list from where the caller said to its end."""

    def read(cursor: str | None) -> tuple[list[Row], str | None]:
        with read_scope(web.engine) as session:
            return _as(schema, listed(session, replace(asked, limit=ROWS, cursor=cursor or asked.cursor), **wanted))

    told = {name: getattr(asked, name) for name in ("study_id", "calling_ae_title", "since", "until", "cursor")}
    return _file(web, subject, kind, schema, read, asked=told | wanted)


def _as(schema: type[Row], found: tuple[list[Any], str | None]) -> tuple[list[Row], str | None]:
    return [schema.model_validate(row) for row in found[0]], found[1]


def _file(
    web: Web,
    subject: str,
    kind: FileKind,
    schema: type[Schema],
    read: Read,
    *,
    asked: dict[str, Any],
    without: frozenset[str] = frozenset(),
) -> StreamingResponse:
    filters = {name: str(value) for name, value in asked.items() if value is not None and name != "visible"}
    details = {"list": subject, "format": kind, "filters": filters, "with_names": not without and schema is StudyLine}
    web.note(Action.LIST_EXPORTED, details=details)
    with read_scope(web.engine) as session:
        name = file_name(subject, kind, db_now(session))
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    lines = lines_of(kind, schema, read, without=without)
    return StreamingResponse(lines, media_type=MEDIA_TYPES[kind], headers=headers)
