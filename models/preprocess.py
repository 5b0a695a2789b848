"""From pixels to the network's input. Takes a DICOM data set or an 8-bit array; gives image_1HW; hides DICOM greys.

Two doors, `read_radiograph` and `from_array`, both give grey_HW: float32 in [0, 1], lung dark. Then one function,
`squash`, for training and serving alike. Shapes: H rows, W columns; 1 is the grey channel.

Modality LUT, VOI and polarity are folded into one table over all values a pixel can store, so that a full-size
radiograph costs one look-up per pixel.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLETransferSyntaxes,
)

if TYPE_CHECKING:
    from torch import Tensor

# What pydicom and its decoders are known to raise for broken data (fuzzing corpora included).
UNREADABLE: tuple[type[Exception], ...] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    InvalidDicomError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
    BytesLengthException,
)

_ONE_SAMPLE = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
PIXELS_MAX = 100_000_000  # five times the largest detector; a header may claim more than the memory holds
CHANNELS_APART = 2 / 255  # of the range: what rounding to and from YBR leaves between the channels of a grey image
LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
BLOCK_ROWS = 64  # of one look-up: its positions stay in the processor's cache
PERCENTILES = (0.5, 99.5)  # the window of an image that brings none

# One decoder per transfer syntax, the fastest exact one; never a second attempt with another.
_PLUGINS = (
    dict.fromkeys(JPEGTransferSyntaxes, "gdcm")
    | dict.fromkeys(JPEGLSTransferSyntaxes, "pyjpegls")
    | dict.fromkeys(JPEG2000TransferSyntaxes, "pylibjpeg")
    | dict.fromkeys(RLETransferSyntaxes, "pydicom")
)


class ImageUnfit(Exception):
    """The image cannot be read as a grey radiograph; `code` is a key of `suitability.CODES`."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail


@dataclass(frozen=True, slots=True, kw_only=True)
class Radiograph:
    """A readable radiograph at full resolution.

    Attributes
    ----------
    grey_HW
        float32, shape (Rows, Columns), range [0, 1], lung dark.
    voi
        Where the grey levels come from: "lut", "window", "given", "percentile", or "displayed" for a grey image that
        is stored in colour.
    window
        (center, width) in modality values; of a LUT, the span in which it rises.
    is_inverse
        Large values are dark (MONOCHROME1).
    padding_share
        Part of the pixels that Pixel Padding Value marks, 0 to 1.
    """

    grey_HW: np.ndarray
    voi: str
    window: tuple[float, float]
    is_inverse: bool
    padding_share: float = 0.0


def read_radiograph(dataset: Dataset, *, window: tuple[float, float] | None = None) -> Radiograph:
    """Decode a data set and apply modality LUT, VOI and polarity.

    Parameters
    ----------
    window
        (center, width) in modality values, instead of the data set's own VOI.

    Raises
    ------
    ImageUnfit
        There are no pixels, they cannot be decoded, or they are not one grey image.

    References
    ----------
    PS3.3 C.11.1 (Modality LUT), C.11.2 (VOI LUT), C.7.6.3.1.2 (Photometric Interpretation)
    """
    _refuse_unreadable_header(dataset)
    stored_HW = _as_grey(_decode(dataset))
    pattern_HW = stored_HW.view(np.dtype(f"u{stored_HW.itemsize}"))
    try:
        stored = _stored_values(stored_HW.dtype, dataset)
        is_padding = _is_padding(stored, stored_HW.dtype, dataset)
        if _photometric(dataset).startswith("MONOCHROME"):
            grey, voi, shown = _voi(_modality_values(stored, dataset), is_padding, pattern_HW, dataset, window)
        else:
            grey, voi, shown = _displayed(stored, pattern_HW, dataset, window)
    except UNREADABLE as error:
        raise ImageUnfit("undecodable", f"grey levels: {error}") from error
    is_inverse = _photometric(dataset) == "MONOCHROME1"
    if is_inverse:
        grey = 1.0 - grey
    grey[is_padding] = 0.0
    padding_share = float(_pixels_of(is_padding, pattern_HW).mean()) if is_padding.any() else 0.0
    grey_HW = _pixels_of(grey.astype(np.float32), pattern_HW)
    return Radiograph(grey_HW=grey_HW, voi=voi, window=shown, is_inverse=is_inverse, padding_share=padding_share)


