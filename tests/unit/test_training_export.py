"""Export: from a run to a bundle that the node serves, and to MONAI's own format."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from monai.bundle import ConfigWorkflow
from PIL import Image, ImageOps

from models.card import CARD_FILE, load_card
from models.predictor import Predictor, calibrated
from models.preprocess import from_array, squash
from models.registry import Registry
from tests.labelled import make_patients
from training import export, train
from training.about import read_about
from training.claims import Judged, claimed_populations
from training.data import Images, data_sha256
from training.items import Item
from training.seen import Seen, seen_by, split_of
from training.settings import load_recipe
from training.sources import read_items

RECIPE = """\
network = "mobilenet_v2"
learning_rate = 3e-3
validation_share = 0.4
ema_decay = 0.5
[[stages]]
epochs = 3
size = 32
batch_size = 8
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_patients(tmp_path_factory.mktemp("data") / "kermany224")


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "tiny.toml").write_text(RECIPE)
    out = folder / "run"
    arguments = ["--recipe", str(folder / "tiny.toml"), "--data", str(data), "--out", str(out), "--workers", "0"]
    assert train.main(arguments) == 0
    return out


@pytest.fixture
def about(tmp_path: Path) -> Path:
    return written(tmp_path, least_auc=0.0)


def written(folder: Path, *, least_auc: float, **changes: Any) -> Path:
    """Return the file of what a person says, with a population that asks for that AUC."""
    spoken = tomllib.loads((export.CARDS / "chest-pneumonia.toml").read_text())
    spoken["populations"][0] |= {"least_auc": least_auc, "least_patients": 2}
    (path := folder / "about.toml").write_text(tomli_w.dumps(spoken | changes))
    return path


def main(run: Path, data: Path, about: Path, to: Path, *more: str) -> int:
    named = ["--name", "tiny", "--version", "1.2.3", "--about", str(about), "--to", str(to)]
    return export.main(["--run", str(run), "--data", str(data), *named, *more])


def test_bundle_holds_what_the_run_learned_and_serves(finished: Path, data: Path, about: Path, tmp_path: Path) -> None:
    assert main(finished, data, about, tmp_path / "bundles") == 0
    [card] = Registry([tmp_path / "bundles"]).cards()
    Registry([tmp_path / "bundles"]).verify(card)
    assert (card.name, card.version, card.recipe, card.input_size) == ("tiny", "1.2.3", "tiny", 32)
    [children] = card.populations
    limits = children.limits["pneumonia"]
    assert limits.abstain_low <= limits.threshold <= limits.abstain_high
    assert limits.operating_points.keys() == {"balanced", "high_recall"}
    assert any("adults" in limitation and "not claimed" in limitation for limitation in card.limitations)
    assert card.out_of_distribution is not None
    assert card.out_of_distribution.false_alarm_rate <= 0.15  # one of ten
    state = torch.load(finished / train.CHECKPOINT, weights_only=True)
    predictor = Predictor(card, precision="fp32")
    image_B1HW = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    network = train.network_of(train.load_recipe(str(finished.parent / "tiny.toml")))
    network.load_state_dict(
        {key: v.half().float() if v.is_floating_point() else v for key, v in state["averaged"].items()}
    )
    with torch.inference_mode():
        expected_BL = network.eval()(image_B1HW)
    found = [prediction.probability for (prediction,) in predictor.predict(image_B1HW)]
    np.testing.assert_allclose(found, calibrated(expected_BL, [children] * 3)[:, 1], atol=1e-4)


