"""What the clock does to files and rows, on both databases."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, insert, select, update

from db import audit, facts, queue
from db.engine import Session, db_now, read_scope, session_scope
from db.facts import WarningFacts
from db.facts.reports import reports_of_study
from db.tables import (
    Answer,
    Association,
    Commitment,
    CommitmentRequest,
    DeliveryState,
    Hold,
    JobKind,
    Receipt,
    RejectedObject,
    Study,
)
from pacs_node.schedule import Tasks
from pacs_node.settings import Settings
from pacs_node.store import ObjectStore
from pacs_node.told import apply_rejections
from tests.builders import make_bundle
from tests.records import LATERAL, POLICY, end_jobs, judge, make_instance

DAY_S = 86_400


def make_tasks(folder: Path, engine: Engine, **sections: Any) -> Tasks:
    if not (folder / "models").exists():
        make_bundle(folder / "models")
    tree = {
        "node": {"data_dir": folder, "secrets_dir": folder / "secrets"},
        "model": {"folder": str(folder / "models")},
        "study": {"settle_s": 0, "idle_s": 0.01},
    }
    return Tasks(Settings.model_validate(tree | sections), engine)


@pytest.fixture
def tasks(tmp_path: Path, engine: Engine) -> Tasks:
    return make_tasks(tmp_path, engine)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "store")


def receive(session: Session, store: ObjectStore, number: int = 1) -> facts.Accepted:
    path = store.place([b"image"]).path
    return facts.add_instance(session, make_instance(number, path=path), now=db_now(session))


def age(store: ObjectStore, path: str, days: float) -> None:
    then = time.time() - days * DAY_S
    os.utime(store.absolute(path), (then, then))


def stored_path(session: Session, instance_id: UUID) -> str:
    return facts.instance_files(session, [instance_id])[instance_id].path


def test_settle_freezes_one_report_per_quiet_study(tasks: Tasks, store: ObjectStore, engine: Engine) -> None:
    with session_scope(engine) as session:
        accepted = receive(session, store)
        judge(session, accepted.instance_id, 0.9, now=db_now(session))
    time.sleep(0.05)
    tasks.settle()
    tasks.settle()
    with read_scope(engine) as session:
        study = facts.study_facts(session, accepted.study_id, lock=False)
    assert study.current_report is not None
    assert (study.revision, study.current_report.answer) == (1, Answer.PRESENT)


def test_report_names_the_model_that_decided_it_not_the_one_that_answers_by_now(
    tasks: Tasks, store: ObjectStore, engine: Engine
) -> None:
    with session_scope(engine) as session:
        accepted = receive(session, store)
        judge(session, accepted.instance_id, 0.9, now=db_now(session))
        judged = facts.study_facts(session, accepted.study_id, lock=False).images[0].predictions[0]
    time.sleep(0.05)
    tasks.settle()
    with read_scope(engine) as session:
        report = facts.study_facts(session, accepted.study_id, lock=False).current_report
    active = tasks._registry.newest()
    assert report is not None
    assert (report.model_name, report.model_version) == (judged.model_name, judged.model_version)
    assert (report.model_name, report.model_version) != (active.name, active.version)


def test_study_that_cannot_be_settled_is_told_once_a_minute_and_keeps_nobody_waiting(
    tasks: Tasks,
    store: ObjectStore,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with session_scope(engine) as session:
        broken, sound = (
            facts.add_instance(session, make_instance(n, study=f"1.2.{n}"), now=db_now(session)) for n in (1, 2)
        )
        for accepted in (broken, sound):
            judge(session, accepted.instance_id, 0.9, now=db_now(session))

    def freeze(session: Session, study_id: UUID, **report: Any) -> UUID | None:
        if study_id == broken.study_id:
            raise ZeroDivisionError
        return freeze_report(session, study_id, **report)

    freeze_report = facts.freeze_report
    monkeypatch.setattr(facts, "freeze_report", freeze)
    time.sleep(0.05)
    tasks.settle()
    tasks.settle()
    assert [record.message for record in caplog.records] == ["A study could not be settled"]
    with read_scope(engine) as session:
        assert facts.study_facts(session, sound.study_id, lock=False).revision == 1
    monkeypatch.setattr(facts, "freeze_report", freeze_report)
    tasks.settle()
    with read_scope(engine) as session:
        assert facts.study_facts(session, broken.study_id, lock=False).revision == 0, "its minute is not over"


@pytest.mark.parametrize("others_want_it", [False, True])
def test_report_that_nobody_got_is_not_what_the_next_one_replaces(
    tmp_path: Path, store: ObjectStore, engine: Engine, others_want_it: bool
) -> None:
    wants = [False, others_want_it]
    destinations = [
        {"name": str(n), "ae_title": "A", "host": "h", "port": 104, "send_not_analysed": one}
        for n, one in enumerate(wants)
    ]
    tasks = make_tasks(tmp_path, engine, destinations=destinations)
    with session_scope(engine) as session:
        lateral, now = receive(session, store), db_now(session)
        facts.record_judgement(session, lateral.instance_id, predictions=[], warnings=[LATERAL], voi=None, now=now)
        end_jobs(session, lateral.instance_id)
    time.sleep(0.05)
    tasks.settle()
    with session_scope(engine) as session:
        frontal = receive(session, store, 2)
        judge(session, frontal.instance_id, now=db_now(session))
    time.sleep(0.05)
    tasks.settle()
    with read_scope(engine) as session:
        first, second = reports_of_study(session, lateral.study_id)
    assert (first.is_sent, second.is_sent) == (others_want_it, True)
    assert (second.predecessor is not None) is others_want_it


CHEST, HAND = (), (WarningFacts(code="not_chest", severity="forbids", text="A hand"),)
ALL, ONE = (1, 2), (1,)
"""Numbers of the images that their sender takes back."""


def judge_as(session: Session, instance_id: UUID, warnings: tuple[WarningFacts, ...]) -> None:
    if warnings:
        now = db_now(session)
        facts.record_judgement(session, instance_id, predictions=[], warnings=warnings, voi=None, now=now)
        end_jobs(session, instance_id)
    else:
        judge(session, instance_id, now=db_now(session))


def reject(engine: Engine, numbers: tuple[int, ...]) -> None:
    with session_scope(engine) as session:
        facts.note_rejection(
            session,
            sop_instance_uids=[f"1.2.1.1.{number}" for number in numbers],
            study_instance_uid="1.2.1",
            code="113038",
            note_uid="1.2.9",
            calling_ae_title="PACS",
            is_trusted=True,
            now=db_now(session),
        )
    apply_rejections(engine)


def deliver(session: Session, report_id: UUID, until: str) -> None:
    """Build a report with one delivery, and send it, as far as `until` says."""
    if until == "frozen":
        return
    facts.record_report_built(session, report_id, [], [("main", DeliveryState.WAITING, "")], now=db_now(session))
    (delivery,) = facts.deliveries_of(session, report_id)
    if until == "sent":
        facts.record_choice(
            session, delivery.delivery_id, sop_class_uid="1.2", sop_instance_uid=f"2.25.{report_id.int}"
        )
        facts.record_sent(session, delivery.delivery_id, now=db_now(session))


def settled(tasks: Tasks, engine: Engine) -> list[facts.ReportFacts]:
    time.sleep(0.05)
    tasks.settle()
    with read_scope(engine) as session:
        study_id = session.execute(select(Study.id)).scalar_one()
        return list(reports_of_study(session, study_id))


@pytest.mark.parametrize(
    ("images", "first", "rejected", "is_sent"),
    [
        pytest.param([CHEST], None, ONE, [False], id="the only one, before the first report"),
        pytest.param([CHEST], "frozen", ONE, [True, False], id="the only one, not built yet"),
        pytest.param([CHEST], "built", ONE, [True, False], id="the only one, not sent yet"),
        pytest.param([CHEST], "sent", ONE, [True, True], id="the only one, sent"),
        pytest.param([CHEST, CHEST], None, ONE, [True], id="one of two, before the first report"),
        pytest.param([CHEST, CHEST], "built", ONE, [True, True], id="one of two, not sent yet"),
        pytest.param([CHEST, CHEST], "sent", ONE, [True, True], id="one of two, sent"),
        pytest.param([CHEST, CHEST], None, ALL, [False], id="both, before the first report"),
        pytest.param([CHEST, CHEST], "built", ALL, [True, False], id="both, not sent yet"),
        pytest.param([CHEST, CHEST], "sent", ALL, [True, True], id="both, sent"),
        pytest.param([CHEST, HAND], None, ONE, [False], id="the chest beside a hand, before the first report"),
        pytest.param([CHEST, HAND], "built", ONE, [True, False], id="the chest beside a hand, not sent yet"),
        pytest.param([CHEST, HAND], "sent", ONE, [True, True], id="the chest beside a hand, sent"),
        pytest.param([HAND], None, ONE, [False], id="a hand, before the first report"),
        pytest.param([HAND], "frozen", ONE, [False, False], id="a hand"),
        pytest.param([HAND, CHEST], "sent", ONE, [True, True], id="the hand beside a chest"),
    ],
)
def test_rejection_replaces_what_was_sent_and_opens_nothing_where_nothing_was(
    tmp_path: Path,
    store: ObjectStore,
    sqlite_engine: Engine,
    images: list[tuple[WarningFacts, ...]],
    first: str | None,
    rejected: tuple[int, ...],
    is_sent: list[bool],
) -> None:
    tasks = make_tasks(tmp_path, sqlite_engine)
    with session_scope(sqlite_engine) as session:
        for number, warnings in enumerate(images, 1):
            judge_as(session, receive(session, store, number).instance_id, warnings)
    if first is not None:
        (report,) = settled(tasks, sqlite_engine)
        with session_scope(sqlite_engine) as session:
            deliver(session, report.report_id, first)
    reject(sqlite_engine, rejected)
    assert [report.is_sent for report in settled(tasks, sqlite_engine)] == is_sent


@pytest.mark.parametrize("first", ["frozen", "built", "sent"])
def test_result_is_replaced_when_its_image_turns_out_to_be_no_chest(
    tmp_path: Path, store: ObjectStore, sqlite_engine: Engine, first: str
) -> None:
    tasks = make_tasks(tmp_path, sqlite_engine)
    with session_scope(sqlite_engine) as session:
        instance_id = receive(session, store).instance_id
        judge_as(session, instance_id, CHEST)
    (report,) = settled(tasks, sqlite_engine)
    with session_scope(sqlite_engine) as session:
        deliver(session, report.report_id, first)
        judge_as(session, instance_id, HAND)
    _, second = settled(tasks, sqlite_engine)
    assert (second.is_sent, second.answer) == (True, Answer.NOT_ANALYSED), "the first is there, or is yet to be sent"


def test_result_is_replaced_also_where_a_later_one_was_withdrawn_before_it_was_sent(
    tmp_path: Path, store: ObjectStore, engine: Engine
) -> None:
    tasks = make_tasks(tmp_path, engine)
    for number, until in ((1, "sent"), (2, "built")):
        with session_scope(engine) as session:
            judge_as(session, receive(session, store, number).instance_id, CHEST)
        report = settled(tasks, engine)[-1]
        with session_scope(engine) as session:
            deliver(session, report.report_id, until)
    reject(engine, ALL)
    assert [report.is_sent for report in settled(tasks, engine)] == [True, True, True]


def test_orphan_is_swept_and_named_files_stay(tasks: Tasks, store: ObjectStore, engine: Engine) -> None:
    orphan, young = store.place([b"orphan"]).path, store.place([b"young"]).path
    with session_scope(engine) as session:
        named = stored_path(session, receive(session, store).instance_id)
    for path in (orphan, named):
        age(store, path, days=2)
    tasks.sweep_orphans()
    assert not store.absolute(orphan).exists()
    assert store.absolute(named).exists()
    assert store.absolute(young).exists()
    with read_scope(engine) as session:
        assert "orphan_swept" in [record.action for record in audit.tail(session, 5)]


def test_purge_takes_finished_old_studies_only(tmp_path: Path, store: ObjectStore, engine: Engine) -> None:
    tasks = make_tasks(tmp_path, engine, store={"retention_days": 30})
    with session_scope(engine) as session:
        accepted = receive(session, store)
        path = stored_path(session, accepted.instance_id)
        _received_days_ago(session, accepted.study_id, 40)
    tasks.purge()
    assert store.absolute(path).exists(), "still to be judged and reported"
    with session_scope(engine) as session:
        judge(session, accepted.instance_id, 0.1, now=db_now(session))
        _finish(session, accepted.study_id)
    tasks.purge()
    assert not store.absolute(path).exists()
    with read_scope(engine) as session:
        assert facts.study_facts(session, accepted.study_id, lock=False).images, "rows stay"
        assert "study_purged" in [record.action for record in audit.tail(session, 5)]


def test_purge_of_a_study_that_came_alive_is_not_kept_back_by_an_image_that_is_gone(
    tmp_path: Path, store: ObjectStore, engine: Engine
) -> None:
    tasks = make_tasks(tmp_path, engine, store={"retention_days": 30})
    with session_scope(engine) as session:
        gone = receive(session, store)
        judge(session, gone.instance_id, now=db_now(session))
        _finish(session, gone.study_id)
        _received_days_ago(session, gone.study_id, 40)
    tasks.purge()
    with session_scope(engine) as session:
        late, now = receive(session, store, 2), db_now(session)
        path = stored_path(session, late.instance_id)
        judge(session, late.instance_id, now=now)
        queue.requeue(session, JobKind.INFER, gone.instance_id, now=now)
        (job,) = queue.claim(session, JobKind.INFER, owner="a", limit=8, policy=POLICY, now=now)
        assert queue.fail(session, job, error="gone", now=now, policy=POLICY, permanent=True)
        facts.record_failure(session, gone.instance_id, error_text="gone", is_gone=True, now=now)
        _finish(session, gone.study_id)
        _received_days_ago(session, gone.study_id, 40)
    tasks.purge()
    assert not store.absolute(path).exists()


def test_purge_is_not_kept_back_by_an_image_whose_job_was_closed(
    tmp_path: Path, store: ObjectStore, engine: Engine
) -> None:
    tasks = make_tasks(tmp_path, engine, store={"retention_days": 30})
    with session_scope(engine) as session:
        accepted, now = receive(session, store), db_now(session)
        path = stored_path(session, accepted.instance_id)
        (job,) = queue.claim(session, JobKind.INFER, owner="a", limit=8, policy=POLICY, now=now)
        assert queue.fail(session, job, error="boom", now=now, policy=POLICY, permanent=True)
        facts.record_failure(session, accepted.instance_id, error_text="boom", now=now)
        _finish(session, accepted.study_id)
        _received_days_ago(session, accepted.study_id, 40)
    tasks.purge()
    assert store.absolute(path).exists()
    with session_scope(engine) as session:
        facts.close_job(session, job.id, reason=facts.ClosingReason.NOT_WANTED, actor="user:ann", now=now)
    tasks.purge()
    assert not store.absolute(path).exists()


def quarantine(session: Session, store: ObjectStore, days_ago: float, instance_id: UUID | None = None) -> str:
    path = store.place([b"unreadable"]).path
    now = db_now(session) - timedelta(days=days_ago)
    kept = {"path": path, "digest": "0" * 64, "size_bytes": 10, "reason": "not DICOM", "association_id": None}
    facts.quarantine(session, **kept, now=now)
    if instance_id is not None:
        session.execute(update(Receipt).where(Receipt.path == path).values(instance_id=instance_id))
    return path


def test_purge_takes_quarantined_bytes_that_everybody_could_look_at(
    tmp_path: Path, store: ObjectStore, engine: Engine
) -> None:
    with session_scope(engine) as session:
        disputed = receive(session, store)
        facts.hold_study(session, disputed.study_id, Hold.IDENTITY_CONFLICT, actor="a", now=db_now(session))
        old, young = quarantine(session, store, 91), quarantine(session, store, 89)
        evidence = quarantine(session, store, 91, disputed.instance_id)
        received = facts.counts(session)
    make_tasks(tmp_path, engine).purge()
    assert [store.absolute(path).exists() for path in (old, young, evidence)] == [False, True, True]
    with session_scope(engine) as session:
        assert facts.counts(session) == received, "rows stay"
        assert sorted(kept.is_purged for kept in facts.list_quarantined(session)[0]) == [False, False, True]
        assert [r.action for r in audit.tail(session, 20)].count("quarantine_purged") == 1
        facts.release_study(session, disputed.study_id, actor="a", now=db_now(session))
    make_tasks(tmp_path, engine).purge()
    assert not store.absolute(evidence).exists(), "the dispute is decided"


def test_purge_takes_old_questions_of_storage_commitment(tmp_path: Path, engine: Engine) -> None:
    with session_scope(engine) as session:
        now = db_now(session)
        for days in (89, 91):
            at, uid = now - timedelta(days=days), f"1.2.{days}"
            session.execute(insert(Commitment).values(transaction_uid=uid, destination="main", asked_at=at))
            for due_at in (None, at):
                values = {"transaction_uid": f"{uid}.{int(due_at is None)}", "due_at": due_at, "received_at": at}
                session.execute(
                    insert(CommitmentRequest).values(calling_ae_title="PACS", objects=[], attempts=0, **values)
                )
    make_tasks(tmp_path, engine).purge()
    with read_scope(engine) as session:
        asked = session.execute(select(Commitment.transaction_uid)).scalars().all()
        wanted = session.execute(select(CommitmentRequest.transaction_uid)).scalars().all()
    assert asked == ["1.2.89"]
    assert sorted(wanted) == ["1.2.89.0", "1.2.89.1", "1.2.91.0"], "one that is still to be answered stays"


def test_purge_forgets_rejections_of_what_never_came(tmp_path: Path, store: ObjectStore, engine: Engine) -> None:
    with session_scope(engine) as session:
        receive(session, store, 1)
        for days, uid in ((500, "1.2.1.1.1"), (500, "1.2.1.1.2"), (399, "1.2.1.1.3")):
            facts.note_rejection(
                session,
                sop_instance_uids=[uid],
                study_instance_uid="1.2.1",
                code="113001",
                note_uid="1.2.9",
                calling_ae_title="CR_ROOM_1",
                is_trusted=False,
                now=db_now(session) - timedelta(days=days),
            )
    make_tasks(tmp_path, engine).purge()
    with read_scope(engine) as session:
        left = session.execute(select(RejectedObject.sop_instance_uid)).scalars().all()
    assert sorted(left) == ["1.2.1.1.1", "1.2.1.1.3"], "what is said of an image stands as long as its row"


def test_purge_keeps_a_year_of_refused_contexts(tmp_path: Path, engine: Engine) -> None:
    with session_scope(engine) as session:
        now = db_now(session)
        today = now.astimezone().date()
        for days in (0, 366, 500):
            day = today - timedelta(days=days)
            facts.record_refused_contexts(session, "CT_1", {(f"1.2.{days}", 3)}, is_empty=True, day=day, now=now)
    make_tasks(tmp_path, engine).purge()
    with session_scope(engine) as session:
        kept = facts.list_refused_contexts(session, since=today - timedelta(days=1000), until=today)
    assert {one.abstract_syntax for one in kept} == {"1.2.0", "1.2.366"}


def test_purge_takes_old_associations_that_brought_nothing_and_no_sum_changes(
    tmp_path: Path, store: ObjectStore, engine: Engine
) -> None:
    with session_scope(engine) as session:
        now = db_now(session)
        old, young = now - timedelta(days=40), now - timedelta(days=20)
        ids = {name: uuid4() for name in ("brought", "refused", "quarantined", "open", "young")}
        for name, association_id in ids.items():
            opened_at = young if name == "young" else old
            facts.open_association(
                session,
                association_id=association_id,
                listener=name,
                calling_ae_title="CR_ROOM_1",
                called_ae_title="PACS_NODE",
                peer_address="127.0.0.1",
                now=opened_at,
            )
            if name != "open":
                facts.close_association(session, association_id, "released", opened_at)
        facts.add_instance(session, make_instance(1, association_id=ids["brought"]), now=old)
        facts.quarantine(
            session,
            path="quarantine/1",
            digest="0",
            size_bytes=1,
            reason="",
            association_id=ids["quarantined"],
            now=old,
        )
        before = facts.sums_by_sender(session, old - timedelta(days=1), now)
    tasks = make_tasks(tmp_path, engine)
    tasks.purge()
    tasks.purge()
    with read_scope(engine) as session:
        assert set(session.scalars(select(Association.id))) == set(ids.values()) - {ids["refused"]}
        assert facts.sums_by_sender(session, old - timedelta(days=1), now) == before
    make_tasks(tmp_path, engine, store={"retention_days": 0}).purge()


def test_quarantine_is_kept_for_ever_where_the_config_says_so(
    tmp_path: Path, store: ObjectStore, engine: Engine
) -> None:
    with session_scope(engine) as session:
        path = quarantine(session, store, 4000)
    make_tasks(tmp_path, engine, store={"quarantine_days": 0}).purge()
    assert store.absolute(path).exists()


def test_purge_that_crashed_is_ended_by_the_sweep(tmp_path: Path, store: ObjectStore, engine: Engine) -> None:
    tasks = make_tasks(tmp_path, engine)
    with session_scope(engine) as session:
        accepted = receive(session, store)
        path = stored_path(session, accepted.instance_id)
        judge(session, accepted.instance_id, 0.1, now=db_now(session))
        _finish(session, accepted.study_id)
        assert facts.mark_purged(session, accepted.study_id, now=db_now(session))
    age(store, path, days=2)  # the process died here, before it deleted the file
    tasks.sweep_orphans()
    assert not store.absolute(path).exists()


def test_verify_writes_its_finding_into_the_trail(tasks: Tasks, store: ObjectStore, engine: Engine) -> None:
    with session_scope(engine) as session:
        receive(session, store)
    tasks.seal()
    tasks.verify()
    with read_scope(engine) as session:
        last = audit.tail(session, 1)[-1]
    assert last.action == "chain_verified"
    assert last.details["broken"] == 0
    assert last.details["sealed"] >= 1


def _received_days_ago(session: Session, study_id: UUID, days: float) -> None:
    then = db_now(session) - timedelta(days=days)
    session.execute(update(Study).where(Study.id == study_id).values(last_received_at=then, first_received_at=then))


def _finish(session: Session, study_id: UUID) -> None:
    """Let the study have nothing left to report, as after a report that stays in the house."""
    session.execute(update(Study).where(Study.id == study_id).values(unreported_since=None))
