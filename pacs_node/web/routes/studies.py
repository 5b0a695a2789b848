"""Studies: lists, search, one in full, its picture for a list, its report."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, HTTPException, Query, Request, Response

from db import facts
from db.engine import read_scope
from db.facts import BuiltObject, ReportFacts, StudyDetail
from db.tables import ObjectKind
from pacs_node.web.access import Role, requires
from pacs_node.web.context import Web, WebContext
from pacs_node.web.dicom_files import FILE, FileForm, dicom_file
from pacs_node.web.listing import page_of
from pacs_node.web.problems import documented
from pacs_node.web.query import Cursor, Limit, cursor_out
from pacs_node.web.reading import decisive_image
from pacs_node.web.render import THUMBNAIL, Drawing
from pacs_node.web.routes import API
from pacs_node.web.routes.images import picture
from pacs_node.web.schemas import PATIENT, Page, StudyLine, StudyOut, StudySearch
from pacs_node.web.study_query import Sort, Wanted

router = APIRouter(
    prefix=f"{API}/studies",
    tags=["studies"],
    responses=documented(404, 422),
    dependencies=[requires(Role.RADIOLOGIST, Role.ADMIN, Role.SERVICE)],
)

COMPREHENSIVE_3D_SR = "1.2.840.10008.5.1.4.1.1.88.34"
PNG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {}}},
    304: {"description": "Not Modified"},
}


@router.get("", summary="List studies")
def list_studies(
    web: WebContext, wanted: Wanted, sort: Sort = "-received_at", limit: Limit = 50, cursor: Cursor = None
) -> Page[StudyLine]:
    """Return one page of studies, the newest first unless `sort` says otherwise; audited once an hour for each caller.

    A program (role service) is not told whose they are: it searches for the patient that it knows, or opens a study.
    """
    with read_scope(web.engine) as session:
        studies, following = facts.list_studies(session, **wanted, sort=sort, limit=limit, cursor=cursor)
    web.note_list("api")
    unnamed = {} if web.caller.may(Role.RADIOLOGIST, Role.ADMIN) else dict.fromkeys(PATIENT)
    items = [StudyLine.model_validate(study).model_copy(update=unnamed) for study in studies]
    return Page(items=items, next_cursor=cursor_out(following))


@router.post("/search", summary="Search for a patient or an order")
def search_studies(web: WebContext, sought: StudySearch) -> Page[StudyLine]:
    """Return the studies that have every given attribute, the newest first.

    Asked for in a body, so that no address names a patient.
    """
    wanted = sought.model_dump(exclude={"limit", "cursor"}, exclude_none=True)
    if not any(wanted.values()):
        raise HTTPException(422, "A search needs patient_id, patient_name or accession_number.")
    with read_scope(web.engine) as session:
        asked: dict[str, Any] = {"visible": web.caller.visible, "limit": sought.limit, "cursor": sought.cursor}
        found = facts.search_studies(session, **wanted, **asked)
    web.note_search(len(found[0]))
    return page_of(StudyLine, found)


@router.get("/{study_id}", summary="One study in full")
def get_study(web: WebContext, study_id: UUID) -> StudyOut:
    """Return the study with its images, results, warnings, reports and reviews; the view is audited."""
    study = detail_of(web, study_id)
    web.note_view(study_id, "detail")
    return StudyOut.model_validate(study)


@router.get(
    "/{study_id}/thumbnail",
    summary="The study's picture for a list",
    response_class=Response,
    responses=PNG,
)
def get_thumbnail(web: WebContext, request: Request, study_id: UUID) -> Response:
    """Return the image that decides the answer as a small PNG; audited as a list, which shows no more than this."""
    study = detail_of(web, study_id)
    image = decisive_image(study.images, study.summary.probability)
    if image is None or image.instance_id in study.gone:
        raise HTTPException(404, "This study has no picture.")
    with read_scope(web.engine) as session:
        instance = facts.instance_detail(session, image.instance_id)
    web.note_list("thumbnails")
    return picture(web, request, instance, Drawing(digest=instance.digest, size=THUMBNAIL, window=None))


@router.get(
    "/{study_id}/report", summary="The study's DICOM Structured Report", response_class=Response, responses=FILE
)
def get_report(
    web: WebContext,
    study_id: UUID,
    revision: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None,
    form: FileForm = "dicom",
) -> Response:
    """Return the current report, or an earlier revision, as DICOM, DICOM JSON or a page; the view is audited."""
    report = _report(detail_of(web, study_id), revision)
    built = _preferred(web, report)
    web.note_view(study_id, "report")
    address = f"{router.prefix}/{study_id}/report?revision={report.revision}"
    return dicom_file(web, built.path, name=f"{study_id}-{report.revision}", form=form, address=address)


def detail_of(web: Web, study_id: UUID) -> StudyDetail:
    """Return one study; an unknown one is a 404 by `problems`."""
    with read_scope(web.engine) as session:
        return facts.study_detail(session, study_id)


def _report(study: StudyDetail, revision: int | None) -> ReportFacts:
    wanted = study.summary.revision if revision is None else revision
    report = next((report for report in study.reports if report.revision == wanted), None)
    if report is None or report.built_at is None:
        raise HTTPException(404, "This report does not exist, or is not built yet.")
    return report


def _preferred(web: Web, report: ReportFacts) -> BuiltObject:
    """Return the richest of a report's objects: the Comprehensive 3D SR where there is one."""
    with read_scope(web.engine) as session:
        built = facts.objects_of(session, report.report_id)
    is_report = [made for made in built if made.kind is ObjectKind.SR]
    is_there = [made for made in is_report if web.store.absolute(made.path).is_file()]
    if not is_there:
        raise HTTPException(404, "The report's file is not in the store.")
    return max(is_there, key=lambda made: made.sop_class_uid == COMPREHENSIVE_3D_SR)
