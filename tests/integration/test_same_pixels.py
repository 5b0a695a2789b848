"""The same radiograph gives the same answer, whatever it was stored as."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from models.card import ModelCard
from models.predictor import Predictor
from models.preprocess import from_array, squash
from models.registry import Registry
from models.suitability import examine
from tests.builders import as_bytes, data_folder, radiograph_from_jpeg

BUNDLES = Path(__file__).parents[2] / "models" / "bundles"
VARIANTS = [(bits, photometric) for bits in (8, 12, 14) for photometric in ("MONOCHROME1", "MONOCHROME2")]


@pytest.fixture(scope="module")
def card() -> ModelCard:
    return Registry([BUNDLES]).newest()


@pytest.fixture(scope="module")
def predictor(card: ModelCard) -> Predictor:
    return Predictor(card)


def dicom_image(path: Path, card: ModelCard, bits: int, photometric: str) -> np.ndarray:
    written = as_bytes(radiograph_from_jpeg(path, bits_stored=bits, photometric=photometric))
    examination = examine(pydicom.dcmread(io.BytesIO(written)), card)
    assert examination.image_1HW is not None, examination.warnings
    return examination.image_1HW


@pytest.mark.parametrize("folder", ["NORMAL", "PNEUMONIA"])
def test_jpeg_and_dicom_of_any_depth_and_polarity_agree(folder: str, card: ModelCard, predictor: Predictor) -> None:
    for path in sorted(data_folder("originals", folder).iterdir())[:8]:
        jpeg_1HW = squash(from_array(np.asarray(Image.open(path).convert("L"))), card.input_size).numpy()
        variants = [dicom_image(path, card, bits, photometric) for bits, photometric in VARIANTS]
        predictions = predictor.predict(np.stack([jpeg_1HW, *variants]))
        expected, *found = [prediction.probability for (prediction,) in predictions]
        assert np.abs(np.array(found) - expected).max() <= 0.02, path.name
