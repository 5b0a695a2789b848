"""The node's own state, at the root: is it alive, can it work, what does it count, which model answers."""

from __future__ import annotations

from functools import lru_cache

from fastapi import APIRouter, HTTPException, Response
from prometheus_client import CONTENT_TYPE_LATEST

from models.errors import ModelError
from pacs_node.web.access import Role, requires, requires_off_loopback, requires_to_predict
from pacs_node.web.context import WebContext
from pacs_node.web.metrics import exposition
from pacs_node.web.node_schemas import Health, ModelInfo, Readiness, ReadinessCheck
from pacs_node.web.problems import documented
from pacs_node.web.readiness import check_all

router = APIRouter(tags=["node"])
FOR_MACHINES = requires_off_loopback(Role.SERVICE, Role.ADMIN)


@router.get("/health", summary="Is the web process alive?", dependencies=[requires(Role.PUBLIC)])
def health(web: WebContext) -> Health:
    """Answer without touching database or disk: for whoever restarts processes."""
    return Health(status="ok", api_version="v1", model_loaded=web.predictions.loaded is not None)


@router.get(
    "/ready",
    summary="Can the node do its work?",
    responses=documented() | {503: {"model": Readiness}},
    dependencies=[FOR_MACHINES],
)
def ready(web: WebContext, response: Response) -> Readiness:
    """Check database, store, model and queue; 503 names the one that fails."""
    checks = check_all(web)
    is_ready = all(check.is_ready for check in checks)
    response.status_code = 200 if is_ready else 503
    return Readiness(
        status="ready" if is_ready else "not ready",
        checks=[ReadinessCheck(name=check.name, ready=check.is_ready, detail=check.detail) for check in checks],
    )


@router.get(
    "/metrics",
    summary="Numbers for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}, **documented()},
    dependencies=[FOR_MACHINES],
)
def metrics(web: WebContext) -> Response:
    """Return text exposition; read from the database, without any patient attribute.

    Sums of the whole node: not for whom a group limits to a part of its studies.
    """
    if web.caller.groups and web.caller.visible is not None:
        raise HTTPException(403, "These are sums over all groups; use a token of the node, without a group.")
    return Response(exposition(web), media_type=CONTENT_TYPE_LATEST)


@router.get(
    "/model/info",
    summary="Which model answers",
    responses=documented(),
    dependencies=[requires_to_predict()],
)
def model_info(web: WebContext) -> ModelInfo:
    """Return what the active model's card says."""
    try:
        card = web.card()
    except ModelError as error:
        raise HTTPException(503, str(error)) from error
    loaded = web.predictions.loaded
    device = loaded.predictor.device if loaded else web.settings.worker.device
    return ModelInfo.of(card, _count_parameters(card.network, len(card.outputs)), device)


@lru_cache(maxsize=8)
def _count_parameters(network: str, output_count: int) -> int:
    import torch  # here: seconds and hundreds of megabytes that nothing else in this role needs

    from models.networks import make_network

    with torch.device("meta"):  # shapes without memory
        return sum(parameter.numel() for parameter in make_network(network, output_count).parameters())
