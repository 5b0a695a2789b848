"""A radiograph without its patient: what training needs of an image, and nothing else. Pure, but for the key.

Takes a data set as it was stored; gives a new one. Two nets lie behind each other: only what `training_attributes`
knows is copied, and to that dicom-anonymizer applies Table E.1-1 of PS3.15 (edition 2026c), at every depth. The pixels
are decoded and written anew, so that nothing hides in a compressed stream, behind its end or in unused bits.

Basic Application Confidentiality Profile with three options: Clean Descriptors (words of `DESCRIPTORS` only), Retain
Longitudinal Temporal Information Modified Dates (dates without times, moved by whole days, by the same number for all
images of a patient) and Retain Patient Characteristics (sex; age, over 89 years as 90). UIDs, patients and days come
from HMAC-SHA256 with one key: the same in every export of a node, and not to be guessed without it.

References
----------
PS3.15 Annex E; PS3.16 CID 7050
"""

from __future__ import annotations

import hashlib
import hmac
import re
import warnings
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from uuid import UUID

import numpy as np
from dicomanonymizer.simpledicomanonymizer import anonymize_dataset, initialize_actions
from pydicom import config
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import pixel_array  # type: ignore[attr-defined]
from pydicom.tag import Tag
from pydicom.uid import (
    JPEG2000,
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
)

from models import header
from models.preprocess import UNREADABLE
from pacs_node.export.training_attributes import (
    DATES,
    LUTS,
    PALETTES,
    TEXTS,
    UIDS,
    known_attributes,
    make_code,
    text_of,
)
from pacs_node.identity import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

TABLE = "dicomfields_2026c"
DAYS_MAX = 3652
"""Dates move back by 1 to this many days."""
REFUSALS = {
    "secondary_capture": "It is no original radiograph (secondary capture, screen or scan): it may show a name.",
    "text_in_pixels": "Its header says that text is burned into the pixels.",
    "text_not_excluded": "Its header does not say that no text is burned into the pixels (--accept-unstated takes it).",
    "overlay_in_pixels": "Bits beside the pixels are in use: they may draw a text.",
    "not_one_image": "It is not one image of whole pixels that can be written anew.",
    "undecodable": "Its pixels cannot be decoded.",
}
"""Why an image is not given away; no sentence quotes a data set."""
EMPTY = (
    *("StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID", "PatientBirthDate"),
    *("SeriesNumber", "InstanceNumber", "Manufacturer"),
)
"""Type 2 in the images this node judges (PS3.3 A.2, A.26)."""
DESCRIPTORS = frozenset(
    (
        *("CHEST", "THORAX", "LUNG", "XR", "CXR", "CR", "DX", "X", "RAY", "RADIOGRAPH", "VIEW", "PA", "AP", "FRONTAL"),
        *("POSTEROANTERIOR", "ANTEROPOSTERIOR", "PORTABLE", "MOBILE", "BEDSIDE", "SUPINE", "ERECT", "SITTING"),
    )
)
"""What descriptions are cleaned to: words that say what was radiographed and how."""
_METHODS = (
    ("113100", "DCM", "Basic Application Confidentiality Profile"),
    ("113105", "DCM", "Clean Descriptors Option"),
    ("113107", "DCM", "Retain Longitudinal Temporal Information Modified Dates Option"),
    ("113108", "DCM", "Retain Patient Characteristics Option"),
)
_RADIOGRAPHS = (ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation)
_PLUGINS = {JPEGBaseline8Bit: "gdcm", JPEGExtended12Bit: "gdcm", JPEG2000: "pylibjpeg"}
"""As in `models.preprocess`: where decoders may differ in the last bit."""
_ACTIONS = initialize_actions(TABLE)

Rule = Callable[[Dataset, tuple[int, int]], None]


