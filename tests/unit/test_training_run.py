"""Training runs: recipes, augmentation, batches; killed and resumed, alone and in company."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from models.networks import NETWORKS, Classifier, Layout, make_network
from models.registry import Registry
from pacs_node.wiring import BUNDLED_MODELS
from tests.labelled import make_patients
from training import settings, train
from training.augment import Augment, Mix
from training.batches import Batches, class_weights
from training.data import Images, load_images
from training.items import Item
from training.settings import RECIPES, Augmentation, Recipe, RecipeError, Stage, load_recipe, recipe_from
from training.sources import read_items
from training.trainer import Trainer, TrainingStopped, cosine

ROOT = Path(__file__).parents[2]
OUTPUTS = ("normal", "pneumonia")
TINY = """\
network = "mobilenet_v2"
learning_rate = 1e-3
validation_share = 0.4
ema_decay = 0.9
precision = "fp32"
mixup = 0.2
[[stages]]
epochs = 2
size = 32
batch_size = 4
"""
UNCHANGED = Augmentation(
    flip=0, rotation_degrees=0, shift=0, scale=0, shear=0, gamma=0, contrast=0, brightness=0, noise=0, blur=0, erasing=0
)
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    """On images this small, threads that wait for each other cost more than they bring."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def with_tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "tiny", tiny)
    monkeypatch.setitem(settings._CHOICES, "network", tuple(NETWORKS))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_patients(tmp_path_factory.mktemp("data"))


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    (path := tmp_path / "tiny.toml").write_text(TINY)
    return path


def command(recipe: Path, data: Path, out: Path, *more: str) -> list[str]:
    return ["--recipe", str(recipe), "--data", str(data), "--out", str(out), "--workers", "0", *more]


def main(recipe: Path, data: Path, out: Path, *more: str) -> int:
    return train.main(command(recipe, data, out, *more))


def lines(out: Path) -> list[dict[str, float]]:
    """Return the figures of a run, without the only one that may differ between equal runs."""
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT, check=False
    )


