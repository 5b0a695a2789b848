"""The audit trail, for administrators: who did what, when and to what, and whether the chain is whole."""

from __future__ import annotations

from uuid import UUID

from fastapi import APIRouter

from db import audit, facts
from db.audit import Action
from db.engine import read_scope
from pacs_node.web.access import Role, requires
from pacs_node.web.admin_schemas import AuditOut, ChainOut
from pacs_node.web.context import WebContext
from pacs_node.web.listing import OfEvents, page_of
from pacs_node.web.problems import documented
from pacs_node.web.query import Cursor, Limit
from pacs_node.web.routes import API
from pacs_node.web.schemas import Page
from pacs_node.wiring import audit_key

router = APIRouter(
    prefix=f"{API}/audit",
    tags=["audit"],
    responses=documented(404, 422),
    dependencies=[requires(Role.ADMIN)],
)


@router.get("", summary="List audit events")
def list_audit_events(web: WebContext, wanted: OfEvents, limit: Limit = 50, cursor: Cursor = None) -> Page[AuditOut]:
    """Return one page of the trail, the newest first; `subject_id` is a study, image, report, delivery or review."""
    with read_scope(web.engine) as session:
        return page_of(AuditOut, facts.list_events(session, **wanted, limit=limit, cursor=cursor))


@router.get("/{event_id}", summary="One audit event")
def get_audit_event(web: WebContext, event_id: UUID) -> AuditOut:
    """Return one event as it stands in the trail."""
    with read_scope(web.engine) as session:
        return AuditOut.model_validate(facts.one_event(session, event_id))


@router.post("/verify", summary="Check the chain of the audit trail")
def verify_chain(web: WebContext) -> ChainOut:
    """Walk the whole chain, as `pacs-node audit verify` does; that it was checked is told in the trail itself."""
    with read_scope(web.engine) as session:
        found = audit.verify(session, audit_key(web.settings.node.secrets_dir))
    web.note(Action.CHAIN_VERIFIED, details={"sealed": found.sealed, "broken": len(found.broken)})
    if found.broken:
        places = ", ".join(map(str, found.broken[:5]))
        return ChainOut(unbroken=False, detail=f"The chain is broken at {len(found.broken)} places: {places}.")
    text = f"The chain is unbroken: {found.sealed} events, checked just now; {found.unsealed} not sealed yet."
    return ChainOut(unbroken=True, detail=text)
