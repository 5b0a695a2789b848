"""The model card: what a bundle is, for whom it was tested, and what its outputs mean.

Takes a bundle's folder; gives a validated ModelCard. Says which key of which file is wrong.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.errors import CardError

CARD_FILE = "card.toml"
WEIGHTS_FILE = "weights.safetensors"


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
    threshold
        Present at this probability and above.
    abstain_low, abstain_high
        Between them (low <= probability < high) the answer is undetermined.
    """

    name: str
    display: str
    code_value: str
    coding_scheme_designator: str
    code_meaning: str
    threshold: float
    abstain_low: float
    abstain_high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """One version of one model.

    Attributes
    ----------
    outputs
        Names of the network's logits, in order; the first means "nothing found".
    input_size
        Pixels; the network sees a square.
    validated_age_years
        Completed years, both ends included.
    temperature
        Divides the logits before the softmax.
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
    temperature: float
    findings: tuple[Finding, ...]
    validated_age_years: tuple[int, int]
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
    reader = _Reader(values, str(path))
    card = ModelCard(
        name=reader.matching("name", r"[a-z0-9][a-z0-9-]{0,63}"),
        version=reader.matching("version", r"[0-9]+\.[0-9]+\.[0-9]+"),
        network=reader.text("network"),
        outputs=reader.texts("outputs"),
        input_size=reader.whole("input_size", 32, 4096),
        temperature=reader.number("temperature", 0.01, 100.0),
        findings=tuple(_finding(reader.inner("findings", index)) for index in range(reader.length("findings"))),
        validated_age_years=reader.ages("validated_age_years"),
        weights_sha256=reader.matching("weights_sha256", r"[0-9a-f]{64}"),
        intended_use=reader.text("intended_use"),
        limitations=reader.texts("limitations"),
        licence=reader.text("licence"),
        training_data=reader.table("training_data"),
        metrics=reader.table("metrics"),
        folder=folder,
    )
    reader.refuse_unread()
    for finding in card.findings:
        if finding.name not in card.outputs[1:]:
            raise CardError(f"{path}: findings: {finding.name!r} is not one of outputs[1:] {card.outputs[1:]}")
    return card


def _finding(reader: _Reader) -> Finding:
    finding = Finding(
        name=reader.text("name"),
        display=reader.text("display"),
        code_value=reader.text("code_value"),
        coding_scheme_designator=reader.text("coding_scheme_designator"),
        code_meaning=reader.text("code_meaning"),
        threshold=reader.number("threshold", 0.0, 1.0),
        abstain_low=reader.number("abstain_low", 0.0, 1.0),
        abstain_high=reader.number("abstain_high", 0.0, 1.0),
    )
    reader.refuse_unread()
    if not finding.abstain_low <= finding.threshold <= finding.abstain_high:
        raise CardError(f"{reader.where}: abstain_low <= threshold <= abstain_high does not hold")
    return finding


class _Reader:
    """Reads keys of one TOML table and names the key that is wrong."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self._values = values
        self._unread = set(values)
        self.where = where

    def _get(self, key: str, *kinds: type) -> Any:
        self._unread.discard(key)
        if key not in self._values:
            raise CardError(f"{self.where}: {key} is missing")
        value = self._values[key]
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise CardError(f"{self.where}: {key} must be of type {kinds[0].__name__}, not {value!r}")
        return value

    def text(self, key: str) -> str:
        value: str = self._get(key, str)
        if not value.strip():
            raise CardError(f"{self.where}: {key} is empty")
        return value

    def matching(self, key: str, pattern: str) -> str:
        value = self.text(key)
        if re.fullmatch(pattern, value) is None:
            raise CardError(f"{self.where}: {key} must look like {pattern}, not {value!r}")
        return value

    def number(self, key: str, low: float, high: float) -> float:
        value = float(self._get(key, float, int))
        if not low <= value <= high:
            raise CardError(f"{self.where}: {key} must lie between {low} and {high}, not {value}")
        return value

    def whole(self, key: str, low: int, high: int) -> int:
        value: int = self._get(key, int)
        if not low <= value <= high:
            raise CardError(f"{self.where}: {key} must lie between {low} and {high}, not {value}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        values = self._get(key, list)
        if not values or not all(isinstance(value, str) for value in values):
            raise CardError(f"{self.where}: {key} must be a list of texts, not {values!r}")
        return tuple(values)

    def ages(self, key: str) -> tuple[int, int]:
        values = self._get(key, list)
        if len(values) != 2 or not all(type(value) is int for value in values) or not 0 <= values[0] <= values[1]:
            raise CardError(f"{self.where}: {key} must be [youngest, oldest] in years, not {values!r}")
        return values[0], values[1]

    def table(self, key: str) -> dict[str, Any]:
        table: dict[str, Any] = self._get(key, dict)
        return table

    def length(self, key: str) -> int:
        values = self._get(key, list)
        if not values or not all(isinstance(value, dict) for value in values):
            raise CardError(f"{self.where}: {key} must be at least one [[{key}]] table")
        return len(values)

    def inner(self, key: str, index: int) -> _Reader:
        return _Reader(self._values[key][index], f"{self.where}: {key}[{index}]")

    def refuse_unread(self) -> None:
        if self._unread:
            raise CardError(f"{self.where}: unknown key {min(self._unread)!r}")
