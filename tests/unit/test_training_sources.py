"""Readers of labelled images: every layout, the patients they see, and what they say of a mistake."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.builders import data_folder, make_radiograph, save
from training.items import DataError, Item
from training.sources import patient_of, read_items

OUTPUTS = ("normal", "pneumonia")
FINER = ("normal", "bacterial", "viral")
HEADER = "path,label,patient,split,age,sex,view,source,subgroup"


def draw(path: Path, seed: int) -> Path:
    """Write a small noise image; the same seed gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8), dtype=np.uint8)).save(path)
    return path


def by_name(items: list[Item]) -> dict[str, Item]:
    return {item.path.name: item for item in items}


@pytest.fixture
def kermany(tmp_path: Path) -> Path:
    """Four patients in the official folders; person1 is both bacterial and viral."""
    root = tmp_path / "kermany"
    draw(root / "train/NORMAL/IM-0007-0001.png", 1)
    draw(root / "train/PNEUMONIA/person1_bacteria_1.png", 2)
    draw(root / "train/PNEUMONIA/person1_virus_9.png", 3)
    draw(root / "val/NORMAL/NORMAL2-IM-0007-0001-0002.png", 4)
    draw(root / "test/NORMAL/IM-0001-0001.png", 5)
    draw(root / "test/PNEUMONIA/person2_virus_6.png", 6)
    return root


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    draw(tmp_path / "own/a.png", 1)
    draw(tmp_path / "own/b.png", 2)
    return tmp_path / "own/manifest.csv"


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


def test_split_folders_give_label_split_patient_and_cause(kermany: Path) -> None:
    found = by_name(read_items([kermany], OUTPUTS))
    assert Counter((item.split, item.label) for item in found.values()) == {
        ("train", 0): 1, ("train", 1): 2, ("val", 0): 1, ("test", 0): 1, ("test", 1): 1,
    }  # fmt: skip
    assert found["person1_bacteria_1.png"].group == found["person1_virus_9.png"].group == "kermany/patient person1"
    assert found["IM-0007-0001.png"].group == found["NORMAL2-IM-0007-0001-0002.png"].group
    assert [found[name].subgroup for name in ("IM-0001-0001.png", "person2_virus_6.png")] == ["normal", "viral"]
    assert {item.source for item in found.values()} == {"kermany"}


def test_three_outputs_come_from_the_file_names(kermany: Path) -> None:
    found = by_name(read_items([kermany], FINER))
    assert [found[f"person1_{cause}.png"].label for cause in ("bacteria_1", "virus_9")] == [1, 2]
    draw(kermany / "train/PNEUMONIA/person3.png", 7)
    with pytest.raises(DataError, match=r"person3\.png: label 'PNEUMONIA' is none of .* normal, bacterial, viral"):
        read_items([kermany], FINER)


def test_class_folders_alone_match_in_any_case_and_unknown_names_are_patients_of_their_own(tmp_path: Path) -> None:
    root = tmp_path / "own"
    for folder, name, seed in (("Normal", "1.png", 1), ("pneumonia", "1.png", 2), ("pneumonia", "2.png", 3)):
        draw(root / folder / name, seed)
    draw(root / "__MACOSX" / "x.png", 4)
    draw(root / ".thumbs" / "x.png", 5)
    items = read_items([root], OUTPUTS)
    assert [item.label for item in items] == [0, 1, 1]
    assert len({item.group for item in items}) == 3
    assert {item.split for item in items} == {""}


