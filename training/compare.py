"""Two models on the same images: is the new one better? Takes the answers of both; gives differences with intervals.

The difference in AUC comes twice: by DeLong, which takes images as independent, and by a bootstrap that draws
patients; the second decides, for images of one patient are alike. Shapes: N images, K models, D draws.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.stats import binomtest, norm, rankdata

from training import metrics
from training.answers import Answers, is_in_subgroup
from training.items import DataError

FEW = 20  # positives or negatives: with fewer, a difference says little
LABELS = {"accuracy": None, "sensitivity": 1, "specificity": 0}  # whose right answers each counts; None is all


def delong(truth_N: np.ndarray, probability_KN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (auc_K, covariance_KK) of correlated ROC curves.

    References
    ----------
    DeLong, DeLong, Clarke-Pearson, Biometrics 1988; 44: 837-845.
    Sun, Xu, Fast Implementation of DeLong's Algorithm, IEEE Signal Processing Letters 2014; 21: 1389-1393.
    """
    positive_KN, negative_KN = probability_KN[:, truth_N == 1], probability_KN[:, truth_N == 0]
    positives, negatives = positive_KN.shape[1], negative_KN.shape[1]
    together = rankdata(np.concatenate([positive_KN, negative_KN], axis=1), axis=1)
    below_KN = (together[:, :positives] - rankdata(positive_KN, axis=1)) / negatives
    above_KN = 1 - (together[:, positives:] - rankdata(negative_KN, axis=1)) / positives
    covariance_KK = np.cov(below_KN) / positives + np.cov(above_KN) / negatives
    return below_KN.mean(1), covariance_KK


def delong_p_value(truth_N: np.ndarray, first_N: np.ndarray, second_N: np.ndarray) -> float:
    """Return the two-sided p-value of equal AUCs; NaN with fewer than two images of a class."""
    if min(truth_N.sum(), (1 - truth_N).sum()) < 2:
        return math.nan
    auc_K, covariance_KK = delong(truth_N, np.stack([first_N, second_N]))
    variance = float(covariance_KK[0, 0] + covariance_KK[1, 1] - 2 * covariance_KK[0, 1])
    difference = float(auc_K[0] - auc_K[1])
    if variance <= 1e-15:  # both rank every image alike, or without a single error
        return 1.0 if difference == 0 else 0.0
    return float(2 * norm.sf(abs(difference) / math.sqrt(variance)))


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p-value that both are right equally often, from the images where only one is.

    References
    ----------
    McNemar, Psychometrika 1947; 12: 153-157 (the exact form is the binomial test)
    """
    return float(binomtest(only_first, only_first + only_second).pvalue) if only_first + only_second else 1.0


def difference_in_auc(first: Answers, second: Answers, is_chosen_N: np.ndarray) -> dict[str, Any]:
    """Return both AUCs, first minus second with the interval from drawing patients, and DeLong's p-value."""
    truth_N, group_N = first.truth_N[is_chosen_N], list(np.array(first.groups)[is_chosen_N])
    probability_KN = [model.probability_N[is_chosen_N] for model in (first, second)]
    drawn: list[np.ndarray] = []
    for weight_DN in metrics.draws_of(group_N):
        auc_KD = [metrics.figures_without_threshold(truth_N, p_N, weight_DN)["auc"] for p_N in probability_KN]
        drawn.append(auc_KD[0] - auc_KD[1])
    low, high = metrics.interval_of(np.concatenate(drawn))
    auc_K = [metrics.auc(truth_N, probability_N) for probability_N in probability_KN]
    values = {
        "first": auc_K[0],
        "second": auc_K[1],
        "difference": auc_K[0] - auc_K[1],
        "low": low,
        "high": high,
        "p_value_delong": delong_p_value(truth_N, *probability_KN),
    }
    counts = {"images": len(truth_N), "patients": len(set(group_N)), "positive": int(truth_N.sum())}
    return counts | {key: None if math.isnan(value) else _rounded(key, value) for key, value in values.items()}


def compared(first: Answers, second: Answers) -> dict[str, Any]:
    """Return what tells the two models apart: AUC, right answers at each one's default threshold, subgroups, a verdict.

    Raises
    ------
    DataError
        The models did not answer the same question on the same images.
    """
    same = [one.sha256 for one in first.items] == [one.sha256 for one in second.items]
    if not same or not np.array_equal(first.truth_N, second.truth_N):
        raise DataError(f"the two models do not answer the same question about {first.finding} on the same images")
    everything = np.ones(len(first.items), bool)
    subgroups = {
        grouping: {value: difference_in_auc(first, second, is_in_N) for value, is_in_N in values.items()}
        for grouping, values in is_in_subgroup(first).items()
        if grouping != "population"  # a model's own: the other may know others
    }
    auc = difference_in_auc(first, second, everything)
    counts = {name: _right(first, second, label) for name, label in LABELS.items()}
    return {"verdict": verdict(auc), "auc": auc, **counts, "subgroups": subgroups, "worse_on": _worse(subgroups)}


def _right(first: Answers, second: Answers, label: int | None) -> dict[str, Any]:
    """Return how often each is right at its default threshold, on all images or those of one class."""
    chosen = np.ones(len(first.items), bool) if label is None else first.truth_N == label
    is_right_KN = [(model.is_called() == model.truth_N)[chosen] for model in (first, second)]
    only_first, only_second = (int(np.sum(one & ~other)) for one, other in (is_right_KN, reversed(is_right_KN)))
    share_K = [round(float(is_right_N.mean()), 4) if len(is_right_N) else None for is_right_N in is_right_KN]
    return {
        "first": share_K[0],
        "second": share_K[1],
        "only_first_right": only_first,
        "only_second_right": only_second,
        "p_value_mcnemar": _rounded("p", mcnemar_p_value(only_first, only_second)),
    }


def verdict(auc: dict[str, Any]) -> str:
    """Return "better", "worse" or "no difference shown": what the interval of the difference in AUC allows to say."""
    if auc["low"] is None or auc["low"] <= 0 <= auc["high"]:
        return "no difference shown"
    return "better" if auc["low"] > 0 else "worse"


def _worse(subgroups: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """Return the subgroups, true parts and large enough to say so, on which the first model is worse."""
    return [
        f"{grouping} {value}"
        for grouping, values in subgroups.items()
        for value, auc in values.items()
        if len(values) > 1 and verdict(auc) == "worse" and is_large_enough(auc)
    ]


def is_large_enough(counts: dict[str, Any]) -> bool:
    """Return whether there are images enough of both classes to say anything."""
    return bool(min(counts["positive"], counts["images"] - counts["positive"]) >= FEW)


def _rounded(key: str, value: float) -> float:
    return float(f"{value:.3g}") if key.startswith("p") else round(value, 4)
