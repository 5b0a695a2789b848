"""The pages readers open: worklist and study. Words come from `worklist` and `reading`, looks from the templates.

Quality and administration have their own rooms beside this one and hang on its router.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qs
from uuid import UUID

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import BaseModel, ValidationError

from db import facts
from db.engine import Session, db_now, read_scope
from db.facts import StudyDetail, StudyFilters, StudySummary, Visible
from db.facts.groups import GROUP_SORTS
from db.facts.study_filters import count_groups, count_studies
from db.tables import Verdict
from models.codes import CODES
from pacs_node.web import blind, words, worklist
from pacs_node.web.access import Role, requires
from pacs_node.web.choices import finding_kept
from pacs_node.web.context import Web, WebContext
from pacs_node.web.meaning import told_by_card
from pacs_node.web.query import Cursor, cursor_out
from pacs_node.web.reading import Shown, study_view
from pacs_node.web.routes.reviews import add_review
from pacs_node.web.rows import Row, row_of
from pacs_node.web.schemas import NewReview, StudySearch
from pacs_node.web.security import FORM
from pacs_node.web.worklist import Choice, Counts

router = APIRouter(include_in_schema=False, dependencies=[requires(Role.RADIOLOGIST, Role.ADMIN)])

Sent = TypeVar("Sent", bound=BaseModel)
ROWS, GROUP_ROWS = 100, 40
"""Studies on a page of one group, or that a search finds; and of each group in the whole list."""
PRIORS, PRIORS_SHOWN = 20, 4
"""Earlier studies of a patient that are looked at, and that are shown."""
Sender = Annotated[str, Query(max_length=16, pattern=r"^[\x20-\x5b\x5d-\x7e]*$", examples=["CR_ROOM_1"])]
"""Empty = all: it comes from a form."""
PROBABILITY = r"^(0(\.[0-9]{1,6})?|1(\.0{1,6})?)?$"
ViewName = Annotated[str, Query(pattern=f"^({'|'.join(worklist.VIEWS)})$")]
GroupName = Annotated[str, Query(pattern=f"^({'|'.join(worklist.GROUPS)})?$")]
"""Empty = all of the view."""


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


def _choice(
    sender: Sender = "",
    period: Annotated[str, Query(pattern=f"^({'|'.join(worklist.PERIODS)})$")] = "",
    probability_from: Annotated[str, Query(alias="from", pattern=PROBABILITY)] = "",
    probability_to: Annotated[str, Query(alias="to", pattern=PROBABILITY)] = "",
    model_version: Annotated[str, Query(alias="version", pattern=r"^([0-9]{1,9}(\.[0-9]{1,9}){2})?$")] = "",
    delivery: Annotated[str, Query(pattern=f"^({'|'.join(worklist.DELIVERIES)})$")] = "",
    warning: Annotated[str, Query(pattern=f"^({'|'.join(CODES)})?$")] = "",
    end: Annotated[str, Query(pattern=f"^({'|'.join(worklist.ENDS)})$")] = "",
) -> Choice:
    """Read the filters of the worklist; empty = not set, for they come from a form."""
    return Choice(
        sender=sender,
        period=period,
        probability_from=float(probability_from) if probability_from else None,
        probability_to=float(probability_to) if probability_to else None,
        model_version=model_version,
        delivery=delivery,
        warning=warning,
        end=end,
    )


@router.get("/")
def show_worklist(
    web: WebContext,
    request: Request,
    asked: Annotated[Choice, Depends(_choice)],
    view: ViewName = "open",
    group: GroupName = "",
    cursor: Cursor = None,
) -> HTMLResponse:
    """Show the beginning of each group in the order of need, or one group page by page; none pushes another off."""
    with read_scope(web.engine) as session:
        now = db_now(session)
        senders = facts.list_senders(session, web.caller.visible)
        versions = sorted({known.version for known in facts.list_model_versions(session)})
        choice = replace(asked, senders=senders, model_versions=versions)
        if _answers_first(web):  # what a filter lets through tells the probability
            choice = replace(choice, is_by_answer=False, probability_from=None, probability_to=None, warning="")
        if not choice.is_by_answer and (view == "positive" or group in ("positive", "negative", "silent")):
            raise HTTPException(404, "This view would tell what the model said.")
        wanted = _wanted(web, choice, now)
        counts = _counts(session, wanted, is_veiled=not choice.is_by_answer)
        wanted |= worklist.asked_in(view, choice)
        if group:
            sort = GROUP_SORTS.get(group, "received_at")
            wanted["group"] = group
            page = facts.list_studies(session, sort=sort, limit=ROWS, cursor=cursor, **wanted)
        else:
            page = facts.list_groups(session, counts.of_view(view, choice), limit=GROUP_ROWS, **wanted), None
        studies, following = page
        hidden = _hidden(web, session, studies)
        last_received = "" if studies else _last_received(session, web.caller.visible, now)
    web.note_list("page")
    rows = _rows(studies, hidden, now)
    told: dict[str, Any] = {"view": view, "group": group, "choice": choice, "now": now}
    told["is_of_groups"] = web.caller.visible is not None
    shown = worklist.list_view(rows, counts, last_received=last_received, **told)
    older = worklist.href(view=view, group=group, cursor=cursor_out(following), **choice.query) if following else ""
    context = {"page": "worklist", "list": shown, "older": older, "periods": worklist.PERIODS}
    context |= {
        "deliveries": worklist.DELIVERIES,
        "ends": worklist.ENDS,
        "codes": {code: code.replace("_", " ") for code in sorted(CODES)},
    }
    context["export_href"] = worklist.export_href(choice, now)
    return show(web, request, "worklist.html", context)


def _answers_first(web: Web) -> bool:
    """Tell whether the caller, as a reader, gets the model's answer after their own alone."""
    return blind.answers_first(web.caller, web.settings.reviews)


