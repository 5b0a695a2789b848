"""Judging: a bundle as it serves on labelled images, apart by subgroup, beside another model, in words and pictures."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, roc_auc_score

from models.card import Limits, ModelCard, load_card
from models.networks import make_network
from training import evaluate, gallery, plots, report
from training.answers import Answers, _thresholds, age_band, called_outputs, is_in_subgroup, name_of
from training.compare import compared, verdict
from training.data import data_sha256, split_items
from training.items import DataError, Item
from training.sources import read_items
from training.wording import comparison_in_words, verdict_in_words

SIZE = 64
AT = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On images this small, threads that wait for each other cost more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_bundle(folder: Path, outputs: tuple[str, ...] = ("normal", "pneumonia"), seed: int = 1) -> Path:
    """Write a small untrained bundle for two populations, children and adults, and return its folder."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    network = make_network("mobilenet_v2", len(outputs))
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0  # one batch tells each layer the scale of its input: else all images look the same
    with torch.no_grad():
        network.train()(torch.rand(16, 1, SIZE, SIZE))
    content = safetensors.torch.save(network.half().state_dict())
    (folder / "weights.safetensors").write_bytes(content)
    coded = 'code_value = "1"\ncoding_scheme_designator = "SCT"\ncode_meaning = "x"\n'
    findings = "".join(f'[[findings]]\nname = "{name}"\ndisplay = "{name.title()}"\n{coded}' for name in outputs[1:])
    populations = "".join(
        f'[[populations]]\nname = "{name}"\nage_years = {ages}\ntemperature = 1.0\nbias = {[0.0] * len(outputs)}\n'
        + "".join(
            f"[populations.limits.{finding}]\nthreshold = {threshold}\nabstain_low = {threshold - 0.01}\n"
            f"abstain_high = {threshold + 0.01}\noperating_points = {{ balanced = {threshold}, high_recall = 0.2 }}\n"
            for finding in outputs[1:]
        )
        for name, ages, threshold in (("children", [1, 17], 0.4), ("adults", [18, 90], 0.6))
    )
    (folder / "card.toml").write_text(
        f'name = "tiny"\nversion = "0.0.{seed}"\nnetwork = "mobilenet_v2"\noutputs = {json.dumps(list(outputs))}\n'
        f'input_size = {SIZE}\nrecipe = "default"\ngit_revision = "unknown"\n'
        f'weights_sha256 = "{hashlib.sha256(content).hexdigest()}"\nintended_use = "Tests."\n'
        f'limitations = ["Knows <b>nothing</b>."]\nlicence = "MIT"\n{findings}{populations}[training_data]\n[metrics]\n'
    )
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "one")


@pytest.fixture(scope="module")
def card(bundle: Path) -> ModelCard:
    return load_card(bundle)


def make_images(root: Path, splits: tuple[str, ...] = ("train", "test"), each: int = 4) -> Path:
    random = np.random.default_rng(1)
    for split in splits:
        for output, stem in (("NORMAL", "IM-{:04}-0001"), ("PNEUMONIA", "person{}_{}_1")):
            (root / split / output).mkdir(parents=True)
            for number in range(each):
                pixels = random.integers(0, 200, (SIZE, SIZE), dtype=np.uint8)
                name = stem.format(number + 1000 * splits.index(split), ("bacteria", "virus")[number % 2])
                Image.fromarray(pixels).save(root / split / output / f"{name}.png")
    return root


def judge(bundle: Path, data: Path, out: Path, *more: str) -> dict[str, Any]:
    arguments = ["--model", str(bundle), "--data", str(data), "--out", str(out), "--precision", "fp32", *more]
    assert evaluate.main(arguments) == 0
    figures: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return figures


def items_of(truth_N: np.ndarray, **more: list[Any]) -> tuple[Item, ...]:
    return tuple(
        Item(
            path=Path(f"/data/set/CLASS/{index}.png"),
            label=int(truth),
            sha256=str(index),
            group=f"secret-{index // 2}",
            source="set",
            **{name: values[index] for name, values in more.items()},
        )
        for index, truth in enumerate(truth_N)
    )


