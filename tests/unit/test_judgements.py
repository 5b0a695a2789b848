"""From an image that waits to a settled study, and the sums that must add up; on both databases."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select, update

from db import audit, facts, queue
from db.audit import Action
from db.engine import NoSuchRecord, Session
from db.queue import JobState
from db.tables import (
    Association,
    InstanceState,
    Job,
    Prediction,
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

OTHER_DIGEST = "f" * 64


def count(session: Session, kind: type[Table]) -> int:
    return session.execute(select(func.count()).select_from(kind)).scalar_one()


def actions(session: Session) -> list[str]:
    return [row.action for row in audit.tail(session, 100)]


def state_of(session: Session, instance_id: UUID) -> InstanceState:
    return facts.instance_detail(session, instance_id).image.state


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


def test_closed_job_leaves_its_image_failed_and_says_who_and_why(session: Session) -> None:
    instance_id = add_image(session).instance_id
    job_id = queue.list_jobs(session, limit=1)[0].id
    reason = facts.ClosingReason.CANNOT_BE_DONE
    with pytest.raises(NoSuchRecord):
        facts.close_job(session, job_id, reason=reason, actor="user:ann", now=NOON)
    session.execute(update(Job).values(state=JobState.FAILED))
    facts.record_failure(session, instance_id, error_text="boom", now=NOON)
    closed = facts.close_job(session, job_id, reason=reason, actor="user:ann", now=NOON)
    assert closed.state is JobState.CLOSED
    assert state_of(session, instance_id) is InstanceState.FAILED
    event = audit.tail(session, limit=1)[0]
    assert (event.action, event.actor, event.details["reason"]) == (Action.JOB_CLOSED, "user:ann", "cannot_be_done")
    facts.retry_job(session, job_id, actor="user:ann", now=NOON)
    assert state_of(session, instance_id) is InstanceState.WAITING


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