def _hidden(web: Web, session: Session, studies: Sequence[StudySummary]) -> frozenset[UUID]:
    """Return of which studies the caller may not see the model's answer yet."""
    if not _answers_first(web):
        return frozenset()
    reader, ids = blind.reader_of(web.caller), frozenset(study.study_id for study in studies)
    if reader is None:
        return frozenset(study.study_id for study in studies if not study.standing)
    return ids - facts.answered_by(session, ids, reader)


def _rows(studies: Sequence[StudySummary], hidden: frozenset[UUID], now: datetime) -> list[Row]:
    return [row_of(study, now, is_hidden=study.study_id in hidden) for study in studies]


def _wanted(web: Web, choice: Choice, now: datetime) -> StudyFilters:
    return {
        "calling_ae_title": choice.sender or None,
        "received_from": now - timedelta(days=int(choice.period)) if choice.period else None,
        "probability_from": choice.probability_from,
        "probability_to": choice.probability_to,
        "model_version": choice.model_version or None,
        "warning": choice.warning or None,
        "end": choice.end or None,
        "is_undelivered": bool(choice.delivery) or None,
        "visible": web.caller.visible,
    }


def _counts(session: Session, wanted: StudyFilters, *, is_veiled: bool) -> Counts:
    unread: StudyFilters = {**wanted, "is_reviewed": False}
    answered: StudyFilters = {**wanted, "is_reviewed": True}
    undelivered: StudyFilters = {**wanted, "is_undelivered": True}
    return Counts(
        unread=count_groups(session, unread, is_veiled=is_veiled),
        undelivered=count_groups(session, undelivered, is_veiled=is_veiled),
        answered=count_studies(session, answered, limit=worklist.COUNTED + 1),
    )


def _last_received(session: Session, visible: Visible | None, now: datetime) -> str:
    newest, _ = facts.list_studies(session, limit=10, visible=visible)
    if not newest:
        return ""
    last = max(newest, key=lambda study: study.last_received_at)
    return f"at {words.clock(last.last_received_at, now)} from {last.calling_ae_title}"


@router.post("/")
def search(web: WebContext, request: Request, form: Form) -> HTMLResponse:
    """Show the studies of the patient or order that was typed; a form, so that no address names a patient."""
    sought = _checked(StudySearch, patient_name=form.get("q", "")).patient_name or ""
    with read_scope(web.engine) as session:
        found, has_more = _search(session, sought, web.caller.visible) if sought else ([], False)
        hidden, now = _hidden(web, session, found), db_now(session)
    if sought:
        web.note_search(len(found))
    shown = worklist.search_view(_rows(found, hidden, now), sought, has_more=has_more)
    return show(web, request, "worklist.html", {"page": "worklist", "list": shown, "older": "", "periods": {}})


