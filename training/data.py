"""Split and pixels. Takes Items; gives training, validation and test by patient, and their images, cached once.

The deterministic half of the pipeline is `models.preprocess`, the same code as in serving; its very result is kept on
disk, one float32 file per image, named by content: runs of any recipe share a cache folder. MONAI's PersistentDataset
(1.6.1) is not used because it writes through the system's temporary folder (not atomic where that is another file
system) and breaks off on a truncated file. Shapes: N images, H rows, W columns; 1 is the grey channel.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from pydicom import dcmread
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from models import preprocess
from models.pictures import DEEP_MODES
from models.preprocess import UNREADABLE, ImageUnfit, from_array, read_radiograph, squash
from training.items import DICOM_SUFFIXES, DataError, Item
from training.settings import Recipe

logger = logging.getLogger("training")

_BROKEN: tuple[type[Exception], ...] = (*UNREADABLE, SyntaxError, Image.DecompressionBombError)  # PNG: SyntaxError


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Who trains, who chooses, who decides.

    Attributes
    ----------
    left_out
        Items of train or val whose patient, or a byte-identical image, stands in an official test split.
    """

    training: tuple[Item, ...]
    validation: tuple[Item, ...]
    test: tuple[Item, ...]
    left_out: tuple[Item, ...]


def split_items(
    items: Sequence[Item], *, validation_share: float, salt: str, shares: Mapping[str, float] | None = None
) -> Split:
    """Return the items by side; no patient and no byte-identical image stands on two sides.

    The official test split is held out. All others, an official val folder included, are split again: a group goes to
    validation if the hash of the salt and its patient lies below the share. Nothing else counts, so data that is added
    later moves nobody; quotas by class would, and so put patients whom the last model learned from among those who
    judge the next. The share of every source and class is therefore met by the law of large numbers, within a few
    points from some hundred patients on (`uneven_shares` says where it is not); `shares` gives a source (the one that
    a group is named after) a share of its own.
    """
    share_of = shares or {}
    test = tuple(item for item in items if item.split == "test")
    held_out = {item.group for item in test}
    sides: tuple[list[Item], list[Item], list[Item]] = ([], [], [])
    for item in items:
        if item.split != "test":
            side = (
                2
                if item.group in held_out
                else int(_fraction(salt, item.group) < share_of.get(item.group.partition("/")[0], validation_share))
            )
            sides[side].append(item)
    if sides[2]:
        logger.warning("%d images are left out: their patients stand in the official test split", len(sides[2]))
    return Split(training=tuple(sides[0]), validation=tuple(sides[1]), test=test, left_out=tuple(sides[2]))


def recipe_split(items: Sequence[Item], recipe: Recipe) -> Split:
    """Return the items by side, as a recipe says."""
    return split_items(
        items, validation_share=recipe.validation_share, salt=recipe.split_salt, shares=recipe.validation_shares
    )


def uneven_shares(split: Split, recipe: Recipe) -> list[str]:
    """Return a sentence for every class of a source whose share of validation patients is far from the recipe's."""
    sentences = []
    everyone = (*split.training, *split.validation)
    for source, label in sorted({(item.source, item.label) for item in everyone}):
        both, chosen = (
            len({item.group for item in items if (item.source, item.label) == (source, label)})
            for items in (everyone, split.validation)
        )
        meant = recipe.validation_shares.get(source, recipe.validation_share)
        if not meant / 2 <= chosen / both <= 2 * meant:
            sentences.append(
                f"validation holds {chosen} of {both} patients of {source} with {recipe.outputs[label]}, where "
                f"{meant:.1%} were meant; another --set split_salt=... may divide them better"
            )
    return sentences


def _fraction(salt: str, group: str) -> float:
    """Return a group's place in [0, 1): by its patient alone, so that a renamed or moved source changes nothing."""
    patient = group.partition("/")[2]
    return int.from_bytes(hashlib.sha256(f"{salt}/{patient}".encode()).digest()[:8]) / 2**64


def data_sha256(items: Sequence[Item]) -> str:
    """Return one digest of all images' contents, whatever their names and order."""
    return hashlib.sha256("\n".join(sorted(item.sha256 for item in items)).encode()).hexdigest()


def items_sha256(items: Sequence[Item]) -> str:
    """Return one digest of items as a run meets them: contents, labels and sources, in their order."""
    rows = (f"{item.sha256} {item.label} {item.source}" for item in items)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


