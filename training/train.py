"""Train a network from a recipe: `python -m training.train --recipe NAME --data PATH --out DIR [--resume]`.

Reads top to bottom: recipe, data, network, epochs. After every epoch the whole state is written to
`OUT/checkpoint.pt`; `--resume` continues from it. An epoch's randomness depends on the seed and the epoch only, so
a resumed run sees what the unbroken one would have seen. Shapes: B images, H rows, W columns, L outputs.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from models.networks import make_network
from training import metrics
from training.augment import augment, mix
from training.data import DataError, Images, find_items, load_images, split
from training.settings import Recipe, RecipeError, Stage, load_recipe

logger = logging.getLogger("training")


class TrainingStopped(Exception):
    """The run cannot go on; the message says why and what to do."""


class Trainer:
    """The state of a run: network, averaged weights, optimizer and the epochs done."""

    def __init__(self, recipe: Recipe, training: Images, validation: Images, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.training, self.validation, self.device = recipe, training, validation, device
        self.network = make_network(recipe.network, len(recipe.outputs))
        self.network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged = {key: value.detach().clone() for key, value in self.network.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            _decay_groups(self.network, recipe.weight_decay), lr=recipe.learning_rate, betas=(0.9, 0.99)
        )
        self.epochs_done = 0
        self.class_weight_L = _class_weights(training.label_N, len(recipe.outputs), recipe.class_weights).to(device)

    def run_epoch(self) -> dict[str, float]:
        """Train one epoch and judge the averaged weights; return the line for metrics.jsonl."""
        started = time.monotonic()
        stage = self.recipe.stage_of(self.epochs_done)
        torch.manual_seed(self.recipe.seed * 100_003 + self.epochs_done)
        self.network.train()
        losses = []
        batches = tqdm(
            list(self._batches(stage.batch_size)),
            desc=f"epoch {self.epochs_done + 1}/{self.recipe.epochs} at {stage.size} px",
            unit="batch",
            mininterval=5,
        )
        for position, index in enumerate(batches):
            rate = self._learning_rate(self.epochs_done + position / len(batches))
            losses.append(self._step(index, stage, rate))
            batches.set_postfix(loss=f"{np.mean(losses[-50:]):.3f}", lr=f"{rate:.1e}", refresh=False)
        self.epochs_done += 1
        return {
            "epoch": self.epochs_done,
            "size": stage.size,
            "loss": round(float(np.mean(losses)), 5),
            "learning_rate": rate,
            "validation_auc": round(self._validation_auc(stage.size), 5),
            "seconds": round(time.monotonic() - started, 1),
        }

    def _batches(self, batch_size: int) -> Iterator[Tensor]:
        order = torch.randperm(len(self.training.items))
        for start in range(0, len(order) - batch_size + 1, batch_size):
            yield order[start : start + batch_size]

    def _step(self, index: Tensor, stage: Stage, rate: float) -> float:
        recipe = self.recipe
        generator = torch.default_generator
        image_B1HW = resized(self.training.pixels_N1HW[index], stage.size)
        image_B1HW = augment(image_B1HW, recipe.augmentation, generator)
        target_BL = functional.one_hot(self.training.label_N[index], len(recipe.outputs)).float()
        image_B1HW, target_BL = mix(image_B1HW, target_BL, recipe.augmentation.mixup, generator)
        with torch.autocast(self.device.type, torch.bfloat16):
            logit_BL = self.network(image_B1HW.to(self.device))
        loss = functional.cross_entropy(
            logit_BL.float(), target_BL.to(self.device), self.class_weight_L, label_smoothing=recipe.label_smoothing
        )
        if not torch.isfinite(loss):
            raise TrainingStopped(
                f"the loss became {loss.item()} in epoch {self.epochs_done + 1}; "
                "lower the learning rate and continue with --resume"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), recipe.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self._average(stage.ema_decay)
        return float(loss.item())

    def _learning_rate(self, epoch: float) -> float:
        """One cycle: a straight line up, then half a cosine down to a thousandth."""
        share, warmup = epoch / (self.recipe.cycle_epochs or self.recipe.epochs), self.recipe.warmup_share
        if share < warmup:
            return self.recipe.learning_rate * (0.04 + 0.96 * share / warmup)
        fall = 0.5 * (1 + math.cos(math.pi * (share - warmup) / (1 - warmup)))
        return self.recipe.learning_rate * (0.001 + 0.999 * fall)

    @torch.no_grad()
    def _average(self, decay: float) -> None:
        """Let the averaged weights (and batch-norm statistics) follow the network's."""
        for key, value in self.network.state_dict().items():
            if value.is_floating_point():
                self.averaged[key].lerp_(value, 1 - decay)
            else:
                self.averaged[key].copy_(value)

    def _validation_auc(self, size: int) -> float:
        judge = make_network(self.recipe.network, len(self.recipe.outputs))
        judge.load_state_dict(self.averaged)
        judge.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        probability_NL = torch.softmax(logits(judge, self.validation.pixels_N1HW, size, self.device), 1).numpy()
        truth_N = (self.validation.label_N != 0).numpy().astype(int)  # the first output is "nothing found"
        return metrics.auc(truth_N, 1 - probability_NL[:, 0])

    def save(self, path: Path) -> None:
        """Write the whole state; a crash leaves the old file or the new one, never half of one."""
        state = {
            "recipe": asdict(self.recipe),
            "epochs_done": self.epochs_done,
            "network": self.network.state_dict(),
            "averaged": self.averaged,
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Take up the state that `save` wrote."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.network.load_state_dict(state["network"])
        self.averaged = {key: value.to(self.device) for key, value in state["averaged"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.epochs_done = state["epochs_done"]
        torch.set_rng_state(state["random"])


def resized(pixels_B1HW: Tensor, size: int) -> Tensor:
    """Return float images in [0, 1] of another size, by the area averaging of `models.preprocess.squash`."""
    if size == pixels_B1HW.shape[-1]:
        return pixels_B1HW.float() / 255
    # squash works on one channel-first image: the batch takes the place of the channels.
    return functional.interpolate(pixels_B1HW.float() / 255, (size, size), mode="area")


@torch.inference_mode()
def logits(
    network: nn.Module, pixels_N1HW: Tensor, size: int, device: torch.device, *, is_exact: bool = False
) -> Tensor:
    """Return logit_NL on the CPU, float32; in bf16 autocast as in training, unless exact."""
    network.eval()
    found = []
    for pixels_B1HW in torch.split(pixels_N1HW, 64):
        with torch.autocast(device.type, torch.bfloat16, enabled=not is_exact):
            found.append(network(resized(pixels_B1HW, size).to(device)).float().cpu())
    return torch.cat(found)


def _decay_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels only: a decayed batch norm scale or bias helps nothing."""
    parameters = list(network.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _class_weights(label_N: Tensor, count: int, is_on: bool) -> Tensor:
    images_L = torch.bincount(label_N, minlength=count).float()
    return images_L.sum() / (count * images_L) if is_on else torch.ones(count)


def train(recipe: Recipe, data: Path, out: Path, *, is_resumed: bool) -> None:
    """Run the recipe to its end."""
    items = find_items(data, recipe.outputs)
    training, validation = split(items, validation_share=recipe.validation_share, salt=recipe.split_salt)
    logger.info("data: %d images for training, %d for validation", len(training), len(validation))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer = Trainer(recipe, load_images(training, "training"), load_images(validation, "validation"), device)
    checkpoint = out / "checkpoint.pt"
    if is_resumed:
        trainer.load(checkpoint)
        logger.info("resumed after epoch %d", trainer.epochs_done)
    while trainer.epochs_done < recipe.epochs:
        line = trainer.run_epoch()
        trainer.save(checkpoint)
        with (out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        logger.info("epoch %(epoch)d: loss %(loss).4f, validation AUC %(validation_auc).4f, %(seconds).0f s", line)


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; 2 and one line for a mistake in what was asked."""
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", default="default", help="name in training/recipes, or a path ending in .toml")
    parser.add_argument("--data", type=Path, required=True, help="folder with train|val/{NORMAL,PNEUMONIA}")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log and metrics")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override the recipe")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        handlers=[logging.StreamHandler(), logging.FileHandler(options.out / "train.log")],
    )
    try:
        recipe = load_recipe(options.recipe, options.set)
        train(recipe, options.data, options.out, is_resumed=options.resume)
    except (RecipeError, DataError, TrainingStopped, FileNotFoundError) as error:
        print(f"training: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
