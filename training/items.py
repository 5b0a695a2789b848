"""One labelled image, and what every reader makes it from: its label, its patient's group, its digest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

SPLITS = ("train", "val", "test")
DICOM_SUFFIXES = {".dcm", ".dicom"}


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


def label_of(name: str, subgroup: str, outputs: tuple[str, ...], where: str) -> int:
    """Return the output that a label names, or else the one that the finer label names.

    Raises
    ------
    DataError
        It is none; `where` says which file or row.
    """
    known = [output.lower() for output in outputs]
    for candidate in (name.lower(), subgroup):
        if candidate in known:
            return known.index(candidate)
    finer = f" (finer label {subgroup!r})" if subgroup else ""
    raise DataError(f"{where}: label {name!r}{finer} is none of the recipe's outputs: {', '.join(outputs)}")


def sha256_of(path: Path) -> str:
    """Return the digest of a file's bytes.

    Raises
    ------
    DataError
        The file cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error


def group_of(source: str, patient: str) -> str:
    """Return the group of a source's patient, as long as no identical bytes join it with others."""
    return f"{source.replace('/', '_')}/patient {patient}"
