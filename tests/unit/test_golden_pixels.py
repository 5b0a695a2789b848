"""The golden set: one drawn anatomy in every encoding of PS3.3, and one tensor for all of them.

Two families. *Windowed* encodings bring the grey levels of the anatomy itself; *spread* ones bring no usable VOI and
are spread between percentiles, so they equal the anatomy spread alike. Tolerances are on the network's input, in units
of the grey range [0, 1].
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import convert_color_space
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from models.preprocess import ImageUnfit, read_radiograph, squash
from models.suitability import examine
from tests.builders import draw_chest, make_card, make_radiograph, reread, store_pixels, transcoded_by_gdcm

ROWS, COLUMNS, SIZE = 240, 232, 224
TOP = 4095
ANATOMY_HW = np.rint(draw_chest(ROWS, COLUMNS).astype(np.float64) * TOP) / TOP
ROUNDING = 0.0005
"""Two of 4096 levels: what rounding the stored values may cost, after the steepest table here."""
EIGHT_BITS = 0.51 / 255
"""Half a level of 8 bits: what storing the anatomy in them may cost."""
LOSSY = 0.02
"""What a compression with loss at high quality may cost; five levels of 8 bits."""

Build = Callable[[], FileDataset]


def tensor_of(dataset: Dataset) -> np.ndarray:
    return np.asarray(squash(read_radiograph(reread(dataset)).grey_HW, SIZE))


def expected_of(grey_HW: np.ndarray) -> np.ndarray:
    return np.asarray(squash(grey_HW.astype(np.float32), SIZE))


def spread(grey_HW: np.ndarray) -> np.ndarray:
    low, high = np.quantile(grey_HW, (0.005, 0.995))
    return np.asarray(np.clip((grey_HW - low) / (high - low), 0, 1))


def chest(**options: Any) -> FileDataset:
    return make_radiograph(pixels=ANATOMY_HW, **options)


def stored(values_HW: np.ndarray, **attributes: Any) -> FileDataset:
    """Return the chest with those stored values (12 bits) and attributes set after them."""
    return store_pixels(chest(), np.rint(values_HW), **attributes)


def lut(first: int, entries: np.ndarray, bits: int) -> Dataset:
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [len(entries), first, bits], [int(entry) for entry in np.rint(entries)]
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "US"
    item.ModalityLUTType = "US"
    return item


def colour(channels: np.ndarray, **attributes: Any) -> FileDataset:
    dataset = chest(modality="SC", bits_stored=8)
    pixels = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": "RGB"}
    return store_pixels(dataset, channels, **(pixels | attributes))


def palette(index_HW: np.ndarray, entries: np.ndarray, bits: int) -> FileDataset:
    dataset = store_pixels(chest(modality="SC", bits_stored=8), index_HW, PhotometricInterpretation="PALETTE COLOR")
    for name in ("Red", "Green", "Blue"):
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [256, 0, bits])
        setattr(dataset, f"{name}PaletteColorLookupTableData", entries.astype(f"<u{bits // 8}").tobytes())
        dataset[f"{name}PaletteColorLookupTableDescriptor"].VR = "US"
    return dataset


def logit(grey_HW: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(np.clip(grey_HW, 1e-6, 1 - 1e-6)) - np.log1p(-np.clip(grey_HW, 1e-6, 1 - 1e-6)))


LEVELS_HW = ANATOMY_HW * TOP
GREY8_HW = np.rint(ANATOMY_HW * 255)
RGB_HW3 = np.repeat(GREY8_HW[..., None], 3, axis=2).astype(np.uint8)
RAMP = np.arange(4096)
NO_VOI = {"WindowCenter": None, "WindowWidth": None}
NO_RESCALE = {"RescaleSlope": None, "RescaleIntercept": None}

WINDOWED: dict[str, tuple[Build, float]] = {
    "plain": (lambda: chest(), 1e-6),
    "cr": (lambda: chest(modality="CR"), 1e-6),
    "secondary capture": (lambda: chest(modality="SC"), 1e-6),
    "one of one frames": (lambda: chest(NumberOfFrames=1), 1e-6),
    "slope and intercept": (
        lambda: chest(RescaleSlope=2.5, RescaleIntercept=-1000, WindowCenter=4118.75 + 0.5, WindowWidth=10238.5),
        ROUNDING,
    ),
    "negative slope": (
        lambda: stored(TOP - LEVELS_HW, RescaleSlope=-1, RescaleIntercept=TOP),
        1e-6,
    ),
    "modality lut before the window": (
        lambda: stored(TOP - LEVELS_HW, ModalityLUTSequence=[lut(0, TOP - RAMP, 12)], **NO_RESCALE),
        1e-6,
    ),
    "modality lut of 16 bits": (
        lambda: stored(
            LEVELS_HW,
            ModalityLUTSequence=[lut(0, RAMP * 16, 16)],
            WindowCenter=32760.5,
            WindowWidth=65521,
            **NO_RESCALE,
        ),
        ROUNDING,
    ),
    "voi lut before the window": (
        lambda: stored(
            TOP * np.sqrt(ANATOMY_HW), VOILUTSequence=[lut(0, RAMP**2 / TOP, 12)], WindowCenter=10, WindowWidth=10
        ),
        ROUNDING,
    ),
    "voi lut from the first value mapped": (
        lambda: stored(500 + LEVELS_HW / 2, VOILUTSequence=[lut(500, RAMP[:2048] * 32, 16)]),
        2 * ROUNDING,
    ),
    "voi lut of 8 bits": (lambda: stored(LEVELS_HW, VOILUTSequence=[lut(0, RAMP // 16, 8)]), 2 * EIGHT_BITS),
    "voi lut from a negative first value": (
        lambda: stored(LEVELS_HW, RescaleIntercept=-1000, VOILUTSequence=[lut(2**16 - 1000, RAMP, 12)], **NO_VOI),
        1e-6,
    ),
    "first of two voi luts": (
        lambda: stored(LEVELS_HW, VOILUTSequence=[lut(0, RAMP, 12), lut(0, TOP - RAMP, 12)]),
        1e-6,
    ),
    "linear": (
        lambda: stored(1000 + 2000 * ANATOMY_HW, WindowCenter=2000.5, WindowWidth=2001, VOILUTFunction="LINEAR"),
        ROUNDING,
    ),
    "linear exact": (
        lambda: stored(1000 + 2000 * ANATOMY_HW, WindowCenter=2000, WindowWidth=2000, VOILUTFunction="LINEAR_EXACT"),
        ROUNDING,
    ),
    "linear exact, narrower than one": (
        lambda: chest(
            RescaleSlope="0.0001", WindowCenter="0.20475", WindowWidth="0.4095", VOILUTFunction="LINEAR_EXACT"
        ),
        1e-6,
    ),
    "sigmoid": (
        lambda: stored(
            np.clip(2048 + 250 * logit(ANATOMY_HW), 0, TOP),
            WindowCenter=2048,
            WindowWidth=1000,
            VOILUTFunction="SIGMOID",
        ),
        2 * ROUNDING,
    ),
    "several windows": (lambda: chest(WindowCenter=[2048, 10, 300], WindowWidth=[4096, 1, 20]), 1e-6),
    "monochrome1": (lambda: chest(photometric="MONOCHROME1"), 1e-6),
    "monochrome1, identity": (lambda: chest(photometric="MONOCHROME1", PresentationLUTShape="IDENTITY"), 1e-6),
    "monochrome1, no shape": (lambda: chest(photometric="MONOCHROME1", PresentationLUTShape=None), 1e-6),
    "monochrome1, cr": (lambda: chest(photometric="MONOCHROME1", modality="CR"), 1e-6),
    "monochrome1, voi lut": (
        lambda: stored(
            TOP * np.sqrt(1 - ANATOMY_HW),
            PhotometricInterpretation="MONOCHROME1",
            VOILUTSequence=[lut(0, RAMP**2 / TOP, 12)],
        ),
        ROUNDING,
    ),
    "monochrome1, sigmoid": (
        lambda: stored(
            np.clip(2048 + 250 * logit(1 - ANATOMY_HW), 0, TOP),
            PhotometricInterpretation="MONOCHROME1",
            **{"WindowCenter": 2048, "WindowWidth": 1000, "VOILUTFunction": "SIGMOID"},
        ),
        2 * ROUNDING,
    ),
    "monochrome2, inverse": (lambda: chest(PresentationLUTShape="INVERSE"), 1e-6),
    "signed": (
        lambda: stored(LEVELS_HW - 2048, PixelRepresentation=1, WindowCenter=0, WindowWidth=4096),
        1e-6,
    ),
    "signed, rescaled": (
        lambda: stored(LEVELS_HW - 2048, PixelRepresentation=1, RescaleIntercept=2048),
        1e-6,
    ),
    "signed, modality lut from a negative first value": (
        lambda: stored(
            LEVELS_HW - 2048, PixelRepresentation=1, ModalityLUTSequence=[lut(2**16 - 2048, RAMP, 12)], **NO_RESCALE
        ),
        1e-6,
    ),
    "rubbish in the unused high bits": (
        lambda: stored(LEVELS_HW + 4096 * np.random.default_rng(1).integers(0, 16, LEVELS_HW.shape)),
        1e-6,
    ),
    "overlay in bit 15": (
        lambda: stored(LEVELS_HW + 2**15 * (ANATOMY_HW > 0.5)),
        1e-6,
    ),
    "left-justified": (lambda: stored(LEVELS_HW * 16, HighBit=15), 1e-6),
    "left-justified by two bits, overlay above": (
        lambda: stored(LEVELS_HW * 4 + 2**15 * (ANATOMY_HW > 0.5), HighBit=13),
        1e-6,
    ),
    "left-justified, signed": (
        lambda: stored((LEVELS_HW - 2048) * 16, HighBit=15, PixelRepresentation=1, WindowCenter=0),
        1e-6,
    ),
    "left-justified, monochrome1": (
        lambda: stored((TOP - LEVELS_HW) * 16, HighBit=15, PhotometricInterpretation="MONOCHROME1"),
        1e-6,
    ),
    "rgb": (lambda: colour(RGB_HW3), EIGHT_BITS),
    "rgb, by plane": (lambda: colour(np.moveaxis(RGB_HW3, 2, 0), PlanarConfiguration=1), EIGHT_BITS),
    "rgb, no window": (lambda: colour(RGB_HW3, **NO_VOI), EIGHT_BITS),
    "rgb, window of the radiograph it was made from": (
        lambda: colour(RGB_HW3, WindowCenter=2048, WindowWidth=4096),
        EIGHT_BITS,
    ),
    "ybr_full": (
        lambda: colour(convert_color_space(RGB_HW3, "RGB", "YBR_FULL"), PhotometricInterpretation="YBR_FULL"),
        EIGHT_BITS,
    ),
    "ybr_full, rounded": (lambda: colour(rounded_ybr(), PhotometricInterpretation="YBR_FULL"), 3 * EIGHT_BITS),
    "palette of 8 bits": (lambda: palette(GREY8_HW, np.arange(256), 8), EIGHT_BITS),
    "palette of 16 bits": (lambda: palette(GREY8_HW, np.arange(256) * 257, 16), EIGHT_BITS),
    "palette, light to dark": (lambda: palette(255 - GREY8_HW, 255 - np.arange(256), 8), EIGHT_BITS),
    "field of view turned and mirrored": (
        lambda: chest(FieldOfViewRotation=180, FieldOfViewHorizontalFlip="YES"),
        1e-6,
    ),
    "orientation with second letters": (lambda: chest(PatientOrientation=["LH", "FL"]), 1e-6),
    "no orientation": (lambda: chest(PatientOrientation=""), 1e-6),
    **{
        f"{bits} bits, {photometric}": (
            lambda bits=bits, photometric=photometric: chest(bits_stored=bits, photometric=photometric),  # type: ignore[misc]
            0.51 / (2**bits - 1) if bits < 12 else ROUNDING,
        )
        for bits in range(8, 17)
        for photometric in ("MONOCHROME1", "MONOCHROME2")
    },
}


def rounded_ybr() -> np.ndarray:
    """YBR whose chrominance is off by one, as a converter's rounding leaves it."""
    ybr = np.repeat(GREY8_HW[..., None], 3, axis=2)
    ybr[..., 1:] = 128
    ybr[::3, :, 1] += 1
    return ybr


