"""What a model says about labelled images, finding by finding, and how good that is in every subgroup.

Takes a Predictor and Images; gives one Answers per finding. Shapes: N images, B images of a batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from models.card import Limits, ModelCard
from models.predictor import Prediction, Predictor
from training import metrics
from training.data import Images
from training.items import Item

BATCH = 32
AGE_BANDS = ((0, 0), (1, 5), (6, 17), (18, 39), (40, 64), (65, 150))  # completed years, both ends included
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """One finding on some images.

    Attributes
    ----------
    finding, display
        Its name in the card, and as people read it.
    truth_N, probability_N
        0 or 1; in [0, 1].
    threshold_N
        By operating point: the threshold of each image's population. The one that decides the answer comes first.
    low_N, high_N
        The abstain band: undetermined at low <= probability < high.
    population_N
        The card's population that each image was judged as.
    """

    finding: str
    display: str
    items: tuple[Item, ...]
    truth_N: np.ndarray
    probability_N: np.ndarray
    threshold_N: Mapping[str, np.ndarray]
    low_N: np.ndarray
    high_N: np.ndarray
    population_N: tuple[str, ...]

    @property
    def default_point(self) -> str:
        """The operating point that decides the answer: "balanced", unless the card says otherwise."""
        return next(iter(self.threshold_N))

    @property
    def groups(self) -> list[str]:
        """The patient of each image."""
        return [item.group for item in self.items]

    def is_called(self, point: str | None = None) -> np.ndarray:
        """Return whether each image is PRESENT at an operating point, by default the one that decides the answer."""
        return np.asarray(self.probability_N >= self.threshold_N[point or self.default_point])

    @property
    def is_undetermined(self) -> np.ndarray:
        """Whether the probability lies in the abstain band."""
        return np.asarray((self.probability_N >= self.low_N) & (self.probability_N < self.high_N))

    @property
    def words(self) -> list[str]:
        """The answer about each image, as the node gives it."""
        said = np.where(self.is_called(), "present", "absent")
        return [str(word) for word in np.where(self.is_undetermined, "undetermined", said)]

    def figures(self, is_chosen_N: np.ndarray | None = None) -> dict[str, Any]:
        """Return the figures of all images, or of the chosen ones (see `metrics.judged`)."""
        chosen = np.ones(len(self.items), bool) if is_chosen_N is None else is_chosen_N
        return metrics.judged(
            self.truth_N[chosen],
            self.probability_N[chosen],
            [item.group for item, is_in in zip(self.items, chosen, strict=True) if is_in],
            {point: threshold_N[chosen] for point, threshold_N in self.threshold_N.items()},
            band=(self.low_N[chosen], self.high_N[chosen]),
        )

    def thresholds(self) -> dict[str, dict[str, float]]:
        """Return the thresholds by operating point and population, of the populations that occur."""
        first = {name: self.population_N.index(name) for name in dict.fromkeys(self.population_N)}
        return {
            point: {name: round(float(threshold_N[index]), 4) for name, index in first.items()}
            for point, threshold_N in self.threshold_N.items()
        }


def answers_of(predictor: Predictor, images: Images) -> tuple[list[Answers], np.ndarray]:
    """Judge the images as in serving; return the answers per finding, and each image's out-of-distribution score.

    The score is NaN where the bundle has no statistics for it.
    """
    card, items = predictor.card, images.items
    rows: list[tuple[Prediction, ...]] = []
    with tqdm(total=len(items), desc=f"judging with {card.name} {card.version}", unit="img") as bar:
        for start in range(0, len(items), BATCH):
            chosen = range(start, min(start + BATCH, len(items)))
            image_B1HW = torch.stack([images[index] for index in chosen])
            rows += predictor.predict(image_B1HW, [items[index].age_years for index in chosen])
            bar.update(len(chosen))
    scores = [row[0].ood_score for row in rows]
    score_N = np.array([np.nan if score is None else score for score in scores])
    return [_answers(card, index, items, rows) for index in range(len(card.findings))], score_N


def _answers(card: ModelCard, index: int, items: tuple[Item, ...], rows: list[tuple[Prediction, ...]]) -> Answers:
    finding = card.findings[index]
    populations = [card.population_of(item.age_years) for item in items]
    limits = [population.limits[finding.name] for population in populations]
    return Answers(
        finding=finding.name,
        display=finding.display,
        items=items,
        truth_N=np.array([item.label == card.outputs.index(finding.name) for item in items]).astype(int),
        probability_N=np.array([row[index].probability for row in rows]),
        threshold_N=_thresholds(limits),
        low_N=np.array([limit.abstain_low for limit in limits]),
        high_N=np.array([limit.abstain_high for limit in limits]),
        population_N=tuple(population.name for population in populations),
    )


def _thresholds(limits: list[Limits]) -> dict[str, np.ndarray]:
    """Return each image's threshold at the points that all their populations name, the one that decides first."""
    decides_N = np.array([limit.threshold for limit in limits])
    names = [name for name in limits[0].operating_points if all(name in limit.operating_points for limit in limits)]
    threshold_N = {name: np.array([limit.operating_points[name] for limit in limits]) for name in names}
    default = next((name for name in names if np.array_equal(threshold_N[name], decides_N)), "default")
    return {default: decides_N} | threshold_N


