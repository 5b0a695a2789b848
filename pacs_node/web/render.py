"""A radiograph as a picture, drawn in a killable process: a hostile image costs that process, never the web server.

Takes a stored file, gives bytes; hides the pool and a small memory of what was drawn (and of what could not be).
"""

from __future__ import annotations

import hashlib
import io
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset

from models.preprocess import UNREADABLE, ImageUnfit, read_radiograph
from models.suitability import CODES
from pacs_node.decoding import Collapsed, DecodingPool, PoolDown, TookTooLong, result_of

PROCESSES = 2
TIMEOUT_S = 15.0
MEMORY_MB = 2048
PATIENCE_S = 45.0
"""A request waits this long for its turn and its picture."""
WAITING_MAX = 24
"""Requests that wait for a process at once; the next is asked to come again, so that the rest stays quick."""
THUMBNAILS_MAX = 12
"""Requests for a thumbnail that wait at once. One is drawn at a time: a list of them never stands before a film."""
MEMORY_BYTES = 48_000_000
REFUSAL_S = 60.0
"""A refusal is remembered this long: the machine may have been busy, not the image bad."""
SIZE_MIN, SIZE_MAX, SIZE_DEFAULT = 16, 4096, 1024
"""Longest side in pixels; an image is never enlarged."""
THUMBNAIL = 160
"""Pixels; larger pictures are views of the study, which are audited."""
QUALITY = 90
"""Of WebP; PNG loses nothing."""
HEAT_OPACITY = 0.55
"""Of the hottest places of a heat map that is burned in; cooler ones show less of it, cold ones nothing."""
HEAT_HUE = (240, 180, 100)
"""Of a heat map that is a layer of its own; the page's key shows it from none to all of it."""
Form = Literal["png", "webp"]
RENDERING = "2"
"""Change it when the same request would draw other pixels: it is part of the ETag."""


PURGED = "its file was purged after the retention time"
UNIT = re.compile(r"[A-Z][A-Z0-9_/]{0,15}")
"""What a Rescale Type may look like before it stands in a header."""
NO_UNIT = "US"
"""Rescale Type: unspecified."""
Result = TypeVar("Result")


class RenderBusy(Exception):
    """Too many requests wait for a drawing process, or there is none at the moment."""


