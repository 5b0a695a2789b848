"""From images to probabilities. Takes a card and image_B1HW; gives Predictions, calibrated for each patient's age.

Shapes: B images, H rows, W columns, D features, L network outputs, P populations of the card.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.card import Finding, ModelCard, Population
from models.feature_statistics import load_statistics
from models.serving import Serving, device_of, precision_of
from models.weights import load_network

CPU_BATCH = 16
SMALL_MOVES = ((-1.0, -1.0, 4.0), (1.0, -1.0, -4.0), (-1.0, 1.0, -4.0), (1.0, 1.0, 4.0))
"""Of test-time augmentation: columns and rows in shares of `MOVE_SHARE`, degrees; their mean is no move at all."""
MOVE_SHARE = 0.03


class DeviceOutOfMemory(Exception):
    """The device has no memory for this batch; a smaller one may fit."""


class DeviceFault(Exception):
    """The device failed in a way that this process cannot recover from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What one model says about one finding on one image.

    Attributes
    ----------
    probability
        Of the finding, in [0, 1], calibrated for the patient's population.
    threshold, abstain_low, abstain_high
        Of that population: present at threshold and above, undetermined in [abstain_low, abstain_high).
    depends_on_age
        The age is not known, and the card's populations would not all be answered alike.
    ood_score, ood_limit
        How unlike the training images this one is, about 1 for what is usual, and the most that the card takes for
        alike; None if the bundle cannot tell.
    """

    finding: str
    probability: float
    threshold: float
    abstain_low: float
    abstain_high: float
    model_name: str
    model_version: str
    depends_on_age: bool = False
    ood_score: float | None = None
    ood_limit: float | None = None

    @property
    def is_out_of_distribution(self) -> bool:
        """Whether the image is unlike the training images, so that calibration and limits say little about it."""
        return self.ood_score is not None and self.ood_limit is not None and self.ood_score > self.ood_limit

    @property
    def confidence(self) -> float:
        """Percent: how far the probability leans to either side."""
        return 100.0 * max(self.probability, 1.0 - self.probability)


class Predictor:
    """One model, ready to judge.

    Parameters
    ----------
    device
        "cpu", "cuda", or "auto" for CUDA where there is one.
    precision
        "fp32", "bf16", or "auto" for bf16 where the hardware multiplies it.
    threads
        Threads for one forward pass on the CPU, for the whole process; None leaves torch's choice.
    use_tta
        Take the mean of the logits over the image and four small moves of it: five times the work.

    Raises
    ------
    WeightsMismatch
        The weights or the feature statistics are not those of the card.
    ValueError
        The device or precision is unknown or absent.
    """

    def __init__(
        self,
        card: ModelCard,
        *,
        device: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        use_tta: bool = False,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.card = card
        chosen = device_of(device)
        self.device = chosen.type
        self._use_tta = use_tta
        network = load_network(card)
        self._feature_count = network.feature_count
        self._statistics = load_statistics(card, self._feature_count)
        self.precision = precision_of(precision, chosen)
        self._network = Serving(network, chosen, self.precision)
        self._reported = [(card.outputs.index(finding.name), finding) for finding in card.findings]

    def predict(
        self,
        image_B1HW: np.ndarray | Tensor,
        age_years_B: Sequence[int | None] | None = None,
        *,
        use_tta: bool | None = None,
    ) -> list[tuple[Prediction, ...]]:
        """Judge a batch: one tuple per image, in order, with one Prediction per finding of the card.

        Parameters
        ----------
        image_B1HW
            float32, shape (B, 1, size, size) with the card's size, range [0, 1], lung dark.
        age_years_B
            Completed years of each patient, None where unknown; they choose calibration and limits. None for a
            batch of which no age is known.
        use_tta
            For this batch; None as the predictor was made.

        Raises
        ------
        ValueError
            The shape is another one, or there is not one age per image.
        DeviceOutOfMemory, DeviceFault
            The device failed.
        ArithmeticError
            The network gave something that is not a number.
        """
        logit_BL, feature_BD = self._judge(torch.as_tensor(image_B1HW), use_tta=use_tta)
        ages = [None] * len(logit_BL) if age_years_B is None else age_years_B
        populations = [self.card.population_of(age) for age in ages]
        scores = self._statistics.score(feature_BD).tolist() if self._statistics else [None] * len(logit_BL)
        said = [
            tuple(
                self._prediction(finding, float(probability_L[output]), population, score)
                for output, finding in self._reported
            )
            for probability_L, population, score in zip(
                calibrated(logit_BL, populations), populations, scores, strict=True
            )
        ]
        return [
            said_of if age is not None else self._weighed_by_age(said_of, logit_L)
            for said_of, age, logit_L in zip(said, ages, logit_BL, strict=True)
        ]

    def _weighed_by_age(self, said: tuple[Prediction, ...], logit_L: Tensor) -> tuple[Prediction, ...]:
        """Return what is said of an image without an age, marked where one population would be told otherwise."""
        populations = self.card.populations
        probability_PL = calibrated(logit_L.expand(len(populations), -1), populations)
        return tuple(
            replace(prediction, depends_on_age=len(set(_calls(finding, populations, probability_PL[:, output]))) > 1)
            for prediction, (output, finding) in zip(said, self._reported, strict=True)
        )

    def _judge(self, image_B1HW: Tensor, *, use_tta: bool | None = None) -> tuple[Tensor, Tensor]:
        """Return logit_BL, the mean over the small moves if asked for, and feature_BD of the images as they are."""
        logit_BL, feature_BD = self._run(image_B1HW)
        if self._use_tta if use_tta is None else use_tta:
            moved = [self._run(moved_slightly(image_B1HW, *move))[0] for move in SMALL_MOVES]
            logit_BL = torch.stack([logit_BL, *moved]).mean(0)
        return logit_BL, feature_BD

    def _run(self, image_B1HW: Tensor) -> tuple[Tensor, Tensor]:
        size = self.card.input_size
        if image_B1HW.ndim != 4 or tuple(image_B1HW.shape[1:]) != (1, size, size):
            raise ValueError(f"images must have the shape (B, 1, {size}, {size}), not {tuple(image_B1HW.shape)}")
        if len(image_B1HW) == 0:
            return torch.empty(0, len(self.card.outputs)), torch.empty(0, self._feature_count)
        try:
            parts = [self._network(part_B1HW) for part_B1HW in self._parts(image_B1HW)]
            logit_BL, feature_BD = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
        except torch.OutOfMemoryError as error:
            raise DeviceOutOfMemory(str(error)) from error
        except torch.AcceleratorError as error:
            raise DeviceFault(str(error)) from error
        if not (torch.isfinite(logit_BL).all() and torch.isfinite(feature_BD).all()):
            raise ArithmeticError("the network's output is not finite")
        return logit_BL, feature_BD

    def _parts(self, image_B1HW: Tensor) -> tuple[Tensor, ...]:
        """On the CPU more images at once are slower: their activations no longer fit the cache."""
        return torch.split(image_B1HW, CPU_BATCH) if self.device == "cpu" else (image_B1HW,)

    def _prediction(
        self, finding: Finding, probability: float, population: Population, ood_score: float | None
    ) -> Prediction:
        limits = population.limits[finding.name]
        return Prediction(
            finding=finding.name,
            probability=probability,
            threshold=limits.threshold,
            abstain_low=limits.abstain_low,
            abstain_high=limits.abstain_high,
            model_name=self.card.name,
            model_version=self.card.version,
            ood_score=ood_score,
            ood_limit=self.card.out_of_distribution.limit if self.card.out_of_distribution else None,
        )


class Ensemble:
    """Several models that judge as one: the mean of their probabilities, each calibrated by its own card.

    Limits and out-of-distribution scores are those of the first, whose card is the ensemble's; its predictions bear
    the names and versions of all, so that no single model is credited with what it did not say.

    Raises
    ------
    ValueError
        There is no member, or two differ in what they take or find.
    """

    def __init__(self, members: Sequence[Predictor]) -> None:
        if not members:
            raise ValueError("an ensemble needs at least one model")
        self.card = members[0].card
        for card in (member.card for member in members[1:]):
            if (card.outputs, card.input_size) != (self.card.outputs, self.card.input_size) or [
                finding.name for finding in card.findings
            ] != [finding.name for finding in self.card.findings]:
                raise ValueError(
                    f"{card.name} {card.version} and {self.card.name} {self.card.version} differ in outputs, findings "
                    "or input size: they cannot judge as one"
                )
        self._members = tuple(members)

    def predict(
        self,
        image_B1HW: np.ndarray | Tensor,
        age_years_B: Sequence[int | None] | None = None,
        *,
        use_tta: bool | None = None,
    ) -> list[tuple[Prediction, ...]]:
        """Judge a batch as `Predictor.predict` does."""
        each = [member.predict(image_B1HW, age_years_B, use_tta=use_tta) for member in self._members]
        return [
            tuple(_as_one(said) for said in zip(*of_one_image, strict=True)) for of_one_image in zip(*each, strict=True)
        ]


def _as_one(said: Sequence[Prediction]) -> Prediction:
    return replace(
        said[0],
        probability=math.fsum(prediction.probability for prediction in said) / len(said),
        depends_on_age=any(prediction.depends_on_age for prediction in said),
        model_name=" + ".join(prediction.model_name for prediction in said),
        model_version=" + ".join(prediction.model_version for prediction in said),
    )


def _calls(finding: Finding, populations: Sequence[Population], probability_P: Tensor) -> list[bool | None]:
    """Return for each population whether the finding is present; None = undetermined."""
    limits_P = [population.limits[finding.name] for population in populations]
    return [
        None if limits.abstain_low <= probability < limits.abstain_high else probability >= limits.threshold
        for probability, limits in zip(probability_P.tolist(), limits_P, strict=True)
    ]


def calibrated(logit_BL: Tensor, populations: Sequence[Population]) -> Tensor:
    """Return probability_BL, float64: bias added, divided by the temperature, softmax; one population per image.

    Raises
    ------
    ValueError
        There are more or fewer populations than images.
    """
    if len(populations) != len(logit_BL):
        raise ValueError(f"{len(logit_BL)} images need as many ages, not {len(populations)}")
    bias_BL = torch.tensor([population.bias for population in populations], dtype=torch.float64)
    temperature_B = torch.tensor([population.temperature for population in populations], dtype=torch.float64)
    return torch.softmax((logit_BL.double() + bias_BL.reshape(logit_BL.shape)) / temperature_B[:, None], dim=1)


def moved_slightly(image_B1HW: Tensor, columns: float, rows: float, degrees: float) -> Tensor:
    """Return the images shifted and turned; the border's grey fills what comes in.

    Parameters
    ----------
    columns, rows
        In units of `MOVE_SHARE` of the image's side, to the right and down.
    degrees
        Clockwise.
    """
    angle = math.radians(degrees)
    cosine, sine = math.cos(angle), math.sin(angle)
    # affine_grid maps places of the result to those of the source, in [-1, 1]: the inverse move, shares doubled.
    right, down = 2 * MOVE_SHARE * columns, 2 * MOVE_SHARE * rows
    inverse_23 = torch.tensor(
        [[cosine, sine, -cosine * right - sine * down], [-sine, cosine, sine * right - cosine * down]],
        dtype=torch.float32,
    )
    image_B1HW = image_B1HW.float()
    grid = functional.affine_grid(
        inverse_23.to(image_B1HW.device).expand(len(image_B1HW), 2, 3), list(image_B1HW.shape), align_corners=False
    )
    return functional.grid_sample(image_B1HW, grid, mode="bilinear", padding_mode="border", align_corners=False)
