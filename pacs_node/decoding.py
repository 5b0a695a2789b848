"""Processes that may touch pixels and headers of strangers: spawned, limited in time and memory, killable.

A hostile object costs one of them at most, never its caller. They are spawned, not forked: what a fork does after CUDA
is undefined.
"""

from __future__ import annotations

import ctypes
import logging
import math
import multiprocessing
import os
import resource
import signal
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, ParamSpec, TypeVar

from pebble import ProcessExpired, ProcessFuture, ProcessPool

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
RESTART_S = 5.0
PR_SET_PDEATHSIG = 1
"""prctl(2): the kernel kills this process when its parent dies."""


class TookTooLong(Exception):
    """The process was killed: over its time limit."""


class Collapsed(Exception):
    """The process died: out of memory or a fault in a decoder."""


class PoolDown(Exception):
    """The processes cannot be started, or ended before a call had begun: no image is to blame, ask again."""


class DecodingPool:
    """Spawned processes: each call limited to `timeout_s`, each process to `memory_mb` of private memory.

    `prepare` is called in each before its first call, and not counted: on a busy machine imports alone outlast a limit,
    and a process that is killed for them is followed by one that has to import them too.

    One that dies with nothing to do, or while it starts, takes the others along; they are all started anew by the next
    call, but not more often than every `RESTART_S`.
    """

    def __init__(
        self, *, processes: int, timeout_s: float, memory_mb: int, prepare: Callable[[], object] | None = None
    ) -> None:
        self._timeout_s = timeout_s
        self._make = partial(
            ProcessPool,
            max_workers=processes,
            initializer=_prepare_process,
            initargs=(memory_mb, os.getpid(), prepare),
            context=multiprocessing.get_context("spawn"),
        )
        self._lock = threading.Lock()
        self._pool: ProcessPool | None = None
        self._keeper: threading.Thread | None = None
        self._ended = threading.Event()
        self._started_at = -RESTART_S

    def warm(self) -> ProcessFuture[int]:
        """Start the processes, so that the first image need not wait for their imports; done when one is ready.

        Raises
        ------
        PoolDown
            They cannot be started.
        """
        return self._schedule(os.getpid, (), {}, None)

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> ProcessFuture[T]:
        """Have `function` called in one of the processes.

        Raises
        ------
        PoolDown
            They cannot be started.
        """
        return self._schedule(function, args, kwargs, self._timeout_s)

    def _schedule(self, function: Any, args: Any, kwargs: Any, timeout_s: float | None) -> ProcessFuture[Any]:
        with self._lock:
            try:
                if self._pool is None or not self._pool.active:
                    self._pool = self._start()
                return self._pool.schedule(function, args=args, kwargs=kwargs, timeout=timeout_s)
            except (BrokenProcessPool, RuntimeError, OSError) as error:
                raise PoolDown("the decoding processes cannot be started") from error

    def _start(self) -> ProcessPool:
        now = time.monotonic()
        if now - self._started_at < RESTART_S:
            raise PoolDown("the decoding processes ended, and are started again in a moment")
        self._started_at = now
        if self._pool is not None:
            logger.error("The decoding processes ended and are started again", extra={"action": "decoders_restarted"})
            self._ended.set()
        pool, begun, self._ended = self._make(), Future[bool](), threading.Event()
        self._keeper = threading.Thread(target=_keep, args=(pool, begun, self._ended), name="decoders", daemon=True)
        self._keeper.start()
        begun.result()
        return pool

    def close(self) -> None:
        """End every process; calls that come later find none."""
        with self._lock:
            self._started_at = math.inf
            self._ended.set()
            if self._keeper is not None:
                self._keeper.join()


def _keep(pool: ProcessPool, begun: Future[bool], ended: threading.Event) -> None:
    """Start the processes and stay: the kernel ends them with the thread that started them."""
    try:
        begun.set_result(pool.active)
        ended.wait()
    except (BrokenProcessPool, OSError) as error:
        begun.set_exception(error)
    finally:
        pool.stop()
        pool.join(timeout=5)


def result_of(future: Any) -> Any:
    """Wait for a submitted call.

    Raises
    ------
    TookTooLong, Collapsed, PoolDown
        The process was killed or died, or the call never began; anything else is what the function itself raised.
    """
    try:
        return future.result()
    except FutureTimeout:
        raise TookTooLong("decoding was stopped at its time limit") from None
    except ProcessExpired:
        raise Collapsed("the decoding process died") from None
    except BrokenProcessPool as error:
        raise PoolDown("the decoding processes ended") from error


def _prepare_process(memory_mb: int, parent: int, prepare: Callable[[], object] | None) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    limit = memory_mb * 1024 * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")  # pydicom quotes the values that it warns about, and nothing here filters them
    logging.disable()
    import torch  # here, in the child: the caller need not have it

    import models.suitability  # noqa: F401 - what most calls need, loaded before the first of them

    torch.set_num_threads(1)
    if prepare:
        prepare()