def test_figures_of_the_card_are_those_of_serving(finished: Path, data: Path, about: Path, tmp_path: Path) -> None:
    assert main(finished, data, about, tmp_path / "bundles") == 0
    card = load_card(tmp_path / "bundles" / "tiny" / "1.2.3")
    _, validation = train.images_of(train.load_recipe(str(finished.parent / "tiny.toml")), [data], tmp_path / "cache")
    predictor = Predictor(card, precision="fp32")
    image_N1HW = torch.stack([validation[index] for index in range(len(validation))])
    probability_N = np.array([found[0].probability for found in predictor.predict(image_N1HW)])
    called_N = probability_N >= card.populations[0].limits["pneumonia"].threshold
    found = card.metrics["children of 1 to 5 years"]["pneumonia"]
    assert found["accuracy"]["value"] == pytest.approx(np.mean(called_N == validation.label_N.numpy()), abs=1e-4)
    assert found["images"] == len(validation)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("not good enough", "no population is good enough"),
        ("taken", "another --version"),
        ("no run", "--run"),
        ("no about", "in your words"),
        ("broken about", "about.toml"),
        ("other finding", "no output fracture"),
        ("other source", "has the source kermany224"),
        ("shared source", "kermany224 have no age and would be claimed for children of 1 to 5 years and adults alike"),
        ("typing error", "least_auc is missing"),
        ("too few patients", "validation patients, 20 are needed"),
        ("other images", "is not what"),
        ("earlier run", "made by an earlier version"),
        ("no version", "--version must look like"),
        ("no epoch", "first epoch"),
    ],
)
def test_refusals_say_what_to_do(
    problem: str, message: str, finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more: list[str] = []
    run, about = finished, written(tmp_path, least_auc=1.0 if problem == "not good enough" else 0.0)
    if problem == "taken":
        assert main(run, data, about, tmp_path) == 0
    elif problem == "no run":
        run = tmp_path / "nothing"
    elif problem == "no about":
        about = tmp_path / "nothing.toml"
    elif problem == "other finding":
        about.write_text(about.read_text().replace('name = "pneumonia"', 'name = "fracture"'))
    elif problem == "other source":
        about.write_text(about.read_text().replace('"kermany224"', '"elsewhere"'))
    elif problem == "shared source":
        about.write_text(about.read_text().replace('"nih"', '"kermany224"'))
    elif problem == "typing error":
        about.write_text(about.read_text().replace("least_auc", "least_auk"))
    elif problem == "too few patients":
        about.write_text(about.read_text().replace("least_patients = 2\n", "least_patients = 20\n"))
    elif problem == "other images":
        data = make_patients(tmp_path / "kermany224", train=11)
    elif problem == "no version":
        more = ["--version", "1.2"]
    elif problem == "no epoch":
        run = tmp_path / "early"
        run.mkdir()
        state = torch.load(finished / train.CHECKPOINT, weights_only=True)
        torch.save(state | {"epochs_done": 0}, run / train.CHECKPOINT)
    elif problem == "earlier run":
        run = tmp_path / "earlier"
        run.mkdir()
        state = torch.load(finished / train.CHECKPOINT, weights_only=True)
        torch.save({key: value for key, value in state.items() if key != "items"}, run / train.CHECKPOINT)
    elif problem == "broken about":
        about.write_text("intended_use = ")
    before = sorted(tmp_path.rglob("card.toml"))
    assert main(run, data, about, tmp_path, *more) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("card.toml")) == before