def test_names_without_a_patient_are_counted_in_one_warning(
    kermany: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read_items([kermany], OUTPUTS)
    assert "no patient" not in caplog.text
    for name, seed in (("alice_1", 11), ("alice_2", 12)):
        draw(kermany / f"train/NORMAL/{name}.png", seed)
    assert len({item.group for item in read_items([kermany], OUTPUTS)}) == 4 + 2
    (warning,) = [record.getMessage() for record in caplog.records if "no patient" in record.getMessage()]
    assert "no patient in 2 of 8 names" in warning
    assert "manifest" in warning
    assert "alice" not in caplog.text


def test_patient_id_of_a_dicom_file_goes_before_its_name_and_is_never_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "own"
    named = {"NORMAL/IM-0001-0001": "A^1", "NORMAL/a": "A^1", "PNEUMONIA/IM-0001-0001": "B^2", "PNEUMONIA/x": ""}
    for name, patient_id in named.items():
        dataset = make_radiograph()
        dataset.PatientID = patient_id
        save(dataset, root / f"{name}.dcm")
    (root / "PNEUMONIA/broken.dcm").write_bytes(b"no DICOM")
    one, same, other, broken, unnamed = (item.group for item in read_items([root], OUTPUTS))
    assert one == same != other
    assert [broken, unnamed] == [f"own/patient PNEUMONIA/{name}.dcm" for name in ("broken", "x")]
    assert "no patient in 2 of 5 names" in caplog.text
    assert not any(patient_id in caplog.text + one + other for patient_id in ("A^1", "B^2"))


@pytest.mark.parametrize("name", ["valid", "Validation"])
def test_validation_folder_has_many_names(kermany: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    (kermany / "val").rename(kermany / name)
    assert Counter(item.split for item in read_items([kermany], OUTPUTS)) == {"train": 3, "val": 1, "test": 2}
    assert "passed over" not in caplog.text


def test_images_that_no_class_folder_holds_are_named(kermany: Path, caplog: pytest.LogCaptureFixture) -> None:
    for seed, name in enumerate(("a", "train/b", "train/c", "extra/NORMAL/d", "__MACOSX/e", ".thumbs/f"), start=20):
        draw(kermany / f"{name}.png", seed)
    assert len(read_items([kermany], OUTPUTS)) == 6
    assert "4 images are passed over, for no class folder holds them: . (1), extra/NORMAL (1), train (2)" in caplog.text


def test_what_is_no_image_is_ignored_and_said(kermany: Path, caplog: pytest.LogCaptureFixture) -> None:
    (kermany / "train/NORMAL/notes.txt").write_text("x")
    (kermany / "train/NORMAL/._IM-0007-0001.png").write_text("x")
    assert len(read_items([kermany], OUTPUTS)) == 6
    assert "1 files ignored" in caplog.text
    assert "notes.txt" in caplog.text


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("train/COVID/1.png", r"COVID/1\.png: label 'COVID' is none of the recipe's outputs: normal, pneumonia"),
        ("train/NORMAL/deep/1.png", "deep: a folder inside a class folder"),
    ],
)
def test_folder_that_no_reader_understands_is_named(kermany: Path, extra: str, message: str) -> None:
    draw(kermany / extra, 9)
    with pytest.raises(DataError, match=message):
        read_items([kermany], OUTPUTS)


