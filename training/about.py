"""What only a person can say of a model: use, limits, codes, whom it was made for. Takes a TOML file; gives an About.

`training/cards/chest-pneumonia.toml` is the example that comments every key.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from models.errors import CardError
from models.tables import TableReader
from training.items import Item

CODED = ("name", "display", "code_value", "coding_scheme_designator", "code_meaning")


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A population that the model is to be claimed for.

    Attributes
    ----------
    age_years
        Completed years, both ends included.
    sources
        Names of the data sets that show it.
    least_auc
        The lower end of its AUC's interval must reach this, in [0, 1].
    least_patients
        So many validation patients of each class there must be.
    """

    name: str
    age_years: tuple[int, int]
    sources: tuple[str, ...]
    least_auc: float
    least_patients: int

    @property
    def ages(self) -> str:
        """The ages in words."""
        return f"{self.age_years[0]} to {self.age_years[1]} years"

    def has(self, item: Item) -> bool:
        """Whether an image shows one of its patients; of unknown age, the source decides."""
        youngest, oldest = self.age_years
        return item.source in self.sources and (item.age_years is None or youngest <= item.age_years <= oldest)


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a card says that no figure can; `findings` as the card has them, `sources` by name of the data set."""

    intended_use: str
    limitations: tuple[str, ...]
    licence: str
    findings: tuple[Mapping[str, str], ...]
    populations: tuple[Described, ...]
    sources: Mapping[str, str]


def read_about(path: Path) -> About:
    """Return what a person wrote.

    Raises
    ------
    CardError
        The file cannot be read, or a key is missing, unknown or impossible; the message names it.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CardError(
            f"{path}: {error.strerror}: copy training/cards/chest-pneumonia.toml and say it in your words"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CardError(f"{path}: {error}") from error
    reader = TableReader(values, str(path))
    about = About(
        intended_use=reader.text("intended_use"),
        limitations=reader.texts("limitations"),
        licence=reader.text("licence"),
        findings=tuple(_finding(inner) for inner in reader.inners("findings")),
        populations=tuple(_population(inner) for inner in reader.inners("populations")),
        sources={name: str(text) for name, text in reader.table("sources").items()} if reader.has("sources") else {},
    )
    reader.refuse_unread()
    for younger, older in pairwise(sorted(about.populations, key=lambda population: population.age_years)):
        if younger.age_years[1] >= older.age_years[0]:
            raise CardError(f"{path}: populations: the ages of {younger.name!r} and {older.name!r} overlap")
    return about


def _finding(reader: TableReader) -> dict[str, str]:
    finding = {key: reader.text(key) for key in CODED}
    reader.refuse_unread()
    return finding


def _population(reader: TableReader) -> Described:
    described = Described(
        name=reader.text("name"),
        age_years=reader.ages("age_years"),
        sources=reader.texts("sources"),
        least_auc=reader.number("least_auc", 0.0, 1.0),
        least_patients=reader.whole("least_patients", 1, 1_000_000),
    )
    reader.refuse_unread()
    return described
