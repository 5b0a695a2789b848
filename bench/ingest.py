"""(a) How fast images are received: this node against Orthanc (defaults) and dcmtk storescp, sent by dcmtk storescu."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from bench.corpus import LARGE, SMALL, Kind, make_files
from bench.receivers import RECEIVERS, Receiver
from bench.table import Bar, Table, note, spread
from tests.acceptance.node import until
from tests.acceptance.peers import no_delay, program

ASSOCIATIONS = (1, 4)
LEAST_RATIO = 0.6
"""To Orthanc, with four associations."""
WARM_UP = 100
"""Small images that every fresh receiver gets before the clock starts: folders made, statements compiled."""
Key = tuple[str, str, int]
"""Receiver, kind of image, associations."""


def run(folder: Path, *, is_quick: bool, rounds: int) -> Table:
    """Alternate the receivers, each fresh, and compare medians."""
    counts = {SMALL: 120 if is_quick else 400, LARGE: 16 if is_quick else 48}
    files = {kind: make_files(kind, count, folder / kind.name) for kind, count in counts.items()}
    warm_up = make_files(SMALL, WARM_UP, folder / "warm-up", first_seed=100_001)
    speeds: dict[Key, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for kind in (SMALL, LARGE):
            for associations in ASSOCIATIONS:
                for name in RECEIVERS:
                    speed = _measure(name, warm_up, files[kind], associations, folder / "receiver")
                    note(f"{kind.name}, {associations} storescu: {name} {speed:.0f} images/s")
                    speeds[name, kind.name, associations].append(speed)
    return _table(speeds, counts, rounds)


def _measure(name: str, warm_up: Sequence[Path], files: Sequence[Path], associations: int, folder: Path) -> float:
    """Return the images per second of one fresh receiver; every image is counted."""
    shutil.rmtree(folder, ignore_errors=True)
    receiver = RECEIVERS[name](folder)
    try:
        send(receiver, warm_up, associations)
        duration_s = send(receiver, files, associations)
        total = len(warm_up) + len(files)
        until(lambda: receiver.count() == total, timeout_s=10, what=f"{name} to hold all {total} images")
    finally:
        receiver.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return len(files) / duration_s


def send(receiver: Receiver, files: Sequence[Path], associations: int) -> float:
    """Return the seconds from the start of the first storescu to the end of the last."""
    command = [program("storescu") or "storescu", "-aec", receiver.ae_title, "127.0.0.1", str(receiver.port)]
    start = time.perf_counter()
    senders = [
        subprocess.Popen([*command, *map(str, files[i::associations])], env=no_delay(), stderr=subprocess.PIPE)
        for i in range(associations)
    ]
    for sender in senders:
        _, complaint = sender.communicate(timeout=300)
        if sender.returncode != 0:
            raise AssertionError(f"storescu to {receiver.ae_title}: {complaint.decode(errors='replace')[-500:]}")
    return time.perf_counter() - start


def _table(speeds: dict[Key, list[float]], counts: dict[Kind, int], rounds: int) -> Table:
    rows, bars = [], []
    for kind in (SMALL, LARGE):
        for associations in ASSOCIATIONS:
            by_name = {name: speeds[name, kind.name, associations] for name in RECEIVERS}
            ratio = median(by_name["node"]) / median(by_name["Orthanc"])
            rows.append(
                (
                    f"{kind.size_mb:.2f} MB, {associations} storescu",
                    *(spread(by_name[name]) for name in RECEIVERS),
                    f"{median(by_name['node']) * kind.size_mb:.0f}",
                    f"{ratio:.2f}x",
                    f"{median(by_name['node']) / median(by_name['storescp']):.2f}x",
                )
            )
            if associations == max(ASSOCIATIONS):
                text = f"{kind.size_mb:.2f} MB, {associations} associations: {ratio:.2f}x Orthanc (>= {LEAST_RATIO}x)"
                bars.append(Bar(text=text, is_met=ratio >= LEAST_RATIO))
    return Table(
        title="(a) Receiving: images/s, median (min-max)",
        head=("", *RECEIVERS, "node MB/s", "node/Orthanc", "node/storescp"),
        rows=tuple(rows),
        notes=(
            f"Median of {rounds} alternated runs of {counts[SMALL]} / {counts[LARGE]} distinct images; TCP_NODELAY=1.",
            f"Every receiver fresh, with {WARM_UP} images before the clock.",
            "node: its listeners as shipped, fsync of file and folder, rows, job, audit, commit before the success.",
            "Orthanc: defaults. storescp: --fork, no fsync.",
        ),
        bars=tuple(bars),
    )
