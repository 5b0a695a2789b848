"""Figures of merit of a yes/no finding. Takes probabilities and truths; gives numbers, with intervals where asked.

Also what is chosen on validation: thresholds, the abstain band, temperature and bias. Every figure is a weighted one:
a bootstrap draw is a row of weights, so that all draws are computed at once. A figure that does not exist (the
sensitivity without positives) is NaN inside and None in what `judged` returns.

Shapes: N images, D draws, U distinct probabilities, L network outputs. `truth_N` is 0 or 1, `probability_N` in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

BINS = 15  # of the calibration error, equally wide
DRAWS = 1000
BLOCK = 2_000_000  # weights held at once: more draws than fit are taken in turns
AT_THRESHOLD = ("accuracy", "sensitivity", "specificity", "precision", "f1")
Figures = dict[str, np.ndarray]  # by name, one value per draw


def auc(truth_N: np.ndarray, probability_N: np.ndarray) -> float:
    """Return the area under the ROC curve; NaN where one class is missing."""
    return float(roc_auc_score(truth_N, probability_N)) if 0 < truth_N.sum() < len(truth_N) else math.nan


def figures_without_threshold(truth_N: np.ndarray, probability_N: np.ndarray, weight_DN: np.ndarray) -> Figures:
    """Return AUC, average precision, Brier score and expected calibration error, each of shape (D,)."""
    true_DU, false_DU = _calls(truth_N, probability_N, weight_DN)
    positive_D, negative_D = true_DU[:, -1], false_DU[:, -1]
    new_DU = np.diff(true_DU, axis=1, prepend=0)
    below_DU = np.diff(false_DU, axis=1, prepend=0) * (true_DU - new_DU / 2)  # a tie counts half
    precision_DU = ratio(true_DU, true_DU + false_DU, missing=0.0)
    squared_D = weight_DN @ (probability_N - truth_N) ** 2
    return {
        "auc": ratio(below_DU.sum(1), positive_D * negative_D),
        "average_precision": ratio((new_DU * precision_DU).sum(1), positive_D),
        "brier": ratio(squared_D, weight_DN.sum(1)),
        "ece": calibration_error(truth_N, probability_N, weight_DN),
    }


def figures_at(truth_N: np.ndarray, is_called_N: np.ndarray, weight_DN: np.ndarray) -> Figures:
    """Return accuracy, sensitivity, specificity, precision and F1 of calls, each of shape (D,)."""
    true_D = weight_DN @ (is_called_N * truth_N)
    false_D = weight_DN @ (is_called_N * (1 - truth_N))
    positive_D, all_D = weight_DN @ truth_N, weight_DN.sum(1)
    negative_D = all_D - positive_D
    return {
        "accuracy": ratio(true_D + negative_D - false_D, all_D),
        "sensitivity": ratio(true_D, positive_D),
        "specificity": ratio(negative_D - false_D, negative_D),
        "precision": ratio(true_D, true_D + false_D),
        "f1": ratio(2 * true_D, true_D + false_D + positive_D),
    }


def calibration_error(truth_N: np.ndarray, probability_N: np.ndarray, weight_DN: np.ndarray) -> np.ndarray:
    """Return the expected calibration error over equally wide bins of P(finding), shape (D,)."""
    bin_N = np.minimum((probability_N * BINS).astype(int), BINS - 1)
    gap_DB = weight_DN @ (np.eye(BINS)[bin_N] * (truth_N - probability_N)[:, None])
    return ratio(np.abs(gap_DB).sum(1), weight_DN.sum(1))


def reliability(truth_N: np.ndarray, probability_N: np.ndarray) -> list[dict[str, float | int]]:
    """Return, for each tenth of P(finding) in which images lie, how many there are and how many have the finding."""
    bin_N = np.minimum((probability_N * 10).astype(int), 9)
    return [
        {
            "low": int(b) / 10,
            "high": (int(b) + 1) / 10,
            "images": int(np.sum(bin_N == b)),
            "positive": int(truth_N[bin_N == b].sum()),
        }
        for b in np.unique(bin_N)
    ]


def rates(truth_N: np.ndarray, probability_N: np.ndarray, weight_DN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (false-positive rate, true-positive rate), shapes (D, U + 1): the ROC curve of each draw, from (0, 0)."""
    true_DU, false_DU = (np.pad(c, ((0, 0), (1, 0))) for c in _calls(truth_N, probability_N, weight_DN))
    return ratio(false_DU, false_DU[:, -1:]), ratio(true_DU, true_DU[:, -1:])


