"""What a bad model said: taken back everywhere, once, whatever runs meanwhile."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, select, update

from db import facts, queue
from db.engine import Session, read_scope, session_scope
from db.tables import DeliveryState, Instance, InstanceState, Job, JobKind, JobState, Study
from models.errors import UnknownModel
from pacs_node.commands.recall import recall
from pacs_node.errors import ConfigError
from pacs_node.schedule import Tasks
from pacs_node.settings import DestinationSettings
from pacs_node.wiring import active_card, registry_of
from pacs_node.worker.judging import Judgement, record
from tests import records
from tests.builders import make_bundle
from tests.unit.test_delivery import Hospital

SENT, WAITING, WITHDRAWN = DeliveryState.SENT, DeliveryState.WAITING, DeliveryState.WITHDRAWN
BAD, MODEL = ("resnet50", "1.0.0"), "resnet50/1.0.0"
"""Who judges in `tests.records`; the bundled model is the one that answers."""


@pytest.fixture
def hospital(sqlite_engine: Engine, sqlite_url: str, tmp_path: Path) -> Hospital:
    hospital = Hospital(sqlite_engine, tmp_path)
    places = {"database": {"url": sqlite_url}, "node": {"data_dir": tmp_path, "secrets_dir": tmp_path / "secrets"}}
    changes = {name: type(getattr(hospital.settings, name))(**values) for name, values in places.items()}
    hospital.settings = hospital.settings.model_copy(update=changes)
    return hospital


def with_destinations(hospital: Hospital, **notes: bool) -> None:
    """Give the hospital these PACS, and say which of them take rejection notes."""
    profiles = [
        DestinationSettings(name=name, ae_title="A", host="h", port=104, send_rejection_notes=takes)
        for name, takes in notes.items()
    ]
    hospital.settings = hospital.settings.model_copy(update={"destinations": tuple(profiles)})
    hospital.peers = {name: type(hospital.peers["main"])() for name in notes}


def judged(hospital: Hospital, number: int = 1, *, study: str = "1.2.1") -> facts.Accepted:
    """Receive an image and let the bad model judge it."""
    now = datetime.now(UTC)
    with session_scope(hospital.engine) as session:
        accepted = records.add_image(session, number, study=study, now=now)
        records.judge(session, accepted.instance_id, 0.93, now=now)
    return accepted


def reported(hospital: Hospital, number: int = 1, *, study: str = "1.2.1") -> UUID:
    """Judge an image, freeze and build a report on it; return the report's id."""
    accepted = judged(hospital, number, study=study)
    with session_scope(hospital.engine) as session:
        report_id = records.freeze(session, accepted.study_id, now=datetime.now(UTC))
    assert report_id is not None
    hospital.build(report_id)
    return report_id


def call_back(hospital: Hospital, **more: Any) -> int:
    wanted: dict[str, Any] = {"since": None, "actor": "admin", "dry_run": False}
    return recall(hospital.settings, MODEL, **wanted | more)


def images(hospital: Hospital) -> list[Any]:
    with read_scope(hospital.engine) as session:
        return list(session.execute(select(Instance).order_by(Instance.sop_instance_uid)).scalars())


def judging_jobs(hospital: Hospital) -> list[JobState]:
    with read_scope(hospital.engine) as session:
        return list(session.execute(select(Job.state).where(Job.kind == JobKind.INFER)).scalars())


def said(hospital: Hospital, study_id: UUID) -> tuple[facts.RecallFacts, ...]:
    with read_scope(hospital.engine) as session:
        return facts.said_by_model(session, study_id, BAD)


