"""Which images make which batch. Takes items' images and a recipe; gives a DataLoader of augmented batches.

The order of an epoch, and every image's augmentation, depend on the recipe's seed, the epoch and the position in the
epoch only: not on the number of workers or processes, nor on where a stopped run is taken up again.
Shapes: B images, H rows, W columns, L outputs.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Sampler

from training.augment import Augment
from training.data import Images
from training.items import Item
from training.settings import Recipe, Stage

Place = tuple[int, int]  # index of an image, seed of its augmentation


class Batches:
    """The batches of a run's training images.

    Parameters
    ----------
    rank, world_size
        Which of how many processes; each gets its own part of every batch.
    workers
        Processes that load and augment; 0 does it in this one.
    """

    def __init__(self, images: Images, recipe: Recipe, *, rank: int = 0, world_size: int = 1, workers: int = 0) -> None:
        self._images, self._recipe = images, recipe
        self._rank, self._world_size, self._workers = rank, world_size, workers
        self._weight_N = class_weights(images.items, is_on=recipe.class_weights)
        self._pool = np.repeat(
            np.arange(len(images.items)), [recipe.repeats.get(item.source, 1) for item in images.items]
        )

    def count(self, stage: Stage) -> int:
        """Return how many batches an epoch has; what does not fill one is left to another epoch."""
        return max(1, len(self._pool) // stage.batch_size)

    def epoch(self, epoch: int, stage: Stage, *, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (image_B1HW, target_BL): targets are one-hot rows, smoothed, times the image's weight."""
        random = np.random.default_rng([self._recipe.seed, epoch])
        order = random.permutation(self._pool)
        seeds = random.integers(0, 2**63, len(order))
        share = max(1, stage.batch_size // self._world_size)
        starts = [batch * stage.batch_size + self._rank * share for batch in range(skip, self.count(stage))]
        places = [[(int(order[i]), int(seeds[i])) for i in range(a, min(a + share, len(order)))] for a in starts]
        return iter(
            DataLoader(
                _Augmented(self._images, self._targets(), Augment(self._recipe.augmentation, stage.size), stage.size),
                batch_sampler=_Fixed(places),
                num_workers=self._workers,
                worker_init_fn=_in_the_background,
                prefetch_factor=4 if self._workers else None,
                pin_memory=torch.cuda.is_available(),
                generator=torch.Generator(),  # or it would draw from the generator that a resumed run takes up again
            )
        )

    def _targets(self) -> Tensor:
        one_hot_NL = functional.one_hot(self._images.label_N, len(self._recipe.outputs)).float()
        smoothing = self._recipe.label_smoothing
        return (one_hot_NL * (1 - smoothing) + smoothing / one_hot_NL.shape[1]) * self._weight_N[:, None]


class _Augmented(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, images: Images, target_NL: Tensor, augment: Augment, size: int) -> None:
        self._images, self._target_NL, self._augment, self._size = images, target_NL, augment, size

    def __getitem__(self, place: Place) -> tuple[Tensor, Tensor]:
        index, seed = place
        return self._augment(resized(self._images[index][None], self._size)[0], seed), self._target_NL[index]


class _Fixed(Sampler[list[Place]]):
    """Batches that were decided beforehand."""

    def __init__(self, places: Sequence[list[Place]]) -> None:
        self._places = places

    def __iter__(self) -> Iterator[list[Place]]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def class_weights(items: Sequence[Item], *, is_on: bool = True) -> Tensor:
    """Return weight_N: what each image counts in the loss.

    Within every source all classes together count the same, so that the source does not give the label away; every
    image counts 1 on average.
    """
    if not is_on:
        return torch.ones(len(items))
    images = Counter((item.source, item.label) for item in items)
    in_all = Counter(item.source for item in items)
    classes = Counter(source for source, _ in images)
    weights = [in_all[i.source] / (classes[i.source] * images[i.source, i.label]) for i in items]
    return torch.tensor(weights)


def resized(image_B1HW: Tensor, size: int) -> Tensor:
    """Return images of another size, by the area averaging of `models.preprocess.squash`."""
    if size == image_B1HW.shape[-1]:
        return image_B1HW
    return functional.interpolate(image_B1HW, (size, size), mode="area")


def _in_the_background(_: int) -> None:
    """Load in the time that the network leaves: its threads wait for each other where one loses its core."""
    torch.set_num_threads(1)
    os.nice(10)
