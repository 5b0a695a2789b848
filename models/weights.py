"""Weights from disk into networks: a bundle's, checked against its card, or those that a training starts from.

Bundles are read from safetensors only, never unpickled; a training's other sources are unpickled as tensors only.
Shapes: L outputs.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from models.card import ModelCard
from models.errors import WeightsMismatch, WeightsUnavailable
from models.networks import Classifier, make_network
from models.vision import torchvision

IMAGENET = "imagenet"
# What torch's unpickler raises on bytes that are no pickle is anything but a design.
_UNREADABLE = (
    *(pickle.UnpicklingError, SafetensorError, EOFError, RuntimeError),
    *(LookupError, TypeError, ValueError, AttributeError),
)
_HEADS_OF_TORCHVISION = ("fc.", "classifier.", "AuxLogits.")


def load_network(card: ModelCard) -> Classifier:
    """Return the card's network with its weights, float32, in evaluation mode, on the CPU.

    Raises
    ------
    WeightsMismatch
        The file's sha256 is not the card's, its tensors do not fit the card's network or hold what is no number.
    """
    content = read_verified(card.weights_path, card.weights_sha256)
    try:
        # On the meta device nothing is drawn at random only to be overwritten.
        with torch.device("meta"):
            network = make_network(card.network, len(card.outputs))
        weights = {key: _widened(value) for key, value in safetensors.torch.load(content).items()}
        network.load_state_dict(weights, strict=True, assign=True)
        if not all(value.isfinite().all() for value in weights.values()):
            raise ValueError("a weight is not a number")
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise WeightsMismatch(f"{card.weights_path}: {error}") from error
    return network.eval()


def read_verified(path: Path, sha256: str) -> bytes:
    """Return a bundle's file.

    Raises
    ------
    WeightsMismatch
        It cannot be read, or its sha256 is not the one of the card.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsMismatch(f"{path}: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise WeightsMismatch(f"{path}: sha256 differs from the card's")
    return content


def load_backbone(network: Classifier, weights: Path | str) -> None:
    """Give the backbone trained weights; the head stays as it is.

    Parameters
    ----------
    weights
        "imagenet" for torchvision's (IMAGENET1K_V1, which every architecture has), or a file: torchvision's state
        dict, the `weights.safetensors` of a bundle, or the `checkpoint.pt` of a run (its averaged weights).

    Raises
    ------
    WeightsUnavailable
        They cannot be downloaded or read, or are those of another architecture.
    """
    if weights == IMAGENET:
        where, tensors = "torchvision's ImageNet weights", _download(network.layout.architecture)
    else:
        where, tensors = str(weights), _read(Path(weights))
    try:
        missing, foreign = network.backbone.load_state_dict(_of_backbone(tensors), strict=False)
    except RuntimeError as error:  # a shape differs; torch's message has a line per tensor
        raise WeightsUnavailable(_not_fitting(where, network, str(error).splitlines()[-1].strip())) from error
    if missing or foreign:
        named = ", ".join([f"{key} is missing" for key in missing[:1]] + [f"{key} is unknown" for key in foreign[:1]])
        raise WeightsUnavailable(_not_fitting(where, network, f"{named} ({len(missing) + len(foreign)} tensors)"))


def _not_fitting(where: str, network: Classifier, why: str) -> str:
    return f"{where}: not the weights of {network.layout.architecture}: {why}"


def _download(architecture: str) -> dict[str, Tensor]:
    found = torchvision.models.get_model_weights(architecture).IMAGENET1K_V1
    try:
        tensors: dict[str, Tensor] = found.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise WeightsUnavailable(
            f"torchvision cannot download the ImageNet weights of {architecture} ({_first_line(error)}): give a file "
            f"with --weights FILE (from {found.url}), or start from random weights with --weights none"
        ) from error
    return tensors


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            loaded: Any = safetensors.torch.load(path.read_bytes())
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsUnavailable(f"{path}: {error.strerror or error}") from error
    except _UNREADABLE as error:
        raise WeightsUnavailable(f"{path}: holds no weights that can be read: {_first_line(error)}") from error
    tensors = loaded.get("averaged", loaded) if isinstance(loaded, Mapping) else None
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise WeightsUnavailable(f"{path}: is no state dict, no bundle's weights and no run's checkpoint")
    return dict(tensors)


def _of_backbone(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the backbone's tensors under its own names, from a network of ours or from torchvision's."""
    ours = {key.removeprefix("backbone."): value for key, value in tensors.items() if key.startswith("backbone.")}
    return ours or {key: value for key, value in tensors.items() if not key.startswith(_HEADS_OF_TORCHVISION)}


def _widened(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
