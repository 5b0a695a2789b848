"""Results, warnings, reports and deliveries for scripts, as lists and one by one, and sending a report once more."""

from __future__ import annotations

from uuid import UUID

from fastapi import APIRouter

from db import facts
from db.engine import db_now, read_scope
from pacs_node.web.access import Role, requires
from pacs_node.web.admin_schemas import Done
from pacs_node.web.context import WebContext
from pacs_node.web.listing import Listed, OfDeliveries, OfReports, OfResults, OfWarnings, page_for
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
        found = facts.list_results(session, asked, **wanted)
    return page_for(web, ResultOut, "results", asked, found)


@router.get("/results/{prediction_id}", summary="One result")
def get_result(web: WebContext, prediction_id: UUID) -> ResultOut:
    """Return what the model said about one finding in one image, of an earlier judgement too; the view is audited."""
    with read_scope(web.engine) as session:
        found = facts.one_result(session, prediction_id)
    web.note_view(found.study_id, "result")
    return ResultOut.model_validate(found)


@router.get("/warnings", summary="List warnings")
def list_warnings(web: WebContext, asked: Listed, wanted: OfWarnings) -> Page[WarningLine]:
    """Return one page of the warnings of every image's newest judgement, the newest first."""
    with read_scope(web.engine) as session:
        found = facts.list_warnings(session, asked, **wanted)
    return page_for(web, WarningLine, "warnings", asked, found)


@router.get("/warnings/{warning_id}", summary="One warning")
def get_warning(web: WebContext, warning_id: UUID) -> WarningLine:
    """Return one remark about one image, of an earlier judgement too; the view is audited."""
    with read_scope(web.engine) as session:
        found = facts.one_warning(session, warning_id)
    web.note_view(found.study_id, "warning")
    return WarningLine.model_validate(found)


@router.get("/reports", summary="List reports")
def list_reports(web: WebContext, asked: Listed, wanted: OfReports) -> Page[ReportLine]:
    """Return one page of reports, every revision, the newest first."""
    with read_scope(web.engine) as session:
        found = facts.list_reports(session, asked, **wanted)
    return page_for(web, ReportLine, "reports", asked, found)


@router.get("/reports/{report_id}", summary="One report")
def get_report_line(web: WebContext, report_id: UUID) -> ReportLine:
    """Return one revision of a study's report, as the list shows it; the view is audited."""
    with read_scope(web.engine) as session:
        found = facts.one_report(session, report_id)
    web.note_view(found.study_id, "report")
    return ReportLine.model_validate(found)


@router.get("/deliveries", summary="List deliveries")
def list_deliveries(web: WebContext, asked: Listed, wanted: OfDeliveries) -> Page[DeliveryDetail]:
    """Return one page of deliveries, the newest first; `state=failed` lists what waits for a person."""
    with read_scope(web.engine) as session:
        found = facts.list_deliveries(session, asked, **wanted)
    return page_for(web, DeliveryDetail, "deliveries", asked, found)


@router.get("/deliveries/{delivery_id}", summary="One delivery")
def get_delivery(web: WebContext, delivery_id: UUID) -> DeliveryDetail:
    """Return one report on its way to one destination; the view is audited."""
    with read_scope(web.engine) as session:
        found = facts.one_delivery(session, delivery_id)
    web.note_view(found.study_id, "delivery")
    return DeliveryDetail.model_validate(found)


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
