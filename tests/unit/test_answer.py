"""The study's answer, row by row, and the words and numbers it is told in."""

from __future__ import annotations

import pytest

from db.facts import ImageFacts
from db.tables import Answer, InstanceState
from models.suitability import CODES, Severity
from pacs_node.conformance import NotJudged
from pacs_node.report import wording
from pacs_node.report.answer import (
    ANOTHER_SUBJECT,
    NOT_FOR_THIS_MODEL,
    NOT_NAMED,
    StudyAnswer,
    answer_of,
    presence_of,
)
from tests.reports import make_image, make_prediction

WAITING, FAILED = InstanceState.WAITING, InstanceState.FAILED
PRESENT, ABSENT, UNDETERMINED = make_image(1, p=0.9), make_image(2, p=0.07), make_image(3, p=0.5)
LATERAL = make_image(4, codes=["not_frontal"])
HAND = make_image(5, codes=["not_chest", "low_resolution"])
UNDECODABLE = make_image(6, codes=["undecodable"])
DERIVED = make_image(7, codes=["derived"], is_judged=False)
REJECTED = make_image(10, codes=["rejected_by_sender"])
OWN = make_image(8, codes=["own_object"], is_judged=False)


@pytest.mark.parametrize(
    ("images", "answer", "probability", "is_chest"),
    [
        ([PRESENT], Answer.PRESENT, 0.9, True),
        ([ABSENT, PRESENT], Answer.PRESENT, 0.9, True),
        ([PRESENT, UNDETERMINED, UNDECODABLE, make_image(9, state=WAITING)], Answer.PRESENT, 0.9, True),
        ([UNDETERMINED], Answer.UNDETERMINED, 0.5, True),
        ([ABSENT, UNDETERMINED, UNDECODABLE], Answer.UNDETERMINED, 0.5, True),
        ([ABSENT], Answer.ABSENT, 0.07, True),
        ([ABSENT, make_image(9, p=0.3)], Answer.ABSENT, 0.3, True),
        ([ABSENT, LATERAL], Answer.ABSENT, 0.07, True),
        ([ABSENT, HAND], Answer.ABSENT, 0.07, True),
        ([ABSENT, DERIVED, OWN], Answer.ABSENT, 0.07, True),
        ([ABSENT, make_image(9, codes=["view_unknown", "lossy_source"], p=0.1)], Answer.ABSENT, 0.1, True),
        ([ABSENT, UNDECODABLE], Answer.INCOMPLETE, 0.07, True),
        ([ABSENT, make_image(9, codes=["low_resolution"])], Answer.INCOMPLETE, 0.07, True),
        ([ABSENT, make_image(9, codes=["decode_timeout"])], Answer.INCOMPLETE, 0.07, True),
        ([ABSENT, make_image(9, codes=["age_outside_card"])], Answer.INCOMPLETE, 0.07, True),
        ([ABSENT, make_image(9, state=WAITING)], Answer.INCOMPLETE, 0.07, True),
        ([ABSENT, make_image(9, state=FAILED, codes=["processing_failed"])], Answer.INCOMPLETE, 0.07, True),
        ([UNDECODABLE], Answer.NOT_ANALYSED, None, True),
        ([LATERAL], Answer.NOT_ANALYSED, None, True),
        ([HAND, LATERAL], Answer.NOT_ANALYSED, None, True),
        ([make_image(9, state=WAITING)], Answer.NOT_ANALYSED, None, True),
        ([HAND], Answer.NOT_ANALYSED, None, False),
        ([HAND, DERIVED, OWN], Answer.NOT_ANALYSED, None, False),
        ([make_image(9, codes=["not_human"])], Answer.NOT_ANALYSED, None, False),
        ([OWN], Answer.NOT_ANALYSED, None, False),
        ([REJECTED], Answer.NOT_ANALYSED, None, False),
        ([REJECTED, HAND, OWN], Answer.NOT_ANALYSED, None, False),
        ([REJECTED, UNDECODABLE], Answer.NOT_ANALYSED, None, True),
        ([REJECTED, ABSENT], Answer.ABSENT, 0.07, True),
        ([], Answer.NOT_ANALYSED, None, False),
    ],
)
def test_study_has_one_answer(
    images: list[ImageFacts], answer: Answer, probability: float | None, is_chest: bool
) -> None:
    found = answer_of(images)
    assert (found.answer, found.probability, found.is_chest) == (answer, probability, is_chest)
    assert answer_of(images[::-1]).answer is answer, "the order of reception decides nothing"


@pytest.mark.parametrize(
    ("probability", "low", "high", "presence"),
    [
        (0.39, 0.4, 0.6, Answer.ABSENT),
        (0.4, 0.4, 0.6, Answer.UNDETERMINED),
        (0.5, 0.4, 0.6, Answer.UNDETERMINED),
        (0.59, 0.4, 0.6, Answer.UNDETERMINED),
        (0.6, 0.4, 0.6, Answer.PRESENT),
        (0.4999, 0.5, 0.5, Answer.ABSENT),
        (0.5, 0.5, 0.5, Answer.PRESENT),
    ],
)
def test_image_inside_the_band_is_undetermined_on_either_side_of_the_threshold(
    probability: float, low: float, high: float, presence: Answer
) -> None:
    assert presence_of(make_prediction(probability, low=low, high=high)) is presence


