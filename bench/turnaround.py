"""(b) How long a PACS waits: from the last C-STORE success of a study to its report stored, at 1,800 images an hour."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset

from bench.corpus import LARGE, make_files
from bench.table import Bar, Table, percentile
from tests.acceptance.node import Node
from tests.acceptance.peers import Modality, RecordingPacs

IMAGES_PER_HOUR = 1800
GRACE_S = 1.0
"""What may come on top of `settle_s`."""


def run(folder: Path, *, is_quick: bool, rounds: int) -> Table:
    """Send one-image studies at an even pace to a node as shipped."""
    count = 12 if is_quick else 20 * rounds
    studies = [dcmread(path) for path in make_files(LARGE, count + 1, folder / "files", first_seed=5001)]
    with (
        RecordingPacs(folder / "pacs") as pacs,
        Node(folder / "node", base={}, destinations=[pacs.destination()]) as node,
    ):
        settle_s = 2.0  # as shipped
        sender = Modality(node=node)
        sender.send(studies[:1])  # the first pass of a network is slower; a node runs for months
        pacs.wait_report(studies[0].StudyInstanceUID)
        _send_evenly(sender, studies[1:])
        waits_s = [_wait_s(pacs, sender, dataset) for dataset in studies[1:]]
        stopped = node.stop()
    half, most = percentile(waits_s, 50), percentile(waits_s, 95)
    return Table(
        title="(b) Turnaround: seconds from C-STORE success to report stored by the PACS",
        head=("", "p50", "p95", "max", "without settling, p50"),
        rows=(
            (
                f"{IMAGES_PER_HOUR} images/h, {LARGE.size_mb:.0f} MB",
                f"{half:.2f}",
                f"{most:.2f}",
                f"{max(waits_s):.2f}",
                f"{half - settle_s:.2f}",
            ),
        ),
        notes=(
            f"{count} one-image studies, an association each, to a node as shipped (settle_s = {settle_s:g}).",
            f"The node ended with {stopped} after its drain.",
        ),
        bars=(
            Bar(
                text=f"p50 {half:.2f} s <= settle_s + {GRACE_S:g} s = {settle_s + GRACE_S:g} s",
                is_met=half <= settle_s + GRACE_S,
            ),
        ),
    )


def _send_evenly(sender: Modality, studies: Sequence[Dataset]) -> None:
    start = time.monotonic()
    threads = []
    for number, dataset in enumerate(studies):
        time.sleep(max(0.0, start + number * 3600 / IMAGES_PER_HOUR - time.monotonic()))
        thread = threading.Thread(target=sender.send, args=([dataset],))
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join()


def _wait_s(pacs: RecordingPacs, sender: Modality, dataset: Dataset) -> float:
    pacs.wait_report(dataset.StudyInstanceUID)
    return pacs.reports()[dataset.StudyInstanceUID][0].at - sender.acknowledged[dataset.SOPInstanceUID]
