"""Which images had a part in making a model, as far as its card can tell. Takes a card and Items; gives counts.

Figures on images that the model was trained on show what it remembers. A card records by which rule its patients were
split and from which sources they came; the same rule, applied again, says on which side an image stood. A model that
began from another's weights has seen what that one saw: its card keeps the other's record under `before`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.card import CARD_FILE, WEIGHTS_FILE, ModelCard, load_card
from training.data import Split, data_sha256, recipe_split, split_items
from training.items import Item
from training.settings import Recipe, RecipeError, load_recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """How many of some images had a part in a model.

    Attributes
    ----------
    training, validation
        It was trained on them; its thresholds, calibration and perhaps its epoch were chosen on them.
    perhaps
        It was trained on them if they are the images that its card means: they stand on the training side of a source
        of that name.
    """

    training: int = 0
    validation: int = 0
    perhaps: int = 0


def split_of(card: ModelCard, items: Sequence[Item], recipe: Recipe | None = None) -> Split:
    """Return the items by side, by the rule that the card records; by the recipe where it is given.

    Raises
    ------
    RecipeError
        The card records no rule (those before 0.3.0 did not), and its recipe is not among the known ones.
    """
    return _split_by(record_of(card), items, recipe)


def record_of(card: ModelCard) -> dict[str, Any]:
    """Return what a card records of its training, with the recipe's name: what a later model's card keeps of it."""
    return {"recipe": card.recipe} | dict(card.training_data)


def begun_from(weights: str) -> ModelCard | None:
    """Return the card of the bundle whose weights a recipe starts from; None if they are no bundle's that is here.

    Raises
    ------
    CardError
        The card cannot be read.
    """
    path = Path(weights)
    return load_card(path.parent) if path.name == WEIGHTS_FILE and (path.parent / CARD_FILE).exists() else None


def seen_by(card: ModelCard, items: Sequence[Item], chosen: Sequence[Item]) -> Seen | None:
    """Return how many of the chosen images the model has seen; None where the card cannot tell.

    Parameters
    ----------
    items
        Everything that was read, the chosen ones among them.

    A source is recognised for certain by the digest over all its images on a side, whatever it is called here.
    """
    found = [one for record in _generations(card) if (one := _sides(record, items)) is not None]
    if not found:
        return None
    training, validation, named = (set[str]().union(*sets) for sets in zip(*found, strict=True))
    return Seen(
        training=sum(item.sha256 in training for item in chosen),
        validation=sum(item.sha256 in validation - training for item in chosen),
        perhaps=sum(item.sha256 in named - training for item in chosen),
    )


def _generations(card: ModelCard) -> Iterator[Mapping[str, Any]]:
    """Yield the record of the model, then of the one that it began from, and so on."""
    record: Mapping[str, Any] | None = record_of(card)
    while record is not None:
        yield record
        record = record.get("before")


def _split_by(record: Mapping[str, Any], items: Sequence[Item], recipe: Recipe | None = None) -> Split:
    recorded = record.get("split")
    if recipe is None and recorded is not None:
        share, shares = recorded["validation_share"], recorded["validation_shares"]
        return split_items(items, validation_share=share, salt=recorded["salt"], shares=shares)
    return recipe_split(items, recipe or load_recipe(record["recipe"]))


def _sides(record: Mapping[str, Any], items: Sequence[Item]) -> tuple[set[str], set[str], set[str]] | None:
    """Return the digests trained on and chosen on for certain, and those trained on by the name of their source."""
    try:
        split = _split_by(record, items)
    except RecipeError:
        return None
    certain: dict[str, set[str]] = {"training": set(), "validation": set()}
    named: set[str] = set()
    for name, side in (("training", split.training), ("validation", split.validation)):
        recorded = record.get(name, {})
        digests = {recorded.get("sha256")} | {
            one.get("sha256") for one in recorded.values() if isinstance(one, Mapping)
        }
        for source in {item.source for item in side}:
            of_source = [item for item in side if item.source == source]
            if data_sha256(side) in digests or data_sha256(of_source) in digests:
                certain[name] |= {item.sha256 for item in of_source}
            elif name == "training" and source in recorded:
                named |= {item.sha256 for item in of_source}
    return certain["training"], certain["validation"], named
