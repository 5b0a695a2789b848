"""The quality page: do the counts add up, how long do steps take, do readers and model agree?"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, StreamingResponse
from pydantic import Field

from db import facts
from db.audit import Action
from db.engine import Session, db_now, read_scope
from db.facts import quality as counted
from db.facts import readings
from db.facts.quality import Scope
from db.tables import JobKind
from pacs_node.web import agreement, charts, quality, words, worklist
from pacs_node.web.access import Role, requires
from pacs_node.web.agreement import Share, Square
from pacs_node.web.context import WebContext
from pacs_node.web.exporting import MEDIA_TYPES, file_name, lines_of
from pacs_node.web.problems import documented
from pacs_node.web.routes import API
from pacs_node.web.routes.pages import Sender, show
from pacs_node.web.schemas import Schema

router = APIRouter(dependencies=[requires(Role.RADIOLOGIST, Role.ADMIN)])

REFUSED_SHOWN = 25
"""Lines of what was refused in negotiation, the gravest first."""
FAILED_STEPS = {
    JobKind.INFER: "Images that could not be judged",
    JobKind.REPORT: "Reports that could not be built",
    JobKind.DELIVER: "Reports that were not delivered",
}

NUMBERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/csv": {"example": "grouped_by,group,both_yes,model_only\r\nModel version,0.4.0,41,3\r\n"}}}
}
Period = Annotated[str, Query(pattern=f"^({'|'.join(quality.PERIODS)})$", examples=["30d"])]


class GroupNumbers(Schema):
    """Readings of one group by what reader and model say; a share only where there are enough readings to give one."""

    grouped_by: str
    group: str
    both_yes: int
    model_only: int
    reader_only: int
    both_no: int
    predictive_value: float | None
    predictive_value_low: float | None
    predictive_value_high: float | None
    sensitivity: float | None = Field(description="Among reviewed studies.")
    sensitivity_low: float | None
    sensitivity_high: float | None


@router.get("/quality", include_in_schema=False)
def show_quality(web: WebContext, request: Request, period: Period = "30d", sender: Sender = "") -> HTMLResponse:
    """Count from the tables, now; of the studies that the caller may see."""
    with read_scope(web.engine) as session:
        now = db_now(session)
        since, until = quality.period_of(period, now)
        scope = Scope(since=since, until=until, sender=sender, visible=web.caller.visible)
        context = _counts(session, scope) | _readings(session, scope)
        senders = facts.list_senders(session, web.caller.visible)
    context |= {
        "page": "quality",
        "charts": charts,
        "quality": quality,
        "percent": agreement.percent,
        "chosen": {"period": period, "sender": sender},
        "senders": senders,
        "counted_at": words.clock(now, now),
        **_links(period, sender),
        "since": words.clock(since, now),
    }
    return show(web, request, "quality.html", context)


@router.get(
    f"{API}/quality/numbers",
    tags=["quality"],
    summary="Export readings by group",
    response_class=StreamingResponse,
    responses=NUMBERS | documented(422),
)
def export_numbers(web: WebContext, period: Period = "30d", sender: Sender = "") -> StreamingResponse:
    """Return what readers and model said, counted by group, as CSV, of the studies that the caller may see; audited."""
    with read_scope(web.engine) as session:
        now = db_now(session)
        since, until = quality.period_of(period, now)
        scope = Scope(since=since, until=until, sender=sender, visible=web.caller.visible)
        said = agreement.agreement(readings.list_readings(session, scope))
    web.note(Action.LIST_EXPORTED, details={"list": "numbers", "format": "csv", "period": period, "sender": sender})
    rows = [_numbers(title, square) for title, squares in said.groups for square in squares]
    headers = {"Content-Disposition": f'attachment; filename="{file_name("numbers", "csv", now)}"'}
    lines = lines_of("csv", GroupNumbers, lambda _: (rows, None), without=frozenset())
    return StreamingResponse(lines, media_type=MEDIA_TYPES["csv"], headers=headers)


def _links(period: str, sender: str) -> dict[str, object]:
    """Return where the worklist shows the studies behind a count."""
    asked = {"period": str(quality.PERIODS[period][1]), "sender": sender}
    ends = {"a": "analysed", "b": "not_analysed", "c": "failed", "d": "waiting"}
    return {
        "study_links": {kind: worklist.href(view="all", **asked, end=end) for kind, end in ends.items()},
        "undelivered_link": worklist.href(view="undelivered", **asked),
    }


def _numbers(title: str, square: Square) -> GroupNumbers:
    counted = {name: getattr(square, name) for name in ("both_yes", "model_only", "reader_only", "both_no")}
    shares = _share("predictive_value", square.predictive_value) | _share("sensitivity", square.sensitivity)
    return GroupNumbers(grouped_by=title, group=square.name, **counted, **shares)


def _share(name: str, found: Share) -> dict[str, float | None]:
    values = (None, None, None) if found.share is None else (found.share, found.low, found.high)
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def _counts(session: Session, scope: Scope) -> dict[str, object]:
    failures = counted.count_failures(session, scope)
    refused = facts.list_refused_contexts(
        session,
        since=scope.since.astimezone().date(),
        until=scope.until.astimezone().date(),
        sender=scope.sender,
        visible=scope.visible,
    )
    return {
        "objects": counted.count_objects(session, scope),
        "studies": counted.count_studies(session, scope),
        "reasons": quality.reasons(counted.count_reasons(session, scope)),
        "failures": [(FAILED_STEPS.get(kind, kind.value), count) for kind, count in failures.items()],
        "steps": quality.steps(counted.step_times(session, scope)),
        "refused": quality.refused(refused[:REFUSED_SHOWN]),
        "refused_more": max(len(refused) - REFUSED_SHOWN, 0),
        "sent": quality.sent(counted.count_deliveries_of(session, scope)),
    }


def _readings(session: Session, scope: Scope) -> dict[str, object]:
    covered = readings.coverage(session, scope)
    said = agreement.agreement(readings.list_readings(session, scope))
    marks = [
        charts.Mark(label=week.label, n=week.readings, share=week.share, low=week.low, high=week.high)
        for week in said.weeks
    ]
    return {
        "agreement": said,
        "over_time": charts.over_time(marks, agreement.weeks_text(said.weeks)),
        "coverage": [(agreement.COVERAGE[row.answer], row) for row in covered if row.studies],
        "coverage_text": agreement.coverage_text(covered),
    }
