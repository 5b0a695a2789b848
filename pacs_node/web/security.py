"""The gate before every request: who asks, from which page, how much; and what a browser may do with the answer.

A Host that is not ours is refused (DNS rebinding), as is a write that another site's page started or that lacks the
session's token (cross-site request forgery); a body is read up to a bound and for a while. Whether the caller may do
what the route does is declared on the route (`access`); what was refused, here or there, is audited here.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from db.audit import Action
from db.engine import DatabaseAway, SchemaMismatch
from pacs_node.settings.section import is_loopback
from pacs_node.settings.web import WebSettings
from pacs_node.web.access import OPEN_MOUNTS, Visitor, may_predict
from pacs_node.web.access_log import route_template
from pacs_node.web.identify import identify, is_csrf_token, nobody_at
from pacs_node.web.policy import BODY_MAX_BYTES, HEADERS, TRANSPORT_SECURITY, UPLOAD_MAX_BYTES
from pacs_node.web.problems import problem

if TYPE_CHECKING:
    from pacs_node.web.context import Web

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
REFUSALS = frozenset({400, 401, 403, 408, 413, 415, 421, 429})
"""Audited, once a minute for each caller, address, route and status: a flood of them writes a line a minute."""
FORM = "application/x-www-form-urlencoded"
FORGED = "This change was asked for by another site's page and is refused."
NO_CSRF_TOKEN = "This change lacks the page's token (X-CSRF-Token); open the page anew and try again."
STOPPING = "The node stops before this is answered; ask again in a moment."
AWAY = "The database did not answer, so nobody's login can be checked. Nothing that was received is lost."

Refusal = tuple[int, str]


class Gate:
    """ASGI middleware; the number that it gives to a request stands in its log line and in its problem."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["request_id"] = str(uuid.uuid4())
        status: int | None = None

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _set_headers(MutableHeaders(scope=message), scope)
            await send(message)

        web: Web = scope["app"].state.web
        bounded = BoundedBody(receive, web.settings.web.request_timeout_s)
        try:
            refusal, body = await self._admit(web, scope, bounded)
        except HTTPException as fault:  # a form that was read for its token; the application's handlers are further in
            refusal, body = (fault.status_code, fault.detail), bounded
        if refusal is not None:
            await problem(Request(scope), *refusal)(scope, receive, send_guarded)
        else:
            try:
                await self.app(scope, body, send_guarded)
            except asyncio.CancelledError:  # the server stops, and has waited for as long as it does
                if status is not None:
                    raise
                await problem(Request(scope), 503, STOPPING)(scope, receive, send_guarded)
        if (status in REFUSALS or "refusal" in state) and not state.get("is_noted"):
            await run_in_threadpool(_note_refusal, web, scope, status)

    async def _admit(self, web: Web, scope: Scope, receive: BoundedBody) -> tuple[Refusal | None, Receive]:
        """Find out who asks; return why not to go on, if so, and the body to go on with."""
        headers, settings = Headers(scope=scope), web.settings.web
        refusal = refusal_of(scope["method"], headers, settings)
        if refusal is not None:
            return refusal, receive
        if any(scope["path"] == path or scope["path"].startswith(f"{path}/") for path in OPEN_MOUNTS):
            return None, receive
        try:
            caller = await run_in_threadpool(identify, web, scope)
        except (DatabaseAway, SchemaMismatch):
            return (503, AWAY), receive
        scope["state"]["caller"] = caller
        receive.limit_bytes = _body_limit(scope["path"], caller, settings)
        refusal = _size_refusal(headers, receive.limit_bytes)
        if refusal is None and caller.session and scope["method"] not in SAFE_METHODS:
            return await _check_csrf(headers, caller, receive)
        return refusal, receive


def refusal_of(method: str, headers: Headers, settings: WebSettings) -> Refusal | None:
    """Return the status and the reason why a request is turned away whoever asks, or None for one that may pass."""
    host = headers.get("host", "")
    name = _name_of(host)
    if not is_loopback(name) and name not in settings.own_names:
        return 421, "This node does not answer to this name; add it to web.names, or reach it by a tunnel."
    if method not in SAFE_METHODS and not _is_same_origin(headers, host, settings):
        return 403, FORGED
    return None