@pytest.mark.parametrize("name", WINDOWED)
def test_encoding_gives_the_tensor_of_the_anatomy(name: str) -> None:
    build, tolerance = WINDOWED[name]
    np.testing.assert_allclose(tensor_of(build()), expected_of(ANATOMY_HW), atol=tolerance, rtol=0)


SPREAD: dict[str, Build] = {
    "no voi": lambda: chest(**NO_VOI),
    "no voi, monochrome1": lambda: chest(photometric="MONOCHROME1", **NO_VOI),
    "no voi, rescaled": lambda: chest(RescaleSlope=3, RescaleIntercept=-7000, **NO_VOI),
    "no voi, signed": lambda: stored(LEVELS_HW - 2048, PixelRepresentation=1, **NO_VOI),
    "no voi, a quarter of the range": lambda: stored(LEVELS_HW / 4 + 300, **NO_VOI),
    "no voi, 16 bits": lambda: chest(bits_stored=16, **NO_VOI),
    "no voi, left-justified": lambda: stored(LEVELS_HW * 16, HighBit=15, **NO_VOI),
    "width 0": lambda: chest(WindowWidth=0),
    "width below 1": lambda: chest(WindowWidth="0.5"),
    "width negative": lambda: chest(WindowWidth=-100),
    "center without width": lambda: chest(WindowWidth=None),
    "width without center": lambda: chest(WindowCenter=None),
    "exact width 0": lambda: chest(WindowWidth=0, VOILUTFunction="LINEAR_EXACT"),
    "width without end": lambda: chest(WindowWidth="1e400"),
}


