"""Where the model looked: Grad-CAM maps of images that it got right, got wrong, and was least sure of.

Takes Answers and their Images; gives one PNG, whose pictures are named by their place and their line in
`predictions.csv`, never by file or patient. Shapes: B chosen images, H rows, W columns, N images.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from models.card import ModelCard
from models.explain import grad_cam
from training.answers import Answers
from training.calibration import log_odds
from training.data import Images
from training.plots import STYLE

COLUMNS = 4
STRENGTH = 0.45  # of the map over the image, where it is hottest


def chosen(answers: Answers) -> dict[str, list[int]]:
    """Return the images of each row: right (surest, both classes in turn), wrong (surest), least sure."""
    distance_N = log_odds(answers.probability_N) - log_odds(answers.threshold_N[answers.default_point])
    is_right_N = answers.is_called() == (answers.truth_N == 1)
    surest = [int(index) for index in np.argsort(-np.abs(distance_N), kind="stable")]
    right = [[index for index in surest if is_right_N[index] and answers.truth_N[index] == label] for label in (1, 0)]
    rest = right[0][COLUMNS // 2 :] + right[1][COLUMNS // 2 :]
    return {
        "Right, and sure": (right[0][: COLUMNS // 2] + right[1][: COLUMNS // 2] + rest)[:COLUMNS],
        "Wrong, and sure": [index for index in surest if not is_right_N[index]][:COLUMNS],
        "Least sure": surest[::-1][:COLUMNS],
    }


def draw(path: Path, card: ModelCard, images: Images, answers: Answers) -> None:
    """Draw each chosen image beside itself with the map of its evidence for the finding."""
    rows = {title: indices for title, indices in chosen(answers).items() if indices}
    shown = list(dict.fromkeys(index for indices in rows.values() for index in indices))
    image_B1HW = torch.stack([images[index] for index in shown])
    heatmap_BHW = grad_cam(card, image_B1HW, card.outputs.index(answers.finding))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.2 * COLUMNS, 2.45 * len(rows)), layout="constrained")
        panels = figure.subplots(len(rows), COLUMNS, squeeze=False)
        for row, (title, indices) in enumerate(rows.items()):
            panels[row][0].set_ylabel(title, fontsize=13, fontweight="bold")
            for axes in panels[row]:
                _without_frame(axes)
            for axes, index in zip(panels[row], indices, strict=False):
                place = shown.index(index)
                _pair(axes, image_B1HW[place, 0].numpy(), heatmap_BHW[place])
                axes.set_title(_caption(answers, index), fontweight="normal")
        figure.savefig(path, dpi=90)


def _pair(axes: Axes, image_HW: np.ndarray, heatmap_HW: np.ndarray) -> None:
    """Draw the image, and to its right the image under the map, the more opaque the hotter."""
    grey_HW3 = np.repeat(image_HW[..., None], 3, axis=2)
    colour_HW3 = mpl.colormaps["inferno"](heatmap_HW)[..., :3]
    opacity_HW1 = STRENGTH * np.clip(heatmap_HW * 1.5, 0, 1)[..., None]
    gap_HW3 = np.ones_like(grey_HW3[:, : max(2, grey_HW3.shape[1] // 60)])
    axes.imshow(np.hstack([grey_HW3, gap_HW3, grey_HW3 * (1 - opacity_HW1) + colour_HW3 * opacity_HW1]))


def _caption(answers: Answers, index: int) -> str:
    has_it = answers.display.lower() if answers.truth_N[index] else f"no {answers.display.lower()}"
    return f"{answers.probability_N[index]:.3f} · truth: {has_it} · line {index + 2}"


def _without_frame(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)
