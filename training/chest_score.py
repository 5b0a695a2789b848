"""Fit the check for chests: `python -m training.chest_score --data .../kermany224 .../nih --cache DIR`.

Takes the training images of a recipe's split; writes `models/chest.safetensors`, which the service reads whatever model
is active. The limit is set by the validation images alone: 1 % of them lie above. Other images than chest radiographs
are never looked at, neither here nor when the sizes were chosen: 24 x 24 pixels and 32 directions refuse most turned
copies of the validation images. Shapes: N images, D features.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.chest import SIDE, STATISTICS_FILE, ChestStatistics, coarse_features
from models.feature_statistics import fit_statistics
from training.data import Images
from training.items import DataError
from training.settings import RecipeError, load_recipe
from training.train import images_of

DIRECTIONS = 32
FALSE_REFUSALS = 0.01  # of the validation images lie above the limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """The statistics and how often they are wrong, each a share in [0, 1] of the validation images.

    Attributes
    ----------
    refused
        Of the images as they are, by source.
    turned_refused
        Of copies turned by 1, 2 and 3 quarters: no upright chests.
    """

    statistics: ChestStatistics
    refused: Mapping[str, float]
    turned_refused: tuple[float, ...]


def fit(training: Images, validation: Images) -> Fitted:
    """Fit the statistics on the training images and set the limit by the validation images.

    Raises
    ------
    ValueError
        A source has too few training images.
    """
    feature_ND = coarse_features(training[index] for index in range(len(training)))
    by_source = {}
    for source in sorted({item.source for item in training.items}):
        chosen_ND = feature_ND[_is_of(training, source)]
        by_source[source] = fit_statistics(chosen_ND, min(DIRECTIONS, len(chosen_ND) // 2))
    seen_ND = coarse_features(validation[index] for index in range(len(validation)))
    score_N = ChestStatistics(by_source=by_source, limit=math.inf).score(seen_ND)
    limit = math.ceil(1000 * float(torch.quantile(score_N.double(), 1 - FALSE_REFUSALS))) / 1000
    statistics = ChestStatistics(by_source=by_source, limit=limit)
    return Fitted(
        statistics=statistics,
        refused={
            source: _share_above(score_N[_is_of(validation, source)], limit)
            for source in sorted({item.source for item in validation.items})
        },
        turned_refused=tuple(
            _share_above(statistics.score(_turned(seen_ND, quarters)), limit) for quarters in (1, 2, 3)
        ),
    )


def _is_of(images: Images, source: str) -> Tensor:
    return torch.tensor([item.source == source for item in images.items])


def _turned(feature_ND: Tensor, quarters: int) -> Tensor:
    return feature_ND.view(-1, SIDE, SIDE).rot90(quarters, (1, 2)).flatten(1)


def _share_above(score_N: Tensor, limit: float) -> float:
    return float((score_N > limit).double().mean())


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; 2 and one line for a mistake in what was asked."""
    parser = argparse.ArgumentParser(prog="python -m training.chest_score", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of chest radiographs")
    parser.add_argument("--cache", type=Path, required=True, help="folder of preprocessed images, as of a training run")
    parser.add_argument("--recipe", default="default", help="whose split and size are used (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=STATISTICS_FILE, help="default: beside the code that reads it")
    options = parser.parse_args(arguments)
    try:
        fitted = fit(*images_of(load_recipe(options.recipe), options.data, options.cache))
    except (DataError, RecipeError, ValueError) as error:
        print(f"chest_score: {error}", file=sys.stderr)
        return 2
    options.out.write_bytes(fitted.statistics.to_bytes())
    print(f"limit {fitted.statistics.limit}")
    for source, share in fitted.refused.items():
        print(f"falsely refused of the validation images of {source}: {100 * share:.1f} %")
    print("refused of their copies turned by 1, 2 and 3 quarters: "
          + ", ".join(f"{100 * share:.0f} %" for share in fitted.turned_refused))  # fmt: skip
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
