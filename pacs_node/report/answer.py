"""The study's one answer from the answers about its images, for the report, the API and the page. Pure.

PRESENT if any analysed image is present; else UNDETERMINED if any lies in the abstain band; else ABSENT only if every
eligible image was analysed; else INCOMPLETE; NOT ANALYSED if none was. The abstain band [low, high) holds the
threshold: an image above the threshold but inside the band is undetermined, so that nothing looks surer than it is.

Eligible is every judged image but those that are not for this model (a lateral view, another body part): a study of a
negative frontal and a lateral view is ABSENT and names the lateral; one whose second frontal could not be decoded is
INCOMPLETE.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from db.facts import ImageFacts, PredictionFacts
from db.facts.rejections import REJECTED
from db.tables import Answer, InstanceState

FINDING = "pneumonia"

ANOTHER_SUBJECT = frozenset({"wrong_modality", "not_chest", "not_human"})
"""Codes of `models.suitability` and `pacs_node.conformance`, as below: this is no chest radiograph of a person."""
NOT_NAMED = frozenset({"own_object", "not_an_image"})
"""Codes of what a report does not mention: what this node made, and what no radiologist would call an image."""
_ANOTHER_KIND = frozenset({"not_frontal", "for_processing", "derived", "derived_secondary"})
NOT_FOR_THIS_MODEL = ANOTHER_SUBJECT | NOT_NAMED | _ANOTHER_KIND | {REJECTED}
"""Codes of objects that the model never judges, or whose sender took them back; they do not make a study incomplete."""

FORBIDS = "forbids"
UNFINISHED = ("processing_failed", "Processing failed: not finished in time.")
FAILED = ("processing_failed", "Processing failed.")
"""In place of the error, which is for the admin."""
UNEXPLAINED = ("not_analysed", "No reason was recorded.")


@dataclass(frozen=True, slots=True, kw_only=True)
class NotAnalysed:
    """An image without an answer, and why: a code of `models.suitability` and its sentence."""

    image: ImageFacts
    code: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyAnswer:
    """What the node says about a study.

    Attributes
    ----------
    decisive
        The image with the highest probability of those that give the answer, and what the model said of it; None if
        none was analysed.
    is_chest
        Whether a judged image that its sender did not take back is not known to be of another body part or kind: of
        any other study a PACS is told only in place of what it was told before.
    contents
        The images with state, predictions and codes, as the report freezes them.
    """

    answer: Answer
    finding: str
    decisive: tuple[ImageFacts, PredictionFacts] | None
    is_chest: bool
    not_analysed: tuple[NotAnalysed, ...]
    contents: dict[str, Any]

    @property
    def probability(self) -> float | None:
        """Calibrated P(finding) in [0, 1] in the image that decides."""
        return self.decisive[1].probability if self.decisive else None

    @property
    def threshold(self) -> float | None:
        """In [0, 1]; of the same prediction."""
        return self.decisive[1].threshold if self.decisive else None


def answer_of(images: Sequence[ImageFacts]) -> StudyAnswer:
    """Return the answer of a study from all its instances, in order of reception."""
    judged = [image for image in images if image.is_judged]
    analysed = [(image, found) for image in judged if (found := prediction_of(image)) is not None]
    not_analysed = tuple(_reason(image) for image in images if prediction_of(image) is None)
    is_complete = not any(missing.image.is_judged and is_eligible(missing.image) for missing in not_analysed)
    answer = _overall({presence_of(prediction) for _, prediction in analysed}, is_complete)
    return StudyAnswer(
        answer=answer,
        finding=FINDING,
        decisive=_decisive(analysed, answer),
        is_chest=any(not _codes(image) & (ANOTHER_SUBJECT | {REJECTED}) for image in judged),
        not_analysed=not_analysed,
        contents=_contents(images),
    )


class Limited(Protocol):
    """A probability with its limits, from the database or fresh from the model."""

    @property
    def probability(self) -> float: ...
    @property
    def threshold(self) -> float: ...
    @property
    def abstain_low(self) -> float: ...
    @property
    def abstain_high(self) -> float: ...


def presence_of(prediction: Limited) -> Answer:
    """Return PRESENT, UNDETERMINED or ABSENT for one image."""
    if prediction.abstain_low <= prediction.probability < prediction.abstain_high:
        return Answer.UNDETERMINED
    return Answer.PRESENT if prediction.probability >= prediction.threshold else Answer.ABSENT


def prediction_of(image: ImageFacts) -> PredictionFacts | None:
    """Return what the model said about the finding in an analysed image, else None."""
    if image.state is not InstanceState.ANALYSED:
        return None
    return next((prediction for prediction in image.predictions if prediction.finding == FINDING), None)


def is_eligible(image: ImageFacts) -> bool:
    """Whether the model would judge such an image, were it readable."""
    return image.is_judged and not _codes(image) & NOT_FOR_THIS_MODEL


def _overall(presences: set[Answer], is_complete: bool) -> Answer:
    if not presences:
        return Answer.NOT_ANALYSED
    for presence in (Answer.PRESENT, Answer.UNDETERMINED):
        if presence in presences:
            return presence
    return Answer.ABSENT if is_complete else Answer.INCOMPLETE


def _decisive(
    analysed: Sequence[tuple[ImageFacts, PredictionFacts]], answer: Answer
) -> tuple[ImageFacts, PredictionFacts] | None:
    """Return the highest of those that gave the answer: thresholds may differ between model versions."""
    agreeing = [(image, prediction) for image, prediction in analysed if presence_of(prediction) is answer]
    return max(agreeing or analysed, key=lambda found: found[1].probability, default=None)


def _codes(image: ImageFacts) -> frozenset[str]:
    return frozenset(code for code, _ in _forbidding(image))


def _reason(image: ImageFacts) -> NotAnalysed:
    if image.state is InstanceState.WAITING:
        code, text = UNFINISHED
    elif image.state is InstanceState.FAILED:
        code, text = FAILED
    else:
        code, text = min(_forbidding(image), key=_rank, default=UNEXPLAINED)
    return NotAnalysed(image=image, code=code, text=text)


def _forbidding(image: ImageFacts) -> list[tuple[str, str]]:
    return [(warning.code, warning.text) for warning in image.warnings if warning.severity == FORBIDS]


def _rank(reason: tuple[str, str]) -> int:
    """Say what the image is before what else is wrong with it."""
    code, _ = reason
    return 0 if code in ANOTHER_SUBJECT else 1 if code in NOT_FOR_THIS_MODEL else 2


def _contents(images: Sequence[ImageFacts]) -> dict[str, Any]:
    return {
        "images": [
            {
                "instance_id": str(image.instance_id),
                "state": image.state.value,
                "prediction_ids": [str(prediction.prediction_id) for prediction in image.predictions],
                "codes": sorted(warning.code for warning in image.warnings),
            }
            for image in images
        ]
    }
