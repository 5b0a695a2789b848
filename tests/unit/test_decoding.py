from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from pacs_node import decoding
from pacs_node.decoding import Collapsed, DecodingPool, PoolDown, TookTooLong, result_of


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodingPool]:
    made = DecodingPool(processes=1, timeout_s=2, memory_mb=1536)
    result_of(made.submit(os.getpid))  # started: the limits below measure the calls, not the imports
    yield made
    made.close()


def eat_memory() -> int:
    return int(np.ones(400_000_000).sum())  # 3.2 GB


def test_result_comes_back(pool: DecodingPool) -> None:
    assert result_of(pool.submit(max, 1, 2)) == 2


def test_what_the_function_raises_comes_back(pool: DecodingPool) -> None:
    with pytest.raises(ZeroDivisionError):
        result_of(pool.submit(divmod, 1, 0))


def test_call_over_its_time_is_killed_and_the_next_one_served(pool: DecodingPool) -> None:
    with pytest.raises(TookTooLong):
        result_of(pool.submit(time.sleep, 60))
    assert result_of(pool.submit(max, 1, 2, 3)) == 3


def test_process_that_dies_costs_its_call_only(pool: DecodingPool) -> None:
    with pytest.raises(Collapsed):
        result_of(pool.submit(os._exit, 1))
    assert result_of(pool.submit(max, 4, 5)) == 5


def test_memory_over_the_limit_is_refused(pool: DecodingPool) -> None:
    with pytest.raises(MemoryError):
        result_of(pool.submit(eat_memory))


def test_closed_pool_leaves_no_process() -> None:
    made = DecodingPool(processes=1, timeout_s=30, memory_mb=1536)
    pid = result_of(made.submit(os.getpid))
    made.close()
    assert not psutil.pid_exists(pid)


def test_processes_that_die_idle_are_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel ends them when memory is short: nobody calls at that moment, and the next calls are served."""
    monkeypatch.setattr(decoding, "RESTART_S", 0.5)
    made = DecodingPool(processes=1, timeout_s=30, memory_mb=1536)
    psutil.Process(result_of(made.submit(os.getpid))).kill()
    time.sleep(1)
    assert served(made) == 3
    made.close()


def test_processes_that_fail_at_their_start_are_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "RESTART_S", 0.5)
    made = DecodingPool(processes=1, timeout_s=30, memory_mb=1536, prepare=partial(fail_once, str(tmp_path / "failed")))
    with pytest.raises(PoolDown):
        result_of(made.submit(max, 1, 2))
    assert (tmp_path / "failed").exists()
    assert served(made) == 3
    made.close()


def test_processes_are_not_started_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "RESTART_S", 1000)
    made = DecodingPool(processes=1, timeout_s=30, memory_mb=1536, prepare=partial(divmod, 1, 0))
    with pytest.raises(PoolDown):
        result_of(made.submit(max, 1, 2))
    decoding_starts = made._started_at
    with pytest.raises(PoolDown):
        made.submit(max, 1, 2)
    assert made._started_at == decoding_starts
    made.close()


def test_processes_that_the_machine_does_not_give_are_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory, or of process numbers, when the pool starts."""
    monkeypatch.setattr(decoding, "RESTART_S", 0.0)
    made = DecodingPool(processes=1, timeout_s=30, memory_mb=1536)
    with monkeypatch.context() as broken:
        broken.setattr("multiprocessing.popen_spawn_posix.Popen._launch", no_process)
        with pytest.raises(PoolDown):
            made.submit(max, 1, 2)
    assert result_of(made.submit(max, 1, 3)) == 3
    made.close()


def test_a_closed_pool_starts_nothing() -> None:
    made = DecodingPool(processes=1, timeout_s=30, memory_mb=1536)
    made.close()
    with pytest.raises(PoolDown):
        made.submit(max, 1, 2)


def served(pool: DecodingPool) -> int:
    """Ask until there is an answer."""
    for _ in range(100):
        try:
            return int(result_of(pool.submit(max, 1, 3)))
        except PoolDown:
            time.sleep(0.3)
    raise AssertionError("the processes never came back")


def fail_once(mark: str) -> None:
    if not Path(mark).exists():
        Path(mark).touch()
        raise MemoryError


def no_process(*_: object) -> None:
    raise BlockingIOError(11, "Resource temporarily unavailable")
