"""What a model's card tells of its answer: what a probability meant before, and what the model was trained on.

The first is how many of the validation images with such a probability showed the finding. Takes a study and the models
on disk; gives a sentence, or none where the card of the model that spoke has no counts. It holds for a population like
that one, so the sentence says how frequent the finding was in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from db.facts import PredictionFacts, StudyDetail
from models.card import ModelCard, Population
from models.errors import ModelError
from models.registry import Registry
from pacs_node.report.answer import prediction_of

FEW = 20
"""Below this many images a step says nothing."""


def told_by_card(study: StudyDetail, registry: Registry) -> tuple[str, str]:
    """Return the sentence for the study's probability, and what its model was trained on; empty where not known."""
    found = next((one for image in study.images if _gave(one := prediction_of(image), study)), None)
    if found is None:
        return "", ""
    try:
        card = registry.find(found.model_name, found.model_version)
    except ModelError:
        return "", ""  # that version is not on the disk any more
    return meaning(found, card), trained_on(card)


def trained_on(card: ModelCard) -> str:
    """Return of how many images, patients and which sources the model learned; empty = its card does not say."""
    counted: dict[str, Any] = card.training_data.get("training", {})
    counts = {name: of for name, of in counted.items() if isinstance(of, Mapping) and "images" in of}
    if not counts:
        return ""
    titles: Mapping[str, str] = card.training_data.get("sources", {})
    names = [str(titles.get(name, name)).partition(";")[0].partition(",")[0] for name in counts]
    images, patients = (sum(of.get(what, 0) for of in counts.values()) for what in ("images", "patients"))
    return f"{images} images of {patients} patients: {', '.join(names)}"


def _gave(found: PredictionFacts | None, study: StudyDetail) -> bool:
    return found is not None and found.probability == study.summary.probability


def meaning(found: PredictionFacts, card: ModelCard) -> str:
    """Return what the card's validation images with such a probability showed."""
    population = _population_of(found, card)
    if population is None:
        return ""
    steps = card.metrics.get(population.name, {}).get(found.finding, {}).get("reliability", ())
    images, positive = sum(step["images"] for step in steps), sum(step["positive"] for step in steps)
    step = next((step for step in steps if _holds(step, found.probability)), None)
    if step is None or step["images"] < FEW:
        return ""
    share, base = round(100 * step["positive"] / step["images"]), round(100 * positive / images)
    return (
        f"Among {step['images']} validation images scored {step['low']:.2f} to {step['high']:.2f}, {share} % showed "
        f"{found.finding}; among all {images} of them, {base} % did ({population.name})."
    )


def _holds(step: dict[str, Any], probability: float) -> bool:
    return bool(step["low"] <= probability < step["high"] or probability == step["high"] == 1.0)


def _population_of(found: PredictionFacts, card: ModelCard) -> Population | None:
    """Return whose limits stand with the prediction; None where more than one population has them."""
    own: Sequence[Population] = [p for p in card.populations if _has_limits(p, found)]
    return own[0] if len(own) == 1 else None


def _has_limits(population: Population, found: PredictionFacts) -> bool:
    limits = population.limits.get(found.finding)
    return limits is not None and limits.threshold == found.threshold
