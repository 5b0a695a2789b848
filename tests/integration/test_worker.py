"""The worker's side of the line, on both databases: files to recorded judgements."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import Engine

from db import facts, queue
from db.engine import Session, db_now, make_engine, read_scope, session_scope
from db.facts import CannotBeRepeated
from db.tables import Answer, InstanceState, JobKind
from models.predictor import DeviceOutOfMemory, Prediction, Predictor
from models.registry import Registry
from pacs_node.decoding import DecodingPool
from pacs_node.report.answer import presence_of
from pacs_node.schedule import Tasks
from pacs_node.settings import Settings
from pacs_node.store import ObjectStore
from pacs_node.worker import judging
from pacs_node.worker.service import run_worker
from tests.builders import as_bytes, draw_chest, make_bundle, make_population, make_radiograph
from tests.records import POLICY, end_jobs, judge, make_instance


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    folder = tmp_path_factory.mktemp("models")
    make_bundle(folder)
    return Registry([folder])


@pytest.fixture(scope="module")
def predictor(registry: Registry) -> Predictor:
    return Predictor(registry.newest(), device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodingPool]:
    made = DecodingPool(processes=1, timeout_s=30, memory_mb=2048)
    yield made
    made.close()


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "store")


def receive(session: Session, store: ObjectStore, number: int, content: bytes) -> UUID:
    path = store.place([content]).path
    return facts.add_instance(session, make_instance(number, path=path), now=db_now(session)).instance_id


def claimed(session: Session, owner: str = "a", after_s: float = 0) -> list[queue.Job]:
    now = db_now(session) + timedelta(seconds=after_s)
    return queue.claim(session, JobKind.INFER, owner=owner, limit=8, policy=POLICY, now=now)


def run_batch(engine: Engine, store: ObjectStore, pool: DecodingPool, predictor: Predictor) -> list[judging.Judgement]:
    with session_scope(engine) as session:
        jobs = claimed(session)
        files = facts.instance_files(session, [job.subject_id for job in jobs])
    batch = judging.start_batch(jobs, files, store=store, pool=pool, card=predictor.card, age_policy="refuse")
    return judging.judge(batch, predictor)


def images(engine: Engine) -> dict[UUID, facts.ImageFacts]:
    with read_scope(engine) as session:
        study_id = facts.list_studies(session, limit=1)[0][0].study_id
        return {image.instance_id: image for image in facts.study_facts(session, study_id, lock=False).images}


def test_batch_ends_every_image_in_its_state(
    engine: Engine, store: ObjectStore, pool: DecodingPool, predictor: Predictor
) -> None:
    with session_scope(engine) as session:
        frontal = receive(session, store, 1, as_bytes(make_radiograph(seed=1)))
        lateral = receive(session, store, 2, as_bytes(make_radiograph(seed=2, view_position="LL")))
        garbage = receive(session, store, 3, b"\0" * 128 + b"DICM" + b"\xff" * 500)
    judgements = run_batch(engine, store, pool, predictor)
    judging.record(engine, judgements, policy=POLICY)
    found = images(engine)
    assert found[frontal].state is InstanceState.ANALYSED
    assert len(found[frontal].predictions) == 1
    assert 0 < found[frontal].predictions[0].probability < 1
    assert {w.code for w in found[lateral].warnings} == {"not_frontal"}
    assert found[lateral].state is found[garbage].state is InstanceState.NOT_ANALYSED
    assert "no_pixels" in {w.code for w in found[garbage].warnings}
    assert not found[garbage].predictions


def test_first_answered_image_of_a_device_model_says_so_once_and_again_when_judged_again(
    engine: Engine, store: ObjectStore, pool: DecodingPool, predictor: Predictor
) -> None:
    with session_scope(engine) as session:
        unfit = receive(session, store, 1, as_bytes(make_radiograph(seed=1, view_position="LL")))
        first, second = (receive(session, store, n, as_bytes(make_radiograph(seed=n))) for n in (2, 3))
    judgements = run_batch(engine, store, pool, predictor)
    judging.record(engine, judgements, policy=POLICY)
    noted = {i for i, image in images(engine).items() if "first_seen_device" in {w.code for w in image.warnings}}
    assert noted in ({first}, {second})
    assert unfit not in noted
    before = images(engine)
    with session_scope(engine) as session:
        for judgement in judgements:
            again = judging.with_first_seen(judgement, facts.note_devices(
                session, judging.devices_of(judgements), now=db_now(session)
            ))  # fmt: skip
            facts.record_judgement(
                session, again.job.subject_id, predictions=again.predictions, warnings=again.warnings, voi=again.voi,
                now=db_now(session),
            )  # fmt: skip
    assert images(engine) == before


def test_inverted_image_gets_a_probability_and_no_answer(
    engine: Engine, store: ObjectStore, pool: DecodingPool, predictor: Predictor
) -> None:
    with session_scope(engine) as session:
        inverted = receive(session, store, 1, as_bytes(make_radiograph(pixels=1 - draw_chest(256, 240))))
    judging.record(engine, run_batch(engine, store, pool, predictor), policy=POLICY)
    image = images(engine)[inverted]
    assert image.state is InstanceState.ANALYSED
    assert "inverted" in {w.code for w in image.warnings}
    assert presence_of(image.predictions[0]) is Answer.UNDETERMINED


def test_each_patient_is_judged_by_the_limits_of_their_age(
    engine: Engine, store: ObjectStore, pool: DecodingPool, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = (make_population("children", (1, 5)), make_population("adults", (18, 90), threshold=0.3))
    judge = Predictor(replace(registry.newest(), populations=both), device="cpu", precision="fp32")
    whole, asked = judge.predict, []

    def predict(image_B1HW: np.ndarray, age_years_B: Sequence[int | None]) -> list[tuple[Prediction, ...]]:
        asked.append(list(age_years_B))
        if len(image_B1HW) > 2:
            raise DeviceOutOfMemory  # the batch is halved, and its ages with it
        return whole(image_B1HW, age_years_B)

    monkeypatch.setattr(judge, "predict", predict)
    patients: list[dict[str, Any]] = [
        {"patient_age": "003Y"},
        {"patient_age": "044Y", "view_position": "LL"},
        {"patient_age": "062Y"},
        {"patient_age": None, "PatientBirthDate": ""},
        {"patient_age": "018Y"},
    ]
    with session_scope(engine) as session:
        received = [
            receive(session, store, number, as_bytes(make_radiograph(seed=number, **patient)))
            for number, patient in enumerate(patients, 1)
        ]
    judging.record(engine, run_batch(engine, store, pool, judge), policy=POLICY)
    found = images(engine)
    thresholds = [[told.threshold for told in found[instance_id].predictions] for instance_id in received]
    assert thresholds == [[0.5], [], [0.3], [0.5], [0.3]]
    assert asked == [[3, 62, None, 18], [3, 62], [None, 18]]


def test_recording_twice_changes_nothing_the_second_time(
    engine: Engine, store: ObjectStore, pool: DecodingPool, predictor: Predictor
) -> None:
    with session_scope(engine) as session:
        receive(session, store, 1, as_bytes(make_radiograph(seed=1)))
    judgements = run_batch(engine, store, pool, predictor)
    judging.record(engine, judgements, policy=POLICY)
    before = images(engine)
    judging.record(engine, judgements, policy=POLICY)  # the job is done: the lease is gone, the rows are dropped
    assert images(engine) == before


def test_lost_lease_drops_that_result_only(
    engine: Engine, store: ObjectStore, pool: DecodingPool, predictor: Predictor
) -> None:
    with session_scope(engine) as session:
        first = receive(session, store, 1, as_bytes(make_radiograph(seed=1)))
        second = receive(session, store, 2, as_bytes(make_radiograph(seed=2)))
    judgements = run_batch(engine, store, pool, predictor)
    with session_scope(engine) as session:  # the leases run out; another worker takes one of the two
        taken = claimed(session, owner="b", after_s=POLICY.lease_s + 1)
    assert len(taken) == 1, "a job that crashed is claimed alone"
    judging.record(engine, judgements, policy=POLICY)
    found = images(engine)
    states = {first: found[first].state, second: found[second].state}
    assert states.pop(taken[0].subject_id) is InstanceState.WAITING
    assert list(states.values()) == [InstanceState.ANALYSED]


def test_bug_costs_an_attempt_and_then_fails_visibly(engine: Engine, store: ObjectStore) -> None:
    with session_scope(engine) as session:
        instance_id = receive(session, store, 1, as_bytes(make_radiograph(seed=1)))
    for attempt in range(POLICY.max_attempts):
        with session_scope(engine) as session:
            (job,) = claimed(session, after_s=3600 * attempt)
        judging.record(engine, [judging.Judgement(job=job, error="ValueError < judging.py:1")], policy=POLICY)
    assert images(engine)[instance_id].state is InstanceState.FAILED
    with read_scope(engine) as session:
        (failed,) = [job for job in queue.list_jobs(session, limit=10, offset=0) if job.state == "failed"]
    assert failed.error == "ValueError < judging.py:1"


def test_store_that_is_away_is_a_fault_to_retry_not_a_verdict(
    engine: Engine, store: ObjectStore, pool: DecodingPool, predictor: Predictor
) -> None:
    with session_scope(engine) as session:
        instance_id = facts.add_instance(session, make_instance(1), now=db_now(session)).instance_id
    judgements = run_batch(engine, store, pool, predictor)
    assert "FileNotFoundError" in (judgements[0].error or "")
    judging.record(engine, judgements, policy=POLICY)
    assert images(engine)[instance_id].state is InstanceState.WAITING


def test_image_whose_file_is_gone_fails_at_once_and_is_judged_when_it_comes_again(
    engine: Engine, store: ObjectStore, pool: DecodingPool, predictor: Predictor
) -> None:
    content = as_bytes(make_radiograph(seed=1))
    with session_scope(engine) as session:
        instance_id = receive(session, store, 1, content)
        store.delete(facts.instance_files(session, [instance_id])[instance_id].path)
    judging.record(engine, run_batch(engine, store, pool, predictor), policy=POLICY)
    (image,) = images(engine).values()
    assert (image.state, [warning.code for warning in image.warnings]) == (InstanceState.FAILED, ["processing_failed"])
    with session_scope(engine) as session:
        (job,) = queue.list_jobs(session, limit=10)
        assert (job.state, job.attempts) == ("failed", 1)
        assert "purged after the retention time or lost" in (job.error or "")
        with pytest.raises(CannotBeRepeated, match="gone"):
            facts.rerun_instance(session, instance_id, actor="a", now=db_now(session))
        assert facts.kept_classes(session, [image.sop_instance_uid]) == {}
        receive(session, store, 1, content)
    judging.record(engine, run_batch(engine, store, pool, predictor), policy=POLICY)
    assert images(engine)[instance_id].state is InstanceState.ANALYSED


def test_purged_image_of_a_recalled_model_ends_failed_when_its_study_comes_alive_and_the_rest_is_answered(
    engine: Engine, store: ObjectStore, pool: DecodingPool, predictor: Predictor, registry: Registry, tmp_path: Path
) -> None:
    tree = {
        "node": {"data_dir": tmp_path, "secrets_dir": tmp_path / "secrets"},
        "model": {"folder": str(registry.newest().folder.parents[1])},
        "study": {"settle_s": 0, "idle_s": 0.001},
    }
    tasks = Tasks(Settings.model_validate(tree), engine)
    with session_scope(engine) as session:
        old = receive(session, store, 1, as_bytes(make_radiograph(seed=1)))
        judge(session, old, 0.93, now=db_now(session))
        file = facts.instance_files(session, [old])[old]
    tasks.settle()
    with session_scope(engine) as session:
        now = db_now(session)
        for job in queue.list_jobs(session, kind=JobKind.REPORT, limit=1):
            end_jobs(session, job.subject_id)
        assert facts.mark_purged(session, file.study_id, now=now)
        store.delete(file.path)
        assert facts.recall_model(session, "resnet50", "1.0.0", actor="a", now=now)
        new = receive(session, store, 2, as_bytes(make_radiograph(seed=2)))
    for _ in range(2):  # the new image; then the old one, which the report would have repeated
        judging.record(engine, run_batch(engine, store, pool, predictor), policy=POLICY)
        tasks.settle()
    found = images(engine)
    assert (found[old].state, found[new].state) == (InstanceState.FAILED, InstanceState.ANALYSED)
    with read_scope(engine) as session:
        report = facts.study_facts(session, file.study_id, lock=False).current_report
        assert not queue.is_due(session, JobKind.INFER, now=db_now(session) + timedelta(days=1))
    assert report is not None
    assert report.revision == 2
    assert [image["state"] for image in report.contents["images"]] == ["failed", "analysed"]


def test_decoder_killed_once_is_tried_again_twice_is_a_verdict(
    engine: Engine, store: ObjectStore, predictor: Predictor
) -> None:
    with session_scope(engine) as session:
        instance_id = receive(session, store, 1, as_bytes(make_radiograph(seed=1)))
    killed = Future[Any]()
    killed.set_exception(FutureTimeout())
    for attempt, state in enumerate((InstanceState.WAITING, InstanceState.NOT_ANALYSED)):
        with session_scope(engine) as session:
            jobs = claimed(session, after_s=3600 * attempt)
        judgements = judging.judge(judging.Batch(jobs=tuple(jobs), decoding=(killed,)), predictor)
        judging.record(engine, judgements, policy=POLICY)
        assert images(engine)[instance_id].state is state
    assert {w.code for w in images(engine)[instance_id].warnings} == {"decode_timeout"}


def test_worker_serves_until_stopped_and_gives_nothing_up(sqlite_url: str, tmp_path: Path) -> None:
    make_bundle(tmp_path / "models")
    settings = Settings.model_validate(
        {
            "node": {"data_dir": tmp_path, "secrets_dir": tmp_path / "secrets"},
            "database": {"url": sqlite_url},
            "model": {"folder": str(tmp_path / "models")},
            "worker": {"batch_size": 2, "decode_processes": 1},
        }
    )
    engine = make_engine(sqlite_url)
    store = ObjectStore(settings.store_dir)
    with session_scope(engine) as session:
        for number in range(5):
            receive(session, store, number, as_bytes(make_radiograph(seed=number)))
    stop = threading.Event()
    worker = threading.Thread(target=run_worker, args=(settings, stop))
    worker.start()
    for _ in range(600):
        if all(image.state is InstanceState.ANALYSED for image in images(engine).values()):
            break
        stop.wait(0.1)
    stop.set()
    worker.join(timeout=30)
    assert not worker.is_alive()
    assert [image.state for image in images(engine).values()] == [InstanceState.ANALYSED] * 5