def test_what_is_not_claimed_is_said_on_the_screen_too(
    finished: Path, data: Path, about: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(finished, data, about, tmp_path / "bundles") == 0
    assert "Never use on adults (18 to 90 years): of one class 0 validation patients" in capsys.readouterr().out


def test_ages_choose_the_population_and_those_outside_all_are_counted(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoken = read_about(written(tmp_path, least_auc=0.0))
    both = [replace(one, sources=("clinic",), least_auc=0.0, least_patients=2) for one in spoken.populations]
    ages = [3, 40, 10, 95] * 4  # the last two are those of no population
    items = [
        Item(path=Path("x"), label=n // 8, sha256=str(n), group=str(n), source="clinic", age_years=age)
        for n, age in enumerate(ages)
    ]
    judged = Judged(images=Images(items, size=32, cache=tmp_path), logit_NL=torch.randn(16, 2))
    recipe = load_recipe(str(finished.parent / "tiny.toml"))
    _, figures, _ = claimed_populations(recipe, replace(spoken, populations=tuple(both)), judged)
    assert [found["pneumonia"]["images"] for found in figures.values()] == [4, 4]
    assert "8 validation images are left out: their ages are those of no population" in caplog.text


def test_card_records_how_the_patients_were_divided(finished: Path, data: Path, about: Path, tmp_path: Path) -> None:
    assert main(finished, data, about, tmp_path / "bundles") == 0
    card = load_card(tmp_path / "bundles" / "tiny" / "1.2.3")
    assert card.training_data["split"] == {"salt": "1", "validation_share": 0.4, "validation_shares": {}}
    items = read_items([data], card.outputs)
    split = split_of(card, items)
    assert data_sha256(split.training) == card.training_data["training"]["sha256"]
    seen = seen_by(card, items, items)
    assert seen is not None
    assert (seen.training, seen.validation) == (len(split.training), len(split.validation))
    assert (card.training_data["epochs"], card.training_data["epochs_planned"]) == (3, 3)


def test_card_of_a_model_that_began_from_another_says_so_and_knows_what_that_one_saw(
    finished: Path, data: Path, about: Path, tmp_path: Path
) -> None:
    assert main(finished, data, about, tmp_path / "first") == 0
    first = load_card(tmp_path / "first" / "tiny" / "1.2.3")
    assert first.licence.endswith("Trained from random weights on the data named in this card and on nothing else.")
    other = make_patients(tmp_path / "clinic")
    for path in other.rglob("*.png"):
        ImageOps.invert(Image.open(path)).save(path)
    (recipe := tmp_path / "tiny.toml").write_text(RECIPE.replace("epochs = 3", "epochs = 1"))
    named = ["--recipe", str(recipe), "--data", str(other), "--out", str(tmp_path / "run"), "--workers", "0"]
    assert train.main([*named, "--weights", str(first.weights_path)]) == 0
    about.write_text(about.read_text().replace('"kermany224"', '"clinic"'))
    assert main(tmp_path / "run", other, about, tmp_path / "second") == 0
    second = load_card(tmp_path / "second" / "tiny" / "1.2.3")
    assert "random" not in second.licence
    assert "Begun from the weights of tiny 1.2.3" in second.licence
    for items in (read_items([data], first.outputs), read_items([other], first.outputs)):
        split = split_of(first, items)
        seen = Seen(training=len(split.training), validation=len(split.validation))
        assert seen_by(second, items, items) == seen


def test_weights_of_unknown_training_are_named() -> None:
    assert "(vgg.pth), whose training data this card does not name" in export._origin("/home/me/vgg.pth")


def test_a_run_cut_short_is_served_at_the_size_it_was_trained_at(
    finished: Path, data: Path, about: Path, tmp_path: Path
) -> None:
    state = torch.load(finished / train.CHECKPOINT, weights_only=True)
    larger = [state["recipe"]["stages"][0], state["recipe"]["stages"][0] | {"size": 64, "epochs": 2}]
    state["recipe"] |= {"stages": larger}
    (run := tmp_path / "run").mkdir()
    torch.save(state, run / train.CHECKPOINT)
    assert main(run, data, about, tmp_path / "bundles") == 0
    card = load_card(tmp_path / "bundles" / "tiny" / "1.2.3")
    assert card.input_size == 32
    assert (card.training_data["epochs"], card.training_data["epochs_planned"]) == (3, 5)


def test_images_that_the_run_skipped_can_be_skipped_again(about: Path, tmp_path: Path) -> None:
    data = make_patients(tmp_path / "kermany224")
    (data / "train" / "NORMAL" / "IM-0900-0001.png").write_bytes(b"no image")
    (recipe := tmp_path / "tiny.toml").write_text(RECIPE.replace("epochs = 3", "epochs = 1"))
    named = ["--recipe", str(recipe), "--data", str(data), "--out", str(tmp_path / "run"), "--workers", "0"]
    assert train.main([*named, "--skip-bad"]) == 0
    assert main(tmp_path / "run", data, about, tmp_path / "bundles") == 2
    assert main(tmp_path / "run", data, about, tmp_path / "bundles", "--skip-bad") == 0


def test_weights_are_no_pickle_and_small(finished: Path, data: Path, about: Path, tmp_path: Path) -> None:
    assert main(finished, data, about, tmp_path) == 0
    folder = tmp_path / "tiny" / "1.2.3"
    assert sorted(path.name for path in folder.iterdir()) == [CARD_FILE, "features.safetensors", "weights.safetensors"]
    parameters = sum(p.numel() for p in train.make_network("mobilenet_v2", 2).parameters())
    assert (folder / "weights.safetensors").stat().st_size < 2.2 * parameters


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_monai_runs_the_monai_bundle_with_the_same_output(
    finished: Path, data: Path, about: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "monai"
    assert main(finished, data, about, tmp_path, "--monai-bundle", str(bundle)) == 0
    (bundle / "images").mkdir()
    random = np.random.default_rng(3)
    pictures = [random.integers(0, 255, (50, 40), dtype=np.uint8) for _ in range(3)]
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(bundle / "images" / f"{number}.png")
    workflow = ConfigWorkflow(
        workflow_type="infer",
        config_file=str(bundle / "configs" / "inference.json"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        logging_file=False,
        bundle_root=str(bundle),
    )
    workflow.initialize()
    theirs_N = workflow.parser.get_parsed_content("probability")[:, 1].tolist()
    predictor = Predictor(load_card(tmp_path / "tiny" / "1.2.3"), precision="fp32")
    image_B1HW = torch.stack([squash(from_array(picture), 32) for picture in pictures])
    ours_N = [found[0].probability for found in predictor.predict(image_B1HW)]
    assert theirs_N == pytest.approx(ours_N, abs=1e-5)
    again = ["--model", str(tmp_path / "tiny" / "1.2.3"), "--monai-bundle", str(tmp_path / "again")]
    assert export.main(again) == 0
    assert (tmp_path / "again" / "models" / "model.ts").stat().st_size > 0
