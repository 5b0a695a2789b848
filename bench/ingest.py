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
from bench.table import Bar, Table, spread
from tests.acceptance.node import until
from tests.acceptance.peers import no_delay, program

ASSOCIATIONS = (1, 4)
LEAST_RATIO = 0.6
"""To Orthanc, with four associations."""
Key = tuple[str, str, int]
"""Receiver, kind of image, associations."""


def run(folder: Path, *, is_quick: bool, rounds: int) -> Table:
    """Alternate the receivers, each fresh, and compare medians."""
    counts = {SMALL: 120 if is_quick else 400, LARGE: 16 if is_quick else 48}
    files = {kind: make_files(kind, count, folder / kind.name) for kind, count in counts.items()}
    speeds: dict[Key, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for kind in (SMALL, LARGE):
            for associations in ASSOCIATIONS:
                for name in RECEIVERS:
                    speed = _measure(name, files[kind], associations, folder / "receiver")
                    speeds[name, kind.name, associations].append(speed)
    return _table(speeds, counts, rounds)


def _measure(name: str, files: Sequence[Path], associations: int, folder: Path) -> float:
    """Return the images per second of one fresh receiver; every image is counted."""
    shutil.rmtree(folder, ignore_errors=True)
    receiver = RECEIVERS[name](folder)
    try:
        duration_s = send(receiver, files, associations)
        until(lambda: receiver.count() >= len(files), timeout_s=10, what=f"{name} to hold all {len(files)} images")
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
            "node: its listeners as shipped, fsync of file and folder, rows, job, audit, commit before the success.",
            "Orthanc: defaults. storescp: --fork, no fsync.",
        ),
        bars=tuple(bars),
    )
