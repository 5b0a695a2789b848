"""The batcher: shared runs, bounds, cancelled callers, faults and the end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

import pytest

from models.batcher import Batcher, Busy, Closed

SOON_S = 10.0
"""Nothing here takes so long; a test that fails must end."""


class Oven:
    """Doubles numbers, a batch at a time, as soon as its door is open; remembers the batches."""

    def __init__(self) -> None:
        self.door, self.batches = threading.Event(), list[list[int]]()
        self.is_baking = threading.Event()

    def bake(self, numbers: Sequence[int]) -> list[int]:
        self.batches.append(list(numbers))
        self.is_baking.set()
        assert self.door.wait(SOON_S)
        if -1 in numbers:
            raise ValueError("a negative loaf")
        return [2 * number for number in numbers]


@pytest.fixture
def oven() -> Iterator[Oven]:
    oven = Oven()
    yield oven
    oven.door.set()


def make_batcher(oven: Oven, **bounds: float) -> Batcher[int, int]:
    chosen = {"max_batch": 4, "max_wait_s": 0.0, "max_waiting": 8} | bounds
    return Batcher(oven.bake, **chosen)  # type: ignore[arg-type]


def occupied(oven: Oven, **bounds: float) -> tuple[Batcher[int, int], Future[int]]:
    """Return a batcher whose thread is in its first run, which is item 0 alone."""
    batcher = make_batcher(oven, **bounds)
    first = batcher.submit(0)
    assert oven.is_baking.wait(SOON_S)
    return batcher, first


def test_callers_who_wait_share_the_next_run(oven: Oven) -> None:
    batcher, first = occupied(oven)
    others = [batcher.submit(number) for number in range(1, 7)]
    oven.door.set()
    assert [future.result(SOON_S) for future in (first, *others)] == [0, 2, 4, 6, 8, 10, 12]
    assert oven.batches == [[0], [1, 2, 3, 4], [5, 6]], "in order, and never more than max_batch"
    batcher.close()


def test_each_caller_gets_its_own_result_when_many_come_at_once() -> None:
    oven = Oven()
    oven.door.set()
    batcher = make_batcher(oven, max_waiting=500, max_batch=16)
    with ThreadPoolExecutor(16) as callers:
        asked = list(callers.map(lambda number: (number, batcher.submit(number)), range(400)))
    assert all(future.result(SOON_S) == 2 * number for number, future in asked)
    batcher.close()


def test_batch_starts_when_it_is_full_and_not_before_its_time(oven: Oven) -> None:
    oven.door.set()
    batcher = make_batcher(oven, max_wait_s=SOON_S, max_batch=3)
    start = time.monotonic()
    asked = [batcher.submit(number) for number in range(3)]
    assert [future.result(SOON_S) for future in asked] == [0, 2, 4]
    assert time.monotonic() - start < SOON_S / 2
    assert oven.batches == [[0, 1, 2]]
    batcher.close()


def test_lone_caller_waits_no_longer_than_max_wait(oven: Oven) -> None:
    oven.door.set()
    batcher = make_batcher(oven, max_wait_s=0.05)
    assert batcher.submit(21).result(SOON_S) == 42
    batcher.close()


def test_one_more_than_may_wait_is_refused_and_the_others_are_served(oven: Oven) -> None:
    batcher, first = occupied(oven, max_waiting=2)
    asked = [batcher.submit(1), batcher.submit(2)]
    with pytest.raises(Busy):
        batcher.submit(3)
    oven.door.set()
    assert [future.result(SOON_S) for future in (first, *asked)] == [0, 2, 4]
    assert batcher.submit(4).result(SOON_S) == 8, "there is room again"
    batcher.close()


def test_cancelled_caller_is_not_run_and_gives_its_place_back(oven: Oven) -> None:
    batcher, first = occupied(oven, max_waiting=2)
    gone, stays = batcher.submit(1), batcher.submit(2)
    assert gone.cancel()
    late = batcher.submit(3)
    oven.door.set()
    assert [future.result(SOON_S) for future in (first, stays, late)] == [0, 4, 6]
    assert 1 not in [number for batch in oven.batches for number in batch]
    with pytest.raises(CancelledError):
        gone.result()
    batcher.close()


def test_batch_of_cancelled_callers_alone_is_not_run(oven: Oven) -> None:
    batcher, first = occupied(oven)
    assert batcher.submit(1).cancel()
    oven.door.set()
    assert first.result(SOON_S) == 0
    assert batcher.submit(2).result(SOON_S) == 4
    assert oven.batches == [[0], [2]]
    batcher.close()


def test_awaiting_caller_that_is_cancelled_leaves_the_others_alone(oven: Oven) -> None:
    batcher, first = occupied(oven)

    async def ask() -> int:
        gone = asyncio.ensure_future(asyncio.wrap_future(batcher.submit(1)))
        stays = asyncio.wrap_future(batcher.submit(2))
        gone.cancel()
        await asyncio.wait([gone])
        oven.door.set()
        return await stays

    assert asyncio.run(ask()) == 4
    assert first.result(SOON_S) == 0
    assert oven.batches == [[0], [2]]
    batcher.close()


def test_faulty_item_fails_alone(oven: Oven) -> None:
    batcher, first = occupied(oven)
    good, bad, too = batcher.submit(1), batcher.submit(-1), batcher.submit(2)
    oven.door.set()
    assert [future.result(SOON_S) for future in (first, good, too)] == [0, 2, 4]
    with pytest.raises(ValueError, match="negative loaf"):
        bad.result(SOON_S)
    assert batcher.submit(3).result(SOON_S) == 6, "the thread goes on"
    batcher.close()


def test_run_that_forgets_an_item_is_an_error_and_no_one_waits_for_ever() -> None:
    batcher: Batcher[int, int] = Batcher(lambda numbers: [], max_batch=4, max_wait_s=0, max_waiting=4)
    with pytest.raises(ValueError, match="zip"):
        batcher.submit(1).result(SOON_S)
    batcher.close()


def test_close_finishes_what_runs_and_tells_the_rest(oven: Oven) -> None:
    batcher, first = occupied(oven)
    waits, gone = batcher.submit(1), batcher.submit(2)
    gone.cancel()
    closing = threading.Thread(target=batcher.close)
    closing.start()
    with pytest.raises(Closed):
        waits.result(SOON_S)
    oven.door.set()
    closing.join(SOON_S)
    assert not closing.is_alive()
    assert first.result(SOON_S) == 0, "what ran was finished"
    assert oven.batches == [[0]]
    with pytest.raises(Closed):
        batcher.submit(3)
    batcher.close()  # again


def test_idle_batcher_closes_at_once() -> None:
    batcher: Batcher[int, int] = Batcher(list, max_batch=4, max_wait_s=0, max_waiting=4)
    batcher.close(SOON_S)
    assert not batcher._thread.is_alive()
