"""A MONAI Bundle of one of our bundles: TorchScript, metadata and an inference workflow that MONAI itself runs.

For people who know MONAI and not this node. The network gives calibrated probabilities, those of the card's first
population; DICOM greys, suitability and ages stay with the node. Shapes: B images, L outputs.

References
----------
MONAI Bundle specification, https://docs.monai.io/en/stable/mb_specification.html
"""

from __future__ import annotations

import json
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from monai.data import save_net_with_metadata
from torch import Tensor, nn

from models.card import ModelCard
from models.networks import Classifier
from models.weights import load_network


class _Calibrated(nn.Module):
    """image_B1HW in [0, 1] to probability_BL."""

    def __init__(self, network: Classifier, card: ModelCard) -> None:
        super().__init__()
        self._network = network
        self._temperature = card.populations[0].temperature
        self.register_buffer("_bias_L", torch.tensor(card.populations[0].bias))

    def forward(self, image_B1HW: Tensor) -> Tensor:
        return torch.softmax((self._network(image_B1HW) + self._bias_L) / self._temperature, 1)


def write_monai_bundle(card: ModelCard, folder: Path) -> None:
    """Write `configs/`, `models/model.ts` and `docs/README.md` below the folder.

    Raises
    ------
    WeightsMismatch
        The weights are not those of the card.
    """
    for name in ("configs", "models", "docs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    metadata = _metadata(card)
    network = _Calibrated(load_network(card), card).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated in torch, and still what MONAI loads
        traced = torch.jit.trace(network, torch.rand(2, 1, card.input_size, card.input_size))  # type: ignore[no-untyped-call]
    save_net_with_metadata(traced, str(folder / "models" / "model"), meta_values=metadata)
    for name, content in (("metadata", metadata), ("inference", _inference(card))):
        (folder / "configs" / f"{name}.json").write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
    (folder / "docs" / "README.md").write_text(_readme(card), encoding="utf-8")


def _metadata(card: ModelCard) -> dict[str, Any]:
    size = card.input_size
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": "CR",
        "num_channels": 1,
        "spatial_shape": [size, size],
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": False,
        "channel_def": {"0": "grey, lung dark"},
    }
    probability = {
        "type": "probabilities",
        "format": "classes",
        "num_channels": len(card.outputs),
        "spatial_shape": [],
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": False,
        "channel_def": {str(index): output for index, output in enumerate(card.outputs)},
    }
    return {
        "version": card.version,
        "changelog": {card.version: "exported"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").split("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {"pillow": version("pillow")},
        "name": card.name,
        "task": "Classification of chest radiographs",
        "description": card.intended_use,
        "authors": "the PACS node's training pipeline",
        "copyright": card.licence,
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": probability}},
    }


def _inference(card: ModelCard) -> dict[str, Any]:
    size = [card.input_size] * 2
    return {
        "imports": ["$import glob", "$import torch"],
        "bundle_root": ".",
        "images": "$@bundle_root + '/images/*'",
        "files": "$sorted(glob.glob(@images))",
        "network": {"_target_": "torch.jit.load", "f": "$@bundle_root + '/models/model.ts'", "map_location": "cpu"},
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "LoadImage",
                    "reader": {
                        "_target_": "PILReader",
                        "converter": "$lambda image: image.convert('L')",
                        "reverse_indexing": False,
                    },
                    "image_only": True,
                    "ensure_channel_first": True,
                },
                {"_target_": "ScaleIntensityRange", "a_min": 0, "a_max": 255, "b_min": 0, "b_max": 1},
                {"_target_": "Resize", "spatial_size": size, "mode": "area"},
            ],
        },
        "dataset": {"_target_": "Dataset", "data": "@files", "transform": "@preprocessing"},
        "batches": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 16},
        "probability": "$torch.cat([part.as_tensor() for part in map(@network, @batches)])",
        "run": ["$print(dict(zip(@files, @probability.tolist())))"],
    }


def _readme(card: ModelCard) -> str:
    limitations = "\n".join(f"* {limitation}" for limitation in card.limitations)
    return (
        f"# {card.name} {card.version}\n\n{card.intended_use}\n\n## Limitations\n\n{limitations}\n\n## Use\n\n"
        "Put 8-bit images (lung dark) into `images/`, then\n\n"
        "    python -m monai.bundle run --config_file configs/inference.json --meta_file configs/metadata.json\n\n"
        f"Outputs: {', '.join(card.outputs)}; calibrated for {card.populations[0].name}.\n\n{card.licence}\n"
    )