# Recipes


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.toml")))
def test_every_recipe_makes_its_network_and_takes_a_step(name: str, tmp_path: Path, data: Path) -> None:
    recipe = load_recipe(name, ['weights="none"'])
    stages = tuple(replace(stage, size=75 if "inception" in name else 32, batch_size=2) for stage in recipe.stages)
    outputs = OUTPUTS if len(recipe.outputs) == 2 else ("normal", "bacterial", "viral")
    tiny = replace(recipe, stages=stages, outputs=outputs, precision="fp32")
    items = [replace(item, label=i % len(outputs)) for i, item in enumerate(read_items([data], OUTPUTS)[:6])]
    images = load_images(items, size=tiny.largest_size, cache=tmp_path / "cache")
    trainer = Trainer(tiny, train.network_of(tiny), images, images, checkpoint=tmp_path / "checkpoint.pt")
    line = trainer.run_epoch()
    assert np.isfinite(line["loss"])
    assert 0 <= line["validation_auc"] <= 1
    assert recipe_from(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["recipe"], "checkpoint") == tiny


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["colour=1"], "colour"),
        (["augmentation.colour=1"], "colour"),
        (["seed='one'"], "seed"),
        (["learning_rate=-1"], "learning_rate"),
        (["optimizer=sgd"], "adamw"),
        (["network=vgg"], "resnet50"),
        (["stages=[]"], "stages"),
        (["stages=[{epochs=1}]"], "size"),
        (["outputs=['normal']"], "outputs"),
        (["seed"], "KEY=VALUE"),
        (["stages=[{epochs=0,size=32}]"], "epochs must be a number from 1"),
        (["stages=[{epochs=1,size=32,batch_size=0}]"], "batch_size"),
        (["validation_share=12.5"], "validation_share must be a number from 0 to 1"),
        (["validation_shares={nih=25}"], "validation_shares"),
        (["repeats={nih=0}"], "repeats"),
        (["repeats={nih='two'}"], "repeats"),
        (["repeats=3"], "repeats must be a table by source"),
        (["validation_shares=0.2"], "validation_shares must be a table by source"),
        (["outputs=normal"], "outputs must be a list"),
        (["outputs=[1,2]"], "outputs: at least two names"),
        (["stages=3"], "stages must be a list"),
        (["stages=[3]"], "stages: must be a table"),
        (["stages.epochs=0"], "epochs must be a number from 1"),
        (["augmentation=0"], "augmentation: must be a table"),
        (["seed.x=1"], "seed is 1, not a table"),
        (["outputs.x=1"], r"outputs is \['normal', 'pneumonia'\], not a table"),
        (["learning_rate.x=1", "beta2.x.y=1"], "beta2 is 0.99, not a table|learning_rate"),
    ],
)
def test_recipe_error_names_the_key(overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("default", overrides)


def test_override_reaches_every_level() -> None:
    recipe = load_recipe("default", ["seed=7", "augmentation.flip=0", "network=mobilenet_v2", "repeats.nih=3"])
    assert (recipe.seed, recipe.augmentation.flip, recipe.network, recipe.repeats["nih"]) == (7, 0.0, "mobilenet_v2", 3)


def test_override_of_a_key_of_the_stages_is_set_in_every_stage() -> None:
    stages = load_recipe("default", ["stages.epochs=1", "stages.batch_size=16"]).stages
    assert [(stage.epochs, stage.size, stage.batch_size) for stage in stages] == [(1, 128, 16), (1, 224, 16)]


def test_frozen_recipe_on_random_weights_learns_everything(caplog: pytest.LogCaptureFixture) -> None:
    frozen = load_recipe("resnet50-two-stage", ['weights="none"'])
    assert {stage.freeze for stage in train.thawed(frozen).stages} == {"none"}
    assert "random" in caplog.text
    slow = load_recipe("resnet50-partial", ['weights="none"'])
    assert (slow.backbone_learning_rate, train.thawed(slow).backbone_learning_rate) == (3e-5, 0.0)
    kept = load_recipe("resnet50-two-stage", ['weights="some.pth"'])
    assert train.thawed(kept) is kept


def test_learning_rate_rises_then_falls_to_its_lowest() -> None:
    recipe = Recipe(stages=(Stage(epochs=10, size=32),), warmup_epochs=2, lowest_share=0.01)
    rates = [cosine(epoch, recipe) for epoch in (0, 1, 2, 6, 10)]
    assert rates[0] == pytest.approx(0.04)
    assert rates[0] < rates[1] < rates[2] == 1.0
    assert rates[3] == pytest.approx(0.505)
    assert rates[4] == pytest.approx(0.01)


# Augmentation and batches


def test_augmentation_depends_on_its_seed_only() -> None:
    image_1HW = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(1))
    ranges = Augmentation(perspective=0.2, erasing=1.0, blur=1.0)
    augment = Augment(ranges, 32)
    one = augment(image_1HW, 5)
    augment(image_1HW, 6)
    torch.rand(3)
    assert torch.equal(one, augment(image_1HW, 5))
    assert torch.equal(one, Augment(ranges, 32)(image_1HW, 5))
    assert type(one) is torch.Tensor, "a MetaTensor slows every operation of the network and cannot be compiled"
    assert not torch.equal(one, augment(image_1HW, 6))
    assert one.shape == image_1HW.shape
    assert 0 <= one.min() <= one.max() <= 1


def test_augmentation_switched_off_changes_nothing() -> None:
    image_1HW = torch.rand(1, 32, 32)
    torch.testing.assert_close(Augment(UNCHANGED, 32)(image_1HW, 3), image_1HW, atol=1e-5, rtol=0)


def test_augmentation_moves_an_image_no_further_than_it_says() -> None:
    image_1HW = torch.zeros(1, 64, 64)
    image_1HW[0, 30:34, 30:34] = 1
    augment = Augment(replace(UNCHANGED, shift=0.1), 64)
    centres = []
    for seed in range(40):
        moved_HW = augment(image_1HW, seed)[0]
        rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
        centres.append([float((moved_HW * axis).sum() / moved_HW.sum()) - 31.5 for axis in (rows, columns)])
    assert np.abs(centres).max() <= 6.5
    assert np.abs(centres).max() > 4


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_mix_blends_targets_like_images(mixup: float, cutmix: float) -> None:
    torch.manual_seed(2)
    image_B1HW = torch.eye(4)[:, :, None, None] * torch.ones(4, 4, 16, 16)  # the four channels name the four images
    mixed_BCHW, mixed_BL = Mix(mixup=mixup, cutmix=cutmix)(image_B1HW, torch.eye(4))
    torch.testing.assert_close(mixed_BCHW.mean((2, 3)), mixed_BL, atol=0.15, rtol=0)
    torch.testing.assert_close(mixed_BL.sum(1), torch.ones(4))


