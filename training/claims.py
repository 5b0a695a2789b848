"""For whom a model is good enough. Takes what the network makes of validation images; gives populations for a card.

Each population is calibrated and judged by itself; one that is not good enough is not claimed, and says so.
Shapes: N images, L network outputs.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.card import BALANCED
from training import calibration, metrics
from training.about import About, Described
from training.data import Images
from training.items import Item
from training.settings import Recipe

logger = logging.getLogger("training")

NEVER = "Never use on"  # how the limitation begins that a population which is not claimed leaves in the card
ABSTAIN_SHARE = 0.05  # of a population's validation images lie in the band


class ExportRefused(Exception):
    """No bundle was written; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Images and what the rounded network makes of them: logit_NL, float32."""

    images: Images
    logit_NL: Tensor

    def part(self, indices: Sequence[int]) -> tuple[list[Item], np.ndarray, np.ndarray]:
        """Return (items, logit_NL, label_N) of some of the images."""
        chosen = torch.tensor(indices)
        items = [self.images.items[index] for index in indices]
        return items, self.logit_NL[chosen].numpy(), self.images.label_N[chosen].numpy()


def claimed_populations(
    recipe: Recipe, spoken: About, judged: Judged
) -> tuple[list[dict[str, Any]], dict[str, Any], list[str]]:
    """Return the populations that are good enough, the figures of all, and a limitation for each that is not.

    Raises
    ------
    ExportRefused
        The description does not fit the run, an image belongs to several populations, or none is good enough.
    """
    unknown = [found["name"] for found in spoken.findings if found["name"] not in recipe.outputs[1:]]
    if unknown:
        raise ExportRefused(
            f"the run has no output {', '.join(unknown)} (it has {', '.join(recipe.outputs)}): see --about"
        )
    named = {source for described in spoken.populations for source in described.sources}
    unnamed = sorted({item.source for item in judged.images.items} - named)
    if unnamed:
        raise ExportRefused(
            f"no population has the source {', '.join(unnamed)} (the data's folder, or what a manifest says): name "
            "it in a copy of training/cards/chest-pneumonia.toml, with the ages of its patients, and give it by --about"
        )
    _refuse_shared(spoken, judged.images.items)
    claimed, figures, refused = [], {}, []
    for described in spoken.populations:
        members = [i for i, item in enumerate(judged.images.items) if described.has(item)]
        fewest = _fewest_patients(recipe, judged.images, members)
        if fewest < described.least_patients:
            refused.append(
                f"{NEVER} {described.name} ({described.ages}): of one class {fewest} validation patients, "
                f"{described.least_patients} are needed; not validated, not claimed."
            )
            continue
        population, found = _population(recipe, spoken, described, *judged.part(members))
        figures[described.name] = found
        if min(finding["auc"]["low"] for finding in found.values()) >= described.least_auc:
            claimed.append(population)
        else:
            refused.append(_not_claimed(described, found))
    if not claimed:
        raise ExportRefused("no population is good enough to be claimed: " + " ".join(refused))
    return claimed, figures, refused


def _refuse_shared(spoken: About, items: Sequence[Item]) -> None:
    """Refuse images that several populations would be claimed on; log how many none is claimed on."""
    named = [(item.source, [one.name for one in spoken.populations if one.has(item)]) for item in items]
    shared = Counter((source, " and ".join(names)) for source, names in named if len(names) > 1)
    for (source, names), count in shared.items():
        raise ExportRefused(
            f"{count} validation images of {source} have no age and would be claimed for {names} alike: give their "
            "ages (a manifest's column age), or name the source in one population only, in the file of --about"
        )
    if outside := sum(not names for _, names in named):
        logger.warning("%d validation images are left out: their ages are those of no population", outside)


def _fewest_patients(recipe: Recipe, images: Images, members: Sequence[int]) -> int:
    """Return how many patients the rarest class has among the members."""
    patients = [
        {images.items[i].group for i in members if images.items[i].label == n} for n in range(len(recipe.outputs))
    ]
    return min(map(len, patients))


def _population(
    recipe: Recipe,
    spoken: About,
    described: Described,
    items: list[Item],
    logit_NL: np.ndarray,
    label_N: np.ndarray,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a population as the card has it, and its figures by finding."""
    fitted, bias_L = calibration.fit_calibration(logit_NL, label_N)
    temperature, bias = round(fitted, 4), [round(float(value), 4) for value in bias_L]
    probability_NL = torch.softmax((torch.from_numpy(logit_NL).double() + torch.tensor(bias)) / temperature, 1).numpy()
    limits, figures = {}, {}
    for finding in (found["name"] for found in spoken.findings):
        output = recipe.outputs.index(finding)
        probability_N, truth_N = probability_NL[:, output], (label_N == output).astype(int)
        points = {
            BALANCED: calibration.balanced_threshold(truth_N, probability_N),
            "high_recall": calibration.high_recall_threshold(truth_N, probability_N),
        }
        threshold = points[recipe.operating_point]
        low, high = (round(edge, 2) for edge in calibration.abstain_band(probability_N, threshold, ABSTAIN_SHARE))
        low, high = min(low, threshold), max(high, threshold)
        limits[finding] = {
            "threshold": threshold,
            "abstain_low": low,
            "abstain_high": high,
            "operating_points": points,
        }
        first = {recipe.operating_point: threshold} | points
        figures[finding] = metrics.judged(truth_N, probability_N, [i.group for i in items], first, band=(low, high))
    named = {"name": described.name, "age_years": list(described.age_years)}
    return named | {"temperature": temperature, "bias": bias, "limits": limits}, figures


def _not_claimed(described: Described, figures: dict[str, Any]) -> str:
    seen = "; ".join(
        f"{finding}: AUC {found['auc']['value']} ({found['auc']['low']} to {found['auc']['high']}) "
        f"on {found['images']} images of {found['patients']} patients"
        for finding, found in figures.items()
    )
    return f"{NEVER} {described.name} ({described.ages}): {seen}; not good enough to be claimed."
