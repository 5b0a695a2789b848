"""Results, warnings, reports and deliveries as lists for scripts, and sending a report once more."""

from __future__ import annotations

from uuid import UUID

from fastapi import APIRouter

from db import facts
from db.engine import db_now, read_scope
from pacs_node.web.access import Role, requires
from pacs_node.web.admin_schemas import Done
from pacs_node.web.context import WebContext
from pacs_node.web.listing import Listed, OfDeliveries, OfReports, OfResults, OfWarnings, page_of
from pacs_node.web.problems import documented
from pacs_node.web.routes import API
from pacs_node.web.schemas import DeliveryDetail, Page, ReportLine, ResultOut, WarningLine

router = APIRouter(
    prefix=API,
    tags=["records"],
    responses=documented(404, 422),
    dependencies=[requires(Role.RADIOLOGIST, Role.ADMIN, Role.SERVICE)],
)


@router.get("/results", summary="List results")
def list_results(web: WebContext, asked: Listed, wanted: OfResults) -> Page[ResultOut]:
    """Return one page of the predictions of every image's newest judgement, the newest first."""
    with read_scope(web.engine) as session:
        return page_of(ResultOut, facts.list_results(session, asked, **wanted))


@router.get("/warnings", summary="List warnings")
def list_warnings(web: WebContext, asked: Listed, wanted: OfWarnings) -> Page[WarningLine]:
    """Return one page of the warnings of every image's newest judgement, the newest first."""
    with read_scope(web.engine) as session:
        return page_of(WarningLine, facts.list_warnings(session, asked, **wanted))


@router.get("/reports", summary="List reports")
def list_reports(web: WebContext, asked: Listed, wanted: OfReports) -> Page[ReportLine]:
    """Return one page of reports, every revision, the newest first."""
    with read_scope(web.engine) as session:
        return page_of(ReportLine, facts.list_reports(session, asked, **wanted))


@router.get("/deliveries", summary="List deliveries")
def list_deliveries(web: WebContext, asked: Listed, wanted: OfDeliveries) -> Page[DeliveryDetail]:
    """Return one page of deliveries, the newest first; `state=failed` lists what waits for a person."""
    with read_scope(web.engine) as session:
        return page_of(DeliveryDetail, facts.list_deliveries(session, asked, **wanted))


@router.post(
    "/deliveries/{delivery_id}/resend",
    summary="Send a report once more",
    status_code=202,
    responses=documented(409),
    dependencies=[requires(Role.ADMIN)],
)
def resend(web: WebContext, delivery_id: UUID) -> Done:
    """Queue the delivery again, under the UIDs that it was sent with; audited."""
    with web.change() as session:
        now = db_now(session)
        study_id = facts.resend_delivery(session, delivery_id, actor=web.caller.actor, now=now)
    return Done(study_id=study_id, subject_id=delivery_id, detail="The delivery waits to be sent again.")
