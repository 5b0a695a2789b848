"""News of studies: what happened is told once, to everyone who listens, whichever process made it."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from db.engine import Engine, db_now, read_scope, session_scope
from db.facts import list_events
from pacs_node.web import feed as feeds
from pacs_node.web.feed import Feed, News, TooManyListeners
from tests.records import add_image, judge


def receive(engine: Engine, number: int) -> UUID:
    with session_scope(engine) as session:
        now = db_now(session)
        accepted = add_image(session, number, study=f"1.2.{number}", now=now)
        judge(session, accepted.instance_id, now=now)
        return accepted.study_id


async def heard(waiting: asyncio.Queue[News | None], count: int) -> list[News | None]:
    return [await asyncio.wait_for(waiting.get(), 30) for _ in range(count)]


def test_everyone_hears_once_of_every_study(engine: Engine) -> None:
    async def listen() -> None:
        feed = Feed(engine)
        async with feed.listen("a") as one, feed.listen("b") as other:
            await asyncio.sleep(0.5)  # the first look tells from when on
            studies = [await asyncio.to_thread(receive, engine, number) for number in (1, 2)]
            for waiting in (one, other):
                found = await heard(waiting, 2)
                assert {news.study_id for news in found if news} == set(studies)
                assert all(news and news.kind == "study" and "instance_judged" in news.actions for news in found)
            await asyncio.sleep(2 * feeds.EVERY_S)
            assert one.empty(), "nothing is told twice"

    asyncio.run(listen())


def test_who_comes_back_hears_what_was_missed(sqlite_engine: Engine) -> None:
    receive(sqlite_engine, 1)
    with read_scope(sqlite_engine) as session:
        (last, *_), _ = list_events(session, limit=1)
    study_id = receive(sqlite_engine, 2)
    missed = Feed(sqlite_engine).missed(f"{last.at.isoformat()}_{last.id}")
    assert missed is not None
    assert study_id in {news.study_id for news in missed}
    assert Feed(sqlite_engine).missed("2020-01-01T00:00:00+00:00_0193a1c2-6b5e-7c3a-9d2f-3b1c5a7e9f10") is None
    assert Feed(sqlite_engine).missed("rubbish") is None


def test_slow_listener_is_told_that_news_were_lost(sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "WAITING_MAX", 1)

    async def listen() -> None:
        async with Feed(sqlite_engine).listen("a") as waiting:
            await asyncio.sleep(0.5)
            for number in (1, 2, 3):
                await asyncio.to_thread(receive, sqlite_engine, number)
            await asyncio.sleep(2 * feeds.EVERY_S)
            assert await heard(waiting, 1) == [None]

    asyncio.run(listen())


def test_streams_are_bounded(sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "STREAMS_MAX", 1)

    async def listen() -> None:
        feed = Feed(sqlite_engine)
        async with feed.listen("a"):
            with pytest.raises(TooManyListeners):
                async with feed.listen("a"):
                    raise AssertionError("a second one")
        async with feed.listen("a"):
            pass

    asyncio.run(listen())


def test_nobody_takes_every_stream(sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "STREAMS_OF_ONE", 1)

    async def listen() -> None:
        feed = Feed(sqlite_engine)
        async with feed.listen("greedy"):
            with pytest.raises(TooManyListeners):
                async with feed.listen("greedy"):
                    raise AssertionError("a second one")
            async with feed.listen("another"):
                pass

    asyncio.run(listen())