def from_array(pixels: np.ndarray) -> np.ndarray:
    """Return grey_HW for an 8-bit image, lung dark already.

    Parameters
    ----------
    pixels
        uint8, shape (H, W) or (H, W, 3).
    """
    grey = pixels.astype(np.float32) / np.float32(255)
    return grey if pixels.ndim == 2 else grey[..., :3] @ LUMINANCE


def squash(grey_HW: np.ndarray, size: int) -> Tensor:
    """Return image_1HW, float32, shape (1, size, size), by area averaging; the aspect ratio is not kept."""
    import torch  # here: who only renders an image (the web role) need not pay for them, 5 s and 400 MB
    from monai.transforms import Resize

    resize = Resize(spatial_size=(size, size), mode="area")
    image_1HW: Tensor = resize(torch.from_numpy(np.ascontiguousarray(grey_HW))[None]).as_tensor()
    return image_1HW


def _refuse_unreadable_header(dataset: Dataset) -> None:
    """Raise ImageUnfit for what would decode into nonsense or into more than the memory holds."""
    if "PixelData" not in dataset:
        raise ImageUnfit("no_pixels")
    try:
        rows, columns = int(dataset.Rows), int(dataset.Columns)
        frames = int(dataset.get("NumberOfFrames") or 1)
        bits_allocated, bits_stored, high_bit = (
            int(dataset.BitsAllocated),
            int(dataset.BitsStored),
            int(dataset.HighBit),
        )
    except UNREADABLE as error:
        raise ImageUnfit("undecodable", f"image pixel module: {error}") from error
    if frames > 1:
        raise ImageUnfit("several_frames")
    photometric = _photometric(dataset)
    if photometric not in _ONE_SAMPLE and not photometric.startswith(("RGB", "YBR")):
        raise ImageUnfit("undecodable", f"photometric interpretation {photometric!r}")
    if rows < 1 or columns < 1 or rows * columns > PIXELS_MAX:
        raise ImageUnfit("undecodable", f"{rows} x {columns} pixels")
    if bits_allocated not in (8, 16) or not 1 < bits_stored <= bits_allocated:
        raise ImageUnfit("undecodable", f"{bits_stored} bits stored in {bits_allocated}")
    if not bits_stored - 1 <= high_bit < bits_allocated:
        raise ImageUnfit("left_justified_bits")


def _photometric(dataset: Dataset) -> str:
    return str(dataset.get("PhotometricInterpretation") or "").strip().upper()


def _decode(dataset: Dataset) -> np.ndarray:
    try:
        syntax = dataset.file_meta.TransferSyntaxUID
        if int(dataset.HighBit) != int(dataset.BitsStored) - 1:
            return _shifted_right(dataset)
        if not syntax.is_compressed:
            return pixel_array(dataset)
        return pixel_array(dataset, decoding_plugin=_PLUGINS.get(syntax, ""))
    except UNREADABLE as error:
        raise ImageUnfit("undecodable", str(error)) from error


def _shifted_right(dataset: Dataset) -> np.ndarray:
    """Return left-justified pixels (High Bit above Bits Stored - 1) as right-justified ones, where there is no doubt.

    pydicom takes the low bits in silence. High Bit itself may be false, so the pixels must prove it: nothing below the
    stored bits, and values too large for the other reading.

    References
    ----------
    PS3.5 8.1.1
    """
    bits_allocated, bits_stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
    shift = int(dataset.HighBit) + 1 - bits_stored
    if dataset.file_meta.TransferSyntaxUID.is_compressed or _photometric(dataset) not in _ONE_SAMPLE:
        raise ImageUnfit("left_justified_bits")
    pattern = pixel_array(dataset, bits_stored=bits_allocated, pixel_representation=0)
    pattern &= 2 ** (bits_stored + shift) - 1  # above them: overlays
    if (pattern & (2**shift - 1)).any() or int(pattern.max()) < 2**bits_stored:
        raise ImageUnfit("left_justified_bits")
    stored: np.ndarray = pattern >> shift
    if int(dataset.PixelRepresentation) != 1:
        return stored
    unused = bits_allocated - bits_stored  # the sign bit to the top and back
    signed: np.ndarray = (stored << unused).view(np.dtype(f"i{stored.itemsize}")) >> unused
    return signed


