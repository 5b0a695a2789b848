"""Model versions in the books: which answers, letting another one answer, and taking back what one said."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Path

from db import facts
from db.engine import read_scope
from db.facts.recalls import Model
from db.tables import ModelState
from models.card import NAME, VERSION
from models.errors import ModelError, UnknownModel
from pacs_node import rollout
from pacs_node.errors import ConfigError
from pacs_node.recall import Order, noting_destinations, recall_model, sums_of
from pacs_node.web.access import Role, require_password, requires
from pacs_node.web.admin_schemas import ActivationOut, ModelVersionOut, NewRecall, NewRollback, RecallOut
from pacs_node.web.context import Web, WebContext
from pacs_node.web.problems import documented
from pacs_node.web.routes import API
from pacs_node.web.schemas import ModelName, Page

router = APIRouter(
    prefix=f"{API}/models",
    tags=["models"],
    responses=documented(422),
    dependencies=[requires(Role.RADIOLOGIST, Role.ADMIN, Role.SERVICE)],
)

Name = Annotated[str, Path(pattern=f"^{NAME}$", examples=["chest-pneumonia"])]
Version = Annotated[str, Path(max_length=32, pattern=f"^{VERSION}$", examples=["0.2.0"])]
CHANGING: dict[str, Any] = {"dependencies": [requires(Role.ADMIN)], "responses": documented(404, 409)}
SPEAKING: dict[str, Any] = CHANGING | {"dependencies": [requires(Role.ADMIN, password=True)]}


@router.get("", summary="List model versions")
def list_models(web: WebContext, state: ModelState | None = None) -> Page[ModelVersionOut]:
    """Return every version in the order of its adding; there are few, so they stand on one page."""
    with read_scope(web.engine) as session:
        versions = facts.list_model_versions(session)
    shown = [version for version in versions if state is None or version.state is state]
    return Page(items=[ModelVersionOut.model_validate(version) for version in shown], next_cursor=None)


@router.get("/{name}/{version}", summary="One model version", responses=documented(404))
def get_model(web: WebContext, name: Name, version: Version) -> ModelVersionOut:
    """Return one version of the books."""
    with read_scope(web.engine) as session:
        versions = facts.list_model_versions(session)
    found = next((known for known in versions if (known.name, known.version) == (name, version)), None)
    if found is None:
        raise HTTPException(404, f"There is no model {name} {version} in the books.")
    return ModelVersionOut.model_validate(found)


@router.post("/{name}/{version}/activate", summary="Let a version answer", **SPEAKING)
def activate_version(web: WebContext, name: Name, version: Version) -> ActivationOut:
    """Let a version answer from now on, as `pacs-node models activate` does; a recall of it is lifted. Audited.

    404 for a version in no model folder; 409 where its weights do not load or are not its card's.
    """
    with _told():
        before = rollout.activate(
            web.engine, web.registry, (name, version), actor=web.caller.actor, address=web.caller.address
        )
    return _activation(web, (name, version), before)


@router.post("/rollback", summary="Let the version before answer", **SPEAKING)
def roll_back(web: WebContext, wanted: NewRollback) -> ActivationOut:
    """Return to the version that answered before, recalled ones passed over, as `pacs-node models rollback`. Audited.

    409 where no other version ever answered, or not the one in `to`.
    """
    expected = (wanted.to.name, wanted.to.version) if wanted.to else None
    with _told():
        model, before = rollout.roll_back(
            web.engine, web.registry, to=expected, actor=web.caller.actor, address=web.caller.address
        )
    return _activation(web, model, before)


def _activation(web: Web, model: Model, before: Model) -> ActivationOut:
    web.forget_card()
    return ActivationOut(
        active=ModelName(name=model[0], version=model[1]), before=ModelName(name=before[0], version=before[1])
    )


@contextmanager
def _told() -> Iterator[None]:
    """Answer what cannot be done with its reason."""
    try:
        yield
    except UnknownModel as error:
        raise HTTPException(404, f"{error}.") from error
    except (ModelError, ConfigError) as error:
        raise HTTPException(409, f"{error}.") from error


@router.post("/{name}/{version}/recall", summary="Take back what a version said", **CHANGING)
def recall_version(web: WebContext, name: Name, version: Version, wanted: NewRecall) -> RecallOut:
    """Mark, judge anew, replace and reject everything that a version said, as `pacs-node recall` does; audited.

    404 for a version that never said anything and is in no model folder; 409 while it is the one that answers. A dry
    run wants no password.
    """
    if not wanted.dry_run:
        require_password(web.caller)
    order = Order(
        model=(name, version),
        since=wanted.since,
        actor=web.caller.actor,
        address=web.caller.address,
        noting=noting_destinations(web.settings),
        is_replacing=wanted.replace,
    )
    with _told():
        studies = recall_model(web.engine, web.registry, order, dry_run=wanted.dry_run)
    return RecallOut(dry_run=wanted.dry_run, **asdict(sums_of(studies)))
