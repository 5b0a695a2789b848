"""Grey levels: what a pixel is stored as, and what the network sees of it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from pydicom.dataset import Dataset, FileDataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from models.preprocess import ImageUnfit, from_array, read_radiograph, squash
from tests.builders import as_bytes, data_folder, draw_chest, make_radiograph

SMALL = {"rows": 96, "columns": 80}


def reread(dataset: Dataset) -> FileDataset:
    return pydicom.dcmread(io.BytesIO(as_bytes(dataset)))


def grey_of(dataset: Dataset) -> np.ndarray:
    return read_radiograph(reread(dataset)).grey_HW


def lut_item(first: int, entries: list[int], bits: int) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item.LUTData = entries
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "US"
    return item


def pydicom_grey(dataset: Dataset) -> np.ndarray:
    """The slow way: every pixel through pydicom's own functions, then scaled from the output range to [0, 1]."""
    values = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    is_signed, bits = dataset.PixelRepresentation == 1, dataset.BitsStored
    lowest, highest = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if is_signed else (0, 2**bits - 1)
    low, high = lowest * slope + intercept, highest * slope + intercept
    return np.asarray((values - low) / (high - low))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (2, -100)])
def test_table_equals_pydicom_pixel_by_pixel(function: str, slope: float, intercept: float) -> None:
    dataset = reread(
        make_radiograph(
            **SMALL, VOILUTFunction=function, WindowCenter=1700, WindowWidth=1500, RescaleSlope=slope,
            RescaleIntercept=intercept,
        )
    )  # fmt: skip
    np.testing.assert_allclose(read_radiograph(dataset).grey_HW, pydicom_grey(dataset), atol=1e-5)


def test_signed_pixels_equal_pydicom() -> None:
    dataset = make_radiograph(**SMALL, PixelRepresentation=1, WindowCenter=-300, WindowWidth=900)
    stored = np.frombuffer(dataset.PixelData, "<u2").astype(np.int32) - 2048
    dataset.PixelData = (stored & 0xFFF).astype("<u2").tobytes()
    dataset = reread(dataset)
    assert dataset.pixel_array.min() < 0
    np.testing.assert_allclose(read_radiograph(dataset).grey_HW, pydicom_grey(dataset), atol=1e-5)


def test_voi_lut_is_preferred_to_the_window() -> None:
    entries = [int(4095 * (i / 4095) ** 0.5) for i in range(4096)]
    dataset = make_radiograph(**SMALL, VOILUTSequence=[lut_item(0, entries, 12)])
    radiograph = read_radiograph(reread(dataset))
    stored = reread(dataset).pixel_array.astype(np.float64)
    assert radiograph.voi == "lut"
    np.testing.assert_allclose(radiograph.grey_HW, np.floor(4095 * np.sqrt(stored / 4095)) / 4095, atol=1e-5)


def test_modality_lut_comes_before_the_window() -> None:
    inverse = list(range(4095, -1, -1))
    item = lut_item(0, inverse, 12)
    item.ModalityLUTType = "US"
    dataset = make_radiograph(
        **SMALL, modality="CR", ModalityLUTSequence=[item], RescaleSlope=None, RescaleIntercept=None
    )
    np.testing.assert_allclose(grey_of(dataset), 1 - grey_of(make_radiograph(**SMALL, modality="CR")), atol=1e-3)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_depth_and_polarity_do_not_change_the_grey(bits: int, photometric: str) -> None:
    grey_HW = draw_chest(96, 80)
    found = grey_of(make_radiograph(pixels=grey_HW, bits_stored=bits, photometric=photometric))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, grey_HW, atol=0.51 / (2**bits - 1))


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_lossless_compression_changes_no_grey(syntax: str) -> None:
    dataset = make_radiograph(**SMALL)
    plain = grey_of(dataset)
    dataset.compress(syntax)
    np.testing.assert_array_equal(grey_of(dataset), plain)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_byte_order_and_vr_change_no_grey(syntax: Any) -> None:
    np.testing.assert_array_equal(
        grey_of(make_radiograph(**SMALL, transfer_syntax=syntax)), grey_of(make_radiograph(**SMALL))
    )


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_outside_the_percentiles(photometric: str) -> None:
    dataset = make_radiograph(
        **SMALL, photometric=photometric, WindowCenter=None, WindowWidth=None, PixelPaddingValue=4000,
        PixelPaddingRangeLimit=4095,
    )  # fmt: skip
    stored = np.clip(np.frombuffer(dataset.PixelData, "<u2").reshape(96, 80), 500, 1500).copy()
    stored[:, :40] = 4050
    dataset.PixelData = stored.tobytes()
    radiograph = read_radiograph(reread(dataset))
    assert radiograph.voi == "percentile"
    assert (radiograph.grey_HW[:, :40] == 0).all()
    assert radiograph.grey_HW[:, 40:].min() < 0.02
    assert radiograph.grey_HW[:, 40:].max() > 0.98


@pytest.mark.parametrize("width", [0, -5, 0.5, None])
def test_window_without_meaning_falls_back_to_percentiles(width: float | None) -> None:
    radiograph = read_radiograph(reread(make_radiograph(**SMALL, WindowWidth=width)))
    assert radiograph.voi == "percentile"
    assert np.ptp(radiograph.grey_HW) > 0.9


