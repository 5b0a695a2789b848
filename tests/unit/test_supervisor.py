from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pacs_node.commands.running import patience_s
from pacs_node.errors import ConfigError
from pacs_node.listener.service import LAST_WORDS_S
from pacs_node.settings.dicom import DicomSettings
from pacs_node.supervisor import BACKOFF_S, STEADY_S, Role, only_node, stop_when_parent_is_gone, supervise

DIES_AT_ONCE = [sys.executable, "-c", "raise SystemExit(3)"]
REFUSES = [sys.executable, "-c", "raise SystemExit(2)"]
STOPS_LATE = [sys.executable, "-c", "import sys, time; sys.stdin.buffer.read(); time.sleep(1.5)"]
WAITS_FOR_PARENT = [sys.executable, "-c", "import sys; sys.stdin.buffer.read()"]
PATIENCE_S = 30.0


def make_role(command: list[str]) -> Role:
    return Role(name="probe", command=command)


def test_second_node_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    with only_node(tmp_path), pytest.raises(ConfigError, match="another node is running"), only_node(tmp_path):
        pass
    with only_node(tmp_path):  # free again
        pass


def test_lock_is_released_when_its_holder_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from pacs_node.supervisor import only_node\n"
        f"with only_node(Path({str(tmp_path)!r})): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with only_node(tmp_path):
        pass


def test_dead_role_is_started_again_and_audited() -> None:
    stop = threading.Event()
    restarts: list[tuple[str, int]] = []

    def note(name: str, code: int) -> None:
        restarts.append((name, code))
        if len(restarts) == 2:
            stop.set()

    supervise([make_role(DIES_AT_ONCE)], stop, note, patience_s=PATIENCE_S)
    assert restarts == [("probe", 3), ("probe", 3)]


def test_role_that_refuses_to_start_ends_the_node() -> None:
    with pytest.raises(ConfigError, match="refused to start"):
        supervise([make_role(REFUSES)], threading.Event(), lambda name, code: None, patience_s=PATIENCE_S)


def test_role_that_was_up_and_then_refuses_is_started_again() -> None:
    """A model folder half copied, a port taken meanwhile: the listeners must not go down with that role."""
    stop = threading.Event()
    restarts: list[int] = []
    role = make_role(REFUSES)
    role.deaths = 1

    def note(name: str, code: int) -> None:
        restarts.append(code)
        stop.set()

    supervise([role], stop, note, patience_s=PATIENCE_S)
    assert restarts == [2]


def test_stop_closes_the_pipe_and_the_role_ends_by_itself() -> None:
    stop = threading.Event()
    role = make_role(WAITS_FOR_PARENT)
    threading.Timer(1.0, stop.set).start()
    supervise([role], stop, lambda name, code: None, patience_s=PATIENCE_S)
    assert role.process is not None
    assert role.process.returncode == 0


@pytest.mark.parametrize(("so_long_s", "exit_code"), [(20.0, 0), (0.2, -signal.SIGKILL)])
def test_role_that_stops_late_is_waited_for_as_long_as_told(so_long_s: float, exit_code: int) -> None:
    stop = threading.Event()
    role = make_role(STOPS_LATE)
    threading.Timer(1.0, stop.set).start()
    supervise([role], stop, lambda name, code: None, patience_s=so_long_s)
    assert role.process is not None
    assert role.process.returncode == exit_code


@pytest.mark.parametrize("drain_timeout_s", [0, 30, 300])
def test_no_listener_is_killed_while_it_drains(drain_timeout_s: float) -> None:
    assert patience_s(DicomSettings(drain_timeout_s=drain_timeout_s)) > drain_timeout_s + LAST_WORDS_S


def test_backoff_grows_to_its_cap_and_starts_anew_after_a_steady_run() -> None:
    role = make_role([])
    role.started_at = 0.0
    assert [role.note_death(now=1.0) for _ in range(8)] == [*BACKOFF_S, BACKOFF_S[-1], BACKOFF_S[-1]]
    assert role.note_death(now=STEADY_S + 1) == BACKOFF_S[0]


def test_child_stops_when_its_parent_is_gone() -> None:
    stop = threading.Event()
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as pipe:
        stop_when_parent_is_gone(stop, pipe)
        time.sleep(0.05)
        assert not stop.is_set()
        os.close(writing)
        assert stop.wait(2)
