"""The quality page's numbers: what adds up, what a share may say, how charts are drawn; and the counts behind them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from db import facts
from db.engine import Session
from db.facts import Visible, readings
from db.facts import quality as counted
from db.facts.quality import Scope, StepTimes
from db.facts.readings import Reading
from db.tables import Answer, DeliveryState, Verdict
from pacs_node.web import agreement, charts, quality
from tests.records import DAY, LATERAL, MINUTE, NOON, add_image, end_jobs, freeze, judge, make_prediction

ALL = Scope(since=NOON - DAY, until=NOON + DAY)


def make_reading(answer: Answer = Answer.PRESENT, verdict: Verdict = Verdict.AGREE, **changes: Any) -> Reading:
    fields: dict[str, Any] = {
        "at": NOON,
        "answer": answer,
        "verdict": verdict,
        "corrected_finding": None,
        "model_name": "resnet50",
        "model_version": "1.0.0",
        "calling_ae_title": "CR_ROOM_1",
        "device": "MAKER DR 1",
        "view": "PA",
        "age_years": 3,
        "is_blind": False,
    }
    return Reading(**(fields | changes))


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (8, 10, 0.4902, 0.9433), (577, 613, 0.9198, 0.9573)],
)
def test_wilson_agrees_with_published_values(k: int, n: int, low: float, high: float) -> None:
    share, found_low, found_high = agreement.wilson(k, n)
    assert share == k / n
    assert (found_low, found_high) == pytest.approx((low, high), abs=2e-4)


def test_few_readings_give_no_share() -> None:
    few, enough = agreement.share_of(9, agreement.FEW - 1), agreement.share_of(19, agreement.FEW)
    assert (few.share, few.text) == (None, "9 of 19")
    assert enough.text == "76 % to 99 %, 19 of 20"


@pytest.mark.parametrize(("share", "written"), [(0.9999, "99 %"), (1.0, "100 %"), (0.001, "1 %"), (0.0, "0 %")])
def test_percent_never_claims_all_or_none(share: float, written: str) -> None:
    assert agreement.percent(share) == written


@pytest.mark.parametrize(
    ("answer", "verdict", "finding", "seen"),
    [
        (Answer.PRESENT, Verdict.AGREE, None, True),
        (Answer.ABSENT, Verdict.AGREE, None, False),
        (Answer.PRESENT, Verdict.DISAGREE, "normal", False),
        (Answer.PRESENT, Verdict.DISAGREE, "other", False),
        (Answer.ABSENT, Verdict.DISAGREE, "pneumonia", True),
        (Answer.ABSENT, Verdict.DISAGREE, "other", False),
        (Answer.UNDETERMINED, Verdict.DISAGREE, "pneumonia", True),
        (Answer.NOT_ANALYSED, Verdict.DISAGREE, "normal", False),
        (Answer.PRESENT, Verdict.UNSURE, None, None),
    ],
)
def test_reading_says_whether_the_finding_is_seen(
    answer: Answer, verdict: Verdict, finding: str | None, seen: bool | None
) -> None:
    assert agreement.sees_finding(make_reading(answer, verdict, corrected_finding=finding)) is seen


def test_agreement_counts_answers_only_and_every_reading_once_in_each_group() -> None:
    said = [make_reading()] * 16 + [make_reading(view="AP"), make_reading(view="", is_blind=True)]
    said += [make_reading(Answer.ABSENT)] * 3
    said += [make_reading(verdict=Verdict.DISAGREE, calling_ae_title="DX_ED", age_years=None)]
    said += [make_reading(Answer.ABSENT, Verdict.DISAGREE, corrected_finding="pneumonia", age_years=70)]
    said += [make_reading(verdict=Verdict.UNSURE), make_reading(Answer.NOT_ANALYSED, Verdict.DISAGREE)]
    found = agreement.agreement(said)
    assert (found.overall.k, found.overall.n, found.unsure, found.unanswered) == (21, 23, 1, 1)
    for title, squares in found.groups:
        total = sum(s.both_yes + s.model_only + s.reader_only + s.both_no for s in squares)
        assert total == 23, title
    ((_, (square,)), *_) = found.groups
    assert (square.both_yes, square.model_only, square.reader_only, square.both_no) == (18, 1, 1, 3)
    assert (square.predictive_value.n, square.sensitivity.n) == (19, 19)
    assert [title for title, _ in found.groups] == [
        "All",
        "Model version",
        "Device",
        "Sender",
        "View",
        "Age at the study",
        "The model's answer",
    ]
    assert {s.name for s in dict(found.groups)["View"]} == {"PA", "AP", "not known"}
    assert {s.name for s in dict(found.groups)["The model's answer"]} == {"seen first", "seen after"}
    assert {s.name for s in dict(found.groups)["Age at the study"]} == {
        "1 to 5 years",
        "not known",
        "65 years and above",
    }


def test_weeks_are_the_last_twelve_in_which_something_was_read() -> None:
    said = [make_reading(at=NOON - timedelta(weeks=back)) for back in range(20)]
    weeks = agreement.agreement(said).weeks
    assert len(weeks) == agreement.WEEKS
    assert weeks[-1].label == str(NOON.astimezone().isocalendar().week)


def test_step_tells_median_and_95th_percentile() -> None:
    (step,) = quality.steps(
        [StepTimes(step="x", times_s=tuple(map(float, range(1, 101)))), StepTimes(step="never", times_s=())]
    )
    assert (step.median_s, step.high_s, step.n) == (50.0, 95.0, 100)
    assert [quality.seconds(s) for s in (0.25, 42, 300, 9000)] == ["0.2 s", "42 s", "5 min", "2 h"]


def test_deliveries_of_every_state_add_up() -> None:
    (found,) = quality.sent({"main": dict.fromkeys(DeliveryState, 2)})
    assert found.together == 2 * len(DeliveryState)


def test_charts_draw_numbers_into_attributes_and_escape_words() -> None:
    marks = [charts.Mark(label="<b>", n=3, share=0.9, low=0.7, high=0.98)] * 2
    drawn = str(charts.over_time(marks, 'says "so"'))
    assert "<b>" not in drawn
    assert 'aria-label="says &#34;so&#34;"' in drawn
    for chart in (drawn, str(charts.stacked([("x", 9, "a"), ("y", 0, "b"), ("z", 1, "c")])), str(charts.bar(2.0))):
        assert "style=" not in chart
        assert "nan" not in chart
    assert str(charts.stacked([("x", 0, "a")])) == ""
    assert 'width="200"' in str(charts.bar(2.0)), "a full disk fills the bar and no more"


def _analysed(session: Session, number: int, probability: float = 0.9, answer: Answer = Answer.PRESENT) -> UUID:
    image = add_image(session, number, study=f"1.2.{number}")
    judge(session, image.instance_id, probability, now=NOON + MINUTE)
    freeze(session, image.study_id, answer, probability=probability)
    return image.study_id


def test_objects_and_studies_add_up_in_every_state(session: Session) -> None:
    _analysed(session, 1)
    _analysed(session, 2, 0.1, Answer.ABSENT)
    lateral, broken = add_image(session, 3, study="1.2.3"), add_image(session, 4, study="1.2.4")
    facts.record_judgement(session, lateral.instance_id, predictions=[], warnings=[LATERAL], voi=None, now=NOON)
    facts.record_failure(session, broken.instance_id, error_text="x", now=NOON)
    for image in (lateral, broken):
        end_jobs(session, image.instance_id)
        freeze(session, image.study_id, Answer.NOT_ANALYSED, probability=None)
    add_image(session, 5, study="1.2.5")
    objects, studies = counted.count_objects(session, ALL), counted.count_studies(session, ALL)
    assert objects.adds_up
    assert studies.adds_up
    assert (objects.received, objects.analysed, objects.waiting) == (5, 2, 1)
    assert (studies.above, studies.below, studies.not_analysed, studies.failed, studies.waiting) == (1, 1, 1, 1, 1)
    assert counted.count_reasons(session, ALL) == [("lateral_view", 1)]
    times = {t.step: t.times_s for t in counted.step_times(session, ALL)}
    assert times["an image received, until it is judged"] == (60.0, 60.0)


def test_image_that_is_gone_breaks_the_sum(session: Session) -> None:
    image = add_image(session, 1)
    end_jobs(session, image.instance_id)
    objects = counted.count_objects(session, ALL)
    assert objects.adds_up
    lost = type(objects)(**{name: getattr(objects, name) for name in objects.__dataclass_fields__} | {"waiting": 0})
    assert not lost.adds_up


def test_counts_keep_to_period_sender_and_group(session: Session) -> None:
    _analysed(session, 1)
    for scope in (
        Scope(since=NOON + DAY, until=NOON + 2 * DAY),
        Scope(since=NOON - DAY, until=NOON + DAY, sender="ELSEWHERE"),
        Scope(since=NOON - DAY, until=NOON + DAY, visible=Visible(senders=frozenset({"ELSEWHERE"}))),
    ):
        assert counted.count_objects(session, scope).received == 0
        assert counted.count_studies(session, scope).received == 0
        assert not any(step.times_s for step in counted.step_times(session, scope))
        assert readings.list_readings(session, scope) == []


def test_readings_name_device_and_view_of_the_judged_images(session: Session) -> None:
    maker = facts.SeenDevice(manufacturer="MAKER", model_name="DR 1", detector_type="")
    other = facts.SeenDevice(manufacturer="MAKER", model_name="MAKER DR 2", detector_type="")

    def read(number: int, *taken: tuple[facts.SeenDevice | None, str]) -> None:
        for i, (device, view) in enumerate(taken):
            image = add_image(session, number * 10 + i, study=f"1.2.{number}")
            facts.record_judgement(
                session,
                image.instance_id,
                predictions=[make_prediction(0.9)],
                warnings=[],
                voi=None,
                device=device,
                view=view,
                now=NOON,
            )
            end_jobs(session, image.instance_id)
        freeze(session, image.study_id, Answer.PRESENT)
        facts.add_review(session, image.study_id, verdict=Verdict.AGREE, comment="", reviewer="R", now=NOON)

    read(1, (maker, "PA"))
    read(2, (other, "PA"), (other, "AP"))
    read(3, (None, ""))
    found = {(r.device, r.view) for r in readings.list_readings(session, ALL)}
    assert found == {("MAKER DR 1", "PA"), ("MAKER DR 2", readings.SEVERAL), ("", "")}


def test_readings_of_a_withdrawn_report_are_left_out(session: Session) -> None:
    kept, withdrawn = _analysed(session, 1), _analysed(session, 2)
    for study_id in (kept, withdrawn):
        facts.add_review(session, study_id, verdict=Verdict.AGREE, comment="", reviewer="R", now=NOON)
    (report,) = facts.study_detail(session, withdrawn).reports
    facts.withdraw_report(session, report.report_id, code="113001", actor="admin", now=NOON)
    assert len(readings.list_readings(session, ALL)) == 1
    covered = {row.answer: (row.reviewed, row.studies) for row in readings.coverage(session, ALL)}
    assert covered[Answer.PRESENT] == (1, 1)


def test_readings_are_the_words_that_stand(session: Session) -> None:
    changed, withdrawn, second = (_analysed(session, number) for number in (1, 2, 3))

    def say(study_id: UUID, verdict: Verdict, reviewer: str = "R", finding: str | None = None) -> None:
        common = {"comment": "", "reviewer": reviewer, "now": NOON, "corrected_finding": finding}
        facts.add_review(session, study_id, verdict=verdict, **common)

    say(changed, Verdict.AGREE)
    say(changed, Verdict.DISAGREE, finding="normal")
    say(withdrawn, Verdict.AGREE)
    say(withdrawn, Verdict.WITHDRAW)
    say(second, Verdict.AGREE)
    say(second, Verdict.UNSURE, "S")
    say(second, Verdict.COMMENT, "T")
    found = readings.list_readings(session, ALL)
    assert sorted(r.verdict for r in found) == ["agree", "disagree", "unsure"]
    assert {r.age_years for r in found} == {56}
    covered = {row.answer: (row.reviewed, row.studies) for row in readings.coverage(session, ALL)}
    assert covered[Answer.PRESENT] == (2, 3)
    assert "Readers looked at" not in agreement.coverage_text(readings.coverage(session, ALL))
