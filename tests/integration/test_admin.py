"""What an administrator reads on the terminal about what went wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine

from db import facts, queue
from db.engine import db_now, session_scope
from db.facts import WarningFacts
from db.queue import JobKind
from db.tables import Answer
from models.codes import CODES
from pacs_node import cli
from tests.listening import settings_for
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
    told("jobs", "retry", str(job.id))
    assert "could not be built" not in told("studies", "show", str(accepted.study_id))


def test_quarantine_says_where_the_bytes_are(told, sqlite_engine: Engine, tmp_path: Path) -> None:
    kept = {"path": "quarantine/ab/abc.dcm", "digest": "0" * 64, "size_bytes": 9, "reason": "not DICOM"}
    with session_scope(sqlite_engine) as session:
        facts.quarantine(session, **kept, association_id=None, now=db_now(session))
    listed = told("quarantine", "list")
    assert "not DICOM" in listed
    assert str(tmp_path / "store" / "quarantine/ab/abc.dcm") in listed


def test_study_says_what_to_do_about_what_was_not_judged(told, sqlite_engine: Engine) -> None:
    with session_scope(sqlite_engine) as session:
        now = db_now(session)
        accepted = add_image(session, now=now)
        turned = WarningFacts(code="turned", severity="forbids", text="The stored image is rotated.")
        facts.record_judgement(session, accepted.instance_id, predictions=[], warnings=[turned], voi=None, now=now)
    assert f"turned: {CODES['turned'].advice}" in told("studies", "show", str(accepted.study_id))
