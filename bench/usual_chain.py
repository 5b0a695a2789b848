"""The chain that people usually write: pydicom, MONAI, torchvision ResNet50 in eager float32, one image after another.

Run as a program of its own (`python -m bench.usual_chain FILES`), apart from the node. Prints images/s.
"""

from __future__ import annotations

import sys
import time

import pydicom
import torch
from monai.transforms import Compose, EnsureChannelFirst, RepeatChannel, Resize, ScaleIntensity
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

from models.vision import torchvision  # importable through it beside another build of torch

WARM_UP = 3
"""Images before the clock: the first pass of a network is slower."""


def main(files: list[str]) -> None:
    to_tensor = Compose(
        [
            EnsureChannelFirst(channel_dim="no_channel"),
            ScaleIntensity(),
            Resize((224, 224), mode="area"),
            RepeatChannel(3),
        ]
    )
    network = torchvision.models.resnet50(num_classes=2).eval()
    judged = [_judge(network, to_tensor, file) for file in files[:WARM_UP]]
    start = time.perf_counter()
    judged += [_judge(network, to_tensor, file) for file in files]
    print(len(files) / (time.perf_counter() - start))
    assert len(judged) == len(files) + WARM_UP


@torch.no_grad()
def _judge(network: torch.nn.Module, to_tensor: Compose, file: str) -> float:
    """Return P(second class)."""
    dataset = pydicom.dcmread(file)
    displayed = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    logit_BL = network(to_tensor(displayed.astype("float32"))[None])
    return float(torch.softmax(logit_BL, dim=1)[0, 1])


if __name__ == "__main__":
    main(sys.argv[1:])
