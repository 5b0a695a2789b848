"""Figures of merit of a yes/no finding. Takes probabilities and truths; gives numbers, with intervals where asked.

Shapes: N images. `truth_N` is 0 or 1, `probability_N` in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics import compute_roc_auc

Metric = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingPoint:
    """What happens at one threshold; PRESENT means probability >= threshold."""

    threshold: float
    accuracy: float
    sensitivity: float
    specificity: float


def auc(truth_N: np.ndarray, probability_N: np.ndarray) -> float:
    """Return the area under the ROC curve."""
    return float(compute_roc_auc(torch.from_numpy(probability_N.astype(np.float64)), torch.from_numpy(truth_N)))


def brier(truth_N: np.ndarray, probability_N: np.ndarray) -> float:
    """Return the mean squared difference of probability and truth."""
    return float(np.mean((probability_N - truth_N) ** 2))


def calibration_error(truth_N: np.ndarray, probability_N: np.ndarray, bins: int = 15) -> float:
    """Return the expected calibration error over equal-width bins of P(finding)."""
    bin_N = np.minimum((probability_N * bins).astype(int), bins - 1)
    gaps = [
        np.sum(bin_N == b) * abs(truth_N[bin_N == b].mean() - probability_N[bin_N == b].mean())
        for b in np.unique(bin_N)
    ]
    return float(np.sum(gaps) / len(truth_N))


def operating_point(truth_N: np.ndarray, probability_N: np.ndarray, threshold: float) -> OperatingPoint:
    """Return accuracy, sensitivity and specificity at a threshold."""
    is_called = probability_N >= threshold
    return OperatingPoint(
        threshold=float(threshold),
        accuracy=float(np.mean(is_called == truth_N)),
        sensitivity=float(is_called[truth_N == 1].mean()),
        specificity=float(1 - is_called[truth_N == 0].mean()),
    )


def balanced_threshold(truth_N: np.ndarray, probability_N: np.ndarray) -> float:
    """Return the threshold with the highest sensitivity + specificity, in the middle of the flat top.

    References
    ----------
    Youden, Cancer 1950; 3: 32-35
    """
    cuts = np.unique(np.concatenate([[0.0], probability_N, [1.0]]))
    middles = (cuts[1:] + cuts[:-1]) / 2
    points = [operating_point(truth_N, probability_N, cut) for cut in middles]
    youden = np.array([point.sensitivity + point.specificity for point in points])
    top = middles[youden >= youden.max() - 1e-12]
    return float(top[len(top) // 2])


def high_recall_threshold(truth_N: np.ndarray, probability_N: np.ndarray, sensitivity: float = 0.98) -> float:
    """Return the highest threshold that still finds that share of the positives."""
    positive = np.sort(probability_N[truth_N == 1])
    return float(positive[int(np.floor((1 - sensitivity) * len(positive)))])


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


def interval(
    metric: Metric,
    truth_N: np.ndarray,
    probability_N: np.ndarray,
    group_N: list[str],
    *,
    draws: int = 1000,
    seed: int = 1,
) -> tuple[float, float]:
    """Return the 95 % bootstrap interval; patients are drawn, with all their images."""
    random = np.random.default_rng(seed)
    names, group_index = np.unique(group_N, return_inverse=True)
    members = [np.flatnonzero(group_index == index) for index in range(len(names))]
    values = []
    for _ in range(draws):
        drawn = np.concatenate([members[index] for index in random.integers(0, len(members), len(members))])
        if 0 < truth_N[drawn].sum() < len(drawn):
            values.append(metric(truth_N[drawn], probability_N[drawn]))
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
