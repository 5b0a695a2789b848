"""What the page says: an answer as a phrase, a reason as a sentence. Pure; takes read models, gives words.

*Suspected*, never *detected*; *not suspected*, never *clear*; no answer has the same place and shape as an answer.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Protocol

from db.tables import Answer, DeliveryState, Hold, InstanceState
from pacs_node.report.answer import FORBIDS, NOT_NAMED

FAILURE = "processing_failed"
FAILED_TEXT = "Processing failed; the file is kept and can be run again."
"""In place of the error, which is for the administrator."""


class Kind(enum.StrEnum):
    """How the page draws an answer; each has its own outline, not only its own colour."""

    POSITIVE = "positive"
    NEGATIVE = "negative"
    ABSTAIN = "abstain"
    INCOMPLETE = "incomplete"
    NOT_ANALYSED = "not_analysed"
    FAILED = "failed"
    WAITING = "waiting"
    HIDDEN = "hidden"
    """There is an answer, and this reader has not given one yet (`web.blind`)."""

    @property
    def is_silent(self) -> bool:
        """The model gave no answer, so a reader is needed no less."""
        return self not in (Kind.POSITIVE, Kind.NEGATIVE, Kind.HIDDEN)


@dataclass(frozen=True, slots=True)
class Saying:
    """An answer in words: whole, short (under the heading "Pneumonia, says the model"), and a note below it."""

    whole: str
    short: str
    note: str


SAYINGS = {
    Kind.POSITIVE: Saying("Pneumonia suspected", "Suspected", "above threshold"),
    Kind.NEGATIVE: Saying("Pneumonia not suspected", "Not suspected", "below threshold"),
    Kind.ABSTAIN: Saying("No answer", "No answer", "close to the threshold, or warned of"),
    Kind.INCOMPLETE: Saying("No answer", "No answer", "not every image was judged"),
    Kind.NOT_ANALYSED: Saying("Not analysed", "Not analysed", ""),
    Kind.FAILED: Saying("Failed", "Failed", "kept, can be run again"),
    Kind.WAITING: Saying("Waiting", "Waiting", "not judged yet"),
    Kind.HIDDEN: Saying("Shown after your answer", "Analysed", "shown after your answer"),
}
HIDEABLE = (Kind.POSITIVE, Kind.NEGATIVE, Kind.ABSTAIN, Kind.INCOMPLETE)
"""What the model said about the finding; that it could not judge is told at once."""
_KINDS = {
    Answer.PRESENT: Kind.POSITIVE,
    Answer.ABSENT: Kind.NEGATIVE,
    Answer.UNDETERMINED: Kind.ABSTAIN,
    Answer.INCOMPLETE: Kind.INCOMPLETE,
    Answer.NOT_ANALYSED: Kind.NOT_ANALYSED,
}
_WAITING = {
    "receiving": "its images are still arriving",
    "judging": "its images are being judged",
    "reporting": "its report is being built",
}
WITHDRAWN = "Withdrawn"
REPORT_FAILED = "its report could not be built, so no PACS has this answer; an administrator can run it again."
_UNTIL = "nothing leaves the node until an administrator decides"
_HELD = {
    Hold.IDENTITY_CONFLICT: f"its images disagree about the patient, so {_UNTIL}",
    Hold.UNIDENTIFIED: f"its images name no patient, so {_UNTIL}",
    Hold.WITHDRAWN: f"what was said of it was withdrawn, so {_UNTIL}",
}


class WarningLike(Protocol):
    """What a warning's words are made of."""

    @property
    def code(self) -> str: ...
    @property
    def severity(self) -> str: ...
    @property
    def text(self) -> str: ...