def test_missing_class_and_empty_or_unknown_path_are_named(kermany: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no image for 'fracture' in .*kermany"):
        read_items([kermany], (*OUTPUTS, "fracture"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    for name in ("empty", "nowhere", "notes.txt"):
        with pytest.raises(DataError, match=f"{name}: no image"):
            read_items([tmp_path / name], OUTPUTS)


def test_identical_bytes_join_patients_over_any_chain(tmp_path: Path) -> None:
    root = tmp_path / "own"
    for name, seed in (("person1_virus_1", 1), ("person2_virus_1", 1), ("person2_virus_2", 2), ("person3_virus_1", 2)):
        draw(root / "PNEUMONIA" / f"{name}.png", seed)
    draw(root / "NORMAL/IM-0004-0001.png", 3)
    assert Counter(item.group for item in read_items([root], OUTPUTS)) == {
        "own/patient person1": 4,
        "own/patient im4": 1,
    }


def test_patients_of_two_sources_are_joined_by_identical_bytes_only(tmp_path: Path) -> None:
    for root, seed in (("a", 1), ("b", 11)):
        for number in (5, 6):
            draw(tmp_path / root / "PNEUMONIA" / f"person{number}_virus_1.png", seed + number)
        draw(tmp_path / root / "NORMAL" / "IM-0001-0001.png", 99)
    both = read_items([tmp_path / "b", tmp_path / "a"], OUTPUTS)
    assert Counter(item.group for item in both) == {
        "b/patient im1": 2,  # the name of the source given first stays
        "b/patient person5": 1,
        "b/patient person6": 1,
        "a/patient person5": 1,
        "a/patient person6": 1,
    }


def test_folders_of_the_same_name_are_two_sources_and_the_same_folder_twice_is_refused(tmp_path: Path) -> None:
    for parent, seed in (("one", 1), ("two", 11)):
        draw(tmp_path / parent / "data/NORMAL/IM-0001-0001.png", seed)
        draw(tmp_path / parent / "data/PNEUMONIA/person1_virus_1.png", seed + 1)
    items = read_items([tmp_path / "one/data", tmp_path / "two/data"], OUTPUTS)
    assert [item.source for item in items] == ["data", "data", "data-2", "data-2"]
    assert len({item.group for item in items}) == 4
    with pytest.raises(DataError, match="given twice"):
        read_items([tmp_path / "one/data", tmp_path / "two/../one/data"], OUTPUTS)


def test_manifest_row_gives_every_field(manifest: Path) -> None:
    manifest.write_text(
        f"{HEADER}\na.png,Normal,p 1,,,,,,\nb.png, PNEUMONIA ,p2,Test,7.9,f,pa,clinic,Viral\n", encoding="utf-8-sig"
    )
    first, second = read_items([manifest], OUTPUTS)
    assert (first.source, first.group, first.split, first.age_years, first.sex) == (
        "own",
        "own/patient p 1",
        "",
        None,
        "",
    )
    assert second.path == manifest.parent / "b.png"
    assert (second.label, second.split, second.subgroup, second.source) == (1, "test", "viral", "clinic")
    assert (second.age_years, second.sex, second.view, second.group) == (7, "F", "PA", "clinic/patient p2")


def test_manifest_needs_three_columns_in_any_order_and_warns_of_unknown_ones(
    manifest: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest.write_text('"Patient ",LABEL,reader,path\n"p,1",normal,x,a.png\np2,pneumonia,y,b.png\n')
    assert [item.group for item in read_items([manifest], OUTPUTS)] == ["own/patient p,1", "own/patient p2"]
    assert "columns ignored: reader" in caplog.text


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("c.png,normal,p3,,,,,,", r"line 4: .*c\.png: No such file"),
        ("a.png,fracture,p3,,,,,,", "line 4: a.png: label 'fracture' is none of"),
        ("a.png,normal,,,,,,,", "line 4: patient is empty"),
        ("a.png,normal,p3,holdout,,,,,", "line 4: split is 'holdout'; known: train, val, test"),
        ("a.png,normal,p3,,414,,,,", "line 4: age is '414'"),
        ("a.png,normal,p3,,five,,,,", "line 4: age is 'five'"),
        ("a.png,normal,p3,,,X,,,", "line 4: sex is 'X'"),
        ("a.png,normal,p3,,,,LATERAL,,", "line 4: view is 'LATERAL'"),
        ("a.png,normal,p3,,,,,,,,", "line 4: more cells"),
        (".,normal,p3,,,,,,", "line 4: .*Is a directory"),
    ],
)
def test_mistake_in_a_manifest_names_file_and_line(manifest: Path, row: str, message: str) -> None:
    manifest.write_text(f"{HEADER}\na.png,normal,p1,,,,,,\nb.png,pneumonia,p2,,,,,,\n{row}\n")
    with pytest.raises(DataError, match=rf"manifest\.csv, {message}"):
        read_items([manifest], OUTPUTS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"path,label\na.png,normal\n", "no column patient; the header has path, label"),
        (b"", "no column path, label, patient; the header has nothing"),
        (b"path,label,patient\n", "no rows"),
        (b"path;label;patient\na.png;normal;p1\n", "commas, not by semicolons"),
        (b'path,label,patient\na.png,normal,"p1\nb.png,pneumonia,p2\n', "line 1 or later: .*stray quotation mark"),
        (
            b'path,label,patient\na.png,normal,p1\nb.png,normal,"' + b"x" * 140_000,
            "line 3 or later: .*stray quotation mark",
        ),
        ("path,label,patient\nGröße.png,normal,p1\n".encode("latin-1"), "not UTF-8"),
    ],
)
def test_table_that_is_no_manifest_is_named(manifest: Path, content: bytes, message: str) -> None:
    manifest.write_bytes(content)
    with pytest.raises(DataError, match=rf"manifest\.csv[:,] .*{message}"):
        read_items([manifest], OUTPUTS)


