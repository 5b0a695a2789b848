"""Readers' reports: frozen from a verdict, taken back in time, and never the study's current report."""

from __future__ import annotations

from uuid import UUID

import pytest
from sqlalchemy import update

from db import audit, facts, queue
from db.audit import Action
from db.engine import Session
from db.facts import BuiltObject, NewHeatmap, ReviewFacts
from db.queue import JobKind
from db.tables import Answer, DeliveryState, ObjectKind, Study, Verdict
from tests.records import MINUTE, NOON, POLICY, SECOND, add_image, end_jobs, freeze, judge


@pytest.fixture
def study_id(session: Session) -> UUID:
    """A study whose report says PRESENT and was built."""
    accepted = add_image(session)
    judge(session, accepted.instance_id, 0.9)
    report_id = freeze(session, accepted.study_id, Answer.PRESENT, probability=0.9)
    assert report_id is not None
    facts.record_report_built(session, report_id, [], [], now=NOON)
    end_jobs(session, report_id)
    return accepted.study_id


def review(session: Session, study_id: UUID, verdict: Verdict, **more: str) -> ReviewFacts:
    return facts.add_review(session, study_id, verdict=verdict, comment="", reviewer="ada", now=NOON, **more)  # type: ignore[arg-type]


def building(session: Session) -> list[queue.Job]:
    jobs = queue.list_jobs(session, kind=JobKind.REPORT, limit=10)
    return [job for job in jobs if job.state is queue.JobState.READY]


@pytest.mark.parametrize(
    ("verdict", "more", "answer"),
    [
        (Verdict.AGREE, {}, Answer.PRESENT),
        (Verdict.DISAGREE, {}, Answer.ABSENT),
        (Verdict.DISAGREE, {"corrected_finding": "normal"}, Answer.ABSENT),
        (Verdict.UNSURE, {}, Answer.UNDETERMINED),
    ],
)
def test_verdict_becomes_a_report_that_is_built_after_a_delay(
    session: Session, study_id: UUID, verdict: Verdict, more: dict[str, str], answer: Answer
) -> None:
    said = review(session, study_id, verdict, **more)
    report_id = facts.request_verified_report(session, said.review_id, now=NOON, delay_s=10)
    assert report_id is not None
    report = facts.report_facts(session, report_id)
    assert (report.revision, report.answer, report.probability, report.review_id) == (2, answer, None, said.review_id)
    assert report.predecessor is not None
    assert (report.predecessor.revision, report.predecessor.answer) == (1, Answer.PRESENT)
    assert facts.frozen_images(session, report_id) == facts.frozen_images(session, report.predecessor.report_id)
    (job,) = building(session)
    assert (job.subject_id, job.due_at) == (report_id, NOON + 10 * SECOND)
    assert not queue.claim(session, JobKind.REPORT, owner="a", limit=1, policy=POLICY, now=NOON + 9 * SECOND)
    assert facts.request_verified_report(session, said.review_id, now=NOON) == report_id, "asked twice"


@pytest.mark.parametrize("verdict", [Verdict.COMMENT])
def test_words_without_a_verdict_make_no_report(session: Session, study_id: UUID, verdict: Verdict) -> None:
    said = review(session, study_id, verdict)
    assert facts.request_verified_report(session, said.review_id, now=NOON) is None
    assert building(session) == []


def test_nothing_is_verified_about_a_study_that_was_not_analysed(session: Session) -> None:
    accepted = add_image(session)
    freeze(session, accepted.study_id, Answer.NOT_ANALYSED, probability=None)
    said = review(session, accepted.study_id, Verdict.AGREE)
    assert facts.request_verified_report(session, said.review_id, now=NOON) is None


def test_cancelled_report_leaves_its_trace_in_the_trail_only(session: Session, study_id: UUID) -> None:
    said = review(session, study_id, Verdict.AGREE)
    facts.request_verified_report(session, said.review_id, now=NOON)
    assert facts.cancel_verified_report(session, said.review_id, now=NOON)
    assert building(session) == []
    assert [report.revision for report in facts.study_detail(session, study_id).reports] == [1]
    assert [record.action for record in audit.tail(session, 2)] == [Action.REPORT_FROZEN, Action.REPORT_CANCELLED]
    assert not facts.cancel_verified_report(session, said.review_id, now=NOON)


