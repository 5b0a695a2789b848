"""Networks by name. Takes image_B1HW, gives logit_BL; hides the backbone, its head and how torchvision is imported.

Shapes: B images, H rows, W columns, L findings. Every network takes one grey channel and repeats it to its three.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def _make_torchvision_importable() -> None:
    """Let torchvision's Python half load beside a torch that its compiled operators do not fit.

    Importing torchvision registers shapes for two operators that only its compiled library declares; where that
    library cannot load (a CUDA build of torchvision beside a CPU build of torch), the import fails although the
    networks and transforms need no operator. Declaring both is enough; with a matching pair nothing is changed.
    """
    import importlib.util
    from pathlib import Path

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    for library in Path(spec.origin).parent.glob("_C*"):
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
            return
        except OSError:
            pass
    operators = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    _kept_alive.append(operators)
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        operators.define(schema)  # type: ignore[no-untyped-call]


_kept_alive: list[torch.library.Library] = []
_make_torchvision_importable()

import torchvision  # noqa: E402 - only importable after the line above


class Classifier(nn.Module):
    """A backbone and a head behind one door: image_B1HW in, logit_BL out."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, image_B1HW: Tensor) -> Tensor:
        """Return logit_BL for grey images in [0, 1]."""
        logit_BL: Tensor = self.head(self.backbone(self.to_three_channels(image_B1HW)))
        return logit_BL

    @staticmethod
    def to_three_channels(image_B1HW: Tensor) -> Tensor:
        """Return the grey channel, centred around zero, repeated to the backbone's three."""
        return ((image_B1HW - 0.5) / 0.25).expand(-1, 3, -1, -1)


def resnet50(finding_count: int) -> Classifier:
    """Return ResNet50 with the two-layer head: 24,559,170 parameters for two findings."""
    backbone = torchvision.models.resnet50(weights=None)
    features = backbone.fc.in_features
    backbone.fc = nn.Identity()
    head = nn.Sequential(
        nn.Dropout(0.5),
        nn.Linear(features, 512),
        nn.ReLU(inplace=True),
        nn.BatchNorm1d(512),
        nn.Dropout(0.3),
        nn.Linear(512, finding_count),
    )
    return Classifier(backbone, head)


NETWORKS: dict[str, Callable[[int], Classifier]] = {"resnet50": resnet50}


def make_network(name: str, finding_count: int) -> Classifier:
    """Return a network with random weights.

    Raises
    ------
    ValueError
        No network has that name.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; known: {', '.join(sorted(NETWORKS))}")
    return NETWORKS[name](finding_count)