def _calls(truth_N: np.ndarray, probability_N: np.ndarray, weight_DN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (true calls, false calls), shapes (D, U), at each distinct probability as threshold, highest first."""
    order_N = np.argsort(-probability_N, kind="stable")
    weight_DN, truth_N, probability_N = weight_DN[:, order_N], truth_N[order_N], probability_N[order_N]
    last_U = np.flatnonzero(np.append(np.diff(probability_N) != 0, True))  # where a run of equal ones ends
    true_DU = np.cumsum(weight_DN * truth_N, axis=1)[:, last_U]
    return true_DU, np.cumsum(weight_DN, axis=1)[:, last_U] - true_DU


def ratio(part: np.ndarray, whole: np.ndarray, missing: float = math.nan) -> np.ndarray:
    """Return part / whole; `missing` where the whole is zero."""
    shape = np.broadcast_shapes(np.shape(part), np.shape(whole))
    return np.asarray(np.divide(part, whole, out=np.full(shape, missing), where=np.broadcast_to(whole, shape) > 0))


def draws_of(group_N: Sequence[str], *, draws: int = DRAWS, seed: int = 1) -> Iterator[np.ndarray]:
    """Give weight_DN in blocks, `draws` rows in all: as many patients as there are, drawn with all their images."""
    random = np.random.default_rng(seed)
    names, index_N = np.unique(np.asarray(group_N), return_inverse=True)
    count = len(names)
    rows = max(1, BLOCK // max(1, len(index_N)))
    for start in range(0, draws, rows):
        block = min(rows, draws - start)
        drawn = random.integers(0, count, (block, count)) + count * np.arange(block)[:, None]
        yield np.bincount(drawn.ravel(), minlength=block * count).reshape(block, count)[:, index_N].astype(float)


def judged(
    truth_N: np.ndarray,
    probability_N: np.ndarray,
    group_N: Sequence[str],
    points: Mapping[str, float | np.ndarray],
    *,
    band: tuple[float | np.ndarray, float | np.ndarray] | None = None,
    draws: int = DRAWS,
) -> dict[str, Any]:
    """Return all figures with 95 % bootstrap intervals, as `metrics.json` holds them.

    Parameters
    ----------
    group_N
        The patient of each image: patients are drawn, with all their images.
    points
        Thresholds by the name of the operating point, one for all images or one per image; PRESENT means
        probability >= threshold. The first one's figures also stand on top.
    band
        (low, high) of the abstain band, each one number or one per image.

    Returns
    -------
    dict
        Counts; each figure as {"value", "low", "high"}; "reliability" by tenths of the probability, which the page
        quotes; "operating_points" by name; "abstained". Rounded to four
        digits; None where a figure does not exist, and for the interval where there are fewer than two patients.
    """
    called = {name: probability_N >= threshold for name, threshold in points.items()}
    value, drawn = _with_draws(truth_N, probability_N, group_N, called, draws)
    has_interval = len(set(group_N)) > 1
    figures = {key: _estimate(value[key][0], drawn[key] if has_interval else np.array([])) for key in value}
    result: dict[str, Any] = {"images": len(truth_N), "patients": len(set(group_N)), "positive": int(truth_N.sum())}
    result |= {name: figures[name] for name in ("auc", "average_precision")}
    result |= {name: figures[f"{next(iter(points))}/{name}"] for name in AT_THRESHOLD}
    result |= {name: figures[name] for name in ("brier", "ece")}
    result["reliability"] = reliability(truth_N, probability_N)
    result["operating_points"] = {
        name: {"threshold": _plain(_most_frequent(points[name]))}
        | {key: figures[f"{name}/{key}"]["value"] for key in AT_THRESHOLD}
        | {"counts": _counts(truth_N, is_called_N)}
        | {"intervals": {key: [figures[f"{name}/{key}"][end] for end in ("low", "high")] for key in AT_THRESHOLD}}
        for name, is_called_N in called.items()
    }
    if band is not None:
        result["abstained"] = _abstained(truth_N, probability_N, next(iter(called.values())), band)
    return result


def _with_draws(
    truth_N: np.ndarray, probability_N: np.ndarray, group_N: Sequence[str], called: Mapping[str, np.ndarray], draws: int
) -> tuple[Figures, Figures]:
    """Return all figures of the images as they are, and of the draws."""

    def of(weight_DN: np.ndarray) -> Figures:
        figures = figures_without_threshold(truth_N, probability_N, weight_DN)
        for name, is_called_N in called.items():
            at_point = figures_at(truth_N, is_called_N, weight_DN)
            figures |= {f"{name}/{key}": value_D for key, value_D in at_point.items()}
        return figures

    value = of(np.ones((1, len(truth_N))))
    blocks = [of(weight_DN) for weight_DN in draws_of(group_N, draws=draws)]
    return value, {key: np.concatenate([block[key] for block in blocks]) for key in value}


def _estimate(value: float, drawn_D: np.ndarray) -> dict[str, float | None]:
    low, high = interval_of(drawn_D)
    exists = not math.isnan(value)
    return {"value": _plain(value), "low": _plain(low) if exists else None, "high": _plain(high) if exists else None}


def interval_of(drawn_D: np.ndarray) -> tuple[float, float]:
    """Return the 95 % percentile interval of the draws in which the figure exists; NaN where it never does."""
    found_D = drawn_D[~np.isnan(drawn_D)]
    if not len(found_D):
        return math.nan, math.nan
    low, high = np.percentile(found_D, [2.5, 97.5])
    return float(low), float(high)


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 4)


def _most_frequent(threshold: float | np.ndarray) -> float:
    values, counts = np.unique(threshold, return_counts=True)
    return float(values[counts.argmax()])


def _counts(truth_N: np.ndarray, is_called_N: np.ndarray) -> dict[str, int]:
    return {
        "true_positive": int(np.sum(is_called_N & (truth_N == 1))),
        "false_negative": int(np.sum(~is_called_N & (truth_N == 1))),
        "true_negative": int(np.sum(~is_called_N & (truth_N == 0))),
        "false_positive": int(np.sum(is_called_N & (truth_N == 0))),
    }


def _abstained(
    truth_N: np.ndarray,
    probability_N: np.ndarray,
    is_called_N: np.ndarray,
    band: tuple[float | np.ndarray, float | np.ndarray],
) -> dict[str, float | None]:
    is_inside_N = (probability_N >= band[0]) & (probability_N < band[1])
    outside = is_called_N[~is_inside_N] == truth_N[~is_inside_N]
    accuracy = float(np.mean(outside)) if len(outside) else math.nan
    return {"share": _plain(float(np.mean(is_inside_N))), "accuracy_outside": _plain(accuracy)}


def balanced_threshold(truth_N: np.ndarray, probability_N: np.ndarray) -> float:
    """Return the threshold with the highest sensitivity + specificity, in the middle of the flat top.

    Raises
    ------
    ValueError
        One class is missing.

    References
    ----------
    Youden, Cancer 1950; 3: 32-35
    """
    positive, negative = (np.sort(probability_N[truth_N == label]) for label in (1, 0))
    if not len(positive) or not len(negative):
        raise ValueError("a threshold needs images with and without the finding")
    cuts = np.unique(np.concatenate([[0.0], probability_N, [1.0]]))
    middles = (cuts[1:] + cuts[:-1]) / 2
    missed, cleared = np.searchsorted(positive, middles), np.searchsorted(negative, middles)
    youden = cleared / len(negative) - missed / len(positive)
    top = middles[youden >= youden.max() - 1e-12]
    return float(top[len(top) // 2])


def high_recall_threshold(truth_N: np.ndarray, probability_N: np.ndarray, sensitivity: float = 0.98) -> float:
    """Return the highest threshold that still finds that share of the positives, with room below.

    It lies in the middle between the last positive to be found and the next lower probability: served in bf16, the
    positive that a threshold was laid upon may fall under it.

    Raises
    ------
    ValueError
        There is no positive.
    """
    positive = np.sort(probability_N[truth_N == 1])
    if not len(positive):
        raise ValueError("a threshold needs images with the finding")
    may_miss = math.floor((1 - sensitivity) * len(positive) + 1e-9)
    last = positive[min(may_miss, len(positive) - 1)]
    return float((last + probability_N[probability_N < last].max(initial=0.0)) / 2)


def abstain_band(probability_N: np.ndarray, threshold: float, share: float) -> tuple[float, float]:
    """Return (low, high), equally far from the threshold in log odds, that hold that share of the images.

    The band is never narrower than .02 to either side: bf16 may move a probability by that much.
    """
    distance_N = np.abs(_log_odds(probability_N) - _log_odds(np.array(threshold)))
    width = float(np.quantile(distance_N, share))
    low, high = (1 / (1 + np.exp(-(_log_odds(np.array(threshold)) + side * width))) for side in (-1, 1))
    return max(0.0, min(float(low), threshold - 0.02)), min(1.0, max(float(high), threshold + 0.02))


def _log_odds(probability: np.ndarray) -> np.ndarray:
    clipped = np.clip(probability, 1e-9, 1 - 1e-9)
    return np.asarray(np.log(clipped / (1 - clipped)))


def fit_calibration(logit_NL: np.ndarray, label_N: np.ndarray) -> tuple[float, np.ndarray]:
    """Return (temperature, bias_L) so that softmax((logit + bias) / temperature) has the lowest log loss.

    Every class weighs the same, as in the training loss: the probabilities hold for equal prevalence, and the middle
    is a sensible threshold.

    References
    ----------
    Guo et al., On Calibration of Modern Neural Networks, ICML 2017 (temperature and bias)
    """
    logit, label = torch.from_numpy(logit_NL.astype(np.float64)), torch.from_numpy(label_N)
    images_L = torch.bincount(label, minlength=logit.shape[1]).double().clamp_min(1)
    parameters = torch.zeros(logit.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

    def bounded(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images that are told apart without error would drive both to infinity; only differences of biases count."""
        return values[0].clamp(-2.3, 2.3), torch.cat([torch.zeros(1), values[1:].clamp(-10, 10)])

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        log_scale, bias_L = bounded(parameters)
        value = torch.nn.functional.cross_entropy((logit + bias_L) * log_scale.exp(), label, 1 / images_L)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    log_scale, bias_L = bounded(parameters.detach())
    return float((-log_scale).exp()), bias_L.numpy()