def test_report_that_is_being_built_is_not_cancelled(session: Session, study_id: UUID) -> None:
    said = review(session, study_id, Verdict.AGREE)
    report_id = facts.request_verified_report(session, said.review_id, now=NOON)
    queue.claim(session, JobKind.REPORT, owner="a", limit=1, policy=POLICY, now=NOON + 10 * SECOND)
    assert not facts.cancel_verified_report(session, said.review_id, now=NOON + 10 * SECOND)
    assert report_id is not None
    assert facts.report_facts(session, report_id).built_at is None


def test_models_report_stays_the_current_one_and_its_next_follows_both(session: Session, study_id: UUID) -> None:
    said = review(session, study_id, Verdict.DISAGREE)
    facts.request_verified_report(session, said.review_id, now=NOON)
    study = facts.study_facts(session, study_id, lock=False)
    assert study.current_report is not None
    assert (study.revision, study.current_report.revision, study.current_report.answer) == (1, 1, Answer.PRESENT)
    session.execute(update(Study).values(unreported_since=NOON))
    assert freeze(session, study_id, Answer.PRESENT, probability=0.9) is None, "the model says what it said"
    newer = freeze(session, study_id, Answer.UNDETERMINED)
    assert newer is not None
    report = facts.report_facts(session, newer)
    assert report.predecessor is not None
    assert (report.revision, report.predecessor.revision) == (3, 1)


# A reader who changes or withdraws a verdict

CODE = "113001"
MAIN = ("main", DeliveryState.WAITING, "")


def follow(session: Session, said: ReviewFacts, *, is_sent: bool = True) -> UUID | None:
    return facts.follow_review(session, said.review_id, is_sent=is_sent, code=CODE, now=said.created_at)


def say(session: Session, study_id: UUID, verdict: Verdict, minute: int) -> tuple[ReviewFacts, UUID | None]:
    now = NOON + minute * MINUTE
    said = facts.add_review(session, study_id, verdict=verdict, comment="", reviewer="ada", now=now)
    return said, follow(session, said)


def build(session: Session, report_id: UUID | None, *, is_stored: bool = True) -> UUID:
    """Build a reader's report, and let the PACS have it."""
    assert report_id is not None
    facts.record_report_built(session, report_id, [], [MAIN], now=NOON)
    end_jobs(session, report_id)
    if is_stored:
        (delivery,) = facts.deliveries_of(session, report_id)
        uids = {"sop_class_uid": "1.2.3", "sop_instance_uid": f"2.25.{report_id.int}"}
        facts.record_choice(session, delivery.delivery_id, **uids)
    return report_id


def replaced(session: Session, report_id: UUID | None) -> UUID | None:
    assert report_id is not None
    former = facts.report_facts(session, report_id).replaced
    return former.report_id if former else None


def withdrawn(session: Session, *report_ids: UUID | None) -> list[bool]:
    return [id_ is not None and facts.report_facts(session, id_).withdrawn_at is not None for id_ in report_ids]


def test_changed_verdict_makes_a_report_that_names_the_former_one(session: Session, study_id: UUID) -> None:
    first = build(session, say(session, study_id, Verdict.AGREE, 0)[1])
    said, second = say(session, study_id, Verdict.DISAGREE, 1)
    assert replaced(session, first) is None
    assert replaced(session, second) == first
    assert withdrawn(session, first, second) == [False, False], "the former stands until the new one is built"
    assert follow(session, said) == second
    assert len(facts.study_detail(session, study_id).reports) == 3


def test_withdrawn_verdict_withdraws_what_was_sent_of_it(session: Session, study_id: UUID) -> None:
    first = build(session, say(session, study_id, Verdict.AGREE, 0)[1])
    second = build(session, say(session, study_id, Verdict.UNSURE, 1)[1])
    said, none = say(session, study_id, Verdict.WITHDRAW, 2)
    assert none is None
    assert withdrawn(session, first, second) == [True, True]
    assert [one.withdrawal for id_ in (first, second) for one in facts.deliveries_of(session, id_)] == [CODE] * 2
    before = len(audit.tail(session, 100))
    follow(session, said)
    assert len(audit.tail(session, 100)) == before, "following twice changes nothing"
    assert {record.action for record in audit.tail(session, 4)} == {"report_withdrawn", "delivery_withdrawn"}
    assert facts.study_facts(session, study_id, lock=False).revision == 1, "the model's answer stands"


