"""Which images had a part in making a model, as far as its card can tell. Takes a card and Items; gives counts.

Figures on images that the model was trained on show what it remembers. A card records by which rule its patients were
split and from which sources they came; the same rule, applied again, says on which side an image stood.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from models.card import ModelCard
from training.data import Split, data_sha256, split_items
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
    recorded = card.training_data.get("split")
    if recipe is None and recorded is not None:
        share, shares = recorded["validation_share"], recorded["validation_shares"]
        return split_items(items, validation_share=share, salt=recorded["salt"], shares=shares)
    recipe = recipe or load_recipe(card.recipe)
    return split_items(
        items, validation_share=recipe.validation_share, salt=recipe.split_salt, shares=recipe.validation_shares
    )


def seen_by(card: ModelCard, items: Sequence[Item], chosen: Sequence[Item]) -> Seen | None:
    """Return how many of the chosen images the model has seen; None where the card cannot tell.

    Parameters
    ----------
    items
        Everything that was read, the chosen ones among them.

    A source is recognised for certain by the digest over all its images on a side, whatever it is called here.
    """
    try:
        split = split_of(card, items)
    except RecipeError:
        return None
    certain: dict[str, set[str]] = {"training": set(), "validation": set()}
    named: set[str] = set()
    for name, side in (("training", split.training), ("validation", split.validation)):
        recorded = card.training_data.get(name, {})
        digests = {recorded.get("sha256")} | {
            one.get("sha256") for one in recorded.values() if isinstance(one, Mapping)
        }
        for source in {item.source for item in side}:
            of_source = [item for item in side if item.source == source]
            if data_sha256(side) in digests or data_sha256(of_source) in digests:
                certain[name] |= {item.sha256 for item in of_source}
            elif name == "training" and source in recorded:
                named |= {item.sha256 for item in of_source}
    return Seen(
        training=sum(item.sha256 in certain["training"] for item in chosen),
        validation=sum(item.sha256 in certain["validation"] for item in chosen),
        perhaps=sum(item.sha256 in named for item in chosen),
    )