def test_no_source_gives_its_label_away() -> None:
    counts = {("a", 0): 1, ("a", 1): 9, ("b", 0): 6, ("b", 1): 2, ("c", 1): 3}
    items = [
        Item(path=Path("x"), label=label, sha256="", group="", source=source)
        for (source, label), count in counts.items()
        for _ in range(count)
    ]
    sums = dict.fromkeys(counts, 0.0)
    for item, weight in zip(items, class_weights(items), strict=True):
        sums[item.source, item.label] += float(weight)
    assert sums["a", 0] == pytest.approx(sums["a", 1]) == pytest.approx(5)
    assert sums["b", 0] == pytest.approx(sums["b", 1]) == pytest.approx(4)
    assert sums["c", 1] == pytest.approx(3)


def test_smoothing_a_rare_class_does_not_turn_the_targets_of_the_common_one(tmp_path: Path) -> None:
    items = [
        Item(path=tmp_path, label=int(number == 0), sha256="", group=str(number), source="a") for number in range(50)
    ]
    images = Images(items, size=32, cache=tmp_path)
    recipe = Recipe(stages=(Stage(epochs=1, size=32),), class_weights=True, label_smoothing=0.1)
    target_NL = Batches(images, recipe)._targets()
    torch.testing.assert_close(
        target_NL / target_NL.sum(1, keepdim=True), torch.tensor([[0.05, 0.95]] + 49 * [[0.95, 0.05]])
    )
    torch.testing.assert_close(target_NL.sum(), torch.tensor(50.0))


def test_batches_do_not_depend_on_workers_and_divide_among_processes(tmp_path: Path, data: Path) -> None:
    items = read_items([data], OUTPUTS)
    images = load_images(items, size=32, cache=tmp_path)
    recipe = Recipe(stages=(Stage(epochs=1, size=32, batch_size=8),), repeats={items[0].source: 2})
    stage = recipe.stages[0]
    alone = list(Batches(images, recipe).epoch(3, stage))
    assert len(alone) == 2 * len(items) // 8
    for image_B1HW, target_BL in alone:
        assert image_B1HW.shape == (8, 1, 32, 32)
        assert target_BL.shape == (8, 2)
    in_worker = list(Batches(images, recipe, workers=1).epoch(3, stage))
    halves = [list(Batches(images, recipe, rank=rank, world_size=2).epoch(3, stage)) for rank in (0, 1)]
    later = list(Batches(images, recipe).epoch(3, stage, skip=2))
    for position, (image_B1HW, _) in enumerate(alone):
        assert torch.equal(image_B1HW, in_worker[position][0])
        assert torch.equal(image_B1HW, torch.cat([half[position][0] for half in halves]))
        assert position < 2 or torch.equal(image_B1HW, later[position - 2][0])
    assert not torch.equal(alone[0][0], next(iter(Batches(images, recipe).epoch(4, stage)))[0])


# Runs


