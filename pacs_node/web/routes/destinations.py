"""Destinations: is one there? For administrators; what was sent to them is `records`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, HTTPException, Path

from pacs_node.dimse.storage import echo
from pacs_node.errors import DeliveryFailed
from pacs_node.web.access import Role, requires
from pacs_node.web.admin_schemas import EchoOut
from pacs_node.web.context import WebContext
from pacs_node.web.problems import documented
from pacs_node.web.routes import API

router = APIRouter(
    prefix=f"{API}/destinations",
    tags=["destinations"],
    responses=documented(404, 422),
    dependencies=[requires(Role.ADMIN)],
)

Name = Annotated[str, Path(min_length=1, max_length=64, pattern=r"^[\x21-\x7e]+$", examples=["main"])]


@router.post("/{name}/echo", summary="Ask a destination whether it is there")
def echo_destination(web: WebContext, name: Name) -> EchoOut:
    """Send a C-ECHO (PS3.4 Annex A) and say in words what came back; 404 where it is no DICOM destination."""
    destination = next((known for known in web.settings.destinations if known.name == name), None)
    if destination is None or destination.kind != "dimse":
        raise HTTPException(404, "There is no such DICOM destination.")
    try:
        timeout_s = web.settings.delivery.connect_timeout_s
        echo(destination, calling_ae_title=web.settings.dicom.ae_title, timeout_s=timeout_s)
    except DeliveryFailed as error:
        return EchoOut(state="silent", detail=f"{error}")
    return EchoOut(state="answers", detail=f"{name} answered.")