class RenderRefused(Exception):
    """The image cannot be drawn; `reason` is a clause without patient attributes."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A drawn radiograph, and what its grey levels and its size are in the stored image."""

    content: bytes
    rows: int
    columns: int
    center: float
    width: float
    """In modality values; of a VOI LUT, the span in which it rises."""
    voi: str
    """`window` or `lut` = the image's own, `percentile` = it brings none, `given` = asked for, `displayed` = colour."""
    is_inverse: bool
    """Large values are dark (MONOCHROME1)."""
    unit: str
    """Of the values (Rescale Type, PS3.3 C.11.1.1.2); empty = not stated."""

    @property
    def header(self) -> str:
        """The same as a dictionary of RFC 9651, for the answer's header `VOI-Window`."""
        return (
            f'center={_decimal(self.center)}, width={_decimal(self.width)}, voi={self.voi}, unit="{self.unit}", '
            f"inverse=?{int(self.is_inverse)}, rows={self.rows}, columns={self.columns}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """What to draw; `window` is (center, width) in modality values, None = the image's own VOI."""

    digest: str
    size: int
    window: tuple[float, float] | None
    form: Form = "png"
    heatmap: str | None = None
    """File of the heat map that is laid over the image; None = the image alone."""
    is_layer: bool = False
    """The heat map alone, as clear as the place is cold: it lies over a film, whatever the film's window."""

    @property
    def etag(self) -> str:
        """The strong validator: the stored bytes never change, so the request decides (RFC 9110 8.8.3)."""
        key = f"{RENDERING}/{self.digest}/{self.size}/{self.window}/{self.form}/{self.heatmap}/{self.is_layer}"
        return f'"{hashlib.sha256(key.encode()).hexdigest()[:32]}"'


class Renderer:
    """Draws at most `PROCESSES` images at once."""

    def __init__(self) -> None:
        self._pool = DecodingPool(processes=PROCESSES, timeout_s=TIMEOUT_S, memory_mb=MEMORY_MB)
        self._places = threading.BoundedSemaphore(WAITING_MAX)
        self._thumbnails, self._thumbnail = threading.BoundedSemaphore(THUMBNAILS_MAX), threading.BoundedSemaphore(1)
        self._drawn = _Memory(MEMORY_BYTES)

    def warm(self) -> None:
        """Start the processes, so that the first image need not wait for their imports."""
        self._pool.warm()

    def draw(self, path: Path, drawing: Drawing) -> Picture:
        """Return the picture.

        Raises
        ------
        RenderRefused
            The image is unfit, took too long, or its process died.
        RenderBusy
            `WAITING_MAX` requests are waiting already, or `THUMBNAILS_MAX` for thumbnails.
        """
        known = self._drawn.get(drawing.etag, time.monotonic())
        if known is None:
            known = self._draw(path, drawing)
            self._drawn.put(drawing.etag, known, time.monotonic())
        if isinstance(known, str):
            raise RenderRefused(known)
        return known

    def work(self, function: Callable[..., Result | str], path: Path, *args: object) -> Result:
        """Return what `function` finds in a stored file, in one of the processes; a string is its reason why not.

        Raises
        ------
        RenderRefused, RenderBusy
            As for `draw`.
        """
        found = self._work(function, str(path), *args)
        if isinstance(found, str):
            raise RenderRefused(found)
        return found

    def _draw(self, path: Path, drawing: Drawing) -> Picture | str:
        if drawing.size > THUMBNAIL:
            return self._work(draw_picture, str(path), drawing)
        with _place(self._thumbnails), _place(self._thumbnail, timeout_s=PATIENCE_S):
            return self._work(draw_picture, str(path), drawing)

    def _work(self, function: Callable[..., Result | str], *args: object) -> Result | str:
        try:
            with _place(self._places):
                future = self._pool.submit(function, *args)
                if wait([future], timeout=PATIENCE_S).not_done:
                    future.cancel()
                    raise RenderBusy
                found: Result | str = result_of(future)
        except TookTooLong:
            return f"it takes longer than {TIMEOUT_S:g} s"
        except Collapsed:
            return "its decoder stopped"
        except PoolDown:
            raise RenderBusy from None
        return found

    def close(self) -> None:
        self._pool.close()


@contextmanager
def _place(places: threading.Semaphore, *, timeout_s: float = 0.0) -> Iterator[None]:
    """Hold one of these places; `RenderBusy` where none is free in time."""
    if not places.acquire(timeout=timeout_s):
        raise RenderBusy
    try:
        yield
    finally:
        places.release()


def draw_picture(path: str, drawing: Drawing) -> Picture | str:
    """Return the image as an 8-bit picture whose longest side is at most `drawing.size`, or the reason why not.

    Grey, or in colours where a heat map lies over it or is what is drawn.
    """
    try:
        dataset = pydicom.dcmread(path)
        radiograph = read_radiograph(dataset, window=drawing.window)
    except ImageUnfit as unfit:
        sentence = CODES[unfit.code].text if unfit.code in CODES else "The pixel data cannot be decoded."
        return sentence[0].lower() + sentence[1:].rstrip(".")
    except FileNotFoundError:
        return PURGED
    except UNREADABLE:
        return "it cannot be read as DICOM"
    rows, columns = radiograph.grey_HW.shape
    image = Image.fromarray(np.rint(radiograph.grey_HW * 255).astype(np.uint8))
    image.thumbnail((drawing.size, drawing.size), Image.Resampling.LANCZOS, reducing_gap=3.0)
    if drawing.heatmap is not None:
        try:
            heatmap = Image.open(drawing.heatmap).convert("L").resize(image.size, Image.Resampling.BILINEAR)
            image = _layer(heatmap) if drawing.is_layer else _heated(image, heatmap)
        except OSError:
            return "its heat map cannot be read"
    buffer = io.BytesIO()
    options = {"compress_level": 4} if drawing.form == "png" else {"quality": QUALITY, "method": 4}
    image.save(buffer, drawing.form.upper(), **options)
    center, width = radiograph.window
    return Picture(
        content=buffer.getvalue(),
        rows=rows,
        columns=columns,
        center=center,
        width=width,
        voi=radiograph.voi,
        is_inverse=radiograph.is_inverse,
        unit=_unit_of(dataset),
    )


def _unit_of(dataset: Dataset) -> str:
    """Return Rescale Type where it names a unit; the modality wrote it, so it may be anything."""
    stated = str(dataset.get("RescaleType") or "").strip().upper()
    return stated if UNIT.fullmatch(stated) and stated != NO_UNIT else ""


def _decimal(value: float) -> str:
    """Return a number as RFC 9651 writes decimals: three places, no exponent."""
    return f"{value:.3f}"


def size_of(path: str) -> tuple[int, int] | str:
    """Return Rows and Columns of a stored image (PS3.3 C.7.6.3.1.1), or the reason why not."""
    try:
        dataset = pydicom.dcmread(path, specific_tags=["Rows", "Columns"], stop_before_pixels=True)
        return int(dataset.Rows), int(dataset.Columns)
    except FileNotFoundError:
        return PURGED
    except UNREADABLE:
        return "it has no rows and columns"


def _heated(grey: Image.Image, heatmap: Image.Image) -> Image.Image:
    """Lay a heat map over a picture: from red where it is warm to yellow where it is hottest."""
    heat_HW = np.asarray(heatmap, np.float32) / 255
    opacity_HW1 = (HEAT_OPACITY * heat_HW)[..., None]
    colour_HW3 = np.stack([np.full_like(heat_HW, 255), 255 * heat_HW, np.zeros_like(heat_HW)], axis=-1)
    grey_HW3 = np.asarray(grey.convert("RGB"), np.float32)
    mixed_HW3 = grey_HW3 * (1 - opacity_HW1) + colour_HW3 * opacity_HW1
    return Image.fromarray(np.rint(mixed_HW3).astype(np.uint8))


def _layer(heatmap: Image.Image) -> Image.Image:
    """Return a heat map in one hue, as opaque as the place is warm."""
    layer = Image.new("RGB", heatmap.size, HEAT_HUE)
    layer.putalpha(heatmap)
    return layer


class _Memory:
    """The results used last, up to so many bytes; safe for threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._results: OrderedDict[str, tuple[Picture | str, float]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str, now: float) -> Picture | str | None:
        with self._lock:
            result, at = self._results.get(key, (None, now))
            if isinstance(result, str) and now - at > REFUSAL_S:
                self._forget(key)
                return None
            if result is not None:
                self._results.move_to_end(key)
            return result

    def put(self, key: str, result: Picture | str, now: float) -> None:
        with self._lock:
            if key in self._results:
                self._forget(key)
            self._results[key] = (result, now)
            self._bytes += _bytes_of(result)
            while self._bytes > self._max_bytes:
                self._forget(next(iter(self._results)))

    def _forget(self, key: str) -> None:
        self._bytes -= _bytes_of(self._results.pop(key)[0])


def _bytes_of(result: Picture | str) -> int:
    return len(result if isinstance(result, str) else result.content)
