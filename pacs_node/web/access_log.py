"""One log line per request: method, route template, status, milliseconds. Never a path, a query or an address.

An address in the browser names a study by our id, and a query may hold anything a person typed.
"""

from __future__ import annotations

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)


class AccessLog:
    """ASGI middleware; uvicorn's own access log, which shows paths and queries, stays off."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def send_seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_seen)
        finally:
            extra = {
                "action": "http",
                "method": scope["method"],
                "route": route_template(scope),
                "status": status,
                "duration_ms": round(1000 * (time.perf_counter() - started), 1),
                "request_id": scope.get("state", {}).get("request_id"),
            }
            logger.info("Request answered", extra=extra)


def route_template(scope: Scope) -> str:
    """Return the template that the request's path matched (`/studies/{study_id}`), or `unmatched`."""
    path = getattr(scope.get("route"), "path", None) or scope.get("root_path")  # of a mounted folder
    return str(path or "unmatched")
