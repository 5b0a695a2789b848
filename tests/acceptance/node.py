"""A real node for acceptance tests and benches: `pacs-node run` as people start it, in a folder of its own.

Takes a folder and overrides of `config.toml`; hides the configuration file, the processes and how to look inside.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil

ROOT = Path(__file__).resolve().parents[2]
PORTS = range(20000, 32000)
"""Below the ports that outgoing connections take (32768 and up): a killed node must find its own free again."""
MARK = "ACCEPTANCE_NODE"
"""Environment variable that every process of a node inherits; by it none is overlooked."""
READY_S = 90.0
STOP_S = 75.0
AE_TITLE = "PACS_NODE"

Sections = Mapping[str, Any]
T = TypeVar("T")

QUICK: dict[str, dict[str, Any]] = {
    "dicom": {"ae_title": AE_TITLE, "drain_timeout_s": 10.0},
    "store": {"min_free_gb": 0.1},
    "worker": {"decode_processes": 1},
    "predict": {"is_preloaded": False, "decode_processes": 1},
    "study": {"settle_s": 0.5, "idle_s": 3.0},
    "delivery": {"retry_base_s": 0.5, "retry_cap_s": 2.0},
    "schedule": {"settle_every_s": 0.25, "seal_every_s": 1.0},
}
"""Short waits, so that a suite ends in minutes; everything else is as shipped."""


class Node:
    """One node: its configuration, its processes, its database and its API."""

    def __init__(self, folder: Path, *, base: Sections = QUICK, **sections: Any) -> None:
        """Write the configuration; `sections` override `base` key by key, lists and scalars whole."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.dicom_port, self.web_port = free_port(), free_port()
        self.mark = uuid.uuid4().hex
        self.process: subprocess.Popen[bytes] | None = None
        self.config = folder / "config.toml"
        own = {
            "node": {"data_dir": "var", "secrets_dir": "var/secrets"},
            "dicom": {"port": self.dicom_port},
            "web": {"port": self.web_port, "authentication": "off"},
        }
        self.configure(_merged(_merged(base, own), sections))

    def configure(self, sections: Sections) -> None:
        """Write these sections as the configuration; a running node sees nothing of it."""
        self.sections = sections
        self.config.write_text(as_toml(sections), encoding="utf-8")

    @property
    def data_dir(self) -> Path:
        return self.folder / "var"

    @property
    def database(self) -> Path:
        return self.data_dir / "node.sqlite"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.web_port}"

    @property
    def ae_title(self) -> str:
        return str(self.sections["dicom"].get("ae_title", AE_TITLE))

    # Life

    def start(self, *, is_awaited: bool = True) -> Node:
        """Migrate if there is no database yet, start every role and wait until `/ready` says so."""
        if not self.database.exists():
            self.command("migrate", check=True)
        with (self.folder / "terminal.txt").open("ab") as terminal:
            self.process = self.popen("run", stdout=terminal, stderr=terminal)
        if is_awaited:
            self.wait_ready()
        return self

    def wait_ready(self) -> None:
        until(self._is_ready_or_dead, timeout_s=READY_S, what="the node to be ready", describe=self.said)
        if self.process is not None and self.process.poll() is not None:
            raise AssertionError(f"the node ended with {self.process.returncode}:\n{self.said()}")

    def _is_ready_or_dead(self) -> bool:
        return (self.process is not None and self.process.poll() is not None) or self.is_ready()

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/ready", timeout=5) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def stop(self) -> int:
        """Press Ctrl-C and return the exit status once the node has drained."""
        assert self.process is not None, "not started"
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(STOP_S)

    def kill(self) -> None:
        """End every process of the node at once, as a power cut does."""
        for process in self.processes():
            _signal(process, signal.SIGKILL)
        psutil.wait_procs(self.processes(), timeout=10)
        if self.process is not None:
            self.process.wait(10)

    def __enter__(self) -> Node:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()

    # Processes

    def popen(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start `pacs-node ARGUMENTS` with this node's configuration."""
        command = [sys.executable, "-m", "pacs_node.cli", "--config", str(self.config), *arguments]
        return subprocess.Popen(command, cwd=ROOT, env=self._environment(), **options)

    def command(self, *arguments: str, timeout_s: float = 60, check: bool = False) -> subprocess.CompletedProcess[str]:
        """Run `pacs-node ARGUMENTS` to its end."""
        command = [sys.executable, "-m", "pacs_node.cli", "--config", str(self.config), *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=self._environment(), capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if check and done.returncode != 0:
            raise AssertionError(f"pacs-node {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
        return done

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name != "PACS_NODE_CONFIG"}
        return kept | {MARK: self.mark}

    def processes(self) -> list[psutil.Process]:
        """Return every living process of this node: supervisor, roles and the decoders they started."""
        return [process for process in psutil.process_iter() if _is_marked(process, self.mark)]

    def role(self, name: str) -> psutil.Process | None:
        """Return the process of one role (`listen-1`, `work-1`, `deliver`, `web`, `tick`) if it runs now."""
        for process in self.processes():
            words = _words(process)
            if "--process-name" in words and words[words.index("--process-name") + 1] == name:
                return process
        return None

    def rss_bytes(self) -> int:
        """Return the resident memory of all processes; pages they share count once for each."""
        return sum(_rss(process) for process in self.processes())

    def said(self) -> str:
        """Return what stands on the node's terminal."""
        path = self.folder / "terminal.txt"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def logged(self) -> list[dict[str, Any]]:
        """Return every log line of every role, in no order."""
        files = sorted((self.data_dir / "log").glob("*.log*"))
        return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]

    # Inside

    def rows(self, statement: str, *values: Any) -> list[sqlite3.Row]:
        """Read the embedded database."""
        with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=30)) as connection:
            connection.row_factory = sqlite3.Row
            return connection.execute(statement, values).fetchall()

    def count(self, statement: str, *values: Any) -> int:
        """Return the one number that a SELECT gives."""
        return int(self.rows(statement, *values)[0][0])

    def get(self, path: str) -> Any:
        """GET from the API; JSON is decoded, anything else is text."""
        return self._call(urllib.request.Request(f"{self.url}{path}"))

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """POST JSON to the API."""
        headers = {"Content-Type": "application/json"}
        return self._call(
            urllib.request.Request(f"{self.url}{path}", json.dumps(body).encode(), headers, method="POST")
        )

    @staticmethod
    def _call(request: urllib.request.Request) -> Any:
        with urllib.request.urlopen(request, timeout=30) as response:
            content = response.read()
            return json.loads(content) if "json" in response.headers["Content-Type"] else content.decode()

    def is_quiet(self) -> bool:
        """Tell whether nothing is under way: no open job, no study that waits for its report."""
        open_jobs = "SELECT count(*) FROM jobs WHERE state IN ('ready', 'running')"
        unreported = "SELECT count(*) FROM studies WHERE unreported_since IS NOT NULL"
        return self.count(open_jobs) == 0 and self.count(unreported) == 0

    def wait_quiet(self, timeout_s: float = 60) -> None:
        until(self.is_quiet, timeout_s=timeout_s, what="the node to finish", describe=self.unfinished)

    def unfinished(self) -> str:
        """Say what is under way, for a failing test."""
        jobs = [tuple(row) for row in self.rows("SELECT kind, state, count(*), max(error) FROM jobs GROUP BY 1, 2")]
        waiting = self.count("SELECT count(*) FROM studies WHERE unreported_since IS NOT NULL")
        return f"jobs {jobs}; {waiting} studies to report; terminal:\n{self.said()[-4000:]}"


