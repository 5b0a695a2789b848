"""A recipe: everything that decides what a training run does, read from a short TOML file.

Takes a recipe's name or path and `key=value` overrides; gives a frozen Recipe; refuses what it does not know.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from models.networks import NETWORKS, Frozen

RECIPES = Path(__file__).parent / "recipes"

_CHOICES = {
    "network": tuple(NETWORKS),
    "optimizer": ("adam", "adamw"),
    "schedule": ("cosine", "plateau", "constant"),
    "freeze": get_args(Frozen),
    "precision": ("auto", "bf16", "fp32"),
    "operating_point": ("balanced", "high_recall"),
}
_FROM_ONE = ("epochs", "size", "batch_size", "repeats")
_UP_TO_ONE = (
    *("validation_share", "validation_shares", "label_smoothing", "ema_decay", "beta2", "lowest_share"),
    *("flip", "blur", "erasing"),
)


class RecipeError(Exception):
    """A recipe names an unknown key or an impossible value; the message says which and in which file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Some epochs at one image size; later stages continue with the weights of the earlier ones."""

    epochs: int
    size: int  # pixels, the images are square
    batch_size: int = 32  # of all processes together
    freeze: Frozen = "none"  # which part of the backbone does not learn: none | partial | all
    learning_rate: float = 0.0  # for this stage; 0 is the recipe's
    ema_decay: float = 0.0  # for this stage, lower where a new size must soon show in the averaged weights; 0 likewise


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """Ranges from which each image of a batch draws; 0 switches one off."""

    flip: float = 0.5  # probability of a left-right mirror image
    rotation_degrees: float = 12.0
    shift: float = 0.08  # of the image's size
    scale: float = 0.15
    shear: float = 0.08
    perspective: float = 0.0  # how far the corners may move, of the image's size; drawn for half of the images
    gamma: float = 0.30  # in natural logarithms
    contrast: float = 0.25
    brightness: float = 0.12
    noise: float = 0.02  # largest standard deviation, of the grey range
    blur: float = 0.1  # probability of a Gaussian blur of 0.3 to 1 pixel
    erasing: float = 0.25  # probability of one erased box of 2 to 15 % of the area


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One training run."""

    name: str = ""  # of the file
    network: str = "resnet50"
    outputs: tuple[str, ...] = ("normal", "pneumonia")  # the class names in the order of the logits
    weights: str = "none"  # to start from: imagenet | none | a file
    seed: int = 1
    validation_share: float = 0.125  # of each source's patients
    validation_shares: Mapping[str, float] = field(default_factory=dict)  # by source, where another share is wanted
    split_salt: str = "1"
    repeats: Mapping[str, int] = field(default_factory=dict)  # by source: how often an epoch sees each of its images
    stages: tuple[Stage, ...] = ()
    optimizer: str = "adamw"
    learning_rate: float = 1e-3  # the highest of the schedule
    backbone_learning_rate: float = 0.0  # of layers that came with weights; 0 is the same
    beta2: float = 0.999  # of Adam's second moment
    weight_decay: float = 0.05
    schedule: str = "cosine"
    warmup_epochs: float = 0.0  # straight up from a twenty-fifth
    lowest_share: float = 0.001  # of the learning rate, at the end of the cosine
    patience: int = 2  # epochs without progress after which `plateau` divides the rate by ten
    class_weights: bool = True  # within every source each class counts the same in the loss
    label_smoothing: float = 0.05
    clip_norm: float = 1.0
    ema_decay: float = 0.998  # per step, of the averaged weights that are judged and exported; 0 averages nothing
    early_stop_epochs: int = 0  # without progress; then the best is kept. 0 runs to the end and keeps the last
    mixup: float = 0.0  # alpha of the beta distribution; 0 is off
    cutmix: float = 0.0  # likewise; where both are on, each batch draws one
    precision: str = "auto"  # bf16 | fp32 | auto: bf16 where that is faster
    compile: bool = False  # torch.compile: minutes at the start, some speed afterwards
    operating_point: str = "balanced"  # whose threshold the card takes as its default
    augmentation: Augmentation = field(default_factory=Augmentation)

    @property
    def epochs(self) -> int:
        """All epochs of all stages."""
        return sum(stage.epochs for stage in self.stages)

    @property
    def largest_size(self) -> int:
        """Pixels; every stage's images are averaged from this size."""
        return max(stage.size for stage in self.stages)

    def stage_of(self, epoch: int) -> Stage:
        """Return the stage that an epoch (from 0) belongs to.

        Raises
        ------
        IndexError
            The recipe has fewer epochs.
        """
        for stage in self.stages:
            if epoch < stage.epochs:
                return stage
            epoch -= stage.epochs
        raise IndexError("the recipe has fewer epochs")


