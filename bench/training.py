"""(d) Whether the network ever waits for images: real training against the same steps on one fixed batch."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.table import Bar, Table, note, spread
from pacs_node.phantom import draw_chest
from training.batches import Batches
from training.data import Images, load_images
from training.settings import Recipe, load_recipe
from training.sources import read_items
from training.train import network_of
from training.trainer import Trainer

LEAST_RATIO = 0.9
"""At 224 pixels; smaller images are reported only."""
BAR_SIZE = 224


def run(folder: Path, *, is_quick: bool, rounds: int) -> Table:
    """Alternate real and fixed batches at two sizes, with the default recipe."""
    batches = 3 if is_quick else 8
    recipe = replace(load_recipe("default"), weights="none")
    images = _images(folder, recipe, batches)
    rows, bars = [], []
    for size in (128, BAR_SIZE):
        real, fixed = _compare(recipe, images, size, rounds, folder)
        ratio = median(real) / median(fixed)
        rows.append((f"{size} px", spread(real, 1), spread(fixed, 1), f"{ratio:.2f}x"))
        if size == BAR_SIZE:
            text = f"{size} px: {ratio:.2f}x of what the network can take (>= {LEAST_RATIO}x)"
            bars.append(Bar(text=text, is_met=ratio >= LEAST_RATIO))
    return Table(
        title="(d) Training: images/s, median (min-max)",
        head=("", "real training", "one fixed batch", "real/fixed"),
        rows=tuple(rows),
        notes=(
            f"Median of {rounds} alternated runs of {batches} batches of 32, the first batch not counted.",
            "real: preprocessed images from the cache, augmented, mixed; fixed: the same steps on one batch.",
        ),
        bars=tuple(bars),
    )


def _images(folder: Path, recipe: Recipe, batches: int) -> Images:
    """Return distinct drawn images of both classes, enough for every batch."""
    drawing = (draw_chest(300, 260, seed=1) * 255).astype(np.uint8)
    for number in range(32 * (batches + 1)):
        path = folder / "drawn" / ("NORMAL" if number % 2 else "PNEUMONIA") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(drawing, (number % 97, number), axis=(0, 1))).save(path)
    return load_images(read_items([folder / "drawn"], recipe.outputs), size=BAR_SIZE, cache=folder / "cache")


def _compare(recipe: Recipe, images: Images, size: int, rounds: int, folder: Path) -> tuple[list[float], list[float]]:
    stage = replace(recipe.stages[0], size=size, epochs=1, batch_size=32)
    chosen = replace(recipe, stages=(stage,))
    loaded = Batches(images, chosen, workers=max(1, (os.cpu_count() or 2) // 2))
    trainer = Trainer(chosen, network_of(chosen), images, images, checkpoint=folder / "checkpoint.pt")
    trainer.network.train()
    same = (torch.rand(32, 1, size, size), torch.eye(2).repeat(16, 1))
    speeds: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        speeds["real"].append(_speed(trainer, loaded.epoch(0, stage)))
        speeds["fixed"].append(_speed(trainer, repeat(same, loaded.count(stage))))
        note(f"{size} px: real {speeds['real'][-1]:.1f}, fixed {speeds['fixed'][-1]:.1f} images/s")
    return speeds["real"], speeds["fixed"]


def _speed(trainer: Trainer, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return the images per second of the steps, without the first."""
    count, started = -1, 0.0
    for image_B1HW, target_BL in batches:
        trainer.step(image_B1HW, target_BL)
        count += 1
        started = started or time.perf_counter()
    return 32 * count / (time.perf_counter() - started)
