"""Make a bundle of a finished run: `python -m training.export --run DIR --data PATH --name NAME --version X.Y.Z`.

Rounds the averaged weights to half precision, then judges what was rounded: temperature, threshold, abstain band and
every figure of the card come from the patient-grouped validation split. Shapes: N images, L network outputs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from models.card import CARD_FILE, WEIGHTS_FILE, ModelCard, load_card
from models.errors import CardError
from models.networks import make_network
from training import metrics
from training.data import DataError, Images, Item, data_sha256, find_items, load_images, split
from training.evaluate import judged
from training.settings import Recipe, RecipeError, recipe_from
from training.train import logits

ABSTAIN_SHARE = 0.05  # of the validation images lie in the band
BUNDLES = Path(__file__).parent.parent / "models" / "bundles"
CODES = {"pneumonia": ("Pneumonia", "233604007", "SCT", "Pneumonia")}

INTENDED_USE = (
    "Research only, not a medical device. Second look at frontal chest radiographs (CR, DX) of children of 1 to 5 "
    "years: estimates the probability of pneumonia. Not for the exclusion of disease; a radiologist decides."
)
LIMITATIONS = [
    "Trained and validated on children of 1 to 5 years from one hospital (Guangzhou); other ages were not validated, "
    "and on adults a model of this kind was seen to be worse than chance.",
    "The validation images come from the same source as the training images; figures on images of another hospital, "
    "detector or exposure are expected to be lower.",
    "Sees 224 x 224 pixels, squashed without keeping the aspect ratio: small or faint opacities can be missed.",
    "Knows pneumonia and its absence only; any other disease may be called either.",
    "The labels were given by readers from the images alone, without microbiology.",
    "Training and calibration weigh pneumonia and its absence alike: the probabilities hold where both are equally "
    "frequent. Threshold and calibration were chosen on the split that the figures come from.",
]
LICENCE = (
    "Weights: MIT. Trained from random weights on Kermany, Zhang, Goldbaum: Labeled Optical Coherence Tomography "
    "(OCT) and Chest X-Ray Images for Classification, doi 10.17632/rscbjbr9sj (Cell 2018; 172: 1122-1131), CC BY 4.0."
)


def export(run: Path, data: Path, *, name: str, version: str, limitations: list[str], bundles: Path) -> ModelCard:
    """Write `bundles/name/version/` and return its card as read back."""
    state = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)
    recipe = recipe_from(state["recipe"], str(run / "checkpoint.pt"))
    items = find_items(data, recipe.outputs)
    training, validation = split(items, validation_share=recipe.validation_share, salt=recipe.split_salt)
    images = load_images(validation, "validation")
    exact_NL = _logits(recipe, state["averaged"], images)
    temperature, bias_L = metrics.fit_calibration(exact_NL, images.label_N.numpy())
    halved = _calibrated(state["averaged"], bias_L)
    content = safetensors.torch.save(halved)
    findings, figures = _findings(recipe, _logits(recipe, halved, images) / temperature, images)
    figures["auc_before_rounding"] = _round(_auc(exact_NL, images))
    card = {
        "name": name,
        "version": version,
        "network": recipe.network,
        "outputs": list(recipe.outputs),
        "input_size": recipe.stages[-1].size,
        "temperature": _round(temperature),
        "validated_age_years": [1, 5],
        "weights_sha256": hashlib.sha256(content).hexdigest(),
        "intended_use": INTENDED_USE,
        "limitations": limitations,
        "licence": LICENCE,
    }
    folder = bundles / name / version
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS_FILE).write_bytes(content)
    training_data = _training_data(training, validation, recipe, state["epochs_done"])
    text = _toml(card) + "".join("[[findings]]\n" + _toml(finding) for finding in findings)
    text += "[training_data]\n" + _toml(training_data) + "[metrics]\n" + _toml(figures, "metrics.")
    (folder / CARD_FILE).write_text(text, encoding="utf-8")
    return load_card(folder)


def _calibrated(weights: dict[str, Tensor], bias_L: np.ndarray) -> dict[str, Tensor]:
    """Return the weights in half precision, with the calibration's bias in that of the last layer."""
    last = [key for key in weights if key.startswith("head.") and key.endswith(".bias")][-1]
    moved = weights | {last: weights[last] + torch.from_numpy(bias_L).float()}
    return {key: (v.half() if v.is_floating_point() else v).contiguous() for key, v in moved.items()}


def _logits(recipe: Recipe, weights: dict[str, Tensor], images: Images) -> np.ndarray:
    """Return logit_NL at the served size, float32."""
    network = make_network(recipe.network, len(recipe.outputs))
    network.load_state_dict({key: v.float() if v.is_floating_point() else v for key, v in weights.items()})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    found: np.ndarray = logits(network, images.pixels_N1HW, recipe.stages[-1].size, device, is_exact=True).numpy()
    return found