class Images(Dataset[Tensor]):
    """Items and their preprocessed pixels, read from the cache one by one; made by `load_images`.

    Attributes
    ----------
    items
        In the order of the indices.
    label_N
        int64, index into the recipe's outputs.
    size
        Side of the images, pixels.
    skipped
        Files that could not be read and are not among the items.
    """

    def __init__(self, items: Sequence[Item], *, size: int, cache: Path, skipped: tuple[Path, ...] = ()) -> None:
        self.items = tuple(items)
        self.label_N = torch.tensor([item.label for item in self.items], dtype=torch.int64)
        self.size = size
        self.skipped = skipped
        self._cache = cache

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Tensor:
        """Return image_1HW, float32, shape (1, size, size), range [0, 1], lung dark: bit-equal to serving."""
        item = self.items[index]
        kept = self._kept(item)
        try:
            values = np.fromfile(kept, dtype=np.float32)
        except FileNotFoundError:
            values = np.empty(0, dtype=np.float32)
        if values.size != self.size**2:  # torn, or swept away
            return self._keep(item)
        return torch.from_numpy(values).view(1, self.size, self.size)

    def fill(self, index: int) -> None:
        """Make sure that an image is in the cache.

        Raises
        ------
        DataError
            The image cannot be read; the message names it.
        """
        kept = self._kept(self.items[index])
        if not kept.is_file() or kept.stat().st_size != 4 * self.size**2:
            self._keep(self.items[index])

    def _kept(self, item: Item) -> Path:
        return self._cache / f"{item.sha256}-{self.size}-{_VERSION}.f32"

    def _keep(self, item: Item) -> Tensor:
        """Preprocess an image and write it; a crash, or a second run, leaves a whole file or none."""
        image_1HW = squash(_read_grey(item), self.size)
        partial = self._cache / f"{uuid.uuid4().hex}.partial"
        try:
            image_1HW.numpy().tofile(partial)
            partial.replace(self._kept(item))
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise CacheError(f"cannot write the cache {self._cache}: {error.strerror}") from error
        return image_1HW


class CacheError(DataError):
    """The cache folder cannot be written; no image is to blame."""


def load_images(
    items: Sequence[Item], *, size: int, cache: Path, skip_bad: bool = False, title: str = "reading"
) -> Images:
    """Decode every item that the cache does not hold yet, on all cores, and return them all.

    Parameters
    ----------
    size
        Side of the images, pixels.
    cache
        Folder, made if need be; several runs may share it at the same time.
    skip_bad
        Leave out what cannot be read, and list it, instead of stopping.

    Raises
    ------
    DataError
        Images cannot be read (the message names every one), or none is left, or the cache cannot be written.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(f"cannot write the cache {cache}: {error.strerror}") from error
    images = Images(items, size=size, cache=cache)

    def fault_of(index: int) -> str:
        try:
            images.fill(index)
        except CacheError:
            raise
        except DataError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor() as pool:
        faults = list(tqdm(pool.map(fault_of, range(len(images))), total=len(images), desc=title, unit="img"))
    if not any(faults):
        return images
    named = [fault for fault in faults if fault]
    if not skip_bad:
        raise DataError("\n  ".join([f"{len(named)} images cannot be read (--skip-bad leaves them out):", *named]))
    for fault in named:
        logger.warning("skipped: %s", fault)
    good = [item for item, fault in zip(items, faults, strict=True) if not fault]
    if not good:
        raise DataError(f"none of {len(items)} images can be read, the first: {named[0]}")
    skipped = tuple(item.path for item, fault in zip(items, faults, strict=True) if fault)
    return Images(good, size=size, cache=cache, skipped=skipped)


def _read_grey(item: Item) -> np.ndarray:
    """Return grey_HW by the door of `models.preprocess` that the content calls for."""
    try:
        if item.index is not None:
            return from_array(_rows_of(item.path, item.split)[item.index])
        if _is_dicom(item.path):
            return read_radiograph(dcmread(item.path)).grey_HW
        with Image.open(item.path) as image:
            if image.mode.startswith(DEEP_MODES):
                raise DataError(f"{item.path}: more than 8 bits; give the DICOM file, or an 8-bit image")
            return from_array(np.asarray(ImageOps.exif_transpose(image).convert("L")))
    except ImageUnfit as unfit:
        raise DataError(f"{item.path}: {unfit.code} {unfit.detail}".rstrip()) from unfit
    except _BROKEN as error:
        raise DataError(f"{item.path}: {error}") from error


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM" or path.suffix.lower() in DICOM_SUFFIXES


@lru_cache(maxsize=3)
def _rows_of(path: Path, split: str) -> np.ndarray:
    with np.load(path) as arrays:
        pixels: np.ndarray = arrays[f"{split}_images"]
    return pixels


# Whatever changes the pixels must change the cache's file names.
_VERSION = hashlib.sha256((inspect.getsource(preprocess) + inspect.getsource(_read_grey)).encode()).hexdigest()[:12]
