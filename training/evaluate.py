"""Judge a bundle as it serves: `python -m training.evaluate --model BUNDLE --data PATH --out DIR`.

The images go through `models.predictor`, the code that serves; figures, intervals and every single answer are written
to `OUT/metrics.json` and `OUT/predictions.csv`. Shapes: N images.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from models.card import Finding, ModelCard, load_card
from models.errors import CardError, WeightsMismatch
from models.predictor import Predictor
from training import metrics
from training.data import DataError, Images, Item, find_items, load_images, split
from training.settings import RecipeError, load_recipe
from training.train import resized

VALIDATION = "validation"
BATCH = 32


def probabilities(predictor: Predictor, images: Images, finding: Finding) -> np.ndarray:
    """Return probability_N of a finding, in the order of the items."""
    position = predictor.card.findings.index(finding)
    found: list[float] = []
    for start in tqdm(range(0, len(images.items), BATCH), desc="judging", unit="batch"):
        image_B1HW = resized(images.pixels_N1HW[start : start + BATCH], predictor.card.input_size)
        found += [predictions[position].probability for predictions in predictor.predict(image_B1HW)]
    return np.array(found)


def judged(truth_N: np.ndarray, probability_N: np.ndarray, groups: list[str], thresholds: dict[str, float]) -> Any:
    """Return AUC, Brier score and calibration error with patient-bootstrap intervals, and every operating point."""
    result: dict[str, Any] = {"images": len(truth_N), "patients": len(set(groups)), "positive": int(truth_N.sum())}
    for name, metric in (("auc", metrics.auc), ("brier", metrics.brier), ("ece", metrics.calibration_error)):
        low, high = metrics.interval(metric, truth_N, probability_N, groups)
        result[name] = {"value": _rounded(metric(truth_N, probability_N)), "low": _rounded(low), "high": _rounded(high)}
    result["operating_points"] = {}
    for name, threshold in thresholds.items():
        point = metrics.operating_point(truth_N, probability_N, threshold)
        result["operating_points"][name] = {
            "threshold": _rounded(point.threshold),
            "accuracy": _rounded(point.accuracy),
            "sensitivity": _rounded(point.sensitivity),
            "specificity": _rounded(point.specificity),
        }
    return result


def _rounded(value: float) -> float:
    return round(value, 4)


def evaluate(card: ModelCard, items: list[Item], out: Path, *, precision: str = "auto") -> Any:
    """Judge the items, write both files, return the figures per finding."""
    images = load_images(items)
    predictor = Predictor(card, precision=precision)
    groups = [item.group for item in items]
    figures: dict[str, Any] = {"model": f"{card.name} {card.version}", "precision": predictor.precision}
    out.mkdir(parents=True, exist_ok=True)
    with (out / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "finding", "label", "probability", "answer"])
        for finding in card.findings:
            truth_N = (images.label_N == card.outputs.index(finding.name)).numpy().astype(int)
            probability_N = probabilities(predictor, images, finding)
            figures[finding.name] = judged(truth_N, probability_N, groups, {"default": finding.threshold})
            for item, truth, probability in zip(items, truth_N, probability_N, strict=True):
                answer = _answer(finding, float(probability))
                writer.writerow([item.path.name, finding.name, truth, f"{probability:.6f}", answer])
    (out / "metrics.json").write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def _answer(finding: Finding, probability: float) -> str:
    if finding.abstain_low <= probability < finding.abstain_high:
        return "undetermined"
    return "present" if probability >= finding.threshold else "absent"


def items_of(data: Path, outputs: tuple[str, ...], which: str, recipe: str) -> list[Item]:
    """Return the images of a folder split, or of the recipe's patient-grouped validation split."""
    if which != VALIDATION:
        return find_items(data, outputs, (which,))
    chosen = load_recipe(recipe)
    share, salt = chosen.validation_share, chosen.split_salt
    return split(find_items(data, outputs), validation_share=share, salt=salt)[1]


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; 2 and one line for a mistake in what was asked."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="bundle folder")
    parser.add_argument("--data", type=Path, required=True, help="folder with SPLIT/{NORMAL,PNEUMONIA}")
    parser.add_argument("--out", type=Path, required=True, help="folder for metrics.json and predictions.csv")
    parser.add_argument("--split", help="a folder of --data, or 'validation' (default: test if present)")
    parser.add_argument("--recipe", default="default", help="the recipe that fixes the validation split")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    options = parser.parse_args(arguments)
    try:
        card = load_card(options.model)
        which = options.split or ("test" if (options.data / "test").is_dir() else VALIDATION)
        items = items_of(options.data, card.outputs, which, options.recipe)
        figures = evaluate(card, items, options.out, precision=options.precision)
    except (CardError, WeightsMismatch, DataError, RecipeError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    print(json.dumps(figures, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
