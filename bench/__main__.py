"""`python -m bench`: the node against real peers, side by side in one run. Quote the ratios, never a figure alone."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench import inference, ingest, predict, training, turnaround, worklist
from bench.table import Table
from tests.acceptance.peers import program

BENCHES: dict[str, Callable[..., Table]] = {
    "ingest": ingest.run,
    "turnaround": turnaround.run,
    "inference": inference.run,
    "training": training.run,
    "predict": predict.run,
    "worklist": worklist.run,
}
PEERS = {
    "ingest": ("storescu", "storescp", "Orthanc"),
    "turnaround": (),
    "inference": ("storescu",),
    "training": (),
    "predict": (),
    "worklist": (),
}


def main() -> int:
    options = _options()
    names = options.only or list(BENCHES)
    missing = [peer for name in names for peer in PEERS[name] if program(peer) is None]
    if missing:
        print(f"Not installed: {', '.join(sorted(set(missing)))} (`make peers`)", file=sys.stderr)
        return 2
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{machine}, load before {os.getloadavg()[0]:.1f}")
    is_met = True
    for name in names:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            table = BENCHES[name](
                Path(folder), is_quick=options.quick, rounds=options.rounds or (1 if options.quick else 3)
            )
        print(f"\n{table}", flush=True)
        is_met &= all(bar.is_met for bar in table.bars)
    return 0 if is_met else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=list(BENCHES), help="run this one; may be given again")
    parser.add_argument("--quick", action="store_true", help="fewer images, one run each: a smoke test, not a figure")
    parser.add_argument("--rounds", type=int, help="alternated runs whose median is printed (default 3)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
