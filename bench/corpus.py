"""Files to send: drawn radiographs of two sizes, each with pixels and UIDs of its own, made once per bench."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from pacs_node.phantom import draw_chest, make_radiograph


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One size of radiograph; a name, and what `make_radiograph` needs."""

    name: str
    modality: str
    rows: int
    columns: int
    bits_stored: int

    @property
    def size_mb(self) -> float:
        return self.rows * self.columns * (1 if self.bits_stored <= 8 else 2) / 1e6


SMALL = Kind(name="small", modality="CR", rows=512, columns=512, bits_stored=8)
LARGE = Kind(name="large", modality="DX", rows=2500, columns=2048, bits_stored=12)


def make_files(kind: Kind, count: int, folder: Path, *, first_seed: int = 1) -> list[Path]:
    """Write `count` one-image studies; equal seeds give equal files."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_make_file(kind, folder, seed) for seed in range(first_seed, first_seed + count)]


def _make_file(kind: Kind, folder: Path, seed: int) -> Path:
    path = folder / f"{kind.name}-{seed:06d}.dcm"
    if not path.exists():
        # Drawing takes longer than sending: each image is the one drawing, rolled by its seed.
        grey_HW = np.roll(_drawing(kind.rows, kind.columns), (seed % 97, seed % 89, seed), axis=(0, 1, 1))
        dataset = make_radiograph(
            modality=kind.modality,
            rows=kind.rows,
            columns=kind.columns,
            bits_stored=kind.bits_stored,
            seed=seed,
            pixels=grey_HW,
        )
        dataset.save_as(path, enforce_file_format=True)
    return path


@cache
def _drawing(rows: int, columns: int) -> np.ndarray:
    return draw_chest(rows, columns, seed=1)
