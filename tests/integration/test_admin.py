"""What an administrator reads on the terminal about what went wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import Engine, select

from db import facts, queue
from db.engine import NoSuchRecord, db_now, session_scope
from db.facts import WarningFacts
from db.queue import JobKind, JobState
from db.tables import Answer, Report
from models.codes import CODES
from pacs_node import cli
from pacs_node.commands.check import check
from pacs_node.commands.readiness import is_ready
from pacs_node.commands.upkeep import make_backup, migrate_database, restore_backup
from pacs_node.errors import ConfigError
from pacs_node.settings import Settings
from pacs_node.wiring import registry_of
from tests.listening import ROOT, settings_for
from tests.records import POLICY, add_image, freeze, judge


@pytest.fixture
def told(sqlite_engine: Engine, sqlite_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Run a command on this database; return what it prints."""

    def run(*words: str) -> str:
        options = cli._parser().parse_args(words)
        assert not options.command(settings_for(tmp_path, sqlite_url), options)
        return capsys.readouterr().out

    return run


def test_study_whose_report_could_not_be_built_says_why_and_what_to_do(told, sqlite_engine: Engine) -> None:
    with session_scope(sqlite_engine) as session:
        now = db_now(session)
        accepted = add_image(session, now=now)
        judge(session, accepted.instance_id, 0.9, now=now)
        assert freeze(session, accepted.study_id, Answer.PRESENT, now=now) is not None
        (job,) = queue.claim(session, JobKind.REPORT, owner="a", limit=1, policy=POLICY, now=now)
        queue.fail(session, job, error="no model resnet50 1.0.0", now=now, policy=POLICY, permanent=True)
    listed = told("studies", "list", "--state", "failed")
    assert str(accepted.study_id) in listed
    assert "failed" in listed
    assert str(accepted.study_id) not in told("studies", "list", "--state", "answered")
    shown = told("studies", "show", str(accepted.study_id))
    assert "its report could not be built: no model resnet50 1.0.0" in shown
    assert f"pacs-node jobs retry {job.id}" in shown
    with pytest.raises(ConfigError, match="must be built"):
        told("jobs", "close", str(job.id), "--reason", "not_wanted")
    assert str(job.id) in told("jobs", "list")
    told("jobs", "retry", str(job.id))
    assert "could not be built" not in told("studies", "show", str(accepted.study_id))


def test_quarantine_says_where_the_bytes_are(told, sqlite_engine: Engine, tmp_path: Path) -> None:
    kept = {"path": "quarantine/ab/abc.dcm", "digest": "0" * 64, "size_bytes": 9, "reason": "not DICOM"}
    with session_scope(sqlite_engine) as session:
        facts.quarantine(session, **kept, association_id=None, now=db_now(session))
    listed = told("quarantine", "list")
    assert "not DICOM" in listed
    assert str(tmp_path / "store" / "quarantine/ab/abc.dcm") in listed