def test_first_of_several_windows_is_used() -> None:
    one = grey_of(make_radiograph(**SMALL, WindowCenter=1000, WindowWidth=500))
    np.testing.assert_array_equal(
        grey_of(make_radiograph(**SMALL, WindowCenter=[1000, 2000], WindowWidth=[500, 100])), one
    )


def test_given_window_overrides_the_own_one() -> None:
    dataset = reread(make_radiograph(**SMALL))
    radiograph = read_radiograph(dataset, window=(1000, 200))
    assert radiograph.voi == "given"
    expected = np.clip((dataset.pixel_array.astype(np.float64) - 900) / 200, 0, 1)
    np.testing.assert_allclose(radiograph.grey_HW, expected, atol=1e-6)


def test_shape_of_the_lut_never_inverts_a_second_time() -> None:
    contradicting = make_radiograph(**SMALL, photometric="MONOCHROME1", PresentationLUTShape="IDENTITY")
    np.testing.assert_array_equal(grey_of(contradicting), grey_of(make_radiograph(**SMALL, photometric="MONOCHROME1")))


def colour(dataset: FileDataset, channels: np.ndarray) -> FileDataset:
    dataset.SamplesPerPixel, dataset.PlanarConfiguration, dataset.PhotometricInterpretation = 3, 0, "RGB"
    dataset.PixelData = channels.tobytes()
    return dataset


def test_colour_with_equal_channels_is_grey() -> None:
    plain = make_radiograph(**SMALL, modality="SC", bits_stored=8)
    stored = np.frombuffer(plain.PixelData, np.uint8).reshape(96, 80)
    grey = grey_of(plain)
    np.testing.assert_array_equal(grey_of(colour(plain, np.repeat(stored[..., None], 3, axis=2))), grey)


def test_colour_is_unfit() -> None:
    dataset = make_radiograph(**SMALL, modality="SC", bits_stored=8)
    channels = np.random.default_rng(1).integers(0, 256, (96, 80, 3), dtype=np.uint8)
    with pytest.raises(ImageUnfit) as unfit:
        read_radiograph(colour(dataset, channels))
    assert unfit.value.code == "colour"


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("no_pixels", {"PixelData": None}),
        ("left_justified_bits", {"HighBit": 15}),
        ("several_frames", {"NumberOfFrames": 3}),
        ("undecodable", {"PhotometricInterpretation": "PALETTE COLOR"}),
        ("undecodable", {"PixelData": b"\0" * 100}),
        ("undecodable", {"Rows": 65535, "Columns": 65535}),
        ("undecodable", {"Rows": 0}),
        ("undecodable", {"PhotometricInterpretation": "MONOCHROME3"}),
        ("undecodable", {"PhotometricInterpretation": None}),
        ("undecodable", {"BitsStored": None}),
        ("undecodable", {"BitsStored": 20, "HighBit": 19}),
    ],
)
def test_unfit_pixels_are_named(code: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ImageUnfit) as unfit:
        read_radiograph(make_radiograph(**SMALL, **changes))
    assert unfit.value.code == code


@pytest.mark.parametrize("key", ["RescaleSlope", "RescaleIntercept"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e308"])
def test_grey_levels_beyond_all_numbers_are_unfit(key: str, value: str) -> None:
    dataset = make_radiograph(**SMALL, RescaleSlope="1e10", RescaleIntercept="0")
    dataset[key].value = value
    with pytest.raises(ImageUnfit) as caught:
        grey_of(dataset)
    assert caught.value.code == "undecodable"


def test_twelve_bit_jpeg_extended_is_unfit_not_a_crash() -> None:
    path = next(data_folder("dicom", "mixed").glob("*RG3_JPLY"))
    with pytest.raises(ImageUnfit, match="undecodable"):
        read_radiograph(pydicom.dcmread(path))


def test_squash_averages_areas() -> None:
    grey_HW = np.random.default_rng(1).random((448, 672), dtype=np.float32)
    image_1HW = squash(grey_HW, 224)
    assert image_1HW.shape == (1, 224, 224)
    assert type(image_1HW) is torch.Tensor
    np.testing.assert_allclose(image_1HW[0], grey_HW.reshape(224, 2, 224, 3).mean((1, 3)), atol=1e-6)


def test_array_door_takes_grey_and_colour() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_allclose(from_array(pixels), pixels / 255, atol=1e-7)
    np.testing.assert_allclose(from_array(np.repeat(pixels[..., None], 3, axis=2)), pixels / 255, atol=1e-6)


def test_real_radiographs_show_dark_lungs() -> None:
    folder = data_folder("dicom", "chest")
    for name in ("gdcm-CR-MONO1-10-chest.dcm", "RG1_J2KI.dcm"):
        image_HW = squash(read_radiograph(pydicom.dcmread(folder / name)).grey_HW, 224)[0]
        lungs = torch.cat([image_HW[80:120, 40:85].ravel(), image_HW[80:120, 140:185].ravel()]).mean()
        assert lungs < image_HW[100:180, 108:118].mean() - 0.1, name  # darker than the spine
