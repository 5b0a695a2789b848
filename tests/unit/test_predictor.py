"""Probabilities: what the network says is what the card promises, on any device and in any batch."""

from __future__ import annotations

import copy
import hashlib
import math
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from models.card import FEATURES_FILE, ModelCard, OutOfDistribution, Population, load_card
from models.errors import WeightsMismatch
from models.feature_statistics import fit_statistics
from models.predictor import SMALL_MOVES, Ensemble, Prediction, Predictor, calibrated, moved_slightly
from models.preprocess import from_array, squash
from models.registry import Registry
from models.serving import precision_of
from models.weights import load_network
from tests.builders import data_folder, make_bundle, make_population

SIZE = 64
"""Pixels: a ResNet50 takes any, and a small one is judged fast."""
BUNDLES = Path(__file__).parents[2] / "models" / "bundles"


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    return replace(load_card(make_bundle(tmp_path_factory.mktemp("bundles"))), input_size=SIZE)


@pytest.fixture(scope="module")
def predictor(card: ModelCard) -> Predictor:
    return Predictor(card, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).random((3, 1, SIZE, SIZE), dtype=np.float32)


def probabilities(predictor: Predictor, image_B1HW: np.ndarray) -> np.ndarray:
    return np.array([prediction.probability for (prediction,) in predictor.predict(image_B1HW)])


def log_odds(predictor: Predictor, image_B1HW: torch.Tensor) -> np.ndarray:
    """Return the difference of the two logits, for a population whose calibration changes nothing."""
    probability_B = probabilities(predictor, image_B1HW.numpy())
    return np.asarray(np.log(probability_B / (1 - probability_B)))


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


def test_bias_is_added_and_the_temperature_divides() -> None:
    hot = make_population(temperature=4.0, bias=(0.5, -1.0))
    logit_BL = torch.tensor([[1.0, 3.0], [0.0, -2.0]])
    probability_BL = calibrated(logit_BL, [hot, make_population()])
    odds = (probability_BL[:, 1] / probability_BL[:, 0]).log().numpy()
    np.testing.assert_allclose(odds, [((3.0 - 1.0) - (1.0 + 0.5)) / 4, -2.0])


CHILD, ADULT = make_population("children", (1, 5)), make_population("adults", (18, 90), threshold=0.3, bias=(0.0, 1.0))


@pytest.mark.parametrize("first", [CHILD, ADULT])
def test_calibration_and_limits_are_those_of_the_patients_age(
    first: Population, card: ModelCard, images: np.ndarray
) -> None:
    both = (first, ADULT if first is CHILD else CHILD)
    judge = Predictor(replace(card, populations=both), device="cpu", precision="fp32")
    told = [one for (one,) in judge.predict(images, [3, 40, None])]
    assert [one.threshold for one in told] == [0.5, 0.3, first.limits["pneumonia"].threshold]
    assert [(one.abstain_low, one.abstain_high) for one in told[:2]] == [(0.4, 0.6), (0.2, 0.4)]
    with torch.inference_mode():
        expected = calibrated(load_network(card)(torch.from_numpy(images)), [CHILD, ADULT, first])[:, 1]
    np.testing.assert_allclose([one.probability for one in told], expected.numpy(), atol=1e-5)


def test_without_ages_everybody_belongs_to_the_first_population(
    card: ModelCard, predictor: Predictor, images: np.ndarray
) -> None:
    assert predictor.predict(images) == predictor.predict(images, [None, None, None])
    with pytest.raises(ValueError, match="as many ages"):
        predictor.predict(images, [3])


HOT = make_population("adults", (18, 90), bias=(0.0, 9.0))  # nothing is absent in an adult
COLD = make_population("children", (1, 5), bias=(9.0, 0.0))  # nothing is present in a child


UNSURE = replace(HOT, limits={"pneumonia": replace(HOT.limits["pneumonia"], abstain_high=1.0)})  # of every adult


@pytest.mark.parametrize(
    ("populations", "is_marked"),
    [
        ((COLD, HOT), True),
        ((HOT, COLD), True),
        ((COLD,), False),
        ((COLD, replace(COLD, age_years=(18, 90))), False),
        ((replace(HOT, age_years=(1, 5)), UNSURE), True),
    ],
)
def test_answer_that_another_age_would_turn_is_marked_where_the_age_is_unknown(
    populations: tuple[Population, ...], is_marked: bool, card: ModelCard, images: np.ndarray
) -> None:
    judge = Predictor(replace(card, populations=populations), device="cpu", precision="fp32")
    marked = [prediction.depends_on_age for (prediction,) in judge.predict(images, [None, 3, 40])]
    assert marked == [is_marked, False, False]


