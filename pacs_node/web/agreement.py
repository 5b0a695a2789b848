"""How often readers and model agree, in numbers and words. Pure.

Shares are never printed without their 95 % interval, nor where fewer than `FEW` readings stand behind them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from db.facts.readings import Coverage, Reading
from db.tables import Answer, Verdict
from pacs_node.report.answer import FINDING

FEW = 20
"""Below this many readings a share is not printed."""
WEEKS = 12
NOT_KNOWN = "not known"
Z95 = 1.959964
AGES = ((0, 0, "below 1 year"), (1, 5, "1 to 5 years"), (6, 17, "6 to 17 years"), (18, 64, "18 to 64 years"))
COVERAGE = {
    Answer.PRESENT: "above threshold",
    Answer.UNDETERMINED: "no answer, close to the threshold or warned of",
    Answer.INCOMPLETE: "no answer, not every image judged",
    Answer.ABSENT: "below threshold",
    Answer.NOT_ANALYSED: "not analysed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """k of n, with its Wilson 95 % interval; no share below `FEW`."""

    k: int
    n: int
    share: float | None = None
    low: float = 0.0
    high: float = 1.0

    @property
    def text(self) -> str:
        if self.share is None:
            return f"{self.k} of {self.n}"
        return f"{percent(self.low)} to {percent(self.high)}, {self.k} of {self.n}"


@dataclass(slots=True, kw_only=True)
class Square:
    """Readings by what reader and model say about the finding."""

    name: str
    both_yes: int = 0
    model_only: int = 0
    reader_only: int = 0
    both_no: int = 0

    @property
    def predictive_value(self) -> Share:
        return share_of(self.both_yes, self.both_yes + self.model_only)

    @property
    def sensitivity(self) -> Share:
        """Among reviewed studies: reads high while few studies below the threshold are reviewed."""
        return share_of(self.both_yes, self.both_yes + self.reader_only)

    def add(self, *, model: bool, reader: bool) -> None:
        name = {(True, True): "both_yes", (True, False): "model_only", (False, True): "reader_only"}.get(
            (model, reader), "both_no"
        )
        setattr(self, name, getattr(self, name) + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Week:
    """Agreement in one ISO week."""

    label: str
    agreed: int
    readings: int
    share: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """All that readers said in a period."""

    overall: Share
    weeks: Sequence[Week]
    unsure: int
    unanswered: int
    """Readings of studies to which the model gave no answer."""
    groups: Sequence[tuple[str, Sequence[Square]]] = field(default=())


def wilson(k: int, n: int) -> tuple[float, float, float]:
    """Return k / n and its 95 % interval (Wilson 1927), all in [0, 1]; n is at least 1."""
    share, denominator = k / n, 1 + Z95**2 / n
    middle = share + Z95**2 / (2 * n)
    half = Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    return share, max(0.0, (middle - half) / denominator), min(1.0, (middle + half) / denominator)


def share_of(k: int, n: int) -> Share:
    """Return k of n as a share where there are enough to give one."""
    if n < FEW:
        return Share(k=k, n=n)
    share, low, high = wilson(k, n)
    return Share(k=k, n=n, share=share, low=low, high=high)


def percent(share: float) -> str:
    """Return a share in whole percent; only all is 100 %, only none is 0 %."""
    whole = round(100 * share)
    if whole == 100 and share < 1:
        whole = 99
    if whole == 0 and share > 0:
        whole = 1
    return f"{whole} %"


def sees_finding(reading: Reading) -> bool | None:
    """Tell whether the reader sees the finding; None where the reading does not say.

    To disagree with *suspected* is to see none. To disagree with *not suspected*, or to answer where the model gave no
    answer, says what is seen: the finding itself, or another one beside it.
    """
    if reading.verdict is Verdict.UNSURE:
        return None
    if reading.verdict is Verdict.AGREE:
        return {Answer.PRESENT: True, Answer.ABSENT: False}.get(reading.answer)
    if reading.answer is Answer.PRESENT:
        return False
    if reading.answer is Answer.ABSENT:
        return reading.corrected_finding in (None, FINDING)
    return None if reading.corrected_finding is None else reading.corrected_finding == FINDING


def agreement(readings: Sequence[Reading]) -> Agreement:
    """Count the readings of studies that the model answered; *unsure* and *no answer* are counted apart."""
    counted = [
        (reading, reading.answer is Answer.PRESENT, seen)
        for reading in readings
        if reading.answer in (Answer.PRESENT, Answer.ABSENT) and (seen := sees_finding(reading)) is not None
    ]
    names: list[tuple[str, Callable[[Reading], str]]] = [
        ("Model version", lambda r: f"{r.model_name} {r.model_version}"),
        ("Device", lambda r: r.device or NOT_KNOWN),
        ("Sender", lambda r: r.calling_ae_title),
        ("View", lambda r: r.view or NOT_KNOWN),
        ("Age at the study", lambda r: age_band(r.age_years)),
        ("The model's answer", lambda r: "seen after" if r.is_blind else "seen first"),
    ]
    return Agreement(
        overall=share_of(sum(model == reader for _, model, reader in counted), len(counted)),
        weeks=_weeks((reading.at, model == reader) for reading, model, reader in counted),
        unsure=sum(reading.verdict is Verdict.UNSURE for reading in readings),
        unanswered=sum(reading.answer not in (Answer.PRESENT, Answer.ABSENT) for reading in readings),
        groups=[("All", _squares(counted, lambda _: "all readings"))]
        + [(title, _squares(counted, name)) for title, name in names],
    )


def age_band(years: int | None) -> str:
    """Return the band of ages in which the page counts."""
    if years is None:
        return NOT_KNOWN
    return next((name for low, high, name in AGES if low <= years <= high), "65 years and above")


def _squares(counted: Iterable[tuple[Reading, bool, bool]], name: Callable[[Reading], str]) -> list[Square]:
    found: dict[str, Square] = {}
    for reading, model, reader in counted:
        found.setdefault(name(reading), Square(name=name(reading))).add(model=model, reader=reader)
    return [found[key] for key in sorted(found)]


def _weeks(agreed: Iterable[tuple[datetime, bool]]) -> list[Week]:
    """Return the last weeks in which something was read, the oldest first."""
    found: dict[tuple[int, int], list[bool]] = {}
    for at, is_same in agreed:
        year, week, _ = at.astimezone().isocalendar()
        found.setdefault((year, week), []).append(is_same)
    weeks = []
    for (_, week), same in sorted(found.items())[-WEEKS:]:
        share, low, high = wilson(sum(same), len(same))
        weeks.append(Week(label=str(week), agreed=sum(same), readings=len(same), share=share, low=low, high=high))
    return weeks


def weeks_text(weeks: Sequence[Week]) -> str:
    """Return what the chart shows, for those who do not see it."""
    said = ", ".join(f"week {week.label}: {percent(week.share)} of {week.readings}" for week in weeks)
    return f"Agreement per week with 95 % intervals; {said}."


def coverage_text(covered: Sequence[Coverage]) -> str:
    """Return the caution that stands above sensitivity: how much of each answer readers look at."""
    seen = {row.answer: row for row in covered}
    above, below = seen[Answer.PRESENT], seen[Answer.ABSENT]
    if not above.studies or not below.studies:
        return "Sensitivity counts reviewed studies only: it reads higher than it is while few others are reviewed."
    shares = percent(above.reviewed / above.studies), percent(below.reviewed / below.studies)
    return (
        f"Readers looked at {shares[0]} of the studies above the threshold and at {shares[1]} of those below, so "
        "sensitivity among reviewed studies is not the sensitivity of the model."
    )