def test_recall_withdraws_rejects_and_judges_anew_once(hospital: Hospital, capsys: pytest.CaptureFixture[str]) -> None:
    with_destinations(hospital, main=True)
    reported(hospital)
    hospital.run()
    assert call_back(hospital, dry_run=True) == 0
    foretold = capsys.readouterr().out
    assert "1 would be recalled now: 1 would be judged anew and replaced, 1 rejection note(s)" in foretold
    assert "1 image(s) would be judged anew" in foretold
    assert (hospital.states(), judging_jobs(hospital)) == ([SENT], [JobState.DONE])
    assert call_back(hospital) == 0
    (delivery,) = hospital.deliveries()
    assert (delivery.state, delivery.withdrawal) == (WAITING, "113001")
    assert judging_jobs(hospital) == [JobState.READY]
    assert images(hospital)[0].state is InstanceState.WAITING, "what was said about it counts no more"
    capsys.readouterr()
    assert call_back(hospital) == 0
    assert "0 recalled now" in capsys.readouterr().out
    actions = hospital.actions()
    assert [actions.count(f"{what}_recalled") for what in ("report", "model", "judgement")] == [1, 1, 1]


def test_destination_without_notes_keeps_its_report_until_it_is_replaced(hospital: Hospital) -> None:
    with_destinations(hospital, plain=False, noting=True)
    reported(hospital)
    hospital.run()
    assert call_back(hospital) == 0
    assert sorted((one.destination, one.state) for one in hospital.deliveries()) == [
        ("noting", WAITING),
        ("plain", SENT),
    ]


def test_what_is_not_replaced_and_not_rejected_is_left_to_a_person(
    hospital: Hospital, capsys: pytest.CaptureFixture[str]
) -> None:
    reported(hospital)
    hospital.run()
    assert call_back(hospital, replace=False) == 1
    assert "main: 1 result(s) stay there" in capsys.readouterr().err
    assert judging_jobs(hospital) == [JobState.DONE]


def test_image_without_a_report_is_found_and_judged_anew(
    hospital: Hospital, capsys: pytest.CaptureFixture[str]
) -> None:
    judged(hospital)
    assert call_back(hospital) == 0
    assert "0 report(s) say" in (out := capsys.readouterr().out)
    assert "1 image(s) judged anew" in out
    assert judging_jobs(hospital) == [JobState.READY]
    assert images(hospital)[0].state is InstanceState.WAITING


def test_image_that_came_after_the_report_is_judged_anew_with_the_others(hospital: Hospital) -> None:
    reported(hospital)
    judged(hospital, 2)
    call_back(hospital)
    assert judging_jobs(hospital) == [JobState.READY] * 2


def test_since_passes_over_what_was_said_before(hospital: Hospital) -> None:
    first = judged(hospital)
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    assert call_back(hospital, since=tomorrow) == 0
    assert judging_jobs(hospital) == [JobState.DONE]
    with session_scope(hospital.engine) as session:
        records.freeze(session, first.study_id, now=tomorrow)
    call_back(hospital, since=tomorrow)
    assert judging_jobs(hospital) == [JobState.READY], "the report is of that time, whenever the image was judged"


def test_purged_study_is_rejected_and_not_judged_anew(hospital: Hospital) -> None:
    with_destinations(hospital, main=True)
    reported(hospital)
    hospital.run()
    with session_scope(hospital.engine) as session:
        session.execute(update(Study).values(purged_at=datetime.now(UTC)))
    assert call_back(hospital) == 0
    assert hospital.states() == [WAITING]
    assert images(hospital)[0].state is InstanceState.ANALYSED


def test_reports_of_other_models_and_readers_are_not_recalled(hospital: Hospital) -> None:
    report_id = reported(hospital)
    other = hospital.report("1.2.2", number=2)
    with session_scope(hospital.engine) as session:
        study_id = facts.report_facts(session, report_id).study_id
        assert facts.studies_judged_by(session, BAD) == (study_id,)
        assert facts.studies_judged_by(session, ("resnet50", "1.0.1")) == ()
    call_back(hospital)
    with read_scope(hospital.engine) as session:
        assert facts.report_facts(session, other).withdrawn_at is None
        assert facts.report_facts(session, report_id).withdrawn_at is not None


# While others work


def claim(hospital: Hospital) -> queue.Job:
    with session_scope(hospital.engine) as session:
        (job,) = queue.claim(session, JobKind.INFER, owner="a", limit=1, policy=records.POLICY, now=datetime.now(UTC))
    return job


