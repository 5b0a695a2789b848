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
from PIL import Image
from pydicom.dataset import FileDataset
from sqlalchemy import Engine, select, update

from db import audit, facts, queue
from db.engine import db_now, read_scope, session_scope
from db.facts import StudySummary
from db.queue import QueuePolicy
from db.tables import Answer, Hold, Job, JobKind, JobState, ObjectKind, OwnObject, Verdict
from pacs_node.decoding import DecodingPool
from pacs_node.schedule import Tasks
from pacs_node.settings import QueueSettings, Settings
from pacs_node.settings.codes import CodesSettings
from pacs_node.store import ObjectStore
from pacs_node.wiring import registry_of
from pacs_node.worker.reporting import Reporter
from tests.builders import as_bytes, make_bundle, make_radiograph
from tests.records import POLICY, end_jobs, make_instance, make_prediction


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodingPool]:
    made = DecodingPool(processes=1, timeout_s=200, memory_mb=2048)  # the first call imports much, on a busy machine
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


# Pictures and readers' reports


def with_destination(settings: Settings, **more: Any) -> Settings:
    (main,) = settings.destinations
    return settings.model_copy(update={"destinations": (main.model_copy(update=more),)})


def objects(engine: Engine, study_id: UUID) -> dict[str, list[facts.BuiltObject]]:
    """Return what was made of the newest report, by kind."""
    with read_scope(engine) as session:
        newest = facts.study_detail(session, study_id).reports[-1]
        made = facts.objects_of(session, newest.report_id)
    return {kind: [built for built in made if built.kind == kind] for kind in {built.kind for built in made}}


def test_positive_image_gets_a_heat_map_and_a_negative_one_none(
    sqlite_engine: Engine, pool: DecodingPool, settings: Settings
) -> None:
    settings = with_destination(settings, objects=("sr", "heatmap", "gsps", "seg"))
    store = ObjectStore(settings.store_dir)
    receive(sqlite_engine, store, 1, as_bytes(radiograph(1)), probability=0.9)
    study_id = receive(sqlite_engine, store, 2, as_bytes(radiograph(2)), probability=0.1)
    report(sqlite_engine, store, pool, settings)
    made = objects(sqlite_engine, study_id)
    assert len(made["sr"]) == 3
    (picture,) = made["heatmap"]
    document = pydicom.dcmread(store.absolute(picture.path))
    assert document.SourceImageSequence[0].ReferencedSOPInstanceUID == "1.2.1.1.1"
    assert (document.Rows, document.Columns) == (radiograph(1).Rows, radiograph(1).Columns)
    with read_scope(sqlite_engine) as session:
        images = facts.study_detail(session, study_id).images
        first, second = (facts.heatmap_of(session, image.instance_id) for image in images)
    assert second is None
    assert first is not None
    with Image.open(store.absolute(first)) as bare:
        assert (bare.mode, bare.size) == ("L", (224, 224))


def test_pictures_that_no_destination_wants_are_not_made_but_the_bare_map_is(
    sqlite_engine: Engine, pool: DecodingPool, settings: Settings
) -> None:
    settings = with_destination(settings, objects=("sr",))
    store = ObjectStore(settings.store_dir)
    study_id = receive(sqlite_engine, store, 1, as_bytes(radiograph(1)))
    report(sqlite_engine, store, pool, settings)
    assert objects(sqlite_engine, study_id).keys() == {"sr"}
    with read_scope(sqlite_engine) as session:
        (image,) = facts.study_detail(session, study_id).images
        assert facts.heatmap_of(session, image.instance_id) is not None


def test_picture_that_cannot_be_made_is_audited_and_the_report_goes_out(
    sqlite_engine: Engine, pool: DecodingPool, settings: Settings
) -> None:
    store = ObjectStore(settings.store_dir)
    whole = as_bytes(radiograph(1))
    study_id = receive(sqlite_engine, store, 1, whole[: len(whole) // 2])
    report(sqlite_engine, store, pool, settings)
    assert objects(sqlite_engine, study_id).keys() == {"sr"}
    assert [str(state) for _, state, _ in summary_of(sqlite_engine, study_id).deliveries] == ["waiting"]
    with read_scope(sqlite_engine) as session:
        (image,) = facts.study_detail(session, study_id).images
        failed = [record for record in audit.tail(session, 9) if record.action == "heatmap_failed"]
    assert [record.subject_id for record in failed] == [image.instance_id]


def test_readers_verdict_becomes_a_verified_report(
    sqlite_engine: Engine, pool: DecodingPool, settings: Settings
) -> None:
    store = ObjectStore(settings.store_dir)
    study_id = receive(sqlite_engine, store, 1, as_bytes(radiograph(1)))
    report(sqlite_engine, store, pool, settings)
    with session_scope(sqlite_engine) as session:
        now = db_now(session)
        said = facts.add_review(session, study_id, verdict=Verdict.DISAGREE, comment="", reviewer="ada", now=now)
        facts.request_verified_report(session, said.review_id, now=now, delay_s=0)
    report(sqlite_engine, store, pool, settings)
    made = objects(sqlite_engine, study_id)
    assert made.keys() == {"sr"}
    document = pydicom.dcmread(store.absolute(made["sr"][0].path))
    assert document.VerificationFlag == "VERIFIED"
    assert str(document.VerifyingObserverSequence[0].VerifyingObserverName) == "ada^"
    assert summary_of(sqlite_engine, study_id).answer is Answer.PRESENT, "the model's word stays what readers judge"


def test_report_keeps_the_codes_that_it_was_frozen_with(engine: Engine, pool: DecodingPool, settings: Settings) -> None:
    """The node was started anew with another configuration between the two."""
    store = ObjectStore(settings.store_dir)
    study_id = receive(engine, store, 1, as_bytes(radiograph(1)))
    site = {"code": {"value": "RID1301", "scheme": "RADLEX", "meaning": "lung"}}
    before = settings.model_copy(update={"codes": CodesSettings.model_validate({"finding_site": site})})
    Tasks(before, engine).settle()
    report(engine, store, pool, settings)
    with session_scope(engine) as session:
        now = db_now(session)
        said = facts.add_review(session, study_id, verdict=Verdict.AGREE, comment="", reviewer="ada", now=now)
        facts.request_verified_report(session, said.review_id, now=now, delay_s=0)
    report(engine, store, pool, settings)
    with read_scope(engine) as session:
        objects = session.execute(select(OwnObject.path).where(OwnObject.kind == ObjectKind.SR)).scalars().all()
    assert len(objects) == 6
    for path in objects:
        assert b"RID1301" in store.absolute(path).read_bytes()
        assert b"39607008" not in store.absolute(path).read_bytes()


def test_picture_whose_process_was_killed_is_tried_once_more_and_then_left_out(
    sqlite_engine: Engine, settings: Settings
) -> None:
    store, hasty = ObjectStore(settings.store_dir), DecodingPool(processes=1, timeout_s=0.001, memory_mb=2048)
    study_id = receive(sqlite_engine, store, 1, as_bytes(radiograph(1)))
    try:
        report(sqlite_engine, store, hasty, settings)
        assert summary_of(sqlite_engine, study_id).state == "reporting", "that may have been the machine"
        with session_scope(sqlite_engine) as session:
            session.execute(update(Job).where(Job.kind == JobKind.REPORT).values(due_at=db_now(session)))
        report(sqlite_engine, store, hasty, settings)
    finally:
        hasty.close()
    assert summary_of(sqlite_engine, study_id).state == "answered"
    assert objects(sqlite_engine, study_id).keys() == {"sr"}
