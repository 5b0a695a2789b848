"""Is this image one that the model may judge? Takes a data set and a card; gives the image and coded warnings.

Every warning's code is a row of `CODES`: it either forbids an answer, travels with the answer as a warning, or is a
note. Texts are whole sentences for a radiologist and carry no patient attribute. Nothing here raises for bad pixels,
and everything that goes in and out can be pickled: it runs in a process that may be killed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
import pydicom.config
from pydicom.dataset import Dataset

from models import header
from models.card import ModelCard
from models.preprocess import UNREADABLE, ImageUnfit, read_radiograph, squash

if TYPE_CHECKING:
    from models.predictor import Prediction


class Severity(StrEnum):
    """What a warning does to the answer."""

    NOTE = "note"
    WARNING = "warning"
    FORBIDS = "forbids"


CODES: dict[str, tuple[Severity, str]] = {
    "wrong_modality": (Severity.FORBIDS, "The object is not a CR or DX radiograph."),
    "not_chest": (Severity.FORBIDS, "The body part is not the chest."),
    "body_part_unknown": (Severity.FORBIDS, "The body part is not stated; only the chest is judged."),
    "not_frontal": (Severity.FORBIDS, "The view is lateral, oblique or decubitus; only frontal views are judged."),
    "turned": (Severity.FORBIDS, "The stored image is rotated or mirrored (Patient Orientation)."),
    "not_human": (Severity.FORBIDS, "The image is marked as a veterinary one."),
    "for_processing": (Severity.FORBIDS, "The image is raw detector data (For Processing)."),
    "derived_secondary": (Severity.FORBIDS, "The image is a derived secondary image, not an original radiograph."),
    "no_pixels": (Severity.FORBIDS, "The object holds no pixel data."),
    "undecodable": (Severity.FORBIDS, "The pixel data cannot be decoded."),
    "left_justified_bits": (Severity.FORBIDS, "The pixels are stored left-justified, which is not supported."),
    "colour": (Severity.FORBIDS, "The image is in colour."),
    "several_frames": (Severity.FORBIDS, "The image has several frames."),
    "low_resolution": (Severity.FORBIDS, "The image has fewer pixels than the model needs."),
    "blank_image": (Severity.FORBIDS, "The image shows one grey level only."),
    "age_outside_card": (Severity.FORBIDS, "The patient's age is outside the {ages} of the validation."),
    "processing_failed": (Severity.FORBIDS, "Processing failed."),
    "decode_timeout": (Severity.FORBIDS, "Decoding the pixel data took too long."),
    "age_unknown": (Severity.WARNING, "The patient's age is unknown; the model was validated at {ages}."),
    "view_unknown": (Severity.WARNING, "The view is not stated; the model judges frontal views only."),
    "secondary_capture": (Severity.WARNING, "The image is a secondary capture; its grey levels may have been changed."),
    "lut_shape_contradicts": (
        Severity.WARNING,
        "Presentation LUT Shape contradicts the Photometric Interpretation, which was followed.",
    ),
    "burned_in_annotation": (Severity.WARNING, "The pixels contain burned-in annotation."),
    "low_confidence": (
        Severity.WARNING,
        "Low confidence: the probability lies in the band of {low} to {high} % where the model abstains.",
    ),
    "lossy_source": (Severity.NOTE, "The image was compressed with loss."),
    "no_window": (Severity.NOTE, "The image brings no window; its grey levels were spread by percentiles."),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageWarning:
    """One coded remark on an image; `code` is a row of CODES, `text` a sentence without patient attributes."""

    code: str
    severity: Severity
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What an image is worth.

    Attributes
    ----------
    image_1HW
        The network's input, float32, shape (1, size, size), range [0, 1]; None if a warning forbids an answer.
    rows, columns
        Pixels of the stored image, 0 where not stated.
    voi
        "lut", "window" or "percentile", as in `preprocess.Radiograph`; "" if the pixels were not read.
    age_years
        The patient's, in completed years; None if unknown. It chooses the card's population.
    """

    image_1HW: np.ndarray | None
    warnings: tuple[ImageWarning, ...]
    rows: int
    columns: int
    voi: str
    age_years: int | None

    @property
    def is_fit(self) -> bool:
        """Whether the image may be judged."""
        return self.image_1HW is not None


def make_warning(code: str, *, severity: Severity | None = None, **values: object) -> ImageWarning:
    """Return the warning of a row of CODES, with the sentence's blanks filled in."""
    own_severity, text = CODES[code]
    return ImageWarning(code=code, severity=severity or own_severity, text=text.format(**values))