def _as_grey(stored: np.ndarray) -> np.ndarray:
    """Return one native-endian grey plane; a colour image passes only if its channels agree."""
    if stored.ndim == 3 and stored.shape[2] == 3:
        if not _channels_agree(stored):
            raise ImageUnfit("colour")
        stored = stored[..., 1]
    if stored.ndim != 2 or stored.dtype.itemsize > 2:
        raise ImageUnfit("undecodable", f"pixels of shape {stored.shape} and type {stored.dtype}")
    return np.ascontiguousarray(stored, dtype=stored.dtype.newbyteorder("="))


def _channels_agree(stored_C: np.ndarray) -> bool:
    """Whether the three channels of the last axis differ by rounding at most."""
    one, *others = (stored_C[..., channel] for channel in range(3))
    if all(np.array_equal(one, other) for other in others):
        return True
    apart = CHANNELS_APART * np.iinfo(stored_C.dtype).max
    return all(np.abs(one.astype(np.int32) - other).max() <= apart for other in others)


def _stored_values(dtype: np.dtype[Any], dataset: Dataset) -> np.ndarray:
    """Return the stored value (float64) of every bit pattern that a pixel can have."""
    patterns = np.arange(2 ** (8 * dtype.itemsize), dtype=np.dtype(f"u{dtype.itemsize}"))
    is_signed = dtype.kind == "i"
    depth = int(dataset.BitsStored) - is_signed
    return np.clip(patterns.view(dtype).astype(np.float64), -(2.0**depth) if is_signed else 0.0, 2.0**depth - 1)


def _is_padding(stored: np.ndarray, dtype: np.dtype[Any], dataset: Dataset) -> np.ndarray:
    """Return which stored values are no anatomy (PS3.3 C.7.5.1.1.2).

    The two attributes are US or SS as Pixel Representation says; some writers use the other one.
    """
    if dataset.get("PixelPaddingValue") in (None, ""):
        return np.zeros(stored.shape, dtype=bool)
    bits = 8 * dtype.itemsize
    lowest = -(2 ** (bits - 1)) if dtype.kind == "i" else 0
    value = (int(dataset.PixelPaddingValue) - lowest) % 2**bits + lowest
    limit = dataset.get("PixelPaddingRangeLimit")
    limit = value if limit in (None, "") else (int(limit) - lowest) % 2**bits + lowest
    is_padding: np.ndarray = (stored >= min(value, limit)) & (stored <= max(value, limit))
    return is_padding


def _displayed(
    stored: np.ndarray, pattern_HW: np.ndarray, dataset: Dataset, window: tuple[float, float] | None
) -> tuple[np.ndarray, str, tuple[float, float]]:
    """Return the grey in [0, 1] of a grey image stored in colour, "displayed" or "given", and the window.

    Neither modality LUT nor VOI applies to colour (PS3.3 C.11.2): what is stored is what is to be seen. A window in the
    header is a leftover of the radiograph that was converted.
    """
    top = 2.0 ** int(dataset.BitsStored) - 1
    values = stored.copy()
    if _photometric(dataset) == "PALETTE COLOR":
        used = np.unique(pattern_HW)
        entries_C = np.asarray(apply_color_lut(used, dataset))[..., :3]
        if not _channels_agree(entries_C):
            raise ImageUnfit("colour")
        values[used], top = entries_C[..., 1], float(np.iinfo(entries_C.dtype).max)
    if window is not None:
        return _windowed(values, window[0], max(window[1], 1e-6), function="LINEAR_EXACT"), "given", window
    return np.clip(values / top, 0.0, 1.0), "displayed", (top / 2, top)


