"""Reception, identity, judgement and settling: from received bytes to a settled study; on both databases."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select, update

from db import audit, facts, queue
from db.audit import Action
from db.engine import NoSuchRecord, Session
from db.queue import JobKind, JobState
from db.tables import (
    Association,
    Hold,
    Instance,
    InstanceState,
    Job,
    Outcome,
    Prediction,
    Receipt,
    Series,
    Study,
    Table,
)
from tests.records import (
    LATERAL,
    LOW_CONFIDENCE,
    NOON,
    SECOND,
    add_image,
    end_jobs,
    judge,
    make_instance,
    make_prediction,
)

RECODED = "1.2.840.10008.1.2.4.70"
OTHER_DIGEST = "f" * 64


def count(session: Session, kind: type[Table]) -> int:
    return session.execute(select(func.count()).select_from(kind)).scalar_one()


def actions(session: Session) -> list[str]:
    return [row.action for row in audit.tail(session, 100)]


def state_of(session: Session, instance_id: UUID) -> InstanceState:
    return facts.instance_detail(session, instance_id).image.state


# Reception


def test_new_image_gets_its_rows_receipt_job_and_audit_event(session: Session) -> None:
    accepted = add_image(session, priority=1)
    assert (accepted.outcome, accepted.hold) == (Outcome.NEW, None)
    assert [count(session, kind) for kind in (Study, Series, Instance, Receipt)] == [1, 1, 1, 1]
    job = queue.list_jobs(session, limit=10)[0]
    assert (job.kind, job.subject_id, job.study_id, job.priority) == (
        JobKind.INFER,
        accepted.instance_id,
        accepted.study_id,
        1,
    )
    assert actions(session) == [Action.INSTANCE_STORED]
    study = facts.study_facts(session, accepted.study_id, lock=True)
    assert (study.unreported_since, study.last_received_at, study.revision) == (NOON, NOON, 0)


def test_image_that_is_never_judged_ends_with_its_reason_and_opens_no_report(session: Session) -> None:
    reason = ("own_object", "This node made it")
    accepted = add_image(session, is_judged=False, not_judged_reason=reason)
    image = facts.instance_detail(session, accepted.instance_id).image
    assert image.state is InstanceState.NOT_ANALYSED
    assert [(warning.code, warning.severity, warning.text) for warning in image.warnings] == [
        ("own_object", "forbids", "This node made it")
    ]
    assert queue.list_jobs(session, limit=10) == []
    assert facts.study_facts(session, accepted.study_id, lock=False).unreported_since is None


def test_second_image_joins_its_study_and_series(session: Session) -> None:
    first = add_image(session, 1)
    second = add_image(session, 2, now=NOON + SECOND, priority=1)
    other = add_image(session, 3, series_instance_uid="1.2.1.2", now=NOON - SECOND)
    assert first.study_id == second.study_id == other.study_id
    assert [count(session, kind) for kind in (Study, Series, Instance)] == [1, 2, 3]
    study = facts.study_facts(session, first.study_id, lock=False)
    assert (study.last_received_at, study.priority) == (NOON + SECOND, 1)
    assert [image.sop_instance_uid for image in study.images] == ["1.2.1.1.3", "1.2.1.1.1", "1.2.1.1.2"]


def test_same_data_set_again_is_a_duplicate_without_a_job(session: Session) -> None:
    first = add_image(session)
    again = add_image(session)
    assert again == replace(first, outcome=Outcome.DUPLICATE)
    assert [count(session, kind) for kind in (Instance, Receipt, Job)] == [1, 2, 1]
    assert actions(session)[-1] == Action.INSTANCE_DUPLICATE


@pytest.mark.parametrize(
    ("changes", "is_same_pixels", "outcome", "hold"),
    [
        ({"transfer_syntax_uid": RECODED}, True, Outcome.DUPLICATE, None),
        ({"transfer_syntax_uid": RECODED}, False, Outcome.QUARANTINED, None),
        ({"transfer_syntax_uid": RECODED}, None, Outcome.QUARANTINED, None),
        ({}, True, Outcome.QUARANTINED, None),
        ({"transfer_syntax_uid": RECODED, "series_instance_uid": "9.9"}, True, Outcome.QUARANTINED, None),
        ({"transfer_syntax_uid": RECODED, "patient_id": "2"}, True, Outcome.QUARANTINED, Hold.IDENTITY_CONFLICT),
        ({"patient_name": "Roe^Jane"}, None, Outcome.QUARANTINED, Hold.IDENTITY_CONFLICT),
        ({"study_instance_uid": "9.9"}, None, Outcome.QUARANTINED, Hold.IDENTITY_CONFLICT),
    ],
    ids=[
        "recoded, same pixels",
        "recoded, other pixels",
        "recoded, nobody compares",
        "same transfer syntax",
        "other series",
        "other patient id",
        "other name",
        "other study",
    ],
)
def test_same_uid_with_another_digest(
    session: Session, changes: dict[str, Any], is_same_pixels: bool | None, outcome: Outcome, hold: Hold | None
) -> None:
    first = add_image(session)
    copy = make_instance(digest=OTHER_DIGEST, **changes)
    same_pixels = None if is_same_pixels is None else (lambda _existing, _new: bool(is_same_pixels))
    accepted = facts.add_instance(session, copy, now=NOON, same_pixels=same_pixels)
    assert (accepted.outcome, accepted.hold) == (outcome, hold)
    assert (accepted.instance_id, accepted.study_id) == (first.instance_id, first.study_id)
    assert [count(session, kind) for kind in (Study, Instance, Job)] == [1, 1, 1]
    quarantined, _ = facts.list_quarantined(session)
    assert [kept.path for kept in quarantined] == ([copy.path] if outcome is Outcome.QUARANTINED else [])
    assert (Action.STUDY_HELD in actions(session)) == (hold is not None)


def test_same_pixels_is_asked_with_the_stored_and_the_new_path(session: Session) -> None:
    first, copy = make_instance(), make_instance(digest=OTHER_DIGEST, transfer_syntax_uid=RECODED)
    asked = []
    facts.add_instance(session, first, now=NOON)
    facts.add_instance(session, copy, now=NOON, same_pixels=lambda *paths: bool(asked.append(paths)))
    assert asked == [(first.path, copy.path)]
    stored = facts.stored_copy(session, first.sop_instance_uid)
    assert stored is not None
    assert (stored.path, stored.transfer_syntax_uid) == (first.path, first.transfer_syntax_uid)
    assert facts.stored_copy(session, "9.9") is None


def test_unreadable_bytes_are_kept_with_their_reason(session: Session) -> None:
    kept_as = {"path": "quarantine/x", "digest": "0" * 64, "size_bytes": 9}
    facts.quarantine(session, **kept_as, reason="not DICOM\x00", association_id=None, now=NOON)
    kept = facts.list_quarantined(session)[0][0]
    assert (kept.path, kept.reason, kept.instance_id) == ("quarantine/x", "not DICOM\ufffd", None)
    assert facts.counts(session).adds_up


# Identity


@pytest.mark.parametrize(
    ("changes", "hold"),
    [
        ({}, None),
        ({"patient_name": "Doe^Jane^^ "}, None),
        ({"patient_id": " PATIENT-1"}, None),
        ({"accession_number": "A2", "patient_sex": "O"}, None),
        ({"patient_id": "PATIENT-2"}, Hold.IDENTITY_CONFLICT),
        ({"patient_id": ""}, Hold.IDENTITY_CONFLICT),
        ({"issuer_of_patient_id": "HOSPITAL-B"}, Hold.IDENTITY_CONFLICT),
        ({"patient_name": "Doe^John"}, Hold.IDENTITY_CONFLICT),
        ({"patient_birth_date": "19700102"}, Hold.IDENTITY_CONFLICT),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else str(value),
)
def test_second_image_of_a_study_that_differs_in_identity_holds_it(
    session: Session, changes: dict[str, Any], hold: Hold | None
) -> None:
    add_image(session, 1)
    accepted = add_image(session, 2, **changes)
    assert (accepted.outcome, accepted.hold) == (Outcome.NEW, hold)
    assert facts.study_facts(session, accepted.study_id, lock=False).hold == hold


def test_missing_patient_id_holds_the_study_until_an_admin_decides_once(session: Session) -> None:
    first = add_image(session, 1, patient_id=" ")
    assert first.hold is Hold.UNIDENTIFIED
    assert add_image(session, 2, patient_id="").hold is Hold.UNIDENTIFIED
    assert actions(session).count(Action.STUDY_HELD) == 1
    facts.release_study(session, first.study_id, actor="admin", now=NOON)
    assert add_image(session, 3, patient_id="").hold is None
    assert add_image(session, 4, patient_id="PATIENT-1").hold is Hold.IDENTITY_CONFLICT


def test_text_that_no_database_takes_is_kept_readable(session: Session) -> None:
    odd = {"patient_name": "D\x00e^J\udcff", "study_description": "x" * 5000, "patient_id": "1" * 300}
    accepted = add_image(session, 1, **odd)
    assert add_image(session, 2, **odd).hold is None
    detail = facts.study_detail(session, accepted.study_id)
    assert detail.summary.patient_name == "D\ufffde^J?"
    assert (len(detail.study_description), len(detail.summary.patient_id)) == (5000, 300)


@pytest.mark.parametrize("name", ["study_instance_uid", "series_instance_uid", "sop_instance_uid", "sop_class_uid"])
@pytest.mark.parametrize("uid", ["", "1" * 65])
def test_uid_that_is_none_is_refused_before_the_database(name: str, uid: str) -> None:
    with pytest.raises(ValueError, match=name):
        make_instance(**{name: uid})


def test_patient_attributes_are_not_printed(session: Session) -> None:
    accepted = add_image(session)
    printed = f"{make_instance()} {facts.study_detail(session, accepted.study_id)} {facts.list_studies(session)}"
    for attribute in ("PATIENT-1", "Doe", "19700101", "A1'"):
        assert attribute not in printed


# Judgement


def test_judgement_with_predictions_ends_as_analysed(session: Session) -> None:
    instance_id = add_image(session).instance_id
    facts.record_judgement(
        session, instance_id, predictions=[make_prediction(0.55)], warnings=[LOW_CONFIDENCE], voi="linear", now=NOON
    )
    image = facts.instance_detail(session, instance_id).image
    assert image.state is InstanceState.ANALYSED
    assert [(p.finding, p.probability, p.confidence) for p in image.predictions] == [("pneumonia", 0.55, 100 * 0.55)]
    assert [warning.code for warning in image.warnings] == ["low_confidence"]
    assert actions(session)[-1] == Action.INSTANCE_JUDGED


def test_judgement_without_predictions_ends_as_not_analysed(session: Session) -> None:
    instance_id = add_image(session).instance_id
    facts.record_judgement(session, instance_id, predictions=[], warnings=[LATERAL], voi=None, now=NOON)
    assert state_of(session, instance_id) is InstanceState.NOT_ANALYSED
    assert actions(session)[-1] == Action.INSTANCE_NOT_ANALYSED


def test_recording_the_same_judgement_again_changes_nothing(session: Session) -> None:
    instance_id = add_image(session).instance_id
    predictions = [make_prediction()]
    for processing_time_ms in (10.0, 99.0):
        timed = [replace(predictions[0], processing_time_ms=processing_time_ms)]
        facts.record_judgement(session, instance_id, predictions=timed, warnings=[LOW_CONFIDENCE], voi=None, now=NOON)
    assert count(session, Prediction) == 1
    assert actions(session).count(Action.INSTANCE_JUDGED) == 1


def test_newer_judgement_supersedes_and_keeps_the_older(session: Session) -> None:
    instance_id = add_image(session).instance_id
    judge(session, instance_id, 0.9)
    newer = make_prediction(0.1, model_version="2.0.0")
    facts.record_judgement(session, instance_id, predictions=[newer], warnings=[], voi="linear", now=NOON)
    image = facts.instance_detail(session, instance_id).image
    assert [(p.model_version, p.probability) for p in image.predictions] == [("2.0.0", 0.1)]
    assert count(session, Prediction) == 2
    facts.record_judgement(session, instance_id, predictions=[], warnings=[LATERAL], voi=None, now=NOON)
    assert facts.instance_detail(session, instance_id).image.predictions == ()


def test_failure_is_visible_and_a_later_result_replaces_it(session: Session) -> None:
    instance_id = add_image(session).instance_id
    for _ in range(2):
        facts.record_failure(session, instance_id, error_text="cannot read \x00" + "x" * 1000, now=NOON)
    image = facts.instance_detail(session, instance_id).image
    assert image.state is InstanceState.FAILED
    assert [(warning.code, len(warning.text)) for warning in image.warnings] == [("processing_failed", 500)]
    assert actions(session).count(Action.INSTANCE_FAILED) == 1
    judge(session, instance_id)
    assert state_of(session, instance_id) is InstanceState.ANALYSED
    assert facts.instance_detail(session, instance_id).image.warnings == ()


def test_judging_an_unknown_instance_is_refused(session: Session) -> None:
    with pytest.raises(NoSuchRecord):
        facts.record_judgement(session, uuid4(), predictions=[], warnings=[], voi=None, now=NOON)


def test_instance_files_tell_where_the_bytes_are(session: Session) -> None:
    new = make_instance()
    accepted = facts.add_instance(session, new, now=NOON)
    files = facts.instance_files(session, [accepted.instance_id, uuid4()])
    assert files[accepted.instance_id].path == new.path
    assert len(files) == 1


def test_retried_job_lets_its_image_wait_again(session: Session) -> None:
    instance_id = add_image(session).instance_id
    job_id = queue.list_jobs(session, limit=1)[0].id
    with pytest.raises(NoSuchRecord):
        facts.retry_job(session, job_id, actor="admin", now=NOON)
    session.execute(update(Job).values(state=JobState.FAILED))
    facts.record_failure(session, instance_id, error_text="boom", now=NOON)
    assert facts.retry_job(session, job_id, actor="admin", now=NOON).state is JobState.READY
    assert state_of(session, instance_id) is InstanceState.WAITING
    assert actions(session)[-1] == Action.JOB_RETRIED


def test_received_is_the_sum_of_all_ends(session: Session) -> None:
    ids = [add_image(session, number).instance_id for number in range(1, 5)]
    judge(session, ids[0])
    facts.record_judgement(session, ids[1], predictions=[], warnings=[LATERAL], voi=None, now=NOON)
    facts.record_failure(session, ids[2], error_text="boom", now=NOON)
    add_image(session, 1)
    add_image(session, 1, digest=OTHER_DIGEST)
    kept = facts.counts(session)
    assert kept == facts.Conservation(
        received=6, analysed=1, not_analysed=1, failed=1, waiting=1, duplicate=1, quarantined=1
    )
    assert kept.adds_up
    assert not replace(kept, received=7).adds_up


# Settling: settle_s 2, idle_s 10, report_wait_s 60


def settled(session: Session, at_s: float) -> bool:
    now = NOON + at_s * SECOND
    return bool(facts.settled_studies(session, settle_s=2, idle_s=10, report_wait_s=60, now=now))


def open_association(session: Session, at: datetime = NOON, listener: str = "l1") -> UUID:
    association_id = uuid4()
    facts.open_association(
        session,
        association_id=association_id,
        listener=listener,
        calling_ae_title="CR_ROOM_1",
        called_ae_title="PACS_NODE",
        peer_address="192.0.2.1",
        now=at,
    )
    return association_id


@pytest.mark.parametrize(
    ("association", "is_judged_now", "at_s", "expected"),
    [
        (None, True, 1.9, False),
        (None, True, 2, True),
        ("released", True, 2, True),
        ("open", True, 2, False),
        ("open", True, 9.9, False),
        ("open", True, 10, True),
        ("lost", True, 2, True),
        ("open elsewhere", True, 2, True),
        (None, False, 10, False),
        (None, False, 59.9, False),
        (None, False, 60, True),
        ("open", False, 60, True),
    ],
)
def test_study_settles_when_reception_and_judging_are_over(
    session: Session, association: str | None, is_judged_now: bool, at_s: float, expected: bool
) -> None:
    association_id = open_association(session) if association else None
    sender = None if association == "open elsewhere" else association_id
    accepted = add_image(session, association_id=sender)
    if association_id is not None and association == "released":
        facts.close_association(session, association_id, "released", NOON)
    if association == "lost":
        session.execute(update(Association).values(seen_at=NOON - 60 * SECOND))
        assert facts.lose_associations(session, silent_for_s=30, now=NOON) == 1
    if is_judged_now:
        judge(session, accepted.instance_id)
    assert settled(session, at_s) == expected


def test_study_settles_without_waiting_for_a_job_that_failed(session: Session) -> None:
    accepted = add_image(session)
    session.execute(update(Job).values(state=JobState.FAILED))
    facts.record_failure(session, accepted.instance_id, error_text="boom", now=NOON)
    assert settled(session, 2)


def test_each_image_starts_the_settling_anew(session: Session) -> None:
    for number, at_s in ((1, 0), (2, 1.5)):
        judge(session, add_image(session, number, now=NOON + at_s * SECOND).instance_id)
    assert not settled(session, 3)
    assert settled(session, 3.5)


def test_late_result_waits_for_its_siblings_again(session: Session) -> None:
    first, second = (add_image(session, number) for number in (1, 2))
    session.execute(update(Study).values(unreported_since=None))  # reported at 60 s without either
    judge(session, first.instance_id, now=NOON + 70 * SECOND)
    assert not settled(session, 71)
    assert settled(session, 130)
    judge(session, second.instance_id, now=NOON + 72 * SECOND)
    assert settled(session, 72)


def test_study_without_news_does_not_settle_and_a_held_one_does(session: Session) -> None:
    accepted = add_image(session, patient_id="")
    judge(session, accepted.instance_id)
    assert settled(session, 5)
    session.execute(update(Study).values(unreported_since=None))
    assert not settled(session, 5)


def test_longest_waiting_study_settles_first(session: Session) -> None:
    studies = []
    for place, at_s in ((1, 3), (2, 1), (3, 2)):
        accepted = add_image(session, study=f"1.{place}", now=NOON + at_s * SECOND)
        end_jobs(session, accepted.instance_id)
        studies.append(accepted.study_id)
    now = NOON + 60 * SECOND
    due = facts.settled_studies(session, settle_s=2, idle_s=10, report_wait_s=60, now=now, limit=2)
    assert due == [studies[1], studies[2]]


# Associations


def test_associations_are_counted_kept_alive_and_lost(session: Session) -> None:
    alive, silent = open_association(session, listener="l1"), open_association(session, listener="l2")
    facts.beat(session, "l1", NOON + 60 * SECOND)
    assert [facts.count_open(session, title) for title in (None, "CR_ROOM_1", "OTHER")] == [2, 2, 0]
    assert facts.lose_associations(session, silent_for_s=30, now=NOON + 60 * SECOND) == 1
    facts.close_association(session, silent, "released", NOON + 61 * SECOND)
    assert session.execute(select(Association.end).where(Association.id == silent)).scalar_one() == "lost"
    assert facts.count_open(session) == 1
    facts.close_association(session, alive, "aborted", NOON + 61 * SECOND)
    assert facts.count_open(session) == 0
