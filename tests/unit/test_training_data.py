"""Split and pixels: nobody on two sides, nobody moves, and the network trains on what the node serves."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from models.preprocess import from_array, read_radiograph, squash
from tests.builders import as_bytes, data_folder, draw_chest, make_radiograph
from training import data
from training.data import Images, Split, data_sha256, load_images, split_items, uneven_shares
from training.items import DataError, Item
from training.settings import Recipe
from training.sources import patient_of, read_items

OUTPUTS = ("normal", "pneumonia")


def make_item(path: Path, **changes: Any) -> Item:
    """Return an item of a patient of its own; the digest is its path's."""
    digest = hashlib.sha256(str(path).encode()).hexdigest()
    values = {"label": 0, "sha256": digest, "group": f"own/patient {path}", "source": "own"}
    return Item(path=path, **(values | changes))


@pytest.fixture(scope="module")
def real() -> list[Item]:
    return read_items([data_folder("kermany224"), data_folder("nih")], OUTPUTS)


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    """One image per kind of file: colour JPEG, PNG with palette, DICOM with a window, DICOM without a suffix, npz."""
    root = tmp_path / "images"
    root.mkdir()
    grey_HW = (draw_chest(61, 47) * 255).astype(np.uint8)
    Image.fromarray(np.stack([grey_HW, grey_HW // 2, grey_HW // 3], axis=2)).save(root / "a.jpeg")
    Image.fromarray(grey_HW).convert("P").save(root / "b.png")
    (root / "c.dcm").write_bytes(as_bytes(make_radiograph(pixels=draw_chest(61, 47), photometric="MONOCHROME1")))
    (root / "d").write_bytes(as_bytes(make_radiograph(pixels=draw_chest(47, 61, seed=2))))
    np.savez(root / "e.npz", val_images=np.stack([grey_HW, 255 - grey_HW]))
    files = [make_item(root / name) for name in ("a.jpeg", "b.png", "c.dcm", "d")]
    return [*files, make_item(root / "e.npz", index=1, split="val", label=1)]


def as_served(item: Item, size: int) -> torch.Tensor:
    """Return what the node's two doors make of the same file."""
    from pydicom import dcmread

    if item.path.suffix == ".npz":
        return squash(from_array(np.load(item.path)["val_images"][1]), size)
    if item.path.suffix in (".dcm", ""):
        return squash(read_radiograph(dcmread(item.path)).grey_HW, size)
    return squash(from_array(np.asarray(Image.open(item.path).convert("L"))), size)


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(item: Item) -> np.ndarray:
        raise AssertionError(f"decoded again: {item.path}")

    monkeypatch.setattr(data, "_read_grey", fail)


def sides(split: Split) -> dict[Path, str]:
    return {item.path: name for name in Split.__slots__ for item in getattr(split, name)}


def test_no_patient_and_no_duplicate_crosses_the_real_split(real: list[Item]) -> None:
    split = split_items(real, validation_share=0.125, salt="1")
    assert len(split.training) + len(split.validation) == len(real) == 5852
    keys = {
        "group": lambda item: item.group,
        "bytes": lambda item: item.sha256,
        "patient": lambda item: (item.source, patient_of(item.path.name) if item.source != "nih" else item.group),
    }
    for name, key in keys.items():
        assert not {key(item) for item in split.training} & {key(item) for item in split.validation}, name


@pytest.mark.parametrize("salt", ["1", "2", "3", "4"])
def test_real_shares_of_every_source_and_class_are_close(real: list[Item], salt: str) -> None:
    validation = split_items(real, validation_share=0.125, salt=salt).validation
    assert len(validation) / len(real) == pytest.approx(0.125, abs=0.01)
    for source, margin in (("kermany224", 0.02), ("nih", 0.05)):  # 2,310 and 413 patients
        for label in (0, 1):
            all_of, chosen = (
                sum(item.source == source and item.label == label for item in side) for side in (real, validation)
            )
            assert chosen / all_of == pytest.approx(0.125, abs=margin), (source, label)


def test_shares_far_from_what_was_meant_are_named() -> None:
    items = [make_item(Path(str(number)), label=number % 2) for number in range(40)]
    salts = {salt: split_items(items, validation_share=0.25, salt=salt) for salt in map(str, range(40))}
    even = {salt: not uneven_shares(split, Recipe(validation_share=0.25, stages=())) for salt, split in salts.items()}
    for salt, split in salts.items():
        counts = [sum(item.label == label for item in split.validation) for label in (0, 1)]
        assert even[salt] == all(2.5 <= count <= 10 for count in counts), counts
    assert set(even.values()) == {True, False}
    (uneven, *_) = [split for salt, split in salts.items() if not even[salt]]
    assert "split_salt" in uneven_shares(uneven, Recipe(validation_share=0.25, stages=()))[0]


def test_validation_images_of_the_first_released_model_stay_its_validation_images(real: list[Item]) -> None:
    chosen = split_items(real, validation_share=0.125, salt="1").validation
    children = [item for item in chosen if item.source == "kermany224"]
    assert len(children) == 685
    released = "f6c8af7a9f256a08377be44e0556d2c7cead35e6d42cff2670299072e31a0bd7"  # sha256_validation of its card
    assert data_sha256(children) == data_sha256(children[::-1]) == released


def test_added_data_moves_nobody(real: list[Item]) -> None:
    alone = sides(split_items(read_items([data_folder("nih")], OUTPUTS), validation_share=0.2, salt="1"))
    together = sides(split_items(real, validation_share=0.2, salt="1"))
    part = sides(split_items(real[::-3], validation_share=0.2, salt="1"))
    assert {path: together[path] for path in alone} == alone
    assert {path: together[path] for path in part} == part
    assert set(alone.values()) == {"training", "validation"}
    assert sides(split_items(real, validation_share=0.2, salt="2")) != together


def test_renamed_source_moves_nobody() -> None:
    old, new = (
        sides(split_items(items, validation_share=0.3, salt="1"))
        for items in (
            [make_item(Path(str(number)), group=f"{source}/patient {number}") for number in range(99)]
            for source in ("download", "kermany224")
        )
    )
    assert old == new


def test_official_test_is_held_out_with_its_patients_and_duplicates() -> None:
    groups = {"a": "own/patient 1", "b": "own/patient 2", "c": "own/patient 1", "d": "own/patient 3"}
    splits = {"a": "test", "b": "train", "c": "train", "d": "val"}
    items = [make_item(Path(name), group=groups[name], split=splits[name]) for name in groups]
    split = split_items(items, validation_share=0.0, salt="1")
    assert sides(split) == {Path("a"): "test", Path("b"): "training", Path("c"): "left_out", Path("d"): "training"}
    assert sides(split_items(items, validation_share=1.0, salt="1"))[Path("b")] == "validation"


@pytest.mark.parametrize("size", [32, 47])
def test_images_are_bit_equal_to_what_is_served_from_files_and_from_the_cache(
    items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    expected = [as_served(item, size) for item in items]
    load_images(items, size=size, cache=tmp_path / "cache")
    forbid_decoding(monkeypatch)
    images = load_images(items, size=size, cache=tmp_path / "cache")
    assert images.label_N.tolist() == [0, 0, 0, 0, 1]
    assert len(images) == 5
    for index, image_1HW in enumerate(expected):
        assert images[index].dtype == torch.float32
        assert images[index].shape == (1, size, size)
        assert torch.equal(images[index], image_1HW), items[index].path


def test_sizes_share_a_cache_folder(items: list[Item], tmp_path: Path) -> None:
    small, large = (load_images(items, size=size, cache=tmp_path / "cache") for size in (16, 24))
    assert (small[0].shape, large[0].shape) == ((1, 16, 16), (1, 24, 24))


def test_changed_preprocessing_is_another_cache(
    items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_images(items, size=16, cache=tmp_path)
    monkeypatch.setattr(data, "_VERSION", "other")
    monkeypatch.setattr(data, "_read_grey", lambda item: np.zeros((9, 9), dtype=np.float32))
    assert load_images(items, size=16, cache=tmp_path)[0].max() == 0


@pytest.mark.parametrize("torn", [b"", b"half of it"])
def test_torn_or_lost_cache_file_is_rebuilt(items: list[Item], tmp_path: Path, torn: bytes) -> None:
    images = load_images(items, size=16, cache=tmp_path / "cache")
    expected = [image.clone() for image in images]
    kept = sorted((tmp_path / "cache").iterdir())
    assert len(kept) == 5
    for path in kept:
        path.write_bytes(torn)
    kept[0].unlink()
    assert all(torch.equal(image, images[index]) for index, image in enumerate(expected))  # while training
    assert sorted((tmp_path / "cache").iterdir()) == kept
    kept[0].write_bytes(torn)
    load_images(items, size=16, cache=tmp_path / "cache")  # at the next start
    assert {path.stat().st_size for path in kept} == {4 * 16 * 16}


def test_loader_processes_read_and_repair_the_cache(items: list[Item], tmp_path: Path) -> None:
    images = load_images(items, size=16, cache=tmp_path / "cache")
    expected = torch.stack(list(images))
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(b"torn")
    loader = DataLoader(images, batch_size=2, num_workers=2)
    assert torch.equal(torch.cat(list(loader)), expected)


def test_several_runs_may_fill_one_cache_at_once(items: list[Item], tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda _: load_images(items * 3, size=16, cache=tmp_path / "cache"), range(4)))
    assert len(list((tmp_path / "cache").iterdir())) == 5
    assert all(torch.equal(run[14], as_served(items[4], 16)) for run in runs)


@pytest.fixture
def broken(items: list[Item], tmp_path: Path) -> list[Item]:
    """Five ways of being no image."""
    root = tmp_path / "broken"
    root.mkdir()
    (root / "words.png").write_bytes(b"no image")
    whole = items[0].path.read_bytes()
    (root / "half.jpeg").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).save(root / "deep.png")
    dataset = make_radiograph(pixels=draw_chest(20, 20))
    del dataset.PixelData
    (root / "empty.dcm").write_bytes(as_bytes(dataset))
    (root / "words.dcm").write_bytes(b"no data set")
    return [make_item(path) for path in sorted(root.iterdir())]


def test_every_unreadable_image_is_named_before_training(items: list[Item], broken: list[Item], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="5 images cannot be read") as error:
        load_images([*items, *broken], size=16, cache=tmp_path / "cache")
    assert all(str(item.path) in str(error.value) for item in broken)
    assert "deep.png: more than 8 bits" in str(error.value)
    assert "empty.dcm: no_pixels" in str(error.value)


def test_skipped_images_are_listed(
    items: list[Item], broken: list[Item], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = load_images([*broken, *items], size=16, cache=tmp_path / "cache", skip_bad=True)
    assert images.items == tuple(items)
    assert images.skipped == tuple(item.path for item in broken)
    assert all(item.path.name in caplog.text for item in broken)
    assert torch.equal(images[4], as_served(items[4], 16))
    with pytest.raises(DataError, match="none of 5 images"):
        load_images(broken, size=16, cache=tmp_path / "cache", skip_bad=True)


def test_cache_that_cannot_be_written_stops_even_if_bad_images_are_skipped(
    items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"cannot write the cache .*file"):
        load_images(items, size=16, cache=tmp_path / "file", skip_bad=True)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(DataError, match="No space left"):
        load_images(items, size=16, cache=tmp_path / "cache", skip_bad=True)
    assert list((tmp_path / "cache").iterdir()) == []


def test_images_can_be_made_without_reading() -> None:
    images = Images([make_item(Path("a"), label=1)], size=8, cache=Path("nowhere"))
    assert (len(images), images.label_N.tolist(), images.skipped) == (1, [1], ())


def test_picture_that_its_exif_turns_is_turned_as_in_serving(tmp_path: Path) -> None:
    grey_HW = (draw_chest(480, 400) * 255).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: a quarter to the right, then it is upright
    Image.fromarray(np.rot90(grey_HW)).save(tmp_path / "a.png", exif=exif)
    images = load_images([make_item(tmp_path / "a.png")], size=48, cache=tmp_path / "cache")
    assert torch.equal(images[0], squash(from_array(grey_HW), 48))
