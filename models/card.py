"""The model card: what a bundle is, for whom it was tested, and what its outputs mean for each of them.

Takes a bundle's folder; gives a validated ModelCard. Says which key of which file is wrong.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from models.errors import CardError
from models.tables import TableReader

CARD_FILE = "card.toml"
WEIGHTS_FILE = "weights.safetensors"
FEATURES_FILE = "features.safetensors"
NAME, VERSION = r"[a-z0-9][a-z0-9-]{0,63}", r"[0-9]+\.[0-9]+\.[0-9]+"  # what a model may be called
BALANCED = "balanced"
"""The operating point that every card has: sensitivity and specificity weigh the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing the model looks for.

    Attributes
    ----------
    name
        The network output that carries it; one of the card's `outputs`.
    display
        How people read it.
    code_value, coding_scheme_designator, code_meaning
        The coded concept that the Structured Report names (PS3.3 section 8).
    """

    name: str
    display: str
    code_value: str
    coding_scheme_designator: str
    code_meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Where the answer on one finding turns, for one population; all in [0, 1].

    Attributes
    ----------
    threshold
        Present at this probability and above.
    abstain_low, abstain_high
        Between them (low <= probability < high) the answer is undetermined; the threshold lies within.
    operating_points
        Thresholds by name: "balanced", and "high_recall", which misses few at the cost of false alarms. `threshold` is
        one of them.
    """

    threshold: float
    abstain_low: float
    abstain_high: float
    operating_points: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """Patients whom the model was validated on by themselves: their ages, calibration and limits.

    Attributes
    ----------
    name
        How people read it: "children of 1 to 5 years".
    age_years
        Completed years, both ends included.
    temperature
        Divides the logits, after the bias was added and before the softmax.
    bias
        One number per output, added to its logit.
    limits
        By the name of the finding.
    """

    name: str
    age_years: tuple[int, int]
    temperature: float
    bias: tuple[float, ...]
    limits: Mapping[str, Limits]

    def years_from(self, age_years: int) -> int:
        """Return how many years an age lies outside the range, 0 for one within."""
        youngest, oldest = self.age_years
        return max(youngest - age_years, age_years - oldest, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfDistribution:
    """How unlike the training images an image may be; the statistics lie beside the weights.

    Attributes
    ----------
    sha256
        Lower-case hexadecimal digest of the statistics' file.
    limit
        An image whose score lies above is unlike them.
    false_alarm_rate
        Share of the validation images above the limit, in [0, 1].
    """

    sha256: str
    limit: float
    false_alarm_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """One version of one model.

    Attributes
    ----------
    outputs
        Names of the network's logits, in order; the first means "nothing found".
    input_size
        Pixels; the network sees a square.
    populations
        At least one; the first one's calibration and limits are used where the age is unknown. No ages overlap.
    out_of_distribution
        None where the bundle brings no statistics.
    recipe, git_revision
        What the weights were trained with: the recipe's name and the commit of its text ("unknown" outside git,
        "-dirty" after it where files differed).
    weights_sha256
        Lower-case hexadecimal digest of the weights file.
    training_data, metrics
        As in the card: text, counts, digests; figures with their intervals.
    folder
        Where the card was read from.
    """

    name: str
    version: str
    network: str
    outputs: tuple[str, ...]
    input_size: int
    findings: tuple[Finding, ...]
    populations: tuple[Population, ...]
    out_of_distribution: OutOfDistribution | None
    recipe: str
    git_revision: str
    weights_sha256: str
    intended_use: str
    limitations: tuple[str, ...]
    licence: str
    training_data: Mapping[str, Any]
    metrics: Mapping[str, Any]
    folder: Path

    @property
    def weights_path(self) -> Path:
        """The weights file beside the card."""
        return self.folder / WEIGHTS_FILE

    @property
    def features_path(self) -> Path:
        """The file of the out-of-distribution statistics beside the card."""
        return self.folder / FEATURES_FILE

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that the bundle consists of."""
        return (CARD_FILE, WEIGHTS_FILE, *([FEATURES_FILE] if self.out_of_distribution else []))

    def population_of(self, age_years: int | None) -> Population:
        """Return whose calibration and limits hold at an age.

        The first population where the age is unknown; the nearest one where it lies outside all of them. Whether such
        a patient is answered at all is for `suitability` and the configuration to say.
        """
        if age_years is None:
            return self.populations[0]
        return min(self.populations, key=lambda population: population.years_from(age_years))

    def is_validated_age(self, age_years: int) -> bool:
        """Whether one of the populations holds the age, in completed years."""
        return self.population_of(age_years).years_from(age_years) == 0

    @property
    def ages_text(self) -> str:
        """Ages of the validation in words, neighbouring ranges as one: "1 to 5 and 18 to 90 years"."""
        ranges: list[tuple[int, int]] = []
        for youngest, oldest in sorted(population.age_years for population in self.populations):
            if ranges and youngest == ranges[-1][1] + 1:
                youngest = ranges.pop()[0]
            ranges.append((youngest, oldest))
        *earlier, last = [f"{youngest} to {oldest}" for youngest, oldest in ranges]
        return f"{', '.join(earlier)} and {last} years" if earlier else f"{last} years"


def load_card(folder: Path) -> ModelCard:
    """Return the validated card of a bundle.

    Raises
    ------
    CardError
        The file is missing, is not TOML, or a key is missing, unknown or has an impossible value.
    """
    path = folder / CARD_FILE
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CardError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CardError(f"{path}: {error}") from error
    return _card(TableReader(values, str(path)), folder)


def _card(reader: TableReader, folder: Path) -> ModelCard:
    outputs = reader.texts("outputs")
    findings = tuple(_finding(inner, outputs) for inner in reader.inners("findings"))
    card = ModelCard(
        name=reader.matching("name", NAME),
        version=reader.matching("version", VERSION),
        network=reader.text("network"),
        outputs=outputs,
        input_size=reader.whole("input_size", 32, 4096),
        findings=findings,
        populations=tuple(_population(inner, outputs, findings) for inner in reader.inners("populations")),
        out_of_distribution=_out_of_distribution(reader),
        recipe=reader.text("recipe"),
        git_revision=reader.matching("git_revision", r"[0-9a-f]{7,40}(-dirty)?|unknown"),
        weights_sha256=_digest(reader, "weights_sha256"),
        intended_use=reader.text("intended_use"),
        limitations=reader.texts("limitations"),
        licence=reader.text("licence"),
        training_data=reader.table("training_data"),
        metrics=reader.table("metrics"),
        folder=folder,
    )
    reader.refuse_unread()
    for younger, older in pairwise(sorted(card.populations, key=lambda population: population.age_years)):
        if younger.age_years[1] >= older.age_years[0]:
            raise CardError(f"{reader.where}: populations: the ages of {younger.name!r} and {older.name!r} overlap")
    return card


_CODE_TEXT = r"[^\\\x00-\x1f\x7f]"
"""Printable, without a backslash: what a coded entry may hold (PS3.3 8.1, PS3.5 6.2)."""


def _digest(reader: TableReader, key: str) -> str:
    return reader.matching(key, r"[0-9a-f]{64}")


def _finding(reader: TableReader, outputs: tuple[str, ...]) -> Finding:
    finding = Finding(
        name=reader.text("name"),
        display=reader.text("display"),
        code_value=reader.matching("code_value", rf"{_CODE_TEXT}{{1,256}}"),
        coding_scheme_designator=reader.matching("coding_scheme_designator", rf"{_CODE_TEXT}{{1,16}}"),
        code_meaning=reader.matching("code_meaning", rf"{_CODE_TEXT}{{1,64}}"),
    )
    reader.refuse_unread()
    if finding.name not in outputs[1:]:
        raise CardError(f"{reader.where}: {finding.name!r} is not one of outputs[1:] {outputs[1:]}")
    return finding


def _population(reader: TableReader, outputs: tuple[str, ...], findings: tuple[Finding, ...]) -> Population:
    limits = reader.inner("limits")
    population = Population(
        name=reader.text("name"),
        age_years=reader.ages("age_years"),
        temperature=reader.number("temperature", 0.01, 100.0),
        bias=reader.numbers("bias", -100.0, 100.0),
        limits={finding.name: _limits(limits.inner(finding.name)) for finding in findings},
    )
    reader.refuse_unread()
    limits.refuse_unread()
    if len(population.bias) != len(outputs):
        raise CardError(f"{reader.where}: bias must hold one number for each of the {len(outputs)} outputs")
    return population


def _limits(reader: TableReader) -> Limits:
    points = reader.inner("operating_points")
    limits = Limits(
        threshold=reader.number("threshold", 0.0, 1.0),
        abstain_low=reader.number("abstain_low", 0.0, 1.0),
        abstain_high=reader.number("abstain_high", 0.0, 1.0),
        operating_points={name: points.number(name, 0.0, 1.0) for name in points.names()},
    )
    reader.refuse_unread()
    if not limits.abstain_low <= limits.threshold <= limits.abstain_high:
        raise CardError(f"{reader.where}: abstain_low <= threshold <= abstain_high does not hold")
    points.number(BALANCED, 0.0, 1.0)
    if limits.threshold not in limits.operating_points.values():
        raise CardError(f"{points.where}: the threshold, {limits.threshold}, is none of the operating points")
    return limits


def _out_of_distribution(reader: TableReader) -> OutOfDistribution | None:
    if not reader.has("out_of_distribution"):
        return None
    inner = reader.inner("out_of_distribution")
    found = OutOfDistribution(
        sha256=_digest(inner, "sha256"),
        limit=inner.number("limit", 0.0, 1e6),
        false_alarm_rate=inner.number("false_alarm_rate", 0.0, 1.0),
    )
    inner.refuse_unread()
    return found
