"""Train a network from a recipe: `python -m training.train --recipe NAME --data PATH [PATH ...] --out DIR [--resume]`.

Reads top to bottom: recipe, data, network, epochs. `OUT/checkpoint.pt` holds the whole state; a run that was killed at
any moment goes on with `--resume` and ends as it would have ended. `torchrun --nproc-per-node=N -m training.train ...`
trains in N processes.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from models.errors import CardError, WeightsUnavailable
from models.networks import Classifier, make_network
from models.weights import load_backbone
from training.data import Images, Split, load_images, recipe_split, uneven_shares
from training.items import DataError, Item
from training.processes import Processes
from training.seen import begun_from, seen_by
from training.settings import Recipe, RecipeError, load_recipe
from training.sources import read_items
from training.trainer import Trainer, TrainingStopped
from training.validation import Line

logger = logging.getLogger("training")

CHECKPOINT = "checkpoint.pt"
IN_WORDS = (
    "epoch %(epoch)d: loss %(loss).4f, validation AUC %(validation_auc).4f, accuracy %(validation_accuracy).4f, "
    "%(seconds).0f s"
)


def train(
    recipe: Recipe, data: list[Path], out: Path, *, is_resumed: bool, cache: Path, skip_bad: bool, workers: int
) -> None:
    """Run the recipe to its end.

    Raises
    ------
    DataError, TrainingStopped, WeightsUnavailable
        Each with one line that says what to do.
    """
    if (out / CHECKPOINT).exists() and not is_resumed:
        raise TrainingStopped(f"{out} already holds a run: continue it with --resume, or choose another --out")
    recipe = thawed(recipe)
    processes = Processes()
    if uneven := [stage.batch_size for stage in recipe.stages if stage.batch_size % processes.world_size]:
        raise RecipeError(f"batch_size {uneven[0]} cannot be shared evenly by {processes.world_size} processes")
    training, validation = images_of(recipe, data, cache, skip_bad=skip_bad)
    trainer = Trainer(
        recipe,
        network_of(recipe),
        training,
        validation,
        checkpoint=out / CHECKPOINT,
        processes=processes,
        workers=workers,
    )
    if is_resumed:
        trainer.load()
        logger.info("resumed after epoch %d", trainer.epochs_done)
    with ExitStack() as stack:
        scalars = None
        if processes.is_first:
            scalars = stack.enter_context(SummaryWriter(str(out), purge_step=0))  # resumed, all are shown again
            write_figures(trainer.lines, out, scalars)
        while not trainer.is_finished:
            logger.info(IN_WORDS, trainer.run_epoch())
            if scalars is not None:
                write_figures(trainer.lines, out, scalars, shown=trainer.epochs_done - 1)
    logger.info("done after %d epochs; next: python -m training.export --run %s", trainer.epochs_done, out)
    processes.close()


def thawed(recipe: Recipe) -> Recipe:
    """Return the recipe, for random weights without what spares pretrained ones: freezing and a rate of their own.

    A head on random features learns nothing.
    """
    is_sparing = recipe.backbone_learning_rate or any(stage.freeze != "none" for stage in recipe.stages)
    if recipe.weights != "none" or not is_sparing:
        return recipe
    logger.warning(
        "the weights are random: nothing is frozen, all layers learn at learning_rate, whatever the recipe says"
    )
    stages = tuple(replace(stage, freeze="none") for stage in recipe.stages)
    return replace(recipe, stages=stages, backbone_learning_rate=0.0)


def images_of(recipe: Recipe, data: Sequence[Path], cache: Path, *, skip_bad: bool = False) -> tuple[Images, Images]:
    """Return the recipe's (training, validation) images, preprocessed once.

    Raises
    ------
    DataError
        An image or a table cannot be read, or one of the two sides lacks a class.
    """
    everything = read_items(data, recipe.outputs)
    split = recipe_split(everything, recipe)
    _warn(recipe, everything, split)
    for items, title in ((split.training, "training"), (split.validation, "validation")):
        counts = Counter(item.label for item in items)
        figures = ", ".join(f"{counts[label]} {output}" for label, output in enumerate(recipe.outputs))
        logger.info("%s: %d images (%s) of %d patients", title, len(items), figures, len({i.group for i in items}))
        if len(counts) < len(recipe.outputs):
            raise DataError(f"not every class has an image for {title} ({figures}): more patients are needed")
    training, validation = (
        load_images(items, size=recipe.largest_size, cache=cache, skip_bad=skip_bad, title=title)
        for items, title in ((split.training, "training images"), (split.validation, "validation images"))
    )
    return training, validation


def _warn(recipe: Recipe, everything: Sequence[Item], split: Split) -> None:
    """Log what makes figures look better than they are, or lets a network learn the wrong thing."""
    for source in sorted({item.source for item in split.training}):
        labels = {item.label for item in split.training if item.source == source}
        if len(labels) == 1 and len({item.source for item in split.training}) > 1:
            logger.warning(
                "all training images of %s are %s: the network can learn to tell the source instead; add others of it",
                source,
                recipe.outputs[labels.pop()],
            )
    labels_of: dict[str, set[int]] = {}
    for item in everything:
        labels_of.setdefault(item.sha256, set()).add(item.label)
    if torn := [item for item in everything if len(labels_of[item.sha256]) > 1]:
        logger.warning("%d rows or files give one image several labels, the first is %s", len(torn), torn[0].path)
    for sentence in uneven_shares(split, recipe):
        logger.warning("%s", sentence)
    if (start := begun_from(recipe.weights)) is not None:
        seen = seen_by(start, everything, split.validation)
        if seen is not None and (count := seen.training + seen.perhaps):
            logger.warning(
                "%s was trained on %d of the %d validation images: all figures will be too good. Split as it did "
                "(split_salt, validation_share, validation_shares), or begin from other weights",
                start.folder,
                count,
                len(split.validation),
            )


def network_of(recipe: Recipe) -> Classifier:
    """Return the recipe's network with the weights it starts from; random ones depend on its seed.

    Raises
    ------
    WeightsUnavailable
        They cannot be downloaded or do not fit.
    """
    torch.manual_seed(recipe.seed)
    network = make_network(recipe.network, len(recipe.outputs))
    if recipe.weights != "none":
        load_backbone(network, recipe.weights)
    return network


def write_figures(lines: Sequence[Line], out: Path, scalars: SummaryWriter, *, shown: int = 0) -> None:
    """Write all epochs' figures to `metrics.jsonl`, and those that TensorBoard has not been shown to it.

    The whole file each time: the figures of an epoch after which the run was killed are in the checkpoint.
    """
    (out / "metrics.jsonl").write_text("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
    for line in lines[shown:]:
        for name, value in line.items():
            scalars.add_scalar(name, value, line["epoch"])


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; 2 and one line for a mistake in what was asked."""
    options = _options(arguments)
    is_first = os.environ.get("RANK", "0") == "0"
    overrides = [*options.set, *([f'weights="{options.weights}"'] if options.weights else [])]
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        logging.basicConfig(
            level=logging.INFO if is_first else logging.ERROR,
            format="%(asctime)s %(message)s",
            handlers=[logging.StreamHandler(), *([logging.FileHandler(options.out / "train.log")] if is_first else [])],
        )
        train(
            load_recipe(options.recipe, overrides),
            options.data,
            options.out,
            is_resumed=options.resume,
            cache=options.cache or options.out / "cache",
            skip_bad=options.skip_bad,
            workers=options.workers,
        )
    except (RecipeError, DataError, TrainingStopped, WeightsUnavailable, CardError, OSError) as error:
        print(f"training: {error}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError:
        print(
            "training: the GPU has no memory for such a batch: begin again (another --out) with a smaller one, "
            "such as --set stages.batch_size=8",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("training: stopped; continue with --resume", file=sys.stderr)
        return 130
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", default="default", help="name in training/recipes, or a path ending in .toml")
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        help="folders of classes, NIH folders, .npz or manifest .csv files",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log and metrics")
    parser.add_argument("--weights", help="to start from: imagenet, none, or a file (default: the recipe's)")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override the recipe")
    parser.add_argument("--skip-bad", action="store_true", help="leave out images that cannot be read, and list them")
    parser.add_argument("--cache", type=Path, help="folder for preprocessed images (default: OUT/cache)")
    parser.add_argument(
        "--workers",
        type=int,
        default=max(1, (os.cpu_count() or 2) // 2),
        help="loading processes (default: half the cores)",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
