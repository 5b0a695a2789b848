"""(e) `POST /predict` under load: the web role against the API that people usually write, same images, same run."""

from __future__ import annotations

import http.client
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from bench.receivers import is_listening
from bench.table import Bar, Table, note, percentile, spread
from pacs_node.phantom import draw_chest
from tests.acceptance.node import ROOT, Node, free_port, until

CLIENTS = 16
SIDE = 1024
LEAST_RATIO, MOST_TAIL = 2.5, 0.5
BOUNDARY = "bench-predict"
START_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one run saw."""

    per_s: float
    latencies_ms: list[float]

    @property
    def p99_ms(self) -> float:
        return percentile(self.latencies_ms, 99)


def run(folder: Path, *, is_quick: bool, rounds: int) -> Table:
    """Alternate the node and the usual API, which may spin or sleep while its threads wait: the better one counts."""
    seconds = 3.0 if is_quick else 8.0
    bodies = _bodies(64 if is_quick else 640)
    node = Node(
        folder / "node",
        base={},
        web={"predictions_per_minute": 0},
        predict={"remembered": 0, "max_waiting": 64},
    )
    node.command("migrate", check=True)
    spins, sleeps = free_port(), free_port()
    processes = [node.popen("web"), _usual(spins, {}), _usual(sleeps, {"OMP_WAIT_POLICY": "PASSIVE"})]
    ports = {"node": node.web_port, "spins": spins, "sleeps": sleeps}
    loads: dict[str, list[Load]] = {name: [] for name in ports}
    try:
        for port in ports.values():
            until(lambda port=port: is_listening(port), timeout_s=START_S, what="the servers")  # type: ignore[misc]
            _load(port, cycle(bodies), seconds=1.0)  # the first passes are slower
        for _ in range(rounds):
            for name, port in ports.items():
                loads[name].append(_load(port, cycle(bodies), seconds=seconds))
                note(f"{name}: {loads[name][-1].per_s:.1f} requests/s, p99 {loads[name][-1].p99_ms:.0f} ms")
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(60)
    return _table(loads, len(bodies), rounds)


def _table(loads: dict[str, list[Load]], images: int, rounds: int) -> Table:
    usual = max(("spins", "sleeps"), key=lambda name: median(load.per_s for load in loads[name]))
    speed = {name: median(load.per_s for load in loads[name]) for name in loads}
    tail = {name: median(load.p99_ms for load in loads[name]) for name in loads}
    calmest = min(("spins", "sleeps"), key=lambda name: tail[name])
    ratio, tails = speed["node"] / speed[usual], tail["node"] / tail[calmest]
    shown = {"requests/s": [load.per_s for load in loads["node"]], "p99, ms": [load.p99_ms for load in loads["node"]]}
    peer = {"requests/s": [load.per_s for load in loads[usual]], "p99, ms": [load.p99_ms for load in loads[calmest]]}
    return Table(
        title=f"(e) POST /predict, {CLIENTS} clients at once: median (min-max)",
        head=("", "node", "usual API", "node/usual"),
        rows=(
            ("requests/s", spread(shown["requests/s"], 1), spread(peer["requests/s"], 1), f"{ratio:.2f}x"),
            ("p99, ms", spread(shown["p99, ms"]), spread(peer["p99, ms"]), f"{tails:.2f}x"),
        ),
        notes=(
            f"Median of {rounds} alternated runs; {images} distinct JPEGs of {SIDE} x {SIDE}, all analysed.",
            "node: the web role as shipped, answers not remembered, no limit per minute; every answer audited.",
            "usual API: FastAPI, PIL, torchvision ResNet50, eager fp32, one pass per request in an async handler.",
            "Of the usual API the better of two counts, line by line: threads that spin while they wait, or sleep.",
        ),
        bars=(
            Bar(text=f"requests/s: {ratio:.2f}x the usual API (>= {LEAST_RATIO:g}x)", is_met=ratio >= LEAST_RATIO),
            Bar(text=f"p99: {tails:.2f} of the usual API's (<= {MOST_TAIL:g})", is_met=tails <= MOST_TAIL),
        ),
    )


def _usual(port: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "bench.usual_api", str(port)]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | environment)


def _bodies(count: int) -> list[bytes]:
    """Return so many forms, each with an image of its own: one drawing, moved and shaded a little."""
    drawing_HW = draw_chest(SIDE, SIDE, seed=1)
    bodies = []
    for seed in range(count):
        moved_HW = np.roll(drawing_HW, (seed % 9 - 4, seed // 9 % 9 - 4), axis=(0, 1)) * (1 - seed / count / 20)
        buffer = io.BytesIO()
        Image.fromarray(np.rint(255 * moved_HW).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{seed}.jpg"\r\n'
        bodies.append(
            f"{head}Content-Type: image/jpeg\r\n\r\n".encode() + buffer.getvalue() + f"\r\n--{BOUNDARY}--\r\n".encode()
        )
    return bodies


def _load(port: int, bodies: Iterator[bytes], *, seconds: float) -> Load:
    """Let every client ask again as soon as it is answered; requests that began in time count whole."""
    latencies_ms: list[float] = []
    turn, start = threading.Lock(), time.perf_counter()

    def ask_again() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_S)
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        while (began := time.perf_counter()) - start < seconds:
            with turn:
                body = next(bodies)
            connection.request("POST", "/predict", body, headers)
            answer = connection.getresponse()
            said = json.loads(answer.read())
            if answer.status != 200 or said["status"] != "success":
                raise AssertionError(f"{answer.status}: {said}")
            latencies_ms.append(1000 * (time.perf_counter() - began))
        connection.close()

    clients = [threading.Thread(target=ask_again) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    if len(latencies_ms) < CLIENTS:
        raise AssertionError("a client was not answered")
    return Load(per_s=len(latencies_ms) / (time.perf_counter() - start), latencies_ms=latencies_ms)