def test_probability_is_the_deciding_one_when_two_model_versions_disagree_about_the_threshold() -> None:
    strict = make_prediction(0.8, threshold=0.9, low=0.9, high=0.9, model_version="2.0.0")
    loose = make_prediction(0.7, threshold=0.5, low=0.5, high=0.5)
    found = answer_of([make_image(1, prediction=strict), make_image(2, prediction=loose)])
    assert (found.answer, found.probability, found.threshold) == (Answer.PRESENT, 0.7, 0.5)


def test_predictions_of_an_image_that_is_judged_anew_do_not_count() -> None:
    stale = make_image(1, p=0.9, state=WAITING)
    assert answer_of([stale]).answer is Answer.NOT_ANALYSED


def test_every_image_without_an_answer_is_named_with_its_first_reason() -> None:
    failed = make_image(9, state=FAILED, codes=["processing_failed"])
    images = [LATERAL, PRESENT, HAND, failed, make_image(10, state=WAITING)]
    found = [(missing.image, missing.code, missing.text) for missing in answer_of(images).not_analysed]
    assert [image for image, _, _ in found] == [LATERAL, HAND, failed, images[4]]
    assert [code for _, code, _ in found] == ["not_frontal", "not_chest", "processing_failed", "processing_failed"]
    assert [text for _, _, text in found][2:] == ["Processing failed.", "Processing failed: not finished in time."]


def test_what_an_error_said_stays_out_of_the_report() -> None:
    warning = make_image(codes=["processing_failed"]).warnings[0]
    failed = make_image(state=FAILED, warnings=(type(warning)(code=warning.code, severity="forbids", text="boom"),))
    assert "boom" not in answer_of([failed]).not_analysed[0].text


def test_contents_name_images_predictions_and_codes_and_do_not_change_by_themselves() -> None:
    contents = answer_of([ABSENT, HAND]).contents
    assert contents == answer_of([ABSENT, HAND]).contents
    assert [image["state"] for image in contents["images"]] == ["analysed", "not_analysed"]
    assert contents["images"][0]["prediction_ids"] == [str(ABSENT.predictions[0].prediction_id)]
    assert contents["images"][1]["codes"] == ["low_resolution", "not_chest"]


def test_codes_are_those_that_the_images_get() -> None:
    forbidding = {code for code, row in CODES.items() if row.severity is Severity.FORBIDS}
    assert forbidding | set(NotJudged) >= NOT_FOR_THIS_MODEL >= ANOTHER_SUBJECT | NOT_NAMED


@pytest.mark.parametrize(
    ("probability", "threshold", "text"),
    [
        (0.07, 0.5, "7.0 %"),
        (0.93149, 0.5, "93.1 %"),
        (0.0, 0.5, "0.0 %"),
        (1.0, 0.5, "100.0 %"),
        (0.00001, 0.5, "< 0.1 %"),
        (0.0009, 0.5, "< 0.1 %"),
        (0.99999, 0.5, "> 99.9 %"),
        (0.9992, 0.5, "> 99.9 %"),
        (0.49996, 0.5, "49.9 %"),
        (0.50004, 0.5, "50.0 %"),
        (0.42304, 0.42306, "42.3 %"),
        (0.42309, 0.42306, "42.4 %"),
    ],
)
def test_percent_is_never_rounded_to_certainty_nor_across_the_threshold(
    probability: float, threshold: float, text: str
) -> None:
    assert wording.percent_text(probability, threshold) == text
    number = wording.percent_of(probability, threshold)
    assert (number >= 100 * threshold) == (probability >= threshold)
    assert 0 < number < 100 or probability in (0, 1)


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        ([PRESENT], "Probability of pneumonia 90.0 % (threshold 50 %): PRESENT."),
        ([ABSENT], "Probability of pneumonia 7.0 % (threshold 50 %): ABSENT."),
        (
            [UNDETERMINED],
            "Probability of pneumonia 50.0 % (threshold 50 %): UNDETERMINED. "
            "The probability lies too close to the threshold to decide, or a warning says why it is no answer.",
        ),
        (
            [ABSENT, UNDECODABLE],
            "Probability of pneumonia 7.0 % (threshold 50 %): INCOMPLETE. "
            "No analysed image is positive, but not every image could be analysed: pneumonia is not ruled out.",
        ),
        (
            [UNDECODABLE],
            "NOT ANALYSED: no image of this study was judged for pneumonia. This is not a normal result.",
        ),
    ],
)
def test_result_is_one_plain_sentence(images: list[ImageFacts], sentence: str) -> None:
    found: StudyAnswer = answer_of(images)
    assert wording.result_sentence(found.finding, found.answer, found.probability, found.threshold) == sentence
