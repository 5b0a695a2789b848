"""Every error leaves as a problem document (RFC 9457), or as a page where a person reads. Never quotes what was sent.

A request that fails validation may carry a patient's name, so only the place and the rule are told, not the value.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from db.engine import DatabaseAway, NoSuchRecord, SchemaMismatch
from db.facts import CannotBeClosed, CannotBeRepeated, ForeignCursor
from pacs_node.web.access import PasswordWanted, Role, declarations
from pacs_node.web.policy import HEADERS
from pacs_node.web.render import RenderBusy, RenderRefused
from pacs_node.web.schemas import Problem

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what `responses=` of a router says about its errors: these, and those of every route behind a login."""
    return {status: _documented(status) for status in sorted({401, 403, 503, *statuses})}


def _documented(status: int) -> dict[str, Any]:
    told: dict[str, Any] = {"model": Problem, "description": HTTPStatus(status).phrase}
    if status in RETRY_AFTER_S:
        told["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return told


BARE = {404: "There is nothing at this address.", 405: "This address does not take this method."}
"""In place of a framework's bare phrase."""
PASSWORD_WANTED = (
    f"Forbidden; of type `{PasswordWanted.problem_type}` where a person has to show their password anew: "
    "`POST /api/v1/session/password`."
)
RETRY_AFTER_S = {503: "5", 429: "60"}


def install(app: FastAPI) -> None:
    """Answer every error of `app` with a problem, and say so in its OpenAPI document, with who has to show a token."""
    generate = app.openapi
    app.openapi = lambda: _with_tokens(_with_problems(generate()), app)  # type: ignore[method-assign]
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(NoSuchRecord, _on_nothing)
    app.add_exception_handler(ForeignCursor, _on_foreign_cursor)
    for refused in (CannotBeRepeated, CannotBeClosed):
        app.add_exception_handler(refused, _on_refused)
    app.add_exception_handler(DatabaseAway, _on_database_away)
    app.add_exception_handler(SchemaMismatch, _on_database_away)
    app.add_exception_handler(RenderBusy, _on_render_busy)
    app.add_exception_handler(RenderRefused, _on_render_refused)
    app.add_exception_handler(Exception, _on_bug)


def problem(
    request: Request,
    status: int,
    detail: str,
    *,
    kind: str = "about:blank",
    errors: list[dict[str, str]] | None = None,
) -> Response:
    """Return the problem as JSON, or as a page to a browser that asked for one; programs know it by its `kind`."""
    title = HTTPStatus(status).phrase
    request_id = request.scope.get("state", {}).get("request_id", "")
    headers = HEADERS | ({"Retry-After": RETRY_AFTER_S[status]} if status in RETRY_AFTER_S else {})
    if _wants_page(request):
        context = {"status": status, "title": title, "detail": detail, "request_id": request_id}
        page: Response = request.app.state.web.templates.TemplateResponse(
            request, "error.html", context, status_code=status, headers=headers
        )
        return page
    body: dict[str, Any] = {"type": kind, "title": title, "status": status, "detail": detail}
    if request_id:
        body["instance"] = f"urn:uuid:{request_id}"
    if errors:
        body["errors"] = errors
    return JSONResponse(body, status_code=status, headers=headers, media_type=MEDIA_TYPE)


def _with_problems(document: dict[str, Any]) -> dict[str, Any]:
    """FastAPI files every model under application/json."""
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    for response in [response for operation in operations for response in operation["responses"].values()]:
        content = response.get("content", {})
        if content.get("application/json", {}).get("schema", {}).get("$ref", "").endswith("/Problem"):
            content[MEDIA_TYPE] = content.pop("application/json")
    return document


def _with_tokens(document: dict[str, Any], app: FastAPI) -> dict[str, Any]:
    scheme = {"type": "http", "scheme": "bearer", "description": "From `pacs-node tokens create NAME`."}
    document["components"]["securitySchemes"] = {"token": scheme}
    declared = declarations(app)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            wanted = declared[f"{method.upper()} {path}"]
            is_public = all(Role.PUBLIC in one.roles for one in wanted)
            is_open = any(one.is_open_on_loopback or one.is_prediction for one in wanted)
            if any(one.wants_password for one in wanted):
                operation["responses"]["403"]["description"] = PASSWORD_WANTED
            operation["security"] = [] if is_public else [{"token": []}, {}] if is_open else [{"token": []}]
    return document


def _wants_page(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/api/")


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    is_bare = error.detail == HTTPStatus(error.status_code).phrase
    detail = BARE.get(error.status_code, error.detail) if is_bare else error.detail
    answer = problem(request, error.status_code, detail, kind=getattr(error, "problem_type", "about:blank"))
    answer.headers.update(error.headers or {})
    return answer


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = [{"where": ".".join(map(str, e["loc"])), "rule": str(e["msg"])} for e in error.errors()]
    return problem(request, 422, "The request does not have the form that this address takes.", errors=errors)


async def _on_nothing(request: Request, error: Exception) -> Response:
    return problem(request, 404, f"There is {error}.")  # "no study <our id>"


async def _on_foreign_cursor(request: Request, error: Exception) -> Response:
    errors = [{"where": "query.cursor", "rule": str(error)}]
    return problem(request, 422, "The request does not have the form that this address takes.", errors=errors)


async def _on_refused(request: Request, error: Exception) -> Response:
    return problem(request, 409, str(error))


async def _on_database_away(request: Request, error: Exception) -> Response:
    logger.error("A request met no usable database", extra={"action": "database_away"}, exc_info=error)
    detail = "The database did not answer. Senders are asked to keep their images and try again, so nothing is lost."
    return problem(request, 503, detail)


async def _on_render_busy(request: Request, error: Exception) -> Response:
    return problem(request, 503, "All drawing processes are busy; ask again in a moment.")


async def _on_render_refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RenderRefused)
    return problem(request, 422, f"This image cannot be drawn: {error.reason}. Its file is kept as it came.")


async def _on_bug(request: Request, error: Exception) -> Response:
    request_id = request.scope.get("state", {}).get("request_id")
    logger.error("A request met a bug", extra={"action": "web_bug", "request_id": request_id}, exc_info=error)
    return problem(
        request, 500, "The node met an error of its own; its log has the details under this request's number."
    )
