"""Results: what the model said, image by image, for scripts."""

from __future__ import annotations

from fastapi import APIRouter

from db import facts
from db.engine import read_scope
from pacs_node.web.context import WebContext
from pacs_node.web.problems import documented
from pacs_node.web.query import Code, Cursor, Instant, Limit, cursor_out
from pacs_node.web.routes import API
from pacs_node.web.schemas import Page, ResultOut

router = APIRouter(prefix=f"{API}/results", tags=["results"], responses=documented(404, 422, 503))


@router.get("", summary="List results")
def list_results(
    web: WebContext, finding: Code | None = None, since: Instant | None = None, limit: Limit = 50, cursor: Cursor = None
) -> Page[ResultOut]:
    """Return one page of the predictions of every image's newest judgement, the newest first."""
    with read_scope(web.engine) as session:
        results, following = facts.list_results(session, finding=finding, since=since, limit=limit, cursor=cursor)
    return Page(items=[ResultOut.model_validate(result) for result in results], next_cursor=cursor_out(following))