def write_npz(path: Path, **changes: np.ndarray) -> Path:
    """Write five 6 x 6 images in MedMNIST's arrays; the first of train and the one of test are identical."""
    images = np.random.default_rng(1).integers(0, 255, (5, 6, 6), dtype=np.uint8)
    images[4] = images[0]
    labels = np.array([[0], [1], [1], [0], [0]], dtype=np.uint8)
    arrays = {
        f"{split}_{kind}": values[part]
        for split, part in (("train", slice(0, 3)), ("val", slice(3, 4)), ("test", slice(4, 5)))
        for kind, values in (("images", images), ("labels", labels))
    }
    np.savez(path, **(arrays | changes))
    return path


def test_npz_rows_are_patients_of_their_own_joined_by_identical_pixels(tmp_path: Path) -> None:
    items = read_items([write_npz(tmp_path / "mnist.npz")], OUTPUTS)
    assert [(item.split, item.index, item.label) for item in items] == [
        ("train", 0, 0), ("train", 1, 1), ("train", 2, 1), ("val", 0, 0), ("test", 0, 0),
    ]  # fmt: skip
    assert items[0].sha256 == items[4].sha256
    assert items[0].group == items[4].group
    assert len({item.group for item in items}) == 4
    assert {item.source for item in items} == {"mnist"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_labels": np.array([[2]])}, "val_labels row 0: label 2"),
        ({"val_labels": np.array([[0], [1]])}, "1 val_images but 2 val_labels"),
        ({"val_images": np.zeros((1, 6, 6), dtype=np.float32)}, "pixels float32"),
    ],
)
def test_npz_of_another_content_is_named(tmp_path: Path, changes: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=rf"mnist\.npz: .*{message}"):
        read_items([write_npz(tmp_path / "mnist.npz", **changes)], OUTPUTS)


def test_broken_npz_is_named(tmp_path: Path) -> None:
    whole = write_npz(tmp_path / "mnist.npz").read_bytes()
    for content in (b"", b"no zip", whole[: len(whole) // 2]):
        (tmp_path / "mnist.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"mnist\.npz"):
            read_items([tmp_path / "mnist.npz"], OUTPUTS)


def test_real_folders_are_read_whole() -> None:
    items = read_items([data_folder("kermany224"), data_folder("nih")], OUTPUTS)
    assert Counter(item.source for item in items) == {"kermany224": 5232, "nih": 620}
    adults = [item for item in items if item.source == "nih"]
    assert len({item.group for item in adults}) == 413
    assert (min(item.age_years or 0 for item in adults), max(item.age_years or 0 for item in adults)) == (5, 85)
    assert Counter(item.sex for item in adults) == {"M": 326, "F": 294}
    assert {item.view for item in adults} == {"PA", "AP"}
    causes = Counter(item.label for item in read_items([data_folder("kermany224")], FINER))
    assert causes == {0: 1349, 1: 2538, 2: 1345}


def test_real_npz_is_read_whole() -> None:
    items = read_items([data_folder("pneumoniamnist", "pneumoniamnist.npz")], OUTPUTS)
    assert Counter(item.split for item in items) == {"train": 3494, "val": 524, "test": 388}
