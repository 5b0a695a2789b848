"""The attributes of a radiograph that training may see: the first of the two nets of `deidentify`. Pure.

Takes a data set as it was stored; gives a new one with the attributes named in this file and no others. Of those only
numbers, dates and words of closed vocabularies are copied: no free text, nothing private, nothing that was not thought
of. UIDs, dates and descriptions come out as they were: what becomes of them is `deidentify`'s matter.
"""

from __future__ import annotations

import re

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import DigitalXRayImageStorageForPresentation
from pydicom.valuerep import format_number_as_ds

from models import header
from models.preprocess import UNREADABLE

OLDEST = 89
"""Years; whoever is older is `GROUPED` years old (the age alone would name them)."""
GROUPED = 90
UIDS = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
DATES = ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate")
TEXTS = ("StudyDescription", "SeriesDescription")
NUMBERS = (
    *("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("PixelIntensityRelationshipSign", "RescaleIntercept", "RescaleSlope", "WindowCenter", "WindowWidth"),
)
PALETTES = tuple(
    f"{c}PaletteColorLookupTable{part}" for c in ("Red", "Green", "Blue") for part in ("Descriptor", "Data")
)
LUTS = ("ModalityLUTSequence", "VOILUTSequence")
LUT_TYPES = ("OD", "HU", "US")
WORDS: dict[str, tuple[str, ...]] = {
    "PatientSex": ("F", "M", "O"),
    "Modality": ("CR", "DX"),
    "BodyPartExamined": ("CHEST", "THORAX", "LUNG"),
    "ViewPosition": ("PA", "AP"),
    "Laterality": ("L", "R"),
    "ImageLaterality": ("L", "R", "U", "B"),
    "PatientOrientation": ("L", "R", "F", "H"),
    "ImageType": ("ORIGINAL", "DERIVED", "PRIMARY", "SECONDARY", ""),
    "PresentationIntentType": ("FOR PRESENTATION",),
    "PresentationLUTShape": ("IDENTITY", "INVERSE"),
    "PixelIntensityRelationship": ("LIN", "LOG", "DISP"),
    "BurnedInAnnotation": ("NO",),
    "LossyImageCompression": ("00", "01"),
    "VOILUTFunction": ("LINEAR", "LINEAR_EXACT", "SIGMOID"),
    "RescaleType": LUT_TYPES,
}
"""Keyword -> the only values that are copied."""
_VIEWS = {
    "PA": (("272479007", "SCT"), ("R-10214", "SRT"), ("R-10214", "SNM3")),
    "AP": (("399348003", "SCT"), ("R-10206", "SRT"), ("R-10206", "SNM3")),
}
_VIEW_CODES = {"PA": ("272479007", "SCT", "postero-anterior"), "AP": ("399348003", "SCT", "antero-posterior")}
_CHEST = ("816094009", "SCT", "Chest")
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def known_attributes(source: Dataset) -> Dataset:
    """Return the attributes that are known, with the values that are known, without pixels; `source` stays as it is.

    Raises
    ------
    ValueError, TypeError, ...
        What pydicom raises for a broken element (`models.preprocess.UNREADABLE`).
    """
    image = Dataset()
    image.SOPClassUID = source.SOPClassUID
    for keyword in (*UIDS, *DATES, *TEXTS):
        if text := text_of(source, keyword):
            setattr(image, keyword, text)
    for keyword, known in WORDS.items():
        if words := _words(source, keyword, known):
            setattr(image, keyword, words)
    for keyword in (*NUMBERS, *PALETTES):
        _copy_numbers(image, source, keyword)
    for keyword in LUTS:
        items = [_lut(item, keyword) for item in _items(source, keyword)]
        if items:
            setattr(image, keyword, items)
    _copy_view(image, source)
    if age := age_of(source):
        image.PatientAge = age
    if header.is_lossy(source):
        image.LossyImageCompression = "01"
    return image


def _copy_view(image: Dataset, source: Dataset) -> None:
    """State view and region by codes of ours where the source states them by any it may choose."""
    if view := view_of(source):
        image.ViewPosition = view
        if _items(source, "ViewCodeSequence"):
            image.ViewCodeSequence = [make_code(*_VIEW_CODES[view])]
            image.ViewCodeSequence[0].ViewModifierCodeSequence = []
    if _items(source, "AnatomicRegionSequence") and header.body_part_of(source) == "chest":
        image.AnatomicRegionSequence = [make_code(*_CHEST)]
    if source.SOPClassUID == DigitalXRayImageStorageForPresentation:
        image.AcquisitionContextSequence, image.PositionerType, image.DetectorType = [], "", ""


def make_code(value: str, scheme: str, meaning: str) -> Dataset:
    """Return an item of a code sequence (PS3.3 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def age_of(source: Dataset) -> str:
    """Return the age as a DICOM AS, over 89 years as 90, "" if unknown."""
    years = header.age_years_of(source)
    if years is None:
        return ""
    if years > OLDEST:
        return f"{GROUPED:03d}Y"
    stated = text_of(source, "PatientAge")
    return stated if re.fullmatch(r"\d{3}[DWMY]", stated) else f"{years:03d}Y"


def view_of(source: Dataset) -> str:
    """Return "PA", "AP" or "" as the attribute or its code says (PS3.16 CID 4010)."""
    stated = text_of(source, "ViewPosition").upper()
    codes = {
        (text_of(item, "CodeValue"), text_of(item, "CodingSchemeDesignator"))
        for item in _items(source, "ViewCodeSequence")
    }
    coded = [view for view, known in _VIEWS.items() if codes and codes <= set(known)]
    return stated if stated in _VIEWS else next(iter(coded), "") if not stated else ""


def text_of(source: Dataset, keyword: str) -> str:
    """Return a single value as text, "" where there is none or it cannot be read."""
    try:
        value = source.get(keyword)
    except UNREADABLE:
        return ""
    return "" if value is None or isinstance(value, MultiValue | list | bytes) else str(value).strip(" \0")


def _words(source: Dataset, keyword: str, known: tuple[str, ...]) -> list[str]:
    """Return all values if each is a known word (of ImageType the first two), else none."""
    try:
        value = source.get(keyword)
    except UNREADABLE:
        return []
    values = list(value) if isinstance(value, MultiValue | list) else [] if value in (None, "") else [value]
    words = [str(one).strip(" \0").upper() for one in values][: 2 if keyword == "ImageType" else None]
    return words if all(word in known for word in words) else []


def _items(source: Dataset, keyword: str) -> list[Dataset]:
    return [item for item in (source.get(keyword) or []) if isinstance(item, Dataset)]


def _copy_numbers(image: Dataset, source: Dataset, keyword: str) -> None:
    """Copy an element of numbers, or of the words of a table, under a representation that holds nothing else."""
    if keyword not in source or source[keyword].value in (None, "", b""):
        return
    element = source[keyword]
    expected = dictionary_VR(keyword).split(" or ")
    if element.VR not in expected:
        raise ValueError(f"{keyword} is not {' or '.join(expected)}")
    value = element.value
    if element.VR == "DS":
        texts = [str(one).strip() for one in (value if isinstance(value, MultiValue) else [value])]
        value = [text if _is_decimal(text) else format_number_as_ds(float(text)) for text in texts]
    image.add(DataElement(element.tag, element.VR, value))


def _is_decimal(text: str) -> bool:
    return len(text) <= 16 and _DECIMAL.fullmatch(text) is not None


def _lut(item: Dataset, keyword: str) -> Dataset:
    """Return an item of a look-up table: its numbers alone (PS3.3 C.11.1, C.11.2)."""
    table = Dataset()
    for name in ("LUTDescriptor", "LUTData"):
        _copy_numbers(table, item, name)
    if keyword == "ModalityLUTSequence":
        table.ModalityLUTType = next(iter(_words(item, "ModalityLUTType", LUT_TYPES)), "US")
    return table
