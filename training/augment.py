"""Random changes that a chest survives. Takes and gives image_B1HW in [0, 1]; every image draws its own.

Whole batches are changed by a few tensor operations, so that loading never holds the network up. All randomness
comes from the generator that is handed in. Shapes: B images, H rows, W columns, L outputs.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional

from training.settings import Augmentation


def augment(image_B1HW: Tensor, ranges: Augmentation, generator: Generator) -> Tensor:
    """Return changed images, float32, clipped to [0, 1]."""
    image_B1HW = _moved(image_B1HW, ranges, generator)
    image_B1HW = _blurred(image_B1HW, ranges.blur, generator)
    image_B1HW = _relit(image_B1HW, ranges, generator)
    return _erased(image_B1HW, ranges.erasing, generator)


def mix(image_B1HW: Tensor, target_BL: Tensor, alpha: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return the batch blended with itself in another order, targets likewise (MixUp, Zhang et al. 2018)."""
    if alpha <= 0:
        return image_B1HW, target_BL
    # A beta distribution from two gamma draws would ignore the generator; its inverse is close for small alpha.
    uniform = torch.rand((), generator=generator).item()
    share = 1 - 0.5 * uniform ** (1 / max(alpha, 1e-3)) if alpha < 1 else 0.5 + 0.5 * uniform
    order = torch.randperm(len(image_B1HW), generator=generator)
    return (
        share * image_B1HW + (1 - share) * image_B1HW[order],
        share * target_BL + (1 - share) * target_BL[order],
    )


def _draw(count: int, limit: float, generator: Generator) -> Tensor:
    """Return `count` uniform draws from [-limit, limit]."""
    return (torch.rand(count, generator=generator) * 2 - 1) * limit


def _moved(image_B1HW: Tensor, ranges: Augmentation, generator: Generator) -> Tensor:
    count = len(image_B1HW)
    angle = _draw(count, math.radians(ranges.rotation_degrees), generator)
    scale_x, scale_y = (
        torch.exp(_draw(count, ranges.scale, generator)),
        torch.exp(_draw(count, ranges.scale, generator)),
    )
    shear = _draw(count, ranges.shear, generator)
    mirror = torch.where(torch.rand(count, generator=generator) < ranges.flip, -1.0, 1.0)
    affine = torch.zeros(count, 2, 3)
    affine[:, 0, 0] = mirror * scale_x * torch.cos(angle)
    affine[:, 0, 1] = mirror * (shear - torch.sin(angle))
    affine[:, 1, 0] = scale_y * torch.sin(angle)
    affine[:, 1, 1] = scale_y * torch.cos(angle)
    affine[:, 0, 2] = 2 * _draw(count, ranges.shift, generator)
    affine[:, 1, 2] = 2 * _draw(count, ranges.shift, generator)
    grid = functional.affine_grid(affine, list(image_B1HW.shape), align_corners=False)
    return functional.grid_sample(image_B1HW, grid, padding_mode="zeros", align_corners=False)


def _blurred(image_B1HW: Tensor, probability: float, generator: Generator) -> Tensor:
    is_chosen = torch.rand(len(image_B1HW), generator=generator) < probability
    if is_chosen.any():
        smooth = functional.avg_pool2d(functional.pad(image_B1HW[is_chosen], (1, 1, 1, 1), mode="replicate"), 3, 1)
        image_B1HW[is_chosen] = smooth
    return image_B1HW


def _relit(image_B1HW: Tensor, ranges: Augmentation, generator: Generator) -> Tensor:
    count = len(image_B1HW)
    gamma, contrast, brightness = (
        _draw(count, limit, generator)[:, None, None, None]
        for limit in (ranges.gamma, ranges.contrast, ranges.brightness)
    )
    image_B1HW = image_B1HW.clamp(1e-4, 1) ** torch.exp(gamma)
    mean = image_B1HW.mean((1, 2, 3), keepdim=True)
    image_B1HW = (image_B1HW - mean) * torch.exp(contrast) + mean + brightness
    sigma = torch.rand(count, 1, 1, 1, generator=generator) * ranges.noise
    noise = torch.randn(image_B1HW.shape, generator=generator)
    return (image_B1HW + sigma * noise).clamp(0, 1)


def _erased(image_B1HW: Tensor, probability: float, generator: Generator) -> Tensor:
    """Fill one box of 2 to 15 % of the area per chosen image with a flat grey."""
    size = image_B1HW.shape[-1]
    for index in torch.nonzero(torch.rand(len(image_B1HW), generator=generator) < probability).ravel().tolist():
        area, shape, top, left, grey = torch.rand(5, generator=generator).tolist()
        pixels = size * size * (0.02 + 0.13 * area)
        height = min(size - 1, int(math.sqrt(pixels * math.exp(1.2 * (shape - 0.5)))))
        width = min(size - 1, int(pixels / max(height, 1)))
        row, column = int(top * (size - height)), int(left * (size - width))
        image_B1HW[index, :, row : row + height, column : column + width] = grey
    return image_B1HW