@pytest.mark.parametrize("name", SPREAD)
def test_encoding_without_window_gives_the_tensor_of_the_spread_anatomy(name: str) -> None:
    dataset = SPREAD[name]()
    assert read_radiograph(reread(dataset)).voi == "percentile"
    np.testing.assert_allclose(tensor_of(dataset), expected_of(spread(ANATOMY_HW)), atol=0.003, rtol=0)


IS_PADDED = np.zeros(ANATOMY_HW.shape, dtype=bool)
IS_PADDED[:40], IS_PADDED[:, -30:] = True, True
INSIDE_HW = np.clip(LEVELS_HW, 10, 4000)


def padded(outside: int, **attributes: Any) -> FileDataset:
    return stored(np.where(IS_PADDED, outside, INSIDE_HW), **attributes)


def padded_inverse(outside: int, **attributes: Any) -> FileDataset:
    values_HW = np.where(IS_PADDED, outside, TOP - INSIDE_HW)
    return stored(values_HW, PhotometricInterpretation="MONOCHROME1", **attributes)


PADDED: dict[str, Build] = {
    "black": lambda: padded(0, PixelPaddingValue=0),
    "white": lambda: padded(4095, PixelPaddingValue=4095),
    "range": lambda: padded(4050, PixelPaddingValue=4001, PixelPaddingRangeLimit=4095),
    "range, downwards": lambda: padded(4050, PixelPaddingValue=4095, PixelPaddingRangeLimit=4001),
    "range without limit": lambda: padded(4095, PixelPaddingValue=4095, PixelPaddingRangeLimit=""),
    "monochrome1, black": lambda: padded_inverse(4095, PixelPaddingValue=4095),
    "monochrome1, white": lambda: padded_inverse(0, PixelPaddingValue=0),
    "signed": lambda: stored(
        np.where(IS_PADDED, -2048, INSIDE_HW - 2048), PixelRepresentation=1, PixelPaddingValue=-2048, WindowCenter=0
    ),
    "signed, value written unsigned": lambda: unsigned_padding(),
}


