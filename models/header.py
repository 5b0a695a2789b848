"""What a data set's attributes say about the image: kind, body part, view, species, age. No pixel is decoded.

Takes a data set; gives plain answers to `suitability`, which decides what they mean. Hides the many spellings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sr.codedict import codes as coded
from pydicom.sr.coding import Code
from pydicom.uid import (
    JPEG2000MC,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
    SecondaryCaptureImageStorage,
)

DEVICE_CHARACTERS = 64
"""Of a Manufacturer or Manufacturer's Model Name (VR LO, PS3.5 6.2); peers send longer ones."""

_RADIOGRAPHS = {
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
}
_LOSSY_SYNTAXES = {JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000MC}

_CHEST = re.compile(r"CHEST|THORAX|T[OÓ]RAX|LUNG|PULMON|\bCXR\b")
_NOT_CHEST = re.compile(r"SPINE|ABD(OM|O\b|(?![A-Z]))|PELV|\bRIB(S|CAGE)?\b|\bSTERN(UM|AL)?\b|CLAVIC|SHOULDER|BREAST")
_LIMBS = re.compile(r"\b(SKULL|HEAD|NECK|ARM|ELBOW|WRIST|HAND|FINGER|HIP|LEG|FEMUR|KNEE|ANKLE|FOOT|TOE|HEEL)S?\b")
_VETERINARY = re.compile(r"\b(CANINE|FELINE|EQUINE|BOVINE|DOG|HORSE)\b|VETERINAR")
_HUMAN = re.compile(r"HOMO SAPIENS|\bHUMAN\b")
_HUMAN_CODES = {"337915000", "L-85B00", "L-85003"}  # SCT, SRT (PS3.16 CID 7454)

# PS3.3 C.8.7.1.1.1 and PS3.16 CID 4010, in SNOMED CT and in the older SRT codes.
_FRONTAL_VIEWS = {"PA", "AP"}
_OTHER_VIEWS = {"LL", "RL", "LLD", "RLD", "LLO", "RLO", "RAO", "LAO", "RPO", "LPO", "LAT", "LATERAL", "OBL", "OBLIQUE"}
_FRONTAL_CODES = {"272479007", "399348003", "399033003", "R-10214", "R-40888", "R-10206"}
_FRONTAL_WORDS = re.compile(r"\b(PA|AP|FRONTAL|POSTERO-?ANTERIOR|ANTERO-?POSTERIOR)\b")
_AP_CODES = {"399348003", "R-10206"}
_PA_CODES = {"272479007", "R-10214"}
_AP_WORDS = re.compile(r"\b(AP|ANTERO-?POSTERIOR)\b")
_PA_WORDS = re.compile(r"\b(PA|POSTERO-?ANTERIOR)\b")
_PORTABLE_WORDS = re.compile(r"\b(PORTABLE|MOBILE|BEDSIDE|SUPINE)\b")
_OTHER_WORDS = re.compile(r"\b(LAT|LATERAL|LL|OBLIQUE|DECUBITUS)\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceModel:
    """What took an image, by kind: upper case, outer blanks cut, at most `DEVICE_CHARACTERS` each, "" if not stated."""

    manufacturer: str
    model_name: str
    detector_type: str


def device_model_of(dataset: Dataset) -> DeviceModel | None:
    """Return the device model, None where neither manufacturer nor model name says (PS3.3 C.7.5.1, C.8.11.4)."""
    found = DeviceModel(
        manufacturer=_text(dataset, "Manufacturer")[:DEVICE_CHARACTERS],
        model_name=_text(dataset, "ManufacturerModelName")[:DEVICE_CHARACTERS],
        detector_type=_text(dataset, "DetectorType")[:DEVICE_CHARACTERS],
    )
    return found if found.manufacturer or found.model_name else None


def has_pixels(dataset: Dataset) -> bool:
    """Whether there is integer pixel data."""
    return "PixelData" in dataset


def is_radiograph(dataset: Dataset) -> bool:
    """Whether SOP class and Modality are those of a projection radiograph."""
    return dataset.get("SOPClassUID") in _RADIOGRAPHS and _code_string(dataset, "Modality") in {"CR", "DX"}


def is_secondary_capture(dataset: Dataset) -> bool:
    """Whether the image was converted by something that is not a modality (PS3.3 A.8)."""
    return bool(dataset.get("SOPClassUID") == SecondaryCaptureImageStorage)


def is_for_processing(dataset: Dataset) -> bool:
    """Whether the pixels are raw detector data (PS3.3 C.8.11.1)."""
    return (
        dataset.get("SOPClassUID") == DigitalXRayImageStorageForProcessing
        or _code_string(dataset, "PresentationIntentType") == "FOR PROCESSING"
    )


def is_derived_secondary(dataset: Dataset) -> bool:
    """Whether Image Type says DERIVED\\SECONDARY (PS3.3 C.7.6.1.1.2)."""
    return {"DERIVED", "SECONDARY"} <= set(_values(dataset, "ImageType"))


def is_lut_shape_contradicting(dataset: Dataset) -> bool:
    """Whether Presentation LUT Shape and Photometric Interpretation do not belong together (PS3.3 C.11.6)."""
    pair = (_code_string(dataset, "PhotometricInterpretation"), _code_string(dataset, "PresentationLUTShape"))
    return pair in {("MONOCHROME1", "IDENTITY"), ("MONOCHROME2", "INVERSE")}


def is_annotated(dataset: Dataset) -> bool:
    """Whether Burned In Annotation is YES."""
    return _code_string(dataset, "BurnedInAnnotation") == "YES"


def is_lossy(dataset: Dataset) -> bool:
    """Whether the pixels were ever compressed with loss."""
    meta = getattr(dataset, "file_meta", None)
    syntax = meta.get("TransferSyntaxUID") if meta is not None else None
    return _code_string(dataset, "LossyImageCompression") == "01" or syntax in _LOSSY_SYNTAXES


def shortest_side(dataset: Dataset) -> int:
    """Return the smaller of Rows and Columns, 0 where not stated."""
    return min(int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0))


