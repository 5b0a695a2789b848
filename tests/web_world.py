"""A node's data for the web tests: real files in a real store, rows as intake, worker and schedule write them."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Engine, select

from db import audit, facts, queue
from db.audit import Action
from db.engine import DatabaseAway, Session, db_now, read_scope, session_scope
from db.facts import BuiltObject, NewPrediction, WarningFacts, accounts, credentials
from db.tables import Delivery, DeliveryState, JobKind, Report, Role
from models.registry import Registry
from pacs_node.passwords import hash_password, new_secret
from pacs_node.report.answer import answer_of
from pacs_node.settings import NodeSettings, PredictSettings, Settings
from pacs_node.settings.web import WebSettings
from pacs_node.store import ObjectStore
from pacs_node.web.app import create_app, run_web
from pacs_node.web.identify import csrf_of
from tests.builders import as_bytes, make_radiograph
from tests.records import NOON, POLICY, end_jobs, make_instance, make_prediction

SR_CLASS = "1.2.840.10008.5.1.4.1.1.88.34"
LATERAL = WarningFacts(
    code="not_frontal", severity="forbids", text="The view is lateral; only frontal views are judged."
)
UNKNOWN_VIEW = WarningFacts(code="view_unknown", severity="warning", text="The view is not stated.")
BASE_URL = "http://127.0.0.1:8000"
PROBLEM = "application/problem+json"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@dataclass(frozen=True, kw_only=True)
class World:
    """One node: its rooms, and the application over them."""

    engine: Engine
    store: ObjectStore
    settings: Settings
    app: FastAPI

    def client(self) -> TestClient:
        """Return a caller that gets problems instead of exceptions, without the drawing processes' warm start."""
        return self.client_at("testclient")

    def client_at(self, address: str, **headers: str) -> TestClient:
        """Return a caller from this address."""
        return TestClient(
            self.app, base_url=BASE_URL, raise_server_exceptions=False, client=(address, 50000), headers=headers
        )

    def add_account(self, name: str, *roles: Role, groups: Sequence[str] = (), password: str = "") -> UUID:
        """Add a person; with a password it can be used at the door."""
        with session_scope(self.engine) as session:
            now = db_now(session)
            account = accounts.add_account(session, name, roles=roles, groups=groups, actor="test", now=now)
            if password:
                accounts.set_password(session, account.account_id, hash_password(password), actor="test", now=now)
        return account.account_id

    def logged_in(self, name: str, *roles: Role, groups: Sequence[str] = (), password: str = "") -> TestClient:
        """Return the browser of a new person who is logged in, and whose page sends its token with every change."""
        account_id, secret = self.add_account(name, *roles, groups=groups, password=password), new_secret()
        with session_scope(self.engine) as session:
            credentials.open_session(session, secret, account_id, now=db_now(session))
        client = self.client_at("192.0.2.7", **{"X-CSRF-Token": csrf_of(secret)})
        client.cookies.set("pacs_node_session", secret)
        return client

    def with_token(self, name: str, *roles: Role, groups: Sequence[str] = ()) -> TestClient:
        """Return a program with an API token."""
        secret = new_secret()
        with session_scope(self.engine) as session:
            now = db_now(session)
            credentials.create_token(session, secret, name, roles=roles, groups=groups, actor="test", now=now)
        return self.client_at("192.0.2.8", Authorization=f"Bearer {secret}")

    def audited(self, action: Action) -> list[audit.AuditRecord]:
        """Return the events of one kind, the oldest first."""
        with read_scope(self.engine) as session:
            return [record for record in audit.tail(session, 200) if record.action == action]

    def suspected(self, number: int = 1, **changes: Any) -> UUID:
        """Return a study with a suspicious frontal and a lateral that was not analysed; `main` has its report."""
        frontal = self.receive(number, **changes)
        same = changes | {"data": None, "study": f"1.2.{number}"} | _patient(number)
        lateral = self.receive(number + 1000, **same)
        self.judge(frontal.instance_id, 0.94, [UNKNOWN_VIEW])
        self.judge(lateral.instance_id, None, [LATERAL])
        self.report(frontal.study_id, DeliveryState.SENT)
        return frontal.study_id

    def actions(self) -> list[str]:
        """Return what the audit trail tells, the newest two hundred."""
        with read_scope(self.engine) as session:
            return [str(record.action) for record in audit.tail(session, 200)]

    def receive(self, number: int, *, minutes_ago: int = 5, **changes: Any) -> facts.Accepted:
        """Store one drawn radiograph and its row; every number is a study of its own unless `study` is given."""
        study = changes.pop("study", f"1.2.{number}")
        pixels = changes.pop("data", None) or as_bytes(make_radiograph(seed=number, rows=96, columns=80))
        kept = self.store.place([pixels])
        own = {"path": kept.path, "digest": kept.digest, "size_bytes": kept.size_bytes}
        own |= _patient(number)
        with session_scope(self.engine) as session:
            now = db_now(session) - timedelta(minutes=minutes_ago)
            return facts.add_instance(session, make_instance(number, study=study, **(own | changes)), now=now)

    def judge(
        self, instance_id: UUID, probability: float | None, warnings: Sequence[WarningFacts] = (), **changes: Any
    ) -> None:
        """Record what the worker found; without a probability the image is not analysed."""
        found: list[NewPrediction] = [] if probability is None else [make_prediction(probability, **changes)]
        with session_scope(self.engine) as session:
            now = db_now(session)
            facts.record_judgement(session, instance_id, predictions=found, warnings=warnings, voi="window", now=now)
            end_jobs(session, instance_id)

    def fail(self, instance_id: UUID) -> None:
        """Record that the worker gave up on an image."""
        with session_scope(self.engine) as session:
            facts.record_failure(session, instance_id, error_text="secret traceback", now=db_now(session))
            end_jobs(session, instance_id)

    def report(self, study_id: UUID, delivery: DeliveryState | None = None, reason: str = "") -> UUID:
        """Freeze and build the study's report; its delivery to `main` then stands where it is said to stand."""
        with session_scope(self.engine) as session:
            now = db_now(session)
            report_id = _freeze(session, study_id, now)
            kept = self.store.place([b"DICM of " + report_id.bytes])
            built = BuiltObject(
                sop_instance_uid=f"2.25.{report_id.int}", sop_class_uid=SR_CLASS, path=kept.path, digest=kept.digest
            )
            planned = [("main", DeliveryState.WAITING, "")] if delivery else []
            facts.record_report_built(session, report_id, [built], planned, now)
            if delivery:
                _deliver(session, report_id, delivery, reason, now)
            return report_id

    def break_report(self, study_id: UUID) -> UUID:
        """Freeze the study's report, whose building then fails for good; return the failed job."""
        with session_scope(self.engine) as session:
            now = db_now(session)
            report_id = _freeze(session, study_id, now)
            (job,) = queue.claim(session, JobKind.REPORT, owner="test", limit=1, policy=POLICY, now=now)
            assert queue.fail(session, job, error="secret traceback", now=now, policy=POLICY, permanent=True)
            facts.record_report_failed(session, report_id, now=now)
        return job.id

    def break_delivery(self, study_id: UUID) -> UUID:
        """Have the PACS refuse the study's report for good, as the delivery role records it; return the failed job."""
        with session_scope(self.engine) as session:
            now, delivery_id = db_now(session), self._delivery_id(session, study_id)
            queue.requeue(session, JobKind.DELIVER, delivery_id, now=now)
            jobs = queue.claim(session, JobKind.DELIVER, owner="test", limit=100, policy=POLICY, now=now)
            (job,) = [job for job in jobs if job.subject_id == delivery_id]
            queue.release(session, [other for other in jobs if other is not job], now=now)
            assert queue.fail(session, job, error="no presentation context", now=now, policy=POLICY, permanent=True)
            refused = {"state": DeliveryState.FAILED, "reason": "no presentation context."}
            facts.record_not_sent(session, delivery_id, **refused, now=now)
        return job.id

    def delivery_of(self, study_id: UUID) -> DeliveryState:
        with read_scope(self.engine) as session:
            query = select(Delivery.state).where(Delivery.id == self._delivery_id(session, study_id))
            found: DeliveryState = session.execute(query).scalar_one()
        return found

    @staticmethod
    def _delivery_id(session: Session, study_id: UUID) -> UUID:
        query = select(Delivery.id).join(Report, Report.id == Delivery.report_id).where(Report.study_id == study_id)
        found: UUID = session.execute(query).scalar_one()
        return found


