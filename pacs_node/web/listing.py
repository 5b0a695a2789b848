"""What every list of the API takes, and how it answers: one page, its cursor, and the studies of the caller alone.

A list and its export take the same filters, so they stand here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

from fastapi import Depends, Query

from db.audit import Action
from db.facts import Asked
from db.tables import Answer, DeliveryState, InstanceState, Verdict
from models.codes import Severity
from pacs_node.web.context import Web, WebContext
from pacs_node.web.query import AeTitle, Code, Cursor, Instant, Limit, Probability, Version, cursor_out
from pacs_node.web.schemas import Page, Schema

Row = TypeVar("Row", bound=Schema)
Filters = dict[str, Any]
Order = Annotated[Literal["newest", "oldest"], Query(description="Which comes first.")]
Destination = Annotated[str, Query(min_length=1, max_length=64, pattern=r"^[\x21-\x7e]+$", examples=["main"])]
Actor = Annotated[str, Query(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$", examples=["user:reader"])]


def _asked(
    web: WebContext,
    study_id: UUID | None = None,
    calling_ae_title: AeTitle | None = None,
    since: Instant | None = None,
    until: Instant | None = None,
    order: Order = "newest",
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Asked:
    return Asked(
        study_id=study_id,
        calling_ae_title=calling_ae_title,
        since=since,
        until=until,
        visible=web.caller.visible,
        is_oldest_first=order == "oldest",
        limit=limit,
        cursor=cursor,
    )


def _of_images(state: InstanceState | None = None) -> Filters:
    return {"state": state}


def _of_results(
    finding: Code | None = None,
    probability_from: Probability | None = None,
    probability_to: Probability | None = None,
    model_version: Version | None = None,
) -> Filters:
    bounds = {"probability_from": probability_from, "probability_to": probability_to}
    return {"finding": finding, "model_version": model_version} | bounds


def _of_warnings(code: Code | None = None, severity: Severity | None = None) -> Filters:
    return {"code": code, "severity": severity}


def _of_reports(answer: Answer | None = None, model_version: Version | None = None) -> Filters:
    return {"answer": answer, "model_version": model_version}


def _of_deliveries(state: DeliveryState | None = None, destination: Destination | None = None) -> Filters:
    return {"state": state, "destination": destination}


def _of_reviews(verdict: Verdict | None = None) -> Filters:
    return {"verdict": verdict}


def _of_events(
    action: Action | None = None,
    actor: Actor | None = None,
    subject_id: UUID | None = None,
    since: Instant | None = None,
    until: Instant | None = None,
) -> Filters:
    return {"action": action, "actor": actor, "subject_id": subject_id, "since": since, "until": until}


Listed = Annotated[Asked, Depends(_asked)]
"""`since` is included, `until` is not."""
OfImages = Annotated[Filters, Depends(_of_images)]
OfResults = Annotated[Filters, Depends(_of_results)]
OfWarnings = Annotated[Filters, Depends(_of_warnings)]
OfReports = Annotated[Filters, Depends(_of_reports)]
OfDeliveries = Annotated[Filters, Depends(_of_deliveries)]
OfReviews = Annotated[Filters, Depends(_of_reviews)]
OfEvents = Annotated[Filters, Depends(_of_events)]


def page_of(kind: type[Row], found: tuple[Iterable[Any], str | None]) -> Page[Row]:
    """Return rows of facts as one page of the API."""
    rows, following = found
    return Page[kind](items=[kind.model_validate(row) for row in rows], next_cursor=cursor_out(following))  # type: ignore[valid-type]


def page_for(web: Web, kind: type[Row], name: str, asked: Asked, found: tuple[Iterable[Any], str | None]) -> Page[Row]:
    """Return rows of facts as one page, and audit who saw them: a view of the study that was asked for, else a list."""
    shown = page_of(kind, found)
    if asked.study_id is not None and shown.items:
        web.note_view(asked.study_id, name)
    else:
        web.note_list(name)
    return shown
