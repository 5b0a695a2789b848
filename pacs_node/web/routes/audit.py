"""The audit trail, for administrators: who did what, when and to what."""

from __future__ import annotations

from fastapi import APIRouter

from db import facts
from db.engine import read_scope
from pacs_node.web.access import Role, requires
from pacs_node.web.admin_schemas import AuditOut
from pacs_node.web.context import WebContext
from pacs_node.web.listing import OfEvents, page_of
from pacs_node.web.problems import documented
from pacs_node.web.query import Cursor, Limit
from pacs_node.web.routes import API
from pacs_node.web.schemas import Page

router = APIRouter(
    prefix=f"{API}/audit",
    tags=["audit"],
    responses=documented(422),
    dependencies=[requires(Role.ADMIN)],
)


@router.get("", summary="List audit events")
def list_audit_events(web: WebContext, wanted: OfEvents, limit: Limit = 50, cursor: Cursor = None) -> Page[AuditOut]:
    """Return one page of the trail, the newest first; `subject_id` is a study, image, report, delivery or review."""
    with read_scope(web.engine) as session:
        return page_of(AuditOut, facts.list_events(session, **wanted, limit=limit, cursor=cursor))