class DeliveryLike(Protocol):
    """What a delivery's words are made of."""

    @property
    def destination(self) -> str: ...
    @property
    def state(self) -> DeliveryState: ...
    @property
    def reason(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Sentence:
    """`lead` stands in bold in the colour of `kind`."""

    text: str
    lead: str = ""
    kind: str = ""


def kind_of_image(state: InstanceState) -> Kind:
    """Return how to draw one image that has no probability."""
    return {InstanceState.FAILED: Kind.FAILED, InstanceState.WAITING: Kind.WAITING}.get(state, Kind.NOT_ANALYSED)


def kind_of(answer: Answer | None, warnings: Iterable[WarningLike]) -> Kind:
    """Return how to draw a study's answer; a study without a report waits."""
    if answer is None:
        return Kind.WAITING
    if answer is Answer.NOT_ANALYSED and any(warning.code == FAILURE for warning in warnings):
        return Kind.FAILED
    return _KINDS[answer]


def probability_text(probability: float, threshold: float | None = None) -> str:
    """Return two decimals that neither cross the threshold nor claim certainty: 0.5197 below 0.52 is shown as 0.51."""
    if 0 < probability < 0.005:
        return "< 0.01"
    if 0.995 < probability < 1:
        return "> 0.99"
    hundredths, limit = round(100 * probability), round(100 * (threshold or 0.0), 6)
    if threshold is not None and probability < threshold and hundredths >= limit:
        hundredths = math.ceil(limit) - 1
    elif threshold is not None and probability >= threshold and hundredths < limit:
        hundredths = math.ceil(limit)
    return f"{hundredths / 100:.2f}"


def clause(sentence: str) -> str:
    """Return a sentence as it reads after "because": no capital, no full stop; abbreviations stay."""
    sentence = sentence.strip().rstrip(".")
    if len(sentence) > 1 and sentence[1].islower():
        return sentence[0].lower() + sentence[1:]
    return sentence


def status_sentences(
    kind: Kind, state: str, *, hold: Hold | None, band: tuple[float, float] | None, probability: float | None
) -> list[Sentence]:
    """Return why the study stands where it stands, as far as no image's warning says it."""
    said = [Sentence(f"{_HELD[hold]}.", "Held:", "held")] if hold is not None else []
    if state == "failed":
        said.append(Sentence(REPORT_FAILED, "Failed:", Kind.FAILED))
    if kind is Kind.WAITING:
        said.append(Sentence(f"{_WAITING.get(state, 'it is in the queue')}.", "Waiting:"))
    elif state in _WAITING:
        said.append(Sentence(f"{_WAITING[state]}; the answer is the one before.", "Changing:"))
    if kind is Kind.ABSTAIN and band is not None and probability is not None:
        (low, high), shown = band, probability_text(probability)
        is_warned = low <= 0 and high >= 1  # `models.suitability.settled`
        why = (
            f"a warning says why {shown} is no answer."
            if is_warned
            else f"{shown} lies between {low:.2f} and {high:.2f}."
        )
        said.append(Sentence(why, "Because", kind))
    if kind is Kind.INCOMPLETE:
        said.append(Sentence("no judged image is suspicious, but not every image could be judged.", "Because", kind))
    return said


def withdrawal_sentences(withdrawn_at: datetime | None) -> list[Sentence]:
    """Return the sentence about a result that counts no more and was not replaced yet, if it is one."""
    if withdrawn_at is None:
        return []
    text = f"on {withdrawn_at:%Y-%m-%d %H:%M} UTC; do not rely on this result."
    return [Sentence(text, WITHDRAWN, "failed")]


def reason_sentences(kind: Kind, warnings: Iterable[WarningLike]) -> list[Sentence]:
    """Return why images were not analysed, each reason once; objects that are no radiographs are passed over."""
    texts = _once(
        FAILED_TEXT if w.code == FAILURE else w.text
        for w in warnings
        if w.severity == FORBIDS and w.code not in NOT_NAMED
    )
    if kind in (Kind.NOT_ANALYSED, Kind.FAILED):
        return [Sentence(f"{clause(text)}.", "Because" if i == 0 else "And", kind) for i, text in enumerate(texts)]
    return [Sentence(text, "One image not analysed:") for text in texts]


def warning_sentences(warnings: Iterable[WarningLike]) -> list[str]:
    """Return the warnings that travel with the answer, each once; the band is told with the answer itself."""
    return _once(w.text for w in warnings if w.severity == "warning" and w.code != "low_confidence")


def _once(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


@dataclass(frozen=True, slots=True)
class ReportWords:
    """Where a study's report stands, in two or three words, and whether a person must act."""

    short: str
    is_bad: bool


def report_words(
    deliveries: Sequence[DeliveryLike], *, is_reported: bool, is_failed: bool = False, is_withdrawn: bool = False
) -> ReportWords:
    """Return the worst thing that holds for any destination: it is the one a person must know."""
    if is_failed:
        return ReportWords("Not built", True)
    by_state = {state: [d.destination for d in deliveries if d.state is state] for state in DeliveryState}
    if by_state[DeliveryState.FAILED]:
        return ReportWords("Not delivered", True)
    if is_withdrawn:
        return ReportWords(WITHDRAWN, True)
    if by_state[DeliveryState.HELD]:
        return ReportWords("Held back", False)
    if by_state[DeliveryState.WAITING]:
        return ReportWords(f"Waits for {_listed(by_state[DeliveryState.WAITING])}", False)
    if by_state[DeliveryState.SENT]:
        return ReportWords(f"Stored in {_listed(by_state[DeliveryState.SENT])}", False)
    return ReportWords("Not sent" if is_reported else "No report yet", False)


def delivery_sentence(delivery: DeliveryLike) -> str:
    """Return one delivery as a sentence, with what the destination said last."""
    reason = f": {clause(delivery.reason)}" if delivery.reason else ""
    match delivery.state:
        case DeliveryState.SENT:
            return f"{delivery.destination} stored the report."
        case DeliveryState.FAILED:
            return f"{delivery.destination} did not accept the report{reason}."
        case DeliveryState.HELD:
            return f"Nothing was sent to {delivery.destination}{reason}."
        case DeliveryState.WITHDRAWN:
            return f"The report for {delivery.destination} was withdrawn{reason}."
        case _:
            return f"The report waits for {delivery.destination}{reason}."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} destinations"


def readable_name(patient_name: str) -> str:
    """Return a Person Name (PS3.5 6.2.1) as people write it: the groups apart, family name first."""
    groups = [" ".join(part for part in group.split("^") if part) for group in patient_name.split("=")]
    written = [group for group in groups if group]
    return written[0] + "".join(f" ({group})" for group in written[1:2]) if written else "no name"


def age_text(birth_date: str, on: date) -> str:
    """Return the age on that day from a DICOM date (PS3.5 6.2, DA), in months below two years; "" where unknown."""
    try:
        born = datetime.strptime(birth_date, "%Y%m%d").date()  # noqa: DTZ007 - a day, not an instant
    except ValueError:
        return ""
    months = (on.year - born.year) * 12 + on.month - born.month - (on.day < born.day)
    if months < 0:
        return ""
    return f"{months} months" if months < 24 else f"{months // 12} y"


def time_since(then: datetime, now: datetime) -> str:
    """Return how long ago, in the largest unit that says enough."""
    gone = max(now - then, timedelta())
    if gone < timedelta(minutes=1):
        return "now"
    if gone < timedelta(hours=2):
        return f"{int(gone.total_seconds() // 60)} min"
    if gone < timedelta(days=2):
        return f"{int(gone.total_seconds() // 3600)} h"
    return f"{gone.days} days"


def clock(at: datetime, now: datetime) -> str:
    """Return a time as people write it: 24 h clock today, else with its date. Local time of this machine."""
    local, today = at.astimezone(), now.astimezone().date()
    return f"{local:%H:%M}" if local.date() == today else f"{local:%Y-%m-%d %H:%M}"
