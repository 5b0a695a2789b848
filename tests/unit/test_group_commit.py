"""Several threads' transactions as one: nobody is told before the commit, and nobody pays for another's failure."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from db.engine import DatabaseAway, Session
from pacs_node.listener import group_commit as group_commit_module
from pacs_node.listener.group_commit import GroupCommit

COUNT = text("SELECT count(*) FROM task_locks")
INSERT = text("INSERT INTO task_locks (name, holder, held_until) VALUES (:name, 'x', '2026-01-01 00:00:00')")


def insert(name: str) -> Any:
    def write(session: Session) -> str:
        session.execute(INSERT, {"name": name})
        return name

    return write


def count(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(COUNT).scalar_one())


class Held:
    """A first write that holds the turn until the others wait behind it."""

    def __init__(self) -> None:
        self.has_begun, self.may_end = threading.Event(), threading.Event()

    def __call__(self, session: Session) -> str:
        session.execute(INSERT, {"name": "held"})
        self.has_begun.set()
        assert self.may_end.wait(10)
        return "held"


def run_behind(group: GroupCommit, writes: list[Any]) -> list[Any]:
    """Run `writes` at once while another holds the turn; return what each gave or raised."""
    held = Held()

    def result(write: Any) -> Any:
        try:
            return group.run(write)
        except Exception as error:  # noqa: BLE001 - it is what the test looks at
            return error

    with ThreadPoolExecutor(len(writes) + 1) as pool:
        first = pool.submit(group.run, held)
        assert held.has_begun.wait(10)
        others = [pool.submit(result, write) for write in writes]
        while len(group._waiting) < len(writes):
            pass
        held.may_end.set()
        assert first.result() == "held"
        return [other.result() for other in others]


def test_run_returns_after_the_commit(engine: Engine) -> None:
    assert GroupCommit(engine).run(insert("a")) == "a"
    assert count(engine) == 1


def test_those_who_wait_share_one_commit(sqlite_engine: Engine) -> None:
    commits: list[object] = []
    event.listen(sqlite_engine, "commit", commits.append)
    names = [f"n{i}" for i in range(10)]
    assert run_behind(GroupCommit(sqlite_engine), [insert(name) for name in names]) == names
    assert count(sqlite_engine) == 11
    assert len(commits) == 2


def test_more_than_the_largest_group_are_all_committed(sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit_module, "LARGEST", 2)
    names = [f"n{i}" for i in range(7)]
    assert run_behind(GroupCommit(sqlite_engine), [insert(name) for name in names]) == names
    assert count(sqlite_engine) == 8


def test_one_that_fails_takes_no_other_along(sqlite_engine: Engine) -> None:
    def bug(session: Session) -> None:
        session.execute(INSERT, {"name": "half done"})
        raise ZeroDivisionError

    first, failed, last = run_behind(GroupCommit(sqlite_engine), [insert("a"), bug, insert("b")])
    assert (first, last) == ("a", "b")
    assert isinstance(failed, ZeroDivisionError)
    assert count(sqlite_engine) == 3


def test_a_commit_that_fails_is_told_to_all_and_not_tried_again(sqlite_engine: Engine) -> None:
    """It may have arrived: a second try would find its own rows and call its file a duplicate."""
    commits: list[object] = []

    def fail(connection: object) -> None:
        commits.append(connection)
        if len(commits) > 1:
            raise DatabaseAway("disk full")

    event.listen(sqlite_engine, "commit", fail)
    results = run_behind(GroupCommit(sqlite_engine), [insert("a"), insert("b")])
    assert [type(result) for result in results] == [DatabaseAway, DatabaseAway]
    assert len(commits) == 2


def test_processes_take_turns_and_who_waited_long_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit_module, "PATIENCE_S", 0.2)
    first, second = (group_commit_module._Line(str(tmp_path / "node.sqlite")) for _ in range(2))
    with first.turn():
        assert not second._is_ours()
        started = time.monotonic()
        with second.turn():
            assert time.monotonic() - started >= 0.2
    started = time.monotonic()
    with second.turn():
        assert time.monotonic() - started < 0.1
