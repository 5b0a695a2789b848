"""What the tests build their worlds from: drawn radiographs, real ones at full size, and their bytes."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileDataset

from models.card import Finding, Limits, ModelCard, Population
from pacs_node.phantom import draw_chest, make_radiograph

__all__ = [
    "as_bytes",
    "data_folder",
    "draw_chest",
    "make_bundle",
    "make_card",
    "make_population",
    "make_radiograph",
    "radiograph_from_jpeg",
    "required",
    "reread",
    "save",
    "store_pixels",
    "transcoded_by_gdcm",
]


def as_bytes(dataset: Dataset) -> bytes:
    """Return the data set as a Part 10 file."""
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def save(dataset: Dataset, path: Path) -> Path:
    """Write the data set as a Part 10 file and return where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def reread(dataset: Dataset) -> FileDataset:
    """Return the data set as a reader finds it: written to a Part 10 file and parsed again."""
    return pydicom.dcmread(io.BytesIO(as_bytes(dataset)))


def store_pixels(dataset: FileDataset, stored: np.ndarray, **attributes: Any) -> FileDataset:
    """Put the bit patterns of those integers into the native pixel data, then set DICOM keywords; None deletes."""
    bits = int(attributes.get("BitsAllocated", dataset.BitsAllocated))
    content = (stored.astype(np.int64) & (2**bits - 1)).astype(f"<u{bits // 8}").tobytes()
    dataset.PixelData = content + b"\0" * (len(content) % 2)
    dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
    for keyword, value in attributes.items():
        if value is not None:
            setattr(dataset, keyword, value)
        elif keyword in dataset:
            delattr(dataset, keyword)
    return dataset


def transcoded_by_gdcm(dataset: Dataset, syntax: str, folder: Path, *, is_lossy: bool = False) -> FileDataset:
    """Return the data set compressed by GDCM: the JPEG processes that pydicom cannot write.

    Parameters
    ----------
    syntax
        A name of `gdcm.TransferSyntax`.
    """
    import gdcm

    source, target = save(dataset, folder / "native.dcm"), folder / f"{syntax}.dcm"
    reader = gdcm.ImageReader()
    reader.SetFileName(str(source))
    assert reader.Read()
    change, codec = gdcm.ImageChangeTransferSyntax(), gdcm.JPEGCodec()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    if is_lossy:
        codec.SetLossless(False)
        codec.SetQuality(95)
        change.SetUserCodec(codec)
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(target))
    assert writer.Write()
    return pydicom.dcmread(target)


def radiograph_from_jpeg(path: Path, **options: Any) -> FileDataset:
    """Return a full-size radiograph with the grey values of a JPEG; the options are those of `make_radiograph`."""
    grey_HW = np.asarray(Image.open(path).convert("L"), dtype=np.float32) / 255.0
    return make_radiograph(pixels=grey_HW, **options)


def required(is_there: object, what: str) -> None:
    """Skip the test for want of `what`; in CI, where everything must be there, fail it."""
    if is_there:
        return
    if os.environ.get("CI"):
        pytest.fail(f"needs {what}: in CI nothing is skipped", pytrace=False)
    pytest.skip(f"needs {what}")


def data_folder(*parts: str) -> Path:
    """Return a folder, or file, of the shared data set."""
    folder = Path(os.environ.get("PACS_NODE_DATA", "../shared/data")).joinpath(*parts).resolve()
    required(folder.exists(), f"the data set {'/'.join(parts)} (set PACS_NODE_DATA)")
    return folder


def make_bundle(folder: Path, *, name: str = "drawn", version: str = "0.0.1", seed: int = 1) -> Path:
    """Write a valid bundle with random weights to `folder/name/version` and return that."""
    import hashlib

    import safetensors.torch
    import torch

    from models.networks import make_network

    torch.manual_seed(seed)
    weights = {
        key: v.half() if v.is_floating_point() else v for key, v in make_network("resnet50", 2).state_dict().items()
    }
    content = safetensors.torch.save(weights)
    bundle = folder / name / version
    bundle.mkdir(parents=True)
    (bundle / "weights.safetensors").write_bytes(content)
    (bundle / "card.toml").write_text(
        CARD.format(name=name, version=version, sha256=hashlib.sha256(content).hexdigest()), encoding="utf-8"
    )
    return bundle


def make_card(folder: Path = Path("nowhere"), **changes: Any) -> ModelCard:
    """Return a valid card in memory, for rooms that look at no weights."""
    finding = Finding(
        name="pneumonia",
        display="Pneumonia",
        code_value="233604007",
        coding_scheme_designator="SCT",
        code_meaning="Pneumonia",
    )
    values: dict[str, Any] = {
        "name": "drawn",
        "version": "0.0.1",
        "network": "resnet50",
        "outputs": ("normal", "pneumonia"),
        "input_size": 224,
        "findings": (finding,),
        "populations": (make_population(),),
        "out_of_distribution": None,
        "recipe": "none",
        "git_revision": "unknown",
        "weights_sha256": "0" * 64,
        "intended_use": "tests",
        "limitations": ("random",),
        "licence": "MIT",
        "training_data": {},
        "metrics": {},
        "folder": folder,
    }
    return ModelCard(**(values | changes))


def make_population(
    name: str = "children", age_years: tuple[int, int] = (1, 5), *, threshold: float = 0.5, **changes: Any
) -> Population:
    """Return patients of a card with those ages, who are undetermined within a tenth of the threshold."""
    limits = Limits(
        threshold=threshold,
        abstain_low=round(threshold - 0.1, 6),
        abstain_high=round(threshold + 0.1, 6),
        operating_points={"balanced": threshold},
    )
    values: dict[str, Any] = {"temperature": 1.0, "bias": (0.0, 0.0), "limits": {"pneumonia": limits}}
    return Population(name=name, age_years=age_years, **(values | changes))


CARD = """\
name = "{name}"
version = "{version}"
network = "resnet50"
outputs = ["normal", "pneumonia"]
input_size = 224
recipe = "none"
git_revision = "unknown"
weights_sha256 = "{sha256}"
intended_use = "tests"
limitations = ["random weights"]
licence = "MIT"

[[findings]]
name = "pneumonia"
display = "Pneumonia"
code_value = "233604007"
coding_scheme_designator = "SCT"
code_meaning = "Pneumonia"

[[populations]]
name = "children"
age_years = [1, 5]
temperature = 1.0
bias = [0.0, 0.0]

[populations.limits.pneumonia]
threshold = 0.5
abstain_low = 0.4
abstain_high = 0.6
operating_points = {{ balanced = 0.5 }}

[training_data]
description = "none"

[metrics]
"""
