"""Results: what the model said, image by image, for scripts."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter

from db import facts
from db.engine import read_scope
from pacs_node.web.access import Role, requires
from pacs_node.web.context import WebContext
from pacs_node.web.listing import Listed, page_of
from pacs_node.web.problems import documented
from pacs_node.web.query import Code, Probability, Version
from pacs_node.web.routes import API
from pacs_node.web.schemas import Page, ResultOut

router = APIRouter(
    prefix=f"{API}/results",
    tags=["results"],
    responses=documented(404, 422, 503),
    dependencies=[requires(Role.RADIOLOGIST, Role.ADMIN, Role.SERVICE)],
)


@router.get("", summary="List results")
def list_results(
    web: WebContext,
    asked: Listed,
    finding: Code | None = None,
    probability_from: Probability | None = None,
    probability_to: Probability | None = None,
    model_version: Version | None = None,
) -> Page[ResultOut]:
    """Return one page of the predictions of every image's newest judgement, the newest first."""
    with read_scope(web.engine) as session:
        found = facts.list_results(
            session,
            finding=finding,
            probability_from=probability_from,
            probability_to=probability_to,
            model_version=model_version,
            **asdict(asked),
        )
    return page_of(ResultOut, found)