def _modality_values(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Apply the Modality LUT or Rescale Slope and Intercept (PS3.3 C.11.1)."""
    if dataset.get("ModalityLUTSequence"):
        return _looked_up(stored, dataset.ModalityLUTSequence[0], dataset)
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    values = np.asarray(stored * float(1 if slope is None else slope) + float(intercept or 0))
    if not (np.abs(values) <= np.finfo(np.float32).max).all():  # a header may say NaN, and NaN compares as false
        raise ImageUnfit("undecodable", "Rescale Slope or Intercept is no usable number")
    return values


def _looked_up(values: np.ndarray, item: Dataset, dataset: Dataset) -> np.ndarray:
    """Return the entries of a LUT item for input values; beyond its ends the first and last (PS3.3 C.11.1.1.1).

    pydicom's own function refuses tables of 12 bits, the usual ones of CR.
    """
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    count = count or 2**16  # 0 stands for 65536, which does not fit
    if first >= 2**15 and values.min() < 0:  # written as US, meant as SS
        first -= 2**16
    entries = item.LUTData
    if isinstance(entries, bytes):
        is_packed = bits <= 8 and len(entries) <= count + 1
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        entries = np.frombuffer(entries, dtype="u1" if is_packed else f"{order}u2")
    table: np.ndarray = np.asarray(entries, dtype=np.float64)[:count]
    position = np.clip(np.rint(values) - first, 0, len(table) - 1).astype(np.int64)
    found: np.ndarray = np.take(table, position)
    return found


def _voi(
    values: np.ndarray,
    is_padding: np.ndarray,
    pattern_HW: np.ndarray,
    dataset: Dataset,
    window: tuple[float, float] | None,
) -> tuple[np.ndarray, str, tuple[float, float]]:
    """Return the displayed grey in [0, 1] for every modality value, before polarity, its source, and the window."""
    if window is not None:
        center, width = window
        return _windowed(values, center, max(width, 1e-6), function="LINEAR_EXACT"), "given", window
    if dataset.get("VOILUTSequence"):
        depth = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        grey = np.clip(_looked_up(values, dataset.VOILUTSequence[0], dataset) / (2**depth - 1), 0, 1)
        return grey, "lut", _rise(values, grey)
    function = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
    own = _own_window(dataset, function)
    if own is not None:
        return _windowed(values, *own, function=function), "window", own
    spanned = _percentile_window(values, is_padding, pattern_HW)
    return _windowed(values, *spanned, function="LINEAR_EXACT"), "percentile", spanned


def _rise(values: np.ndarray, grey: np.ndarray) -> tuple[float, float]:
    """Return (center, width) of the values between which a table goes from its darkest to its brightest hundredth."""
    darkest, brightest = float(grey.min()), float(grey.max())
    edge = (brightest - darkest) / 100
    rising = values[(grey >= darkest + edge) & (grey <= brightest - edge)]
    low, high = (float(rising.min()), float(rising.max())) if rising.size else (values.min(), values.max())
    return (low + high) / 2, max(high - low, 1.0)


def _own_window(dataset: Dataset, function: str) -> tuple[float, float] | None:
    """Return the data set's first window, or None where it has none that means anything (PS3.3 C.11.2.1.2)."""
    try:
        center = np.atleast_1d(np.asarray(dataset.WindowCenter, dtype=np.float64))[0]
        width = np.atleast_1d(np.asarray(dataset.WindowWidth, dtype=np.float64))[0]
    except UNREADABLE:
        return None
    smallest = 1.0 if function == "LINEAR" else np.finfo(np.float64).tiny
    is_meant = np.isfinite(center) and np.isfinite(width) and width >= smallest
    return (float(center), float(width)) if is_meant else None


def _windowed(values: np.ndarray, center: float, width: float, *, function: str) -> np.ndarray:
    """Return grey in [0, 1] by the VOI LUT functions of PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    if function == "SIGMOID":
        return np.asarray(1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - center) / width, -700, 700))))
    if function == "LINEAR_EXACT":
        return np.clip((values - center) / width + 0.5, 0.0, 1.0)
    if width == 1:
        return (values > center - 0.5).astype(np.float64)
    return np.clip((values - (center - 0.5)) / (width - 1.0) + 0.5, 0.0, 1.0)


def _pixels_of(table: np.ndarray, pattern_HW: np.ndarray) -> np.ndarray:
    """Return the table's entry for every pixel.

    By blocks of rows, because numpy widens the positions to 64 bits: half the time, and no copy of eight bytes a pixel.
    There is an entry for every pattern, so "clip" only saves the check.
    """
    found_HW = np.empty(pattern_HW.shape, dtype=table.dtype)
    for start in range(0, len(pattern_HW), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        np.take(table, pattern_HW[block], out=found_HW[block], mode="clip")
    return found_HW


def _percentile_window(values: np.ndarray, is_padding: np.ndarray, pattern_HW: np.ndarray) -> tuple[float, float]:
    """Return (center, width) that spans the percentiles of the modality values that are not padding."""
    count = np.bincount(pattern_HW.ravel(), minlength=values.size).astype(np.float64)
    count[is_padding] = 0
    order = np.argsort(values, kind="stable")
    share = np.cumsum(count[order]) / max(count.sum(), 1.0)
    low, high = (float(values[order][np.searchsorted(share, p / 100).clip(max=values.size - 1)]) for p in PERCENTILES)
    return (low + high) / 2, max(high - low, 1e-6)
