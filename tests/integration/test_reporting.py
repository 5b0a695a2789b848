"""From a frozen answer to stored objects and planned deliveries, on both databases."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pydicom
import pytest
from pydicom.dataset import FileDataset
from sqlalchemy import Engine, update

from db import audit, facts, queue
from db.engine import db_now, read_scope, session_scope
from db.facts import StudySummary
from db.queue import QueuePolicy
from db.tables import Answer, Hold, Job, JobKind, JobState
from pacs_node.decoding import DecodingPool
from pacs_node.reporting import Reporter
from pacs_node.schedule import Tasks
from pacs_node.settings import QueueSettings, Settings
from pacs_node.store import ObjectStore
from pacs_node.wiring import registry_of
from tests.builders import as_bytes, make_bundle, make_radiograph
from tests.records import POLICY, end_jobs, make_instance, make_prediction


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodingPool]:
    made = DecodingPool(processes=1, timeout_s=30, memory_mb=2048)
    yield made
    made.close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    make_bundle(tmp_path / "models", name="resnet50", version="1.0.0")
    tree: dict[str, Any] = {
        "node": {"data_dir": tmp_path, "secrets_dir": tmp_path / "secrets"},
        "study": {"settle_s": 0, "idle_s": 0.001},
        "destinations": [{"name": "main", "ae_title": "PACS", "host": "127.0.0.1", "port": 1}],
        "model": {"folder": str(tmp_path / "models")},
    }
    return Settings.model_validate(tree)


def receive(engine: Engine, store: ObjectStore, number: int, content: bytes, probability: float = 0.9) -> UUID:
    with session_scope(engine) as session:
        now = db_now(session)
        accepted = facts.add_instance(
            session, make_instance(number, path=store.place([content]).path, study_date=now.date()), now=now
        )
        prediction = make_prediction(probability)
        facts.record_judgement(session, accepted.instance_id, predictions=[prediction], warnings=[], voi="", now=now)
        end_jobs(session, accepted.instance_id)
    return accepted.study_id


def report(
    engine: Engine, store: ObjectStore, pool: DecodingPool, settings: Settings, policy: QueuePolicy = POLICY
) -> None:
    Tasks(settings, engine).settle()
    with session_scope(engine) as session:
        (job,) = queue.claim(session, JobKind.REPORT, owner="a", limit=8, policy=policy, now=db_now(session))
    Reporter(
        engine=engine, store=store, pool=pool, registry=registry_of(settings), settings=settings, policy=policy
    ).report(job)


def summary_of(engine: Engine, study_id: UUID) -> StudySummary:
    with read_scope(engine) as session:
        return facts.study_detail(session, study_id).summary


def radiograph(number: int, **attributes: Any) -> FileDataset:
    return make_radiograph(seed=number, study_instance_uid="1.2.1", sop_instance_uid=f"1.2.1.1.{number}", **attributes)


UNREADABLE = b"\x02\x00\x10\x00UI\x16\x001.2.840.10008.1.2.1.99" + b"\xff" * 40
"""In place of what follows the preamble: pydicom gives up on it."""


def test_broken_header_costs_its_own_image_only(engine: Engine, pool: DecodingPool, settings: Settings) -> None:
    store = ObjectStore(settings.store_dir)
    whole = as_bytes(radiograph(1))
    receive(engine, store, 1, whole)
    study_id = receive(engine, store, 2, whole[:132] + UNREADABLE)
    report(engine, store, pool, settings)
    with read_scope(engine) as session:
        line = facts.study_detail(session, study_id).summary
    assert [(name, str(state)) for name, state, _ in line.deliveries] == [("main", "waiting")]


def test_report_that_would_name_nobody_is_held(engine: Engine, pool: DecodingPool, settings: Settings) -> None:
    store = ObjectStore(settings.store_dir)
    nameless = radiograph(1)
    with pydicom.config.disable_value_validation():
        nameless.PatientID = "X" * 70  # longer than an LO may be: never copied, never truncated
        content = as_bytes(nameless)
    study_id = receive(engine, store, 1, content)
    report(engine, store, pool, settings)
    with read_scope(engine) as session:
        line = facts.study_detail(session, study_id).summary
    assert line.hold is Hold.UNIDENTIFIED
    assert [str(state) for _, state, _ in line.deliveries] == ["held"]


def test_study_without_any_readable_header_is_reported_under_what_intake_read(
    engine: Engine, pool: DecodingPool, settings: Settings
) -> None:
    store = ObjectStore(settings.store_dir)
    study_id = receive(engine, store, 1, as_bytes(radiograph(1))[:132] + UNREADABLE)
    report(engine, store, pool, settings)
    summary = summary_of(engine, study_id)
    assert (summary.state, [str(state) for _, state, _ in summary.deliveries]) == ("answered", ["waiting"])
    with read_scope(engine) as session:
        (current,) = facts.study_detail(session, study_id).reports
        built = facts.objects_of(session, current.report_id)[0]
    document = pydicom.dcmread(store.absolute(built.path))
    assert (document.PatientID, str(document.PatientName)) == ("PATIENT-1", "Doe^Jane")
    assert (document.AccessionNumber, document.PatientSex) == ("A1", "F")


def test_report_that_cannot_be_built_is_failed_until_it_is_run_again(
    engine: Engine, pool: DecodingPool, settings: Settings
) -> None:
    store = ObjectStore(settings.store_dir)
    study_id = receive(engine, store, 1, as_bytes(radiograph(1)))
    bundles, away = Path(settings.model.folder), Path(settings.model.folder).with_name("away")
    Tasks(settings, engine).settle()
    bundles.rename(away)  # the model that the report names
    report(engine, store, pool, settings, policy=replace(POLICY, max_attempts=1))
    failed = summary_of(engine, study_id)
    assert (failed.state, failed.answer, failed.deliveries) == ("failed", Answer.PRESENT, ())
    assert failed.failed_job_id is not None
    with read_scope(engine) as session:
        job = queue.show(session, failed.failed_job_id)
        assert "resnet50" in (job.error or ""), "an admin reads why"
        assert [line.study_id for line in facts.list_studies(session, state="failed")[0]] == [study_id]
        assert facts.list_studies(session, state="reporting")[0] == []
        assert facts.count_stuck_studies(session) == {"held": 0, "failed": 1}
        assert "report_failed" in [record.action for record in audit.tail(session, 3)]
    away.rename(bundles)
    with session_scope(engine) as session:
        facts.retry_job(session, failed.failed_job_id, actor="admin:a", now=db_now(session))
    assert summary_of(engine, study_id).state == "reporting"
    report(engine, store, pool, settings)
    assert (summary_of(engine, study_id).state, summary_of(engine, study_id).failed_job_id) == ("answered", None)


def test_report_whose_worker_died_each_time_is_failed(engine: Engine, settings: Settings) -> None:
    study_id = receive(engine, ObjectStore(settings.store_dir), 1, as_bytes(radiograph(1)))
    tasks = Tasks(settings.model_copy(update={"queue": QueueSettings(max_crashes=1)}), engine)
    tasks.settle()
    with session_scope(engine) as session:
        long_ago = db_now(session) - timedelta(hours=1)
        now = db_now(session)
        (job,) = queue.claim(session, JobKind.REPORT, owner="a", limit=8, policy=POLICY, now=now)
        session.execute(update(Job).where(Job.id == job.id).values(lease_until=long_ago))
    tasks.reclaim()
    assert summary_of(engine, study_id).state == "failed"
    with read_scope(engine) as session:
        assert "report_failed" in [record.action for record in audit.tail(session, 3)]


def test_report_that_the_disk_does_not_take_waits_without_an_attempt(
    engine: Engine, pool: DecodingPool, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore(settings.store_dir)
    study_id = receive(engine, store, 1, as_bytes(radiograph(1)))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "place", full)
    report(engine, store, pool, settings, policy=replace(POLICY, max_attempts=1))
    assert summary_of(engine, study_id).state == "reporting"
    with read_scope(engine) as session:
        (job,) = queue.list_jobs(session, kind=JobKind.REPORT, limit=1)
        assert (job.state, job.attempts, job.crashes) == (JobState.READY, 0, 0)
        assert not queue.is_due(session, JobKind.REPORT, now=db_now(session))
