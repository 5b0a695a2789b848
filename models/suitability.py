"""Is this image one that the model may judge? Takes a data set and a card; gives the image and coded warnings.

Every warning's code is a row of `CODES`: it either forbids an answer, travels with the answer as a warning (and may
leave it undetermined), or is a note. Texts are whole sentences for a radiologist and carry no patient attribute.
Nothing here raises for bad pixels, and everything that goes in and out can be pickled: it runs in a process that may be
killed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import pydicom.config
from pydicom.dataset import Dataset

from models import header
from models.appearance import appearance_codes
from models.card import ModelCard
from models.codes import CODES, Severity
from models.header import DeviceModel
from models.preprocess import UNREADABLE, ImageUnfit, read_radiograph, squash

if TYPE_CHECKING:
    from models.predictor import Prediction


__all__ = [
    "CODES",
    "Examination",
    "ImageWarning",
    "Severity",
    "age_warnings",
    "examine",
    "examine_file",
    "header_warnings",
    "make_warning",
    "pixel_codes",
    "settled",
    "warnings_of",
]


BLANK_STD = 0.005  # of grey; the flattest of 5,836 radiographs has 0.078
_GREY_CODES = {"percentile": "no_window", "displayed": "stored_in_colour"}


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
        "lut", "window", "percentile" or "displayed", as in `preprocess.Radiograph`; "" if the pixels could not be read.
    age_years
        The patient's, in completed years; None if unknown. It chooses the card's population.
    device
        What took the image; None if not stated.
    projection
        "PA" or "AP", "" if not stated.
    """

    image_1HW: np.ndarray | None
    warnings: tuple[ImageWarning, ...]
    rows: int
    columns: int
    voi: str
    age_years: int | None
    device: DeviceModel | None = None
    projection: str = ""

    @property
    def is_fit(self) -> bool:
        """Whether the image may be judged."""
        return self.image_1HW is not None


def load_libraries() -> None:
    """Import and read now what the first examination would: seconds that its time limit does not allow for."""
    pixel_codes(squash(np.eye(32, dtype=np.float32), 32).numpy())


def make_warning(code: str, *, severity: Severity | None = None, **values: object) -> ImageWarning:
    """Return the warning of a row of CODES, with the sentence's blanks filled in."""
    row = CODES[code]
    return ImageWarning(code=code, severity=severity or row.severity, text=row.text.format(**values))


def examine_file(path: str | BinaryIO, card: ModelCard, *, age_policy: str = "refuse") -> Examination:
    """Read a Part 10 file, or its bytes, and examine it; a file that is no DICOM is undecodable.

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
            return unreadable("undecodable")
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
        age_years, device = header.age_years_of(dataset), header.device_model_of(dataset)
        projection = header.projection_of(dataset)
        warnings = header_warnings(dataset, card, age_policy)
    except UNREADABLE:
        return unreadable("undecodable")
    voi, image_1HW = "", None
    if not any(warning.severity is Severity.FORBIDS for warning in warnings):
        try:
            voi, image_1HW, codes = _read(dataset, card.input_size)
        except ImageUnfit as unfit:
            codes = [unfit.code]
        warnings += [make_warning(code) for code in codes]
    if any(warning.severity is Severity.FORBIDS for warning in warnings):
        image_1HW = None
    if image_1HW is None:  # beside the reasons why there is no answer, remarks on the answer would only distract
        warnings = [warning for warning in warnings if warning.severity is Severity.FORBIDS]
    return Examination(
        image_1HW=image_1HW,
        warnings=tuple(warnings),
        rows=rows,
        columns=columns,
        voi=voi,
        age_years=age_years,
        device=device,
        projection=projection,
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
            ("ap_or_portable", header.is_ap_or_portable(dataset)),
            ("identity_incomplete", header.is_identity_incomplete(dataset)),
        )
        if applies
    ]
    return [make_warning(code) for code in codes] + age_warnings(header.age_years_of(dataset), card, age_policy)


def age_warnings(age_years: int | None, card: ModelCard, age_policy: str) -> list[ImageWarning]:
    """Return what the patient's age, in completed years, says against an answer; an unknown one forbids none."""
    if age_years is None:
        population = card.population_of(None).name
        return [make_warning("age_unknown", population=population, ages=card.ages_text)]
    if card.is_validated_age(age_years):
        return []
    severity = Severity.WARNING if age_policy == "warn" else Severity.FORBIDS
    return [make_warning("age_outside_card", severity=severity, ages=card.ages_text)]


def pixel_codes(image_1HW: np.ndarray, *, padding_share: float = 0.0) -> list[str]:
    """Return the codes of what the pixels say, whatever the tags: that they show no chest, or remarks on how.

    Parameters
    ----------
    image_1HW
        The network's input, of any size.
    padding_share
        Part of the pixels that the header calls padding.
    """
    from models.chest import looks_like_a_chest  # here: it brings torch, and the listener and the page do without

    if float(image_1HW.std()) < BLANK_STD:
        return ["blank_image"]
    if not looks_like_a_chest(image_1HW):
        return ["no_chest_seen"]
    return appearance_codes(image_1HW, padding_share=padding_share)


def warnings_of(prediction: Prediction) -> tuple[ImageWarning, ...]:
    """Return what a prediction says against itself: it lies where the card abstains, another age would turn it, or the
    image is a strange one.
    """
    warnings = []
    if prediction.abstain_low <= prediction.probability < prediction.abstain_high:
        low, high = f"{100 * prediction.abstain_low:.0f}", f"{100 * prediction.abstain_high:.0f}"
        warnings.append(make_warning("low_confidence", low=low, high=high))
    if prediction.depends_on_age:
        warnings.append(make_warning("depends_on_age"))
    if prediction.is_out_of_distribution:
        warnings.append(make_warning("out_of_distribution"))
    return tuple(warnings)


def settled(
    predictions: Iterable[Prediction], warnings: Iterable[ImageWarning]
) -> tuple[tuple[Prediction, ...], tuple[ImageWarning, ...]]:
    """Return the predictions and all warnings of an image as they are to be said.

    Each code is said once. Where one of them makes the probability no answer, the abstain band becomes the whole range:
    everybody who reads the prediction then finds it undetermined.

    Parameters
    ----------
    warnings
        Of the examination.
    """
    said = {warning.code: warning for warning in warnings}
    predictions = tuple(predictions)
    for prediction in predictions:
        said |= {warning.code: warning for warning in warnings_of(prediction) if warning.code not in said}
    if any(CODES[code].is_no_answer for code in said if code in CODES):
        # The band is half open, and a probability may be 1.
        predictions = tuple(replace(p, abstain_low=0.0, abstain_high=math.nextafter(1.0, 2.0)) for p in predictions)
    return predictions, tuple(said.values())


def _read(dataset: Dataset, size: int) -> tuple[str, np.ndarray, list[str]]:
    """Return where the grey levels come from, image_1HW, and the codes of what the pixels say."""
    radiograph = read_radiograph(dataset)
    image_1HW: np.ndarray = squash(radiograph.grey_HW, size).numpy()
    codes = pixel_codes(image_1HW, padding_share=radiograph.padding_share)
    if radiograph.voi in _GREY_CODES:
        codes.append(_GREY_CODES[radiograph.voi])
    return radiograph.voi, image_1HW, codes


def unreadable(code: str) -> Examination:
    """Return what an image is worth of which nothing could be read; the code says why."""
    return Examination(image_1HW=None, warnings=(make_warning(code),), rows=0, columns=0, voi="", age_years=None)
