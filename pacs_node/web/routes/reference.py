"""/docs and /redoc: the API's reference, drawn by libraries that this node serves itself."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from pacs_node.web.access import Role, requires
from pacs_node.web.context import WebContext
from pacs_node.web.policy import REFERENCE_POLICY

router = APIRouter(include_in_schema=False, dependencies=[requires(Role.PUBLIC)])


@router.get("/docs")
def docs(request: Request, web: WebContext) -> HTMLResponse:
    """Return the reference with forms to try each call."""
    return _page(request, web, "swagger")


@router.get("/redoc")
def redoc(request: Request, web: WebContext) -> HTMLResponse:
    """Return the reference as one long text."""
    return _page(request, web, "redoc")


def _page(request: Request, web: WebContext, reader: str) -> HTMLResponse:
    return web.templates.TemplateResponse(
        request, "docs.html", {"reader": reader}, headers={"Content-Security-Policy": REFERENCE_POLICY}
    )
