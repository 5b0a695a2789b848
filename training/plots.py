"""Pictures of how good a model is. Takes Answers or plain curves; gives PNG files.

Figures are made without pyplot, so that no global state is left; nothing in them names a patient or a file.
Shapes: N images, D bootstrap draws, H rows, W columns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, MultipleLocator
from sklearn.metrics import precision_recall_curve

from training import metrics
from training.answers import Answers
from training.items import DataError

BLUE, ORANGE, GREY, LIGHT = "#2b6cb0", "#c05621", "#718096", "#e2e8f0"
SECOND = "#805ad5"  # the model that the first is compared with
MARKS = "osD^v"  # of the operating points, in their order
STYLE: dict[Any, Any] = {
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.titlesize": 11.0,
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "savefig.dpi": 130,
}
BAND_DRAWS = 500
GRID = np.linspace(0, 1, 201)
RELIABILITY_BINS = 10
FEW = 10  # images of a step: fewer are drawn hollow
OF_SOURCE = "validation_auc_"  # how metrics.jsonl names the AUC of one source
CLOSE = 0.95  # AUC from which a curve hides in the corner, which is then enlarged


def has_both(answers: Answers) -> bool:
    """Return whether there are images with and without the finding: without both there is no curve."""
    return bool(0 < answers.truth_N.sum() < len(answers.truth_N))


def roc(path: Path, answers: Answers, other: Answers | None = None, names: Sequence[str] = ("", "")) -> None:
    """Draw the ROC curve with its 95 % band and operating points, and the curve of another model beside it."""
    with mpl.rc_context(STYLE):
        figure, axes = _square("ROC: what is found against what is called in vain")
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="chance")
        shown = {names[1]: (other, SECOND)} if other is not None else {}
        _curves(axes, answers, {**shown, names[0] if other is not None else "": (answers, BLUE)})
        if _value(answers, "auc") >= CLOSE:
            corner = axes.inset_axes((0.4, 0.33, 0.58, 0.52), xlim=(0, 0.2), ylim=(0.8, 1.002))
            corner.yaxis.set_major_locator(MultipleLocator(0.05))
            corner.grid(color=LIGHT, linewidth=0.8)
            _curves(corner, answers, {**shown, "": (answers, BLUE)})
            axes.indicate_inset_zoom(corner, edgecolor=GREY)
        axes.set(xlabel="False-positive rate (1 - specificity)", ylabel="Sensitivity")
        axes.legend(loc="lower right")
        figure.savefig(path)


def _curves(axes: Axes, answers: Answers, shown: Mapping[str, tuple[Answers, str]]) -> None:
    """Draw the band and the operating points of the answers, and a curve of each model by name."""
    low, high = _roc_band(answers)
    axes.fill_between(GRID, low, high, color=BLUE, alpha=0.15, linewidth=0, label="95 % band")
    for name, (one, colour) in shown.items():
        false_DU, true_DU = metrics.rates(one.truth_N, one.probability_N, np.ones((1, len(one.truth_N))))
        label = f"{name}{', ' * bool(name)}AUC {_value(one, 'auc'):.3f}"
        axes.plot(false_DU[0], true_DU[0], color=colour, linewidth=2, label=label)
    for point, mark in zip(answers.threshold_N, MARKS, strict=False):
        found, vain = (float(answers.is_called(point)[answers.truth_N == label].mean()) for label in (1, 0))
        label = f"{_words(point)}: {_percent(found)} found, {_percent(vain)} in vain"
        axes.plot(vain, found, mark, color=ORANGE, markeredgecolor="white", markersize=9, label=label)


def _roc_band(answers: Answers) -> tuple[np.ndarray, np.ndarray]:
    drawn = []
    for weight_DN in metrics.draws_of(answers.groups, draws=BAND_DRAWS):
        false_DU, true_DU = metrics.rates(answers.truth_N, answers.probability_N, weight_DN)
        drawn += [np.interp(GRID, x_U, y_U) for x_U, y_U in zip(false_DU, true_DU, strict=True)]
    low, high = np.nanpercentile(drawn, [2.5, 97.5], axis=0)
    return low, high


def precision_recall(path: Path, answers: Answers) -> None:
    """Draw precision against sensitivity, with the share of positives as the floor."""
    with mpl.rc_context(STYLE):
        figure, axes = _square("Precision and recall: how many calls are right")
        precision, recall, _ = precision_recall_curve(answers.truth_N, answers.probability_N)
        share = float(answers.truth_N.mean())
        area = _value(answers, "average_precision")
        axes.axhline(share, color=GREY, linewidth=1, linestyle=":", label=f"call everything: {_percent(share)}")
        axes.step(recall, precision, where="post", color=BLUE, linewidth=2, label=f"average precision {area:.3f}")
        for point, mark in zip(answers.threshold_N, MARKS, strict=False):
            is_called = answers.is_called(point)
            if is_called.any():
                right, found = answers.truth_N[is_called].mean(), is_called[answers.truth_N == 1].mean()
                label = f"{_words(point)}: {_percent(float(right))} of the calls are right"
                axes.plot(found, right, mark, color=ORANGE, markeredgecolor="white", markersize=9, label=label)
        axes.set(xlabel="Recall (sensitivity)", ylabel="Precision (positive predictive value)")
        axes.legend(loc="lower left")
        figure.savefig(path)


def confusion(path: Path, answers: Answers) -> None:
    """Draw the confusion matrix at each operating point: counts, and the share of their true class."""
    with mpl.rc_context(STYLE | {"axes.spines.left": False, "axes.spines.bottom": False}):
        points = list(answers.threshold_N)
        figure = Figure(figsize=(3.5 * len(points), 3.4), layout="constrained")
        for axes, point in zip(figure.subplots(1, len(points), squeeze=False)[0], points, strict=True):
            called = answers.is_called(point).astype(int)
            count = np.array([[np.sum((answers.truth_N == t) & (called == c)) for c in (0, 1)] for t in (0, 1)])
            share = count / np.maximum(count.sum(1, keepdims=True), 1)
            axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
            for t, c in np.ndindex(2, 2):
                colour = "white" if share[t, c] > 0.55 else "#1a202c"
                axes.text(c, t - 0.06, f"{count[t, c]}", ha="center", va="center", color=colour, fontsize=17)
                axes.text(c, t + 0.22, _percent(share[t, c]), ha="center", va="center", color=colour)
            axes.set_xticks([0, 1], ["called absent", "called present"])
            axes.set_yticks(
                [0, 1], [f"no {answers.display.lower()}", answers.display.lower()], rotation=90, va="center"
            )
            axes.tick_params(length=0)
            axes.set_title(f"{_words(point)} ({_thresholds(answers, point)})")
        figure.savefig(path)


def reliability(path: Path, answers: Answers) -> None:
    """Draw how often images of each probability have the finding, with 95 % intervals, and how many there are."""
    bin_N = np.minimum((answers.probability_N * RELIABILITY_BINS).astype(int), RELIABILITY_BINS - 1)
    is_in_NB = np.eye(RELIABILITY_BINS)[bin_N]
    drawn = [
        metrics.ratio(weight_DN @ (is_in_NB * answers.truth_N[:, None]), weight_DN @ is_in_NB)
        for weight_DN in metrics.draws_of(answers.groups, draws=BAND_DRAWS)
    ]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 5.6), layout="constrained")
        axes, below = figure.subplots(2, 1, height_ratios=[4, 1], sharex=True)
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="probabilities mean what they say")
        for b in np.unique(bin_N):
            mean, share = answers.probability_N[bin_N == b].mean(), answers.truth_N[bin_N == b].mean()
            low, high = metrics.interval_of(np.concatenate(drawn)[:, b])
            count = int(np.sum(bin_N == b))
            colour = BLUE if count >= FEW else GREY
            axes.plot([mean, mean], [low, high], color=colour, linewidth=1.5, alpha=0.6)
            axes.plot(mean, share, "o", color=colour, markerfacecolor=BLUE if count >= FEW else "white", markersize=8)
            axes.annotate(f"{count}", (mean, share), (7, -3), textcoords="offset points", color=GREY, fontsize=9)
        axes.plot([], [], "o-", color=BLUE, label=f"in ten steps; calibration error {_value(answers, 'ece'):.3f}")
        axes.plot([], [], "o", color=GREY, markerfacecolor="white", label=f"fewer than {FEW} images")
        axes.set(ylabel=f"Share with {answers.display.lower()}", ylim=(-0.03, 1.03), xlim=(-0.02, 1.02))
        axes.set_title("Reliability: is 80 % right in 8 of 10?")
        axes.legend(loc="lower right")
        below.hist(answers.probability_N, bins=RELIABILITY_BINS, range=(0, 1), color=LIGHT, edgecolor=GREY)
        below.set(xlabel="Probability given", ylabel="Images")
        figure.savefig(path)


def histogram(path: Path, answers: Answers) -> None:
    """Draw the probabilities of both classes with thresholds and abstain band, one panel per population."""
    populations = list(dict.fromkeys(answers.population_N))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, max(5.6, 1 + 2.8 * len(populations))), layout="constrained")
        panels = figure.subplots(len(populations), 1, squeeze=False, sharex=True)[:, 0]
        for axes, population in zip(panels, populations, strict=True):
            chosen = np.array([name == population for name in answers.population_N])
            _scores(axes, answers, chosen)
            axes.set_title(
                f"Scores, judged as {population}"
                if len(populations) > 1
                else f"Probability of {answers.display.lower()}"
            )
        figure.savefig(path)


def _scores(axes: Axes, answers: Answers, chosen: np.ndarray) -> None:
    first = int(np.flatnonzero(chosen)[0])
    low, high = answers.low_N[first], answers.high_N[first]
    axes.axvspan(
        low, high, facecolor=LIGHT, edgecolor=GREY, linewidth=0.5, zorder=0, label=f"abstain {low:.2f} to {high:.2f}"
    )
    for label, colour, name in ((0, BLUE, f"no {answers.display.lower()}"), (1, ORANGE, answers.display.lower())):
        values = answers.probability_N[chosen & (answers.truth_N == label)]
        axes.hist(values, bins=50, range=(0, 1), color=colour, alpha=0.55, label=f"{name} ({len(values)})")
    for point, style in zip(answers.threshold_N, ("-", "--", ":", "-."), strict=False):
        threshold = answers.threshold_N[point][first]
        axes.axvline(threshold, color="#1a202c", linestyle=style, label=f"{_words(point)} {threshold:.2f}")
    axes.set_yscale("symlog", linthresh=10)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set(xlim=(0, 1), ylabel="Images (log)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)


def history(path: Path, run: Path) -> None:
    """Draw loss, accuracy and learning rate over the epochs of a training run.

    Raises
    ------
    DataError
        `run/metrics.jsonl` cannot be read, or holds no epoch.
    """
    try:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines() if line]
    except (OSError, ValueError) as error:
        raise DataError(f"{run / 'metrics.jsonl'} is not what a training run writes: {error}") from error
    epochs = list({line["epoch"]: line for line in lines}.values())  # a resumed run may have written one twice
    if not epochs:
        raise DataError(f"{run / 'metrics.jsonl'} holds no epoch yet")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12, 3.6), layout="constrained")
        loss, accuracy, rate = figure.subplots(1, 3)
        _lines(loss, epochs, {"loss": (BLUE, "training"), "validation_loss": (ORANGE, "validation")})
        shares = {
            "training_accuracy": (BLUE, "training accuracy"),
            "validation_accuracy": (ORANGE, "validation accuracy"),
            "validation_auc": (SECOND, "validation AUC"),
        } | {key: (GREY, f"AUC, {key.removeprefix(OF_SOURCE)}") for key in epochs[-1] if key.startswith(OF_SOURCE)}
        _lines(accuracy, epochs, shares)
        _lines(rate, epochs, {"learning_rate": (BLUE, "learning rate")})
        rate.set_yscale("log")
        for axes, title in ((loss, "Loss"), (accuracy, "Accuracy and AUC"), (rate, "Learning rate")):
            _mark_sizes(axes, epochs)
            axes.set(title=title, xlabel="Epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.legend()
        figure.savefig(path)


def _lines(axes: Axes, epochs: list[dict[str, Any]], keys: dict[str, tuple[str, str]]) -> None:
    for (key, (colour, label)), mark in zip(keys.items(), cycle(MARKS), strict=False):
        known = [(line["epoch"], line[key]) for line in epochs if line.get(key) is not None]
        if known:
            axes.plot(*zip(*known, strict=True), f"{mark}-", color=colour, markersize=4, label=label)


def _mark_sizes(axes: Axes, epochs: list[dict[str, Any]]) -> None:
    """Mark where the images grow: a step in the curves there is no fault."""
    for before, after in pairwise(epochs):
        if before.get("size") != after.get("size"):
            axes.axvline(after["epoch"] - 0.5, color=GREY, linewidth=1, linestyle=":", label=f"{after['size']} px")


def _square(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.6, 5.6), layout="constrained")
    axes: Axes = figure.subplots()
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", title=title)
    axes.grid(color=LIGHT, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _thresholds(answers: Answers, point: str) -> str:
    values = sorted(set(answers.thresholds()[point].values()))
    return "threshold " + ", ".join(f"{value:.2f}" for value in values)


def _value(answers: Answers, figure: str) -> float:
    weight_DN = np.ones((1, len(answers.truth_N)))
    value = metrics.figures_without_threshold(answers.truth_N, answers.probability_N, weight_DN)[figure][0]
    return round(float(value), 4)  # as in metrics.json, so that three digits are the same everywhere


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _words(point: str) -> str:
    return point.replace("_", " ").capitalize()
