"""What is chosen on validation: temperature and bias, thresholds, the abstain band. Pure.

Shapes: N images, L network outputs, C cuts. `truth_N` is 0 or 1, `probability_N` in [0, 1].
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.special import ndtr

CUTS = 1001  # tried for the balanced threshold, equally far apart in log odds


def balanced_threshold(truth_N: np.ndarray, probability_N: np.ndarray) -> float:
    """Return the threshold with the highest sensitivity + specificity of the smoothed distributions.

    The highest point of the counted curve hangs on single images (the highest-scoring negative, say) and loses up to
    five times as much on new patients; so each class's log odds are smoothed by a Gaussian kernel first. Rounded to two
    digits; near 0 and 1 to four, and never to 0 or 1, which would call everything, or nothing.

    Raises
    ------
    ValueError
        One class is missing.

    References
    ----------
    Youden, Cancer 1950; 3: 32-35
    Fluss, Faraggi, Reiser, Biometrical Journal 2005; 47: 458-472 (the kernel estimate)
    """
    positive, negative = (log_odds(probability_N[truth_N == label]) for label in (1, 0))
    if not len(positive) or not len(negative):
        raise ValueError("a threshold needs images with and without the finding")
    cuts = np.linspace(min(positive.min(), negative.min()), max(positive.max(), negative.max()), CUTS)
    youden = _smoothed_share_below(negative, cuts) - _smoothed_share_below(positive, cuts)
    top = cuts[youden >= youden.max() - 1e-9]  # flat where the classes lie far apart: its middle
    threshold = float(1 / (1 + np.exp(-top[len(top) // 2])))
    return round(threshold, 2) if 0.01 <= threshold <= 0.99 else min(max(round(threshold, 4), 0.0001), 0.9999)


def _smoothed_share_below(value_N: np.ndarray, cut_C: np.ndarray) -> np.ndarray:
    """Return the share of the values below each cut, each value a Gaussian of Silverman's width."""
    deviation = float(np.std(value_N))
    quartiles = float(np.subtract(*np.percentile(value_N, [75, 25]))) / 1.349
    width = 0.9 * min(deviation, quartiles or deviation) * len(value_N) ** -0.2
    return np.array([ndtr((cut - value_N) / max(width, 1e-3)).mean() for cut in cut_C])


def high_recall_threshold(truth_N: np.ndarray, probability_N: np.ndarray, sensitivity: float = 0.98) -> float:
    """Return the highest threshold that still finds that share of the positives, with room below.

    It lies in the middle between the last positive to be found and the next lower probability: served in bf16, the
    positive that a threshold was laid upon may fall under it. Rounded down to four digits, or it might find fewer.

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
    middle = float((last + probability_N[probability_N < last].max(initial=0.0)) / 2)
    return math.floor(10_000 * middle) / 10_000


def abstain_band(probability_N: np.ndarray, threshold: float, share: float) -> tuple[float, float]:
    """Return (low, high), equally far from the threshold in log odds, that hold that share of the images.

    The band is never narrower than .02 to either side: bf16 may move a probability by that much.
    """
    distance_N = np.abs(log_odds(probability_N) - log_odds(np.array(threshold)))
    width = float(np.quantile(distance_N, share))
    low, high = (1 / (1 + np.exp(-(log_odds(np.array(threshold)) + side * width))) for side in (-1, 1))
    return max(0.0, min(float(low), threshold - 0.02)), min(1.0, max(float(high), threshold + 0.02))


def log_odds(probability: np.ndarray) -> np.ndarray:
    """Return the natural logarithm of p / (1 - p), finite for 0 and 1 too."""
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