class NotDeidentifiable(Exception):
    """The image must not be given away; `code` is a key of `REFUSALS`."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Deidentifier:
    """Gives images away under names that only the key can make.

    Parameters
    ----------
    key
        At least 16 bytes; whoever has it can tell whether a known patient is among the images.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) < 16:
            raise ValueError("the key of the pseudonyms is shorter than 16 bytes")
        self._key = key

    def name(self, kind: str, *of: str) -> str:
        """Return 16 hexadecimal digits that stand for a thing of that kind."""
        return self._mac(kind, *of)[:8].hex()

    def uid(self, uid: str) -> str:
        """Return the UID that stands for `uid` (PS3.5 B.2)."""
        return f"2.25.{UUID(bytes=self._mac('uid', uid.strip(chr(0) + ' '))[:16], version=4).int}"

    def moved(self, day: str, patient: str) -> str:
        """Return a DICOM date moved back by the patient's number of days, "" for what is no date."""
        days = 1 + int.from_bytes(self._mac("days", patient)[:8], "big") % DAYS_MAX
        try:
            if not re.fullmatch(r"\d{8}", day):
                return ""
            there: date = datetime.strptime(day, "%Y%m%d").date() - timedelta(days=days)  # noqa: DTZ007 - a DA has none
        except (ValueError, OverflowError):
            return ""
        return f"{there:%Y%m%d}".zfill(8)

    def deidentify(self, source: Dataset, *, patient: str, accept_unstated: bool = False) -> Dataset:
        """Return an image without its patient, with file meta, in Explicit VR Little Endian; `source` stays as it is.

        Parameters
        ----------
        patient
            The pseudonym, in place of name and ID.
        accept_unstated
            Take also an image whose header does not say whether text is burned into its pixels.

        Raises
        ------
        NotDeidentifiable
            The pixels may show who the patient is, or cannot be written anew.
        """
        with warnings.catch_warnings(), config.disable_value_validation():
            warnings.simplefilter("ignore")  # pydicom's warnings quote the value
            try:
                _refuse_text_in_pixels(source, accept_unstated)
                image = known_attributes(source)
                self._apply_table(image, patient)
                _state_identity(image, patient)
                _write_pixels(image, source)
            except UNREADABLE as error:
                raise NotDeidentifiable("undecodable") from error
        return image

    def _apply_table(self, image: Dataset, patient: str) -> None:
        """Apply Table E.1-1, and the options in place of its actions, to all depths."""
        rules: dict[tuple[int, int], Rule] = {}
        for keyword in UIDS:
            rules[_tag(keyword)] = _rule(self.uid)
        for keyword in DATES:
            rules[_tag(keyword)] = _rule(lambda day: self.moved(day, patient))
        for keyword in TEXTS:
            rules[_tag(keyword)] = _rule(_cleaned)
        rules[_tag("PatientSex")] = rules[_tag("PatientAge")] = lambda dataset, tag: None
        for dataset in _depths(image):
            anonymize_dataset(dataset, rules, delete_private_tags=True, base_rules_gen=lambda: dict(_ACTIONS))

    def _mac(self, *words: str) -> bytes:
        # The lengths go in too: ("a", "bc") and ("ab", "c") are two things.
        text = "".join(f"{len(word)}:{word}" for word in words)
        return hmac.new(self._key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).digest()


def _tag(keyword: str) -> tuple[int, int]:
    tag = Tag(keyword)
    return tag.group, tag.element


def _rule(replacement: Callable[[str], str]) -> Rule:
    def apply(dataset: Dataset, tag: tuple[int, int]) -> None:
        if tag in dataset:
            dataset[tag].value = replacement(str(dataset[tag].value))

    return apply


def _cleaned(text: str) -> str:
    return " ".join(word for word in re.findall(r"[A-Z]+", text.upper()) if word in DESCRIPTORS)[:64]


def _depths(dataset: Dataset) -> Iterator[Dataset]:
    yield dataset
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from _depths(item)


def _refuse_text_in_pixels(source: Dataset, accept_unstated: bool) -> None:
    if source.get("SOPClassUID") not in _RADIOGRAPHS or "ConversionType" in source:
        raise NotDeidentifiable("secondary_capture")
    stated = text_of(source, "BurnedInAnnotation").upper()
    if header.is_annotated(source) or stated not in ("", "NO"):
        raise NotDeidentifiable("text_in_pixels")
    if not stated and not accept_unstated:
        raise NotDeidentifiable("text_not_excluded")
    # PS3.5 8.1.2: overlays without data of their own lie in the bits that the pixels leave free (retired).
    if any(
        tag.group >> 8 == 0x60 and tag.element == 0x0010 and (tag.group << 16) + 0x3000 not in source
        for tag in source.keys()  # noqa: SIM118 - of a Dataset, `in` means its elements
    ):
        raise NotDeidentifiable("overlay_in_pixels")


def _state_identity(image: Dataset, patient: str) -> None:
    """Set who the patient is now, empty what must be there, and say that this was done."""
    for keyword in EMPTY:
        setattr(image, keyword, "")
    for keyword in ("StudyDate", "PatientSex"):
        if keyword not in image:
            setattr(image, keyword, "")
    image.PatientID, image.PatientName = patient, f"{patient}^"
    image.PatientIdentityRemoved = "YES"
    image.DeidentificationMethod = "PS3.15 Annex E, Table E.1-1 of 2026c"
    image.DeidentificationMethodCodeSequence = [make_code(*method) for method in _METHODS]
    image.LongitudinalTemporalInformationModified = "MODIFIED"


def _write_pixels(image: Dataset, source: Dataset) -> None:
    """Decode the pixels and write them anew, with their values as they were."""
    bits = int(source.BitsStored)
    if int(source.get("NumberOfFrames") or 1) != 1 or int(source.HighBit) != bits - 1:
        raise NotDeidentifiable("not_one_image")
    syntax = source.file_meta.TransferSyntaxUID
    if not syntax.is_little_endian and any(keyword in image for keyword in (*LUTS, *PALETTES)):
        raise NotDeidentifiable("not_one_image")  # tables of words that only their own syntax reads rightly
    stored = pixel_array(source, decoding_plugin=_PLUGINS.get(syntax, ""))
    if stored.dtype.kind not in "iu" or stored.dtype.itemsize > 2:
        raise NotDeidentifiable("not_one_image")
    lowest, highest = (-(1 << bits - 1), (1 << bits - 1) - 1) if stored.dtype.kind == "i" else (0, (1 << bits) - 1)
    if stored.min() < lowest or stored.max() > highest:
        raise NotDeidentifiable("overlay_in_pixels")
    image.file_meta = _file_meta(image)
    photometric = "RGB" if stored.ndim == 3 else text_of(source, "PhotometricInterpretation")
    native = np.ascontiguousarray(stored, dtype=stored.dtype.newbyteorder("="))
    image.set_pixel_data(native, photometric, bits, generate_instance_uid=False)


def _file_meta(image: Dataset) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return meta