def _auc(logit_NL: np.ndarray, images: Images) -> float:
    return metrics.auc((images.label_N != 0).numpy().astype(int), -_softmax(logit_NL)[:, 0])


def _softmax(logit_NL: np.ndarray) -> np.ndarray:
    return np.asarray(torch.softmax(torch.from_numpy(logit_NL).double(), 1).numpy())


def _findings(recipe: Recipe, logit_NL: np.ndarray, images: Images) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the card's findings with their operating points, and the figures of each."""
    groups = [item.group for item in images.items]
    findings: list[dict[str, Any]] = []
    figures: dict[str, Any] = {
        "split": "validation, grouped by patient and identical bytes",
        "calibration": "temperature and bias fitted on this split, every class weighing the same",
    }
    for output, name in enumerate(recipe.outputs[1:], start=1):
        probability_N = _softmax(logit_NL)[:, output]
        truth_N = (images.label_N == output).numpy().astype(int)
        threshold = round(metrics.balanced_threshold(truth_N, probability_N), 2)
        low, high = (round(edge, 2) for edge in metrics.abstain_band(probability_N, threshold, ABSTAIN_SHARE))
        thresholds = {"balanced": threshold, "high_recall": metrics.high_recall_threshold(truth_N, probability_N)}
        is_decided = (probability_N < low) | (probability_N >= high)
        figures[name] = judged(truth_N, probability_N, groups, thresholds) | {
            "abstained": _round(1 - is_decided.mean()),
            "accuracy_outside_the_band": _round(np.mean((probability_N >= threshold) == truth_N, where=is_decided)),
        }
        display, value, scheme, meaning = CODES[name]
        finding = {"name": name, "display": display, "code_value": value, "coding_scheme_designator": scheme}
        band = {"threshold": threshold, "abstain_low": low, "abstain_high": high}
        findings.append(finding | {"code_meaning": meaning} | band)
    return findings, figures


def _training_data(training: list[Item], validation: list[Item], recipe: Recipe, epochs: int) -> dict[str, Any]:
    def counted(items: list[Item]) -> dict[str, int]:
        counts = {name: sum(item.label == label for item in items) for label, name in enumerate(recipe.outputs)}
        return {"images": len(items), "patients": len({item.group for item in items})} | counts

    return {
        "description": "Chest X-Ray Images (Pneumonia), official train and val folders merged and split again",
        "citation": "Kermany et al., Cell 2018; 172: 1122-1131; doi 10.17632/rscbjbr9sj; CC BY 4.0",
        "sha256": data_sha256([*training, *validation]),
        "sha256_training": data_sha256(training),
        "sha256_validation": data_sha256(validation),
        "held_out": "the official test folder, never seen",
        "epochs": epochs,
        "seed": recipe.seed,
        "stages": [f"{stage.epochs} epochs at {stage.size} px" for stage in recipe.stages],
        "initial_weights": "random",
        "training": counted(training),
        "validation": counted(validation),
    }


def _round(value: float) -> float:
    return round(float(value), 4)


def _toml(values: dict[str, Any], prefix: str = "") -> str:
    """Return TOML: one line per key, a heading for every table that itself holds a table."""
    inner = {key: value for key, value in values.items() if isinstance(value, dict) and _holds_table(value)}
    lines = [f"{key} = {_value(value)}\n" for key, value in values.items() if key not in inner]
    tables = [f"[{prefix}{key}]\n{_toml(value, f'{prefix}{key}.')}" for key, value in inner.items()]
    return "".join([*lines, "\n", *tables])


def _holds_table(table: dict[str, Any]) -> bool:
    return any(isinstance(value, dict) for value in table.values())


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list) and value and isinstance(value[0], str):
        return "[\n" + "".join(f"    {_value(inner)},\n" for inner in value) + "]"
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    return json.dumps(value, ensure_ascii=False)  # a JSON text or number is a TOML one


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; 2 and one line for a mistake in what was asked."""
    parser = argparse.ArgumentParser(prog="python -m training.export", description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="the --out folder of the training run")
    parser.add_argument("--data", type=Path, required=True, help="the --data folder of the training run")
    parser.add_argument("--name", required=True, help="lower case, digits and hyphens")
    parser.add_argument("--version", required=True, help="X.Y.Z")
    parser.add_argument("--limitation", action="append", default=[], metavar="TEXT", help="one more, for the card")
    parser.add_argument("--to", type=Path, default=BUNDLES, help="folder of bundles (default: the bundled ones)")
    options = parser.parse_args(arguments)
    try:
        card = export(
            options.run,
            options.data,
            name=options.name,
            version=options.version,
            limitations=[*LIMITATIONS, *options.limitation],
            bundles=options.to,
        )
    except (DataError, RecipeError, CardError, FileNotFoundError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    print(f"{card.folder}: {card.metrics}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
