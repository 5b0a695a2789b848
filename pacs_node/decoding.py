"""Processes that may touch pixels and headers of strangers: spawned, limited in time and memory, killable.

A hostile object costs one of them at most, never its caller. They are spawned, not forked: what a fork does after CUDA
is undefined.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import resource
import signal
import warnings
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, ParamSpec, TypeVar

from pebble import ProcessExpired, ProcessFuture, ProcessPool

P = ParamSpec("P")
T = TypeVar("T")
PR_SET_PDEATHSIG = 1
"""prctl(2): the kernel kills this process when its parent dies."""


class TookTooLong(Exception):
    """The process was killed: over its time limit."""


class Collapsed(Exception):
    """The process died: out of memory or a fault in a decoder."""


class DecodingPool:
    """Spawned processes: each call limited to `timeout_s`, each process to `memory_mb` of private memory.

    `prepare` is called in each before its first call, and not counted: on a busy machine imports alone outlast a limit,
    and a process that is killed for them is followed by one that has to import them too.
    """

    def __init__(
        self, *, processes: int, timeout_s: float, memory_mb: int, prepare: Callable[[], object] | None = None
    ) -> None:
        self._timeout_s = timeout_s
        self._pool = ProcessPool(
            max_workers=processes,
            initializer=_prepare_process,
            initargs=(memory_mb, os.getpid(), prepare),
            context=multiprocessing.get_context("spawn"),
        )

    def warm(self) -> ProcessFuture[int]:
        """Start the processes, so that the first image need not wait for their imports; done when one is ready."""
        return self._pool.schedule(os.getpid)

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> ProcessFuture[T]:
        return self._pool.schedule(function, args=args, kwargs=kwargs, timeout=self._timeout_s)

    def close(self) -> None:
        self._pool.stop()
        self._pool.join(timeout=5)


def result_of(future: Any) -> Any:
    """Wait for a submitted call.

    Raises
    ------
    TookTooLong, Collapsed
        The process was killed or died; anything else is what the function itself raised.
    """
    try:
        return future.result()
    except FutureTimeout:
        raise TookTooLong("decoding was stopped at its time limit") from None
    except ProcessExpired:
        raise Collapsed("the decoding process died") from None


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
