"""What readers say a study shows, in the words of the training's classes. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from db.facts import StandingVerdict
from db.tables import Answer, Verdict

LABELS = {"pneumonia": "PNEUMONIA", "normal": "NORMAL"}
"""A reader's finding -> the class that training knows."""
AGREED = {Answer.PRESENT: "PNEUMONIA", Answer.ABSENT: "NORMAL"}
"""The answer that a reader agreed to -> the same."""
UNLABELLED = {
    "withdrawn": "Every reader took the verdict back.",
    "unsure": "The reader was unsure.",
    "readers_differ": "The readers do not say the same.",
    "no_answer": "The reader agreed to an answer that is neither present nor absent.",
    "no_finding": "The reader disagreed, but did not say what is there instead.",
    "other_finding": "The reader saw something that is none of the classes of the training.",
}
"""Code -> why a study that was reviewed has no label."""


def label_of(verdicts: Sequence[StandingVerdict]) -> tuple[str, str]:
    """Return the class that all readers give a study, or "" and the code of `UNLABELLED` that says why there is none.

    Parameters
    ----------
    verdicts
        The last word of each reader who stands by one.
    """
    said = {_said(verdict) for verdict in verdicts}
    if not said:
        return "", "withdrawn"
    return said.pop() if len(said) == 1 else ("", "readers_differ")


def _said(verdict: StandingVerdict) -> tuple[str, str]:
    review = verdict.review
    if review.verdict is Verdict.UNSURE:
        return "", "unsure"
    if review.verdict is Verdict.AGREE:
        label = AGREED.get(verdict.answer, "") if verdict.answer else ""
        return label, "" if label else "no_answer"
    if not review.corrected_finding:
        return "", "no_finding"
    label = LABELS.get(review.corrected_finding, "")
    return label, "" if label else "other_finding"
