"""The words of the page: pure functions, table-tested."""

from __future__ import annotations

from datetime import date, timedelta

import pytest

from db.facts import DeliveryLine, WarningFacts
from db.tables import Answer, DeliveryState, Hold
from pacs_node.web import words
from pacs_node.web.words import Kind
from tests.records import NOON

LATERAL = WarningFacts(code="not_frontal", severity="forbids", text="The view is lateral.")
AGE = WarningFacts(code="age_unknown", severity="warning", text="The age is unknown.")
BAND = WarningFacts(code="low_confidence", severity="warning", text="Low confidence.")
OWN = WarningFacts(code="own_object", severity="forbids", text="This node made it.")
CRASH = WarningFacts(code="processing_failed", severity="forbids", text="Traceback of something secret")


@pytest.mark.parametrize(
    ("answer", "warnings", "kind"),
    [
        (None, [], Kind.WAITING),
        (Answer.PRESENT, [LATERAL], Kind.POSITIVE),
        (Answer.ABSENT, [], Kind.NEGATIVE),
        (Answer.UNDETERMINED, [BAND], Kind.ABSTAIN),
        (Answer.INCOMPLETE, [CRASH], Kind.INCOMPLETE),
        (Answer.NOT_ANALYSED, [LATERAL], Kind.NOT_ANALYSED),
        (Answer.NOT_ANALYSED, [LATERAL, CRASH], Kind.FAILED),
    ],
)
def test_every_answer_has_its_kind(answer: Answer | None, warnings: list[WarningFacts], kind: Kind) -> None:
    assert words.kind_of(answer, warnings) is kind


def test_every_kind_and_state_has_words() -> None:
    assert set(words.SAYINGS) == set(Kind)
    assert {words.kind_of(answer, []) for answer in Answer} == set(Kind) - {Kind.WAITING, Kind.FAILED, Kind.HIDDEN}
    for hold in Hold:
        assert words.status_sentences(Kind.POSITIVE, "held", hold=hold, band=None, probability=0.9)[0].lead == "Held:"


def test_only_positive_and_negative_are_answers() -> None:
    assert {kind for kind in Kind if not kind.is_silent} == {Kind.POSITIVE, Kind.NEGATIVE, Kind.HIDDEN}


@pytest.mark.parametrize(
    ("probability", "threshold", "written"),
    [
        (0.937, 0.52, "0.94"),
        (0.5197, 0.52, "0.51"),
        (0.52, 0.52, "0.52"),
        (0.5961, 0.6, "0.59"),
        (0.7561, 0.7565, "0.75"),
        (0.7566, 0.7565, "0.76"),
        (0.0001, 0.5, "< 0.01"),
        (0.9999, 0.5, "> 0.99"),
        (0.0, 0.5, "0.00"),
        (1.0, 0.5, "1.00"),
        (0.55, None, "0.55"),
    ],
)
def test_probability_never_crosses_its_threshold(probability: float, threshold: float | None, written: str) -> None:
    assert words.probability_text(probability, threshold) == written


@pytest.mark.parametrize(
    ("sentence", "written"),
    [
        ("The view is lateral.", "the view is lateral"),
        ("SOP Class is unknown.", "SOP Class is unknown"),
        ("no association", "no association"),
        ("", ""),
    ],
)
def test_clause_reads_after_because(sentence: str, written: str) -> None:
    assert words.clause(sentence) == written


def test_reason_stands_first_and_errors_stay_with_the_admin() -> None:
    (first, second) = words.reason_sentences(Kind.FAILED, [LATERAL, CRASH, OWN, AGE])
    assert (first.lead, first.text) == ("Because", "the view is lateral.")
    assert second.text == "processing failed; the file is kept and can be run again."
    (one,) = words.reason_sentences(Kind.POSITIVE, [LATERAL, LATERAL])
    assert one.lead == "One image not analysed:"


def test_warnings_are_said_once_and_the_band_with_the_answer() -> None:
    assert words.warning_sentences([AGE, AGE, BAND, LATERAL]) == ["The age is unknown."]
    (said,) = words.status_sentences(Kind.ABSTAIN, "answered", hold=None, band=(0.4, 0.62), probability=0.551)
    assert said.text == "0.55 lies between 0.40 and 0.62."
    whole = (0.0, 1.0000000000000002)  # an inverted image, or one unlike the training images
    (said,) = words.status_sentences(Kind.ABSTAIN, "answered", hold=None, band=whole, probability=0.94)
    assert said.text == "a warning says why 0.94 is no answer."


def test_old_answer_of_a_changing_study_says_so() -> None:
    (said,) = words.status_sentences(Kind.POSITIVE, "judging", hold=None, band=None, probability=0.9)
    assert said.lead == "Changing:"


def test_report_tells_the_worst_destination() -> None:
    sent, failed, waiting, held = (
        DeliveryLine(state.value, state, "No association.")
        for state in (DeliveryState.SENT, DeliveryState.FAILED, DeliveryState.WAITING, DeliveryState.HELD)
    )
    assert words.report_words([sent, waiting, failed], is_reported=True) == words.ReportWords("Not delivered", True)
    assert words.report_words([sent, waiting], is_reported=True).short == "Waits for waiting"
    assert words.report_words([sent, sent], is_reported=True).short == "Stored in 2 destinations"
    assert words.report_words([held], is_reported=True).short == "Held back"
    assert words.report_words([], is_reported=False).short == "No report yet"
    assert words.report_words([], is_reported=True).short == "Not sent"
    assert words.delivery_sentence(failed) == "failed did not accept the report: no association."


@pytest.mark.parametrize(
    ("patient_name", "written"),
    [
        ("ALDER^Demo", "ALDER Demo"),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "Yamada Tarou (山田 太郎)"),
        ("=山田^太郎", "山田 太郎"),
        ("^^^", "no name"),
        ("", "no name"),
    ],
)
def test_name_is_written_as_people_write_it(patient_name: str, written: str) -> None:
    assert words.readable_name(patient_name) == written


@pytest.mark.parametrize(
    ("born", "age"),
    [("20231121", "2 y"), ("20251020", "13 months"), ("", ""), ("2023", ""), ("20301231", "")],
)
def test_age_is_told_in_months_below_two_years(born: str, age: str) -> None:
    assert words.age_text(born, date(2026, 11, 20)) == age


@pytest.mark.parametrize(
    ("gone", "written"),
    [
        (timedelta(seconds=-5), "now"),
        (timedelta(seconds=59), "now"),
        (timedelta(minutes=119), "119 min"),
        (timedelta(hours=47), "47 h"),
        (timedelta(days=3), "3 days"),
    ],
)
def test_time_since_takes_the_unit_that_says_enough(gone: timedelta, written: str) -> None:
    assert words.time_since(NOON - gone, NOON) == written