def until(
    is_so: Callable[[], T],
    *,
    timeout_s: float,
    what: str,
    describe: Callable[[], str] = lambda: "",
    every_s: float = 0.1,
) -> T:
    """Wait until `is_so` gives something true and return it; fail, and say why, after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (found := is_so()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:g} s for {what}. {describe()}")
        time.sleep(every_s)
    return found


def free_port() -> int:
    """Return a port of loopback that nothing listens on."""
    for port in random.sample(PORTS, 200):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port")


def as_toml(sections: Sections) -> str:
    """Write sections of scalars, lists of scalars and lists of tables; enough for `config.toml`."""
    lines: list[str] = []
    for name, section in sections.items():
        if isinstance(section, Mapping):
            lines += _table(f"[{name}]", name, section)
        else:
            for item in section:
                lines += _table(f"[[{name}]]", name, item)
    return "\n".join(lines) + "\n"


def _table(head: str, name: str, values: Sections) -> list[str]:
    lines, tables = [head], []
    for key, value in values.items():
        if isinstance(value, Sequence) and not isinstance(value, str) and value and isinstance(value[0], Mapping):
            for item in value:
                tables += _table(f"[[{name}.{key}]]", f"{name}.{key}", item)
        else:
            lines.append(f"{key} = {json.dumps(value)}")  # JSON scalars and lists are TOML
    return [*lines, "", *tables]


def _merged(base: Sections, over: Sections) -> dict[str, Any]:
    merged: dict[str, Any] = {name: dict(s) if isinstance(s, Mapping) else s for name, s in base.items()}
    for name, section in over.items():
        merged[name] = merged.get(name, {}) | dict(section) if isinstance(section, Mapping) else section
    return merged


def _is_marked(process: psutil.Process, mark: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark
    except (psutil.Error, OSError):
        return False


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)
