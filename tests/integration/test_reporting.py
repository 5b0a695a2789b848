"""From a frozen answer to stored objects and planned deliveries, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pydicom
import pytest
from pydicom.dataset import FileDataset
from sqlalchemy import Engine

from db import facts, queue
from db.engine import db_now, read_scope, session_scope
from db.tables import Hold, JobKind
from pacs_node.decoding import DecodingPool
from pacs_node.reporting import Reporter
from pacs_node.schedule import Tasks
from pacs_node.settings import Settings
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


def report(engine: Engine, store: ObjectStore, pool: DecodingPool, settings: Settings) -> None:
    Tasks(settings, engine).settle()
    with session_scope(engine) as session:
        (job,) = queue.claim(session, JobKind.REPORT, owner="a", limit=8, policy=POLICY, now=db_now(session))
    Reporter(
        engine=engine, store=store, pool=pool, registry=registry_of(settings), settings=settings, policy=POLICY
    ).report(job)


def radiograph(number: int, **attributes: Any) -> FileDataset:
    return make_radiograph(seed=number, study_instance_uid="1.2.1", sop_instance_uid=f"1.2.1.1.{number}", **attributes)


def test_broken_header_costs_its_own_image_only(engine: Engine, pool: DecodingPool, settings: Settings) -> None:
    store = ObjectStore(settings.store_dir)
    whole = as_bytes(radiograph(1))
    receive(engine, store, 1, whole)
    study_id = receive(
        engine, store, 2, whole[:132] + b"\x02\x00\x10\x00UI\x16\x001.2.840.10008.1.2.1.99" + b"\xff" * 40
    )
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
