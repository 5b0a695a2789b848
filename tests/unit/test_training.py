"""Training: splits that leak nothing, figures that are right, runs that can be broken off."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.registry import Registry
from tests.builders import data_folder
from training import evaluate, export, metrics, train
from training.augment import augment, mix
from training.data import DataError, find_items, load_images, patient_of, split
from training.settings import Augmentation, RecipeError, load_recipe

OUTPUTS = ("normal", "pneumonia")
TINY = """\
learning_rate = 1e-3
validation_share = 0.4
[[stages]]
epochs = 2
size = 32
batch_size = 4
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On images this small, threads that wait for each other cost more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny_data(tmp_path: Path) -> Path:
    """Twenty-four patients, two identical images under two names."""
    root = tmp_path / "data"
    random = np.random.default_rng(1)
    for output, stem in (("NORMAL", "IM-{:04}-0001"), ("PNEUMONIA", "person{}_virus_1")):
        (root / "train" / output).mkdir(parents=True)
        for number in range(12):
            pixels = random.integers(0, 128, (40, 40), dtype=np.uint8) + (100 if output == "PNEUMONIA" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(root / "train" / output / f"{stem.format(number)}.png")
    folder = root / "train" / "NORMAL"
    (folder / "NORMAL2-IM-0099-0001.png").write_bytes((folder / "IM-0003-0001.png").read_bytes())
    return root


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("person1000_bacteria_2931.jpeg", "person1000"),
        ("person1000_virus_7.jpeg", "person1000"),
        ("IM-0656-0001-0001.jpeg", "im656"),
        ("NORMAL2-IM-0656-0001.jpeg", "im656"),
        ("other.png", "other.png"),
    ],
)
def test_patient_is_read_from_the_name(name: str, patient: str) -> None:
    assert patient_of(name) == patient


def test_identical_bytes_join_patients(tiny_data: Path) -> None:
    items = find_items(tiny_data, OUTPUTS)
    group = {item.path.stem: item.group for item in items}
    assert group["IM-0003-0001"] == group["NORMAL2-IM-0099-0001"]
    assert len(set(group.values())) == 24


def test_no_patient_and_no_duplicate_crosses_the_real_split() -> None:
    items = find_items(data_folder("kermany224"), OUTPUTS)
    training, validation = split(items, validation_share=0.125, salt="1")
    assert len(items) == 5232 == len(training) + len(validation)
    for key in ("group", "sha256"):
        assert not {getattr(item, key) for item in training} & {getattr(item, key) for item in validation}
    assert not {patient_of(i.path.name) for i in training} & {patient_of(i.path.name) for i in validation}
    assert 0.11 < len(validation) / len(items) < 0.15
    shares = [np.mean([item.label for item in side]) for side in (training, validation)]
    assert abs(shares[0] - shares[1]) < 0.02  # both classes on both sides alike


def test_split_of_a_patient_survives_new_data() -> None:
    items = find_items(data_folder("kermany224"), OUTPUTS)
    whole = {item.path for item in split(items, validation_share=0.125, salt="1")[1]}
    part = items[::3]
    assert {item.path for item in split(part, validation_share=0.125, salt="1")[1]} <= whole