def examine_file(path: str, card: ModelCard, *, age_policy: str = "refuse") -> Examination:
    """Read a Part 10 file and examine it; a file that is no DICOM is undecodable.

    Raises
    ------
    OSError
        The file is not there or the disk is faulty, which says nothing about the image.
    """
    # pydicom's remarks on bad values quote them: patient attributes would reach the log.
    with pydicom.config.disable_value_validation():
        try:
            dataset = pydicom.dcmread(path)
        except UNREADABLE as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk, not the image
            return _unfit("undecodable")
        return examine(dataset, card, age_policy=age_policy)


def examine(dataset: Dataset, card: ModelCard, *, age_policy: str = "refuse") -> Examination:
    """Return what the image is worth to the model of that card.

    Parameters
    ----------
    age_policy
        "refuse" forbids an answer for patients outside the card's ages, "warn" only warns.
    """
    try:
        rows, columns = (int(dataset.get(keyword) or 0) for keyword in ("Rows", "Columns"))
        age_years = header.age_years_of(dataset)
        warnings = header_warnings(dataset, card, age_policy)
    except UNREADABLE:
        return _unfit("undecodable")
    voi, image_1HW = "", None
    if not any(warning.severity is Severity.FORBIDS for warning in warnings):
        try:
            voi, image_1HW = _read(dataset, card.input_size)
        except ImageUnfit as unfit:
            warnings.append(make_warning(unfit.code))
    if voi == "percentile":
        warnings.append(make_warning("no_window"))
    if image_1HW is None:  # beside the reasons why there is no answer, remarks on the answer would only distract
        warnings = [warning for warning in warnings if warning.severity is Severity.FORBIDS]
    return Examination(
        image_1HW=image_1HW, warnings=tuple(warnings), rows=rows, columns=columns, voi=voi, age_years=age_years
    )


def header_warnings(dataset: Dataset, card: ModelCard, age_policy: str) -> list[ImageWarning]:
    """Return what the attributes say against the image or beside it, without decoding a pixel."""
    codes = [
        code
        for code, applies in (
            ("no_pixels", not header.has_pixels(dataset)),
            ("wrong_modality", not header.is_radiograph(dataset)),
            ("for_processing", header.is_for_processing(dataset)),
            ("derived_secondary", header.is_derived_secondary(dataset)),
            ("not_human", header.is_veterinary(dataset)),
            ("not_chest", header.body_part_of(dataset) == "other"),
            ("body_part_unknown", header.body_part_of(dataset) == ""),
            ("not_frontal", header.view_of(dataset) == "other"),
            ("turned", header.is_turned(dataset)),
            ("low_resolution", header.has_pixels(dataset) and header.shortest_side(dataset) < card.input_size),
            ("view_unknown", header.view_of(dataset) == ""),
            ("secondary_capture", header.is_secondary_capture(dataset)),
            ("lut_shape_contradicts", header.is_lut_shape_contradicting(dataset)),
            ("burned_in_annotation", header.is_annotated(dataset)),
            ("lossy_source", header.is_lossy(dataset)),
        )
        if applies
    ]
    return [make_warning(code) for code in codes] + _age_warnings(dataset, card, age_policy)


def warnings_of(prediction: Prediction) -> tuple[ImageWarning, ...]:
    """Return what a probability says against itself: it lies where the card abstains."""
    if not prediction.abstain_low <= prediction.probability < prediction.abstain_high:
        return ()
    low, high = f"{100 * prediction.abstain_low:.0f}", f"{100 * prediction.abstain_high:.0f}"
    return (make_warning("low_confidence", low=low, high=high),)


def _age_warnings(dataset: Dataset, card: ModelCard, age_policy: str) -> list[ImageWarning]:
    age_years = header.age_years_of(dataset)
    if age_years is None:
        return [make_warning("age_unknown", ages=card.ages_text)]
    if card.is_validated_age(age_years):
        return []
    severity = Severity.WARNING if age_policy == "warn" else Severity.FORBIDS
    return [make_warning("age_outside_card", severity=severity, ages=card.ages_text)]


def _read(dataset: Dataset, size: int) -> tuple[str, np.ndarray]:
    radiograph = read_radiograph(dataset)
    image_1HW: np.ndarray = squash(radiograph.grey_HW, size).numpy()
    if float(image_1HW.std()) < 0.005:
        raise ImageUnfit("blank_image")
    return radiograph.voi, image_1HW


def _unfit(code: str) -> Examination:
    return Examination(image_1HW=None, warnings=(make_warning(code),), rows=0, columns=0, voi="", age_years=None)
