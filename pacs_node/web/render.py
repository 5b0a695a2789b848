"""A radiograph as PNG, drawn in a killable process: a hostile image costs that process at most, never the web server.

Takes a stored file, gives bytes; hides the pool and a small memory of what was drawn (and of what could not be).
"""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections import OrderedDict
from concurrent.futures import wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image

from models.preprocess import UNREADABLE, ImageUnfit, read_radiograph
from models.suitability import CODES
from pacs_node.decoding import Collapsed, DecodingPool, TookTooLong, result_of

PROCESSES = 2
TIMEOUT_S = 15.0
MEMORY_MB = 2048
PATIENCE_S = 45.0
"""A request waits this long for its turn and its picture."""
WAITING_MAX = 24
"""Requests that wait for a process at once; the next is asked to come again, so that the rest stays quick."""
MEMORY_BYTES = 48_000_000
REFUSAL_S = 60.0
"""A refusal is remembered this long: the machine may have been busy, not the image bad."""
SIZE_MIN, SIZE_MAX, SIZE_DEFAULT = 16, 4096, 1024
"""Longest side in pixels; an image is never enlarged."""
RENDERING = "1"
"""Change it when the same request would draw other pixels: it is part of the ETag."""


class RenderBusy(Exception):
    """Too many requests wait for a drawing process."""


class RenderRefused(Exception):
    """The image cannot be drawn; `reason` is a clause without patient attributes."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """What to draw; `window` is (center, width) in modality values, None = the image's own VOI."""

    digest: str
    size: int
    window: tuple[float, float] | None

    @property
    def etag(self) -> str:
        """The strong validator: the stored bytes never change, so the request decides (RFC 9110 8.8.3)."""
        key = f"{RENDERING}/{self.digest}/{self.size}/{self.window}"
        return f'"{hashlib.sha256(key.encode()).hexdigest()[:32]}"'


class Renderer:
    """Draws at most `PROCESSES` images at once."""

    def __init__(self) -> None:
        self._pool = DecodingPool(processes=PROCESSES, timeout_s=TIMEOUT_S, memory_mb=MEMORY_MB)
        self._places = threading.BoundedSemaphore(WAITING_MAX)
        self._drawn = _Memory(MEMORY_BYTES)

    def warm(self) -> None:
        """Start the processes, so that the first image need not wait for their imports."""
        self._pool.warm()

    def draw(self, path: Path, drawing: Drawing) -> bytes:
        """Return the PNG.

        Raises
        ------
        RenderRefused
            The image is unfit, took too long, or its process died.
        RenderBusy
            `WAITING_MAX` requests are waiting already.
        """
        known = self._drawn.get(drawing.etag, time.monotonic())
        if known is None:
            known = self._draw(path, drawing)
            self._drawn.put(drawing.etag, known, time.monotonic())
        if isinstance(known, str):
            raise RenderRefused(known)
        return known

    def _draw(self, path: Path, drawing: Drawing) -> bytes | str:
        if not self._places.acquire(blocking=False):
            raise RenderBusy
        try:
            future = self._pool.submit(draw_png, str(path), drawing.size, drawing.window)
            if wait([future], timeout=PATIENCE_S).not_done:
                future.cancel()
                raise RenderBusy
            drawn: bytes | str = result_of(future)
        except TookTooLong:
            return f"it takes longer than {TIMEOUT_S:g} s"
        except Collapsed:
            return "its decoder stopped"
        finally:
            self._places.release()
        return drawn

    def close(self) -> None:
        self._pool.close()


def draw_png(path: str, size: int, window: tuple[float, float] | None) -> bytes | str:
    """Return the image as an 8-bit grey PNG whose longest side is at most `size`, or the reason why not."""
    try:
        grey_HW = read_radiograph(pydicom.dcmread(path), window=window).grey_HW
    except ImageUnfit as unfit:
        sentence = CODES[unfit.code][1] if unfit.code in CODES else "The pixel data cannot be decoded."
        return sentence[0].lower() + sentence[1:].rstrip(".")
    except FileNotFoundError:
        return "its file was purged after the retention time"
    except UNREADABLE:
        return "it cannot be read as DICOM"
    image = Image.fromarray(np.rint(grey_HW * 255).astype(np.uint8))
    image.thumbnail((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


class _Memory:
    """The results used last, up to so many bytes; safe for threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._results: OrderedDict[str, tuple[bytes | str, float]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str, now: float) -> bytes | str | None:
        with self._lock:
            result, at = self._results.get(key, (None, now))
            if isinstance(result, str) and now - at > REFUSAL_S:
                self._forget(key)
                return None
            if result is not None:
                self._results.move_to_end(key)
            return result

    def put(self, key: str, result: bytes | str, now: float) -> None:
        with self._lock:
            if key in self._results:
                self._forget(key)
            self._results[key] = (result, now)
            self._bytes += len(result)
            while self._bytes > self._max_bytes:
                self._forget(next(iter(self._results)))

    def _forget(self, key: str) -> None:
        self._bytes -= len(self._results.pop(key)[0])