def _search(session: Session, sought: str, visible: Visible | None) -> tuple[list[StudySummary], bool]:
    """Look in the three places that people type into one box; names are written with a space and kept with a caret.

    Return the studies, and whether there are more.
    """
    asked: dict[str, Any] = {"visible": visible, "limit": ROWS}
    pages = [
        facts.search_studies(session, accession_number=sought, **asked),
        facts.search_studies(session, patient_id=sought, **asked),
        facts.search_studies(session, patient_name=sought, **asked),
        facts.search_studies(session, patient_name=sought.replace(" ", "^"), **asked),
    ]
    found = list({study.study_id: study for studies, _ in pages for study in studies}.values())
    return found[:ROWS], len(found) > ROWS or any(following for _, following in pages)


@router.get("/studies/{study_id}")
def show_study(
    web: WebContext, request: Request, study_id: UUID, image: UUID | None = None, beside: UUID | None = None
) -> HTMLResponse:
    """Show one study with its radiograph and the model's answer; the view is audited, and so is an earlier study's."""
    with read_scope(web.engine) as session:  # one: the answer that is shown is the one that these reviews are about
        study, reviews = facts.study_detail(session, study_id), facts.review_state(session, study_id)
        priors, now = _priors(web, session, study), db_now(session)
    web.note_view(study_id, "page")
    if beside in [prior.summary.study_id for prior in priors]:
        web.note_view(beside, "beside")
    meaning, trained_on = told_by_card(study, web.registry)
    viewer_url = web.settings.web.viewer_url
    shown = Shown(image=image, beside=beside, viewer_url=viewer_url, meaning=meaning, trained_on=trained_on)
    view = study_view(study, reviews, priors, shown, now=now)
    is_hidden = blind.is_hidden_from(web.caller, web.settings.reviews, reviews.standing)
    view = blind.hidden(view) if is_hidden else view
    saved = request.query_params.get("saved") == "yes" and "Your answer is saved."
    return show(web, request, "study.html", {"page": "study", "study": view, "saved": saved})


def _priors(web: Web, session: Session, study: StudyDetail) -> list[StudyDetail]:
    """Return the patient's earlier studies that the caller may see, the newest first.

    The same id from the same issuer is the same patient; an empty id is nobody's.
    """
    own = study.summary
    if not own.patient_id:
        return []
    found, _ = facts.search_studies(session, patient_id=own.patient_id, limit=PRIORS, visible=web.caller.visible)
    earlier = [line.study_id for line in found if _place(line) < _place(own)]
    details = [facts.study_detail(session, study_id) for study_id in earlier]
    return [prior for prior in details if prior.issuer_of_patient_id == study.issuer_of_patient_id][:PRIORS_SHOWN]


def _place(line: StudySummary) -> tuple[date, datetime]:
    return line.study_date or line.received_at.date(), line.received_at


@router.post("/studies/{study_id}/reviews", dependencies=[requires(Role.RADIOLOGIST)])
def post_review(web: WebContext, study_id: UUID, form: Form) -> RedirectResponse:
    """Keep what the reader said without script, and show the study again."""
    verdict, _, rest = form.get("answer", "").partition(":")
    finding, _, is_blind = rest.partition(":")
    wanted: dict[str, Any] = {"comment": form.get("comment", ""), "is_blind": bool(is_blind)}
    wanted["verdict"] = verdict or Verdict.COMMENT  # Enter in the comment
    finding = finding_kept(finding, form.get("finding", ""))
    wanted |= {"corrected_finding": finding} if finding else {}
    wanted |= {"reviewer": form["reviewer"]} if "reviewer" in form else {}
    add_review(web, _checked(NewReview, study_id=study_id, **wanted), tag=form.get("tag"))
    return RedirectResponse(f"/studies/{study_id}?saved=yes", status_code=303)


def _checked(kind: type[Sent], **fields: Any) -> Sent:
    try:
        return kind(**fields)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


def show(web: Web, request: Request, template: str, context: dict[str, Any]) -> HTMLResponse:
    """Return a page for the caller."""
    page: HTMLResponse = web.templates.TemplateResponse(request, template, {"caller": web.caller, **context})
    return page
