"""Readers of labelled images, one per layout. Takes folders and files; gives Items, grouped by patient.

======================================================  =============================================================
layout                                                  patient
======================================================  =============================================================
folder with train, val, test, each with CLASS folders   a DICOM file's Patient ID; else from the file name: personN, or
folder with CLASS folders                               the IM number whatever its prefix; else a patient of its own
folder with labels.csv (the NIH subset)                 the column patient_id
NAME.npz (PneumoniaMNIST, of any size)                  unknown: every image is a patient of its own
NAME.csv (`training.manifest`)                          the column patient
======================================================  =============================================================

CLASS is an output of the recipe, whatever its case; val may be called valid or validation. Where the recipe's outputs
are finer than the folders (normal, bacterial, viral), the finer label comes from the file name (personN_bacteria_M,
personN_virus_M) or from the manifest's column subgroup. Images are JPEG, PNG (8 bits) or DICOM files.

Sources are told apart by name and joined by identical bytes only: PneumoniaMNIST and the Kermany folders are the same
radiographs at other sizes, which nothing here can see. Never train on one and judge on the other.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from pydicom import dcmread
from tqdm import tqdm

from models.preprocess import UNREADABLE
from training.items import DICOM_SUFFIXES, SPLITS, DataError, Item, group_of, label_of, sha256_of
from training.manifest import MANIFEST, NIH, read_table

logger = logging.getLogger("training")

_SUFFIXES = {".jpeg", ".jpg", ".png"} | DICOM_SUFFIXES
_SPLIT_FOLDERS = {name: name for name in SPLITS} | dict.fromkeys(("valid", "validation"), "val")
_PERSON = re.compile(r"person(\d+)", re.IGNORECASE)
_IM_NUMBER = re.compile(r"IM-(\d+)", re.IGNORECASE)
_CAUSE = re.compile(r"person\d+_(bacteria|virus)", re.IGNORECASE)
_SUBGROUPS = {"bacteria": "bacterial", "virus": "viral"}
_MEDMNIST_CLASSES = ("normal", "pneumonia")  # label 0, label 1
_BROKEN: tuple[type[Exception], ...] = (*UNREADABLE, BadZipFile)  # what a broken npz raises


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
        return read_table(path, source, outputs, MANIFEST)
    if (path / "labels.csv").is_file():
        return read_table(path / "labels.csv", source, outputs, NIH)
    if path.is_dir():
        return _read_folders(path, source, outputs)
    reason = "no reader for this file" if path.exists() else "there is no such file or folder"
    raise DataError(f"{path}: no image: {reason}; a folder, a .npz or a .csv manifest is needed")


def _read_folders(root: Path, source: str, outputs: tuple[str, ...]) -> list[Item]:
    splits = {folder: split for folder in _folders(root) if (split := _SPLIT_FOLDERS.get(folder.name.lower()))}
    items: list[Item] = []
    unnamed = 0
    read: set[Path] = set()
    for top, split in (splits or {root: ""}).items():
        for folder in _folders(top):
            read.add(folder)
            paths = _images_in(folder)
            for path in tqdm(paths, desc=f"indexing {folder}", unit="img", delay=2):
                subgroup = _subgroup_of(folder.name, path.name)
                name = path.relative_to(root).as_posix()
                patient = _patient_id_sha256(path) or patient_of(name)
                unnamed += patient == name
                items.append(
                    Item(
                        path=path,
                        label=label_of(folder.name, subgroup, outputs, str(path)),
                        sha256=sha256_of(path),
                        group=group_of(source, patient),
                        source=source,
                        split=split,
                        subgroup=subgroup,
                    )
                )
    if not items:
        wanted = f"{root}/{{{','.join(SPLITS)}}}/{outputs[0].upper()} or {root}/{outputs[0].upper()}"
        raise DataError(f"{root}: no image: looked for {wanted}, for labels.csv, and for images in them")
    _warn_of_unread(root, read)
    if unnamed:
        logger.warning(
            "%s: no patient in %d of %d names (personN, IM-N, or a DICOM file's Patient ID): each is taken for a "
            "patient of its own, so one patient may stand on both sides of a split; name the patients in a manifest",
            root,
            unnamed,
            len(items),
        )
    return items


def _patient_id_sha256(path: Path) -> str:
    """Return a digest of a DICOM file's Patient ID, which nobody is to read; empty where it has none.

    It goes before the file name: many programs call every patient's first image IM-0001-0001.dcm.
    """
    if path.suffix.lower() not in DICOM_SUFFIXES:
        return ""
    try:
        element = dcmread(path, specific_tags=["PatientID"], stop_before_pixels=True).get_item("PatientID")
        identifier = element.value.strip(b" \0") if element is not None else b""  # raw: pydicom's warnings show values
    except UNREADABLE:  # named when its pixels are read
        return ""
    return hashlib.sha256(identifier).hexdigest()[:16] if identifier else ""


def _warn_of_unread(root: Path, read: set[Path]) -> None:
    """Log where images lie that no class folder holds: loose ones, and those of folders beside train, val and test."""
    unread = Counter(
        path.parent.relative_to(root).as_posix()
        for path in sorted(root.rglob("*"))
        if path.suffix.lower() in _SUFFIXES
        and path.parent not in read
        and not any(part.startswith((".", "__")) for part in path.relative_to(root).parts)
    )
    if unread:
        folders = ", ".join(f"{folder} ({count})" for folder, count in unread.items())
        logger.warning(
            "%s: %d images are passed over, for no class folder holds them: %s", root, unread.total(), folders
        )


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
                    label=label_of(name, "", outputs, where),
                    sha256=hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest(),
                    group=group_of(source, f"{split} {index}"),
                    source=source,
                    split=split,
                )
            )
    return items


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
