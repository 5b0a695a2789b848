"""The sentences of a report and the rounding of its numbers, for the report, the API and the page. Pure.

English, whole sentences, no patient attribute. One decimal; a number is never rounded to certainty (0.0 or 100.0 %) nor
across its threshold, so that what is shown never contradicts the answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from db.tables import Answer

RESEARCH_USE_ONLY = "AI result, not verified by a physician. Not for primary diagnosis. Research use only."
REVIEWED = "Verified by a human reader of the AI result. Research use only."
NOT_ASSESSED = "Other disease was not assessed."

_MEANING = {
    Answer.PRESENT: "",
    Answer.ABSENT: "",
    Answer.UNDETERMINED: (
        " The probability lies too close to the threshold to decide, or a warning says why it is no answer."
    ),
    Answer.INCOMPLETE: (
        " No analysed image is positive, but not every image could be analysed: {finding} is not ruled out."
    ),
}
_NOTHING_ANALYSED = "NOT ANALYSED: no image of this study was judged for {finding}. This is not a normal result."


def answer_word(answer: Answer) -> str:
    """Return the answer as people read it, in capitals."""
    return answer.value.replace("_", " ").upper()


def percent_of(probability: float, threshold: float) -> float:
    """Return a probability in percent with one decimal, in [0.1, 99.9] unless it is exactly 0 or 1.

    Parameters
    ----------
    probability, threshold
        In [0, 1]. A probability below the threshold is shown below it, one at or above it at or above.
    """
    if probability in (0.0, 1.0):
        return 100.0 * probability
    per_mille, limit = round(1000 * probability), round(1000 * threshold, 6)
    if probability < threshold and per_mille >= limit:
        per_mille = math.ceil(limit) - 1
    elif probability >= threshold and per_mille < limit:
        per_mille = math.ceil(limit)
    return min(max(per_mille, 1), 999) / 10


def percent_text(probability: float, threshold: float) -> str:
    """Return `percent_of` with its unit; the ends of the scale are written as bounds."""
    if 0 < probability < 0.001:
        return "< 0.1 %"
    if 0.999 < probability < 1:
        return "> 99.9 %"
    return f"{percent_of(probability, threshold):.1f} %"


def limit_text(limit: float) -> str:
    """Return a threshold in [0, 1] in percent, without needless zeros."""
    return f"{100 * limit:.4g} %"


def result_sentence(finding: str, answer: Answer, probability: float | None, threshold: float | None) -> str:
    """Return the one sentence that carries the answer, and what it means where that is not plain."""
    if probability is None or threshold is None:
        return _NOTHING_ANALYSED.format(finding=finding)
    number = f"Probability of {finding} {percent_text(probability, threshold)} (threshold {limit_text(threshold)})"
    return f"{number}: {answer_word(answer)}.{_MEANING[answer].format(finding=finding)}"


def narrative(result: str, model: str, replaced: str | None) -> str:
    """Return the report's paragraph: result, what was not looked for, model, and what it replaces."""
    sentences = [result, NOT_ASSESSED, f"Model {model}."]
    return " ".join([*sentences, replaced] if replaced else sentences)


def replaces_sentence(revision: int, predecessor: int, answer: Answer, percent: str | None) -> str:
    """Say which earlier result this revision replaces."""
    result = answer_word(answer) + (f", {percent}" if percent else "")
    return f"Revision {revision}: it replaces revision {predecessor} of this AI result, which said {result}."


def reviewed_sentence(finding: str, answer: Answer, said: Answer, percent: str | None) -> str:
    """Say what the reader of an AI result answers, and what that result had said."""
    verb = "agrees" if answer is said else "disagrees"
    ai = answer_word(said) + (f", {percent}" if percent else "")
    return f"The reader {verb} with the AI result (AI: {ai}). {finding.capitalize()}: {answer_word(answer)}."


def changed_sentence(revision: int, replaced: int, answer: Answer) -> str:
    """Say which earlier report of the same reader this one replaces."""
    said = f"revision {replaced}, the same reader's report, which said {answer_word(answer)}"
    return f"Revision {revision}: it replaces {said}."


def image_name(place: int, images: int, series_number: str, instance_number: str) -> str:
    """Name an image by its place in the order of reception, and by its numbers where it has them."""
    numbers = [f"series {series_number}"] * bool(series_number) + [f"number {instance_number}"] * bool(instance_number)
    return f"Image {place} of {images}" + (f" ({', '.join(numbers)})" if numbers else "")


def not_analysed_sentence(image: str, reason: str) -> str:
    """Name an image that has no answer, and why."""
    return f"{image} was not analysed: {reason}"


def warning_sentences(image: str, texts: Iterable[str]) -> list[str]:
    """Return the warnings of one analysed image."""
    return [f"{image}: {text}" for text in texts]
