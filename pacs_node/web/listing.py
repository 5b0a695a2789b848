"""What every list of the API takes, and how it answers: one page, its cursor, and the studies of the caller alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, TypeVar
from uuid import UUID

from fastapi import Depends

from db.facts import Asked
from pacs_node.web.context import WebContext
from pacs_node.web.query import AeTitle, Cursor, Instant, Limit, cursor_out
from pacs_node.web.schemas import Page, Schema

Row = TypeVar("Row", bound=Schema)


def _asked(
    web: WebContext,
    study_id: UUID | None = None,
    calling_ae_title: AeTitle | None = None,
    since: Instant | None = None,
    until: Instant | None = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Asked:
    return Asked(
        study_id=study_id,
        calling_ae_title=calling_ae_title,
        since=since,
        until=until,
        visible=web.caller.visible,
        limit=limit,
        cursor=cursor,
    )


Listed = Annotated[Asked, Depends(_asked)]
"""`since` is included, `until` is not."""


def page_of(kind: type[Row], found: tuple[Iterable[Any], str | None]) -> Page[Row]:
    """Return rows of facts as one page of the API."""
    rows, following = found
    return Page[kind](items=[kind.model_validate(row) for row in rows], next_cursor=cursor_out(following))  # type: ignore[valid-type]