def is_in_subgroup(answers: Answers) -> dict[str, dict[str, np.ndarray]]:
    """Return, by grouping and value, which images belong to it; groupings that no image knows are left out.

    A subgroup of the finding (bacterial, viral) has no negatives of its own: it takes all of them.
    """
    items = answers.items
    values = {
        "population": list(answers.population_N),
        "source": [item.source for item in items],
        "age_band": [age_band(item.age_years) for item in items],
        "sex": [item.sex or UNKNOWN for item in items],
        "view": [item.view or UNKNOWN for item in items],
    }
    found = {
        name: {value: np.array([one == value for one in of_N]) for value in sorted(set(of_N), key=_order)}
        for name, of_N in values.items()
        if set(of_N) != {UNKNOWN}
    }
    is_positive_N = answers.truth_N == 1
    kinds = sorted({item.subgroup for item, is_one in zip(items, is_positive_N, strict=True) if is_one} - {""})
    if kinds and kinds != [answers.finding]:
        kind_N = np.array([item.subgroup for item in items])
        found["subgroup"] = {kind: ~is_positive_N | (kind_N == kind) for kind in kinds}
    return found


def age_band(age_years: int | None) -> str:
    """Return the band's name, such as "1-5"; "unknown" without an age."""
    if age_years is None:
        return UNKNOWN
    low, high = next((band for band in AGE_BANDS if band[0] <= age_years <= band[1]), AGE_BANDS[-1])
    return f"{low}+" if (low, high) == AGE_BANDS[-1] else f"{low}-{high}" if low < high else str(low)


def _order(value: str) -> tuple[bool, int, str]:
    """Age bands by age, the rest by name, the unknown last."""
    digits = value.rstrip("+").split("-")[0]
    return value == UNKNOWN, int(digits) if digits.isdigit() else 0, value


def called_outputs(card: ModelCard, answers: list[Answers]) -> np.ndarray:
    """Return the output that each image is called as: the likeliest finding at or above its threshold, else none."""
    called_NF = np.stack([one.is_called() for one in answers], axis=1)
    probability_NF = np.where(called_NF, np.stack([one.probability_N for one in answers], axis=1), -1.0)
    output_F = np.array([card.outputs.index(one.finding) for one in answers])
    return np.where(called_NF.any(1), output_F[probability_NF.argmax(1)], 0)


def describe(items: tuple[Item, ...], card: ModelCard) -> dict[str, Any]:
    """Return what the images are: counts by class and by everything that the manifest knows."""
    ages = [item.age_years for item in items if item.age_years is not None]
    return {
        "images": len(items),
        "patients": len({item.group for item in items}),
        "classes": {name: sum(item.label == label for item in items) for label, name in enumerate(card.outputs)},
        "sources": dict(sorted(Counter(item.source for item in items).items())),
        "age_known": len(ages),
        "age_years": [min(ages), max(ages)] if ages else None,
        "outside_validated_age": sum(not card.is_validated_age(age) for age in ages),
    }


def name_of(item: Item) -> str:
    """Return the file as it stands in its data set, with its folder; the row too, where one file holds many."""
    name = Path(*item.path.parts[-2:]).as_posix()
    return name if item.index is None else f"{item.path.name}#{item.index}"
