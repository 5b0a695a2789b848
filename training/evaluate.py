"""Judge a bundle as it serves: `python -m training.evaluate --model BUNDLE --data PATH --out DIR`.

This is the separate script that judges once what training and export have chosen: it picks no threshold, no
temperature and no epoch, it only reads them from the card (a model whose threshold was chosen for recall on
validation, as with the recipe mobilenet-v2-recall, meets its test images here and nowhere else). The images go through
`models.predictor`, the code that serves. With a second `--model`, the first is compared with it.

Writes to OUT: `report.html` (self-contained, for people), `metrics.json`, `predictions.csv`,
`classification_report.txt`, the plots as PNG, and `training_history.png` with `--run`.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import classification_report

from models.card import ModelCard, load_card
from models.errors import CardError, WeightsMismatch
from models.predictor import Predictor
from training import gallery, plots
from training.answers import Answers, answers_of, called_outputs, describe, is_in_subgroup, name_of
from training.compare import compared
from training.data import Images, data_sha256, load_images
from training.items import DataError, Item
from training.report import estimate, write_report
from training.seen import Seen, seen_by, split_of
from training.settings import RecipeError, load_recipe
from training.sources import read_items
from training.wording import trained_on

SPLITS = ("test", "validation", "train", "all")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """One model's answers on the chosen images.

    Attributes
    ----------
    called_N
        The output that each image is called as.
    seen
        How many of the images the model was made from; None where its card cannot tell.
    ood_score_N
        How unlike the training images each is; NaN where the bundle has no statistics for it.
    """

    card: ModelCard
    images: Images
    answers: list[Answers]
    called_N: np.ndarray
    ood_score_N: np.ndarray
    seen: Seen | None
    precision: str
    use_tta: bool

    @property
    def name(self) -> str:
        """Name and version."""
        return f"{self.card.name} {self.card.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The images to judge: the name of the split, its items, and everything that was read."""

    split: str
    items: Sequence[Item]
    everything: Sequence[Item]


def judge(card: ModelCard, chosen: Chosen, cache: Path, options: argparse.Namespace) -> Judgement:
    """Return what the model says about the chosen items."""
    images = load_images(chosen.items, size=card.input_size, cache=cache, skip_bad=options.skip_bad)
    predictor = Predictor(card, precision=options.precision, use_tta=options.tta)
    answers, ood_score_N = answers_of(predictor, images)
    called_N = called_outputs(card, answers)
    return Judgement(
        card=card,
        images=images,
        answers=answers,
        called_N=called_N,
        ood_score_N=ood_score_N,
        seen=seen_by(card, chosen.everything, images.items),
        precision=predictor.precision,
        use_tta=options.tta,
    )


def figures_of(judgement: Judgement, split: str) -> dict[str, Any]:
    """Return what `metrics.json` holds of one model: the first finding on top, all others under "findings"."""
    card, items = judgement.card, judgement.images.items
    findings = {answers.finding: _finding_figures(answers) for answers in judgement.answers}
    first, *others = findings
    data = describe(items, card) | {"sha256": data_sha256(items), "skipped": len(judgement.images.skipped)}
    data["seen"] = asdict(judgement.seen) if judgement.seen is not None else None
    figures: dict[str, Any] = {"model": judgement.name, "finding": first, "split": split}
    figures |= {"arithmetic": judgement.precision, "test_time_augmentation": judgement.use_tta}
    figures |= findings[first] | {"data": data, "weights_sha256": card.weights_sha256}
    if others:
        figures["findings"] = {name: findings[name] for name in others}
    if card.out_of_distribution is not None:
        limit = card.out_of_distribution.limit
        share = round(float(np.mean(judgement.ood_score_N > limit)), 4)
        figures["out_of_distribution"] = {
            "share": share,
            "limit": limit,
            "false_alarm_rate": card.out_of_distribution.false_alarm_rate,
        }
    return figures


def _finding_figures(answers: Answers) -> dict[str, Any]:
    figures = answers.figures()
    for point, thresholds in answers.thresholds().items():
        figures["operating_points"][point]["thresholds"] = thresholds
    figures["subgroups"] = {
        grouping: {value: answers.figures(is_in_N) for value, is_in_N in values.items()}
        for grouping, values in is_in_subgroup(answers).items()
    }
    return figures


def classes_text(judgement: Judgement) -> str:
    """Return scikit-learn's report per class, with support and weighted average."""
    outputs = judgement.card.outputs
    label_N = judgement.images.label_N.numpy()
    text: str = classification_report(
        label_N,
        judgement.called_N,
        labels=list(range(len(outputs))),
        target_names=list(outputs),
        digits=4,
        zero_division=np.nan,
    )
    return text


