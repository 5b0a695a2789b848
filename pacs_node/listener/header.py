"""The few attributes of a received data set that the node files it under, read without touching its pixels.

Takes the encoded bytes, gives a `Header` of clean text; hides character sets, compression of the whole data set and
what strangers write: a header is read with a budget of bytes, so that neither nesting nor length nor an inflated data
set costs more than that.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import BinaryIO

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import PN_DELIMS, TEXT_VR_DELIMS

from pacs_node.conformance import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
)
from pacs_node.errors import CannotUnderstand, OutOfResources
from pacs_node.identity import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

BUDGET_BYTES = 1 << 20
"""Read from one header; values that are skipped do not count. At worst (nothing but empty items) 1.5 s and 150 MB."""
UID_LENGTH, TEXT_LENGTH = 64, 1024
KEYWORDS = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "ImageType",
    "StudyDate",
    "Modality",
    "AccessionNumber",
    "InstitutionName",
    "StudyDescription",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "ContributingEquipmentSequence",
)
TAG = {keyword: Tag(keyword) for keyword in (*KEYWORDS, "SpecificCharacterSet")}
LAST_TAG = TAG["SeriesInstanceUID"]
PIXEL_GROUP = 0x7FE0
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""What no text of ours may hold: PostgreSQL refuses NUL, UTF-8 refuses surrogates, pages and logs refuse the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """Named by the attributes' keywords; empty where the attribute is absent or empty."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    modality: str
    image_type: tuple[str, ...]
    patient_id: str
    issuer_of_patient_id: str
    patient_name: str
    patient_birth_date: str
    patient_sex: str
    accession_number: str
    study_date: date | None
    study_description: str
    institution_name: str
    device_uids: tuple[str, ...]
    """Of the Contributing Equipment."""


def read_header(data_set: BinaryIO, transfer_syntax_uid: str) -> Header:
    """Read the header of an encoded data set.

    Parameters
    ----------
    data_set
        At its first byte (no file meta), seekable.

    Raises
    ------
    CannotUnderstand
        Not parseable within the budget, or a UID it is filed under is missing, too long or not printable ASCII.
    OutOfResources
        The file cannot be read back.
    """
    start = data_set.tell()
    try:
        dataset = _parse(data_set, transfer_syntax_uid, lambda tag: tag > LAST_TAG and tag.group != 0xFFFE)
        if not _is_filed(dataset):  # tags out of order: look at everything before the pixels
            data_set.seek(start)
            dataset = _parse(data_set, transfer_syntax_uid, lambda tag: tag.group == PIXEL_GROUP)
        return _header(dataset)
    except (CannotUnderstand, OutOfResources):
        raise
    except Exception as error:  # a parser fed by strangers may raise anything, RecursionError included
        raise CannotUnderstand("it cannot be parsed as a data set") from error


def encode_file_meta(
    sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, calling_ae_title: str
) -> bytes:
    """Return preamble, prefix and File Meta Information for a data set as it came over the network (PS3.10 7.1)."""
    elements = b"".join(
        (
            struct.pack("<HH2s2xL2s", 2, 0x0001, b"OB", 2, b"\x00\x01"),
            _meta_element(0x0002, b"UI", sop_class_uid),
            _meta_element(0x0003, b"UI", sop_instance_uid),
            _meta_element(0x0010, b"UI", transfer_syntax_uid),
            _meta_element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID),
            _meta_element(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME),
            _meta_element(0x0016, b"AE", calling_ae_title),
        )
    )
    return bytes(128) + b"DICM" + struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(elements)) + elements


def _meta_element(number: int, vr: bytes, text: str) -> bytes:
    value = text.encode("ascii", "replace")
    value += (b"\0" if vr == b"UI" else b" ") * (len(value) % 2)
    return struct.pack("<HH2sH", 2, number, vr, len(value)) + value


def clean_text(text: str, limit: int) -> str:
    """Return `text` without outer padding and control characters, at most `limit` long.

    A longer text keeps its beginning and ends in a hash, so that two different patients never become one by truncation.
    """
    text = CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.strip(" \0\t\r\n"))
    if len(text) <= limit:
        return text
    return f"{text[: limit - 17]}#{hashlib.sha256(text.encode()).hexdigest()[:16]}"


class _Frugal(io.RawIOBase):
    """A data set that may be read to `BUDGET_BYTES` in all, and skipped through without end."""

    def __init__(self, data_set: BinaryIO) -> None:
        self._data_set = data_set
        self._left = BUDGET_BYTES

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self._left:
            raise CannotUnderstand("its header is too long")
        self._left -= size
        try:
            return self._data_set.read(size)
        except OSError as error:
            raise OutOfResources("the file cannot be read back") from error

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._data_set.seek(offset, whence)

    def tell(self) -> int:
        return self._data_set.tell()


