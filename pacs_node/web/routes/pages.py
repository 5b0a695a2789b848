"""The pages people open: worklist and study. Words come from `worklist` and `reading`, looks from the templates."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qs
from uuid import UUID

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import BaseModel, ValidationError

from db import facts
from db.engine import Session, db_now, read_scope
from db.facts import StudySummary
from db.tables import Verdict
from pacs_node.web import worklist
from pacs_node.web.context import Web, WebContext
from pacs_node.web.query import Cursor, cursor_out
from pacs_node.web.reading import study_view
from pacs_node.web.routes.reviews import add_review
from pacs_node.web.routes.studies import detail_of
from pacs_node.web.schemas import NewReview, StudySearch

router = APIRouter(include_in_schema=False)

Sent = TypeVar("Sent", bound=BaseModel)
ROWS = 100
"""Studies on one page of the worklist."""
FORM = "application/x-www-form-urlencoded"
Sender = Annotated[str, Query(max_length=16, pattern=r"^[\x20-\x5b\x5d-\x7e]*$")]
"""Empty = all: it comes from a form."""
ViewName = Annotated[str, Query(pattern="^(open|positive|silent|undelivered|all)$")]


async def _form(request: Request) -> dict[str, str]:
    """Return the fields of a posted form; of a repeated field the last value."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != FORM:
        raise HTTPException(415, "A form is expected.")
    try:
        fields = parse_qs(
            (await request.body()).decode("ascii"), keep_blank_values=True, max_num_fields=20, errors="strict"
        )
    except ValueError:
        raise HTTPException(400, "The form cannot be read.") from None
    return {name: values[-1] for name, values in fields.items()}


Form = Annotated[dict[str, str], Depends(_form)]


@router.get("/")
def show_worklist(
    web: WebContext, request: Request, view: ViewName = "open", sender: Sender = "", cursor: Cursor = None
) -> HTMLResponse:
    """Show the newest studies in the order of need."""
    with read_scope(web.engine) as session:
        studies, following = facts.list_studies(session, calling_ae_title=sender or None, limit=ROWS, cursor=cursor)
        senders, now = facts.list_senders(session), db_now(session)
    rows = [worklist.row_of(study, now) for study in studies]
    shown = worklist.list_view(rows, view=view, sender=sender, senders=senders, is_first_page=cursor is None, now=now)
    older = worklist.href(view=view, sender=sender, cursor=cursor_out(following)) if following else ""
    return _page(web, request, "worklist.html", {"page": "worklist", "list": shown, "older": older})


@router.post("/")
def search(web: WebContext, request: Request, form: Form) -> HTMLResponse:
    """Show the studies of the patient or order that was typed; a form, so that no address names a patient."""
    sought = _checked(StudySearch, patient_name=form.get("q", "")).patient_name or ""
    with read_scope(web.engine) as session:
        found = _search(session, sought) if sought else []
        now = db_now(session)
    if sought:
        web.note_search(len(found))
    rows = [worklist.row_of(study, now) for study in found]
    return _page(
        web,
        request,
        "worklist.html",
        {"page": "worklist", "list": worklist.search_view(rows, sought, now), "older": ""},
    )


def _search(session: Session, sought: str) -> list[StudySummary]:
    """Look in the three places that people type into one box; names are written with a space and kept with a caret."""
    found = [
        *facts.search_studies(session, accession_number=sought, limit=ROWS),
        *facts.search_studies(session, patient_id=sought, limit=ROWS),
        *facts.search_studies(session, patient_name=sought, limit=ROWS),
        *facts.search_studies(session, patient_name=sought.replace(" ", "^"), limit=ROWS),
    ]
    return list({study.study_id: study for study in found}.values())[:ROWS]


@router.get("/studies/{study_id}")
def show_study(
    web: WebContext, request: Request, study_id: UUID, image: UUID | None = None, saved: UUID | None = None
) -> HTMLResponse:
    """Show one study with its radiograph and the model's answer; the view is audited."""
    study = detail_of(web, study_id)
    web.note_view(study_id, "page")
    with read_scope(web.engine) as session:
        now = db_now(session)
    view = study_view(study, chosen=image, saved=saved, now=now)
    return _page(web, request, "study.html", {"page": "study", "study": view})


@router.post("/studies/{study_id}/reviews")
def post_review(web: WebContext, study_id: UUID, form: Form) -> RedirectResponse:
    """Keep what the reader said, and show the study again."""
    wanted = {name: form.get(name, "") for name in ("verdict", "comment", "reviewer")}
    if wanted["comment"] and not wanted["verdict"]:
        wanted["verdict"] = Verdict.COMMENT  # the Enter key in the comment
    review = add_review(web, _checked(NewReview, study_id=study_id, **wanted))
    return RedirectResponse(f"/studies/{study_id}?saved={review.review_id}", status_code=303)


def _checked(kind: type[Sent], **fields: Any) -> Sent:
    try:
        return kind(**fields)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


def _page(web: Web, request: Request, template: str, context: dict[str, Any]) -> HTMLResponse:
    page: HTMLResponse = web.templates.TemplateResponse(request, template, context)
    return page