def test_same_seed_same_curve_and_a_killed_run_ends_the_same(tmp_path: Path, data: Path, recipe_file: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(recipe_file, data, whole) == 0
    killed = run("-c", KILLED_IN_MID_EPOCH, *command(recipe_file, data, broken))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    state = torch.load(broken / train.CHECKPOINT, weights_only=True)
    assert (state["epochs_done"], state["batches_done"]) == (1, 2)
    assert main(recipe_file, data, broken, "--resume") == 0
    assert lines(whole) == lines(broken)
    ends = [torch.load(out / train.CHECKPOINT, weights_only=True) for out in (whole, broken)]
    for part in ("network", "averaged"):
        for key, value in ends[0][part].items():
            assert torch.equal(value, ends[1][part][key]), key


def test_a_run_is_neither_overwritten_nor_mixed_with_another(
    tmp_path: Path, data: Path, recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(recipe_file, data, out, "--set", "stages=[{epochs=1,size=32}]") == 0
    assert main(recipe_file, data, out) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(recipe_file, data, out, "--resume", "--set", "seed=2") == 2
    assert "seed" in capsys.readouterr().err


KILLED_IN_MID_EPOCH = """
import os, signal, sys
from training import train, trainer
step = trainer.Trainer.step
def killed(self, *batch):
    result = step(self, *batch)
    if (self.epochs_done, self._batches_done) == (1, 2):
        os.kill(os.getpid(), signal.SIGKILL)
    return result
trainer.Trainer.step = killed
trainer.CHECKPOINT_MINUTES = 0
sys.exit(train.main(sys.argv[1:]))
"""


def test_a_run_goes_on_with_the_same_images_and_processes_only(
    tmp_path: Path, data: Path, recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(recipe_file, data, out, "--set", "network=tiny") == 0
    other = make_patients(tmp_path / "other", train=11)
    assert main(recipe_file, other, out, "--resume", "--set", "network=tiny") == 2
    assert "made from other images or labels" in capsys.readouterr().err
    relabelled = shutil.copytree(data, tmp_path / "relabelled" / data.name)
    one = next((relabelled / "train" / "NORMAL").iterdir())
    shutil.move(one, relabelled / "train" / "PNEUMONIA" / one.name)
    assert main(recipe_file, relabelled, out, "--resume", "--set", "network=tiny") == 2
    assert "made from other images or labels" in capsys.readouterr().err
    state = torch.load(out / train.CHECKPOINT, weights_only=True)
    torch.save(state | {"processes": 3}, out / train.CHECKPOINT)
    assert main(recipe_file, data, out, "--resume", "--set", "network=tiny") == 2
    assert "of 3 processes, not 1" in capsys.readouterr().err
    torch.save({key: value for key, value in state.items() if key != "items"}, out / train.CHECKPOINT)
    assert main(recipe_file, data, out, "--resume", "--set", "network=tiny") == 2
    assert "made by an earlier version" in capsys.readouterr().err


def test_figures_of_an_epoch_that_was_killed_before_they_were_shown_are_shown_on_resume(
    tmp_path: Path, data: Path, recipe_file: Path
) -> None:
    out = tmp_path / "run"
    assert main(recipe_file, data, out, "--set", "network=tiny") == 0
    whole = lines(out)
    (out / "metrics.jsonl").unlink()
    for path in out.glob("events.*"):
        path.unlink()
    assert main(recipe_file, data, out, "--resume", "--set", "network=tiny") == 0
    assert lines(out) == whole
    events = EventAccumulator(str(out)).Reload()
    assert [event.step for event in events.Scalars("validation_auc")] == [1, 2]


def test_source_of_one_class_does_not_take_the_validation_auc_with_it(
    tmp_path: Path, data: Path, recipe_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sick = tmp_path / "sick"
    make_patients(sick)
    for path in (sick / "train" / "NORMAL").iterdir():
        path.unlink()
    more = ["--data", str(data), str(sick), "--out", str(tmp_path / "run"), "--workers", "0", "--set", "network=tiny"]
    assert train.main(["--recipe", str(recipe_file), *more]) == 0
    assert all(0 <= line["validation_auc"] <= 1 for line in lines(tmp_path / "run"))
    assert "all training images of sick are pneumonia" in caplog.text


def test_batch_that_cannot_be_shared_is_refused(
    tmp_path: Path, data: Path, recipe_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "Processes", lambda: SimpleNamespace(world_size=3, is_first=True))
    assert main(recipe_file, data, tmp_path / "run") == 2
    assert "batch_size 4 cannot be shared evenly by 3 processes" in capsys.readouterr().err


def test_image_with_two_labels_is_named(tmp_path: Path, data: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = replace(load_recipe("default", ["validation_share=0.4"]), stages=(Stage(epochs=1, size=32),))
    train.images_of(recipe, [data], tmp_path / "cache")
    assert "several labels" not in caplog.text
    folder = shutil.copytree(data / "train", tmp_path / "relabelled")
    normal = min((folder / "NORMAL").iterdir())
    shutil.copy(normal, folder / "PNEUMONIA" / normal.name)
    train.images_of(recipe, [folder], tmp_path / "cache")
    assert "2 rows or files give one image several labels" in caplog.text


def test_weights_that_have_seen_the_validation_images_are_named(
    tmp_path: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (bundle := tmp_path / "bundle").mkdir()
    card = (Registry([BUNDLED_MODELS]).newest().folder / "card.toml").read_text()
    rule = 'split = { salt = "2", validation_share = 0.4, validation_shares = {} }'
    of_run = f"[training_data]\n{rule}\ntraining = {{ {data.name} = {{}} }}\n[metrics]\n"
    (bundle / "card.toml").write_text(card.partition("[training_data]")[0] + of_run)
    recipe = load_recipe("default", ["validation_share=0.4", f'weights="{bundle / "weights.safetensors"}"'])
    recipe = replace(recipe, stages=(Stage(epochs=1, size=32),))
    train.images_of(recipe, [data], tmp_path / "cache")
    assert "was trained on" in caplog.text
    assert "all figures will be too good" in caplog.text
    caplog.clear()
    train.images_of(replace(recipe, split_salt="2"), [data], tmp_path / "cache")
    assert "was trained on" not in caplog.text


def test_out_that_cannot_be_written_is_one_line(
    tmp_path: Path, data: Path, recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (taken := tmp_path / "run").write_text("a file")
    assert main(recipe_file, data, taken) == 2
    assert f"'{taken}'" in capsys.readouterr().err


def test_full_gpu_is_one_line_that_names_what_works(
    tmp_path: Path,
    data: Path,
    recipe_file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(train, "train", full)
    assert main(recipe_file, data, tmp_path / "run") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("training: ")]
    assert load_recipe(str(recipe_file), [line.partition("--set ")[2]]).stages[0].batch_size == 8


def test_resume_without_a_run_says_so(
    tmp_path: Path, data: Path, recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(recipe_file, data, tmp_path / "new", "--resume") == 2
    assert "nothing to resume" in capsys.readouterr().err


def test_a_class_without_patients_stops_the_run(
    tmp_path: Path, data: Path, recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(recipe_file, data, tmp_path / "run", "--set", "validation_share=0.0001") == 2
    assert "more patients" in capsys.readouterr().err


def test_non_finite_loss_stops_before_the_step(tmp_path: Path, data: Path) -> None:
    recipe = Recipe(network="mobilenet_v2", precision="fp32", stages=(Stage(epochs=1, size=32, batch_size=4),))
    images = load_images(read_items([data], OUTPUTS), size=32, cache=tmp_path / "cache")
    trainer = Trainer(recipe, make_network("mobilenet_v2", 2), images, images, checkpoint=tmp_path / "checkpoint.pt")
    before = {key: value.clone() for key, value in trainer.network.named_parameters()}
    with torch.no_grad():
        before["head.1.bias"][0] = trainer.network.head[1].bias[0] = float("nan")  # type: ignore[index]
    with pytest.raises(TrainingStopped, match="lower learning_rate"):
        trainer.run_epoch()
    for key, value in trainer.network.named_parameters():
        assert torch.equal(value.nan_to_num(), before[key].nan_to_num()), key


def test_non_finite_gradient_stops_before_the_step(tmp_path: Path, data: Path) -> None:
    trainer = tiny_trainer(tmp_path, data)
    before = {key: value.clone() for key, value in trainer.network.named_parameters()}
    trainer.network.head.weight.register_hook(lambda gradient: gradient * float("inf"))  # type: ignore[operator]
    with pytest.raises(TrainingStopped, match=r"gradient became .* lower learning_rate"):
        trainer.run_epoch()
    for key, value in trainer.network.named_parameters():
        assert torch.equal(value, before[key]), key


def test_compiled_network_learns_what_the_plain_one_learns(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Traced and differentiated as always, but not made into C++: half a minute of a compiler that is not ours.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    ends = []
    for is_compiled in (False, True):
        trainer = tiny_trainer(tmp_path, data, compile=is_compiled, mixup=0.2)
        before = {key: value.clone() for key, value in trainer.network.named_parameters()}
        trainer.run_epoch()
        after = dict(trainer.network.named_parameters())
        assert all(not torch.equal(after[key], before[key]) for key in before)
        ends.append((trainer.lines[-1]["loss"], {key: value.detach() for key, value in after.items()}))
    assert ends[0][0] == pytest.approx(ends[1][0], abs=1e-4)
    for key, value in ends[0][1].items():
        torch.testing.assert_close(value, ends[1][1][key], atol=1e-3, rtol=0, msg=key)


def tiny(output_count: int) -> Classifier:
    """Return a network of one convolution, for what does not depend on the network."""
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    layout = Layout(architecture="tiny", input_size=32, stages=("0", "1"), trained=1)
    return Classifier(backbone, nn.Linear(4, output_count), layout)


def tiny_trainer(folder: Path, data: Path, **changes: Any) -> Trainer:
    """Return a trainer of that network on the images."""
    stage = Stage(epochs=1, size=32, batch_size=8)
    recipe = replace(Recipe(network="tiny", precision="fp32", learning_rate=1e-2, stages=(stage,)), **changes)
    images = load_images(read_items([data], OUTPUTS), size=32, cache=folder / "cache")
    return Trainer(recipe, train.network_of(recipe), images, images, checkpoint=folder / "checkpoint.pt")


def test_stops_early_and_keeps_the_best(tmp_path: Path, data: Path) -> None:
    recipe = Recipe(
        network="mobilenet_v2",
        precision="fp32",
        stages=(Stage(epochs=30, size=32, batch_size=8),),
        learning_rate=1e-30,  # learns nothing: the first epoch stays the best
        early_stop_epochs=2,
        ema_decay=0.0,
        augmentation=UNCHANGED,
    )
    images = load_images(read_items([data], OUTPUTS), size=32, cache=tmp_path / "cache")
    network = make_network("mobilenet_v2", 2)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    trainer = Trainer(recipe, network, images, images, checkpoint=tmp_path / "checkpoint.pt")
    while not trainer.is_finished:
        trainer.run_epoch()
    assert trainer.epochs_done == 3
    assert trainer.best["epoch"] == 1


def test_two_processes_learn_what_one_learns(tmp_path: Path, data: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    for world_size, start in ((1, []), (2, torchrun)):
        arguments = ["-c", WITHOUT_CHANCE, str(data), str(tmp_path / str(world_size))]
        done = run(*start, *([sys.executable] if start else []), *arguments)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (lines(tmp_path / str(world_size)) for world_size in (1, 2))
    assert len(one) == len(two) == 2  # one writer
    for alone, together in zip(one, two, strict=True):
        assert alone["loss"] == pytest.approx(together["loss"], abs=1e-5)
        assert alone["validation_loss"] == pytest.approx(together["validation_loss"], abs=1e-5)
        assert alone["training_accuracy"] == together["training_accuracy"]


def test_all_processes_judge_the_same_averaged_weights(tmp_path: Path, data: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    done = run(*torchrun, sys.executable, "-c", EACH_KEEPS_ITS_AVERAGE, str(data), str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert any("running_mean" in key for key in first)
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


EACH_KEEPS_ITS_AVERAGE = """
import sys
from pathlib import Path
import torch
from training import train
from training.settings import Recipe, Stage
from training.trainer import Trainer
out = Path(sys.argv[2])
judge = Trainer._judge
def keeping(self, size):
    line = judge(self, size)
    torch.save(self.averaged, out / f"{self._processes.rank}.pt")
    return line
Trainer._judge = keeping
recipe = Recipe(network="mobilenet_v2", precision="fp32", validation_share=0.4, learning_rate=1e-3,
                stages=(Stage(epochs=1, size=32, batch_size=4),))
train.train(recipe, [Path(sys.argv[1])], out, is_resumed=False, cache=out / "cache", skip_bad=False, workers=0)
"""


WITHOUT_CHANCE = """
import sys
from dataclasses import replace
from pathlib import Path
from torch import nn
from training import train
from training.settings import Augmentation, Recipe, Stage
recipe = Recipe(network="mobilenet_v2", precision="fp32", validation_share=0.4, ema_decay=0.0, learning_rate=1e-3,
                stages=(Stage(epochs=2, size=32, batch_size=4),))
make = train.network_of
def without_chance(recipe):
    network = make(recipe)
    normal = network.train
    def train_mode(mode=True):
        normal(mode)
        for part in network.modules():
            if isinstance(part, (nn.BatchNorm2d, nn.Dropout)):
                part.eval()
        return network
    network.train = train_mode
    return network
train.network_of = without_chance
out = Path(sys.argv[2])
out.mkdir(exist_ok=True)
train.train(recipe, [Path(sys.argv[1])], out, is_resumed=False, cache=out / "cache", skip_bad=False, workers=0)
"""