def answers(probability_N: np.ndarray, truth_N: np.ndarray, **more: list[Any]) -> Answers:
    count = len(truth_N)
    return Answers(
        finding="pneumonia",
        display="Pneumonia",
        items=items_of(truth_N, **more),
        truth_N=truth_N,
        probability_N=probability_N,
        threshold_N={"balanced": np.full(count, 0.5), "high_recall": np.full(count, 0.2)},
        low_N=np.full(count, 0.4),
        high_N=np.full(count, 0.6),
        population_N=("children",) * count,
    )


def scores(skill: float, *, count: int = 300, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth_N = np.arange(count) % 2
    return 1 / (1 + np.exp(-random.normal(0, 1, count) - skill * (truth_N - 0.5))), truth_N


@pytest.fixture(scope="module")
def judged(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Judge once with everything, from a folder whose name is no good HTML; return OUT and the figures."""
    folder = tmp_path_factory.mktemp("judged")
    (folder / "run").mkdir()
    epochs = [{"epoch": n, "size": 64 + 32 * (n > 1), "loss": 1 / n, "learning_rate": 1e-3} for n in (1, 2, 3)]
    (folder / "run" / "metrics.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
    data = make_images(folder / "chest <i>set")
    return folder / "out", judge(bundle, data, folder / "out", "--run", str(folder / "run"))


def test_everything_is_written_and_says_the_same(judged: tuple[Path, dict[str, Any]]) -> None:
    out, figures = judged
    assert (figures["split"], figures["images"], figures["positive"]) == ("test", 8, 4)
    with (out / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "label", "probability", "answer", "finding", "source", "population"]
    label, probability = ([float(row[key]) for row in rows] for key in ("label", "probability"))
    assert figures["auc"]["value"] == pytest.approx(roc_auc_score(label, probability), abs=1e-4)
    called = [value >= 0.4 for value in probability]  # of unknown age: judged as the first population
    assert figures["accuracy"]["value"] == pytest.approx(accuracy_score(label, called), abs=1e-4)
    for row, value in zip(rows, probability, strict=True):
        expected = "undetermined" if 0.39 <= value < 0.41 else "present" if value >= 0.4 else "absent"
        assert row["answer"] == expected
    assert len(set(probability)) == 8
    assert set(figures["operating_points"]) == {"balanced", "high_recall"}
    assert figures["subgroups"]["subgroup"]["viral"]["images"] == 4 + 2
    assert "weighted avg" in (out / "classification_report.txt").read_text()
    for name in ("roc", "precision_recall", "reliability", "histogram", "confusion", "gallery", "training_history"):
        with Image.open(out / f"{name}.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 5, name
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == []  # the cache is gone


def test_report_holds_everything_and_loads_nothing(judged: tuple[Path, dict[str, Any]]) -> None:
    out, figures = judged
    page = (out / "report.html").read_text()
    sources = re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', page)
    assert len(sources) == 7
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "url(" not in page
    assert "@import" not in page
    assert "<i>" not in page  # the folder's name
    assert "Knows &lt;b&gt;nothing" in page
    assert "not a medical device" in page
    assert figures["data"]["sha256"] in page
    for path in out.parent.rglob("*-*.png"):
        assert path.stem not in page


def test_all_images_are_judged_where_there_is_no_test_split(bundle: Path, tmp_path: Path) -> None:
    data = make_images(tmp_path / "data", ("train",))
    figures = judge(bundle, data, tmp_path / "out", "--no-gallery")
    assert (figures["split"], figures["images"]) == ("all", 8)
    assert not (tmp_path / "out" / "gallery.png").exists()


def test_ages_choose_the_population_and_its_threshold(bundle: Path, tmp_path: Path) -> None:
    data = make_images(tmp_path / "data", ("train",))
    rows = [
        f"{path.relative_to(data)},{path.parent.name},{number},{(3, 40, 200 // 2, '')[number % 4]},{'FM'[number % 2]}"
        for number, path in enumerate(sorted(data.rglob("*.png")))
    ]
    manifest = data / "images.csv"
    manifest.write_text("path,label,patient,age,sex\n" + "\n".join(rows) + "\n")
    figures = judge(bundle, manifest, tmp_path / "out", "--no-gallery", "--tta")
    thresholds = figures["operating_points"]["balanced"]["thresholds"]
    assert thresholds == {"children": 0.4, "adults": 0.6}
    assert figures["data"]["outside_validated_age"] == 2
    assert figures["test_time_augmentation"] is True
    assert {name: one["images"] for name, one in figures["subgroups"]["population"].items()} == {
        "adults": 4,
        "children": 4,
    }
    assert set(figures["subgroups"]["age_band"]) == {"1-5", "40-64", "65+", "unknown"}
    assert set(figures["subgroups"]["sex"]) == {"F", "M"}
    with (tmp_path / "out" / "predictions.csv").open() as file:
        for row in csv.DictReader(file):
            threshold, value = {"children": 0.4, "adults": 0.6}[row["population"]], float(row["probability"])
            assert (row["answer"] == "present") == (value >= threshold + 0.01)


def test_three_outputs_give_two_findings(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "three", ("normal", "bacterial", "viral"))
    figures = judge(bundle, make_images(tmp_path / "data"), tmp_path / "out", "--no-gallery")
    assert (figures["finding"], figures["positive"], list(figures["findings"])) == ("bacterial", 2, ["viral"])
    assert figures["findings"]["viral"]["positive"] == 2
    assert figures["data"]["classes"] == {"normal": 4, "bacterial": 2, "viral": 2}
    assert len((tmp_path / "out" / "predictions.csv").read_text().splitlines()) == 1 + 2 * 8
    assert (tmp_path / "out" / "roc-viral.png").exists()
    assert "viral" in (tmp_path / "out" / "classification_report.txt").read_text()


def test_one_class_gives_nulls_and_a_report(bundle: Path, tmp_path: Path) -> None:
    data = make_images(tmp_path / "data")
    for path in (data / "test" / "NORMAL").iterdir():
        path.unlink()
    figures = judge(bundle, data, tmp_path / "out")
    assert (figures["images"], figures["positive"]) == (4, 4)
    assert figures["auc"] == {"value": None, "low": None, "high": None}
    assert figures["specificity"]["value"] is None
    page = (tmp_path / "out" / "report.html").read_text()
    assert "cannot say how well" in page
    assert "nan" not in page.replace("data:", "").split("</style>")[1].split("base64")[0]


def test_two_models_side_by_side(bundle: Path, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "two", seed=2)
    (other / "card.toml").write_text((other / "card.toml").read_text().replace('"children"', '"grown-ups"'))
    data = make_images(tmp_path / "data", ("test",))
    figures = judge(bundle, data, tmp_path / "out", "--model", str(other), "--no-gallery")
    auc = figures["comparison"]["pneumonia"]["auc"]
    assert auc["first"] == figures["auc"]["value"]
    assert auc["second"] == figures["compared_with"]["auc"]["value"]
    assert auc["difference"] == pytest.approx(auc["first"] - auc["second"], abs=2e-4)
    assert figures["compared_with"]["model"] == "tiny 0.0.2"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Side by side" in page
    assert page.count("8 images of unknown age were judged by tiny 0.0.1 as children") == 2  # alone, and compared
    assert page.count("8 images of unknown age were judged by tiny 0.0.2 as grown-ups") == 1
    assert (tmp_path / "out" / "predictions-compared.csv").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--split", "validation", "--recipe", "nonesuch"], "nonesuch"),
        (["--split", "test"], "no image in the split 'test'"),
        (["--model", "/nowhere"], "nowhere"),
        (["--run", "/nowhere"], "metrics.jsonl"),
    ],
)
def test_mistakes_are_one_line(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], message: str
) -> None:
    data = make_images(tmp_path / "data", ("train",), each=1)
    arguments = ["--model", str(bundle), "--data", str(data), "--out", str(tmp_path / "out"), "--no-gallery", *change]
    assert evaluate.main(arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("evaluate: ")]
    assert message in line


def test_bad_image_stops_unless_told(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_images(tmp_path / "data", ("test",))
    (data / "test" / "NORMAL" / "bad.png").write_bytes(b"no image")
    arguments = ["--model", str(bundle), "--data", str(data), "--out", str(tmp_path / "out"), "--no-gallery"]
    assert evaluate.main(arguments) == 2
    assert "bad.png" in capsys.readouterr().err
    assert evaluate.main([*arguments, "--skip-bad"]) == 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["data"]["skipped"] == 1


def test_kind_of_finding_is_judged_against_all_negatives() -> None:
    probability_N, truth_N = scores(2.0, count=40)
    kinds = [("viral" if index % 4 == 1 else "bacterial") if truth_N[index] else "normal" for index in range(40)]
    one = answers(probability_N, truth_N, subgroup=kinds)
    subgroups = is_in_subgroup(one)["subgroup"]
    assert list(subgroups) == ["bacterial", "viral"]
    viral = one.figures(subgroups["viral"])
    chosen = [kind != "bacterial" for kind in kinds]
    assert (viral["images"], viral["positive"]) == (30, 10)
    assert viral["auc"]["value"] == pytest.approx(roc_auc_score(truth_N[chosen], probability_N[chosen]), abs=1e-4)


def test_groupings_that_no_image_knows_are_left_out() -> None:
    one = answers(*scores(2.0, count=8), view=["PA", "AP", "", ""] * 2)
    found = is_in_subgroup(one)
    assert set(found) == {"population", "source", "view"}
    assert list(found["view"]) == ["AP", "PA", "unknown"]


@pytest.mark.parametrize(
    ("age", "band"), [(None, "unknown"), (0, "0"), (1, "1-5"), (5, "1-5"), (17, "6-17"), (64, "40-64"), (99, "65+")]
)
def test_age_bands(age: int | None, band: str) -> None:
    assert age_band(age) == band


def test_point_that_decides_comes_first() -> None:
    limits = [
        Limits(threshold=t, abstain_low=0, abstain_high=1, operating_points={"high_recall": 0.1, "balanced": t, **more})
        for t, more in ((0.4, {"odd": 0.2}), (0.6, {}))
    ]
    found = _thresholds(limits)
    assert list(found) == ["balanced", "high_recall"]  # the odd one is not known of every population
    np.testing.assert_array_equal(found["balanced"], [0.4, 0.6])


def test_image_is_called_as_the_likeliest_finding_over_its_threshold(tmp_path: Path) -> None:
    card = load_card(make_bundle(tmp_path / "three", ("normal", "bacterial", "viral")))
    truth_N = np.zeros(3, int)
    found = [answers(np.array(values), truth_N) for values in ([0.6, 0.3, 0.2], [0.7, 0.6, 0.1])]
    named = [
        Answers(**{key: getattr(one, key) for key in Answers.__slots__} | {"finding": name})
        for one, name in zip(found, ("bacterial", "viral"), strict=True)
    ]
    assert called_outputs(card, named).tolist() == [2, 2, 0]


def test_rows_of_an_npz_have_names() -> None:
    (item,) = items_of(np.array([1]))
    assert name_of(item) == "CLASS/0.png"
    (row,) = items_of(np.array([1]), index=[7])
    assert name_of(row) == "0.png#7"


def test_better_model_is_shown_to_be_better() -> None:
    good_N, truth_N = scores(4.0)
    poor_N, _ = scores(0.5, seed=2)
    found = compared(answers(good_N, truth_N), answers(poor_N, truth_N))
    assert (found["verdict"], found["worse_on"]) == ("better", [])
    assert found["auc"]["p_value_delong"] < 1e-6
    assert found["accuracy"]["p_value_mcnemar"] < 1e-6
    right = [(scores_N >= 0.5) == truth_N for scores_N in (good_N, poor_N)]
    assert found["accuracy"]["only_first_right"] == np.sum(right[0] & ~right[1])
    assert compared(answers(poor_N, truth_N), answers(good_N, truth_N))["verdict"] == "worse"


def test_same_model_differs_in_nothing() -> None:
    one = answers(*scores(2.0))
    found = compared(one, one)
    assert found["verdict"] == "no difference shown"
    assert (found["auc"]["difference"], found["auc"]["low"], found["auc"]["high"]) == (0, 0, 0)
    assert found["auc"]["p_value_delong"] == found["accuracy"]["p_value_mcnemar"] == 1


def test_loss_in_one_subgroup_is_named(card: ModelCard) -> None:
    good_N, truth_N = scores(4.0, count=400)
    poor_N, _ = scores(0.5, count=400, seed=2)
    is_ap_N = np.arange(400) % 8 < 2
    views = ["AP" if is_ap else "PA" for is_ap in is_ap_N]
    first = answers(np.where(is_ap_N, poor_N, good_N), truth_N, view=views)
    second = answers(np.where(is_ap_N, good_N, poor_N), truth_N, view=views)
    found = compared(first, second)
    assert (found["verdict"], found["worse_on"]) == ("better", ["view AP"])
    words = comparison_in_words((card, card), found, "Pneumonia", of_model("new 2"), of_model("old 1"))
    assert words.tone == "fair"
    assert any("view AP" in line for line in words.parts["Before you switch"])


def of_model(name: str, *, trained_on: int = 0) -> dict[str, Any]:
    """Return what the words need of a model's part of metrics.json."""
    seen = {"training": trained_on, "validation": 0, "perhaps": 0}
    data = {"images": 400, "age_known": 400, "seen": seen}
    return {"model": name, "split": "all", "test_time_augmentation": False, "data": data}


def test_a_model_is_not_called_better_on_images_that_it_was_trained_on(card: ModelCard) -> None:
    good_N, truth_N = scores(4.0, count=400)
    found = compared(answers(good_N, truth_N), answers(scores(0.5, count=400, seed=2)[0], truth_N))
    words = comparison_in_words((card, card), found, "Pneumonia", of_model("new 2", trained_on=320), of_model("old 1"))
    assert words.tone == "bad"
    assert words.headline.startswith("This is no fair comparison: new 2 was trained on 320 of these 400 images")
    assert not any("speak for switching" in line for lines in words.parts.values() for line in lines)


def make_manifest(folder: Path, patients: int = 24) -> Path:
    """Write images of as many patients, half of them sick, and their manifest, without a test split."""
    random = np.random.default_rng(2)
    folder.mkdir()
    rows = []
    for number in range(patients):
        pixels = random.integers(0, 200, (SIZE, SIZE), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{('normal', 'pneumonia')[number % 2]},p{number}\n")
    (path := folder / "images.csv").write_text("path,label,patient\n" + "".join(rows))
    return path


def recorded(bundle: Path, rule: str, training: str, validation: str) -> None:
    """Write into a card how its run divided the patients of which source."""
    card = bundle / "card.toml"
    of_run = f"[training_data]\nsplit = {rule}\ntraining = {training}\nvalidation = {validation}\n"
    card.write_text(card.read_text().replace("[training_data]\n", of_run))


RULE = '{ salt = "7", validation_share = 0.4, validation_shares = {} }'


@pytest.mark.parametrize("place", ["all", "source"])  # where the card has the digest; the folder was renamed
def test_report_says_that_images_were_trained_on(
    tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = make_manifest(tmp_path / "ours")
    bundle = make_bundle(tmp_path / "one")
    split = split_items(read_items([manifest], ("normal", "pneumonia")), validation_share=0.4, salt="7")
    assert len(split.validation) > 4
    known = [f'{{ sha256 = "{data_sha256(side)}" }}' for side in (split.training, split.validation)]
    recorded(bundle, RULE, *[f"{{ theirs = {one} }}" if place == "source" else one for one in known])

    figures = judge(bundle, manifest, tmp_path / "all", "--no-gallery")
    seen = {"training": len(split.training), "validation": len(split.validation), "perhaps": 0}
    assert (figures["split"], figures["data"]["seen"]) == ("all", seen)
    warned = f"was trained on {len(split.training)} of these 24 images"
    assert warned in (tmp_path / "all" / "report.html").read_text()
    assert warned in capsys.readouterr().err

    figures = judge(bundle, manifest, tmp_path / "validation", "--no-gallery", "--split", "validation")
    assert figures["data"]["seen"] == seen | {"training": 0}  # divided by the card's own rule
    assert figures["images"] == len(split.validation)
    page = (tmp_path / "validation" / "report.html").read_text()
    assert "was trained on" not in page
    assert "a little too good" in page


def test_images_of_a_source_of_that_name_may_have_been_trained_on(tmp_path: Path) -> None:
    manifest, bundle = make_manifest(tmp_path / "ours"), make_bundle(tmp_path / "one")
    recorded(bundle, RULE, "{ ours = { images = 1 } }", "{ ours = { images = 1 } }")
    figures = judge(bundle, manifest, tmp_path / "out", "--no-gallery")
    seen = figures["data"]["seen"]
    assert (seen["training"], seen["validation"]) == (0, 0)
    assert 0 < seen["perhaps"] < 24
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"Skill, perhaps: {seen['perhaps']} of these images" in page
    assert "This is no test" not in page


def test_images_of_a_source_that_the_card_does_not_know_count_as_unseen(tmp_path: Path) -> None:
    manifest, bundle = make_manifest(tmp_path / "theirs"), make_bundle(tmp_path / "one")
    recorded(bundle, RULE, "{ ours = { images = 1 } }", "{ ours = { images = 1 } }")
    figures = judge(bundle, manifest, tmp_path / "out", "--no-gallery")
    assert figures["data"]["seen"] == {"training": 0, "validation": 0, "perhaps": 0}
    assert "only the one who chose them can know" in (tmp_path / "out" / "report.html").read_text()


def test_models_on_different_images_are_not_compared() -> None:
    probability_N, truth_N = scores(2.0, count=8)
    with pytest.raises(DataError, match="same images"):
        compared(answers(probability_N, truth_N), answers(probability_N, 1 - truth_N))


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(0.01, 0.05, "better"), (-0.05, -0.01, "worse"), (-0.01, 0.05, "no difference"), (None, None, "no difference")],
)
def test_difference_is_claimed_only_without_zero(low: float | None, high: float | None, word: str) -> None:
    assert verdict({"low": low, "high": high}).startswith(word)


@pytest.mark.parametrize(
    ("skill", "tone", "words"),
    [
        (8.0, "good", "very good"),
        (1.5, "fair", "is fair"),
        (0.0, "bad", "not shown"),
        (-2.0, "bad", "worse than chance"),
    ],
)
def test_headline_claims_what_the_interval_allows(card: ModelCard, skill: float, tone: str, words: str) -> None:
    one = answers(*scores(skill, count=600))
    assert (found := _verdict(card, one)).tone == tone, found.headline
    assert words in found.headline


def test_verdict_tells_what_the_figures_cannot(card: ModelCard) -> None:
    one = answers(*scores(3.0, count=200), age_years=[95] * 10 + [30] * 190)
    hidden = _verdict(card, one, split="train").parts["What this does not show"]
    assert "trained on these images" in hidden[0]
    assert any("one source" in line for line in hidden)
    assert any("one in ten" in line for line in hidden)
    whom = _verdict(card, one).parts["On whom"]
    assert any(line.startswith("10 images are of ages for which the card claims nothing") for line in whom)


def _verdict(card: ModelCard, one: Answers, split: str = "test") -> Any:
    data = evaluate.describe(one.items, card) | {"sha256": "0", "skipped": 0, "seen": None}
    figures = {"split": split, "test_time_augmentation": False, "data": data}
    of = one.figures()
    of["subgroups"] = {}
    return verdict_in_words(card, "Pneumonia", figures, of)


def test_gallery_rows_are_right_wrong_and_unsure() -> None:
    truth_N = np.array([1, 1, 1, 0, 0, 0, 1, 0])
    probability_N = np.array([0.99, 0.9, 0.54, 0.01, 0.2, 0.45, 0.05, 0.85])
    rows = gallery.chosen(answers(probability_N, truth_N))
    assert rows["Right, and sure"] == [0, 1, 3, 4]
    assert rows["Wrong, and sure"] == [6, 7]
    assert rows["Least sure"] == [2, 5, 4, 7]


def test_plots_leave_no_global_state(tmp_path: Path) -> None:
    import matplotlib as mpl
    from matplotlib import pyplot

    before = dict(mpl.rcParams)
    one, other = answers(*scores(6.0)), answers(*scores(1.0))
    plots.roc(tmp_path / "roc.png", one, other, ("new", "old"))
    plots.reliability(tmp_path / "reliability.png", one)
    assert pyplot.get_fignums() == []
    assert dict(mpl.rcParams) == before


def test_history_needs_a_run(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(DataError, match="no epoch"):
        plots.history(tmp_path / "training_history.png", tmp_path)


@pytest.mark.parametrize(
    ("figure", "is_percent", "text"),
    [
        ({"value": 0.5, "low": 0.25, "high": 0.75}, False, "0.500 (0.250 to 0.750)"),
        ({"value": 0.5, "low": 0.25, "high": 0.75}, True, "50.0 % (25.0 to 75.0)"),
        ({"value": 0.5, "low": None, "high": None}, False, "0.500"),
        ({"value": None, "low": None, "high": None}, False, "-"),
    ],
)
def test_estimates_are_written_with_their_interval(figure: dict[str, Any], is_percent: bool, text: str) -> None:
    assert report.estimate(figure, is_percent) == text
