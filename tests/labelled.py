"""Labelled images for training: synthetic patients, drawn as noise; the sick are brighter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

_STEMS = {"NORMAL": "IM-{:04}-0001", "PNEUMONIA": "person{}_virus_1"}


def make_patients(root: Path, *, train: int = 12, test: int = 0) -> Path:
    """Write `root/{train,test}/{NORMAL,PNEUMONIA}` with so many one-image patients each; return the root."""
    random = np.random.default_rng(1)
    for folder, numbers in (("train", range(train)), ("test", range(500, 500 + test))):
        for output, stem in _STEMS.items():
            if numbers:
                (root / folder / output).mkdir(parents=True)
            for number in numbers:
                pixels = random.integers(0, 128, (40, 40)) + (100 if output == "PNEUMONIA" else 0)
                Image.fromarray(pixels.astype(np.uint8)).save(root / folder / output / f"{stem.format(number)}.png")
    return root
