"""What `make demo` sends: a folder's images, a real radiograph of pydicom's test data, or drawn phantoms."""

from __future__ import annotations

import contextlib
import socket
import warnings
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import numpy as np
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.data.download import get_url

from pacs_node.errors import ConfigError
from pacs_node.phantom import make_radiograph

SAMPLE = "RG1_UNCR.dcm"
"""An adult's chest radiograph among pydicom's test data (NEMA sample)."""
PHANTOMS = 4
PICTURES = {".jpeg", ".jpg", ".png"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    folder: Path
    said: str
    """What they are, for the person before the terminal."""


def gather_images(folder: Path | None, scratch: Path) -> Images:
    """Put into `scratch` what is sent: the images of `folder`, else a real radiograph, else drawn phantoms.

    Raises
    ------
    ConfigError
        `folder` does not exist, or holds no image.
    """
    scratch.mkdir()
    if folder is not None:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder")
        count = _gather(folder, scratch)
        if not count:
            raise ConfigError(f"{folder}: no DICOM, JPEG or PNG file in it")
        return Images(folder=scratch, said=f"{count} images from {folder}.")
    sample = _sample()
    if sample:
        (scratch / SAMPLE).write_bytes(sample.read_bytes())
        said = f"A real radiograph: {SAMPLE} of pydicom's test data, an adult's. What is said of it means nothing."
        return Images(folder=scratch, said=said)
    for seed in range(PHANTOMS):
        make_radiograph(seed=seed + 1, rows=2048, columns=1680).save_as(
            scratch / f"phantom-{seed + 1}.dcm", enforce_file_format=True
        )
    said = (
        f"{PHANTOMS} drawn PHANTOMS (no network for a real radiograph): the answers show that the line works, no more."
    )
    return Images(folder=scratch, said=said)


def _sample() -> Path | None:
    """Return the sample from pydicom's cache, else from where pydicom keeps it if that can be reached."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns at length when it cannot download
        known = get_testdata_file(SAMPLE, download=False)
        if known is None and _is_reachable(urlsplit(get_url(SAMPLE))):
            with contextlib.suppress(OSError, RuntimeError, ValueError):
                known = get_testdata_file(SAMPLE, download=True)
    return Path(str(known)) if known else None


def _is_reachable(url: SplitResult) -> bool:
    try:
        socket.create_connection((url.hostname or "", url.port or 443), timeout=3).close()
    except OSError:
        return False
    return True


def _gather(folder: Path, scratch: Path) -> int:
    """Link DICOM files and wrap pictures as radiographs of unknown age; return how many."""
    count = 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        target = scratch / f"{count:04d}-{path.stem[:40]}.dcm"
        if path.suffix.lower() in PICTURES:
            grey_HW = np.asarray(Image.open(path).convert("L"), dtype=np.float32) / 255
            made = make_radiograph(seed=count + 1, modality="CR", bits_stored=8, pixels=grey_HW, patient_age=None)
            made.save_as(target, enforce_file_format=True)
        elif _is_dicom(path):
            target.write_bytes(path.read_bytes())
        else:
            continue
        count += 1
    return count


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"
