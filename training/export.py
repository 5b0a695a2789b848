"""Make a bundle of a finished run: `python -m training.export --run DIR --data PATH --name NAME --version X.Y.Z`.

Rounds the averaged weights to half precision, then judges what was rounded: calibration, thresholds, abstain band and
every figure of the card come from the run's validation split, for each population apart. What only a person can say
(intended use, codes, populations, limitations) comes from `training/cards/NAME.toml`.
Shapes: N images, D features, L network outputs.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import tomli_w
import torch
from torch import Tensor

from models.card import BALANCED, CARD_FILE, FEATURES_FILE, WEIGHTS_FILE, ModelCard, load_card
from models.errors import CardError, WeightsMismatch
from models.feature_statistics import DIRECTIONS, fit_statistics
from models.networks import make_network
from training import metrics
from training.data import Images, data_sha256
from training.monai_bundle import write_monai_bundle
from training.settings import Recipe, RecipeError, recipe_from
from training.sources import DataError, Item
from training.train import CHECKPOINT, images_of
from training.trainer import outputs_of

ABSTAIN_SHARE = 0.05  # of a population's validation images lie in the band
FALSE_ALARMS = 0.01  # of the validation images lie above the out-of-distribution limit
ROOT = Path(__file__).parent.parent
BUNDLES = ROOT / "models" / "bundles"
CARDS = Path(__file__).parent / "cards"


class ExportRefused(Exception):
    """No bundle was written; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Images and what the rounded network makes of them: logit_NL, float32."""

    images: Images
    logit_NL: Tensor

    def part(self, indices: Sequence[int]) -> tuple[list[Item], np.ndarray, np.ndarray]:
        """Return (items, logit_NL, label_N) of some of the images."""
        chosen = torch.tensor(indices)
        items = [self.images.items[index] for index in indices]
        return items, self.logit_NL[chosen].numpy(), self.images.label_N[chosen].numpy()


def export(run: Path, data: Sequence[Path], about: Path, *, name: str, version: str, bundles: Path) -> ModelCard:
    """Write `bundles/name/version/` and return its card as read back.

    Raises
    ------
    ExportRefused
        The bundle exists already, the run holds no checkpoint, or no population is good enough to be claimed.
    CardError, DataError, RecipeError
        What a person wrote, the images or the run's recipe cannot be used.
    """
    folder = bundles / name / version
    if (folder / CARD_FILE).exists():
        raise ExportRefused(f"{folder} exists: choose another --version")
    spoken = _read_about(about)
    state = _checkpoint(run)
    recipe = recipe_from(state["recipe"], str(run / CHECKPOINT))
    training, validation = images_of(recipe, data, run / "cache")
    best = state["best"]
    halved = {
        key: (value.half() if value.is_floating_point() else value).contiguous()
        for key, value in (best["weights"] if best else state["averaged"]).items()
    }
    network = make_network(recipe.network, len(recipe.outputs))
    network.load_state_dict({key: v.float() if v.is_floating_point() else v for key, v in halved.items()})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    size = recipe.stages[-1].size
    _, seen_ND = outputs_of(network, training, size, device, title="training images")
    logit_NL, feature_ND = outputs_of(network, validation, size, device, title="validation images", is_exact=True)
    judged = Judged(images=validation, logit_NL=logit_NL)
    populations, figures, refused = _populations(recipe, spoken, judged)
    weights = safetensors.torch.save(halved)
    features, out_of_distribution = _out_of_distribution(seen_ND, feature_ND)
    card = {
        "name": name,
        "version": version,
        "network": recipe.network,
        "outputs": list(recipe.outputs),
        "input_size": size,
        "recipe": recipe.name,
        "git_revision": git_revision(),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "intended_use": spoken["intended_use"],
        "limitations": [*spoken["limitations"], *refused],
        "licence": spoken["licence"],
        "findings": spoken["findings"],
        "populations": populations,
        "out_of_distribution": out_of_distribution,
        "training_data": _training_data(
            recipe, spoken, training, validation, best["epoch"] if best else state["epochs_done"]
        ),
        "metrics": {"split": "validation, grouped by patient and identical bytes"} | figures,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS_FILE).write_bytes(weights)
    (folder / FEATURES_FILE).write_bytes(features)
    (folder / CARD_FILE).write_text(tomli_w.dumps(_without_none(card)), encoding="utf-8")
    return load_card(folder)


def _read_about(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CardError(
            f"{path}: {error.strerror}: copy training/cards/chest-pneumonia.toml and say it in your words"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CardError(f"{path}: {error}") from error


def _checkpoint(run: Path) -> dict[str, Any]:
    path = run / CHECKPOINT
    if not path.exists():
        raise ExportRefused(f"{path} does not exist: --run is the --out folder of a training run")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _populations(
    recipe: Recipe, spoken: dict[str, Any], judged: Judged
) -> tuple[list[dict[str, Any]], dict[str, Any], list[str]]:
    """Return the populations that are good enough, the figures of all, and a limitation for each that is not."""
    unknown = [found["name"] for found in spoken["findings"] if found["name"] not in recipe.outputs[1:]]
    if unknown:
        raise ExportRefused(
            f"the run has no output {', '.join(unknown)} (it has {', '.join(recipe.outputs)}): see --about"
        )
    named = {source for described in spoken["populations"] for source in described["sources"]}
    unnamed = sorted({item.source for item in judged.images.items} - named)
    if unnamed:
        raise ExportRefused(
            f"no population has the source {', '.join(unnamed)} (the name of the data's folder): name it in a copy of "
            "training/cards/chest-pneumonia.toml, with the ages of its patients, and give it by --about"
        )
    claimed, figures, refused = [], {}, []
    for described in spoken["populations"]:
        members = [i for i, item in enumerate(judged.images.items) if _is_member(item, described)]
        if len({int(judged.images.label_N[i]) for i in members}) < len(recipe.outputs):
            refused.append(f"{described['name']}: no validation image of every class; not validated, not claimed.")
            continue
        population, found = _population(recipe, spoken["findings"], described, *judged.part(members))
        figures[described["name"]] = found
        low = min(finding["auc"]["low"] for finding in found.values())
        if low >= described["least_auc"]:
            claimed.append(population)
        else:
            refused.append(_not_claimed(described, found))
    if not claimed:
        raise ExportRefused("no population is good enough to be claimed: " + " ".join(refused))
    return claimed, figures, refused


def _is_member(item: Item, population: dict[str, Any]) -> bool:
    youngest, oldest = population["age_years"]
    return item.source in population["sources"] and (item.age_years is None or youngest <= item.age_years <= oldest)


def _population(
    recipe: Recipe,
    findings: list[dict[str, Any]],
    described: dict[str, Any],
    items: list[Item],
    logit_NL: np.ndarray,
    label_N: np.ndarray,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a population as the card has it, and its figures by finding."""
    fitted, bias_L = metrics.fit_calibration(logit_NL, label_N)
    temperature, bias = round(fitted, 4), [round(float(value), 4) for value in bias_L]
    probability_NL = torch.softmax((torch.from_numpy(logit_NL).double() + torch.tensor(bias)) / temperature, 1).numpy()
    limits, figures = {}, {}
    for finding in (found["name"] for found in findings):
        output = recipe.outputs.index(finding)
        probability_N, truth_N = probability_NL[:, output], (label_N == output).astype(int)
        points = {
            BALANCED: round(metrics.balanced_threshold(truth_N, probability_N), 2),
            "high_recall": round(metrics.high_recall_threshold(truth_N, probability_N), 4),
        }
        threshold = points[recipe.operating_point]
        low, high = (round(edge, 2) for edge in metrics.abstain_band(probability_N, threshold, ABSTAIN_SHARE))
        low, high = min(low, threshold), max(high, threshold)
        limits[finding] = {
            "threshold": threshold,
            "abstain_low": low,
            "abstain_high": high,
            "operating_points": points,
        }
        first = {recipe.operating_point: threshold} | points
        figures[finding] = metrics.judged(truth_N, probability_N, [i.group for i in items], first, band=(low, high))
    named = {"name": described["name"], "age_years": described["age_years"]}
    return named | {"temperature": temperature, "bias": bias, "limits": limits}, figures


