"""No stranger's file holds a decoding process for long, fills its memory or kills it.

Every file of the fuzzing corpus and of the mixed set goes through the process that the worker uses, with its limits:
as it is, and with its pixels decoded although its header alone would refuse it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom
import pytest

from models.preprocess import UNREADABLE, ImageUnfit, read_radiograph
from models.suitability import examine_file
from pacs_node.decoding import DecodingPool, result_of
from tests.builders import data_folder, make_card, make_radiograph, reread, store_pixels

TIME_MAX_S = 30.0
"""What one object may cost, by the issue; the slowest took 0.5 s on a loaded core."""
MEMORY_MB = 2048
"""Private memory of the process: half of what `decode_memory_mb` allows by default."""

CARD = make_card()


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodingPool]:
    made = DecodingPool(processes=1, timeout_s=TIME_MAX_S, memory_mb=MEMORY_MB)
    made.warm().result()
    yield made
    made.close()


def peak_kb() -> int:
    """Return the largest resident memory of this process; `ru_maxrss` would count the tests' own, it outlives exec."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None
    return int(found[1])


def examined(path: str) -> tuple[bool, float, int]:
    """Return whether the image is fit, the seconds it took and the process's peak of resident memory in kB."""
    start = time.perf_counter()
    is_fit = examine_file(path, CARD, age_policy="warn").is_fit
    return is_fit, time.perf_counter() - start, peak_kb()


def decoded(path: str) -> tuple[bool, float, int]:
    """As `examined`, but decode the pixels whatever the header says of their kind."""
    start = time.perf_counter()
    try:
        read_radiograph(pydicom.dcmread(path, force=True))
        is_fit = True
    except (ImageUnfit, *UNREADABLE):
        is_fit = False
    return is_fit, time.perf_counter() - start, peak_kb()


@pytest.mark.parametrize("function", [examined, decoded])
@pytest.mark.parametrize("folder", ["hostile", "mixed"])
def test_no_file_outlives_its_limits_or_its_process(
    pool: DecodingPool, folder: str, function: Callable[[str], tuple[bool, float, int]]
) -> None:
    pids = set()
    slowest, largest = 0.0, 0
    for path in sorted(data_folder("dicom", folder).iterdir()):
        _, seconds, memory_kb = result_of(pool.submit(function, str(path)))  # TookTooLong and Collapsed fail the test
        slowest, largest = max(slowest, seconds), max(largest, memory_kb)
        pids.add(path.name)
    print(f"{folder}, {function.__name__}: {len(pids)} files, slowest {slowest:.2f} s, peak {largest / 1024:.0f} MB")
    assert slowest < TIME_MAX_S
    assert largest < MEMORY_MB * 1024


def test_largest_image_that_is_read_stays_within_the_limits(pool: DecodingPool, tmp_path: Path) -> None:
    import numpy as np

    side = 10_000  # PIXELS_MAX
    dataset = make_radiograph(rows=64, columns=64)
    store_pixels(dataset, np.arange(side * side, dtype=np.int64).reshape(side, side) // side, Rows=side, Columns=side)
    path = tmp_path / "large.dcm"
    dataset.save_as(path, enforce_file_format=True)
    is_fit, seconds, memory_kb = result_of(pool.submit(decoded, str(path)))
    print(f"largest: {seconds:.2f} s, peak {memory_kb / 1024:.0f} MB")
    assert is_fit
    assert seconds < TIME_MAX_S


def test_header_that_claims_more_than_the_memory_holds_is_refused_before_decoding() -> None:
    with pytest.raises(ImageUnfit) as unfit:
        read_radiograph(reread(make_radiograph(rows=64, columns=64, Rows=60_000, Columns=60_000)))
    assert unfit.value.code == "undecodable"