def test_missing_class_and_corrupt_image_are_named(tiny_data: Path) -> None:
    with pytest.raises(DataError, match="fracture"):
        find_items(tiny_data, ("normal", "fracture"))
    bad = tiny_data / "train" / "NORMAL" / "bad.png"
    bad.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad\.png"):
        load_images(find_items(tiny_data, OUTPUTS))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["colour=1"], "colour"),
        (["augmentation.colour=1"], "colour"),
        (["seed='one'"], "seed"),
        (["stages=[]"], "stages"),
        (["stages=[{epochs=1}]"], "size"),
    ],
)
def test_recipe_error_names_the_key(overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("default", overrides)


def test_override_reaches_every_level() -> None:
    recipe = load_recipe("default", ["seed=7", "augmentation.flip=0", "network=resnet50"])
    assert (recipe.seed, recipe.augmentation.flip, recipe.network) == (7, 0.0, "resnet50")


def test_augmentation_depends_on_its_generator_only() -> None:
    image_B1HW = torch.rand(6, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    one, again, other = (
        augment(image_B1HW.clone(), Augmentation(), torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert one.shape == image_B1HW.shape
    assert 0 <= one.min() <= one.max() <= 1


def test_augmentation_switched_off_changes_nothing() -> None:
    nothing = Augmentation(
        flip=0, rotation_degrees=0, shift=0, scale=0, shear=0, gamma=0, contrast=0, brightness=0, noise=0, blur=0,
        erasing=0, mixup=0,
    )  # fmt: skip
    image_B1HW = torch.rand(2, 1, 16, 16) * 0.9 + 0.05
    target_BL = torch.eye(2)
    torch.testing.assert_close(augment(image_B1HW.clone(), nothing, torch.default_generator), image_B1HW)
    assert mix(image_B1HW, target_BL, 0, torch.default_generator)[1] is target_BL


def test_mix_blends_targets_like_images() -> None:
    image_B1HW, target_BL = torch.arange(4.0).reshape(4, 1, 1, 1), torch.eye(4)
    mixed_B1HW, mixed_BL = mix(image_B1HW, target_BL, 0.4, torch.Generator().manual_seed(2))
    torch.testing.assert_close(mixed_BL.sum(1), torch.ones(4))
    torch.testing.assert_close(mixed_BL @ torch.arange(4.0), mixed_B1HW.ravel())


def test_figures_of_a_known_case() -> None:
    truth_N, probability_N = np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])
    assert metrics.auc(truth_N, probability_N) == pytest.approx(0.75)
    point = metrics.operating_point(truth_N, probability_N, 0.5)
    assert (point.accuracy, point.sensitivity, point.specificity) == (0.75, 0.5, 1.0)
    assert metrics.brier(truth_N, probability_N) == pytest.approx(np.mean([0.01, 0.16, 0.4225, 0.04]))
    assert metrics.calibration_error(np.array([0, 1] * 50), np.full(100, 0.5)) == pytest.approx(0.0)
    assert metrics.calibration_error(np.ones(10), np.full(10, 0.7)) == pytest.approx(0.3)


def test_operating_points_do_what_they_promise() -> None:
    random = np.random.default_rng(1)
    truth_N = random.integers(0, 2, 2000)
    probability_N = 1 / (1 + np.exp(-(random.normal(0, 1, 2000) + 3 * (truth_N - 0.5))))
    recall = metrics.operating_point(truth_N, probability_N, metrics.high_recall_threshold(truth_N, probability_N))
    assert 0.98 <= recall.sensitivity < 0.985
    threshold = metrics.balanced_threshold(truth_N, probability_N)
    best = metrics.operating_point(truth_N, probability_N, threshold)
    half = metrics.operating_point(truth_N, probability_N, 0.9)
    assert best.sensitivity + best.specificity > half.sensitivity + half.specificity
    low, high = metrics.abstain_band(probability_N, threshold, 0.05)
    assert low < threshold < high
    assert np.mean((probability_N >= low) & (probability_N < high)) == pytest.approx(0.05, abs=0.01)


def test_temperature_and_bias_are_recovered() -> None:
    random = np.random.default_rng(1)
    logit_NL = random.normal(0, 2, (20000, 2))
    probability = 1 / (1 + np.exp(logit_NL[:, 0] - logit_NL[:, 1]))
    label_N = (random.random(20000) < probability).astype(int)
    temperature, bias_L = metrics.fit_calibration(3 * logit_NL - [0.0, 1.5], label_N)
    assert temperature == pytest.approx(3.0, rel=0.05)
    np.testing.assert_allclose(bias_L, [0.0, 1.5], atol=0.15)


def test_interval_draws_patients_not_images() -> None:
    random = np.random.default_rng(1)
    truth_N = np.repeat(random.integers(0, 2, 40), 10)
    probability_N = np.repeat(random.random(40), 10) * 0.5 + 0.25 * truth_N
    alone = [str(index) for index in range(400)]
    patients = [str(index // 10) for index in range(400)]
    narrow, wide = (
        metrics.interval(metrics.auc, truth_N, probability_N, group, draws=200) for group in (alone, patients)
    )
    assert wide[1] - wide[0] > 1.5 * (narrow[1] - narrow[0])


def run(tiny_data: Path, out: Path, *more: str) -> list[dict[str, float]]:
    recipe = out.parent / "tiny.toml"
    recipe.write_text(TINY)
    assert train.main(["--recipe", str(recipe), "--data", str(tiny_data), "--out", str(out), *more]) == 0
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def without_time(lines: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_broken_off_run_resumes_to_the_same_end(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tiny_data, tmp_path / "whole")
    save = train.Trainer.save

    def save_and_die(trainer: train.Trainer, path: Path) -> None:
        save(trainer, path)
        raise KeyboardInterrupt

    monkeypatch.setattr(train.Trainer, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_data, tmp_path / "broken")
    monkeypatch.undo()
    rest = run(tiny_data, tmp_path / "broken", "--resume")
    assert without_time(rest) == without_time(whole)[-len(rest) :]
    states = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "broken")]
    assert states[0]["epochs_done"] == states[1]["epochs_done"] == 2
    for key, value in states[0]["averaged"].items():
        assert torch.equal(value, states[1]["averaged"][key]), key


def test_exported_bundle_is_sound_and_judges_as_its_card_says(tiny_data: Path, tmp_path: Path) -> None:
    run(tiny_data, tmp_path / "run", "--set", "stages=[{epochs=1, size=32, batch_size=4}]")
    arguments = ["--run", str(tmp_path / "run"), "--data", str(tiny_data), "--name", "tiny", "--version", "1.2.3"]
    assert export.main([*arguments, "--to", str(tmp_path / "bundles"), "--limitation", "Noise only."]) == 0
    card = Registry([tmp_path / "bundles"]).find("tiny", "1.2.3")
    Registry([]).verify(card)
    assert (card.input_size, card.limitations[-1]) == (32, "Noise only.")
    counted = [card.training_data[side]["images"] for side in ("training", "validation")]
    assert sum(counted) == len(find_items(tiny_data, OUTPUTS))
    judging = ["--model", str(card.folder), "--data", str(tiny_data), "--recipe", str(tmp_path / "tiny.toml")]
    assert evaluate.main([*judging, "--out", str(tmp_path / "judged"), "--precision", "fp32"]) == 0
    figures = json.loads((tmp_path / "judged" / "metrics.json").read_text())
    assert figures["pneumonia"]["images"] == counted[1]
    assert figures["pneumonia"]["auc"]["value"] == pytest.approx(card.metrics["pneumonia"]["auc"]["value"], abs=0.02)
    answers = (tmp_path / "judged" / "predictions.csv").read_text().splitlines()
    assert len(answers) == counted[1] + 1


def test_loss_that_is_no_number_stops_before_the_step(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(TINY)
    monkeypatch.setattr(train, "augment", lambda image_B1HW, *_: image_B1HW * float("nan"))
    stepped: list[int] = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_: stepped.append(1))
    arguments = ["--recipe", str(recipe), "--data", str(tiny_data), "--out", str(tmp_path / "out")]
    assert train.main(arguments) == 2
    assert "loss became nan" in capsys.readouterr().err
    assert stepped == []


def test_mistakes_on_the_command_line_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--recipe", "nonesuch", "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert train.main(["--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert ["nonesuch" in lines[0], "no image" in lines[1], len(lines)] == [True, True, 2]
