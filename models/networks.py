"""Networks by name: a torchvision backbone and a head of ours behind one door, image_B1HW in, logit_BL out.

Hides how each backbone is cut off its own head, which parts of it a recipe may freeze, and the three channels that it
expects. A further network is one function and one entry in `NETWORKS`.

Shapes: B images, H rows, W columns, D features, L outputs. Every network takes one grey channel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from models.vision import torchvision

LEAST_DEVIATION = 0.01
"""Of grey levels in [0, 1]: an image without contrast is not blown up to noise."""

Frozen = Literal["all", "partial", "none"]
"""How much of a backbone keeps its weights in training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What is to be known about a backbone beside its weights.

    Attributes
    ----------
    architecture
        torchvision's name of it, under which its ImageNet weights are found.
    input_size
        Pixels, a square: what the architecture was designed for; a recipe may choose another.
    stages
        Names of the submodules that hold all its parameters, from input to output.
    trained
        How many of the last stages are trained where a recipe freezes it partially.
    margin
        Share of the image's side that is not looked at, on each of the four; what is left is standardised. None: the
        whole image is looked at, with its own grey levels.
    """

    architecture: str
    input_size: int
    stages: tuple[str, ...]
    trained: int
    margin: float | None = None

    def seen(self, image_B1HW: Tensor) -> Tensor:
        """Return what the backbone looks at: image_B3HW, one grey channel around zero repeated to its three.

        With a margin, H and W are those of the inner part, and its grey levels have the mean 0 and the standard
        deviation 1: neither letters and collimators at the border nor the exposure decide.
        """
        if self.margin is None:
            return ((image_B1HW - 0.5) / 0.25).expand(-1, 3, -1, -1)
        rows, columns = (self.margin_of(side) for side in image_B1HW.shape[-2:])
        inner_B1HW = image_B1HW[..., rows : image_B1HW.shape[-2] - rows, columns : image_B1HW.shape[-1] - columns]
        deviation_B111, mean_B111 = torch.std_mean(inner_B1HW, dim=(1, 2, 3), keepdim=True, correction=0)
        return ((inner_B1HW - mean_B111) / deviation_B111.clamp(min=LEAST_DEVIATION)).expand(-1, 3, -1, -1)

    def margin_of(self, side: int) -> int:
        """Return how many pixels of a side are not looked at, at each end."""
        return round((self.margin or 0.0) * side)

    def inner(self, side: int) -> int:
        """Return how many pixels of a side are looked at."""
        return side - 2 * self.margin_of(side)


class Classifier(nn.Module):
    """A backbone and a head behind one door: image_B1HW in, logit_BL out.

    Attributes
    ----------
    backbone
        Takes image_B3HW as `Layout.seen` returns it, gives the pooled feature_BD.
    head
        Takes feature_BD, gives logit_BL.
    layout
        The backbone's stages, the size that it was designed for and what it looks at.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.layout = layout
        self._frozen = 0  # leading stages

    def forward(self, image_B1HW: Tensor) -> Tensor:
        """Return logit_BL for grey images in [0, 1]."""
        logit_BL: Tensor = self.head(self.backbone(self.layout.seen(image_B1HW)))
        return logit_BL

    @property
    def input_size(self) -> int:
        """Pixels of the square that the backbone was designed for."""
        return self.layout.input_size

    @property
    def feature_count(self) -> int:
        """D, the width of the pooled feature between backbone and head."""
        return next(part.in_features for part in self.head.modules() if isinstance(part, nn.Linear))

    def stages(self) -> list[nn.Module]:
        """Return the parts of the backbone that hold its parameters, from input to output."""
        return [self.backbone.get_submodule(name) for name in self.layout.stages]

    def freeze(self, parts: Frozen) -> None:
        """Keep that much of the backbone as it is, in training too, and let all the rest learn; the head always does.

        Frozen stages need no gradients and stay in evaluation mode whatever `train` is told: batch norm that goes on
        following the batches would change what was meant to be kept.

        Raises
        ------
        ValueError
            `parts` is none of "all", "partial" and "none".
        """
        if parts not in get_args(Frozen):
            raise ValueError(f"freeze must be one of {', '.join(get_args(Frozen))}, not {parts!r}")
        stages = self.stages()
        self._frozen = {"all": len(stages), "partial": len(stages) - self.layout.trained, "none": 0}[parts]
        for place, stage in enumerate(stages):
            stage.requires_grad_(place >= self._frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> Classifier:
        """Set training or evaluation mode; frozen stages stay in evaluation mode."""
        super().train(mode)
        for stage in self.stages()[: self._frozen]:
            stage.eval()
        return self


def resnet50(output_count: int, *, margin: float | None = None) -> Classifier:
    """Return ResNet50 with a head of two layers: 24,559,170 parameters for two outputs.

    Partially frozen, conv1, bn1, layer1 and layer2 keep their weights: 1,444,928 parameters.
    """
    backbone, features = _headless_resnet50()
    head = nn.Sequential(
        nn.Dropout(0.5),
        nn.Linear(features, 512),
        nn.ReLU(inplace=True),
        nn.BatchNorm1d(512),
        nn.Dropout(0.3),
        nn.Linear(512, output_count),
    )
    return Classifier(backbone, head, replace(_resnet50_layout(trained=2), margin=margin))


def resnet50_inner(output_count: int) -> Classifier:
    """Return the same network, which looks at the inner 90 % of the image's height and width, standardised."""
    return resnet50(output_count, margin=0.05)


def resnet50_two_stage(output_count: int) -> Classifier:
    """Return ResNet50 with a head of three layers, for training in two stages.

    Partially frozen, all but layer4 keep their weights: about the top 30 layers, as Keras counts them, are trained.
    Where a publication ends in a sigmoid, this ends in two logits: their softmax is the sigmoid of their difference.
    """
    backbone, features = _headless_resnet50()
    head = nn.Sequential(
        nn.Linear(features, 512),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(512, 256),
        nn.ReLU(inplace=True),
        nn.Dropout(0.3),
        nn.Linear(256, output_count),
    )
    return Classifier(backbone, head, _resnet50_layout(trained=1))


def efficientnet_b0(output_count: int) -> Classifier:
    """Return EfficientNet-B0 with dropout .2 and one linear layer; partially frozen, its last 3 blocks are trained."""
    backbone = torchvision.models.efficientnet_b0(weights=None)
    backbone.classifier = nn.Identity()
    return Classifier(backbone, _linear_head(0.2, 1280, output_count), _blocks_layout("efficientnet_b0", backbone))


def mobilenet_v2(output_count: int) -> Classifier:
    """Return MobileNetV2 with dropout .5 and one linear layer; partially frozen, its last 3 blocks are trained.

    A block is an entry of torchvision's `features`: the last of the three is the 1 x 1 convolution to 1,280 channels.
    """
    backbone = torchvision.models.mobilenet_v2(weights=None)
    backbone.classifier = nn.Identity()
    return Classifier(backbone, _linear_head(0.5, 1280, output_count), _blocks_layout("mobilenet_v2", backbone))


def inception_v3(output_count: int) -> Classifier:
    """Return Inception-V3 without its auxiliary output, with dropout .5 and one linear layer, for 299 pixels.

    Partially frozen, its last 3 blocks (Mixed_7a to Mixed_7c) are trained.
    """
    # transform_input: torchvision's ImageNet weights expect [-1, 1], not the scaling that all the others share.
    backbone = torchvision.models.inception_v3(weights=None, aux_logits=False, transform_input=True, init_weights=True)
    backbone.fc = backbone.dropout = nn.Identity()
    stages = tuple(name for name, part in backbone.named_children() if next(part.parameters(), None) is not None)
    layout = Layout(architecture="inception_v3", input_size=299, stages=stages, trained=3)
    return Classifier(backbone, _linear_head(0.5, 2048, output_count), layout)


def _headless_resnet50() -> tuple[nn.Module, int]:
    backbone = torchvision.models.resnet50(weights=None)
    features: int = backbone.fc.in_features
    backbone.fc = nn.Identity()
    return backbone, features


def _resnet50_layout(*, trained: int) -> Layout:
    stages = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
    return Layout(architecture="resnet50", input_size=224, stages=stages, trained=trained)


def _blocks_layout(architecture: str, backbone: nn.Module) -> Layout:
    stages = tuple(f"features.{name}" for name, _ in backbone.get_submodule("features").named_children())
    return Layout(architecture=architecture, input_size=224, stages=stages, trained=3)


def _linear_head(dropout: float, features: int, output_count: int) -> nn.Module:
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(features, output_count))


NETWORKS: dict[str, Callable[[int], Classifier]] = {
    "efficientnet_b0": efficientnet_b0,
    "inception_v3": inception_v3,
    "mobilenet_v2": mobilenet_v2,
    "resnet50": resnet50,
    "resnet50_inner": resnet50_inner,
    "resnet50_two_stage": resnet50_two_stage,
}


def make_network(name: str, output_count: int) -> Classifier:
    """Return a network with random weights, all of them to be trained.

    Raises
    ------
    ValueError
        No network has that name.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; known: {', '.join(sorted(NETWORKS))}")
    return NETWORKS[name](output_count)
