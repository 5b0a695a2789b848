"""What people are shown: worklists, searches, results, and the books of models; on both databases."""

from __future__ import annotations

import runpy
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select, text, update

from db import audit, facts
from db.audit import Action
from db.engine import NoSuchRecord, Session
from db.facts import Asked, StudySummary
from db.facts.study_filters import count_groups, count_studies
from db.queue import JobKind
from db.tables import Answer, Delivery, DeliveryState, Study, Verdict
from tests.records import LATERAL, LOW_CONFIDENCE, NOON, SECOND, add_image, freeze, judge, make_prediction


def only(session: Session) -> StudySummary:
    (summary,), cursor = facts.list_studies(session)
    assert cursor is None
    return summary


def answered(session: Session, study: str, probability: float = 0.07, answer: Answer = Answer.ABSENT) -> UUID:
    """Return a study whose report is built."""
    accepted = add_image(session, study=study)
    judge(session, accepted.instance_id, probability)
    report_id = freeze(session, accepted.study_id, answer, probability=probability)
    assert report_id is not None
    facts.record_report_built(session, report_id, [], [("main", DeliveryState.WAITING, "")], now=NOON)
    return accepted.study_id


def test_study_is_seen_on_its_way(session: Session) -> None:
    association_id = uuid4()
    titles = {"calling_ae_title": "CR", "called_ae_title": "PACS_NODE", "peer_address": "192.0.2.1"}
    facts.open_association(session, association_id=association_id, listener="l", **titles, now=NOON)
    accepted = add_image(session, association_id=association_id)
    assert only(session).state == "receiving"
    facts.close_association(session, association_id, "released", NOON)
    assert only(session).state == "judging"
    judge(session, accepted.instance_id)
    assert only(session).state == "reporting"
    report_id = freeze(session, accepted.study_id)
    assert report_id is not None
    assert only(session).state == "reporting"
    facts.record_report_built(session, report_id, [], [], now=NOON)
    assert only(session).state == "answered"
    add_image(session, 2, patient_id="PATIENT-2")
    assert only(session).state == "held"


def test_summary_says_what_the_current_report_says(session: Session) -> None:
    accepted = add_image(session)
    facts.record_judgement(
        session,
        accepted.instance_id,
        predictions=[make_prediction(0.93, threshold=0.4), make_prediction(0.2, finding="effusion")],
        warnings=[LOW_CONFIDENCE],
        voi="linear",
        now=NOON,
    )
    before = only(session)
    assert (before.answer, before.probability, before.threshold, before.revision) == (None, None, None, 0)
    freeze(session, accepted.study_id, Answer.UNDETERMINED, probability=0.2)
    freeze(session, accepted.study_id, Answer.PRESENT, probability=0.93)
    after = only(session)
    assert (after.answer, after.probability, after.threshold, after.revision) == (Answer.PRESENT, 0.93, 0.4, 2)
    assert [warning.code for warning in after.warnings] == ["low_confidence"]
    assert (after.images, after.deliveries, after.is_reviewed) == (1, (), False)
    assert (after.patient_name, after.study_date) == ("Doe^Jane", NOON.date())


def test_summary_says_that_the_answer_was_withdrawn_until_it_is_replaced(session: Session) -> None:
    study_id = answered(session, "1.1", 0.9, Answer.PRESENT)
    (report,) = facts.study_detail(session, study_id).reports
    assert only(session).withdrawn_at is None
    facts.withdraw_report(session, report.report_id, code="113001", actor="admin", now=NOON + SECOND)
    assert only(session).withdrawn_at == NOON + SECOND
    freeze(session, study_id, Answer.UNDETERMINED)
    assert only(session).withdrawn_at is None


