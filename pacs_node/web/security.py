"""The gate before every request: who may ask, how much, and what a browser may do with the answer.

There is no login yet, so the page is for this machine alone: a Host that is not loopback is refused (DNS rebinding), a
write that another site's page started is refused (cross-site request forgery), and a body is read up to a bound.
"""

from __future__ import annotations

import uuid
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pacs_node.settings import is_loopback
from pacs_node.web.policy import HEADERS
from pacs_node.web.problems import problem

BODY_MAX_BYTES = 65_536
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class Gate:
    """ASGI middleware; the number that it gives to a request stands in its log line and in its problem."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = str(uuid.uuid4())
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers["X-Request-ID"] = request_id
            await send(message)

        refusal = refusal_of(scope["method"], Headers(scope=scope))
        if refusal is not None:
            await problem(Request(scope), *refusal)(scope, receive, send_guarded)
            return
        await self.app(scope, _bounded(receive), send_guarded)


def refusal_of(method: str, headers: Headers) -> tuple[int, str] | None:
    """Return the status and the reason why a request is turned away, or None for one that may pass."""
    host = headers.get("host", "")
    if not is_loopback(_name_of(host)):
        return 421, "This node answers on its own machine only (localhost); reach it by a tunnel."
    if method not in SAFE_METHODS and not _is_same_origin(headers, host):
        return 403, "This change was asked for by another site's page and is refused."
    length = headers.get("content-length", "0")
    if not length.isdecimal() or len(length) > 18:
        return 400, "Content-Length is not a number."
    if int(length) > BODY_MAX_BYTES:
        return 413, f"A request holds at most {BODY_MAX_BYTES} bytes."
    return None


def _name_of(host: str) -> str:
    """Return the host name or address of a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_same_origin(headers: Headers, host: str) -> bool:
    """Tell whether no other site's page sent this: browsers set one of these headers on every write, programs none."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == host


def _bounded(receive: Receive) -> Receive:
    """A body without Content-Length is counted while it is read."""
    seen = 0

    async def receive_bounded() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > BODY_MAX_BYTES:
            raise HTTPException(413, f"A request holds at most {BODY_MAX_BYTES} bytes.")
        return message

    return receive_bounded
