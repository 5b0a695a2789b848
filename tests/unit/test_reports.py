"""From a settled study to sent reports, holds, reviews and retention; on both databases."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select, update

from db import audit, facts, queue
from db.audit import Action
from db.engine import NoSuchRecord, Session
from db.facts import Asked, BuiltObject
from db.queue import JobKind, JobState
from db.tables import Answer, DeliveryState, Hold, InstanceState, Job, Prediction, Study, Verdict
from tests.records import (
    LATERAL,
    NOON,
    POLICY,
    SECOND,
    add_image,
    end_jobs,
    freeze,
    judge,
    make_instance,
    make_prediction,
)

SR_3D = BuiltObject(
    sop_instance_uid="2.25.1", sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34", path="own/1", digest="1" * 64
)
SR_ENHANCED = BuiltObject(
    sop_instance_uid="2.25.2", sop_class_uid="1.2.840.10008.5.1.4.1.1.88.22", path="own/2", digest="2" * 64
)
MAIN = ("main", DeliveryState.WAITING, "")


@pytest.fixture
def study_id(session: Session) -> UUID:
    """A study with one image that was judged."""
    accepted = add_image(session)
    judge(session, accepted.instance_id)
    return accepted.study_id


def built(session: Session, study_id: UUID, *destinations: tuple[str, DeliveryState, str]) -> UUID:
    """Freeze and build a report; return its id."""
    report_id = freeze(session, study_id)
    assert report_id is not None
    facts.record_report_built(session, report_id, [SR_3D, SR_ENHANCED], destinations or [MAIN], now=NOON)
    end_jobs(session, report_id)
    return report_id


def jobs(session: Session, kind: JobKind) -> list[queue.Job]:
    return queue.list_jobs(session, kind=kind, limit=100)


def actions(session: Session) -> list[str]:
    return [row.action for row in audit.tail(session, 100)]


# Freezing


def test_freeze_makes_the_next_revision_and_queues_its_building(session: Session, study_id: UUID) -> None:
    report_id = freeze(session, study_id, probability=0.07)
    assert report_id is not None
    report = facts.report_facts(session, report_id)
    assert (report.revision, report.predecessor, report.answer, report.probability) == (1, None, Answer.ABSENT, 0.07)
    assert (report.content_at, report.is_sent, report.built_at) == (NOON, True, None)
    study = facts.study_facts(session, study_id, lock=False)
    assert (study.revision, study.unreported_since, study.current_report) == (1, None, report)
    assert [job.subject_id for job in jobs(session, JobKind.REPORT)] == [report_id]
    assert actions(session)[-1] == Action.REPORT_FROZEN


def test_freeze_with_nothing_new_to_say_makes_no_revision(session: Session, study_id: UUID) -> None:
    freeze(session, study_id)
    session.execute(update(Study).values(unreported_since=NOON))
    assert freeze(session, study_id) is None
    study = facts.study_facts(session, study_id, lock=False)
    assert (study.revision, study.unreported_since) == (1, None)
    assert len(jobs(session, JobKind.REPORT)) == 1


def test_revisions_form_one_chain(session: Session, study_id: UUID) -> None:
    first = built(session, study_id)
    accepted = add_image(session, 2, now=NOON + SECOND)
    judge(session, accepted.instance_id, 0.9)
    second = freeze(session, study_id, Answer.PRESENT, now=NOON + SECOND)
    third = freeze(session, study_id, Answer.UNDETERMINED)
    assert second is not None
    assert third is not None
    reports = facts.study_detail(session, study_id).reports
    assert [report.revision for report in reports] == [1, 2, 3]
    assert [report.predecessor and report.predecessor.report_id for report in reports] == [None, first, second]
    assert reports[1].predecessor is not None
    assert reports[1].predecessor.objects == (SR_ENHANCED, SR_3D)
    assert reports[2].predecessor is not None
    assert reports[2].predecessor.objects == ()


@pytest.mark.parametrize("is_sending", [False, True], ids=["never sent", "perhaps sent"])
def test_report_names_what_stands_or_may_be_there_and_goes_on_naming_it(
    session: Session, study_id: UUID, is_sending: bool
) -> None:
    first = built(session, study_id)
    second = freeze(session, study_id, Answer.PRESENT)
    assert second is not None
    facts.record_report_built(session, second, [], [MAIN], now=NOON)
    if is_sending:
        (delivery,) = facts.deliveries_of(session, second)
        facts.record_choice(session, delivery.delivery_id, sop_class_uid="1.2", sop_instance_uid="1.2.3")
    facts.withdraw_report(session, second, code="113001", actor="admin", now=NOON)
    third, named = freeze(session, study_id, Answer.UNDETERMINED), second if is_sending else first
    assert third is not None
    facts.withdraw_report(session, first, code="113001", actor="admin", now=NOON)
    predecessor = facts.report_facts(session, third).predecessor
    assert predecessor is not None
    assert predecessor.report_id == named


def test_frozen_images_stay_as_they_were(session: Session) -> None:
    analysed, lateral, waiting = (add_image(session, number, now=NOON + number * SECOND) for number in (1, 2, 3))
    judge(session, analysed.instance_id, 0.1 + 0.2)
    facts.record_judgement(session, lateral.instance_id, predictions=[], warnings=[LATERAL], voi=None, now=NOON)
    before = facts.study_facts(session, analysed.study_id, lock=True).images
    report_id = freeze(session, analysed.study_id)
    assert report_id is not None
    for accepted in (analysed, lateral, waiting):
        other = make_prediction(0.9, model_version="2.0.0")
        facts.record_judgement(session, accepted.instance_id, predictions=[other], warnings=[], voi=None, now=NOON)
    frozen = facts.frozen_images(session, report_id)
    assert frozen == before
    assert [image.state for image in frozen] == [
        InstanceState.ANALYSED,
        InstanceState.NOT_ANALYSED,
        InstanceState.WAITING,
    ]
    assert frozen[0].predictions[0].probability == 0.1 + 0.2
    known = session.execute(select(Prediction.id)).scalars().all()
    assert frozen[0].predictions[0].prediction_id in known, "what a report refers to is never deleted"


def test_unknown_ids_are_told_apart_from_nothing_to_say(session: Session) -> None:
    for look in (
        lambda: facts.study_facts(session, uuid4(), lock=True),
        lambda: facts.report_facts(session, uuid4()),
        lambda: facts.frozen_images(session, uuid4()),
        lambda: facts.delivery_facts(session, uuid4()),
        lambda: facts.study_detail(session, uuid4()),
        lambda: facts.instance_detail(session, uuid4()),
        lambda: facts.release_study(session, uuid4(), actor="admin", now=NOON),
        lambda: facts.add_review(session, uuid4(), verdict=Verdict.AGREE, comment="", reviewer="r", now=NOON),
    ):
        with pytest.raises(NoSuchRecord):
            look()


# Building and delivering


def test_built_report_is_recognised_and_queued_for_each_waiting_destination(session: Session, study_id: UUID) -> None:
    built(session, study_id, MAIN, ("archive", DeliveryState.HELD, "an old study"))
    assert facts.is_own_object(session, SR_3D.sop_instance_uid)
    assert not facts.is_own_object(session, "1.2.1.1.1")
    (job,) = jobs(session, JobKind.DELIVER)
    delivery = facts.delivery_facts(session, job.subject_id)
    assert (delivery.destination, delivery.state, delivery.objects) == (
        "main",
        DeliveryState.WAITING,
        (SR_ENHANCED, SR_3D),
    )
    assert (delivery.study_id, delivery.revision) == (study_id, 1)
    assert facts.count_deliveries(session) == {("main", DeliveryState.WAITING): 1, ("archive", DeliveryState.HELD): 1}


def test_recording_a_built_report_twice_changes_nothing(session: Session, study_id: UUID) -> None:
    report_id = built(session, study_id)
    later = NOON + SECOND
    facts.record_report_built(session, report_id, [SR_3D, SR_ENHANCED], [MAIN], now=later)
    assert facts.report_facts(session, report_id).built_at == NOON
    assert len(jobs(session, JobKind.DELIVER)) == 1
    assert actions(session).count(Action.REPORT_BUILT) == 1


def test_delivery_keeps_what_was_chosen_and_is_sent_once(session: Session, study_id: UUID) -> None:
    built(session, study_id)
    delivery_id = jobs(session, JobKind.DELIVER)[0].subject_id
    chosen = {"sop_class_uid": SR_ENHANCED.sop_class_uid, "sop_instance_uid": SR_ENHANCED.sop_instance_uid}
    facts.record_choice(session, delivery_id, **chosen)
    facts.record_not_sent(session, delivery_id, state=DeliveryState.WAITING, reason="no association", now=NOON)
    delivery = facts.delivery_facts(session, delivery_id)
    assert (delivery.sop_class_uid, delivery.reason) == (SR_ENHANCED.sop_class_uid, "no association")
    for _ in range(2):
        facts.record_sent(session, delivery_id, now=NOON)
    assert facts.delivery_facts(session, delivery_id).state is DeliveryState.SENT
    assert actions(session)[-2:] == [Action.DELIVERY_DELAYED, Action.DELIVERY_SENT]


def test_failed_delivery_is_shown_and_can_be_retried(session: Session, study_id: UUID) -> None:
    built(session, study_id)
    job = queue.claim(session, JobKind.DELIVER, owner="d", limit=1, policy=POLICY, now=NOON)[0]
    queue.fail(session, job, error="refused", now=NOON, policy=POLICY, permanent=True)
    facts.record_not_sent(session, job.subject_id, state=DeliveryState.FAILED, reason="refused", now=NOON)
    assert facts.list_studies(session)[0][0].deliveries == (("main", DeliveryState.FAILED, "refused"),)
    facts.retry_job(session, job.id, actor="admin", now=NOON)
    assert facts.delivery_facts(session, job.subject_id).state is DeliveryState.WAITING


# Holding


def test_hold_reaches_what_waits_to_be_delivered(session: Session, study_id: UUID) -> None:
    built(session, study_id)
    delivery_id = jobs(session, JobKind.DELIVER)[0].subject_id
    add_image(session, 2, patient_id="PATIENT-2")
    assert facts.delivery_facts(session, delivery_id).state is DeliveryState.HELD


def test_report_of_a_held_study_is_built_and_not_queued(session: Session) -> None:
    accepted = add_image(session, patient_id="")
    built(session, accepted.study_id)
    assert jobs(session, JobKind.DELIVER) == []
    deliveries = facts.list_studies(session)[0][0].deliveries
    assert deliveries == (("main", DeliveryState.HELD, Hold.UNIDENTIFIED),)


@pytest.mark.parametrize("was_queued", [True, False], ids=["held after it was queued", "held from the first image on"])
def test_release_sends_what_was_held(session: Session, was_queued: bool) -> None:
    accepted = add_image(session, patient_id="PATIENT-1" if was_queued else "")
    judge(session, accepted.instance_id)
    built(session, accepted.study_id)
    if was_queued:
        add_image(session, 2, patient_id="PATIENT-2")
        session.execute(update(Job).where(Job.kind == JobKind.DELIVER).values(state=JobState.DONE))
    assert facts.release_study(session, accepted.study_id, actor="admin", now=NOON) == 1
    (job,) = jobs(session, JobKind.DELIVER)
    assert job.state is JobState.READY
    assert facts.delivery_facts(session, job.subject_id).state is DeliveryState.WAITING
    assert facts.study_facts(session, accepted.study_id, lock=False).hold is None
    assert facts.release_study(session, accepted.study_id, actor="admin", now=NOON) == 0
    assert audit.tail(session, 1)[0].actor == "admin"


def withdraw(session: Session, study_id: UUID) -> tuple[int, int]:
    return facts.withdraw_study(session, study_id, code="113038", actor="admin", now=NOON)


def test_withdrawn_study_says_nothing_more_until_it_is_released(session: Session, study_id: UUID) -> None:
    built(session, study_id)
    assert withdraw(session, study_id) == (1, 0)
    assert withdraw(session, study_id) == (0, 0)
    judge(session, add_image(session, 2, now=NOON + SECOND).instance_id, 0.9)
    second = freeze(session, study_id, Answer.PRESENT, now=NOON + SECOND)
    assert second is not None
    facts.record_report_built(session, second, [], [MAIN], now=NOON)
    (delivery,) = facts.deliveries_of(session, second)
    assert (delivery.state, delivery.reason, delivery.hold) == (DeliveryState.HELD, "withdrawn", Hold.WITHDRAWN)
    assert facts.count_stuck_studies(session)["held"] == 0, "an administrator has decided already"
    assert facts.release_study(session, study_id, actor="admin", now=NOON) == 1


def test_study_is_held_also_where_it_is_withdrawn_before_its_first_report(session: Session, study_id: UUID) -> None:
    assert withdraw(session, study_id) == (0, 0)
    assert facts.study_facts(session, study_id, lock=False).hold is Hold.WITHDRAWN


def test_withdrawal_decides_what_a_study_was_held_for(session: Session) -> None:
    accepted = add_image(session, patient_id="")
    built(session, accepted.study_id)
    assert withdraw(session, accepted.study_id) == (1, 0)
    assert facts.study_facts(session, accepted.study_id, lock=False).hold is Hold.WITHDRAWN


def test_study_that_was_withdrawn_by_mistake_is_reported_anew_once_it_is_released(
    session: Session, study_id: UUID
) -> None:
    first = built(session, study_id)
    withdraw(session, study_id)
    facts.release_study(session, study_id, actor="admin", now=NOON + SECOND)
    assert facts.study_facts(session, study_id, lock=False).unreported_since == NOON + SECOND
    second = freeze(session, study_id)
    assert second not in (None, first)
    assert freeze(session, study_id) is None
    facts.release_study(session, study_id, actor="admin", now=NOON + SECOND)
    assert facts.study_facts(session, study_id, lock=False).unreported_since is None, "its report stands"


# Reviews


def test_review_belongs_to_the_report_that_was_current(session: Session, study_id: UUID) -> None:
    early = facts.add_review(session, study_id, verdict=Verdict.COMMENT, comment="soon?", reviewer="r", now=NOON)
    report_id = freeze(session, study_id)
    review = facts.add_review(
        session, study_id, verdict=Verdict.DISAGREE, comment="left base", reviewer="r", now=NOON + SECOND
    )
    assert (early.report_id, review.report_id) == (None, report_id)
    assert facts.list_reviews(session, Asked()) == ([review, early], None)
    assert facts.list_reviews(session, Asked(study_id=study_id), verdict=Verdict.DISAGREE) == ([review], None)
    assert actions(session)[-1] == Action.REVIEW_ADDED


# Retention


def finished(session: Session) -> UUID:
    """Return a study whose every step is done and whose report was sent."""
    accepted = add_image(session)
    judge(session, accepted.instance_id)
    built(session, accepted.study_id)
    delivery_id = jobs(session, JobKind.DELIVER)[0].subject_id
    chosen = {"sop_class_uid": SR_3D.sop_class_uid, "sop_instance_uid": SR_3D.sop_instance_uid}
    facts.record_choice(session, delivery_id, **chosen)
    facts.record_sent(session, delivery_id, now=NOON)
    end_jobs(session, delivery_id)
    return accepted.study_id


def purgeable(session: Session) -> list[UUID]:
    found = facts.purgeable_studies(session, older_than=NOON, limit=10)
    return [study_id for study_id, _ in found]


def verdicts(*words: Verdict) -> Callable[[Session, UUID], object]:
    def say(session: Session, study_id: UUID) -> None:
        for i, word in enumerate(words):
            facts.add_review(session, study_id, verdict=word, comment="", reviewer="r", now=NOON + i * SECOND)

    return say


def with_delivery(state: DeliveryState) -> Callable[[Session, UUID], object]:
    def change(session: Session, _: UUID) -> None:
        delivery_id = jobs(session, JobKind.DELIVER)[0].subject_id
        facts.record_not_sent(session, delivery_id, state=state, reason="r", now=NOON)

    return change


def withdrawn(*, is_told: bool) -> Callable[[Session, UUID], object]:
    """Withdraw the report that was sent; the destination is told, or its delivery and job still wait."""

    def change(session: Session, study_id: UUID) -> None:
        (report,), (job,) = facts.study_detail(session, study_id).reports, jobs(session, JobKind.DELIVER)
        assert facts.withdraw_report(session, report.report_id, code="113001", actor="peer:PACS", now=NOON) == 1
        if is_told:
            with_delivery(DeliveryState.WITHDRAWN)(session, study_id)
            end_jobs(session, job.subject_id)

    return change


def withdrawn_study(session: Session, study_id: UUID) -> None:
    """Withdraw a study, and hold what is said of it then."""
    withdrawn(is_told=True)(session, study_id)
    withdraw(session, study_id)
    later = freeze(session, study_id, Answer.PRESENT)
    assert later is not None
    facts.record_report_built(session, later, [], [MAIN], now=NOON)
    end_jobs(session, later)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(lambda *_: None, True, id="finished"),
        pytest.param(with_delivery(DeliveryState.WAITING), False, id="delivery waiting"),
        pytest.param(with_delivery(DeliveryState.HELD), False, id="delivery held"),
        pytest.param(with_delivery(DeliveryState.FAILED), False, id="delivery failed"),
        pytest.param(with_delivery(DeliveryState.WITHDRAWN), True, id="delivery withdrawn"),
        pytest.param(withdrawn(is_told=False), False, id="rejection note to be sent"),
        pytest.param(withdrawn(is_told=True), True, id="rejection note sent"),
        pytest.param(lambda s, _: s.execute(update(Study).values(hold=Hold.UNIDENTIFIED)), False, id="held"),
        pytest.param(withdrawn_study, True, id="study withdrawn"),
        pytest.param(lambda s, _: s.execute(update(Study).values(unreported_since=NOON)), False, id="unreported"),
        pytest.param(lambda s, _: s.execute(update(Study).values(last_received_at=NOON + SECOND)), False, id="too new"),
        pytest.param(lambda s, _: s.execute(update(Job).values(state=JobState.FAILED)), False, id="job failed"),
        pytest.param(lambda s, _: add_image(s, 2, is_judged=False), True, id="an object that is not judged"),
        pytest.param(lambda s, _: add_image(s, 2), False, id="an image waits"),
        pytest.param(verdicts(Verdict.AGREE), True, id="agreed"),
        pytest.param(verdicts(Verdict.DISAGREE), False, id="disagreed"),
        pytest.param(verdicts(Verdict.DISAGREE, Verdict.COMMENT), False, id="disagreed, then a comment"),
        pytest.param(verdicts(Verdict.DISAGREE, Verdict.AGREE), True, id="disagreed, then agreed"),
    ],
)
def test_study_may_be_purged_only_when_everything_is_finished(
    session: Session, change: Callable[[Session, UUID], object], expected: bool
) -> None:
    study_id = finished(session)
    change(session, study_id)
    assert purgeable(session) == ([study_id] if expected else [])


def test_purged_study_keeps_its_rows_and_is_not_purged_again(session: Session) -> None:
    study_id = finished(session)
    (_, paths) = facts.purgeable_studies(session, older_than=NOON, limit=10)[0]
    assert facts.known_paths(session, paths) == set(paths)
    assert facts.mark_purged(session, study_id, NOON, paths=paths)
    assert facts.known_paths(session, paths) == set(), "what a crash left behind is swept"
    assert purgeable(session) == []
    assert not facts.mark_purged(session, study_id, NOON)
    assert facts.instance_detail(session, facts.study_detail(session, study_id).images[0].instance_id).is_purged
    assert actions(session).count(Action.STUDY_PURGED) == 1


def test_image_that_came_while_its_study_was_purged_is_not_forgotten(session: Session) -> None:
    study_id = finished(session)
    (_, paths) = facts.purgeable_studies(session, older_than=NOON, limit=10)[0]
    add_image(session, 2, is_judged=False, not_judged_reason=("not_an_image", "A state"))
    assert not facts.mark_purged(session, study_id, NOON, paths=paths)
    assert facts.mark_purged(session, study_id, NOON)
    add_image(session, 3, is_judged=False, not_judged_reason=("not_an_image", "A state"))
    assert purgeable(session) == [study_id], "a new object makes a purged study purgeable again"


def test_known_paths_cover_instances_quarantine_and_own_objects(session: Session) -> None:
    new, other = make_instance(), make_instance(digest="f" * 64)
    accepted = facts.add_instance(session, new, now=NOON)
    facts.add_instance(session, other, now=NOON)
    judge(session, accepted.instance_id)
    built(session, accepted.study_id)
    unknown = [f"instances/{number}.dcm" for number in range(1200)]
    known = {new.path, other.path, SR_3D.path}
    assert facts.known_paths(session, [*unknown, *known]) == known
    assert session.execute(select(func.count()).select_from(Study)).scalar_one() == 1
