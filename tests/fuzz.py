"""Throw broken radiographs at every door that reads a stranger's bytes, for a bounded time: `make fuzz SECONDS=120`.

A door may refuse by the errors it names; any other error is a fault: hypothesis makes the input small and prints it.
Each round has its own seed, so that rounds differ; `--seed` repeats one.
"""

from __future__ import annotations

import argparse
import functools
import io
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pydicom
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.preprocess import UNREADABLE, ImageUnfit
from models.suitability import examine_file
from pacs_node.errors import CannotUnderstand, OutOfResources
from pacs_node.listener.header import read_header
from pacs_node.report.picture import read_picture
from pacs_node.report.source import safe_header
from pacs_node.store import data_set_offset
from tests.builders import as_bytes, make_card, make_radiograph

ROUND = 200
"""Inputs of one round."""
SYNTAXES = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")
INTERESTING = (
    b"\x00",
    b"\xff",
    b"\xff\xff\xff\xff",
    b"\xfe\xff\x00\xe0",
    b"\xfe\xff\xdd\xe0",
    b"\x1b$B",
    b"SQ\x00\x00",
)
CARD = make_card()


@functools.cache
def seeds() -> tuple[bytes, ...]:
    """Return whole radiographs of several kinds, to be broken."""
    kinds: tuple[dict[str, Any], ...] = (
        {},
        {"photometric": "MONOCHROME1"},
        {"modality": "CR"},
        {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "patient_name": "Yamada^Tarou=山田^太郎"},
    )
    return tuple(as_bytes(make_radiograph(rows=48, columns=40, seed=1, **kind)) for kind in kinds)


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """Return a radiograph with some of its bytes changed, put in, doubled or cut off; most often in its header."""
    content = bytearray(draw(st.sampled_from(seeds())))
    for _ in range(draw(st.integers(1, 6))):
        limit = draw(st.sampled_from([200, 1500, len(content)]))
        place = draw(st.integers(0, max(min(limit, len(content)) - 1, 0)))
        new = draw(st.one_of(st.sampled_from(INTERESTING), st.binary(min_size=1, max_size=8)))
        change = draw(st.sampled_from(["overwrite", "insert", "delete", "cut", "double"]))
        if change == "overwrite":
            content[place : place + len(new)] = new
        elif change == "insert":
            content[place:place] = new
        elif change == "delete":
            del content[place : place + len(new)]
        elif change == "double":
            content[place:place] = content[place : place + 64]
        else:
            del content[place:]
    return bytes(content)


def through_intake(content: bytes) -> None:
    """The header that the listener files an object under."""
    body = content[data_set_offset(content) :]
    for syntax in SYNTAXES:
        try:
            read_header(io.BytesIO(body), syntax)
        except (CannotUnderstand, OutOfResources):
            continue


def through_report(content: bytes) -> None:
    """The attributes that a report copies."""
    try:
        dataset = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True, force=True)
    except UNREADABLE:
        return
    safe_header(dataset)


def through_judging(content: bytes) -> None:
    """The pixels that a model gets, and the picture that is drawn of them."""
    with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
        Path(file.name).write_bytes(content)
        examine_file(file.name, CARD, age_policy="warn")
        try:
            read_picture(file.name)
        except ImageUnfit:
            return
        except UNREADABLE:
            return


DOORS: tuple[Callable[[bytes], None], ...] = (through_intake, through_report, through_judging)


def fuzz(door: Callable[[bytes], None], seed: int) -> None:
    """Run one round."""

    @hypothesis.seed(seed)
    @settings(max_examples=ROUND, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(broken())
    def check(content: bytes) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            door(content)

    check()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120, help="how long in all")
    parser.add_argument("--seed", type=int, default=None, help="of the first round; default: the time")
    arguments = parser.parse_args()
    seed = int(time.time()) if arguments.seed is None else arguments.seed
    end, rounds = time.monotonic() + arguments.seconds, 0
    while time.monotonic() < end:
        for door in DOORS:
            print(f"round {rounds}, seed {seed}: {door.__name__}", flush=True)
            fuzz(door, seed)
        rounds, seed = rounds + 1, seed + 1
    print(f"{rounds} rounds of {ROUND} inputs through {len(DOORS)} doors: no fault")


if __name__ == "__main__":
    main()