def test_pages_follow_each_other_while_studies_arrive(session: Session) -> None:
    expected = [add_image(session, study=f"1.{n}", now=NOON + n // 2 * SECOND).study_id for n in range(7)]
    first, cursor = facts.list_studies(session, limit=3)
    add_image(session, study="9", now=NOON + 60 * SECOND)
    second, cursor = facts.list_studies(session, limit=3, cursor=cursor)
    third, end = facts.list_studies(session, limit=3, cursor=cursor)
    found = [summary.study_id for summary in (*first, *second, *third)]
    assert end is None
    assert len(found) == 7
    assert set(found) == set(expected)


@pytest.mark.parametrize("cursor", ["", "x", "2026-11-20T12:00:00_0", "2026-11-20T12:00:00+00:00_x"])
def test_cursor_that_nobody_gave_is_refused(session: Session, cursor: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the words are the library's
        facts.list_studies(session, cursor=cursor)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"answer": Answer.PRESENT}, {"present"}),
        ({"state": "answered"}, {"present", "absent"}),
        ({"state": "held"}, {"held"}),
        ({"warning": "lateral_view"}, {"lateral"}),
        ({"calling_ae_title": "CT_1"}, {"held"}),
        ({"is_reviewed": True}, {"present"}),
        ({"is_reviewed": False}, {"absent", "held", "lateral"}),
        ({"received_from": NOON + SECOND}, {"lateral"}),
        ({"received_before": NOON + SECOND}, {"present", "absent", "held"}),
        ({"state": "answered", "answer": Answer.ABSENT}, {"absent"}),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),  # a set has no order, an id needs one
)
def test_worklist_is_filtered(session: Session, wanted: dict[str, object], expected: set[str]) -> None:
    studies = {
        "present": answered(session, "1.1", 0.9, Answer.PRESENT),
        "absent": answered(session, "1.2"),
        "held": add_image(session, study="1.3", patient_id="", calling_ae_title="CT_1").study_id,
    }
    lateral = add_image(session, study="1.4", now=NOON + SECOND)
    facts.record_judgement(session, lateral.instance_id, predictions=[], warnings=[LATERAL], voi=None, now=NOON)
    studies["lateral"] = lateral.study_id
    facts.add_review(session, studies["present"], verdict=Verdict.AGREE, comment="", reviewer="r", now=NOON)
    facts.add_review(session, studies["absent"], verdict=Verdict.COMMENT, comment="?", reviewer="r", now=NOON)
    found, _ = facts.list_studies(session, **wanted)  # type: ignore[arg-type]
    assert {summary.study_id for summary in found} == {studies[name] for name in expected}


def review(session: Session, study_id: UUID, reader: str, verdict: Verdict, finding: str | None = None) -> None:
    facts.add_review(
        session, study_id, verdict=verdict, comment="", reviewer=reader, corrected_finding=finding, now=NOON
    )


AGREE, DISAGREE, UNSURE = (Verdict.AGREE, None), (Verdict.DISAGREE, "normal"), (Verdict.UNSURE, None)


@pytest.mark.parametrize(
    ("said", "is_asked"),
    [
        ([AGREE], False),
        ([UNSURE], True),
        ([UNSURE, UNSURE], True),
        ([UNSURE, AGREE], False),
        ([AGREE, DISAGREE], True),
        ([AGREE, AGREE], False),
        ([(Verdict.DISAGREE, "pneumonia"), DISAGREE], True),
        ([AGREE, DISAGREE, AGREE], False),
        ([AGREE, DISAGREE, UNSURE], True),
    ],
)
def test_study_asks_for_another_reader_while_no_answer_leads(
    session: Session, said: list[tuple[Verdict, str | None]], is_asked: bool
) -> None:
    study_id = answered(session, "1.1", 0.9, Answer.PRESENT)
    for number, (verdict, finding) in enumerate(said):
        review(session, study_id, f"r{number}", verdict, finding)
    summary = only(session)
    assert (summary.needs_reader, summary.is_reviewed) == (is_asked, not is_asked)
    assert [(word.reviewer, word.verdict) for word in summary.standing] == [
        (f"r{number}", verdict) for number, (verdict, _) in enumerate(said)
    ]
    assert [count.group for count in count_groups(session, {})] == ["another" if is_asked else "answered"]
    freeze(session, study_id, Answer.UNDETERMINED)
    assert (only(session).needs_reader, only(session).standing) == (False, ()), "a new report begins anew"


def test_migration_asks_for_another_reader_where_the_program_would(session: Session) -> None:
    other = (Verdict.DISAGREE, "pneumonia")
    said = [[UNSURE], [AGREE], [AGREE, DISAGREE], [UNSURE, AGREE], [AGREE, DISAGREE, AGREE]]
    said += [[AGREE, DISAGREE, other], [AGREE, DISAGREE, AGREE, DISAGREE], [AGREE, DISAGREE, other, AGREE]]
    for number, words in enumerate(said):
        study_id = answered(session, f"1.{number}", 0.9, Answer.PRESENT)
        for reader, (verdict, finding) in enumerate(words):
            review(session, study_id, f"r{reader}", verdict, finding)
    asked = {study.study_id: study.needs_reader for study in facts.list_studies(session)[0]}
    assert sum(asked.values()) == 4
    session.execute(update(Study).values(reviewed_revision=Study.revision, asked_revision=-1))
    session.execute(text(runpy.run_path("alembic/versions/2026_12_01_readers_and_indexes.py")["_ASKED"]))
    found, _ = facts.list_studies(session)
    assert {study.study_id: study.needs_reader for study in found} == asked
    assert all(study.needs_reader is not study.is_reviewed for study in found)