def is_veterinary(dataset: Dataset) -> bool:
    """Whether the patient is an animal, by species (PS3.3 C.7.1.1) or by the words of the examination."""
    species = _apart(_text(dataset, "PatientSpeciesDescription"))
    if species and not _HUMAN.search(species):
        return True
    codes = {str(item.get("CodeValue", "")) for item in _items(dataset, "PatientSpeciesCodeSequence")}
    if codes and not codes & _HUMAN_CODES:
        return True
    return bool(_VETERINARY.search(f"{_words(dataset)} {_apart(_text(dataset, 'InstitutionName'))}"))


def body_part_of(dataset: Dataset) -> str:
    """Return "chest", "other", or "" where nothing says.

    Body Part Examined decides, then the anatomic region, then what people wrote.
    """
    stated = _text(dataset, "BodyPartExamined") or " ".join(_meanings(dataset, "AnatomicRegionSequence"))
    words = _apart(stated) or _words(dataset)
    if _NOT_CHEST.search(words):
        return "other"
    if _CHEST.search(words):
        return "chest"
    return "other" if stated or _LIMBS.search(words) else ""


def view_of(dataset: Dataset) -> str:
    """Return "frontal", "other", or "" where nothing says.

    View Position, View Code Sequence and Patient Orientation are all heard, and one that says "other" is believed: a
    console's default of PA must not make a lateral frontal. Where none says anything, what people wrote does.
    """
    position = _code_string(dataset, "ViewPosition")
    codes = {str(item.get("CodeValue", "")) for item in _items(dataset, "ViewCodeSequence")}
    is_frontal = position in _FRONTAL_VIEWS or bool(codes and codes <= _FRONTAL_CODES)
    row_direction = next(iter(_values(dataset, "PatientOrientation")), "")
    is_from_the_side = row_direction[:1] in {"A", "P"}  # rows run from front to back
    if position in _OTHER_VIEWS or any(map(_is_other_view, codes)) or is_from_the_side:
        return "other"
    if is_frontal or codes:
        return "frontal" if is_frontal else "other"
    return _view_in(f"{_apart(position)} {_words(dataset)}")


def is_ap_or_portable(dataset: Dataset) -> bool:
    """Whether the beam ran from front to back, or the device was brought to the patient."""
    position = _code_string(dataset, "ViewPosition")
    words = f"{_apart(position)} {_words(dataset)}"
    if _PORTABLE_WORDS.search(words) or position == "AP":
        return True
    codes = {str(item.get("CodeValue", "")) for item in _items(dataset, "ViewCodeSequence")}
    if position == "PA" or codes:
        return position != "PA" and codes <= _AP_CODES
    return bool(_AP_WORDS.search(words)) and not _PA_WORDS.search(words)


