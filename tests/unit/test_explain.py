"""Grad-CAM: the map belongs to the weights and follows the image; it is not a picture of edges."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.visualize import GradCAM
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from models.card import ModelCard
from models.explain import grad_cam
from models.networks import NETWORKS, Classifier, Layout, make_network
from models.preprocess import from_array, squash
from models.registry import Registry
from models.weights import load_network
from tests.builders import data_folder, draw_chest

BUNDLES = Path(__file__).parents[2] / "models" / "bundles"


@pytest.fixture(scope="module")
def card() -> ModelCard:
    return Registry([BUNDLES]).newest()


@pytest.fixture(scope="module")
def network(card: ModelCard) -> Classifier:
    return load_network(card)


@pytest.fixture(scope="module", name="chest_1HW")
def draw_image(card: ModelCard) -> np.ndarray:
    drawn: np.ndarray = squash(
        from_array((255 * draw_chest(240, 240, seed=3)).astype(np.uint8)), card.input_size
    ).numpy()
    return drawn


def centre_of(heatmap_HW: np.ndarray) -> np.ndarray:
    """Return row and column of the centre of mass of what is hottest: four fifths of the peak and above."""
    hot_HW = np.where(heatmap_HW >= 0.8, heatmap_HW, 0)
    return np.array([(at * hot_HW).sum() / hot_HW.sum() for at in np.indices(heatmap_HW.shape)])


def alike(one_HW: np.ndarray, other_HW: np.ndarray) -> float:
    return float(np.corrcoef(one_HW.ravel(), other_HW.ravel())[0, 1])


class Brightness(nn.Module):
    """A backbone of one stage, 8 pixels coarse: where the image is bright, and how bright it is on average."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.Sequential(nn.AvgPool2d(8), nn.Conv2d(3, 2, 1, bias=False))
        self.stage[1].weight.data = torch.tensor([[1.0, 0, 0], [0, 0.1, 0]]).reshape(2, 3, 1, 1)

    def forward(self, image_B3HW: Tensor) -> Tensor:
        return self.stage(image_B3HW).mean((2, 3))  # type: ignore[no-any-return]


def seeing_brightness(margin: float | None = None) -> Classifier:
    """Return a network whose second output is raised by brightness and whose first is lowered by it."""
    head = nn.Linear(2, 2, bias=False)
    head.weight.data = torch.tensor([[-1.0, 0.0], [1.0, 0.5]])
    layout = Layout(architecture="toy", input_size=64, stages=("stage",), trained=1, margin=margin)
    return Classifier(Brightness(), head, layout)


def test_map_shows_what_raises_the_output_where_it_lies() -> None:
    image_B1HW = np.full((3, 1, 64, 64), 0.5, np.float32)
    image_B1HW[0, :, 8:24, 32:48] = image_B1HW[1, :, 40:56, 8:24] = 1.0
    first_HW, second_HW, nothing_HW = grad_cam(seeing_brightness(), image_B1HW, 1)
    np.testing.assert_allclose([centre_of(first_HW), centre_of(second_HW)], [[15.5, 39.5], [47.5, 15.5]], atol=0.5)
    assert (first_HW.max(), first_HW.min(), nothing_HW.max()) == (1, 0, 0)
    assert not grad_cam(seeing_brightness(), image_B1HW, 0).any()


def test_map_of_a_network_with_a_margin_lies_where_the_network_looked() -> None:
    image_B1HW = np.full((1, 1, 80, 80), 0.5, np.float32)
    image_B1HW[0, :, 24:40, 48:64] = 1.0
    image_B1HW[0, :, :8] = 1.0  # in the margin
    (heatmap_HW,) = grad_cam(seeing_brightness(margin=0.1), image_B1HW, 1)
    np.testing.assert_allclose(centre_of(heatmap_HW), [31.5, 55.5], atol=0.5)
    assert (heatmap_HW.shape, heatmap_HW.max()) == ((80, 80), 1)
    assert not heatmap_HW[:8].any()


def test_unknown_output_is_refused() -> None:
    for output in (2, -1):
        with pytest.raises(ValueError, match="0 to 1"):
            grad_cam(seeing_brightness(), np.zeros((1, 1, 64, 64), np.float32), output)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_a_map_of_the_images_size(name: str) -> None:
    torch.manual_seed(1)
    network = make_network(name, 3)
    network.freeze("all")
    with torch.inference_mode():
        image_B1HW = torch.rand(2, 1, 96, 96)
        heatmap_BHW = grad_cam(network, image_B1HW, 2)
    assert (heatmap_BHW.shape, heatmap_BHW.dtype) == ((2, 96, 96), np.float32)
    assert 0 <= heatmap_BHW.min() <= heatmap_BHW.max() <= 1
    assert network.training
    assert not any(stage.training for stage in network.stages())
    assert all(part.grad is None for part in network.parameters())
    assert not network.stages()[-1]._forward_hooks


def test_map_is_the_one_of_monai(card: ModelCard, network: Classifier, chest_1HW: np.ndarray) -> None:
    margin, inner = network.layout.margin_of(card.input_size), network.layout.inner(card.input_size)
    theirs = GradCAM(
        nn_module=load_network(card),
        target_layers="backbone.layer4",
        upsampler=lambda _: partial(functional.interpolate, size=inner, mode="bilinear"),
        postprocessing=lambda raw: raw,
    )
    raw_HW = np.pad(theirs(torch.from_numpy(chest_1HW[None]), class_idx=1)[0, 0].detach().numpy(), margin)
    heatmap_BHW = grad_cam(card, chest_1HW[None], 1)
    np.testing.assert_allclose(heatmap_BHW[0], raw_HW / raw_HW.max(), atol=1e-4)
    np.testing.assert_array_equal(heatmap_BHW, grad_cam(network, torch.from_numpy(chest_1HW[None]), 1))


@pytest.mark.parametrize(("part", "most"), [("head", 0.9), ("backbone", 0.5)])
def test_randomised_weights_change_the_map(
    part: str, most: float, card: ModelCard, network: Classifier, chest_1HW: np.ndarray
) -> None:
    """A new head only weighs the old activations anew, so that its maps stay more alike; judged over three draws."""
    likeness = []
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        randomised, fresh = load_network(card), make_network(card.network, len(card.outputs))
        setattr(randomised, part, getattr(fresh, part))
        likeness.append(alike(*(grad_cam(one, chest_1HW[None], 1)[0] for one in (network, randomised))))
    assert np.mean(likeness) < most


@pytest.mark.parametrize("pixels", [32, -32])
def test_map_moves_with_real_pneumonias(pixels: int, card: ModelCard, network: Classifier) -> None:
    files = sorted(data_folder("kermany224", "train", "PNEUMONIA").glob("*.jpeg"))[::400]
    images = [from_array(np.asarray(Image.open(file).convert("L"))) for file in files]
    image_B1HW = np.stack([squash(image, card.input_size).numpy() for image in images])
    still_BHW = grad_cam(network, image_B1HW, 1)
    moved_BHW = grad_cam(network, np.roll(image_B1HW, pixels, axis=3), 1)
    inner = np.s_[:, 40:-40]  # at the edges the network sees another image: what left it, and its padding
    follows = [alike(np.roll(a, pixels, axis=1)[inner], b[inner]) for a, b in zip(still_BHW, moved_BHW, strict=True)]
    stays = [alike(a[inner], b[inner]) for a, b in zip(still_BHW, moved_BHW, strict=True)]
    assert np.median(follows) > 0.8
    assert np.median(stays) < 0.6
