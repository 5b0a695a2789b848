"""The patient and study attributes of a stored image, made safe to be copied into an object of ours. Pure.

Takes a header as received; gives the few attributes a report copies, each verbatim or empty, never truncated or
guessed, and the names of those that had to be emptied (for the audit). Hides illegal values, wrong character sets and
missing type 2 attributes.
"""

from __future__ import annotations

import re
import struct
import warnings
import zlib
from dataclasses import dataclass
from datetime import datetime

from pydicom import config, dcmread
from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as ItemSequence

TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
"""Present in every report, empty where the source has no legal value (PS3.3 C.7.1.1, C.7.2.1)."""
TYPE_3 = ("IssuerOfPatientID", "PatientAge", "StudyDescription", "TimezoneOffsetFromUTC")
IMAGE = ("Modality", "SeriesNumber", "InstanceNumber")

_CODE = (("CodeValue", "CodingSchemeDesignator", "CodeMeaning"), ("CodingSchemeVersion",))
_SEQUENCES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "ProcedureCodeSequence": _CODE,
    "IssuerOfPatientIDQualifiersSequence": (("UniversalEntityID", "UniversalEntityIDType"), ("IdentifierTypeCode",)),
    "IssuerOfAccessionNumberSequence": (("LocalNamespaceEntityID",), ()),
    "OtherPatientIDsSequence": (("PatientID", "TypeOfPatientID"), ("IssuerOfPatientID",)),
    "RequestAttributesSequence": (("RequestedProcedureID",), ("RequestedProcedureDescription",)),
}
"""What an item must and may have; an item without the first is not copied."""

_LEGAL = {
    "AS": r"\d{3}[DWMY]",
    "CS": r"[A-Z0-9 _]{1,16}",
    "IS": r"[+-]?\d{1,12}",
    "LO": r"[^\\\x00-\x1f\x7f]{1,64}",
    "SH": r"[^\\\x00-\x1f\x7f]{1,16}",
    "PN": r"[^\\\x00-\x1f\x7f]+",
    "TM": r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?",
    "UT": r"[^\x00-\x1f\x7f]+",
}
"""PS3.5 6.2, for the value representations of the attributes above."""
_LEGAL_OF = {"PatientSex": r"[MFO]", "TimezoneOffsetFromUTC": r"-(0\d|1[0-2])[0-5]\d|\+(0\d|1[0-4])[0-5]\d"}
_ASCII = {"ISO_IR 6", "ISO 2022 IR 6"}
_UNREADABLE = (
    *(ValueError, TypeError, AttributeError, LookupError, NotImplementedError, ArithmeticError, struct.error),
    *(zlib.error, BytesLengthException),
)
"""What pydicom raises when it converts a broken element."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SafeHeader:
    """A header that any report may copy from.

    Attributes
    ----------
    dataset
        The attributes named in this module and no others; all values legal.
    emptied
        Keywords whose value in the source could not be kept.
    """

    dataset: Dataset
    emptied: tuple[str, ...]


def safe_header(source: Dataset) -> SafeHeader:
    """Return what a report may copy from `source`, which is left as it is."""
    header, emptied = Dataset(), []
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")  # pydicom's warnings quote the value
        is_ascii_only = not _has_character_set(source)
        for keyword in (*TYPE_2, *TYPE_3, *IMAGE):
            value, is_legal = _value(source, keyword, is_ascii_only)
            if not is_legal:
                emptied.append(keyword)
            if value or keyword in TYPE_2:
                setattr(header, keyword, value)
        for keyword in _SEQUENCES:
            items, is_legal = _items(source, keyword, is_ascii_only)
            if not is_legal:
                emptied.append(keyword)
            if items:
                setattr(header, keyword, items)
    return SafeHeader(dataset=header, emptied=tuple(emptied))


def read_safe_header(path: str) -> SafeHeader:
    """Read the header of a stored file; of a stranger's making, so call it in a killable process."""
    return safe_header(dcmread(path, stop_before_pixels=True, force=True))


def _has_character_set(source: Dataset) -> bool:
    """Whether bytes beyond ASCII have a declared meaning (PS3.3 C.12.1.1.2); pydicom would read them as Latin-1."""
    try:
        declared = source.get("SpecificCharacterSet") or []
    except _UNREADABLE:
        return False
    terms = [str(term) for term in (declared if isinstance(declared, MultiValue | list) else [declared]) if term]
    return bool(set(terms) - _ASCII) and all(term in python_encoding for term in terms)


def _value(source: Dataset, keyword: str, is_ascii_only: bool) -> tuple[str, bool]:
    """Return the value as text, "" if absent or not legal, and whether it was legal."""
    try:
        value = source.get(keyword)
        text = "" if value is None else str(value).strip(" \0")
    except _UNREADABLE:
        return "", False
    if text == "" or (isinstance(value, MultiValue | list) and not any(value)):
        return "", True
    is_legal = not isinstance(value, MultiValue | list) and _is_legal(keyword, text, is_ascii_only)
    return (text, True) if is_legal else ("", False)


def _is_legal(keyword: str, text: str, is_ascii_only: bool) -> bool:
    if "\ufffd" in text or (is_ascii_only and not text.isascii()):
        return False
    vr = dictionary_VR(keyword)
    if vr == "DA":
        return _is_date(text)
    if vr == "PN" and not _is_name(text):
        return False
    return re.fullmatch(_LEGAL_OF.get(keyword, _LEGAL[vr]), text) is not None


def _is_date(text: str) -> bool:
    try:
        datetime.strptime(text, "%Y%m%d")  # noqa: DTZ007 - a DICOM DA has no time zone
    except ValueError:
        return False
    return len(text) == 8


def _is_name(text: str) -> bool:
    """At most three groups of at most 64 characters and five components (PS3.5 6.2.1)."""
    groups = text.split("=")
    return len(groups) <= 3 and all(len(group) <= 64 and group.count("^") <= 4 for group in groups)


def _items(source: Dataset, keyword: str, is_ascii_only: bool) -> tuple[list[Dataset], bool]:
    """Return the items that are whole, and whether nothing was left out of any."""
    try:
        found = source.get(keyword)
    except _UNREADABLE:
        return [], False
    if not isinstance(found, ItemSequence):
        return [], not found
    copies = [_item(item, *_SEQUENCES[keyword], is_ascii_only) for item in found]
    return [copy for copy, _ in copies if copy], all(is_legal for _, is_legal in copies)


def _item(
    item: Dataset, required: tuple[str, ...], optional: tuple[str, ...], is_ascii_only: bool
) -> tuple[Dataset | None, bool]:
    values = {keyword: _value(item, keyword, is_ascii_only) for keyword in (*required, *optional)}
    is_legal = all(legal for _, legal in values.values())
    if not all(values[keyword][0] for keyword in required):
        return None, is_legal
    copy = Dataset()
    for keyword, (text, _) in values.items():
        if text:
            setattr(copy, keyword, text)
    return copy, is_legal
