"""Readers of labelled images, one per layout. Takes folders and files; gives Items, grouped by patient.

======================================================  =============================================================
layout                                                  patient
======================================================  =============================================================
folder with train, val, test, each with CLASS folders   from the file name: personN, or the IM number whatever its
folder with CLASS folders                               prefix; a name that says neither is a patient of its own
folder with labels.csv (the NIH subset)                 the column patient_id
NAME.npz (PneumoniaMNIST, of any size)                  unknown: every image is a patient of its own
NAME.csv (a manifest)                                   the column patient
======================================================  =============================================================

CLASS is an output of the recipe, whatever its case. Where the recipe's outputs are finer than the folders (normal,
bacterial, viral), the finer label comes from the file name (personN_bacteria_M, personN_virus_M) or from the
manifest's column subgroup. Images are JPEG, PNG (8 bits) or DICOM files.

Sources are told apart by name and joined by identical bytes only: PneumoniaMNIST and the Kermany folders are the same
radiographs at other sizes, which nothing here can see. Never train on one and judge on the other.

The manifest
------------
UTF-8, comma separated (RFC 4180), one header line, one row per image. Column names in any order and case; columns
that are not listed here are ignored, with one warning that names them. An empty cell says nothing.

========  ========  =================================================================================================
column    needed    value
========  ========  =================================================================================================
path      yes       the image, relative to the CSV file (or absolute)
label     yes       one of the recipe's outputs, in any case
patient   yes       any name, unique within the source; the same patient never stands on both sides of a split
split     -         train, val or test; test is held out, all others are split again by patient
age       -         whole or decimal years, 0 to 120
sex       -         F, M or O
view      -         PA or AP
source    -         where the image comes from; without it, the name of the CSV file's folder
subgroup  -         a finer label, for judging it apart (bacterial, viral, ...)
========  ========  =================================================================================================
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from tqdm import tqdm

from models.preprocess import UNREADABLE

logger = logging.getLogger("training")

SPLITS = ("train", "val", "test")
_SUFFIXES = {".jpeg", ".jpg", ".png", ".dcm", ".dicom"}
_PERSON = re.compile(r"person(\d+)", re.IGNORECASE)
_IM_NUMBER = re.compile(r"IM-(\d+)", re.IGNORECASE)
_CAUSE = re.compile(r"person\d+_(bacteria|virus)", re.IGNORECASE)
_SUBGROUPS = {"bacteria": "bacterial", "virus": "viral"}
_NEEDED = ("path", "label", "patient")
_OPTIONAL = ("split", "age", "sex", "view", "source", "subgroup")
_MANIFEST = {name: name for name in (*_NEEDED, *_OPTIONAL)}
_NIH = {"path": "file", "label": "folder_label", "patient": "patient_id", "age": "age", "sex": "sex", "view": "view"}
_MEDMNIST_CLASSES = ("normal", "pneumonia")  # label 0, label 1
_AGE_MAX = 120  # years
_BROKEN: tuple[type[Exception], ...] = (*UNREADABLE, BadZipFile)  # what a broken npz raises


class DataError(Exception):
    """The images cannot be used for training; the message names the file, row or folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One labelled image.

    Attributes
    ----------
    path
        Image or DICOM file; for an npz, the npz itself.
    index
        Row of `{split}_images` in an npz, else None.
    label
        Index into the recipe's outputs.
    sha256
        Of the file's bytes; for an npz, of the row's shape and bytes.
    group
        `source/patient NAME`, joined with the patients of byte-identical images; never on both sides of a split.
    source
        Name of the data set.
    split
        "train", "val", "test", or "" where the source says nothing.
    subgroup
        The finer label that the file name or manifest knows, or "".
    age_years, sex, view
        None or "" where unknown; sex is "F", "M" or "O", view "PA" or "AP".
    """

    path: Path
    index: int | None = None
    label: int
    sha256: str
    group: str
    source: str
    split: str = ""
    subgroup: str = ""
    age_years: int | None = None
    sex: str = ""
    view: str = ""


def read_items(data: Sequence[Path], outputs: tuple[str, ...]) -> list[Item]:
    """Return the labelled images of all paths, in the order of the paths, with patients joined by identical bytes.

    Patients of different sources are different patients, unless their images are byte-identical.

    Raises
    ------
    DataError
        A path has no known layout, a label is none of the outputs, a cell is wrong, or an output has no image.
    """
    names = _source_names(data)
    items = [item for path, name in zip(data, names, strict=True) for item in _read(path, name, outputs)]
    counts = Counter(item.label for item in items)
    for label, output in enumerate(outputs):
        if not counts[label]:
            raise DataError(f"no image for {output!r} in {', '.join(map(str, data))}")
    return _joined(items)


def patient_of(name: str) -> str:
    """Return the patient that a file name carries: personN, or the IM number whatever its prefix; else the name."""
    if person := _PERSON.search(name):
        return f"person{int(person[1])}"
    if number := _IM_NUMBER.search(name):
        return f"im{int(number[1])}"
    return name


def _source_names(data: Sequence[Path]) -> list[str]:
    """Return one name per path: of the folder, or of the npz; a name's second bearer gets a number."""
    names: list[str] = []
    bearers: Counter[str] = Counter()
    paths = [path.resolve() for path in data]
    for path in paths:
        if paths.count(path) > 1:
            raise DataError(f"{path} is given twice")
        name = path.parent.name if path.suffix.lower() == ".csv" else path.stem if path.is_file() else path.name
        bearers[name] += 1
        names.append(name if bearers[name] == 1 else f"{name}-{bearers[name]}")
    return names


