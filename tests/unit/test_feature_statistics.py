"""How unlike the training images: the distance is the one of the Gaussian that made them."""

from __future__ import annotations

import pytest
import torch

from models.feature_statistics import fit_statistics

WIDTH = 20


@pytest.fixture(scope="module", name="feature_ND")
def draw_features() -> torch.Tensor:
    torch.manual_seed(1)
    scale_D = torch.full((WIDTH,), 0.5)
    scale_D[:3] = torch.tensor([5.0, 3.0, 2.0])
    return 7.0 + torch.randn(4000, WIDTH) * scale_D


def test_directions_and_deviations_are_recovered(feature_ND: torch.Tensor) -> None:
    found = fit_statistics(feature_ND, 3)
    torch.testing.assert_close(found.deviation_K, torch.tensor([5.0, 3.0, 2.0]), rtol=0.05, atol=0)
    torch.testing.assert_close(found.residual_deviation, torch.tensor([0.5]), rtol=0.05, atol=0)
    torch.testing.assert_close(found.direction_KD @ found.direction_KD.T, torch.eye(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.direction_KD[:, :3].abs(), torch.eye(3), atol=0.1, rtol=0)


def test_score_is_the_mahalanobis_distance_per_dimension(feature_ND: torch.Tensor) -> None:
    found = fit_statistics(feature_ND, 3)
    principal = found.direction_KD.T @ torch.diag(found.deviation_K**2 - found.residual_deviation**2)
    covariance = principal @ found.direction_KD + found.residual_deviation**2 * torch.eye(WIDTH)
    centred = feature_ND[:5] - found.mean_D
    expected = ((centred @ torch.linalg.inv(covariance)) * centred).sum(1).div(WIDTH).sqrt()
    torch.testing.assert_close(found.score(feature_ND[:5]), expected, rtol=1e-3, atol=1e-4)
    assert float(found.score(feature_ND).mean()) == pytest.approx(1.0, abs=0.05)


def test_what_lies_across_the_usual_directions_is_far(feature_ND: torch.Tensor) -> None:
    found = fit_statistics(feature_ND, 3)
    along, across = torch.zeros(WIDTH), torch.zeros(WIDTH)
    along[0] = across[-1] = 5.0
    near, far = found.score(7.0 + torch.stack([along, across]))
    assert near < 0.5 < 2.0 < far


@pytest.mark.parametrize(("count", "directions"), [(4, 3), (100, WIDTH), (100, 0)])
def test_too_few_images_or_features_are_refused(count: int, directions: int) -> None:
    with pytest.raises(ValueError, match="too few"):
        fit_statistics(torch.randn(count, WIDTH), directions)


def test_features_that_hardly_vary_are_refused() -> None:
    flat = torch.zeros(50, WIDTH)
    flat[:, :2] = torch.randn(50, 2)
    with pytest.raises(ValueError, match="no more than 3 directions"):
        fit_statistics(flat, 3)
