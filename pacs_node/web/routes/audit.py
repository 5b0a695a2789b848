"""The audit trail, for administrators: who did what, when and to what."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from db import facts
from db.audit import Action
from db.engine import read_scope
from pacs_node.web.access import Role, requires
from pacs_node.web.context import WebContext
from pacs_node.web.listing import page_of
from pacs_node.web.problems import documented
from pacs_node.web.query import Cursor, Instant, Limit
from pacs_node.web.routes import API
from pacs_node.web.schemas import AuditOut, Page

router = APIRouter(
    prefix=f"{API}/audit",
    tags=["audit"],
    responses=documented(422, 503),
    dependencies=[requires(Role.ADMIN)],
)

Actor = Annotated[str, Query(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$", examples=["user:reader"])]


@router.get("", summary="List audit events")
def list_audit_events(
    web: WebContext,
    action: Action | None = None,
    actor: Actor | None = None,
    subject_id: UUID | None = None,
    since: Instant | None = None,
    until: Instant | None = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[AuditOut]:
    """Return one page of the trail, the newest first; `subject_id` is a study, image, report, delivery or review."""
    with read_scope(web.engine) as session:
        found = facts.list_events(
            session,
            action=action,
            actor=actor,
            subject_id=subject_id,
            since=since,
            until=until,
            limit=limit,
            cursor=cursor,
        )
    return page_of(AuditOut, found)