def _read(path: Path, source: str, outputs: tuple[str, ...]) -> list[Item]:
    """Return the items of one path by the reader of its layout."""
    if path.is_file() and path.suffix.lower() == ".npz":
        return _read_npz(path, source, outputs)
    if path.is_file() and path.suffix.lower() == ".csv":
        return _read_table(path, source, outputs, _MANIFEST)
    if (path / "labels.csv").is_file():
        return _read_table(path / "labels.csv", source, outputs, _NIH)
    if path.is_dir():
        return _read_folders(path, source, outputs)
    reason = "no reader for this file" if path.exists() else "there is no such file or folder"
    raise DataError(f"{path}: no image: {reason}; a folder, a .npz or a .csv manifest is needed")


def _read_folders(root: Path, source: str, outputs: tuple[str, ...]) -> list[Item]:
    splits = {folder: folder.name.lower() for folder in _folders(root) if folder.name.lower() in SPLITS}
    items: list[Item] = []
    for top, split in (splits or {root: ""}).items():
        for folder in _folders(top):
            paths = _images_in(folder)
            for path in tqdm(paths, desc=f"indexing {folder}", unit="img", delay=2):
                subgroup = _subgroup_of(folder.name, path.name)
                items.append(
                    Item(
                        path=path,
                        label=_label(folder.name, subgroup, outputs, str(path)),
                        sha256=_sha256_of(path),
                        group=_group(source, patient_of(path.relative_to(root).as_posix())),
                        source=source,
                        split=split,
                        subgroup=subgroup,
                    )
                )
    if not items:
        wanted = f"{root}/{{{','.join(SPLITS)}}}/{outputs[0].upper()} or {root}/{outputs[0].upper()}"
        raise DataError(f"{root}: no image: looked for {wanted}, for labels.csv, and for images in them")
    return items


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def _images_in(folder: Path) -> list[Path]:
    """Return the image files of a class folder, sorted; say what else is there."""
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if nested := [path for path in entries if path.is_dir()]:
        raise DataError(
            f"{nested[0]}: a folder inside a class folder; flatten it, or describe the images in a manifest"
        )
    images = [path for path in entries if path.suffix.lower() in _SUFFIXES]
    if others := [path.name for path in entries if path.suffix.lower() not in _SUFFIXES]:
        logger.warning("%s: %d files ignored that are no images, the first is %s", folder, len(others), others[0])
    return images


def _subgroup_of(folder: str, name: str) -> str:
    if cause := _CAUSE.search(name):
        return _SUBGROUPS[cause[1].lower()]
    return "normal" if folder.lower() == "normal" else ""


def _read_npz(path: Path, source: str, outputs: tuple[str, ...]) -> list[Item]:
    items: list[Item] = []
    for split in SPLITS:
        try:
            with np.load(path) as arrays:
                pixels_NHW, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"].reshape(-1).tolist()
        except _BROKEN as error:
            raise DataError(f"{path}: {error}; train, val and test with _images and _labels are needed") from error
        if len(labels) != len(pixels_NHW):
            raise DataError(f"{path}: {len(pixels_NHW)} {split}_images but {len(labels)} {split}_labels")
        for index, (pixels, label) in enumerate(zip(pixels_NHW, labels, strict=True)):
            where = f"{path}: {split}_labels row {index}"
            if pixels.dtype != np.uint8 or label not in range(len(_MEDMNIST_CLASSES)):
                raise DataError(f"{where}: label {label}, pixels {pixels.dtype}; 0 or 1 and uint8 are needed")
            name = _MEDMNIST_CLASSES[label]
            items.append(
                Item(
                    path=path,
                    index=index,
                    label=_label(name, "", outputs, where),
                    sha256=hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest(),
                    group=_group(source, f"{split} {index}"),
                    source=source,
                    split=split,
                )
            )
    return items