def test_every_study_stands_in_one_group_and_is_counted_there(session: Session) -> None:
    placed = {
        "urgent": answered(session, "1.1"),
        "positive": answered(session, "1.2", 0.9, Answer.PRESENT),
        "negative": answered(session, "1.3"),
        "silent": answered(session, "1.4", 0.9, Answer.PRESENT),
        "another": answered(session, "1.5", 0.9, Answer.PRESENT),
        "answered": answered(session, "1.6"),
    }
    waiting = add_image(session, study="1.7", now=NOON - SECOND).study_id
    add_image(session, 2, study="1.1", priority=1)
    review(session, placed["another"], "r", Verdict.UNSURE)
    review(session, placed["answered"], "r", Verdict.AGREE)
    (report,) = facts.study_detail(session, placed["silent"]).reports
    facts.withdraw_report(session, report.report_id, code="113001", actor="admin", now=NOON)
    for group, study_id in placed.items():
        found = facts.list_groups(session, [group], limit=10)
        expected = [waiting, study_id] if group == "silent" else [study_id]
        assert [study.study_id for study in found] == expected, group
    counted = {(count.group, count.says): count for count in count_groups(session, {"is_reviewed": False})}
    assert {key: count.studies for key, count in counted.items()} == {
        ("urgent", "negative"): 1,
        ("positive", "positive"): 1,
        ("negative", "negative"): 1,
        ("silent", "silent"): 2,
        ("another", "positive"): 1,
    }
    assert counted["silent", "silent"].waiting_since == NOON - SECOND
    veiled = {count.group: count.studies for count in count_groups(session, {}, is_veiled=True)}
    assert veiled == {"urgent": 1, "hidden": 3, "unjudged": 1, "another": 1, "answered": 1}
    assert len(facts.list_groups(session, ["hidden", "unjudged"], limit=2)) == 3
    assert count_studies(session, {}, limit=5) == 5


def test_long_group_shows_its_beginning_and_its_newest(session: Session) -> None:
    for number in range(9):
        answered(session, f"1.{number}", 0.99 - 0.01 * number, Answer.PRESENT)
        add_image(session, study=f"2.{number}", priority=1, now=NOON + number * SECOND)
    at = NOON - 9 * SECOND
    order = Study.study_instance_uid
    for number, chosen in enumerate((8, 0, 1, 2, 3, 4, 5, 6, 7)):  # the least suspected came first
        session.execute(update(Study).where(order == f"1.{chosen}").values(first_received_at=at + number * SECOND))
    shown = {
        group: session.execute(
            select(order).where(Study.id.in_([one.study_id for one in facts.list_groups(session, [group], limit=5)]))
        ).scalars()
        for group in ("urgent", "positive")
    }
    assert sorted(shown["urgent"]) == ["2.0", "2.1", "2.2", "2.7", "2.8"]
    assert sorted(shown["positive"]) == ["1.0", "1.1", "1.2", "1.6", "1.7"]


def test_what_a_destination_did_not_take_is_found_however_old(session: Session) -> None:
    refused, _ = answered(session, "1.1"), answered(session, "1.2")
    (report,) = facts.study_detail(session, refused).reports
    is_its = Delivery.report_id == report.report_id
    session.execute(update(Delivery).where(is_its).values(state=DeliveryState.FAILED))
    found, _ = facts.list_studies(session, is_undelivered=True)
    assert [study.study_id for study in found] == [refused]
    freeze(session, refused, Answer.UNDETERMINED)
    assert facts.list_studies(session, is_undelivered=True)[0] == [], "the current report alone counts"


@pytest.mark.parametrize(
    ("wanted", "is_found"),
    [
        ({"patient_id": "PATIENT-1"}, True),
        ({"patient_id": "PATIENT"}, False),
        ({"patient_name": "doe"}, True),
        ({"patient_name": "%"}, False),
        ({"accession_number": "A1"}, True),
        ({"accession_number": "A1", "patient_id": "PATIENT-2"}, False),
    ],
    ids=str,
)
def test_search_finds_studies_by_patient_or_order(session: Session, wanted: dict[str, str], is_found: bool) -> None:
    add_image(session)
    found, _ = facts.search_studies(session, **wanted)  # type: ignore[arg-type]
    assert bool(found) == is_found