def write_predictions(path: Path, judgement: Judgement) -> None:
    """Write one line per image and finding; label is 1 where the finding is there."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "probability", "answer", "finding", "source", "population"])
        for answers in judgement.answers:
            columns = (answers.truth_N, answers.probability_N, answers.words, answers.population_N)
            for item, truth, probability, answer, population in zip(answers.items, *columns, strict=True):
                line = [name_of(item), truth, f"{probability:.9g}", answer, answers.finding, item.source, population]
                writer.writerow(line)


def draw(out: Path, judgement: Judgement, other: Judgement | None, options: argparse.Namespace) -> dict[str, list[str]]:
    """Draw every plot that the images allow; return the file names by finding, and those of the run under ""."""
    drawn: dict[str, list[str]] = {}
    for answers in judgement.answers:
        mark = "" if answers is judgement.answers[0] else f"-{answers.finding}"
        drawers: dict[str, Callable[[Path], None]] = {}
        if plots.has_both(answers):
            rival, names = same_finding(other, answers), (judgement.name, other.name if other else "")
            drawers["roc"] = partial(plots.roc, answers=answers, other=rival, names=names)
            drawers["precision_recall"] = partial(plots.precision_recall, answers=answers)
        drawers["reliability"] = partial(plots.reliability, answers=answers)
        drawers["histogram"] = partial(plots.histogram, answers=answers)
        drawers["confusion"] = partial(plots.confusion, answers=answers)
        if options.gallery:
            drawers["gallery"] = partial(gallery.draw, card=judgement.card, images=judgement.images, answers=answers)
        for name, drawer in drawers.items():
            drawer(out / f"{name}{mark}.png")
        drawn[answers.finding] = [f"{name}{mark}.png" for name in drawers]
    if options.run is not None:
        plots.history(out / "training_history.png", options.run)
        drawn[""] = ["training_history.png"]
    return drawn


def same_finding(other: Judgement | None, answers: Answers) -> Answers | None:
    """Return the other model's answers about the same finding; None where it knows no such finding."""
    return next((one for one in other.answers if one.finding == answers.finding), None) if other else None


def compare(first: Judgement, other: Judgement, split: str) -> dict[str, Any]:
    """Return what `metrics.json` holds of the second model and of the difference.

    Raises
    ------
    DataError
        The models have no finding in common.
    """
    pairs = [(answers, rival) for answers in first.answers if (rival := same_finding(other, answers)) is not None]
    if not pairs:
        raise DataError(f"{first.name} and {other.name} have no finding in common: nothing to compare")
    comparison = {answers.finding: compared(answers, rival) for answers, rival in pairs}
    return {"compared_with": figures_of(other, split), "comparison": comparison}


def evaluate(options: argparse.Namespace, *, at: datetime) -> dict[str, Any]:
    """Judge, compare, draw and write everything; return what `metrics.json` holds."""
    cards = [load_card(folder) for folder in options.model]
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    chosen = [chosen_items(options, card, cards[0]) for card in cards]
    split = chosen[0].split
    with tempfile.TemporaryDirectory(dir=out) as folder:
        cache = options.cache or Path(folder)
        judgements = [judge(card, of_card, cache, options) for card, of_card in zip(cards, chosen, strict=True)]
        first, other = judgements[0], judgements[1] if len(judgements) > 1 else None
        figures = figures_of(first, split) | (compare(first, other, split) if other else {})
        drawn = draw(out, first, other, options)
    write_predictions(out / "predictions.csv", first)
    if other is not None:
        write_predictions(out / "predictions-compared.csv", other)
    (out / "metrics.json").write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    classes = classes_text(first)
    (out / "classification_report.txt").write_text(classes, encoding="utf-8")
    write_report(out, cards, figures, drawn, classes, at=at)
    return figures


def chosen_items(options: argparse.Namespace, card: ModelCard, divider: ModelCard) -> Chosen:
    """Return the test images if there are any, else all, unless told; split as the dividing card's run split them.

    Raises
    ------
    DataError
        The split asked for is empty.
    RecipeError
        Training or validation images are asked for, and nothing known says which those are.
    """
    items = read_items(options.data, card.outputs)
    name = options.split or ("test" if any(item.split == "test" for item in items) else "all")
    if name == "all":
        return Chosen(split=name, items=items, everything=items)
    if name == "test":
        chosen: Sequence[Item] = [item for item in items if item.split == "test"]
    else:
        split = split_of(divider, items, load_recipe(options.recipe) if options.recipe else None)
        chosen = split.validation if name == "validation" else split.training
    if not chosen:
        raise DataError(f"no image in the split {name!r} of {', '.join(map(str, options.data))}; try --split all")
    return Chosen(split=name, items=chosen, everything=items)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--model", type=Path, action="append", required=True, help="bundle folder; a second: the one to compare with")
    add("--data", type=Path, nargs="+", required=True, help="labelled images, in any layout of training.sources")
    add("--out", type=Path, required=True, help="folder for the report and its parts")
    add("--split", choices=SPLITS, help="default: test where there is one, else all")
    add("--recipe", help="recipe (name or file) by which validation was split off (default: as the first card says)")
    add("--run", type=Path, help="--out folder of the training run, for training_history.png")
    add("--tta", action="store_true", help="test-time augmentation")
    add("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    add("--cache", type=Path, help="folder of preprocessed images to keep (default: none is kept)")
    add("--skip-bad", action="store_true", help="leave out images that cannot be read")
    add("--no-gallery", dest="gallery", action="store_false", help="no Grad-CAM maps")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; 2 and one line for a mistake in what was asked."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if len(options.model) > 2:
        parser.error("--model: one to judge and at most one to compare it with")
    try:
        figures = evaluate(options, at=datetime.now(UTC))
    except (CardError, WeightsMismatch, DataError, RecipeError, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    print(f"{figures['model']}, {figures['finding']}: AUC {estimate(figures['auc'])}")
    for one in (figures, *([figures["compared_with"]] if "compared_with" in figures else [])):
        if remembered := trained_on(one):
            print(f"evaluate: {one['model']} {remembered}", file=sys.stderr)
    print(f"{options.out / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
