"""Figures are those of scikit-learn, intervals draw patients, and what is chosen on validation keeps its promise."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm
from sklearn import metrics as reference

from training import calibration, metrics
from training.compare import delong, delong_p_value, mcnemar_p_value


def some_scores(count: int, *, seed: int = 1, skill: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Return truths and probabilities, with ties."""
    random = np.random.default_rng(seed)
    truth_N = random.integers(0, 2, count)
    return truth_N, np.round(1 / (1 + np.exp(-random.normal(0, 1, count) - skill * (truth_N - 0.5))), 2)


def alone(count: int) -> list[str]:
    return [str(index) for index in range(count)]


def judged(truth: list[int], probability: list[float], **more: object) -> dict[str, object]:
    return metrics.judged(np.array(truth), np.array(probability), alone(len(truth)), {"balanced": 0.5}, draws=50)


def test_figures_of_a_known_case() -> None:
    figures = judged([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    expected = {"auc": 0.75, "accuracy": 0.75, "sensitivity": 0.5, "specificity": 1.0, "precision": 1.0, "f1": 0.6667}
    assert {name: figures[name]["value"] for name in expected} == expected  # type: ignore[index]
    assert figures["brier"]["value"] == pytest.approx(np.mean([0.01, 0.16, 0.4225, 0.04]), abs=1e-4)  # type: ignore[index]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_draw_has_the_figures_of_scikit_learn(seed: int) -> None:
    truth_N, probability_N = some_scores(200, seed=seed)
    is_called_N = probability_N >= 0.4
    weight_DN = np.concatenate([*metrics.draws_of([str(i // 3) for i in range(200)], draws=4, seed=seed)])
    found = metrics.figures_without_threshold(truth_N, probability_N, weight_DN)
    found |= metrics.figures_at(truth_N, is_called_N, weight_DN)
    for row, weight_N in enumerate(weight_DN):
        expected = {
            "auc": reference.roc_auc_score(truth_N, probability_N, sample_weight=weight_N),
            "average_precision": reference.average_precision_score(truth_N, probability_N, sample_weight=weight_N),
            "brier": reference.brier_score_loss(truth_N, probability_N, sample_weight=weight_N),
            "accuracy": reference.accuracy_score(truth_N, is_called_N, sample_weight=weight_N),
            "sensitivity": reference.recall_score(truth_N, is_called_N, sample_weight=weight_N),
            "specificity": reference.recall_score(truth_N, is_called_N, sample_weight=weight_N, pos_label=0),
            "precision": reference.precision_score(truth_N, is_called_N, sample_weight=weight_N),
            "f1": reference.f1_score(truth_N, is_called_N, sample_weight=weight_N),
        }
        assert {name: found[name][row] for name in expected} == pytest.approx(expected)


def test_roc_curve_is_that_of_scikit_learn() -> None:
    truth_N, probability_N = some_scores(200)
    false_DU, true_DU = metrics.rates(truth_N, probability_N, np.ones((1, 200)))
    false, true, _ = reference.roc_curve(truth_N, probability_N, drop_intermediate=False)
    np.testing.assert_allclose(false_DU[0], false)
    np.testing.assert_allclose(true_DU[0], true)


def test_calibration_error_of_known_cases() -> None:
    one = np.ones((1, 100))
    assert metrics.calibration_error(np.array([0, 1] * 50), np.full(100, 0.5), one)[0] == pytest.approx(0.0)
    assert metrics.calibration_error(np.ones(100), np.full(100, 0.7), one)[0] == pytest.approx(0.3)
    half_N, probability_N = np.repeat([1, 0], 50), np.repeat([0.9, 0.3], 50)
    assert metrics.calibration_error(half_N, probability_N, one)[0] == pytest.approx((0.1 + 0.3) / 2)


@pytest.mark.parametrize(
    ("truth", "missing"),
    [
        ([1, 1, 1], {"auc", "average_precision", "specificity"}),
        ([0, 0, 0], {"auc", "average_precision", "sensitivity", "precision", "f1"}),
    ],
)
def test_figure_that_does_not_exist_is_null(truth: list[int], missing: set[str]) -> None:
    figures = judged(truth, [0.1, 0.2, 0.3])
    json.dumps(figures, allow_nan=False)
    single = {name: figure for name, figure in figures.items() if isinstance(figure, dict) and "value" in figure}
    assert missing <= {name for name, figure in single.items() if figure["value"] is None}
    assert all(figure["low"] is None for figure in single.values() if figure["value"] is None)
    assert figures["brier"]["value"] is not None  # type: ignore[index]


def test_one_patient_has_no_interval() -> None:
    figures = metrics.judged(np.array([0, 1]), np.array([0.2, 0.9]), ["a", "a"], {"balanced": 0.5}, draws=20)
    assert figures["auc"] == {"value": 1.0, "low": None, "high": None}
    json.dumps(figures, allow_nan=False)


def test_interval_draws_patients_not_images() -> None:
    random = np.random.default_rng(1)
    truth_N = np.repeat(random.integers(0, 2, 40), 10)
    probability_N = np.repeat(random.random(40), 10) * 0.5 + 0.25 * truth_N
    patients = [str(index // 10) for index in range(400)]
    narrow, wide = (
        metrics.judged(truth_N, probability_N, groups, {"balanced": 0.5})["auc"] for groups in (alone(400), patients)
    )
    assert narrow["value"] == wide["value"]
    assert wide["high"] - wide["low"] > 1.5 * (narrow["high"] - narrow["low"])


def test_draws_hold_every_patient_whole_and_as_many_as_there_are() -> None:
    groups = ["a", "b", "b", "c", "c", "c"]
    weight_DN = np.concatenate([*metrics.draws_of(groups, draws=30)])
    assert weight_DN.shape == (30, 6)
    np.testing.assert_array_equal(weight_DN[:, 1], weight_DN[:, 2])
    np.testing.assert_array_equal(weight_DN[:, 0] + weight_DN[:, 1] + weight_DN[:, 3], 3)


def test_a_share_without_an_error_still_has_an_interval() -> None:
    truth_N = np.repeat([0, 1], [30, 60])
    probability_N = np.where(truth_N, 0.9, 0.1)
    figures = metrics.judged(truth_N, probability_N, [str(i // 2) for i in range(90)], {"balanced": 0.5}, draws=50)
    ends = {name: (figures[name]["low"], figures[name]["high"]) for name in ("auc", "specificity", "sensitivity")}
    assert ends["specificity"] == (pytest.approx(0.025 ** (1 / 15), abs=1e-4), 1.0)  # of 15 patients, not 30 images
    assert ends["sensitivity"] == (pytest.approx(0.025 ** (1 / 30), abs=1e-4), 1.0)
    assert ends["auc"] == ends["specificity"]
    assert figures["operating_points"]["balanced"]["intervals"]["specificity"] == list(ends["specificity"])
    nothing = metrics.judged(truth_N, probability_N, [str(i) for i in range(90)], {"balanced": 0.95}, draws=50)
    assert nothing["sensitivity"] == {"value": 0.0, "low": 0.0, "high": pytest.approx(1 - 0.025 ** (1 / 60), abs=1e-4)}


def test_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    hits = 0
    for seed in range(60):
        truth_N = np.random.default_rng(seed).random(300) < 0.8  # right answers, so that .8 is the accuracy
        figures = metrics.judged(truth_N.astype(int), np.ones(300), alone(300), {"balanced": 0.5}, draws=300)
        hits += figures["accuracy"]["low"] <= 0.8 <= figures["accuracy"]["high"]
    assert 52 <= hits <= 60


def calibrated_figures(seed: int, sharpness: float, images: int = 135) -> dict[str, Any]:
    """Return the figures of probabilities that are right with a sharpness of 1, too sure above."""
    random = np.random.default_rng(seed)
    log_odds_N = random.normal(0, 1.6, images)
    truth_N = (random.random(images) < 1 / (1 + np.exp(-log_odds_N))).astype(int)
    return metrics.judged(
        truth_N, 1 / (1 + np.exp(-sharpness * log_odds_N)), alone(images), {"balanced": 0.5}, draws=200
    )


def test_interval_of_the_calibration_error_holds_zero_for_perfect_probabilities() -> None:
    errors = [calibrated_figures(seed, 1.0)["ece"] for seed in range(40)]
    assert sum(error["low"] == 0.0 for error in errors) >= 36
    assert all(error["low"] <= error["value"] <= error["high"] for error in errors)
    read, chance = (float(np.mean([error[key] for error in errors])) for key in ("value", "by_chance"))
    assert 0.08 < read < 0.13
    assert chance == pytest.approx(read, rel=0.15)


def test_interval_of_the_calibration_error_shows_probabilities_that_are_too_sure() -> None:
    errors = [calibrated_figures(seed, 4.0, images=685)["ece"] for seed in range(10)]
    assert all(error["low"] > 0.05 for error in errors)


def test_intervals_are_quick_and_repeatable() -> None:
    truth_N, probability_N = some_scores(700)
    points: dict[str, float | np.ndarray] = {"balanced": 0.5, "high_recall": np.full(700, 0.2)}
    started = time.perf_counter()
    figures = metrics.judged(truth_N, probability_N, alone(700), points, band=(0.4, 0.6))
    assert time.perf_counter() - started < 3
    assert figures == metrics.judged(truth_N, probability_N, alone(700), points, band=(0.4, 0.6))


def test_threshold_of_each_image_counts() -> None:
    threshold_N = np.array([0.3, 0.3, 0.7, 0.7])
    figures = metrics.judged(
        np.array([1, 0, 1, 0]), np.array([0.4, 0.2, 0.8, 0.6]), alone(4), {"balanced": threshold_N}, draws=10
    )
    point = figures["operating_points"]["balanced"]
    assert (point["accuracy"], point["sensitivity"], point["specificity"]) == (1.0, 1.0, 1.0)
    assert point["counts"] == {"true_positive": 2, "false_negative": 0, "true_negative": 2, "false_positive": 0}


def test_abstained_is_what_lies_in_the_band() -> None:
    truth_N, probability_N = np.array([0, 1, 0, 1]), np.array([0.1, 0.45, 0.6, 0.9])
    figures = metrics.judged(truth_N, probability_N, alone(4), {"balanced": 0.5}, band=(0.4, 0.6), draws=10)
    assert figures["abstained"] == {"share": 0.25, "accuracy_outside": 0.6667}  # 0.6 is outside: [low, high)


def youden(truth_N: np.ndarray, probability_N: np.ndarray, cut: float) -> float:
    """Return sensitivity + specificity - 1 at a threshold."""
    is_called_N = probability_N >= cut
    return float(is_called_N[truth_N == 1].mean() - is_called_N[truth_N == 0].mean())


def skewed_scores(count: int, positive: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return truths and probabilities: the classes of unequal spread, most images positive, no calibration."""
    random = np.random.default_rng(seed)
    truth_N = (random.random(count) < positive).astype(int)
    return truth_N, 1 / (1 + np.exp(-random.normal(np.where(truth_N, 3.5, -1.5), np.where(truth_N, 2.2, 0.9))))


def counted_threshold(truth_N: np.ndarray, probability_N: np.ndarray) -> float:
    """Return the highest point of the counted curve, in the middle of its flat top."""
    edges = np.unique(np.concatenate([[0.0], probability_N, [1.0]]))
    cuts = (edges[1:] + edges[:-1]) / 2
    height = np.array([youden(truth_N, probability_N, cut) for cut in cuts])
    top = cuts[height >= height.max() - 1e-12]
    return float(top[len(top) // 2])


def test_balanced_threshold_does_better_on_new_patients_than_the_highest_point_of_the_curve() -> None:
    population = skewed_scores(200_000, 0.5, seed=99)
    best = max(youden(*population, cut) for cut in np.linspace(0.3, 0.8, 101))
    losses = []
    for seed in range(30):
        sample = skewed_scores(685, 0.75, seed=seed)
        cuts = (calibration.balanced_threshold(*sample), counted_threshold(*sample))
        losses.append([best - youden(*population, cut) for cut in cuts])
    smoothed, counted = np.mean(losses, axis=0)
    assert smoothed < 0.5 * counted
    assert smoothed < 0.002


def test_balanced_threshold_does_not_hang_on_one_image() -> None:
    truth_N, probability_N = skewed_scores(685, 0.75, seed=3)
    before = calibration.balanced_threshold(truth_N, probability_N)
    probability_N[np.flatnonzero(truth_N == 0)[probability_N[truth_N == 0].argmax()]] = 0.99
    assert calibration.balanced_threshold(truth_N, probability_N) == pytest.approx(before, abs=0.02)


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.9), (0.0, 1.0), (1e-3, 4e-3), (0.996, 0.999)])
def test_balanced_threshold_parts_classes_that_lie_apart(low: float, high: float) -> None:
    truth_N = np.repeat([0, 1], 5)
    assert low < calibration.balanced_threshold(truth_N, np.where(truth_N, high, low)) < high


def test_no_threshold_is_rounded_to_one_that_calls_everything_or_nothing() -> None:
    truth_N = np.repeat([0, 1], 5)
    assert calibration.balanced_threshold(truth_N, np.where(truth_N, 1e-7, 1e-8)) == 0.0001
    assert calibration.balanced_threshold(truth_N, np.where(truth_N, 1 - 1e-8, 1 - 1e-7)) == 0.9999


def test_high_recall_threshold_keeps_its_promise_when_rounded() -> None:
    probability_N = np.array([0.45678, 0.456797, 0.45681, 0.6])  # rounded up, the middle would lie over the second
    threshold = calibration.high_recall_threshold(np.array([0, 1, 1, 1]), probability_N)
    assert threshold <= probability_N[1]
    assert threshold == round(threshold, 4)


def test_operating_points_do_what_they_promise() -> None:
    truth_N, probability_N = some_scores(2000)
    recall = calibration.high_recall_threshold(truth_N, probability_N)
    found_N = probability_N[truth_N == 1]
    assert np.mean(found_N >= recall) >= 0.98
    assert np.mean(found_N > found_N[found_N >= recall].min()) < 0.98  # one score higher would miss too many
    threshold = calibration.balanced_threshold(truth_N, probability_N)
    best = max(youden(truth_N, probability_N, cut) for cut in np.unique(probability_N))
    assert youden(truth_N, probability_N, threshold) >= best - 0.02
    low, high = calibration.abstain_band(probability_N, threshold, 0.05)
    assert low < threshold < high
    assert np.mean((probability_N >= low) & (probability_N < high)) == pytest.approx(0.05, abs=0.02)


def test_high_recall_threshold_leaves_room_for_rounding() -> None:
    truth_N = np.array([0, 0, 1, 1, 1])
    threshold = calibration.high_recall_threshold(truth_N, np.array([0.1, 0.3, 0.5, 0.8, 0.9]))
    assert threshold == pytest.approx(0.4)
    assert calibration.high_recall_threshold(truth_N, np.array([0.1, 0.3, 0.2, 0.8, 0.9]), 0.66) == pytest.approx(0.55)


@pytest.mark.parametrize("truth", [[0, 0], [1, 1]])
def test_balanced_threshold_needs_both_classes(truth: list[int]) -> None:
    with pytest.raises(ValueError, match="with and without"):
        calibration.balanced_threshold(np.array(truth), np.array([0.1, 0.9]))


def test_high_recall_threshold_needs_a_positive() -> None:
    with pytest.raises(ValueError, match="with the finding"):
        calibration.high_recall_threshold(np.array([0, 0]), np.array([0.1, 0.9]))


def test_temperature_and_bias_are_recovered() -> None:
    random = np.random.default_rng(1)
    logit_NL = random.normal(0, 2, (20000, 2))
    probability = 1 / (1 + np.exp(logit_NL[:, 0] - logit_NL[:, 1]))
    label_N = (random.random(20000) < probability).astype(int)
    temperature, bias_L = calibration.fit_calibration(3 * logit_NL - [0.0, 1.5], label_N)
    assert temperature == pytest.approx(3.0, rel=0.05)
    np.testing.assert_allclose(bias_L, [0.0, 1.5], atol=0.15)


def brute_delong(truth_N: np.ndarray, first_N: np.ndarray, second_N: np.ndarray) -> float:
    """Return DeLong's p-value straight from the definition: every positive against every negative."""
    placed, left = [], []
    for score_N in (first_N, second_N):
        positive, negative = score_N[truth_N == 1][:, None], score_N[truth_N == 0][None]
        wins = (positive > negative) + 0.5 * (positive == negative)
        placed.append(wins.mean(1))
        left.append(wins.mean(0))
    spread = np.cov(placed) / len(placed[0]) + np.cov(left) / len(left[0])
    contrast = np.array([1.0, -1.0])
    z = (placed[0].mean() - placed[1].mean()) / math.sqrt(contrast @ spread @ contrast)
    return float(2 * norm.sf(abs(z)))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_delong_is_the_brute_force_one(seed: int) -> None:
    truth_N, first_N = some_scores(150, seed=seed, skill=1.5)
    second_N = np.round(first_N + np.random.default_rng(seed + 10).normal(0, 0.3, 150), 1)
    auc_K, _ = delong(truth_N, np.stack([first_N, second_N]))
    assert auc_K == pytest.approx([metrics.auc(truth_N, scores_N) for scores_N in (first_N, second_N)])
    assert delong_p_value(truth_N, first_N, second_N) == pytest.approx(brute_delong(truth_N, first_N, second_N))


def test_delong_of_equal_models_and_of_too_few_images() -> None:
    truth_N, probability_N = some_scores(100)
    assert delong_p_value(truth_N, probability_N, probability_N**2) == 1.0
    assert math.isnan(delong_p_value(np.array([0, 0, 1]), np.array([0.1, 0.2, 0.3]), np.array([0.3, 0.2, 0.1])))


def test_mcnemar_is_exact() -> None:
    assert mcnemar_p_value(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar_p_value(0, 0) == 1.0