def test_verdict_after_a_withdrawal_replaces_what_was_sent_before(session: Session, study_id: UUID) -> None:
    first = build(session, say(session, study_id, Verdict.AGREE, 0)[1])
    say(session, study_id, Verdict.WITHDRAW, 1)
    assert replaced(session, say(session, study_id, Verdict.DISAGREE, 2)[1]) == first


def test_change_within_the_delay_leaves_no_trace_outside(session: Session, study_id: UUID) -> None:
    first = build(session, say(session, study_id, Verdict.AGREE, 0)[1])
    hasty = say(session, study_id, Verdict.DISAGREE, 1)[1]
    third = say(session, study_id, Verdict.UNSURE, 2)[1]
    with pytest.raises(facts.NoSuchRecord):
        facts.report_facts(session, hasty)  # type: ignore[arg-type]
    assert replaced(session, third) == first


def test_report_that_is_being_built_when_its_reader_changes_goes_nowhere(session: Session, study_id: UUID) -> None:
    first = say(session, study_id, Verdict.AGREE, 0)[1]
    queue.claim(session, JobKind.REPORT, owner="a", limit=1, policy=POLICY, now=NOON + MINUTE)
    second = say(session, study_id, Verdict.DISAGREE, 1)[1]
    assert withdrawn(session, first) == [True]
    build(session, first, is_stored=False)
    assert [one.state for one in facts.deliveries_of(session, first)] == [DeliveryState.WITHDRAWN]  # type: ignore[arg-type]
    assert replaced(session, second) is None, "what never left is not named"


def test_change_that_makes_no_report_withdraws_the_former_one(session: Session, study_id: UUID) -> None:
    """The switch was turned off since, or nobody answers for the new verdict."""
    first = build(session, say(session, study_id, Verdict.AGREE, 0)[1])
    said = review(session, study_id, Verdict.DISAGREE)
    assert follow(session, said, is_sent=False) is None
    assert withdrawn(session, first) == [True]


def test_other_readers_reports_and_words_beside_a_verdict_change_nothing(session: Session, study_id: UUID) -> None:
    first = build(session, say(session, study_id, Verdict.AGREE, 0)[1])
    follow(session, review(session, study_id, Verdict.COMMENT))
    other = facts.add_review(session, study_id, verdict=Verdict.UNSURE, comment="", reviewer="bo", now=NOON)
    assert replaced(session, follow(session, other)) is None
    assert withdrawn(session, first) == [False]


# Heat maps


def test_heat_map_is_kept_once_for_each_model_version(session: Session, study_id: UUID) -> None:
    (image,) = facts.study_detail(session, study_id).images
    assert facts.heatmap_of(session, image.instance_id) is None
    for number, version in enumerate(("1", "1", "2")):
        drawn = NewHeatmap(instance_id=image.instance_id, model_name="m", model_version=version, path=f"p/{number}")
        facts.record_heatmap(session, drawn, now=NOON + number * SECOND)
    assert facts.heatmap_of(session, image.instance_id) == "p/2"
    assert facts.heatmap_by(session, image.instance_id, "m", "1") == "p/0"
    assert facts.known_paths(session, ["p/0", "p/1", "p/2"]) == {"p/0", "p/2"}


def test_pictures_go_with_the_images_of_a_purged_study_and_reports_stay(session: Session) -> None:
    accepted = add_image(session)
    judge(session, accepted.instance_id, 0.9)
    report_id = freeze(session, accepted.study_id, Answer.PRESENT)
    assert report_id is not None
    report = BuiltObject(sop_instance_uid="2.25.1", sop_class_uid="1.2.3", path="own/sr", digest="1" * 64)
    picture = BuiltObject(
        sop_instance_uid="2.25.2", sop_class_uid="1.2.4", path="own/sc", digest="2" * 64, kind=ObjectKind.HEATMAP
    )
    facts.record_report_built(session, report_id, [report, picture], [("a", DeliveryState.HELD, "r")], now=NOON)
    assert facts.objects_of(session, report_id) == (report, picture)
    drawn = NewHeatmap(instance_id=accepted.instance_id, model_name="m", model_version="1", path="own/png")
    facts.record_heatmap(session, drawn, now=NOON)
    all_paths = {"own/sr", "own/sc", "own/png"}
    assert facts.known_paths(session, all_paths) == all_paths
    session.execute(update(Study).values(unreported_since=None))
    assert facts.mark_purged(session, accepted.study_id, NOON)
    assert facts.known_paths(session, all_paths) == {"own/sr"}
