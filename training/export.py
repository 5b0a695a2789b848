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
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import tomli_w
import torch
from torch import Tensor

from models.card import CARD_FILE, FEATURES_FILE, NAME, VERSION, WEIGHTS_FILE, ModelCard, load_card
from models.errors import CardError, WeightsMismatch
from models.feature_statistics import DIRECTIONS, fit_statistics
from models.networks import make_network
from training.about import About, read_about
from training.claims import NEVER, ExportRefused, Judged, claimed_populations
from training.data import Images, data_sha256, items_sha256
from training.items import DataError, Item
from training.monai_bundle import write_monai_bundle
from training.seen import begun_from, record_of
from training.settings import Recipe, RecipeError, recipe_from
from training.train import CHECKPOINT, images_of
from training.validation import outputs_of

FALSE_ALARMS = 0.01  # of the validation images lie above the out-of-distribution limit
VALIDATION = "validation, grouped by patient and identical bytes; calibration and thresholds were chosen on it"
ROOT = Path(__file__).parent.parent
BUNDLES = ROOT / "models" / "bundles"
CARDS = Path(__file__).parent / "cards"


def export(
    run: Path,
    data: Sequence[Path],
    about: Path,
    *,
    name: str,
    version: str,
    bundles: Path,
    skip_bad: bool = False,
) -> ModelCard:
    """Write `bundles/name/version/`, whole or not at all, and return its card as read back.

    Raises
    ------
    ExportRefused
        The bundle exists already, the run holds no checkpoint, has learned nothing, is of other images or of a version
        that cannot be compared, or no population is good enough to be claimed.
    CardError, DataError, RecipeError
        What a person wrote, the images or the run's recipe cannot be used.
    """
    folder = _new_folder(bundles, name, version)
    spoken = read_about(about)
    state = _checkpoint(run)
    recipe = recipe_from(state["recipe"], str(run / CHECKPOINT))
    best = state["best"]
    epochs = best["epoch"] if best else state["epochs_done"]
    if not epochs:
        raise ExportRefused(f"{run} has not ended its first epoch: nothing to export yet; go on with --resume")
    training, validation = images_of(recipe, data, run / "cache", skip_bad=skip_bad)
    seen = {"training": items_sha256(training.items), "validation": items_sha256(validation.items)}
    if "items" not in state:
        raise ExportRefused(
            f"{run} was made by an earlier version, and its images and labels cannot be compared: export it with that "
            "version, or train anew"
        )
    if state["items"] != seen:
        raise ExportRefused(
            f"--data is not what {run} was trained on: give the same, labels and order too, and --skip-bad if it had it"
        )
    halved = {
        key: (value.half() if value.is_floating_point() else value).contiguous()
        for key, value in (best["weights"] if best else state["averaged"]).items()
    }
    network = make_network(recipe.network, len(recipe.outputs))
    network.load_state_dict({key: v.float() if v.is_floating_point() else v for key, v in halved.items()})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    size = recipe.stage_of(epochs - 1).size
    _, seen_ND = outputs_of(network, training, size, device, title="training images")
    logit_NL, feature_ND = outputs_of(network, validation, size, device, title="validation images", precision="fp32")
    populations, figures, refused = claimed_populations(recipe, spoken, Judged(images=validation, logit_NL=logit_NL))
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
        "intended_use": spoken.intended_use,
        "limitations": [*spoken.limitations, *refused],
        "licence": f"{spoken.licence} {_origin(recipe.weights)}",
        "findings": [dict(finding) for finding in spoken.findings],
        "populations": populations,
        "out_of_distribution": out_of_distribution,
        "training_data": _training_data(recipe, spoken, training, validation, epochs),
        "metrics": {"split": VALIDATION} | figures,
    }
    text = tomli_w.dumps(_without_none(card)).encode()
    return _write(folder, {WEIGHTS_FILE: weights, FEATURES_FILE: features, CARD_FILE: text})


def _new_folder(bundles: Path, name: str, version: str) -> Path:
    """Return where the bundle goes; refuse, before anything is computed, what no card may be called."""
    for key, value, pattern in (("--name", name, NAME), ("--version", version, VERSION)):
        if re.fullmatch(pattern, value) is None:
            raise ExportRefused(f"{key} must look like {pattern}, not {value!r}")
    folder = bundles / name / version
    if folder.exists():
        raise ExportRefused(f"{folder} exists: choose another --version")
    return folder


