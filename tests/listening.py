"""Listeners for the tests: in a thread of the test, or as the processes that the supervisor starts."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from db import facts
from db.engine import Engine, make_engine, read_scope
from pacs_node.listener.service import bind_dicom_socket, run_listener
from pacs_node.settings import Settings

ROOT = Path(__file__).parents[1]


def until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Wait until `condition` holds.

    Raises
    ------
    AssertionError
        It does not within the time.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def settings_for(folder: Path, database_url: str, **dicom: Any) -> Settings:
    """Settings as shipped, on a free port, in `folder`."""
    return Settings(
        node={"data_dir": folder, "secrets_dir": folder / "secrets"},
        dicom={"port": 0, "drain_timeout_s": 5} | dicom,
        database={"url": database_url},
        store={"min_free_gb": 0},
    )


@dataclass(kw_only=True)
class Listening:
    """A node that only listens, and how to look inside."""

    settings: Settings
    port: int
    engine: Engine
    stop: threading.Event = field(default_factory=threading.Event)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    descriptor: int = -1
    """Of the listening socket that the processes share."""

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def counts(self) -> facts.Conservation:
        with read_scope(self.engine) as session:
            return facts.counts(session)

    def count_open(self) -> int:
        with read_scope(self.engine) as session:
            return facts.count_open(session)

    def files(self, area: str = "") -> list[Path]:
        return [path for path in (self.settings.store_dir / area).rglob("*") if path.is_file()]


@contextmanager
def listening_in_a_thread(settings: Settings) -> Iterator[Listening]:
    """Serve until the end of the `with` block, then drain."""
    socket = bind_dicom_socket(settings.dicom)
    node = Listening(settings=settings, port=socket.getsockname()[1], engine=make_engine(settings.database_url))
    thread = threading.Thread(target=run_listener, args=(settings, socket, "listen-1", node.stop))
    thread.start()
    try:
        yield node
    finally:
        node.stop.set()
        thread.join()
        node.engine.dispose()


@contextmanager
def listening_processes(settings: Settings, count: int = 2) -> Iterator[Listening]:
    """Start `count` listeners on one socket, as the supervisor does; they are killed at the end of the `with` block."""
    with bind_dicom_socket(settings.dicom) as socket:
        node = Listening(settings=settings, port=socket.getsockname()[1], engine=make_engine(settings.database_url))
        node.processes = [start_listener(settings, socket.fileno(), f"listen-{i}") for i in range(count)]
        node.descriptor = socket.fileno()
        try:
            yield node
        finally:
            for process in node.processes:
                process.kill()
                process.wait()
            node.engine.dispose()


def start_listener(settings: Settings, descriptor: int, name: str) -> subprocess.Popen[bytes]:
    """Start one more process on the socket."""
    sections = ("node", "dicom", "database", "store", "queue")
    environment = {f"PACS_NODE_{name.upper()}": getattr(settings, name).model_dump_json() for name in sections}
    return subprocess.Popen(
        [sys.executable, "-m", "pacs_node.cli", "listen", "--process-name", name, "--socket-fd", str(descriptor)],
        pass_fds=(descriptor,),
        env=dict(os.environ) | {"PACS_NODE_CONFIG": str(ROOT / "config.toml")} | environment,
        cwd=ROOT,
    )