def projection_of(dataset: Dataset) -> str:
    """Return "PA" or "AP" for a frontal view, "" where nothing says which."""
    position = _code_string(dataset, "ViewPosition")
    if position in _FRONTAL_VIEWS:
        return position
    codes = {str(item.get("CodeValue", "")) for item in _items(dataset, "ViewCodeSequence")}
    words = "" if codes else f"{_apart(position)} {_words(dataset)}"
    is_ap = bool(codes and codes <= _AP_CODES) or bool(_AP_WORDS.search(words))
    is_pa = bool(codes and codes <= _PA_CODES) or bool(_PA_WORDS.search(words))
    return "" if is_ap == is_pa else "AP" if is_ap else "PA"


def is_identity_incomplete(dataset: Dataset) -> bool:
    """Whether the patient's ID, name or birth date is empty (all type 2: PS3.3 C.7.1.1)."""
    return not all(_text(dataset, keyword) for keyword in ("PatientID", "PatientName", "PatientBirthDate"))


def is_turned(dataset: Dataset) -> bool:
    """Whether Patient Orientation (PS3.3 C.7.6.1.1.1) says that rows do not run to the left or columns to the feet.

    A view from the side is another matter, and so is an orientation that is not stated.
    """
    directions = [direction[:1] for direction in _values(dataset, "PatientOrientation")]
    return len(directions) == 2 and not {"A", "P"} & set(directions[:1]) and directions != ["L", "F"]


def age_years_of(dataset: Dataset) -> int | None:
    """Return the patient's completed years: Patient's Age, else study date minus birth date, else None."""
    age = re.fullmatch(r"(\d{1,3})([DWMY]?)", _text(dataset, "PatientAge"))
    if age is not None:
        # Some archives drop the unit; years is the reading that refuses an adult.
        return int(int(age[1]) / {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0, "": 1.0}[age[2]])
    birth = _date(dataset, "PatientBirthDate")
    for keyword in ("StudyDate", "AcquisitionDate", "SeriesDate", "ContentDate"):
        taken = _date(dataset, keyword)
        if birth is not None and taken is not None and taken >= birth:
            return _completed_years(birth, taken)
    return None


def _completed_years(birth: date, taken: date) -> int:
    return taken.year - birth.year - ((taken.month, taken.day) < (birth.month, birth.day))


def _is_other_view(code_value: str) -> bool:
    """Whether a code of CID 4010 (PS3.16), in SNOMED CT or SRT, names another view than a frontal one."""
    is_view = any(Code(code_value, scheme, "") in coded.cid4010 for scheme in ("SCT", "SRT"))
    return is_view and code_value not in _FRONTAL_CODES


def _view_in(words: str) -> str:
    is_frontal, is_other = bool(_FRONTAL_WORDS.search(words)), bool(_OTHER_WORDS.search(words))
    if is_frontal == is_other:  # neither, or a description of the whole study such as "PA and lateral"
        return ""
    return "frontal" if is_frontal else "other"


def _text(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip().upper()


def _code_string(dataset: Dataset, keyword: str) -> str:
    return next(iter(_values(dataset, keyword)), "")


def _values(dataset: Dataset, keyword: str) -> list[str]:
    value = dataset.get(keyword)
    values = value if isinstance(value, (list, MultiValue)) else [] if value is None else [value]
    return [str(item).strip().upper() for item in values]


def _items(dataset: Dataset, keyword: str) -> list[Dataset]:
    return [item for item in (dataset.get(keyword) or []) if isinstance(item, Dataset)]


def _meanings(dataset: Dataset, keyword: str) -> Iterator[str]:
    for item in _items(dataset, keyword):
        yield _text(item, "CodeMeaning")


def _words(dataset: Dataset) -> str:
    """Return what people or consoles wrote about the examination, upper case."""
    described = [
        _text(dataset, keyword)
        for keyword in (
            "StudyDescription",
            "SeriesDescription",
            "ProtocolName",
            "AcquisitionDeviceProcessingDescription",
            "PerformedProcedureStepDescription",
        )
    ]
    coded = [
        meaning
        for keyword in ("ProcedureCodeSequence", "PerformedProtocolCodeSequence", "ViewCodeSequence")
        for meaning in _meanings(dataset, keyword)
    ]
    return _apart(" ".join([*described, *coded]))


def _apart(text: str) -> str:
    """Return the words that a console joined by underscores apart: `_` ends no word of a regular expression."""
    return text.replace("_", " ")


def _date(dataset: Dataset, keyword: str) -> date | None:
    digits = _text(dataset, keyword).replace(".", "").replace("-", "")
    try:
        return datetime.strptime(digits, "%Y%m%d").date()  # noqa: DTZ007 - a DICOM DA has no time zone
    except ValueError:
        return None
