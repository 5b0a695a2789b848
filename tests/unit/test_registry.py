"""Model versions on disk."""

from __future__ import annotations

import errno
import hashlib
import shutil
from pathlib import Path

import pytest
import torch

from models.card import load_card
from models.errors import BundleConflict, CardError, UnknownModel, WeightsMismatch
from models.feature_statistics import fit_statistics
from models.registry import Registry
from tests.builders import make_bundle

BUNDLES = Path(__file__).parents[2] / "models" / "bundles"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("source"))


def renamed(bundle: Path, folder: Path, *, version: str) -> Path:
    """Copy the bundle under another version: the weights are linked, the card is changed."""
    target = folder / "drawn" / version
    target.mkdir(parents=True)
    (target / "weights.safetensors").hardlink_to(bundle / "weights.safetensors")
    (target / "card.toml").write_text((bundle / "card.toml").read_text().replace("0.0.1", version))
    return target


def test_added_bundle_is_listed_found_and_sound(bundle: Path, tmp_path: Path) -> None:
    bundled, own = tmp_path / "bundled", tmp_path / "own"
    bundled.mkdir()
    registry = Registry([bundled, own])
    card = registry.add(bundle)
    assert card.folder == own / "drawn" / "0.0.1"
    assert registry.cards() == [card] == [registry.find("drawn", "0.0.1")]
    registry.verify(card)
    assert sorted(path.name for path in card.folder.parent.iterdir()) == ["0.0.1"]


def test_adding_twice_changes_nothing(bundle: Path, tmp_path: Path) -> None:
    registry = Registry([tmp_path])
    assert registry.add(bundle) == registry.add(bundle)


def test_other_content_under_a_taken_version_is_refused(bundle: Path, tmp_path: Path) -> None:
    registry = Registry([tmp_path / "own"])
    registry.add(bundle)
    other = renamed(bundle, tmp_path / "other", version="0.0.1")
    card = other / "card.toml"
    card.write_text(card.read_text().replace("temperature = 1.0", "temperature = 2.0"))
    with pytest.raises(BundleConflict, match=r"drawn 0\.0\.1"):
        registry.add(other)
    assert registry.find("drawn", "0.0.1").populations[0].temperature == 1.0


def with_statistics(bundle: Path, folder: Path, *, width: int = 2048) -> Path:
    """Copy the bundle with feature statistics beside the weights, named in the card."""
    target = renamed(bundle, folder, version="0.0.3")
    content = fit_statistics(torch.randn(20, width), 3).to_bytes()
    (target / "features.safetensors").write_bytes(content)
    card = target / "card.toml"
    named = f'sha256 = "{hashlib.sha256(content).hexdigest()}"\nlimit = 2.0\nfalse_alarm_rate = 0.01\n'
    card.write_text(f"{card.read_text()}\n[out_of_distribution]\n{named}")
    return target


def test_kept_bundle_outlives_the_release_that_brought_it(bundle: Path, tmp_path: Path) -> None:
    bundled, own = tmp_path / "bundled", tmp_path / "own"
    registry = Registry([bundled, own])
    card = load_card(renamed(bundle, bundled, version="1.2.3"))
    for _ in range(2):
        registry.keep(card)
    shutil.rmtree(bundled)
    kept = registry.find("drawn", "1.2.3")
    assert kept.folder == own / "drawn" / "1.2.3"
    registry.verify(kept)
    assert [path.name for path in kept.folder.parent.iterdir()] == ["1.2.3"]