def test_answer_that_a_worker_gives_with_the_recalled_model_is_not_recorded(hospital: Hospital) -> None:
    """It claimed the image before the recall and answers after it: one recall is enough all the same."""
    reported(hospital)
    with session_scope(hospital.engine) as session:
        late = records.add_image(session, 2, now=datetime.now(UTC))
    job = claim(hospital)
    assert call_back(hospital) == 0
    judgement = Judgement(job=job, predictions=(records.make_prediction(0.93),))
    assert record(hospital.engine, [judgement], policy=records.POLICY), "the worker is told to change its model"
    assert [image.state for image in images(hospital)] == [InstanceState.WAITING] * 2
    assert judging_jobs(hospital) == [JobState.READY] * 2
    other = records.make_prediction(0.1, model_version="2.0.0")
    with session_scope(hospital.engine) as session:
        session.execute(update(Job).values(due_at=datetime.now(UTC)))
        jobs = queue.claim(session, JobKind.INFER, owner="a", limit=2, policy=records.POLICY, now=datetime.now(UTC))
    assert late.instance_id in [job.subject_id for job in jobs]
    again = [Judgement(job=job, predictions=(other,)) for job in jobs]
    assert not record(hospital.engine, again, policy=records.POLICY)
    assert [image.state for image in images(hospital)] == [InstanceState.ANALYSED] * 2


def test_no_report_is_frozen_over_a_recalled_word(hospital: Hospital) -> None:
    """As when a worker on another machine recorded its answer in the very instant of the recall."""
    accepted = judged(hospital)
    with session_scope(hospital.engine) as session:
        facts.recall_model(session, *BAD, actor="admin", now=datetime.now(UTC))
        session.execute(update(Study).values(last_received_at=records.NOON - records.DAY))
    Tasks(hospital.settings, hospital.engine).settle()
    assert judging_jobs(hospital) == [JobState.READY]
    with read_scope(hospital.engine) as session:
        study = facts.study_facts(session, accepted.study_id, lock=False)
    assert (study.revision, study.images[0].state) == (0, InstanceState.WAITING)


def test_report_that_was_recalled_is_not_sent_by_a_later_try(hospital: Hospital) -> None:
    """The PACS was lost in the middle of the report: it may be there, and it takes no notes."""
    peer = hospital.peers["main"]

    def lose(path: Path) -> None:
        raise ConnectionError("lost")

    peer.answer = lose
    reported(hospital)
    hospital.run(turns=1)
    assert hospital.states() == [WAITING]
    call_back(hospital)
    peer.answer = lambda path: None
    hospital.run()
    assert (hospital.states(), peer.has) == ([WITHDRAWN], [])
    hospital.report(number=2)
    hospital.run()
    assert hospital.states() == [WITHDRAWN, SENT], "and it holds up no other"


# Which version may be recalled


def test_version_that_answers_says_what_to_do_first(hospital: Hospital, tmp_path: Path) -> None:
    card = active_card(hospital.engine, registry_of(hospital.settings))
    active = f"{card.name}/{card.version}"
    wanted: dict[str, Any] = {"since": None, "actor": "admin", "dry_run": False}
    with pytest.raises(ConfigError, match=r"still answers.*models add FOLDER.*no other version"):
        recall(hospital.settings, active, **wanted)
    make_bundle(tmp_path / "models", name="other", version="3.0.0")
    with pytest.raises(ConfigError, match=r"still answers.*first: `pacs-node models activate other/3\.0\.0`"):
        recall(hospital.settings, active, **wanted)
    assert recall(hospital.settings, active, **wanted, replace=False) == 0
    with read_scope(hospital.engine) as session:
        assert facts.recalled_models(session) == frozenset(), "it goes on answering"


def test_what_nobody_knows_is_refused_and_not_marked(hospital: Hospital) -> None:
    wanted: dict[str, Any] = {"since": None, "actor": "admin", "dry_run": False}
    with pytest.raises(ConfigError, match="NAME/VERSION"):
        recall(hospital.settings, "resnet50", **wanted)
    with pytest.raises(UnknownModel, match=r"no model resnet50 1\.0\.0; known: chest-pneumonia"):
        call_back(hospital)
    with read_scope(hospital.engine) as session:
        assert facts.recalled_models(session) == frozenset()


