from __future__ import annotations

import os
import time
from collections.abc import Iterator

import numpy as np
import psutil
import pytest

from pacs_node.decoding import Collapsed, DecodingPool, TookTooLong, result_of


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