def _parse(data_set: BinaryIO, transfer_syntax_uid: str, is_behind: Callable[[BaseTag], bool]) -> Dataset:
    source = _inflated(data_set) if transfer_syntax_uid == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN else data_set
    return read_dataset(
        _Frugal(source),  # type: ignore[arg-type]
        is_implicit_VR=transfer_syntax_uid == IMPLICIT_VR_LITTLE_ENDIAN,
        is_little_endian=transfer_syntax_uid != EXPLICIT_VR_BIG_ENDIAN,
        stop_when=lambda tag, vr, length: is_behind(tag),
        specific_tags=list(TAG.values()),
    )


def _inflated(data_set: BinaryIO) -> BinaryIO:
    """Inflate the beginning of a deflated data set (PS3.5 A.5): all of it may be a thousand times as long."""
    return io.BytesIO(zlib.decompressobj(-zlib.MAX_WBITS).decompress(data_set.read(BUDGET_BYTES), BUDGET_BYTES))


def _is_filed(dataset: Dataset) -> bool:
    return all(TAG[keyword] in dataset for keyword in KEYWORDS[:4])


def _header(dataset: Dataset) -> Header:
    encodings = _encodings(dataset)

    def text(keyword: str, limit: int, delimiters: set[int] = TEXT_VR_DELIMS) -> str:
        return clean_text(decode_bytes(_raw(dataset, keyword), encodings, delimiters), limit)

    image_type = _ascii(_raw(dataset, "ImageType")).split("\\")
    return Header(
        sop_class_uid=_uid(dataset, "SOPClassUID"),
        sop_instance_uid=_uid(dataset, "SOPInstanceUID"),
        study_instance_uid=_uid(dataset, "StudyInstanceUID"),
        series_instance_uid=_uid(dataset, "SeriesInstanceUID"),
        modality=text("Modality", 16),
        image_type=tuple(value.strip() for value in image_type[:4]),
        patient_id=text("PatientID", 64),
        issuer_of_patient_id=text("IssuerOfPatientID", 64),
        patient_name=text("PatientName", TEXT_LENGTH, TEXT_VR_DELIMS | PN_DELIMS).rstrip("^= "),
        patient_birth_date=text("PatientBirthDate", 64),
        patient_sex=text("PatientSex", 16),
        accession_number=text("AccessionNumber", 64),
        study_date=_date(_ascii(_raw(dataset, "StudyDate"))),
        study_description=text("StudyDescription", TEXT_LENGTH),
        institution_name=text("InstitutionName", 64),
        device_uids=_device_uids(dataset),
    )


def _raw(dataset: Dataset, keyword: str) -> bytes:
    """Return the encoded value, whatever VR the sender gave it; a sequence in its place counts as empty."""
    element = dataset.get_item(TAG[keyword])
    return element.value if element is not None and isinstance(element.value, bytes) else b""


def _ascii(value: bytes) -> str:
    return value.decode("ascii", "replace").strip(" \0")


def _uid(dataset: Dataset, keyword: str) -> str:
    uid = _ascii(_raw(dataset, keyword))
    if not uid:
        raise CannotUnderstand(f"{keyword} is missing")
    if len(uid) > UID_LENGTH or "\\" in uid or not uid.isascii() or not uid.isprintable():  # a backslash: two values
        raise CannotUnderstand(f"{keyword} is not a UID")
    return uid


def _encodings(dataset: Dataset) -> list[str]:
    element = dataset.get_item(TAG["SpecificCharacterSet"])
    value = element.value if element is not None else None
    return convert_encodings(_ascii(value).split("\\") if isinstance(value, bytes) else None)


def _date(value: str) -> date | None:
    """Read a DA (PS3.5 6.2), also in the form with points of ACR-NEMA."""
    try:
        return date.fromisoformat(re.sub(r"^(\d{4})\.?(\d{2})\.?(\d{2})$", r"\1-\2-\3", value))
    except ValueError:
        return None


def _device_uids(dataset: Dataset) -> tuple[str, ...]:
    if TAG["ContributingEquipmentSequence"] not in dataset:
        return ()
    try:
        items = list(dataset.ContributingEquipmentSequence)
        return tuple(str(item.get("DeviceUID", "")) for item in items)
    except Exception:  # noqa: BLE001 - the same parser, the same strangers; what cannot be read is not ours
        return ()
