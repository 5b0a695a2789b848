"""Lists as files, CSV or NDJSON, with the filters of their lists; each one is audited before its first line leaves."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from db import facts
from db.audit import Action
from db.engine import db_now, read_scope
from db.facts import Asked
from db.tables import DeliveryState, Verdict
from pacs_node.web.access import Role, requires
from pacs_node.web.context import Web, WebContext
from pacs_node.web.exporting import MEDIA_TYPES, ROWS, FileKind, Read, file_name, lines_of
from pacs_node.web.listing import Listed
from pacs_node.web.problems import documented
from pacs_node.web.query import Code, Instant, Probability, Version
from pacs_node.web.routes import API
from pacs_node.web.schemas import DeliveryDetail, ResultOut, ReviewOut, Schema, StudyLine
from pacs_node.web.study_query import Wanted

router = APIRouter(
    prefix=f"{API}/exports",
    tags=["exports"],
    responses=documented(422, 503),
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


@router.get("/studies", summary="Export studies", response_class=StreamingResponse, responses=FILE)
def export_studies(
    web: WebContext, wanted: Wanted, kind: Kind = "csv", with_patient: WithPatient = False
) -> StreamingResponse:
    """Return the worklist, the newest first; the patient's attributes stay out unless they are asked for."""

    def read(cursor: str | None) -> tuple[list[StudyLine], str | None]:
        with read_scope(web.engine) as session:
            return _as(StudyLine, facts.list_studies(session, **wanted, limit=ROWS, cursor=cursor))

    without = frozenset() if with_patient else PATIENT
    return _file(web, "studies", kind, StudyLine, read, asked=dict(wanted), without=without)


@router.get("/results", summary="Export results", response_class=StreamingResponse, responses=FILE)
def export_results(
    web: WebContext,
    asked: Listed,
    finding: Code | None = None,
    probability_from: Probability | None = None,
    probability_to: Probability | None = None,
    model_version: Version | None = None,
    kind: Kind = "csv",
) -> StreamingResponse:
    """Return what the model said about every image, the newest first."""
    own: dict[str, Any] = {
        "finding": finding,
        "probability_from": probability_from,
        "probability_to": probability_to,
        "model_version": model_version,
    }

    def read(cursor: str | None) -> tuple[list[ResultOut], str | None]:
        with read_scope(web.engine) as session:
            return _as(ResultOut, facts.list_results(session, **own, **asdict(_at(asked, cursor))))

    return _file(web, "results", kind, ResultOut, read, asked=own | asdict(asked))


@router.get("/reviews", summary="Export reviews", response_class=StreamingResponse, responses=FILE)
def export_reviews(
    web: WebContext,
    verdict: Verdict | None = None,
    since: Instant | None = None,
    until: Instant | None = None,
    kind: Kind = "csv",
) -> StreamingResponse:
    """Return what readers said, the newest first."""
    own: dict[str, Any] = {"verdict": verdict, "since": since, "until": until, "visible": web.caller.visible}

    def read(cursor: str | None) -> tuple[list[ReviewOut], str | None]:
        with read_scope(web.engine) as session:
            return _as(ReviewOut, facts.list_reviews(session, **own, limit=ROWS, cursor=cursor))

    return _file(web, "reviews", kind, ReviewOut, read, asked=own)


@router.get("/deliveries", summary="Export deliveries", response_class=StreamingResponse, responses=FILE)
def export_deliveries(
    web: WebContext, asked: Listed, state: DeliveryState | None = None, kind: Kind = "csv"
) -> StreamingResponse:
    """Return where reports stand, the newest first."""

    def read(cursor: str | None) -> tuple[list[DeliveryDetail], str | None]:
        with read_scope(web.engine) as session:
            return _as(DeliveryDetail, facts.list_deliveries(session, _at(asked, cursor), state=state))

    return _file(web, "deliveries", kind, DeliveryDetail, read, asked=asdict(asked) | {"state": state})


def _at(asked: Asked, cursor: str | None) -> Asked:
    """Return what is asked of one page; an export begins where the caller said and goes to the end."""
    return replace(asked, limit=ROWS, cursor=cursor or asked.cursor)


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
    filters = {
        name: str(value) for name, value in asked.items() if value is not None and name not in ("visible", "limit")
    }
    details = {"list": subject, "format": kind, "filters": filters, "with_names": not without and schema is StudyLine}
    web.note(Action.LIST_EXPORTED, details=details)
    with read_scope(web.engine) as session:
        name = file_name(subject, kind, db_now(session))
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    lines = lines_of(kind, schema, read, without=without)
    return StreamingResponse(lines, media_type=MEDIA_TYPES[kind], headers=headers)
