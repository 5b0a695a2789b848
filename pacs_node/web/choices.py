"""The three answers that a reader can give to a study, each on its key. Pure.

Who has not seen the model's answer cannot agree with it, and says what is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from db.tables import Answer, Verdict
from pacs_node.report.answer import FINDING

NOTHING = "normal"
"""Corrected finding of a reader who sees none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One of the three answers that a reader can give, on its key."""

    key: str
    word: str
    meaning: str
    verdict: Verdict
    finding: str = ""
    """Corrected finding that goes with it; empty = none."""
    is_blind: bool = False
    """Given before the model's answer is seen."""

    @property
    def value(self) -> str:
        """Return what a form without script sends."""
        return f"{self.verdict}:{self.finding}{':blind' if self.is_blind else ''}"


_UNSURE = Choice(key="U", word="Unsure", meaning="second reader", verdict=Verdict.UNSURE)
_CHOICES = {
    Answer.PRESENT: (
        Choice(key="A", word="Agree", meaning="pneumonia", verdict=Verdict.AGREE),
        Choice(key="D", word="Disagree", meaning="no pneumonia", verdict=Verdict.DISAGREE, finding=NOTHING),
        _UNSURE,
    ),
    Answer.ABSENT: (
        Choice(key="A", word="Agree", meaning="no pneumonia", verdict=Verdict.AGREE),
        Choice(key="D", word="Disagree", meaning="pneumonia", verdict=Verdict.DISAGREE, finding=FINDING),
        _UNSURE,
    ),
}
_NO_ANSWER = (
    Choice(key="P", word="Present", meaning="pneumonia", verdict=Verdict.DISAGREE, finding=FINDING),
    Choice(key="N", word="None", meaning="no pneumonia", verdict=Verdict.DISAGREE, finding=NOTHING),
    _UNSURE,
)
"""Agree needs an answer to agree with; without one the same three places ask what the reader sees."""


def finding_kept(said: str, chosen: str) -> str:
    """Return the finding that is kept: another one that was chosen takes the place of none, never of the model's."""
    return chosen or said if said == NOTHING else said


def choices_for(answer: Answer | None) -> Sequence[Choice]:
    """Return what a reader can say about a study with this answer; None = the model has not answered yet."""
    return _CHOICES.get(answer, _NO_ANSWER) if answer else _NO_ANSWER


def blind_choices() -> Sequence[Choice]:
    """Return what a reader can say who has not seen the model's answer."""
    return [replace(choice, is_blind=True) for choice in _NO_ANSWER]


def veiled_choices(answer: Answer | None) -> Sequence[Choice]:
    """Return what takes the place of `choices_for` while a reader hides the answer; empty = nothing needs to.

    It was sent to that reader's browser all the same, so nothing says that it was not seen.
    """
    return _NO_ANSWER if answer in _CHOICES else ()
