"""Model versions in the books: which answers, and which answered before."""

from __future__ import annotations

from fastapi import APIRouter

from db import facts
from db.engine import read_scope
from db.tables import ModelState
from pacs_node.web.access import Role, requires
from pacs_node.web.context import WebContext
from pacs_node.web.problems import documented
from pacs_node.web.routes import API
from pacs_node.web.schemas import ModelVersionOut, Page

router = APIRouter(
    prefix=f"{API}/models",
    tags=["models"],
    responses=documented(422),
    dependencies=[requires(Role.RADIOLOGIST, Role.ADMIN, Role.SERVICE)],
)


@router.get("", summary="List model versions")
def list_models(web: WebContext, state: ModelState | None = None) -> Page[ModelVersionOut]:
    """Return every version in the order of its adding; there are few, so they stand on one page."""
    with read_scope(web.engine) as session:
        versions = facts.list_model_versions(session)
    shown = [version for version in versions if state is None or version.state is state]
    return Page(items=[ModelVersionOut.model_validate(version) for version in shown], next_cursor=None)