def test_augmented_logits_are_the_mean_over_five_views(card: ModelCard, predictor: Predictor) -> None:
    image_B1HW = squash(from_array(np.linspace(0, 255, SIZE * SIZE).reshape(SIZE, SIZE).astype(np.uint8)), SIZE)[None]
    moved = [moved_slightly(image_B1HW, *move) for move in SMALL_MOVES]
    views = np.stack([log_odds(predictor, view) for view in [image_B1HW, *moved]])
    judge = Predictor(card, device="cpu", precision="fp32", use_tta=True)
    np.testing.assert_allclose(log_odds(judge, image_B1HW), views.mean(0), atol=1e-4, rtol=1e-4)
    assert len(views) == 5
    assert views.std(0).min() > 0


def test_move_shifts_right_and_down_and_turns_clockwise() -> None:
    image_B1HW = torch.zeros(1, 1, 100, 100)
    image_B1HW[..., 48:52, 78:82] = 1.0
    row, column = (
        float(at.float().mean()) for at in torch.where(moved_slightly(image_B1HW, 2.0, 1.0, 0.0)[0, 0] > 0.5)
    )
    assert (row, column) == pytest.approx((49.5 + 3, 79.5 + 6), abs=0.6)
    row, column = (
        float(at.float().mean()) for at in torch.where(moved_slightly(image_B1HW, 0.0, 0.0, 90.0)[0, 0] > 0.5)
    )
    assert (row, column) == pytest.approx((79.5, 49.5), abs=0.6)


def test_small_moves_cancel_out() -> None:
    assert np.sum(SMALL_MOVES, axis=0).tolist() == [0, 0, 0]


def test_noise_is_further_from_the_training_images_than_they_are(card: ModelCard, tmp_path: Path) -> None:
    plain = Predictor(card, device="cpu", precision="fp32")
    rng = np.random.default_rng(3)
    faint_B1HW = 0.5 + 0.1 * rng.random((24, 1, SIZE, SIZE), dtype=np.float32)
    network = load_network(card)
    with torch.inference_mode():
        feature_BD = network.backbone(network.layout.seen(torch.from_numpy(faint_B1HW[:20])))
    content = fit_statistics(feature_BD, 3).to_bytes()
    (tmp_path / FEATURES_FILE).write_bytes(content)
    (tmp_path / "weights.safetensors").symlink_to(card.weights_path)
    known = OutOfDistribution(sha256=hashlib.sha256(content).hexdigest(), limit=3.0, false_alarm_rate=0.01)
    told = Predictor(replace(card, folder=tmp_path, out_of_distribution=known), device="cpu", precision="fp32")
    usual, strange = faint_B1HW[20:], rng.random((4, 1, SIZE, SIZE), dtype=np.float32)
    scores = np.array([one.ood_score for (one,) in told.predict(np.concatenate([usual, strange]))], dtype=float)
    assert scores[:4].max() < 3 < scores[4:].min()
    moved = [one.ood_score for (one,) in told.predict(usual, use_tta=True)]
    np.testing.assert_allclose(np.array(moved, dtype=float), scores[:4], rtol=1e-4)  # of the images as they are
    assert all(one.ood_score is None for (one,) in plain.predict(usual))
    assert all(one.is_out_of_distribution for (one,) in told.predict(strange))
    assert not any(one.is_out_of_distribution for (one,) in told.predict(usual))
    assert not any(one.is_out_of_distribution for (one,) in plain.predict(strange))
    (tmp_path / FEATURES_FILE).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(WeightsMismatch, match="sha256"):
        Predictor(replace(card, folder=tmp_path, out_of_distribution=known))


