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

PIXELS_MAX = 100_000_000  # five times the largest detector; a header may claim more than the memory holds
LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
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
        Where the grey levels come from: "lut", "window", "given" or "percentile".
    """

    grey_HW: np.ndarray
    voi: str


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
    try:
        values, is_padding = _values_of(stored_HW.dtype, dataset)
        grey, voi = _voi(values, is_padding, stored_HW, dataset, window)
    except UNREADABLE as error:
        raise ImageUnfit("undecodable", f"grey levels: {error}") from error
    if _photometric(dataset) == "MONOCHROME1":
        grey = 1.0 - grey
    grey[is_padding] = 0.0
    table = grey.astype(np.float32)
    return Radiograph(grey_HW=np.take(table, stored_HW.view(np.dtype(f"u{stored_HW.itemsize}"))), voi=voi)


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
    if photometric == "PALETTE COLOR":
        raise ImageUnfit("colour")
    if photometric not in ("MONOCHROME1", "MONOCHROME2") and not photometric.startswith(("RGB", "YBR")):
        raise ImageUnfit("undecodable", f"photometric interpretation {photometric!r}")
    if rows < 1 or columns < 1 or rows * columns > PIXELS_MAX:
        raise ImageUnfit("undecodable", f"{rows} x {columns} pixels")
    if high_bit != bits_stored - 1:  # pydicom would silently take the low bits
        raise ImageUnfit("left_justified_bits")
    if bits_allocated not in (8, 16) or not 1 < bits_stored <= bits_allocated:
        raise ImageUnfit("undecodable", f"{bits_stored} bits stored in {bits_allocated}")


def _photometric(dataset: Dataset) -> str:
    return str(dataset.get("PhotometricInterpretation") or "").strip().upper()


def _decode(dataset: Dataset) -> np.ndarray:
    try:
        syntax = dataset.file_meta.TransferSyntaxUID
        if not syntax.is_compressed:
            return pixel_array(dataset)
        return pixel_array(dataset, decoding_plugin=_PLUGINS.get(syntax, ""))
    except UNREADABLE as error:
        raise ImageUnfit("undecodable", str(error)) from error


def _as_grey(stored: np.ndarray) -> np.ndarray:
    """Return one native-endian grey plane; a colour image passes only if its channels are equal."""
    if stored.ndim == 3 and stored.shape[2] == 3:
        if not (np.array_equal(stored[..., 0], stored[..., 1]) and np.array_equal(stored[..., 0], stored[..., 2])):
            raise ImageUnfit("colour")
        stored = stored[..., 0]
    if stored.ndim != 2 or stored.dtype.itemsize > 2:
        raise ImageUnfit("undecodable", f"pixels of shape {stored.shape} and type {stored.dtype}")
    return np.ascontiguousarray(stored, dtype=stored.dtype.newbyteorder("="))


def _values_of(dtype: np.dtype[Any], dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return, for every bit pattern of a stored pixel, its modality value (float64) and whether it is padding."""
    bits = 8 * dtype.itemsize
    stored = np.arange(2**bits, dtype=np.dtype(f"u{dtype.itemsize}")).view(dtype).astype(np.int64)
    is_signed = dtype.kind == "i"
    depth = int(dataset.BitsStored) - is_signed
    stored = np.clip(stored, -(2**depth) if is_signed else 0, 2**depth - 1)
    is_padding = np.zeros(stored.shape, dtype=bool)
    padding = dataset.get("PixelPaddingValue")
    if padding is not None:
        limit = dataset.get("PixelPaddingRangeLimit", padding)
        is_padding = (stored >= min(padding, limit)) & (stored <= max(padding, limit))
    return _modality_values(stored.astype(np.float64), dataset), is_padding


def _modality_values(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Apply the Modality LUT or Rescale Slope and Intercept (PS3.3 C.11.1)."""
    if dataset.get("ModalityLUTSequence"):
        return _looked_up(stored, dataset.ModalityLUTSequence[0], dataset)
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    return np.asarray(stored * float(1 if slope is None else slope) + float(intercept or 0))


def _looked_up(values: np.ndarray, item: Dataset, dataset: Dataset) -> np.ndarray:
    """Return the entries of a LUT item for input values; beyond its ends the first and last (PS3.3 C.11.1.1.1).

    pydicom's own function refuses tables of 12 bits, the usual ones of CR.
    """
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    count = count or 2**16  # 0 stands for 65536, which does not fit
    if dataset.PixelRepresentation == 1 and first >= 2**15:
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
    stored_HW: np.ndarray,
    dataset: Dataset,
    window: tuple[float, float] | None,
) -> tuple[np.ndarray, str]:
    """Return the displayed grey in [0, 1] for every modality value, before polarity, and where it comes from."""
    if window is not None:
        center, width = window
        return _windowed(values, center, max(width, 1e-6), function="LINEAR_EXACT"), "given"
    if dataset.get("VOILUTSequence"):
        depth = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return np.clip(_looked_up(values, dataset.VOILUTSequence[0], dataset) / (2**depth - 1), 0, 1), "lut"
    function = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
    own = _own_window(dataset, function)
    if own is not None:
        return _windowed(values, *own, function=function), "window"
    return _windowed(values, *_percentile_window(values, is_padding, stored_HW), function="LINEAR_EXACT"), "percentile"


def _own_window(dataset: Dataset, function: str) -> tuple[float, float] | None:
    """Return the data set's first window, or None where it has none that means anything (PS3.3 C.11.2.1.2)."""
    try:
        center = np.atleast_1d(np.asarray(dataset.WindowCenter, dtype=np.float64))[0]
        width = np.atleast_1d(np.asarray(dataset.WindowWidth, dtype=np.float64))[0]
    except UNREADABLE:
        return None
    smallest = 1.0 if function == "LINEAR" else np.finfo(np.float64).tiny
    return (float(center), float(width)) if np.isfinite(center) and width >= smallest else None


def _windowed(values: np.ndarray, center: float, width: float, *, function: str) -> np.ndarray:
    """Return grey in [0, 1] by the VOI LUT functions of PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    if function == "SIGMOID":
        return np.asarray(1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - center) / width, -700, 700))))
    if function == "LINEAR_EXACT":
        return np.clip((values - center) / width + 0.5, 0.0, 1.0)
    if width == 1:
        return (values > center - 0.5).astype(np.float64)
    return np.clip((values - (center - 0.5)) / (width - 1.0) + 0.5, 0.0, 1.0)


def _percentile_window(values: np.ndarray, is_padding: np.ndarray, stored_HW: np.ndarray) -> tuple[float, float]:
    """Return (center, width) that spans the percentiles of the modality values that are not padding."""
    pattern = stored_HW.view(np.dtype(f"u{stored_HW.itemsize}")).ravel()
    count = np.bincount(pattern, minlength=values.size).astype(np.float64)
    count[is_padding] = 0
    order = np.argsort(values, kind="stable")
    share = np.cumsum(count[order]) / max(count.sum(), 1.0)
    low, high = (float(values[order][np.searchsorted(share, p / 100).clip(max=values.size - 1)]) for p in PERCENTILES)
    return (low + high) / 2, max(high - low, 1e-6)
