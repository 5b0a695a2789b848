"""Server-sent events: pages hear of new and changed studies as they happen (HTML Living Standard, 9.2)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, HTTPException, Request
from fastapi.responses import StreamingResponse

from pacs_node.web.access import Role, requires
from pacs_node.web.context import Web, WebContext
from pacs_node.web.feed import HEARTBEAT_S, Feed, News, TooManyListeners
from pacs_node.web.problems import documented
from pacs_node.web.routes import API

router = APIRouter(
    prefix=f"{API}/events",
    tags=["events"],
    responses=documented(422),
    dependencies=[requires(Role.RADIOLOGIST, Role.ADMIN, Role.SERVICE)],
)

LIFE_S = 60.0
"""A stream ends then and the browser opens another: who is logged out in between gets none."""
RETRY_MS = 3000
EXAMPLE = (
    "id: 2026-11-20T12:00:00+00:00_0193a1c2-6b5e-7c3a-9d2f-3b1c5a7e9f10\nevent: study\n"
    'data: {"study_id": "0193a1c2-6b5e-7c3a-9d2f-3b1c5a7e9f10", "actions": ["report_frozen"]}\n\n'
)
STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"example": EXAMPLE}}}}
LastEventId = Annotated[str | None, Header(max_length=200, description="A browser sends it when it comes again.")]


@router.get("", summary="Hear of new and changed studies", response_class=StreamingResponse, responses=STREAM)
async def listen(web: WebContext, request: Request, last_event_id: LastEventId = None) -> StreamingResponse:
    """Stream `study`, `delivery` and `review` events with the study's id, and a `heartbeat` while nothing happens.

    `reset` says that news were lost: ask for everything. An event may come twice.
    """
    feed: Feed = request.app.state.feed
    missed = await asyncio.to_thread(feed.missed, last_event_id) if last_event_id else []
    stream = _stream(web, feed, missed)
    try:
        first = await anext(stream)
    except TooManyListeners:
        raise HTTPException(503, "Too many pages listen to this server; the list is still there.") from None
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_after(first, stream), media_type="text/event-stream", headers=headers)


async def _after(first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    yield first
    async for more in rest:
        yield more


async def _stream(web: Web, feed: Feed, missed: list[News] | None) -> AsyncIterator[str]:
    ends_at = time.monotonic() + LIFE_S
    async with feed.listen(web.caller.actor) as waiting:
        yield f"retry: {RETRY_MS}\n\n"
        for news in _told(web, missed):
            yield news
        while time.monotonic() < ends_at:
            try:
                news_or_loss = await asyncio.wait_for(waiting.get(), HEARTBEAT_S)
            except TimeoutError:
                yield "event: heartbeat\ndata: {}\n\n"
                continue
            for text in _told(web, None if news_or_loss is None else [news_or_loss]):
                yield text


def _told(web: Web, found: list[News] | None) -> list[str]:
    """Return the events as they are written, of the studies that the caller may see."""
    if found is None:
        return ["event: reset\ndata: {}\n\n"]
    visible = web.caller.visible
    return [_written(news) for news in found if visible is None or visible.covers(news.origin)]


def _written(news: News) -> str:
    data = {"study_id": str(news.study_id), "actions": news.actions, "at": news.at.isoformat()}
    return f"id: {news.event_id}\nevent: {news.kind}\ndata: {json.dumps(data)}\n\n"
