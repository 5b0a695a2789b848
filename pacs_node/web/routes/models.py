"""Model versions in the books: which answers, which answered before, and taking back what one said."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, HTTPException, Path

from db import facts
from db.engine import read_scope
from db.tables import ModelState
from models.errors import UnknownModel
from pacs_node.errors import ConfigError
from pacs_node.recall import Order, noting_destinations, recall_model, sums_of
from pacs_node.web.access import Role, requires
from pacs_node.web.context import WebContext
from pacs_node.web.problems import documented
from pacs_node.web.routes import API
from pacs_node.web.schemas import ModelVersionOut, NewRecall, Page, RecallOut

router = APIRouter(
    prefix=f"{API}/models",
    tags=["models"],
    responses=documented(422),
    dependencies=[requires(Role.RADIOLOGIST, Role.ADMIN, Role.SERVICE)],
)

Name = Annotated[str, Path(examples=["chest-pneumonia"])]
Version = Annotated[str, Path(examples=["0.2.0"])]


@router.get("", summary="List model versions")
def list_models(web: WebContext, state: ModelState | None = None) -> Page[ModelVersionOut]:
    """Return every version in the order of its adding; there are few, so they stand on one page."""
    with read_scope(web.engine) as session:
        versions = facts.list_model_versions(session)
    shown = [version for version in versions if state is None or version.state is state]
    return Page(items=[ModelVersionOut.model_validate(version) for version in shown], next_cursor=None)


@router.post(
    "/{name}/{version}/recall",
    summary="Take back what a version said",
    dependencies=[requires(Role.ADMIN)],
    responses=documented(404, 409),
)
def recall_version(web: WebContext, name: Name, version: Version, wanted: NewRecall) -> RecallOut:
    """Mark, judge anew, replace and reject everything that a version said, as `pacs-node recall` does; audited.

    404 for a version that never said anything and is in no model folder; 409 while it is the one that answers.
    """
    order = Order(
        model=(name, version),
        since=wanted.since,
        actor=web.caller.actor,
        address=web.caller.address,
        noting=noting_destinations(web.settings),
        is_replacing=wanted.replace,
    )
    try:
        studies = recall_model(web.engine, web.registry, order, dry_run=wanted.dry_run)
    except UnknownModel as error:
        raise HTTPException(404, f"{error}.") from error
    except ConfigError as error:
        raise HTTPException(409, f"{error}.") from error
    return RecallOut(dry_run=wanted.dry_run, **asdict(sums_of(studies)))
