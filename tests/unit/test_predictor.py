"""Probabilities: what the network says is what the card promises, on any device and in any batch."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from models.card import ModelCard, load_card
from models.errors import CardError, WeightsMismatch
from models.networks import make_network
from models.predictor import Prediction, Predictor, load_network
from models.registry import Registry
from tests.builders import data_folder, make_bundle
from training.data import find_items, load_images, split
from training.settings import load_recipe

BUNDLES = Path(__file__).parents[2] / "models" / "bundles"


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    return load_card(make_bundle(tmp_path_factory.mktemp("bundles")))


@pytest.fixture(scope="module")
def predictor(card: ModelCard) -> Predictor:
    return Predictor(card, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).random((3, 1, 224, 224), dtype=np.float32)


def probabilities(predictor: Predictor, image_B1HW: np.ndarray) -> np.ndarray:
    return np.array([prediction.probability for (prediction,) in predictor.predict(image_B1HW)])


def test_resnet50_has_the_published_number_of_parameters() -> None:
    assert sum(parameter.numel() for parameter in make_network("resnet50", 2).parameters()) == 24_559_170


def test_unknown_network_is_named() -> None:
    with pytest.raises(ValueError, match="resnet999"):
        make_network("resnet999", 2)


def test_fused_network_says_what_the_plain_one_says(card: ModelCard, predictor: Predictor, images: np.ndarray) -> None:
    with torch.inference_mode():
        logit_BL = load_network(card)(torch.from_numpy(images))
    np.testing.assert_allclose(probabilities(predictor, images), logit_BL.softmax(1)[:, 1].numpy(), atol=1e-5)


def test_batch_keeps_the_order_and_changes_nothing(predictor: Predictor, images: np.ndarray) -> None:
    one_by_one = [probabilities(predictor, image[None])[0] for image in images]
    np.testing.assert_allclose(probabilities(predictor, images), one_by_one, atol=1e-5)
    np.testing.assert_allclose(probabilities(predictor, images[::-1].copy()), one_by_one[::-1], atol=1e-5)


def test_same_image_gives_the_same_bits(predictor: Predictor, images: np.ndarray) -> None:
    np.testing.assert_array_equal(probabilities(predictor, images), probabilities(predictor, images))


def test_temperature_divides_the_logits(card: ModelCard, predictor: Predictor, images: np.ndarray) -> None:
    hot = Predictor(replace(card, temperature=4.0), device="cpu", precision="fp32")
    cold_odds, hot_odds = (np.log(p / (1 - p)) for p in (probabilities(predictor, images), probabilities(hot, images)))
    np.testing.assert_allclose(hot_odds, cold_odds / 4, atol=1e-5)


def test_prediction_carries_the_card(card: ModelCard, predictor: Predictor, images: np.ndarray) -> None:
    ((prediction,),) = predictor.predict(torch.from_numpy(images[:1]))
    assert (prediction.finding, prediction.model_name, prediction.model_version) == ("pneumonia", "drawn", "0.0.1")
    assert (prediction.threshold, prediction.abstain_low, prediction.abstain_high) == (0.5, 0.4, 0.6)


@pytest.mark.parametrize(("probability", "confidence"), [(0.93, 93.0), (0.07, 93.0), (0.5, 50.0)])
def test_confidence_leans_to_either_side(probability: float, confidence: float) -> None:
    prediction = Prediction(
        finding="pneumonia", probability=probability, threshold=0.5, abstain_low=0.4, abstain_high=0.6,
        model_name="drawn", model_version="0.0.1",
    )  # fmt: skip
    assert prediction.confidence == pytest.approx(confidence)


def test_empty_batch_gives_no_prediction(predictor: Predictor) -> None:
    assert predictor.predict(np.empty((0, 1, 224, 224), np.float32)) == []


@pytest.mark.parametrize("shape", [(224, 224), (1, 224, 224), (1, 3, 224, 224), (1, 1, 128, 128)])
def test_other_shape_is_refused(predictor: Predictor, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="224"):
        predictor.predict(np.zeros(shape, np.float32))


def test_output_that_is_no_number_is_never_an_answer(predictor: Predictor) -> None:
    with pytest.raises(ArithmeticError):
        predictor.predict(np.full((1, 1, 224, 224), np.nan, np.float32))


@pytest.mark.parametrize(("key", "value"), [("device", "tpu"), ("precision", "int3")])
def test_unknown_device_or_precision_is_named(card: ModelCard, key: str, value: str) -> None:
    with pytest.raises(ValueError, match=value):
        Predictor(card, **{key: value})  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_absent_cuda_is_named(card: ModelCard) -> None:
    with pytest.raises(ValueError, match="CUDA"):
        Predictor(card, device="cuda")


def rewritten(card: ModelCard, tmp_path: Path, content: bytes) -> ModelCard:
    (tmp_path / "weights.safetensors").write_bytes(content)
    return replace(card, folder=tmp_path, weights_sha256=hashlib.sha256(content).hexdigest())


def test_changed_byte_is_refused(card: ModelCard, tmp_path: Path) -> None:
    content = bytearray(card.weights_path.read_bytes())
    content[-1] ^= 1
    (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(WeightsMismatch, match="sha256"):
        load_network(replace(card, folder=tmp_path))


def test_missing_weights_are_refused(card: ModelCard, tmp_path: Path) -> None:
    with pytest.raises(WeightsMismatch, match="No such file"):
        load_network(replace(card, folder=tmp_path))


def test_pickle_is_refused_even_with_the_right_digest(card: ModelCard, tmp_path: Path) -> None:
    with pytest.raises(WeightsMismatch):
        load_network(rewritten(card, tmp_path, pickle.dumps({"weights": [1, 2, 3]})))


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_tensors_of_another_network_are_refused(card: ModelCard, tmp_path: Path, change: str) -> None:
    weights = safetensors.torch.load(card.weights_path.read_bytes())
    if change == "missing":
        del weights["head.1.weight"]
    elif change == "extra":
        weights["head.9.weight"] = torch.zeros(2)
    else:
        weights["head.1.weight"] = torch.zeros(512, 100)
    with pytest.raises(WeightsMismatch, match=r"head\.[19]"):
        load_network(rewritten(card, tmp_path, safetensors.torch.save(weights)))


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('version = "0.0.1"', 'version = "one"', "version"),
        ('version = "0.0.1"', "", "version"),
        ("input_size = 224", 'input_size = "224"', "input_size"),
        ("temperature = 1.0", "temperature = 0.0", "temperature"),
        ("[1, 5]", "[5, 1]", "validated_age_years"),
        ("threshold = 0.5", "threshold = 0.7", "abstain_high"),
        ('name = "pneumonia"', 'name = "fracture"', "fracture"),
        ('licence = "MIT"', 'licence = "MIT"\ncolour = "red"', "colour"),
    ],
)
def test_card_error_names_file_and_key(card: ModelCard, tmp_path: Path, old: str, new: str, key: str) -> None:
    text = (card.folder / "card.toml").read_text()
    assert old in text
    (tmp_path / "card.toml").write_text(text.replace(old, new))
    with pytest.raises(CardError, match=key) as error:
        load_card(tmp_path)
    assert str(tmp_path / "card.toml") in str(error.value)


def test_card_survives_pickling(card: ModelCard) -> None:
    assert pickle.loads(pickle.dumps(card)) == card


def test_default_bundle_in_bf16_answers_like_float32() -> None:
    root = data_folder("kermany224")
    card = Registry([BUNDLES]).newest()
    recipe = load_recipe("default")
    validation = split(
        find_items(root, recipe.outputs), validation_share=recipe.validation_share, salt=recipe.split_salt
    )[1]
    image_B1HW = load_images(validation[::8]).pixels_N1HW.float().numpy() / 255
    exact, fast = (
        probabilities(Predictor(card, device="cpu", precision=name), image_B1HW) for name in ("fp32", "bf16")
    )
    (finding,) = card.findings
    is_flipped = (exact >= finding.threshold) != (fast >= finding.threshold)
    is_in_band = (exact >= finding.abstain_low) & (exact < finding.abstain_high)
    assert np.abs(exact - fast).max() <= 0.02
    assert not (is_flipped & ~is_in_band).any()
