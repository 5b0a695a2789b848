"""The model card: what it says is consistent, or refused with file and key."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from models.card import CARD_FILE, ModelCard, Population, load_card
from models.errors import CardError
from tests.builders import CARD, make_card, make_population

TEXT = CARD.format(name="drawn", version="0.0.1", sha256="0" * 64)
ADULTS = """
[[populations]]
name = "adults"
age_years = [18, 90]
temperature = 2.0
bias = [0.25, -1]

[populations.limits.pneumonia]
threshold = 0.3
abstain_low = 0.3
abstain_high = 0.4
operating_points = { balanced = 0.3, high_recall = 0.1 }

[training_data]"""
TWO = TEXT.replace("\n[training_data]", ADULTS)
KNOWN = f'\n[out_of_distribution]\nsha256 = "{"a" * 64}"\nlimit = 3.1\nfalse_alarm_rate = 0.01\n'
CHILDREN, GROWN, OLD = (
    make_population(name, ages) for name, ages in (("children", (1, 5)), ("adults", (18, 60)), ("old", (61, 95)))
)


def loaded(folder: Path, text: str) -> ModelCard:
    (folder / CARD_FILE).write_text(text, encoding="utf-8")
    return load_card(folder)


def test_populations_are_read_whole(tmp_path: Path) -> None:
    card = loaded(tmp_path, TWO)
    children, adults = card.populations
    assert (children.name, children.age_years, children.temperature) == ("children", (1, 5), 1.0)
    assert (adults.age_years, adults.temperature, adults.bias) == ((18, 90), 2.0, (0.25, -1.0))
    limits = adults.limits["pneumonia"]
    assert (limits.threshold, limits.abstain_low, limits.abstain_high) == (0.3, 0.3, 0.4)
    assert limits.operating_points == {"balanced": 0.3, "high_recall": 0.1}
    assert (card.recipe, card.git_revision) == ("none", "unknown")


def test_statistics_are_optional_and_one_of_the_files(tmp_path: Path) -> None:
    assert loaded(tmp_path, TEXT).out_of_distribution is None
    assert load_card(tmp_path).files == ("card.toml", "weights.safetensors")
    card = loaded(tmp_path, TEXT + KNOWN)
    assert card.out_of_distribution is not None
    assert (card.out_of_distribution.limit, card.out_of_distribution.false_alarm_rate) == (3.1, 0.01)
    assert card.files == ("card.toml", "weights.safetensors", "features.safetensors")


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('version = "0.0.1"', 'version = "one"', "version"),
        ('version = "0.0.1"', "", "version"),
        ("input_size = 224", 'input_size = "224"', "input_size"),
        ('git_revision = "unknown"', 'git_revision = "HEAD"', "git_revision"),
        ('recipe = "none"', 'recipe = ""', "recipe"),
        ("temperature = 1.0", "temperature = 0.0", r"populations\[0\]: temperature"),
        ("temperature = 1.0", "temperature = nan", "temperature"),
        ("bias = [0.0, 0.0]", "bias = [0.0]", "bias must hold one number for each of the 2 outputs"),
        ("bias = [0.0, 0.0]", "bias = [0.0, inf]", "bias"),
        ("bias = [0.0, 0.0]", 'bias = [0.0, "1"]', "bias"),
        ("[1, 5]", "[5, 1]", "age_years"),
        ("[18, 90]", "[5, 90]", "the ages of 'children' and 'adults' overlap"),
        ("[18, 90]", "[0, 1]", "overlap"),
        ("[18, 90]", "[2, 3]", "overlap"),
        ("threshold = 0.5", "threshold = 0.7", "abstain_high"),
        ("abstain_low = 0.4", "abstain_low = 0.55", "abstain_low"),
        ("threshold = 0.5", "threshold = 0.45", "operating_points: the threshold, 0.45, is none of"),
        ("{ balanced = 0.5 }", "{ high_recall = 0.5 }", "balanced is missing"),
        ("{ balanced = 0.5 }", "{ balanced = 0.5, rash = 1.5 }", "rash"),
        ("temperature = 2.0", "temperature = 2.0\ncolour = 1", "colour"),
        ("[populations.limits.pneumonia]\nthreshold = 0.3", "[populations.limits.fracture]\nthreshold = 0.3",
         r"populations\[1\]: limits: pneumonia is missing"),
        ("\n[training_data]", "\n[populations.limits.fracture]\nthreshold = 0.5\n[training_data]", "fracture"),
        ('name = "pneumonia"', 'name = "fracture"', "fracture"),
        ('designator = "SCT"', 'designator = "A_SCHEME_TOO_LONG"', "coding_scheme_designator"),
        ('code_meaning = "Pneumonia"', f'code_meaning = "{"P" * 65}"', "code_meaning"),
        ('licence = "MIT"', 'licence = "MIT"\ncolour = "red"', "colour"),
        ("false_alarm_rate = 0.01", "false_alarm_rate = 1.01", "out_of_distribution: false_alarm_rate"),
        (f'sha256 = "{"a" * 64}"', 'sha256 = "short"', "out_of_distribution: sha256"),
        ("limit = 3.1", "limit = 3.1\nscale = 2", "scale"),
    ],
)  # fmt: skip
def test_nonsense_is_refused_with_file_and_key(tmp_path: Path, old: str, new: str, key: str) -> None:
    text = TWO + KNOWN
    assert old in text
    loaded(tmp_path, text)
    with pytest.raises(CardError, match=key) as error:
        loaded(tmp_path, text.replace(old, new, 1))
    assert str(tmp_path / CARD_FILE) in str(error.value)


def test_card_without_populations_is_refused(tmp_path: Path) -> None:
    start, end = TEXT.index("[[populations]]"), TEXT.index("[training_data]")
    with pytest.raises(CardError, match="populations is missing"):
        loaded(tmp_path, TEXT[:start] + TEXT[end:])


def test_card_survives_pickling(tmp_path: Path) -> None:
    card = loaded(tmp_path, TWO + KNOWN)
    assert pickle.loads(pickle.dumps(card)) == card


@pytest.mark.parametrize(
    ("age", "name", "is_validated"),
    [
        (1, "children", True),
        (5, "children", True),
        (18, "adults", True),
        (60, "adults", True),
        (61, "old", True),
        (0, "children", False),
        (6, "children", False),
        (11, "children", False),
        (12, "adults", False),
        (17, "adults", False),
        (120, "old", False),
    ],
)
def test_an_age_has_its_population_or_the_nearest(age: int, name: str, is_validated: bool) -> None:
    card = make_card(populations=(GROWN, CHILDREN, OLD))
    assert card.population_of(age).name == name
    assert card.is_validated_age(age) is is_validated


def test_unknown_age_has_the_first_population() -> None:
    assert make_card(populations=(GROWN, CHILDREN)).population_of(None) is GROWN
    assert make_card(populations=(CHILDREN, GROWN)).population_of(None) is CHILDREN


@pytest.mark.parametrize(
    ("populations", "text"),
    [
        ((CHILDREN,), "1 to 5 years"),
        ((GROWN, CHILDREN), "1 to 5 and 18 to 60 years"),
        ((OLD, GROWN), "18 to 95 years"),
        ((OLD, CHILDREN, GROWN), "1 to 5 and 18 to 95 years"),
        ((CHILDREN, make_population("youth", (8, 9)), OLD), "1 to 5, 8 to 9 and 61 to 95 years"),
    ],
)
def test_ages_are_told_in_words(populations: tuple[Population, ...], text: str) -> None:
    assert make_card(populations=populations).ages_text == text
