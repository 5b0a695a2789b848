"""From an upload's bytes to an examination: JPEG and PNG by a door of their own, DICOM by `suitability`'s.

Takes the bytes as they came; gives what `suitability.examine` gives for a stored object, and a picture to draw a heat
map on. A JPEG or PNG brings no header: that it shows a frontal chest is its sender's word, which the pixels are asked
to confirm, and what is not known is said as a warning. Everything that goes in and out can be pickled: it runs in a
process that may be killed.

Shapes: H rows, W columns; 1 is the grey channel.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import pydicom
from PIL import Image, ImageChops, ImageOps

from models.card import ModelCard
from models.preprocess import CHANNELS_APART, UNREADABLE, from_array, read_radiograph, squash
from models.suitability import (
    Examination,
    ImageWarning,
    Severity,
    age_warnings,
    examine_file,
    make_warning,
    pixel_codes,
)

PICTURE_PIXELS_MAX = 50_000_000
"""Twice the largest detector; a few bytes of PNG may claim thousands of millions."""
PREVIEW_SIDE = 512
"""Longest side, in pixels, of the picture that a heat map is drawn on."""
_GREY_MODES = ("1", "L", "LA")
DEEP_MODES = ("I", "F")  # PIL's modes of more than 8 bits begin so
_BROKEN: tuple[type[Exception], ...] = (*UNREADABLE, SyntaxError)  # PNG: SyntaxError


class Format(StrEnum):
    """What an upload may be, told by its first bytes and nothing else."""

    JPEG = "jpeg"
    PNG = "png"
    DICOM = "dicom"


class Refusal(StrEnum):
    """Why nothing was looked at."""

    FORMAT = "format"
    PIXELS = "pixels"
    BITS = "bits"


class UploadRefused(Exception):
    """The upload is none that this room reads; `sentence` says why, without quoting it."""

    def __init__(self, refusal: Refusal, sentence: str) -> None:
        super().__init__(refusal, sentence)  # both, so that it can be pickled
        self.refusal = refusal
        self.sentence = sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class ExaminedUpload:
    """What an upload is worth; `preview_HW` is uint8, lung dark, at most `PREVIEW_SIDE` long, where one was asked for
    and the image is fit."""

    examination: Examination
    preview_HW: np.ndarray | None = None


def format_of(content: bytes) -> Format:
    """Return the format by its magic bytes.

    Raises
    ------
    UploadRefused
        It is none of the three.

    References
    ----------
    ISO/IEC 10918-1 B.1.1.3 (JPEG: SOI, then a marker), ISO/IEC 15948 5.2 (PNG), PS3.10 7.1 (DICOM)
    """
    if content.startswith(b"\xff\xd8\xff"):
        return Format.JPEG
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return Format.PNG
    if content[128:132] == b"DICM":
        return Format.DICOM
    raise UploadRefused(Refusal.FORMAT, "The upload is none of JPEG, PNG and DICOM (by its first bytes).")


def examine_upload(
    content: bytes, card: ModelCard, *, age_policy: str, age_years: int | None = None, has_preview: bool = False
) -> ExaminedUpload:
    """Return what the upload is worth to the model of that card.

    Parameters
    ----------
    age_policy
        As in `suitability.examine`.
    age_years
        The patient's, in completed years, where the sender knows it; a DICOM object says it itself.

    Raises
    ------
    UploadRefused
        It is no JPEG, PNG or DICOM, has more than 8 bits a channel, or claims more pixels than any radiograph has.
    """
    kind = format_of(content)
    if kind is not Format.DICOM:
        return _examine_picture(content, kind, card, age_policy, age_years, has_preview)
    examination = examine_file(io.BytesIO(content), card, age_policy=age_policy)
    if not has_preview or not examination.is_fit:
        return ExaminedUpload(examination=examination)
    return ExaminedUpload(
        examination=examination, preview_HW=_preview(read_radiograph(pydicom.dcmread(io.BytesIO(content))).grey_HW)
    )


def _examine_picture(
    content: bytes, kind: Format, card: ModelCard, age_policy: str, age_years: int | None, has_preview: bool
) -> ExaminedUpload:
    warnings = age_warnings(age_years, card, age_policy)
    try:
        picture, frames = _opened(content, kind)
        columns, rows = picture.size
        codes = ["several_frames"] if frames > 1 else []
        codes += ["low_resolution"] if min(rows, columns) < card.input_size else []
        codes += ["colour"] if not _is_grey(picture) else []
        grey_HW = from_array(np.asarray(picture.convert("L")))
    except _BROKEN:
        return ExaminedUpload(examination=_examination([make_warning("undecodable")], 0, 0, age_years))
    image_1HW: np.ndarray = squash(grey_HW, card.input_size).numpy()
    codes += ["view_unknown", *pixel_codes(image_1HW)]
    codes += ["stored_in_colour"] if picture.mode not in _GREY_MODES else []
    codes += ["lossy_source"] if kind is Format.JPEG else []
    warnings += [make_warning(code) for code in codes]
    examination = _examination(warnings, rows, columns, age_years, image_1HW)
    return ExaminedUpload(
        examination=examination, preview_HW=_preview(grey_HW) if has_preview and examination.is_fit else None
    )


def _opened(content: bytes, kind: Format) -> tuple[Image.Image, int]:
    """Return the picture as a viewer shows it, and its number of frames.

    The header is believed first: nothing is decoded of a picture that claims too much.
    """
    too_many = UploadRefused(Refusal.PIXELS, f"The picture claims more than the {PICTURE_PIXELS_MAX} pixels taken.")
    try:
        opened = Image.open(io.BytesIO(content), formats=[kind.value])
    except Image.DecompressionBombError:  # far more
        raise too_many from None
    with opened as picture:
        if picture.width * picture.height > PICTURE_PIXELS_MAX:
            raise too_many
        if picture.mode.startswith(DEEP_MODES):
            sentence = "The picture has more than 8 bits a channel: send the DICOM object, or an 8-bit picture."
            raise UploadRefused(Refusal.BITS, sentence)
        frames = int(getattr(picture, "n_frames", 1)) if kind is Format.PNG else 1
        picture.load()
        return ImageOps.exif_transpose(picture), frames


def _is_grey(picture: Image.Image) -> bool:
    """Whether the channels differ by rounding at most."""
    if picture.mode in _GREY_MODES:
        return True
    one, *others = picture.convert("RGB").split()
    return all(int(np.asarray(ImageChops.difference(one, other)).max()) <= 255 * CHANNELS_APART for other in others)


def _examination(
    warnings: list[ImageWarning], rows: int, columns: int, age_years: int | None, image_1HW: np.ndarray | None = None
) -> Examination:
    """Return the image unless something forbids an answer; then the reasons alone, as `suitability` does."""
    forbidding = [warning for warning in warnings if warning.severity is Severity.FORBIDS]
    return Examination(
        image_1HW=None if forbidding else image_1HW,
        warnings=tuple(forbidding or warnings),
        rows=rows,
        columns=columns,
        voi="" if forbidding else "displayed",
        age_years=age_years,
    )


def _preview(grey_HW: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(np.rint(grey_HW * 255).astype(np.uint8))
    picture.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.asarray(picture)