def _set_headers(headers: MutableHeaders, scope: Scope) -> None:
    for name, value in HEADERS.items():
        headers.setdefault(name, value)
    if scope.get("scheme") == "https":
        headers["Strict-Transport-Security"] = TRANSPORT_SECURITY
    headers["X-Request-ID"] = scope["state"]["request_id"]


def _name_of(host: str) -> str:
    """Return the host name or address of a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_same_origin(headers: Headers, host: str, settings: WebSettings) -> bool:
    """Tell whether no other site's page sent this: browsers set one of these headers on every write, programs none.

    A page that may call us by `web.cors_origins` has to show a token: a browser's cookie does not count for it.
    """
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if origin in settings.cors_origins and headers.get("authorization") and "cookie" not in headers:
        return True
    if site is not None:
        return site in ("same-origin", "none")
    return origin is None or urlsplit(origin).netloc == host


def _body_limit(path: str, caller: Visitor, settings: WebSettings) -> int:
    return UPLOAD_MAX_BYTES.get(path, BODY_MAX_BYTES) if may_predict(caller, settings) else BODY_MAX_BYTES


def _size_refusal(headers: Headers, limit_bytes: int) -> Refusal | None:
    length = headers.get("content-length", "0")
    if not length.isdecimal() or len(length) > 18:
        return 400, "Content-Length is not a number."
    if int(length) > limit_bytes:
        return 413, f"A request holds at most {limit_bytes} bytes."
    return None


async def _check_csrf(headers: Headers, caller: Visitor, receive: BoundedBody) -> tuple[Refusal | None, Receive]:
    """Look for the token in the header, else in the form, which is then handed on as it came."""
    sent = headers.get("x-csrf-token")
    if sent is None and headers.get("content-type", "").partition(";")[0].strip() == FORM:
        body = await receive.whole()
        sent, receive_on = _form_field(body, "csrf_token"), _replay(body, receive)
    else:
        receive_on = receive
    if is_csrf_token(sent or "", caller):
        return None, receive_on
    return (403, NO_CSRF_TOKEN), receive_on


def _form_field(body: bytes, name: str) -> str | None:
    try:
        fields = parse_qs(body.decode("ascii"), keep_blank_values=True, max_num_fields=50)
    except ValueError:
        return None
    return fields[name][-1] if name in fields else None


def _replay(body: bytes, receive: Receive) -> Receive:
    is_given = False

    async def receive_again() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


class BoundedBody:
    """The body of one request: counted while it is read, and waited for so long and no longer."""

    def __init__(self, receive: Receive, timeout_s: float) -> None:
        self._receive, self._timeout_s = receive, timeout_s
        self._seen_bytes, self._is_whole = 0, False
        self._ends_at = asyncio.get_running_loop().time() + timeout_s
        self.limit_bytes = BODY_MAX_BYTES

    async def __call__(self) -> Message:
        if self._is_whole:
            return await self._receive()  # waits for the caller to go away, as long as the answer lasts
        try:
            async with asyncio.timeout_at(self._ends_at):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, f"The request did not arrive within {self._timeout_s:g} s.") from None
        self._seen_bytes += len(message.get("body", b""))
        self._is_whole = not message.get("more_body", False)
        if self._seen_bytes > self.limit_bytes:
            raise HTTPException(413, f"A request holds at most {self.limit_bytes} bytes.")
        return message

    async def whole(self) -> bytes:
        """Return all of it."""
        parts = []
        while not self._is_whole:
            parts.append((await self()).get("body", b""))
        return b"".join(parts)


def _note_refusal(web: Web, scope: Scope, status: int | None) -> None:
    """Audit that somebody was turned away: once a minute for each caller, address and route."""
    caller = scope["state"].get("caller") or nobody_at(scope)
    route = route_template(scope)
    details = {"route": route, "method": scope["method"], "status": status}
    try:
        web.of(caller).note_once((caller.actor, caller.address, route, status), Action.ACCESS_REFUSED, None, details)
    except (DatabaseAway, SchemaMismatch):
        return  # it was refused all the same, and the log has the line
