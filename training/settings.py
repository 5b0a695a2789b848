"""A recipe: everything that decides what a training run does, read from a short TOML file.

Takes a recipe's name or path and `key=value` overrides; gives a frozen Recipe; refuses what it does not know.
"""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).parent / "recipes"


class RecipeError(Exception):
    """A recipe names an unknown key or an impossible value; the message says which and in which file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Some epochs at one image size; later stages continue with the weights of the earlier ones."""

    epochs: int
    size: int  # pixels, the images are square
    batch_size: int
    ema_decay: float = 0.998  # per step; lower where a new size must soon show in the averaged weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """Ranges from which each image of a batch draws; 0 switches one off."""

    flip: float = 0.5  # probability of a left-right mirror image
    rotation_degrees: float = 12.0
    shift: float = 0.08  # of the image's size
    scale: float = 0.15
    shear: float = 0.08
    gamma: float = 0.30  # in natural logarithms
    contrast: float = 0.25
    brightness: float = 0.12
    noise: float = 0.02
    blur: float = 0.1  # probability of a 3x3 blur
    erasing: float = 0.25  # probability of one erased box
    mixup: float = 0.2  # alpha of the beta distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One training run."""

    network: str = "resnet50"
    outputs: tuple[str, ...] = ("normal", "pneumonia")  # the folder names, lower case, in the order of the logits
    seed: int = 1
    validation_share: float = 0.125  # of the patients
    split_salt: str = "1"
    stages: tuple[Stage, ...] = ()
    learning_rate: float = 1e-3  # the highest of one cycle
    warmup_share: float = 0.15  # of the cycle
    cycle_epochs: int = 0  # length of the cycle; 0 is all epochs, more ends the run before the rate has quite fallen
    weight_decay: float = 0.05
    label_smoothing: float = 0.05
    class_weights: bool = True  # every class counts the same in the loss
    clip_norm: float = 1.0
    augmentation: Augmentation = field(default_factory=Augmentation)

    @property
    def epochs(self) -> int:
        """All epochs of all stages."""
        return sum(stage.epochs for stage in self.stages)

    def stage_of(self, epoch: int) -> Stage:
        """Return the stage that an epoch (from 0) belongs to."""
        for stage in self.stages:
            if epoch < stage.epochs:
                return stage
            epoch -= stage.epochs
        raise IndexError("the recipe has fewer epochs")


def load_recipe(name: str, overrides: list[str] | None = None) -> Recipe:
    """Return the recipe of that name (or path), with `key=value` or `augmentation.key=value` overrides applied.

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
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: {error}") from error
    for override in overrides or []:
        _override(values, override)
    return recipe_from(values, str(path))


def recipe_from(values: dict[str, Any], source: str) -> Recipe:
    """Return the recipe that plain values (TOML, or a checkpoint's copy) describe."""
    values = dict(values)
    stages = tuple(_build(Stage, item, f"{source}: stages") for item in values.pop("stages", []))
    augmentation = _build(Augmentation, values.pop("augmentation", {}), f"{source}: augmentation")
    values["outputs"] = tuple(values.get("outputs", Recipe().outputs))
    if not stages:
        raise RecipeError(f"{source}: stages: at least one is needed")
    recipe: Recipe = _build(Recipe, values | {"stages": stages, "augmentation": augmentation}, source)
    return recipe


def _build(kind: Any, values: dict[str, Any], where: str) -> Any:
    types = {entry.name: entry.type for entry in dataclasses.fields(kind)}
    for key, value in values.items():
        if key not in types:
            raise RecipeError(f"{where}: unknown key {key!r}; known: {', '.join(sorted(types))}")
        if types[key] == "float" and isinstance(value, int) and not isinstance(value, bool):
            values = values | {key: float(value)}
        elif types[key] in ("int", "float", "str", "bool") and type(value).__name__ != types[key]:
            raise RecipeError(f"{where}: {key} must be of type {types[key]}, not {value!r}")
    try:
        return kind(**values)
    except TypeError as error:
        raise RecipeError(f"{where}: {error}") from error


def _override(values: dict[str, Any], override: str) -> None:
    key, _, text = override.partition("=")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    target = values
    *parents, last = key.strip().split(".")
    for parent in parents:
        target = target.setdefault(parent, {})
    target[last] = value