def test_ensemble_takes_the_mean_of_the_probabilities(
    card: ModelCard, predictor: Predictor, images: np.ndarray, tmp_path: Path
) -> None:
    other = replace(load_card(make_bundle(tmp_path, name="second", version="0.2.0", seed=2)), input_size=SIZE)
    second = Predictor(other, device="cpu", precision="fp32")
    told = [one for (one,) in Ensemble([predictor, second]).predict(images, [3, 3, 3])]
    mean = (probabilities(predictor, images) + probabilities(second, images)) / 2
    np.testing.assert_allclose([one.probability for one in told], mean, rtol=1e-9)
    assert (told[0].model_name, told[0].model_version, told[0].threshold) == ("drawn + second", "0.0.1 + 0.2.0", 0.5)
    moved, alone = (one.predict(images, use_tta=True) for one in (Ensemble([predictor]), predictor))
    assert moved == alone != predictor.predict(images)


def test_ensemble_of_models_that_find_other_things_is_refused(predictor: Predictor) -> None:
    other = copy.copy(predictor)
    other.card = replace(predictor.card, outputs=("normal", "effusion"))
    with pytest.raises(ValueError, match="cannot judge as one"):
        Ensemble([predictor, other])
    with pytest.raises(ValueError, match="at least one"):
        Ensemble([])


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
    assert predictor.predict(np.empty((0, 1, SIZE, SIZE), np.float32)) == []


@pytest.mark.parametrize("shape", [(64, 64), (1, 64, 64), (1, 3, 64, 64), (1, 1, 128, 128)])
def test_other_shape_is_refused(predictor: Predictor, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(B, 1, 64, 64\)"):
        predictor.predict(np.zeros(shape, np.float32))


def test_output_that_is_no_number_is_never_an_answer(predictor: Predictor) -> None:
    with pytest.raises(ArithmeticError):
        predictor.predict(np.full((1, 1, SIZE, SIZE), np.nan, np.float32))


@pytest.mark.parametrize(("key", "value"), [("device", "tpu"), ("precision", "int3")])
def test_unknown_device_or_precision_is_named(card: ModelCard, key: str, value: str) -> None:
    with pytest.raises(ValueError, match=value):
        Predictor(card, **{key: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("avx512", "amx", "serving", "training"),
    [(False, False, "fp32", "fp32"), (True, False, "bf16", "fp32"), (True, True, "bf16", "bf16")],
)
def test_cpu_computes_in_bf16_only_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, avx512: bool, amx: bool, serving: str, training: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    cpu = torch.device("cpu")
    assert precision_of("auto", cpu) == serving
    assert precision_of("auto", cpu, is_training=True) == training


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


def test_weight_that_is_no_number_is_refused(card: ModelCard, tmp_path: Path) -> None:
    weights = safetensors.torch.load(card.weights_path.read_bytes())
    weights["backbone.conv1.weight"][0, 0, 0, 0] = math.nan
    with pytest.raises(WeightsMismatch, match="not a number"):
        load_network(rewritten(card, tmp_path, safetensors.torch.save(weights)))


def test_overflow_within_the_network_is_never_an_answer(card: ModelCard, tmp_path: Path) -> None:
    weights = {key: value.float() for key, value in safetensors.torch.load(card.weights_path.read_bytes()).items()}
    for key in [key for key in weights if key.startswith("head.") and weights[key].ndim == 2]:
        weights[key] = torch.full_like(weights[key], 3e38)
    changed = replace(rewritten(card, tmp_path, safetensors.torch.save(weights)), out_of_distribution=None)
    with pytest.raises(ArithmeticError, match="not finite"):
        Predictor(changed, device="cpu").predict(np.full((1, 1, SIZE, SIZE), 0.5, np.float32))


def test_default_bundle_in_bf16_answers_like_float32() -> None:
    files = sorted(data_folder("kermany224", "train").glob("*/*.jpeg"))[::200]
    assert len(files) > 20
    card = Registry([BUNDLES]).newest()
    grey = [from_array(np.asarray(Image.open(path).convert("L"))) for path in files]
    image_B1HW = np.stack([squash(one, card.input_size).numpy() for one in grey])
    exact, fast = (
        probabilities(Predictor(card, device="cpu", precision=name), image_B1HW) for name in ("fp32", "bf16")
    )
    limits = card.populations[0].limits["pneumonia"]
    is_flipped = (exact >= limits.threshold) != (fast >= limits.threshold)
    is_in_band = (exact >= limits.abstain_low) & (exact < limits.abstain_high)
    assert np.abs(exact - fast).max() <= 0.02
    assert not (is_flipped & ~is_in_band).any()