def test_rollback_passes_over_a_recalled_version_and_activation_lifts_the_recall(hospital: Hospital) -> None:
    with session_scope(hospital.engine) as session:
        for number, version in enumerate("123"):
            facts.add_model_version(session, "m", version, version * 64, actor="admin", now=records.NOON)
            now = records.NOON + number * records.SECOND
            facts.activate_model(session, "m", version, actor="admin", now=now)
        assert not facts.recall_model(session, "m", "3", actor="admin", now=records.NOON), "it answers"
        assert facts.recall_model(session, "m", "2", actor="admin", now=records.NOON)
        assert facts.previous_active(session) == ("m", "1")
        facts.activate_model(session, "m", "2", actor="admin", now=records.NOON)
        assert facts.recalled_models(session) == frozenset()


def test_two_recalls_at_once_recall_everything_once(hospital: Hospital) -> None:
    with_destinations(hospital, main=True)
    for number in range(1, 4):
        reported(hospital, number, study=f"1.2.{number}")
    hospital.run()
    with ThreadPoolExecutor(2) as threads:
        assert [one.result(60) for one in [threads.submit(call_back, hospital) for _ in range(2)]] == [0, 0]
    actions = hospital.actions()
    assert [actions.count(what) for what in ("report_recalled", "delivery_withdrawn", "judgement_recalled")] == [3] * 3


def test_recall_that_was_cut_off_is_carried_on_by_the_next(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two transactions: each study is as it was, or wholly recalled."""
    for number in range(1, 4):
        reported(hospital, number, study=f"1.2.{number}")
    hospital.run()
    monkeypatch.setattr("pacs_node.recall.BATCH", 1)
    calls: list[UUID] = []

    def cut(session: Any, report_id: UUID, **more: Any) -> int:
        calls.append(report_id)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return withdraw(session, report_id, **more)

    withdraw = facts.withdraw_report
    with monkeypatch.context() as patched:
        patched.setattr(facts, "withdraw_report", cut)
        with pytest.raises(KeyboardInterrupt):
            call_back(hospital)
    assert (hospital.actions().count("report_recalled"), judging_jobs(hospital).count(JobState.READY)) == (1, 1)
    assert call_back(hospital) == 0
    assert (hospital.actions().count("report_recalled"), judging_jobs(hospital)) == (3, [JobState.READY] * 3)


def test_recall_finds_and_takes_back_the_same_on_both_databases(session: Session) -> None:
    first, late = (records.add_image(session, number) for number in (1, 2))
    records.judge(session, first.instance_id, 0.93)
    report_id = records.freeze(session, first.study_id)
    assert report_id is not None
    later = records.NOON + records.SECOND
    records.judge(session, late.instance_id, 0.93, now=later)
    assert facts.recall_model(session, *BAD, actor="admin", now=later)
    assert facts.recalled_models(session) == {BAD}
    assert facts.studies_judged_by(session, BAD) == (first.study_id,)
    (one,) = facts.said_by_model(session, first.study_id, BAD)
    assert (one.report_id, one.instance_ids, one.is_current) == (report_id, (first.instance_id,), True)
    assert facts.judged_by(session, first.study_id, [BAD], since=later) == (late.instance_id,)
    everything = facts.judged_by(session, first.study_id, [BAD], since=later, or_among=one.instance_ids)
    assert set(everything) == {first.instance_id, late.instance_id}
    mark: dict[str, Any] = {"model": BAD, "actor": "admin", "now": later}
    assert [facts.recall_report(session, report_id, **mark) for _ in range(2)] == [True, False]
    facts.judge_anew(session, everything, actor="admin", now=later)
    assert facts.judged_by(session, first.study_id, [BAD]) == ()
    images = facts.study_facts(session, first.study_id, lock=True).images
    assert [(image.state, image.predictions) for image in images] == [(InstanceState.WAITING, ())] * 2
    records.judge(session, first.instance_id, 0.1, now=later)  # and can be judged again
