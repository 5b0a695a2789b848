"""The state of a run and what moves it on: network, averaged weights, optimizer, schedule, random numbers.

`save` writes all of it, `load` takes it up again at the very batch: a run that was killed ends as the unbroken one
would have. Shapes: B images, H rows, W columns, L outputs.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from models.networks import Classifier, make_network
from models.serving import precision_of
from training.augment import Mix
from training.batches import Batches
from training.data import Images, items_sha256
from training.processes import Processes
from training.settings import Recipe, Stage
from training.validation import Line, outputs_of, validation_figures

CHECKPOINT_MINUTES = 5.0  # what a killed run loses at most


class TrainingStopped(Exception):
    """The run cannot go on; the message says why and what to do."""


class Trainer:
    """One run in one of its processes.

    Parameters
    ----------
    network
        With the weights to start from.
    checkpoint
        Written after every epoch, and within an epoch every `CHECKPOINT_MINUTES`, by the first process.
    """

    def __init__(
        self,
        recipe: Recipe,
        network: Classifier,
        training: Images,
        validation: Images,
        *,
        checkpoint: Path,
        processes: Processes | None = None,
        workers: int = 0,
    ) -> None:
        self.recipe, self.validation = recipe, validation
        self._processes = processes or Processes()
        self._checkpoint = checkpoint
        self._device = self._processes.device
        self._is_bf16 = precision_of(recipe.precision, self._device, is_training=True) == "bf16"
        self._items = {"training": items_sha256(training.items), "validation": items_sha256(validation.items)}
        self._batches = Batches(
            training, recipe, rank=self._processes.rank, world_size=self._processes.world_size, workers=workers
        )
        self._mix = Mix(mixup=recipe.mixup, cutmix=recipe.cutmix)
        self.network = network.to(device=self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged = {key: value.detach().clone() for key, value in self.network.state_dict().items()}
        self.best: dict[str, Any] = {}
        self.lines: list[Line] = []
        self._optimizer = _optimizer(self.network, recipe)
        self._plateau = ReduceLROnPlateau(self._optimizer, mode="max", factor=0.1, patience=recipe.patience)
        self.epochs_done = self._steps = 0
        self._batches_done, self._sums = 0, np.zeros(3)  # within the epoch: loss, hits, images
        self._forward: Callable[[Tensor], Tensor] = self._processes.wrap(self.network)
        if recipe.compile:
            self._forward = torch.compile(self._forward)

    @property
    def is_finished(self) -> bool:
        """All epochs are done, or the recipe's patience is used up."""
        patience = self.recipe.early_stop_epochs
        is_stale = bool(patience and self.best and self.epochs_done - self.best["epoch"] >= patience)
        return self.epochs_done >= self.recipe.epochs or is_stale

    def run_epoch(self) -> Line:
        """Train to the end of the epoch and judge the averaged weights; return its figures, the last of `lines`.

        Raises
        ------
        TrainingStopped
            The loss or its gradient is not finite; the weights are those of before.
        """
        started = saved = time.monotonic()
        stage = self.recipe.stage_of(self.epochs_done)
        if self._batches_done == 0:
            torch.manual_seed(_mixed(self.recipe.seed, self.epochs_done, self._processes.rank))
        self.network.freeze(stage.freeze)
        self.network.train()
        count = self._batches.count(stage)
        title = f"epoch {self.epochs_done + 1}/{self.recipe.epochs} at {stage.size} px"
        before = {"auc": f"{self.lines[-1]['validation_auc']:.4f}"} if self.lines else {}  # of the epoch before
        with tqdm(
            total=count,
            initial=self._batches_done,
            desc=title,
            unit="batch",
            disable=not self._processes.is_first,
            mininterval=5,
        ) as bar:
            for image_B1HW, target_BL in self._batches.epoch(self.epochs_done, stage, skip=self._batches_done):
                rate = self._set_rates(stage, self.epochs_done + self._batches_done / count)
                self._sums += self.step(image_B1HW, target_BL)
                self._batches_done += 1
                bar.update()
                shown = {"loss": f"{self._sums[0] / self._sums[2]:.3f}", "lr": f"{rate:.1e}"}
                bar.set_postfix(shown | before, refresh=False)
                is_due = time.monotonic() - saved >= 60 * CHECKPOINT_MINUTES
                if self._processes.agreed(is_due) and self._batches_done < count:
                    self.save()
                    saved = time.monotonic()
        loss, hits, images = self._processes.summed(self._sums).tolist()
        self.epochs_done, self._batches_done, self._sums = self.epochs_done + 1, 0, np.zeros(3)
        line = {
            "epoch": self.epochs_done,
            "size": stage.size,
            "loss": round(loss / images, 5),
            "training_accuracy": round(hits / images, 5),
            "learning_rate": rate,
        } | self._judge(stage.size)
        self.lines.append(line | {"seconds": round(time.monotonic() - started, 1)})
        if self.recipe.schedule == "plateau":
            self._plateau.step(line["validation_auc"])
        if line["validation_auc"] > self.best.get("validation_auc", -1.0) and self.recipe.early_stop_epochs:
            weights = {key: value.clone() for key, value in self.averaged.items()}
            self.best = {"epoch": self.epochs_done, "validation_auc": line["validation_auc"], "weights": weights}
        self.save()
        return self.lines[-1]

    def step(self, image_B1HW: Tensor, target_BL: Tensor) -> np.ndarray:
        """Make one step; return the sums of loss, hits and images in this process."""
        image_B1HW, target_BL = self._mix(image_B1HW, target_BL)
        image_B1HW, target_BL = image_B1HW.to(self._device), target_BL.to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._is_bf16):
            logit_BL = self._forward(image_B1HW)
        loss = -(target_BL * functional.log_softmax(logit_BL.float(), 1)).sum(1).mean()
        self._refuse_infinite("loss", loss)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.recipe.clip_norm:
            self._refuse_infinite(
                "gradient", nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip_norm)
            )
        self._optimizer.step()
        self._average()
        hits = (logit_BL.argmax(1) == target_BL.argmax(1)).sum().item()
        return np.array([loss.item() * len(logit_BL), hits, len(logit_BL)])

    def _refuse_infinite(self, name: str, value: Tensor) -> None:
        if not torch.isfinite(value):
            raise TrainingStopped(
                f"the {name} became {value.item()} in epoch {self.epochs_done + 1}, batch {self._batches_done + 1}: "
                f"nothing was learned from it. Begin again with a lower learning_rate (--set) and another --out; "
                f"--weights {self._checkpoint} takes what was learned before, if it is sound"
            )

    def _set_rates(self, stage: Stage, epoch: float) -> float:
        """Set every group's learning rate for this moment of the run; return the new layers' rate."""
        recipe = self.recipe
        if recipe.schedule == "plateau":
            return float(self._optimizer.param_groups[-1]["lr"])
        factor = cosine(epoch, recipe) if recipe.schedule == "cosine" else 1.0
        for group in self._optimizer.param_groups:
            group["lr"] = factor * (stage.learning_rate or group["own_rate"])
        return float(self._optimizer.param_groups[-1]["lr"])

    def _average(self) -> None:
        """Let the averaged weights (and batch-norm statistics) follow the network's."""
        current = self.network.state_dict()
        moving = [key for key, value in current.items() if value.is_floating_point()]
        decay = self.recipe.stage_of(self.epochs_done).ema_decay or self.recipe.ema_decay
        self._steps += 1
        early = self._steps / (10 + self._steps)  # or the random weights of the start would stay in short runs
        follow = get_ema_multi_avg_fn(min(decay, early))  # type: ignore[no-untyped-call]
        follow([self.averaged[key] for key in moving], [current[key] for key in moving], 0)
        for key in current.keys() - moving:
            self.averaged[key].copy_(current[key])

    def _judge(self, size: int) -> Line:
        """Return the validation figures of the averaged weights: the first process's, which the checkpoint keeps."""
        self._processes.share(self.averaged.values())  # batch norm follows each process's own part of the batches
        judge = make_network(self.recipe.network, len(self.recipe.outputs))
        judge.load_state_dict(self.averaged)
        judge.to(device=self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        mine = range(self._processes.rank, len(self.validation.items), self._processes.world_size)
        title = "validation" if self._processes.is_first else ""
        outputs = outputs_of(judge, self.validation, size, self._device, mine, title=title)
        logit_NL = self._processes.gathered(mine, outputs[0])
        return validation_figures(logit_NL, self.validation)

    def save(self) -> None:
        """Write the whole state; a crash leaves the old file or the new one, never half of one."""
        states, sums = self._processes.random_states(), self._processes.summed(self._sums)
        if not self._processes.is_first:
            return
        state = {
            "recipe": _plain(self.recipe),
            "items": self._items,
            "processes": self._processes.world_size,
            "epochs_done": self.epochs_done,
            "batches_done": self._batches_done,
            "steps": self._steps,
            "sums": sums.tolist(),
            "network": self.network.state_dict(),
            "averaged": self.averaged,
            "best": self.best,
            "lines": self.lines,
            "optimizer": self._optimizer.state_dict(),
            "plateau": self._plateau.state_dict(),
            "random": states,
        }
        partial = self._checkpoint.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())  # after a power cut the name must never point at missing bytes
        partial.replace(self._checkpoint)

    def load(self) -> None:
        """Take up the state that `save` wrote.

        Raises
        ------
        TrainingStopped
            There is no checkpoint, or it is of another recipe, other images, another number of processes or a version
            that cannot be compared.
        """
        if not self._checkpoint.exists():
            raise TrainingStopped(f"{self._checkpoint} does not exist: there is nothing to resume")
        state = torch.load(self._checkpoint, map_location="cpu", weights_only=True)
        changed = [key for key, value in _plain(self.recipe).items() if state["recipe"].get(key) != value]
        if changed:
            raise TrainingStopped(
                f"{self._checkpoint} is of another recipe ({', '.join(changed)} differ): use another --out"
            )
        if "items" not in state:
            raise TrainingStopped(
                f"{self._checkpoint} was made by an earlier version, and its images and labels cannot be compared: "
                "go on with that version, or use another --out"
            )
        if state["items"] != self._items:
            raise TrainingStopped(
                f"{self._checkpoint} was made from other images or labels: give the same --data, in the same order, "
                "and --skip-bad, or another --out"
            )
        if state.get("processes", self._processes.world_size) != self._processes.world_size:
            raise TrainingStopped(
                f"{self._checkpoint} is of {state['processes']} processes, not {self._processes.world_size}: "
                "continue it with as many (torchrun --nproc-per-node), or use another --out"
            )
        self.network.load_state_dict(state["network"])
        self.averaged = {key: value.to(self._device) for key, value in state["averaged"].items()}
        self.best, self.lines = state["best"], state["lines"]
        self._optimizer.load_state_dict(state["optimizer"])
        self._plateau.load_state_dict(state["plateau"])
        self.epochs_done, self._batches_done = state["epochs_done"], state["batches_done"]
        self._steps = state["steps"]
        self._sums = np.array(state["sums"]) if self._processes.is_first else np.zeros(3)
        self._processes.set_random_state(state["random"])


