"""One image must not take others along: neither into a crash of its worker, nor into a forward pass it spoils."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import Engine, update

from db import facts
from db.engine import db_now, read_scope, session_scope
from db.tables import InstanceState, Job, JobState
from models.predictor import Prediction
from models.suitability import Examination
from pacs_node.settings import Settings
from pacs_node.worker import judging
from pacs_node.worker.service import Worker
from tests.builders import make_card
from tests.records import make_instance

NOT_A_NUMBER = 2
"""Which image is broken."""


class Predictor:
    """Raises, as the real one does, when an image is not made of numbers."""

    card = make_card()

    def predict(self, image_B1HW: np.ndarray, age_years_B: Any = None) -> list[tuple[Prediction, ...]]:
        if not np.isfinite(image_B1HW).all():
            raise ArithmeticError("the network's output is not finite")
        return [() for _ in image_B1HW]


class Pool:
    """Examines in this process."""

    def submit(self, work: Any, path: str, *_: Any) -> Future[Any]:
        done: Future[Any] = Future()
        number = int(Path(path).stem)
        image_1HW = np.full((1, 4, 4), np.nan if number == NOT_A_NUMBER else 0.5, np.float32)
        fit = Examination(image_1HW=image_1HW, warnings=(), rows=4, columns=4, voi="", age_years=3)
        done.set_result((fit, 1.0))
        return done


@pytest.fixture
def worker(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    monkeypatch.setattr(Worker, "_load_predictor", lambda _: Predictor())
    settings = Settings.model_validate({"node": {"data_dir": tmp_path, "secrets_dir": tmp_path}})
    return Worker(settings, engine, threading.Event(), Pool())  # type: ignore[arg-type]


def receive(engine: Engine, numbers: Sequence[int]) -> list[UUID]:
    with session_scope(engine) as session:
        return [
            facts.add_instance(session, make_instance(n, path=f"{n}.dcm"), now=db_now(session)).instance_id
            for n in numbers
        ]


def states(engine: Engine) -> list[tuple[JobState, int]]:
    with read_scope(engine) as session:
        return [tuple(row) for row in session.query(Job.state, Job.attempts).order_by(Job.created_at, Job.id)]


def work_off(worker: Worker) -> None:
    for _ in range(10):
        worker._turn()


def test_image_that_is_not_made_of_numbers_costs_itself_an_attempt(worker: Worker, engine: Engine) -> None:
    receive(engine, [1, NOT_A_NUMBER, 3])
    work_off(worker)
    assert states(engine) == [(JobState.DONE, 0), (JobState.READY, 1), (JobState.DONE, 0)]
    with read_scope(engine) as session:
        study_id = facts.list_studies(session)[0][0].study_id
        images = facts.study_facts(session, study_id, lock=False).images
    assert [image.state for image in images].count(InstanceState.WAITING) == 1


@pytest.mark.parametrize("suspect", [1, 2])
def test_job_that_crashed_before_is_the_only_one_in_hand(
    worker: Worker, engine: Engine, suspect: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_settings", Settings.model_validate({"worker": {"batch_size": 1}}))
    instances = receive(engine, [1, 3, 4])
    with session_scope(engine) as session:
        session.execute(update(Job).where(Job.subject_id == instances[suspect - 1]).values(crashes=1))
    in_hand: list[list[int]] = []
    start_batch = judging.start_batch

    def watched(jobs: Any, *arguments: Any, **options: Any) -> judging.Batch:
        batch = start_batch(jobs, *arguments, **options)
        in_hand.append([job.crashes for pending in (*worker._pending, batch) for job in pending.jobs])
        return batch

    monkeypatch.setattr(judging, "start_batch", watched)
    work_off(worker)
    assert [crashes for crashes in in_hand if 1 in crashes] == [[1]]
    assert {state for state, _ in states(engine)} == {JobState.DONE}