def _write(folder: Path, contents: Mapping[str, bytes]) -> ModelCard:
    """Write a bundle and return its card; a crash, or a card that cannot be read back, leaves no half of one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    incoming = Path(tempfile.mkdtemp(prefix=".incoming-", dir=folder.parent))
    try:
        for name, content in contents.items():
            (incoming / name).write_bytes(content)
        load_card(incoming)
        incoming.chmod(0o755)
        incoming.rename(folder)
    except (CardError, OSError):
        shutil.rmtree(incoming, ignore_errors=True)
        raise
    return load_card(folder)


def _checkpoint(run: Path) -> dict[str, Any]:
    path = run / CHECKPOINT
    if not path.exists():
        raise ExportRefused(f"{path} does not exist: --run is the --out folder of a training run")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _out_of_distribution(training_ND: Tensor, validation_ND: Tensor) -> tuple[bytes, dict[str, Any]]:
    """Fit the statistics on the training images and set the limit by the validation images."""
    directions = min(DIRECTIONS, len(training_ND) // 2, training_ND.shape[1] // 2)  # few images span few directions
    try:
        statistics = fit_statistics(training_ND, directions)
    except ValueError as error:
        raise ExportRefused(f"no statistics of the features: {error}: train on more images, or longer") from error
    score_N = statistics.score(validation_ND).numpy()
    limit = math.ceil(1000 * float(np.quantile(score_N, 1 - FALSE_ALARMS))) / 1000  # rounded up: scores may lie close
    content = statistics.to_bytes()
    alarms = round(float(np.mean(score_N > limit)), 4)
    return content, {"sha256": hashlib.sha256(content).hexdigest(), "limit": limit, "false_alarm_rate": alarms}


def _training_data(recipe: Recipe, spoken: About, training: Images, validation: Images, epochs: int) -> dict[str, Any]:
    sides = {"training": training.items, "validation": validation.items}
    start = begun_from(recipe.weights)
    names = sorted({item.source for items in sides.values() for item in items})
    return (
        {
            "sources": {name: spoken.sources.get(name, "not described") for name in names},
            "sha256": data_sha256([*training.items, *validation.items]),
            "held_out": "official test folders, and their patients: not seen by this run",
            "split": {
                "salt": recipe.split_salt,
                "validation_share": recipe.validation_share,
                "validation_shares": dict(recipe.validation_shares),
            },
            "epochs": epochs,
            "epochs_planned": recipe.epochs,
            "seed": recipe.seed,
            "stages": [f"{stage.epochs} epochs at {stage.size} px" for stage in recipe.stages],
            "initial_weights": _named(recipe.weights),
        }
        | {
            side: {"sha256": data_sha256(items)} | {name: _counts(recipe, items, name) for name in names}
            for side, items in sides.items()
        }
        | ({"before": record_of(start)} if start else {})
    )


def _origin(weights: str) -> str:
    """Say what the weights came from, as far as it is known."""
    if weights == "none":
        return "Trained from random weights on the data named in this card and on nothing else."
    if start := begun_from(weights):
        return (
            f"Begun from the weights of {start.name} {start.version}, trained on what this card names under `before`; "
            "then trained on the data named in this card."
        )
    return f"Begun from other weights ({_named(weights)}), whose training data this card does not name."


def _named(weights: str) -> str:
    """Return what a run started from without a path of its machine: a bundle's name and version, or the file's name."""
    path = Path(weights)
    return "/".join(path.parts[-3:-1]) if path.name == WEIGHTS_FILE else path.name


def _counts(recipe: Recipe, items: Sequence[Item], source: str) -> dict[str, Any]:
    chosen = [item for item in items if item.source == source]
    labels = Counter(recipe.outputs[item.label] for item in chosen)
    counts = {"images": len(chosen), "patients": len({item.group for item in chosen})} | dict(labels)
    return {"sha256": data_sha256(chosen)} | counts


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
    parser.add_argument("--skip-bad", action="store_true", help="leave out images that cannot be read, as the run did")
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
                options.run,
                options.data,
                about,
                name=options.name,
                version=options.version,
                bundles=options.to,
                skip_bad=options.skip_bad,
            )
            _print_figures(card)
        if options.monai_bundle:
            write_monai_bundle(card, options.monai_bundle)
            print(f"{options.monai_bundle}: a MONAI Bundle")
    except (ExportRefused, DataError, RecipeError, CardError, WeightsMismatch, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    return 0


def _print_figures(card: ModelCard) -> None:
    for population in card.populations:
        for finding, found in card.metrics[population.name].items():
            auc = found["auc"]
            print(f"{population.name}, {finding}: AUC {auc['value']} ({auc['low']} to {auc['high']})")
    print(*(limitation for limitation in card.limitations if limitation.startswith(NEVER)), sep="\n")
    print(f"{card.folder}\nnext: python -m training.evaluate --model {card.folder}")


if __name__ == "__main__":
    sys.exit(main())