def _read_table(path: Path, source: str, outputs: tuple[str, ...], columns: Mapping[str, str]) -> list[Item]:
    """Return one item per row; `columns` names this table's column for each column of the manifest."""
    items: list[Item] = []
    for line, row in _rows(path, columns):
        try:
            items.append(_item_of_row(path.parent, source, outputs, row))
        except DataError as error:
            raise DataError(f"{path}, line {line}: {error}") from error
    if not items:
        raise DataError(f"{path}: no image: the table has no rows")
    return items


def _rows(path: Path, columns: Mapping[str, str]) -> Iterable[tuple[int, dict[str, str]]]:
    """Yield line number and cells by the manifest's column names, stripped."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f'{path}: not UTF-8 ({error}); a spreadsheet saves it as "CSV UTF-8"') from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    header = {(name or "").strip().lower(): name for name in reader.fieldnames or []}
    if missing := [columns[name] for name in _NEEDED if columns[name] not in header]:
        hint = "; cells are parted by commas, not by semicolons" if any(";" in name for name in header) else ""
        found = ", ".join(header) or "nothing"
        raise DataError(f"{path}: no column {', '.join(missing)}; the header has {found}{hint}")
    if columns is _MANIFEST and (unknown := sorted(set(header) - set(columns))):
        logger.warning("%s: columns ignored: %s; known: %s", path, ", ".join(unknown), ", ".join(columns))
    for row in reader:
        if None in row:
            raise DataError(f"{path}, line {reader.line_num}: more cells than the header has columns")
        cells = {name: row.get(header.get(column, "")) or "" for name, column in columns.items()}
        yield reader.line_num, {name: cell.strip() for name, cell in cells.items()}


def _item_of_row(folder: Path, source: str, outputs: tuple[str, ...], row: Mapping[str, str]) -> Item:
    """Return the item of one row; the caller adds file and line to what is raised."""
    for name in _NEEDED:
        if not row[name]:
            raise DataError(f"{name} is empty")
    path = folder / row["path"]
    source = row.get("source") or source
    subgroup = row.get("subgroup", "").lower()
    return Item(
        path=path,
        label=_label(row["label"], subgroup, outputs, row["path"]),
        sha256=_sha256_of(path),
        group=_group(source, row["patient"]),
        source=source,
        split=_one_of("split", row.get("split", "").lower(), SPLITS),
        subgroup=subgroup,
        age_years=_age_years(row.get("age", "")),
        sex=_one_of("sex", row.get("sex", "").upper(), ("F", "M", "O")),
        view=_one_of("view", row.get("view", "").upper(), ("PA", "AP")),
    )


def _one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    if value and value not in known:
        raise DataError(f"{name} is {value!r}; known: {', '.join(known)}, or empty")
    return value


def _age_years(text: str) -> int | None:
    if not text:
        return None
    try:
        years = float(text)
    except ValueError:
        years = -1.0
    if not 0 <= years <= _AGE_MAX:
        raise DataError(f"age is {text!r}; years from 0 to {_AGE_MAX} are needed, or an empty cell")
    return int(years)


def _label(name: str, subgroup: str, outputs: tuple[str, ...], where: str) -> int:
    """Return the output that a label names, or else the one that the finer label names."""
    known = [output.lower() for output in outputs]
    for candidate in (name.lower(), subgroup):
        if candidate in known:
            return known.index(candidate)
    finer = f" (finer label {subgroup!r})" if subgroup else ""
    raise DataError(f"{where}: label {name!r}{finer} is none of the recipe's outputs: {', '.join(outputs)}")


def _sha256_of(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error


def _group(source: str, patient: str) -> str:
    return f"{source.replace('/', '_')}/patient {patient}"


def _joined(items: list[Item]) -> list[Item]:
    """Give all items that share a group or a digest, over any chain, the same group.

    The name that stays is the smallest one of the source given first: it depends neither on the order of the files
    nor on what a later source adds.
    """
    rank = {source: position for position, source in enumerate(dict.fromkeys(item.source for item in items))}
    parent: dict[tuple[int, str], tuple[int, str]] = {}

    def root_of(key: tuple[int, str]) -> tuple[int, str]:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = key = parent[parent[key]]
        return key

    patients = [(rank[item.source], item.group) for item in items]
    for item, patient in zip(items, patients, strict=True):
        first, second = sorted((root_of(patient), root_of((len(rank), item.sha256))))
        parent[second] = first
    return [replace(item, group=root_of(patient)[1]) for item, patient in zip(items, patients, strict=True)]
