"""Do the pixels look like an upright frontal chest radiograph? Takes the network's input; knows no network, no tag.

A coarse picture of the image, standardised so that brightness and contrast do not count, is compared with those of the
training radiographs: children and adults apart, each as a Gaussian (`feature_statistics`); the nearer one counts. So
does the better of the two polarities: whether the greys are inverted is for `appearance` to say.

`chest.safetensors` is made by `python -m training.chest_score`, which says how often the check is wrong. Lateral views
are in no training data, so that tags alone keep them out; and what has no detail at all, such as a mere ramp of greys,
is not unlike enough to be refused. Shapes: B images, D features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from models.feature_statistics import FeatureStatistics
from models.preprocess import squash

STATISTICS_FILE = Path(__file__).with_name("chest.safetensors")
SIDE = 24
"""Of the coarse picture, pixels."""
_LIMIT = "limit"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChestStatistics:
    """Where the coarse pictures of chest radiographs lie.

    Attributes
    ----------
    by_source
        By the name of the training images' source.
    limit
        An image whose score lies above is not taken for a chest.
    """

    by_source: Mapping[str, FeatureStatistics]
    limit: float

    def score(self, feature_BD: Tensor) -> Tensor:
        """Return score_B, float32: how unlike the nearest source in the better polarity, about 1 for what is usual."""
        scores = [statistics.score(sign * feature_BD) for statistics in self.by_source.values() for sign in (1.0, -1.0)]
        return torch.stack(scores).amin(0)

    def to_bytes(self) -> bytes:
        """Return the content of the statistics file."""
        tensors = {_LIMIT: torch.tensor([self.limit], dtype=torch.float64)}
        for source, statistics in self.by_source.items():
            tensors |= {f"{source}/{key}": value for key, value in statistics.tensors().items()}
        content: bytes = safetensors.torch.save(tensors)
        return content


def coarse_features(images: Iterable[np.ndarray | Tensor]) -> Tensor:
    """Return feature_BD, float32, mean 0 and deviation 1 (all 0 for an image of one grey level), D = SIDE * SIDE.

    Parameters
    ----------
    images
        Each float32, shape (1, H, W), of any size; lung dark or inverted.
    """
    coarse_BD = torch.stack([squash(np.asarray(image_1HW)[0], SIDE).flatten() for image_1HW in images])
    centred_BD = coarse_BD - coarse_BD.mean(1, keepdim=True)
    return centred_BD / centred_BD.std(1, keepdim=True, correction=0).clamp_min(1e-6)


def chest_score(image_1HW: np.ndarray) -> float:
    """Return how unlike a chest radiograph an image is, about 1 for what is usual."""
    return float(_statistics().score(coarse_features([image_1HW])))


def looks_like_a_chest(image_1HW: np.ndarray) -> bool:
    """Whether an image's score lies within the limit: 1 % of the validation radiographs lie above."""
    return chest_score(image_1HW) <= _statistics().limit


@cache
def _statistics() -> ChestStatistics:
    tensors = safetensors.torch.load(STATISTICS_FILE.read_bytes())
    limit = float(tensors.pop(_LIMIT))
    by_source: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        source, _, key = name.rpartition("/")
        by_source.setdefault(source, {})[key] = tensor
    return ChestStatistics(
        by_source={source: FeatureStatistics(**of_source) for source, of_source in sorted(by_source.items())},
        limit=limit,
    )