def _patient(number: int) -> dict[str, str]:
    return {"patient_id": f"SYN-{number}", "patient_name": f"DEMO{number}^Drawn", "accession_number": f"A-{number}"}


def make_world(
    engine: Engine, root: Path, models: Path, web: WebSettings | None = None, *, settings: Settings | None = None
) -> World:
    """Return a node without a study; the model `drawn` answers where there is one. Without `web` nobody logs in."""
    if (models / "drawn").exists():
        card = Registry([models]).find("drawn", "0.0.1")
        with contextlib.suppress(DatabaseAway), session_scope(engine) as session:
            facts.add_model_version(session, "drawn", "0.0.1", card.weights_sha256, actor="test", now=NOON)
            facts.activate_model(session, "drawn", "0.0.1", actor="test", now=NOON)
    web = web or WebSettings(authentication="off")
    predict = PredictSettings(is_preloaded=False)  # its seconds and memory are for the tests that upload
    settings = settings or Settings(node=NodeSettings(data_dir=root), web=web, predict=predict)
    store = ObjectStore(settings.store_dir)
    app = create_app(engine=engine, store=store, registry=Registry([models]), settings=settings)
    return World(engine=engine, store=store, settings=settings, app=app)


@contextmanager
def serving(settings: Settings) -> Iterator[str]:
    """Run the web role as it is run for people, on the port of `settings`; give its address."""
    stop, url = threading.Event(), f"http://127.0.0.1:{settings.web.port}"
    server = threading.Thread(target=run_web, args=(settings, stop))
    server.start()
    try:
        _wait_until_alive(url)
        yield url
    finally:
        stop.set()
        server.join(timeout=30)
    assert not server.is_alive(), "the server stops when it is told to"


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_alive(url: str) -> None:
    for _ in range(300):
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server did not start")


def _freeze(session: Session, study_id: UUID, now: Any) -> UUID:
    said = answer_of(facts.study_facts(session, study_id, lock=True).images)
    report_id = facts.freeze_report(
        session,
        study_id,
        answer=said.answer,
        probability=said.probability,
        contents=said.contents,
        model_name="resnet50",
        model_version="1.0.0",
        is_sent=True,
        now=now,
    )
    assert report_id is not None
    return report_id


def _deliver(session: Session, report_id: UUID, state: DeliveryState, reason: str, now: Any) -> None:
    delivery_id = session.execute(select(Delivery.id).where(Delivery.report_id == report_id)).scalar_one()
    if state is DeliveryState.SENT:
        facts.record_sent(session, delivery_id, now=now)
    else:
        facts.record_not_sent(session, delivery_id, state=state, reason=reason, now=now)