def _not_claimed(described: dict[str, Any], figures: dict[str, Any]) -> str:
    seen = "; ".join(
        f"{finding}: AUC {found['auc']['value']} ({found['auc']['low']} to {found['auc']['high']}) "
        f"on {found['images']} images of {found['patients']} patients"
        for finding, found in figures.items()
    )
    return f"Never use on {described['name']} ({_ages(described)}): {seen}; not good enough to be claimed."


def _ages(described: dict[str, Any]) -> str:
    youngest, oldest = described["age_years"]
    return f"{youngest} to {oldest} years"


def _out_of_distribution(training_ND: Tensor, validation_ND: Tensor) -> tuple[bytes, dict[str, Any]]:
    """Fit the statistics on the training images and set the limit by the validation images."""
    directions = min(DIRECTIONS, len(training_ND) // 2, training_ND.shape[1] // 2)  # few images span few directions
    statistics = fit_statistics(training_ND, directions)
    score_N = statistics.score(validation_ND).numpy()
    limit = math.ceil(1000 * float(np.quantile(score_N, 1 - FALSE_ALARMS))) / 1000  # rounded up: scores may lie close
    content = statistics.to_bytes()
    alarms = round(float(np.mean(score_N > limit)), 4)
    return content, {"sha256": hashlib.sha256(content).hexdigest(), "limit": limit, "false_alarm_rate": alarms}


def _training_data(
    recipe: Recipe, spoken: dict[str, Any], training: Images, validation: Images, epochs: int
) -> dict[str, Any]:
    sides = {"training": training.items, "validation": validation.items}
    names = sorted({item.source for items in sides.values() for item in items})
    return {
        "sources": {name: spoken.get("sources", {}).get(name, "not described") for name in names},
        "sha256": data_sha256([*training.items, *validation.items]),
        "held_out": "official test folders, and their patients: never seen",
        "epochs": epochs,
        "seed": recipe.seed,
        "stages": [f"{stage.epochs} epochs at {stage.size} px" for stage in recipe.stages],
        "initial_weights": _named(recipe.weights),
    } | {
        side: {"sha256": data_sha256(items)} | {name: _counts(recipe, items, name) for name in names}
        for side, items in sides.items()
    }


def _named(weights: str) -> str:
    """Return what a run started from without a path of its machine: a bundle's name and version, or the file's name."""
    path = Path(weights)
    return "/".join(path.parts[-3:-1]) if path.name == WEIGHTS_FILE else path.name


def _counts(recipe: Recipe, items: Sequence[Item], source: str) -> dict[str, int]:
    chosen = [item for item in items if item.source == source]
    labels = Counter(recipe.outputs[item.label] for item in chosen)
    return {"images": len(chosen), "patients": len({item.group for item in chosen})} | dict(labels)


def git_revision() -> str:
    """Return the commit of this code, "-dirty" after it where files differ; "unknown" outside git."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        revision = git("rev-parse", "HEAD")
        return revision + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "") or "unknown"
    except FileNotFoundError:  # no git on this machine
        return "unknown"


def _without_none(value: Any) -> Any:
    """Return the same without what does not exist: TOML has no word for it."""
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_none(inner) for inner in value if inner is not None]
    return value


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; 2 and one line for a mistake in what was asked."""
    parser = argparse.ArgumentParser(prog="python -m training.export", description=__doc__.split("\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="the --out folder of the training run")
    source.add_argument("--model", type=Path, help="a bundle that exists already, for --monai-bundle")
    parser.add_argument("--data", type=Path, nargs="+", help="the --data of the training run")
    parser.add_argument("--name", help="lower case, digits and hyphens")
    parser.add_argument("--version", help="X.Y.Z")
    parser.add_argument(
        "--about", type=Path, help="what a person says of the model (default: training/cards/NAME.toml)"
    )
    parser.add_argument("--to", type=Path, default=BUNDLES, help="folder of bundles (default: the bundled ones)")
    parser.add_argument("--monai-bundle", type=Path, metavar="DIR", help="write it as a MONAI Bundle too")
    options = parser.parse_args(arguments)
    if options.run and not (options.data and options.name and options.version):
        parser.error("--run needs --data, --name and --version")
    if options.model and not options.monai_bundle:
        parser.error("--model needs --monai-bundle")
    try:
        if options.model:
            card = load_card(options.model)
        else:
            about = options.about or CARDS / f"{options.name}.toml"
            card = export(
                options.run, options.data, about, name=options.name, version=options.version, bundles=options.to
            )
            _print_figures(card)
        if options.monai_bundle:
            write_monai_bundle(card, options.monai_bundle)
            print(f"{options.monai_bundle}: a MONAI Bundle")
    except (ExportRefused, DataError, RecipeError, CardError, WeightsMismatch) as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    return 0


def _print_figures(card: ModelCard) -> None:
    for population in card.populations:
        for finding, found in card.metrics[population.name].items():
            auc = found["auc"]
            print(f"{population.name}, {finding}: AUC {auc['value']} ({auc['low']} to {auc['high']})")
    print(f"{card.folder}\nnext: python -m training.evaluate --model {card.folder}")


if __name__ == "__main__":
    sys.exit(main())