def test_failed_job_is_listed_however_much_was_done_since(
    told, sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pacs_node.commands.admin._LISTED", 1)
    with session_scope(sqlite_engine) as session:
        now = db_now(session)
        add_image(session, 1, now=now)
        (job,) = queue.claim(session, JobKind.INFER, owner="a", limit=1, policy=POLICY, now=now)
        queue.fail(session, job, error="no", now=now, policy=POLICY, permanent=True)
        add_image(session, 2, now=now)
        (later,) = queue.claim(session, JobKind.INFER, owner="a", limit=1, policy=POLICY, now=now)
        queue.finish(session, later, now=now)
    assert str(job.id) in told("jobs", "list")
    told("jobs", "close", str(job.id), "--reason", "cannot_be_done")
    assert str(job.id) not in told("jobs", "list")
    assert str(job.id) in told("jobs", "list", "--state", "closed")
    assert "cannot_be_done, by admin:" in told("jobs", "show", str(job.id))
    with pytest.raises(ConfigError, match="not_wanted"):
        told("jobs", "close", str(job.id))


def test_job_whose_file_is_gone_is_not_run_again(told, sqlite_engine: Engine) -> None:
    with session_scope(sqlite_engine) as session:
        now = db_now(session)
        gone, other = (add_image(session, number, now=now) for number in (1, 2))
        for job in queue.claim(session, JobKind.INFER, owner="a", limit=2, policy=POLICY, now=now):
            queue.fail(session, job, error="no", now=now, policy=POLICY, permanent=True)
            is_gone = job.subject_id == gone.instance_id
            facts.record_failure(session, job.subject_id, error_text="no", is_gone=is_gone, now=now)
        jobs = {job.subject_id: job.id for job in queue.list_jobs(session, limit=2)}
    with pytest.raises(ConfigError, match="The stored file of this image is gone"):
        told("jobs", "retry", str(jobs[gone.instance_id]))
    assert told("jobs", "retry", "--all") == "1 job(s) due now, 1 refused: files are gone\n"
    with session_scope(sqlite_engine) as session:
        states = {job.subject_id: job.state for job in queue.list_jobs(session, limit=2)}
        assert states == {gone.instance_id: JobState.FAILED, other.instance_id: JobState.READY}


def test_study_says_what_to_do_about_what_was_not_judged(told, sqlite_engine: Engine) -> None:
    with session_scope(sqlite_engine) as session:
        now = db_now(session)
        accepted = add_image(session, now=now)
        turned = WarningFacts(code="turned", severity="forbids", text="The stored image is rotated.")
        facts.record_judgement(session, accepted.instance_id, predictions=[], warnings=[turned], voi=None, now=now)
    assert f"turned: {CODES['turned'].advice}" in told("studies", "show", str(accepted.study_id))


def test_wrongly_matched_study_is_withdrawn_once_with_its_reason(told, sqlite_engine: Engine) -> None:
    with session_scope(sqlite_engine) as session:
        now = db_now(session)
        accepted = add_image(session, now=now)
        judge(session, accepted.instance_id, 0.9, now=now)
        report_id = freeze(session, accepted.study_id, Answer.PRESENT, now=now)
        assert report_id is not None
    with pytest.raises(ConfigError, match="quality,safety,worklist"):
        told("studies", "withdraw", str(accepted.study_id))
    said = told("studies", "withdraw", str(accepted.study_id), "--reason", "worklist")
    assert "withdrawn: 1 report," in said
    assert f"pacs-node studies release {accepted.study_id}" in said
    assert "revision 1: present" in (shown := told("studies", "show", str(accepted.study_id)))
    assert ", withdrawn 20" in shown
    assert "held: withdrawn" in shown
    with session_scope(sqlite_engine) as session:
        assert session.execute(select(Report.withdrawal)).scalars().all() == ["113038"]
    assert "withdrawn: 0 reports," in told("studies", "withdraw", str(accepted.study_id), "--reason", "worklist")
    with pytest.raises(NoSuchRecord):
        told("studies", "withdraw", str(UUID(int=0)), "--reason", "worklist")


def own_node(folder: Path, **sections: dict) -> Settings:
    """Settings as shipped, with everything in `folder`."""
    return Settings(node={"data_dir": folder, "secrets_dir": folder / "secrets"}, **sections)


def test_backup_brings_the_models_that_an_operator_added(tmp_path: Path) -> None:
    """Without them a node whose active model is not a bundled one would not start again."""
    node, other = own_node(tmp_path / "node"), own_node(tmp_path / "other")
    migrate_database(node, actor="test")
    card = node.model_dir / "chest-pneumonia" / "9.9.9" / "card.toml"
    card.parent.mkdir(parents=True)
    card.write_text("the card", encoding="utf-8")
    make_backup(node, tmp_path / "backup", actor="test")
    restore_backup(other, tmp_path / "backup")
    assert (other.model_dir / "chest-pneumonia" / "9.9.9" / "card.toml").read_text(encoding="utf-8") == "the card"


def test_check_fails_when_the_disk_is_below_its_watermark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    node = own_node(tmp_path, store={"min_free_gb": 1e6})
    migrate_database(node, actor="test")
    assert check(node) == 1
    assert "below store.min_free_gb (1e+06): senders get A700" in capsys.readouterr().out


def test_check_says_whether_the_node_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked without the hospital's proxy, which knows no way back to this machine."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    answers = [200, 503]

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answers.pop(0) if self.path == "/ready" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        node = own_node(tmp_path, web={"port": server.server_port})
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert [is_ready(node.web) for _ in range(2)] == [True, False]
        server.shutdown()
    assert is_ready(node.web) is None


def test_a_day_that_is_none_is_said_with_an_example(told, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("recall", "--model", "a/1", "--since", "yesterday"), ("studies", "reconcile", "--day", "1.12.")):
        with pytest.raises(SystemExit):
            told(*words)
        assert f"{words[-1]!r} is no date: write 2026-11-01" in capsys.readouterr().err


def test_dry_run_says_that_the_recall_of_the_answering_model_must_wait(
    told, sqlite_engine: Engine, tmp_path: Path, sqlite_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    card = registry_of(settings_for(tmp_path, sqlite_url)).newest()
    options = cli._parser().parse_args(["recall", "--model", f"{card.name}/{card.version}", "--dry-run"])
    assert options.command(settings_for(tmp_path, sqlite_url), options) == 0
    assert "still answers: activate another version" in capsys.readouterr().err


def test_a_reader_that_has_enough_ends_a_command_without_a_word(tmp_path: Path) -> None:
    """As `pacs-node --config FILE jobs list | head -1` does, with a pipe that nobody reads any more."""
    (tmp_path / "config.toml").touch()
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "pacs_node.cli", "--config", str(tmp_path / "config.toml"), "check"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=120)
    os.close(writer)
    assert done.stderr == ""
