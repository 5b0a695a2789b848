"""Warnings, reports and deliveries as lists, and sending a report once more."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from db import facts
from db.engine import db_now, read_scope, session_scope
from db.tables import Answer, DeliveryState
from models.codes import Severity
from pacs_node.web.access import Role, requires
from pacs_node.web.context import WebContext
from pacs_node.web.listing import Listed, page_of
from pacs_node.web.problems import documented
from pacs_node.web.query import Code, Version
from pacs_node.web.routes import API
from pacs_node.web.schemas import DeliveryDetail, Done, Page, ReportLine, WarningLine

router = APIRouter(
    prefix=API,
    tags=["records"],
    responses=documented(404, 422, 503),
    dependencies=[requires(Role.RADIOLOGIST, Role.ADMIN, Role.SERVICE)],
)

Destination = Annotated[str, Query(min_length=1, max_length=64, pattern=r"^[\x21-\x7e]+$", examples=["main"])]


@router.get("/warnings", summary="List warnings")
def list_warnings(
    web: WebContext,
    asked: Listed,
    code: Code | None = None,
    severity: Severity | None = None,
) -> Page[WarningLine]:
    """Return one page of the warnings of every image's newest judgement, the newest first."""
    with read_scope(web.engine) as session:
        return page_of(WarningLine, facts.list_warnings(session, asked, code=code, severity=severity))


@router.get("/reports", summary="List reports")
def list_reports(
    web: WebContext, asked: Listed, answer: Answer | None = None, model_version: Version | None = None
) -> Page[ReportLine]:
    """Return one page of reports, every revision, the newest first."""
    with read_scope(web.engine) as session:
        return page_of(ReportLine, facts.list_reports(session, asked, answer=answer, model_version=model_version))


@router.get("/deliveries", summary="List deliveries")
def list_deliveries(
    web: WebContext, asked: Listed, state: DeliveryState | None = None, destination: Destination | None = None
) -> Page[DeliveryDetail]:
    """Return one page of deliveries, the newest first; `state=failed` lists what waits for a person."""
    with read_scope(web.engine) as session:
        return page_of(DeliveryDetail, facts.list_deliveries(session, asked, state=state, destination=destination))


@router.post(
    "/deliveries/{delivery_id}/resend",
    summary="Send a report once more",
    status_code=202,
    responses=documented(409),
    dependencies=[requires(Role.ADMIN)],
)
def resend(web: WebContext, delivery_id: UUID) -> Done:
    """Queue the delivery again, under the UIDs that it was sent with; audited."""
    with session_scope(web.engine) as session:
        now = db_now(session)
        study_id = facts.resend_delivery(session, delivery_id, actor=web.caller.actor, now=now)
    return Done(study_id=study_id, subject_id=delivery_id, detail="The delivery waits to be sent again.")
