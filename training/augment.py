"""Random changes that a chest survives: MONAI's transforms, torchvision's where MONAI has none.

An image's changes depend on the seed that comes with it and on nothing else: not on the worker that makes them, nor
on the images before. Shapes: B images, H rows, W columns, L outputs.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from monai.transforms import (
    RandAdjustContrast,
    RandAffine,
    RandCoarseDropout,
    RandFlip,
    RandGaussianNoise,
    RandGaussianSmooth,
    Randomizable,
    RandScaleIntensity,
    RandShiftIntensity,
    ScaleIntensityRange,
)
from monai.utils import convert_to_tensor
from torch import Tensor

from models.vision import torchvision_transforms as v2
from training.settings import Augmentation


class Augment:
    """Changes one image_1HW in [0, 1] at random; the same seed gives the same change."""

    def __init__(self, ranges: Augmentation, size: int) -> None:
        shift = ranges.shift * size
        box = [max(1, round(math.sqrt(share) * size)) for share in (0.02, 0.15)]
        steps = [
            RandFlip(prob=ranges.flip, spatial_axis=1),
            RandAffine(
                prob=1.0,
                rotate_range=math.radians(ranges.rotation_degrees),
                shear_range=(ranges.shear, ranges.shear),
                translate_range=(shift, shift),
                scale_range=(ranges.scale, ranges.scale),
                mode="bilinear",
                padding_mode="zeros",
                cache_grid=True,
                spatial_size=(size, size),
            ),
            RandGaussianSmooth(prob=ranges.blur, sigma_x=(0.3, 1.0), sigma_y=(0.3, 1.0)),
            RandAdjustContrast(prob=_on(ranges.gamma), gamma=(math.exp(-ranges.gamma), math.exp(ranges.gamma))),
            RandScaleIntensity(prob=_on(ranges.contrast), factors=ranges.contrast),
            RandShiftIntensity(prob=_on(ranges.brightness), offsets=ranges.brightness),
            RandGaussianNoise(prob=_on(ranges.noise), std=ranges.noise),
            RandCoarseDropout(
                prob=ranges.erasing,
                holes=1,
                spatial_size=(box[0],) * 2,
                max_spatial_size=(box[1],) * 2,
                fill_value=(0, 1),
            ),
            ScaleIntensityRange(a_min=0, a_max=1, b_min=0, b_max=1, clip=True),
        ]
        self._steps = steps
        self._perspective = v2.RandomPerspective(ranges.perspective, p=0.5) if ranges.perspective else None

    def __call__(self, image_1HW: Tensor, seed: int) -> Tensor:
        """Return a changed copy, float32, clipped to [0, 1]."""
        state = np.random.RandomState(np.random.PCG64(seed))  # one for all steps: nine Mersenne twisters cost 1 ms
        changed_1HW = image_1HW
        for step in self._steps:
            if isinstance(step, Randomizable):
                step.set_random_state(state=state)
            changed_1HW = step(changed_1HW)
        if self._perspective is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                changed_1HW = self._perspective(changed_1HW)
        # MONAI's MetaTensor would follow every operation of the network: a third slower, and not to be compiled.
        plain_1HW: Tensor = convert_to_tensor(changed_1HW, track_meta=False)
        return plain_1HW


class Mix:
    """Blends the images of a batch with each other, MixUp or CutMix; the targets alike.

    References
    ----------
    Zhang et al., mixup, ICLR 2018; Yun et al., CutMix, ICCV 2019
    """

    def __init__(self, *, mixup: float, cutmix: float) -> None:
        kinds = [kind(alpha=alpha) for kind, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix)) if alpha > 0]
        self._mix = v2.RandomChoice(kinds) if kinds else None

    def __call__(self, image_B1HW: Tensor, target_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mixed batch; draws from torch's own generator."""
        return self._mix(image_B1HW, target_BL) if self._mix else (image_B1HW, target_BL)


def _on(limit: float) -> float:
    return 1.0 if limit > 0 else 0.0