@pytest.mark.parametrize("typed", ["müller", "MÜLLER^ANNA", "Müller"])
def test_search_finds_a_name_beyond_ascii_in_any_case(session: Session, typed: str) -> None:
    add_image(session, patient_name="MÜLLER^ANNA")
    found, _ = facts.search_studies(session, patient_name=typed)
    assert [study.patient_name for study in found] == ["MÜLLER^ANNA"]


def test_search_goes_on_where_its_page_ended(session: Session) -> None:
    for number in range(1, 6):
        add_image(session, number, study=f"1.2.{number}", patient_id="P")
    whole, none = facts.search_studies(session, patient_id="P")
    first, cursor = facts.search_studies(session, patient_id="P", limit=2)
    rest, _ = facts.search_studies(session, patient_id="P", cursor=cursor)
    assert ([*first, *rest], len(whole), none) == (whole, 5, None)


def test_search_for_nothing_is_refused(session: Session) -> None:
    with pytest.raises(ValueError, match="search"):
        facts.search_studies(session, patient_name="")


def test_detail_shows_images_reports_and_reviews(session: Session) -> None:
    study_id = answered(session, "1.1")
    review = facts.add_review(session, study_id, verdict=Verdict.AGREE, comment="yes", reviewer="r", now=NOON)
    detail = facts.study_detail(session, study_id)
    assert (detail.study_instance_uid, len(detail.images), detail.reviews) == ("1.1", 1, (review,))
    assert detail.reports[0].built_at == NOON
    assert detail.summary.is_reviewed


def test_results_are_those_of_the_newest_judgements(session: Session) -> None:
    first, second = (add_image(session, number).instance_id for number in (1, 2))
    judge(session, first, 0.1)
    judge(session, first, 0.2, now=NOON + SECOND)
    judge(session, second, 0.3, now=NOON + 2 * SECOND)
    page, cursor = facts.list_results(session, Asked(limit=1))
    rest, end = facts.list_results(session, Asked(limit=5, cursor=cursor))
    assert [result.probability for result in (*page, *rest)] == [0.3, 0.2]
    assert end is None
    assert facts.list_results(session, Asked(), finding="effusion")[0] == []
    assert [r.instance_id for r in facts.list_results(session, Asked(since=NOON + 2 * SECOND))[0]] == [second]


def test_oldest_waiting_job_is_named_by_kind(session: Session) -> None:
    assert facts.oldest_waiting(session) == {}
    add_image(session, 1, now=NOON + SECOND)
    add_image(session, 2, now=NOON)
    assert facts.oldest_waiting(session) == {JobKind.INFER: NOON}


# Models


def add_version(session: Session, version: str, weights: str = "a") -> None:
    facts.add_model_version(session, "resnet50", version, weights * 64, actor="admin", now=NOON)


def activate(session: Session, version: str, after_s: float, **options: Action) -> None:
    facts.activate_model(session, "resnet50", version, actor="admin", now=NOON + after_s * SECOND, **options)


def test_one_model_answers_at_a_time_and_the_one_before_is_known(session: Session) -> None:
    assert (facts.active_model(session), facts.previous_active(session)) == (None, None)
    for place, version in enumerate(["1", "2", "3"]):
        add_version(session, version)
        activate(session, version, place)
    activate(session, "3", 9)
    assert facts.active_model(session) == ("resnet50", "3")
    assert facts.previous_active(session) == ("resnet50", "2")
    activate(session, "2", 10, action=Action.MODEL_ROLLED_BACK)
    assert facts.previous_active(session) == ("resnet50", "3")
    assert [row.action for row in audit.tail(session, 2)] == [Action.MODEL_ACTIVATED, Action.MODEL_ROLLED_BACK]
    assert [m.version for m in facts.list_model_versions(session)] == ["1", "2", "3"]


def test_model_version_is_entered_once_and_never_with_other_weights(session: Session) -> None:
    add_version(session, "1")
    add_version(session, "1")
    assert len(facts.list_model_versions(session)) == 1
    with pytest.raises(ValueError, match="other weights"):
        add_version(session, "1", weights="b")
    with pytest.raises(NoSuchRecord):
        activate(session, "2", 0)


def test_installation_has_one_id_for_ever(session: Session) -> None:
    assert facts.installation_id(session) == facts.installation_id(session)