def load_recipe(name: str, overrides: list[str] | None = None) -> Recipe:
    """Return the recipe of that name (or path), with `key=value` overrides applied.

    `augmentation.key=value` reaches into a table, `stages.key=value` into every stage.

    Raises
    ------
    RecipeError
        The file is missing or is not TOML, a key is unknown, or a value has the wrong type.
    """
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    try:
        values = tomllib.loads(path.read_text())
    except FileNotFoundError:
        known = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.toml")))
        raise RecipeError(f"no recipe {path}; known: {known}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: {error}") from error
    for override in overrides or []:
        _override(values, override)
    return recipe_from(values, str(path))


def recipe_from(values: dict[str, Any], source: str) -> Recipe:
    """Return the recipe that plain values (TOML, or a checkpoint's copy) describe.

    Raises
    ------
    RecipeError
        A key is unknown, or a value is of the wrong type or impossible; `source` says where.
    """
    values = dict(values)
    stages = tuple(_build(Stage, item, f"{source}: stages") for item in _listed(values, "stages", [], source))
    if not stages:
        raise RecipeError(f"{source}: stages: at least one is needed")
    augmentation = _build(Augmentation, values.pop("augmentation", {}), f"{source}: augmentation")
    outputs = tuple(_listed(values, "outputs", Recipe.__dataclass_fields__["outputs"].default, source))
    if len(outputs) < 2 or not all(isinstance(output, str) for output in outputs):
        raise RecipeError(f"{source}: outputs: at least two names are needed, the first for nothing found")
    recipe: Recipe = _build(
        Recipe,
        {"name": Path(source).stem} | values | {"outputs": outputs, "stages": stages, "augmentation": augmentation},
        source,
    )
    return recipe


def _listed(values: dict[str, Any], key: str, default: Any, source: str) -> Sequence[Any]:
    value = values.pop(key, default)
    if not isinstance(value, (list, tuple)):
        raise RecipeError(f"{source}: {key} must be a list, not {value!r}")
    return value


def _build(kind: Any, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise RecipeError(f"{where}: must be a table of keys and values, not {values!r}")
    types = {entry.name: entry.type for entry in dataclasses.fields(kind)}
    for key, value in values.items():
        if key not in types:
            raise RecipeError(f"{where}: unknown key {key!r}; known: {', '.join(sorted(types))}")
        if types[key] == "float" and isinstance(value, int) and not isinstance(value, bool):
            values = values | {key: float(value)}
        elif types[key] in ("int", "float", "str", "bool") and type(value).__name__ != types[key]:
            raise RecipeError(f"{where}: {key} must be of type {types[key]}, not {value!r}")
        elif types[key].startswith("Mapping") and not isinstance(value, Mapping):
            raise RecipeError(f"{where}: {key} must be a table by source, such as {{ nih = ... }}, not {value!r}")
        for number in value.values() if isinstance(value, Mapping) else [value]:
            _check_range(key, number, where)
        if value not in _CHOICES.get(key, (value,)):
            raise RecipeError(f"{where}: {key} must be one of {', '.join(_CHOICES[key])}, not {value!r}")
    try:
        return kind(**values)
    except TypeError as error:
        raise RecipeError(f"{where}: {error}") from error


def _check_range(key: str, value: Any, where: str) -> None:
    """Refuse what a number, or the numbers of a table by source, cannot be."""
    low, high = (1 if key in _FROM_ONE else 0), (1 if key in _UP_TO_ONE else math.inf)
    is_number = isinstance(value, int if key == "repeats" else (int, float))
    if (key in ("repeats", "validation_shares") and not is_number) or (is_number and not low <= value <= high):
        raise RecipeError(f"{where}: {key} must be a number from {low} to {high}, not {value!r}")


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise RecipeError(f"--set {override}: must be KEY=VALUE")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    tables = [values]
    *parents, last = key.strip().split(".")
    for parent in parents:
        tables = [inner for table in tables for inner in _tables(table.setdefault(parent, {}), override, parent)]
    for table in tables:
        table[last] = value


def _tables(value: Any, override: str, name: str) -> list[dict[str, Any]]:
    """Return the table, or the tables of a list, that an override reaches into."""
    tables = value if isinstance(value, list) else [value]
    if not all(isinstance(table, dict) for table in tables):
        raise RecipeError(f"--set {override}: {name} is {value!r}, not a table")
    return tables
