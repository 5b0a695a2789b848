"""Images and their split. Takes a folder of labelled images; gives arrays in memory, grouped by patient.

The deterministic half of the pipeline is `models.preprocess`, the same code as in serving; its result is kept once
as 8-bit images. Shapes: N images, H rows, W columns.
"""

from __future__ import annotations

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from models.preprocess import from_array, squash

CACHE_SIZE = 224  # pixels; every stage's size is averaged from it
_SUFFIXES = {".jpeg", ".jpg", ".png"}
_PERSON = re.compile(r"person(\d+)", re.IGNORECASE)
_IM_NUMBER = re.compile(r"IM-(\d+)", re.IGNORECASE)


class DataError(Exception):
    """The images cannot be used for training; the message names the file or folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One labelled image.

    Attributes
    ----------
    label
        Index into the recipe's outputs.
    group
        Patient, joined with the patients of byte-identical images; never on both sides of a split.
    """

    path: Path
    label: int
    sha256: str
    group: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Items and their pixels: `pixels_N1HW` is uint8, range [0, 255], lung dark, in the order of the items."""

    items: tuple[Item, ...]
    pixels_N1HW: Tensor
    label_N: Tensor


def patient_of(name: str) -> str:
    """Return the patient that a file name carries: personN, or the IM number whatever its prefix; else the name."""
    if person := _PERSON.search(name):
        return f"person{int(person[1])}"
    if number := _IM_NUMBER.search(name):
        return f"im{int(number[1])}"
    return name


def find_items(root: Path, outputs: tuple[str, ...], splits: tuple[str, ...] = ("train", "val")) -> list[Item]:
    """Return the items of `root/{split}/{OUTPUT}`, sorted by path.

    Raises
    ------
    DataError
        A class of the recipe has no image.
    """
    found: list[tuple[Path, int, str]] = []
    for label, output in enumerate(outputs):
        paths = [
            path
            for split in splits
            for path in sorted((root / split / output.upper()).glob("*"))
            if path.suffix.lower() in _SUFFIXES
        ]
        if not paths:
            raise DataError(f"no image for {output!r}: looked in {root}/{{{','.join(splits)}}}/{output.upper()}")
        found += [(path, label, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths]
    groups = _groups([(patient_of(path.name), digest) for path, _, digest in found])
    return [
        Item(path=path, label=label, sha256=digest, group=group)
        for (path, label, digest), group in zip(found, groups, strict=True)
    ]


def _groups(keys: list[tuple[str, str]]) -> list[str]:
    """Return one group name per item: items that share a patient or a digest, over any chain, share the name."""
    parent: dict[str, str] = {}

    def root_of(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = key = parent[parent[key]]
        return key

    for patient, digest in keys:
        a, b = sorted((root_of(f"patient {patient}"), root_of(f"sha256 {digest}")))
        parent[b] = a  # the smaller name stays, whatever the order of the items
    return [root_of(f"patient {patient}") for patient, _ in keys]


def split(items: list[Item], *, validation_share: float, salt: str) -> tuple[list[Item], list[Item]]:
    """Return (training, validation); a group's side depends on its name and the salt only, so data may be added."""
    training: list[Item] = []
    validation: list[Item] = []
    for item in items:
        digest = hashlib.sha256(f"{salt}/{item.group}".encode()).digest()
        is_validation = int.from_bytes(digest[:8]) / 2**64 < validation_share
        (validation if is_validation else training).append(item)
    return training, validation


def data_sha256(items: list[Item]) -> str:
    """Return one digest of all files' contents, whatever their names and order."""
    return hashlib.sha256("\n".join(sorted(item.sha256 for item in items)).encode()).hexdigest()


def load_images(items: list[Item], title: str = "reading") -> Images:
    """Decode every item once.

    Raises
    ------
    DataError
        An image cannot be decoded; the message names it.
    """
    with ThreadPoolExecutor() as pool:
        planes = list(tqdm(pool.map(_load, [item.path for item in items]), total=len(items), desc=title, unit="img"))
    return Images(
        items=tuple(items),
        pixels_N1HW=torch.stack(planes),
        label_N=torch.tensor([item.label for item in items]),
    )


def _load(path: Path) -> Tensor:
    try:
        pixels = np.asarray(Image.open(path).convert("L"))
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{path}: {error}") from error
    image_1HW = squash(from_array(pixels), CACHE_SIZE)
    return (image_1HW * 255).round().to(torch.uint8)
