"""The quality page in numbers and words: how long steps take, where reports stand, what was refused. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from db.facts import RefusedContexts
from db.facts.quality import StepTimes
from db.tables import DeliveryState
from models.codes import CODES
from pacs_node.conformance import REFUSALS, class_name

PERIODS = {
    "7d": ("last 7 days", 7),
    "30d": ("last 30 days", 30),
    "12w": ("last 12 weeks", 84),
    "1y": ("last year", 365),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """How long one step took: half within `median_s`, 95 % within `high_s`."""

    name: str
    n: int
    median_s: float
    high_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """Deliveries to one destination; the parts are all that were planned."""

    destination: str
    stored: int
    waiting: int
    held: int
    failed: int
    other: int

    @property
    def together(self) -> int:
        return self.stored + self.waiting + self.held + self.failed + self.other


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """What a sender proposed and was refused in negotiation."""

    sender: str
    sop_class: str
    reason: str
    associations: int
    empty: int
    """Of these, the associations in which nothing but an echo was accepted."""


def seconds(value: float) -> str:
    """Return a time as people say it."""
    if value < 9.95:
        return f"{value:.1f} s"
    if value < 120:
        return f"{value:.0f} s"
    if value < 7200:
        return f"{value / 60:.0f} min"
    return f"{value / 3600:.0f} h"


def steps(times: Sequence[StepTimes]) -> list[Step]:
    """Return median and 95th percentile (nearest rank) of each step that was done."""
    return [
        Step(name=t.step, n=len(t.times_s), median_s=_rank(t.times_s, 0.5), high_s=_rank(t.times_s, 0.95))
        for t in times
        if t.times_s
    ]


def _rank(sorted_s: Sequence[float], share: float) -> float:
    return sorted_s[max(math.ceil(share * len(sorted_s)) - 1, 0)]


def sent(deliveries: dict[str, dict[DeliveryState, int]]) -> list[Sent]:
    """Return where reports stand at each destination."""
    named = {"stored": DeliveryState.SENT, "waiting": DeliveryState.WAITING}
    named |= {"held": DeliveryState.HELD, "failed": DeliveryState.FAILED}
    return [
        Sent(
            destination=destination,
            **{name: by_state.get(state, 0) for name, state in named.items()},
            other=sum(n for state, n in by_state.items() if state not in named.values()),
        )
        for destination, by_state in deliveries.items()
    ]


def reasons(counted: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return the reasons in words, the sentences of the suitability table."""
    return [(CODES[code].text if code in CODES else code.replace("_", " "), n) for code, n in counted]


def refused(contexts: Sequence[RefusedContexts]) -> list[Refused]:
    """Return what was refused in words, in its order."""
    return [
        Refused(
            sender=one.calling_ae_title or "(others)",
            sop_class=class_name(one.abstract_syntax),
            reason=REFUSALS[one.reason],
            associations=one.associations,
            empty=one.empty_associations,
        )
        for one in contexts
    ]


def period_of(name: str, now: datetime) -> tuple[datetime, datetime]:
    """Return the period's two ends."""
    return now - timedelta(days=PERIODS[name][1]), now
