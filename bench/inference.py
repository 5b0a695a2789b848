"""(c) How fast stored files become recorded predictions: the worker against the usual chain, on the same files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from statistics import median

from bench.corpus import LARGE, SMALL, Kind, make_files
from bench.ingest import send
from bench.receivers import NodeListeners
from bench.table import Bar, Table, note, spread
from tests.acceptance.node import ROOT, Node, until

LEAST_RATIO = 3.0
"""On a CPU, at the size of a real radiograph."""


def run(folder: Path, *, is_quick: bool, rounds: int) -> Table:
    """Alternate both on large radiographs (the bar), then on small ones."""
    count = 24 if is_quick else 64
    speeds = {kind: _compare(kind, count, folder / kind.name, rounds) for kind in (LARGE, SMALL)}
    ratios = {kind: median(node) / median(usual) for kind, (node, usual) in speeds.items()}
    return Table(
        title="(c) Judging: images/s from stored files to recorded predictions, median (min-max)",
        head=("", "node", "usual chain", "node/usual"),
        rows=tuple(
            (f"{kind.size_mb:.2f} MB", spread(node, 1), spread(usual, 1), f"{ratios[kind]:.2f}x")
            for kind, (node, usual) in speeds.items()
        ),
        notes=(
            f"Median of {rounds} alternated runs of {count} distinct images; start and first batch not counted.",
            "node: one worker as shipped, predictions, warnings, job and audit rows committed.",
            "usual chain: pydicom, MONAI, torchvision ResNet50, eager fp32, batch 1; nothing recorded.",
            "Of the usual chain the better of two runs counts: threads that spin while they wait, or sleep.",
        ),
        bars=(
            Bar(
                text=f"{LARGE.size_mb:.0f} MB: {ratios[LARGE]:.2f}x the usual chain (>= {LEAST_RATIO:g}x on a CPU)",
                is_met=ratios[LARGE] >= LEAST_RATIO,
            ),
        ),
    )


def _compare(kind: Kind, count: int, folder: Path, rounds: int) -> tuple[list[float], list[float]]:
    files = make_files(kind, count, folder / "files", first_seed=9001)
    listeners = NodeListeners(folder / "node")
    send(listeners, files, 2)
    until(lambda: listeners.count() >= count, timeout_s=30, what="the images to be stored")
    listeners.stop()
    node = listeners.node
    stored = [str(node.data_dir / "store" / row["path"]) for row in node.rows("SELECT path FROM instances")]
    received = shutil.copy2(node.database, folder / "received.sqlite")
    speeds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        shutil.copy2(received, node.database)
        speeds[0].append(_node_speed(node, count))
        speeds[1].append(_usual_speed(stored))
        note(f"{kind.name}: node {speeds[0][-1]:.1f}, usual chain {speeds[1][-1]:.1f} images/s")
    return speeds


def _node_speed(node: Node, count: int) -> float:
    """Let one worker judge everything; return images/s after its first batch."""
    worker = node.popen("work")
    try:
        until(lambda: _judged(node) >= count, timeout_s=300, what="the worker")
    finally:
        worker.terminate()
        worker.wait(60)
    times = sorted(_instant(row["created_at"]) for row in node.rows("SELECT created_at FROM predictions"))
    of_first_batch = times.count(times[0])
    return (count - of_first_batch) / (times[-1] - times[0]).total_seconds()


def _judged(node: Node) -> int:
    return node.count("SELECT count(*) FROM predictions")


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _usual_speed(files: Sequence[str]) -> float:
    """Return the images/s of the usual chain at its best: with threads that spin while they wait, or sleep.

    Spinning (the default) is quicker on an idle machine and collapses on a busy one; that is not what is compared here.
    """
    return max(_run_usual(files, {}), _run_usual(files, {"OMP_WAIT_POLICY": "PASSIVE"}))


def _run_usual(files: Sequence[str], environment: dict[str, str]) -> float:
    command = [sys.executable, "-m", "bench.usual_chain", *files]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=600, check=True
    )
    return float(done.stdout.split()[-1])