def cosine(epoch: float, recipe: Recipe) -> float:
    """Return the share of the learning rate: a straight line up from 1/25, then half a cosine down."""
    if epoch < recipe.warmup_epochs:
        return 0.04 + 0.96 * epoch / recipe.warmup_epochs
    fall = 0.5 * (
        1 + math.cos(math.pi * (epoch - recipe.warmup_epochs) / max(1e-9, recipe.epochs - recipe.warmup_epochs))
    )
    return recipe.lowest_share + (1 - recipe.lowest_share) * fall


def _optimizer(network: Classifier, recipe: Recipe) -> torch.optim.Optimizer:
    """Weight decay for matrices and kernels only: a decayed batch norm scale or bias helps nothing."""
    groups = []
    for part, rate in (
        (network.backbone, recipe.backbone_learning_rate or recipe.learning_rate),
        (network.head, recipe.learning_rate),
    ):
        parameters = list(part.parameters())
        for is_matrix, decay in ((True, recipe.weight_decay), (False, 0.0)):
            chosen = [p for p in parameters if (p.ndim > 1) == is_matrix]
            groups.append({"params": chosen, "weight_decay": decay, "lr": rate, "own_rate": rate})
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    # fused: on a CPU the plain loop over tensors takes longer than the network.
    return kind([group for group in groups if group["params"]], betas=(0.9, recipe.beta2), fused=True)


def _mixed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _plain(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as a checkpoint keeps it and `recipe_from` takes it: tables, lists, numbers, texts."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    return plain