def unsigned_padding() -> FileDataset:
    dataset = stored(np.where(IS_PADDED, -2048, INSIDE_HW - 2048), PixelRepresentation=1, WindowCenter=0)
    dataset.add_new("PixelPaddingValue", "US", 2**16 - 2048)
    return dataset


@pytest.mark.parametrize("name", PADDED)
@pytest.mark.parametrize("voi", ["window", "percentile"])
def test_padding_is_black_and_takes_no_part_in_the_percentiles(name: str, voi: str) -> None:
    dataset = PADDED[name]()
    inside_HW = INSIDE_HW / TOP
    if voi == "percentile":
        del dataset.WindowWidth
        low, high = np.quantile(inside_HW[~IS_PADDED], (0.005, 0.995))
        inside_HW = np.clip((inside_HW - low) / (high - low), 0, 1)
    radiograph = read_radiograph(reread(dataset))
    assert radiograph.voi == voi
    assert radiograph.padding_share == pytest.approx(IS_PADDED.mean())
    expected_HW = np.where(IS_PADDED, 0, inside_HW)
    np.testing.assert_allclose(squash(radiograph.grey_HW, SIZE), expected_of(expected_HW), atol=0.003, rtol=0)


REFUSED: dict[str, tuple[str, Build]] = {
    "high bit claimed, pixels right-justified": ("left_justified_bits", lambda: stored(LEVELS_HW, HighBit=15)),
    "left-justified, overlay below": (
        "left_justified_bits",
        lambda: stored(LEVELS_HW * 16 + (ANATOMY_HW > 0.5), HighBit=15),
    ),
    "all so dark that both readings fit": ("left_justified_bits", lambda: stored(LEVELS_HW // 16 * 16, HighBit=15)),
    "high bit below the bits stored": ("left_justified_bits", lambda: stored(LEVELS_HW, HighBit=9)),
    "high bit above the bits allocated": ("left_justified_bits", lambda: stored(LEVELS_HW, HighBit=16)),
    "coloured": ("colour", lambda: colour(RGB_HW3 // np.array([1, 2, 1], dtype=np.uint8))),
    "coloured mark in a corner": ("colour", lambda: colour(marked())),
    "coloured palette": ("colour", lambda: coloured_palette()),
    "palette without a table": ("undecodable", lambda: chest(PhotometricInterpretation="PALETTE COLOR")),
    "several frames": ("several_frames", lambda: chest(NumberOfFrames=2)),
    "32 bits": ("undecodable", lambda: stored(LEVELS_HW, BitsAllocated=32)),
}


def marked() -> np.ndarray:
    channels = RGB_HW3.copy()
    channels[:9, :9] = (255, 200, 0)
    return channels


def coloured_palette() -> FileDataset:
    dataset = palette(GREY8_HW, np.arange(256), 8)
    dataset.GreenPaletteColorLookupTableData = bytes(range(255, -1, -1))
    return dataset


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_with_certainty_is_refused(name: str) -> None:
    code, build = REFUSED[name]
    with pytest.raises(ImageUnfit) as unfit:
        read_radiograph(reread(build()))
    assert unfit.value.code == code


@pytest.mark.parametrize("orientation", [["R", "F"], ["L", "H"], ["R", "H"], ["F", "L"], ["H", "R"], ["RF", "FL"]])
def test_stored_turned_or_mirrored_is_refused_not_turned_back(orientation: list[str]) -> None:
    examination = examine(reread(chest(PatientOrientation=orientation)), make_card())
    assert [warning.code for warning in examination.warnings] == ["turned"]


@pytest.mark.parametrize(
    ("photometric", "shape", "is_said"),
    [
        ("MONOCHROME1", "IDENTITY", True),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME1", "INVERSE", False),
        ("MONOCHROME2", "IDENTITY", False),
    ],
)
def test_contradicting_lut_shape_is_said_and_photometric_followed(photometric: str, shape: str, is_said: bool) -> None:
    examination = examine(reread(chest(photometric=photometric, PresentationLUTShape=shape)), make_card())
    assert [warning.code for warning in examination.warnings] == ["lut_shape_contradicts"] * is_said
    assert examination.image_1HW is not None
    np.testing.assert_allclose(examination.image_1HW, expected_of(ANATOMY_HW), atol=1e-6, rtol=0)


def compressed(syntax: str, *, lossy: str = "00", **options: Any) -> FileDataset:
    dataset = chest(LossyImageCompression=lossy)
    dataset.compress(syntax, **options)
    return dataset


SYNTAXES: dict[str, tuple[float, Callable[[Path], FileDataset]]] = {
    "implicit": (0, lambda _: chest(transfer_syntax=ImplicitVRLittleEndian)),
    "explicit": (0, lambda _: chest(transfer_syntax=ExplicitVRLittleEndian)),
    "big endian": (0, lambda _: chest(transfer_syntax=ExplicitVRBigEndian)),
    "deflated": (0, lambda _: chest(transfer_syntax=DeflatedExplicitVRLittleEndian)),
    "rle": (0, lambda _: compressed(RLELossless)),
    "jpeg lossless, process 14": (0, lambda tmp: transcoded_by_gdcm(chest(), "JPEGLosslessProcess14", tmp)),
    "jpeg lossless, first order": (0, lambda tmp: transcoded_by_gdcm(chest(), "JPEGLosslessProcess14_1", tmp)),
    "jpeg-ls": (0, lambda _: compressed(JPEGLSLossless)),
    "jpeg 2000 lossless": (0, lambda _: compressed(JPEG2000Lossless)),
    "jpeg-ls near lossless": (2.01 / TOP, lambda _: compressed(JPEGLSNearLossless, jls_error=2)),
    "jpeg 2000": (LOSSY, lambda _: compressed(JPEG2000, lossy="01", j2k_psnr=[50])),
    "jpeg baseline, 8 bits": (
        LOSSY,
        lambda tmp: transcoded_by_gdcm(chest(bits_stored=8), "JPEGBaselineProcess1", tmp, is_lossy=True),
    ),
}


@pytest.mark.parametrize("name", SYNTAXES)
def test_transfer_syntax_changes_no_bit_of_the_tensor_unless_it_is_lossy(name: str, tmp_path: Path) -> None:
    tolerance, build = SYNTAXES[name]
    dataset = reread(build(tmp_path))
    image_1HW = np.asarray(squash(read_radiograph(dataset).grey_HW, SIZE))
    if tolerance == 0:
        np.testing.assert_array_equal(image_1HW, tensor_of(chest()))
    else:
        assert 0 < np.abs(image_1HW - tensor_of(chest())).max() <= tolerance
        assert "lossy_source" in {warning.code for warning in examine(dataset, make_card()).warnings}


def test_twelve_syntaxes_are_twelve(tmp_path: Path) -> None:
    assert len({build(tmp_path).file_meta.TransferSyntaxUID for _, build in SYNTAXES.values()}) == 12


def test_jpeg_extended_of_12_bits_ends_as_undecodable(tmp_path: Path) -> None:
    dataset = transcoded_by_gdcm(chest(), "JPEGExtendedProcess2_4", tmp_path, is_lossy=True)
    examination = examine(dataset, make_card())
    assert [warning.code for warning in examination.warnings] == ["undecodable"]


@pytest.mark.parametrize("subsampling", [0, 1])
def test_colour_jpeg_of_a_grey_image_is_grey(subsampling: int) -> None:
    buffer = io.BytesIO()
    Image.fromarray(RGB_HW3).save(buffer, "JPEG", quality=95, subsampling=subsampling)
    dataset = colour(RGB_HW3, PhotometricInterpretation="YBR_FULL_422" if subsampling else "YBR_FULL")
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PixelData = encapsulate([buffer.getvalue()])
    np.testing.assert_allclose(tensor_of(dataset), expected_of(ANATOMY_HW), atol=LOSSY, rtol=0)


def test_training_and_serving_read_the_same_tensor_from_the_same_file(tmp_path: Path) -> None:
    from training.data import Item, load_images

    path = tmp_path / "chest.dcm"
    chest(photometric="MONOCHROME1", bits_stored=14).save_as(path, enforce_file_format=True)
    served = examine(pydicom.dcmread(path), make_card()).image_1HW
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    item = Item(path=path, label=0, sha256=digest, group="golden/patient 1", source="golden")
    np.testing.assert_array_equal(load_images([item], size=SIZE, cache=tmp_path / "cache")[0], served)
