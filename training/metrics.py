"""Figures of merit of a yes/no finding. Takes probabilities and truths; gives numbers, with intervals where asked.

Every figure is a weighted one: a bootstrap draw is a row of weights, so that all draws are computed at once. A figure
that does not exist (the sensitivity without positives) is NaN inside and None in what `judged` returns.

Shapes: N images, D draws, U distinct probabilities, L network outputs. `truth_N` is 0 or 1, `probability_N` in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
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
        # Without negatives it is 1 whatever the model says.
        "average_precision": ratio((new_DU * precision_DU).sum(1), np.where(negative_D > 0, positive_D, 0)),
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
    return np.asarray(np.abs(_calibration_gaps(truth_N, probability_N, weight_DN)).sum(1))


def calibration_noise(truth_N: np.ndarray, probability_N: np.ndarray, weight_DN: np.ndarray) -> np.ndarray:
    """Return how far each draw's gaps lie from those of all images, shape (D,).

    Over many draws: the calibration error that so many patients show by chance alone, with perfect probabilities too.
    """
    of_all_1B = _calibration_gaps(truth_N, probability_N, np.ones((1, len(truth_N))))
    return np.asarray(np.abs(_calibration_gaps(truth_N, probability_N, weight_DN) - of_all_1B).sum(1))


def _calibration_gaps(truth_N: np.ndarray, probability_N: np.ndarray, weight_DN: np.ndarray) -> np.ndarray:
    """Return by how much the positives of each bin exceed its probabilities, in shares of all images: (D, BINS)."""
    bin_N = np.minimum((probability_N * BINS).astype(int), BINS - 1)
    gap_DB = weight_DN @ (np.eye(BINS)[bin_N] * (truth_N - probability_N)[:, None])
    return ratio(gap_DB, weight_DN.sum(1, keepdims=True))


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
        Counts; each figure as {"value", "low", "high"}, "ece" with "by_chance" too: what perfect probabilities would
        show on so many patients; "reliability" by tenths of the probability, which the page quotes;
        "operating_points" by name; "abstained". Rounded to four digits; None where a figure does not exist, and for
        the interval where there are fewer than two patients.
    """
    called = {name: probability_N >= threshold for name, threshold in points.items()}
    value, drawn = _with_draws(truth_N, probability_N, group_N, called, draws)
    has_interval = len(set(group_N)) > 1
    figures = {key: _estimate(value[key][0], drawn[key] if has_interval else np.array([])) for key in value}
    if has_interval:
        _widen_without_errors(figures, truth_N, called, np.asarray(group_N))
        figures["ece"] |= _chance_of_calibration(value["ece"][0], drawn["ece_by_chance"])
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
        return figures | {"ece_by_chance": calibration_noise(truth_N, probability_N, weight_DN)}

    value = of(np.ones((1, len(truth_N))))
    blocks = [of(weight_DN) for weight_DN in draws_of(group_N, draws=draws)]
    return value, {key: np.concatenate([block[key] for block in blocks]) for key in value}


def _estimate(value: float, drawn_D: np.ndarray) -> dict[str, float | None]:
    low, high = interval_of(drawn_D)
    exists = not math.isnan(value)
    return {"value": _plain(value), "low": _plain(low) if exists else None, "high": _plain(high) if exists else None}


def _widen_without_errors(
    figures: dict[str, dict[str, float | None]],
    truth_N: np.ndarray,
    called: Mapping[str, np.ndarray],
    group_N: np.ndarray,
) -> None:
    """Give figures of 0 or 1 the exact interval for so many patients: no draw shows an error that was not seen."""
    patients = {label: len(set(group_N[truth_N == label])) for label in (0, 1)}
    counts = {"auc": min(patients.values())}
    for name, is_called_N in called.items():
        counts[f"{name}/accuracy"] = len(set(group_N))
        counts[f"{name}/sensitivity"], counts[f"{name}/specificity"] = patients[1], patients[0]
        counts[f"{name}/precision"] = len(set(group_N[is_called_N]))
    for key, count in counts.items():
        if figures[key]["value"] == 1.0:
            figures[key]["low"] = _plain(lowest_share_without_errors(count))
        elif figures[key]["value"] == 0.0:
            figures[key]["high"] = _plain(1 - lowest_share_without_errors(count))


def _chance_of_calibration(error: float, noise_D: np.ndarray) -> dict[str, float | None]:
    """Return the lower end of the calibration error's interval, and the error by chance.

    Draws add noise to noise: with perfect probabilities most of theirs lie above the error that was read, and all of
    them above the true one, 0. What remains after the noise of 97.5 % of the draws is the lower end; it errs on the
    side of good calibration.
    """
    return {"low": _plain(max(0.0, error - np.percentile(noise_D, 97.5))), "by_chance": _plain(np.mean(noise_D))}


def lowest_share_without_errors(count: int) -> float:
    """Return the lower end of the exact 95 % interval of a share, where all of `count` are right.

    For the AUC, which counts pairs, `count` is that of the rarer class: an approximation on the safe side.

    References
    ----------
    Clopper, Pearson, Biometrika 1934; 26: 404-413
    """
    return float(0.025 ** (1 / count)) if count else math.nan


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
