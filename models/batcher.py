"""Many waiting callers, one forward pass: gathers single items into batches, in one thread, up to a bound.

Takes items from any thread; gives each caller a future with its own result. Hides the thread and the queue. Knows
neither what an item is nor what is done with a batch, so it serves a network and a database alike.

While one batch runs the next one gathers, so that a busy machine forms large batches by itself and an idle one answers
a lone caller at once: the oldest item waits at most `max_wait_s` for company.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


class Busy(Exception):
    """As many items wait as may wait; the caller should come again later."""


class Closed(Exception):
    """The batcher takes no more items, and what waited when it was closed is not done."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Waiting(Generic[Item, Result]):
    item: Item
    since: float
    future: Future[Result] = field(default_factory=Future)


class Batcher(Generic[Item, Result]):
    """One thread that runs batches of what callers hand in.

    Parameters
    ----------
    run
        Takes 1 to `max_batch` items and returns one result for each, in order. Called in one thread at a time. If it
        raises for several items, each is run again by itself, so that nobody fails for another's item.
    max_wait_s
        The first item of a batch waits at most so long for others, in seconds.
    max_waiting
        Items that may wait beside those being run; one more is refused.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Result]],
        *,
        max_batch: int,
        max_wait_s: float,
        max_waiting: int,
        name: str = "batcher",
    ) -> None:
        self._run = run
        self._max_batch, self._max_wait_s, self._max_waiting = max_batch, max_wait_s, max_waiting
        self._waiting: deque[_Waiting[Item, Result]] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def submit(self, item: Item) -> Future[Result]:
        """Hand in an item; its future may be cancelled as long as it waits.

        Raises
        ------
        Busy
            `max_waiting` items wait already.
        Closed
            The batcher was closed.
        """
        waiting: _Waiting[Item, Result] = _Waiting(item=item, since=time.monotonic())
        with self._changed:
            if self._is_closed:
                raise Closed("it was closed")
            if len(self._waiting) >= self._max_waiting:
                self._waiting = deque(one for one in self._waiting if not one.future.cancelled())
            if len(self._waiting) >= self._max_waiting:
                raise Busy(f"{self._max_waiting} wait already")
            self._waiting.append(waiting)
            if not self._thread.ident:  # not before there is work
                self._thread.start()
            self._changed.notify()
        return waiting.future

    def close(self, timeout_s: float | None = None) -> None:
        """Finish the batch that runs, tell everybody else `Closed`, and end the thread; twice is the same as once."""
        with self._changed:
            self._is_closed = True
            refused, self._waiting = self._waiting, deque()
            self._changed.notify()
        for waiting in refused:
            if waiting.future.set_running_or_notify_cancel():
                waiting.future.set_exception(Closed("it was closed"))
        if self._thread.ident:
            self._thread.join(timeout_s)

    def _work(self) -> None:
        while batch := self._next_batch():
            self._answer(batch)

    def _next_batch(self) -> list[_Waiting[Item, Result]]:
        """Wait for company and return those who still want an answer; nobody once it is closed."""
        while True:
            with self._changed:
                while not self._is_closed and (left_s := self._left_s()) != 0:
                    self._changed.wait(left_s)
                if self._is_closed:
                    return []
                taken = [self._waiting.popleft() for _ in range(min(self._max_batch, len(self._waiting)))]
            wanted = [waiting for waiting in taken if waiting.future.set_running_or_notify_cancel()]
            if wanted:
                return wanted

    def _left_s(self) -> float | None:
        """Return how long the batch may still gather: None without end, 0 not at all."""
        if not self._waiting:
            return None
        if len(self._waiting) >= self._max_batch:
            return 0
        return max(0.0, self._waiting[0].since + self._max_wait_s - time.monotonic())

    def _answer(self, batch: list[_Waiting[Item, Result]]) -> None:
        try:
            results = self._run([waiting.item for waiting in batch])
            answered = list(zip(batch, results, strict=True))
        except Exception as error:  # noqa: BLE001 - it is for the callers, in their threads; this one goes on
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            logger.warning(
                "A batch failed; its items are run one by one", extra={"action": "batch_split", "items": len(batch)}
            )
            for waiting in batch:
                self._answer([waiting])
            return
        for waiting, result in answered:
            waiting.future.set_result(result)
