"""How unlike the training images is this one? Takes pooled features; gives one score per image.

The features of the training images are taken for a Gaussian with K principal directions and one deviation in all the
others (probabilistic principal component analysis); the score is an image's standardised distance from its mean.

Shapes: B or N images, D features, K directions.

References
----------
Tipping & Bishop 1999: Probabilistic Principal Component Analysis. J. R. Stat. Soc. B 61, 611-622.
"""

from __future__ import annotations

from dataclasses import dataclass

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from models.card import ModelCard
from models.errors import WeightsMismatch
from models.weights import read_verified

DIRECTIONS = 64
_KEYS = ("mean_D", "direction_KD", "deviation_K", "residual_deviation")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FeatureStatistics:
    """Where the features of the training images lie.

    Attributes
    ----------
    mean_D, direction_KD, deviation_K
        Their mean, the orthonormal directions in which they vary most, and the standard deviation along each.
    residual_deviation
        Standard deviation along every other direction, shape (1,).
    """

    mean_D: Tensor
    direction_KD: Tensor
    deviation_K: Tensor
    residual_deviation: Tensor

    def score(self, feature_BD: Tensor) -> Tensor:
        """Return score_B, float32: the root of the mean squared standardised distance, about 1 for what is usual."""
        centred_BD = feature_BD.float() - self.mean_D
        along_BK = centred_BD @ self.direction_KD.T
        across_BD = centred_BD - along_BK @ self.direction_KD
        squared_B = (along_BK / self.deviation_K).square().sum(1)
        squared_B = squared_B + (across_BD / self.residual_deviation).square().sum(1)
        return (squared_B / len(self.mean_D)).sqrt()

    def to_bytes(self) -> bytes:
        """Return the content of a bundle's statistics file; its sha256 belongs into the card."""
        content: bytes = safetensors.torch.save(self.tensors())
        return content

    def tensors(self) -> dict[str, Tensor]:
        """Return everything by name, float32, as a file holds it."""
        return {key: getattr(self, key).float().contiguous() for key in _KEYS}


def fit_statistics(feature_ND: Tensor, directions: int = DIRECTIONS) -> FeatureStatistics:
    """Return the statistics of the training images' features.

    Raises
    ------
    ValueError
        There are too few images or features for so many directions, or the features do not vary beyond them.
    """
    count, width = feature_ND.shape
    if not 0 < directions < min(count - 1, width):
        raise ValueError(f"{count} images with {width} features are too few for {directions} directions")
    mean_D = feature_ND.double().mean(0)
    _, spread, direction = torch.linalg.svd(feature_ND.double() - mean_D, full_matrices=False)  # widest first
    variance = spread.square() / (count - 1)
    residual = variance[directions:].sum() / (width - directions)
    if not residual > 1e-12 * variance[0]:
        raise ValueError(f"the features vary in no more than {directions} directions: choose fewer")
    return FeatureStatistics(
        mean_D=mean_D.float(),
        direction_KD=direction[:directions].float(),
        deviation_K=variance[:directions].sqrt().float(),
        residual_deviation=residual.sqrt().reshape(1).float(),
    )


def load_statistics(card: ModelCard, feature_count: int) -> FeatureStatistics | None:
    """Return the statistics of a bundle, None where its card names none.

    Parameters
    ----------
    feature_count
        D of the card's network.

    Raises
    ------
    WeightsMismatch
        The file's sha256 is not the card's, or it holds other tensors than these, or impossible values.
    """
    if card.out_of_distribution is None:
        return None
    content = read_verified(card.features_path, card.out_of_distribution.sha256)
    try:
        tensors = {key: value.float() for key, value in safetensors.torch.load(content).items()}
    except SafetensorError as error:
        raise WeightsMismatch(f"{card.features_path}: {error}") from error
    if sorted(tensors) != sorted(_KEYS):
        raise WeightsMismatch(f"{card.features_path}: must hold {', '.join(_KEYS)}, not {', '.join(sorted(tensors))}")
    statistics = FeatureStatistics(**tensors)
    _check(statistics, card, feature_count)
    return statistics


def _check(statistics: FeatureStatistics, card: ModelCard, feature_count: int) -> None:
    directions = len(statistics.deviation_K)
    wanted = {
        "mean_D": (feature_count,),
        "direction_KD": (directions, feature_count),
        "deviation_K": (directions,),
        "residual_deviation": (1,),
    }
    for key, shape in wanted.items():
        value: Tensor = getattr(statistics, key)
        if tuple(value.shape) != shape:
            raise WeightsMismatch(f"{card.features_path}: {key} must have the shape {shape}, not {tuple(value.shape)}")
        if not torch.isfinite(value).all() or ("deviation" in key and not (value > 0).all()):
            raise WeightsMismatch(f"{card.features_path}: {key} holds impossible values")