def test_bundle_is_copied_where_it_cannot_be_linked(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_file_system(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    card = load_card(renamed(bundle, tmp_path / "bundled", version="1.2.3"))
    monkeypatch.setattr(Path, "hardlink_to", other_file_system)
    registry = Registry([tmp_path / "own"])
    registry.keep(card)
    registry.verify(registry.find("drawn", "1.2.3"))


def test_feature_statistics_travel_with_the_bundle(bundle: Path, tmp_path: Path) -> None:
    source = with_statistics(bundle, tmp_path / "source")
    card = Registry([tmp_path / "own"]).add(source)
    assert sorted(path.name for path in card.folder.iterdir()) == sorted(path.name for path in source.iterdir())
    assert card.features_path.read_bytes() == (source / "features.safetensors").read_bytes()


@pytest.mark.parametrize("fault", ["changed", "missing", "narrow"])
def test_bundle_with_unsound_feature_statistics_is_never_copied(fault: str, bundle: Path, tmp_path: Path) -> None:
    source = with_statistics(bundle, tmp_path / "source", width=100 if fault == "narrow" else 2048)
    features = source / "features.safetensors"
    if fault == "changed":
        features.write_bytes(features.read_bytes()[:-1] + b"x")
    elif fault == "missing":
        features.unlink()
    registry = Registry([tmp_path / "own"])
    with pytest.raises(WeightsMismatch, match=r"features\.safetensors"):
        registry.add(source)
    assert registry.cards() == []


def test_unsound_bundle_is_never_copied(bundle: Path, tmp_path: Path) -> None:
    broken = renamed(bundle, tmp_path / "broken", version="0.0.2")
    (broken / "weights.safetensors").unlink()
    (broken / "weights.safetensors").write_bytes(b"short")
    registry = Registry([tmp_path / "own"])
    with pytest.raises(WeightsMismatch):
        registry.add(broken)
    assert registry.cards() == []


def test_newest_counts_versions_as_numbers(bundle: Path, tmp_path: Path) -> None:
    for version in ("0.9.0", "0.10.0", "0.2.3"):
        renamed(bundle, tmp_path, version=version)
    registry = Registry([tmp_path])
    assert [card.version for card in registry.cards()] == ["0.2.3", "0.9.0", "0.10.0"]
    assert registry.newest().version == "0.10.0"


def test_first_folder_wins(bundle: Path, tmp_path: Path) -> None:
    first = renamed(bundle, tmp_path / "a", version="1.0.0")
    renamed(bundle, tmp_path / "b", version="1.0.0")
    registry = Registry([tmp_path / "a", tmp_path / "b"])
    assert [card.folder for card in registry.cards()] == [first]


def test_unknown_model_is_named_with_what_there_is(bundle: Path, tmp_path: Path) -> None:
    registry = Registry([tmp_path])
    with pytest.raises(UnknownModel, match="no model in"):
        registry.newest()
    registry.add(bundle)
    with pytest.raises(UnknownModel, match=r"drawn 9\.9\.9; known: drawn 0\.0\.1"):
        registry.find("drawn", "9.9.9")


def test_half_copied_bundle_is_not_listed(bundle: Path, tmp_path: Path) -> None:
    renamed(bundle, tmp_path, version="1.0.0").rename(tmp_path / "drawn" / ".incoming-x")
    assert Registry([tmp_path]).cards() == []


def test_card_in_a_folder_of_another_version_is_refused(bundle: Path, tmp_path: Path) -> None:
    renamed(bundle, tmp_path, version="1.0.0").rename(tmp_path / "drawn" / "2.0.0")
    with pytest.raises(CardError, match="differ from the folder's"):
        Registry([tmp_path]).cards()


def test_bundled_model_is_sound_small_and_honest() -> None:
    registry = Registry([BUNDLES])
    card = registry.newest()
    registry.verify(card)
    assert card.weights_path.stat().st_size < 60_000_000
    assert load_card(card.folder) == card
    assert card.ages_text == "1 to 5 and 18 to 90 years"
    assert card.metrics["children of 1 to 5 years"]["pneumonia"]["auc"]["value"] >= 0.985
    assert card.metrics["adults"]["pneumonia"]["auc"]["low"] >= 0.75, "what was asked before they may be claimed"
    assert card.limitations
    assert "Research only" in card.intended_use
