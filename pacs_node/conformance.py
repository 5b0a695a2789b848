"""What the node accepts on the network: the one table that negotiation, intake and CONFORMANCE.md are made of.

Every storage SOP Class is here or is refused in negotiation (PS3.8 9.3.3.2, result 3). The three SR classes and
segmentations are no images: they are accepted so that a PACS that forwards a whole study, with what we sent it, does
not see that study fail.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from pydicom.uid import UID

VERIFICATION = "1.2.840.10008.1.1"
STORAGE_COMMITMENT = "1.2.840.10008.1.20.1"
"""Push Model (PS3.4 J)."""
STUDY_ROOT_FIND, STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.2"
"""Query/Retrieve Information Model (PS3.4 C.6.2)."""
KEY_OBJECT_SELECTION = "1.2.840.10008.5.1.4.1.1.88.59"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
GRAYSCALE_PRESENTATION_STATE = "1.2.840.10008.5.1.4.1.1.11.1"
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"

IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1.99"
EXPLICIT_VR_BIG_ENDIAN = "1.2.840.10008.1.2.2"

IMAGE_TRANSFER_SYNTAXES = (
    EXPLICIT_VR_LITTLE_ENDIAN,
    "1.2.840.10008.1.2.4.70",  # JPEG Lossless, first-order prediction
    "1.2.840.10008.1.2.4.80",  # JPEG-LS lossless
    "1.2.840.10008.1.2.4.90",  # JPEG 2000 lossless only
    "1.2.840.10008.1.2.5",  # RLE
    "1.2.840.10008.1.2.4.57",  # JPEG Lossless, process 14
    IMPLICIT_VR_LITTLE_ENDIAN,
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    "1.2.840.10008.1.2.4.50",  # JPEG Baseline
    "1.2.840.10008.1.2.4.51",  # JPEG Extended
    "1.2.840.10008.1.2.4.81",  # JPEG-LS near lossless
    "1.2.840.10008.1.2.4.91",  # JPEG 2000
)
"""In the order of our choice: the first that the peer offers is taken. A list that began with Implicit VR would make
some senders decompress every image first."""
DATA_TRANSFER_SYNTAXES = (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
)
"""For objects without pixels."""
MESSAGE_TRANSFER_SYNTAXES = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN)
"""For what is read in memory: a deflated megabyte may be a gigabyte."""
UNCOMPRESSED_TRANSFER_SYNTAXES = frozenset(DATA_TRANSFER_SYNTAXES)
REFUSALS = {
    1: "user rejection",
    2: "no reason",
    3: "abstract syntax not supported",
    4: "transfer syntaxes not supported",
}
"""Results of a presentation context that was refused (PS3.8 Table 9-18)."""


class NotJudged(enum.StrEnum):
    """Why an object is stored and never judged; travels as the code of its warning."""

    OWN_OBJECT = "own_object"
    DERIVED = "derived"
    NOT_AN_IMAGE = "not_an_image"
    SEVERAL_FRAMES = "several_frames"

    @property
    def text(self) -> str:
        return _TEXTS[self]


_TEXTS = {
    NotJudged.OWN_OBJECT: "This node made it.",
    NotJudged.DERIVED: "ImageType says DERIVED\\SECONDARY: pixels made from another image.",
    NotJudged.NOT_AN_IMAGE: "It holds no image.",
    NotJudged.SEVERAL_FRAMES: "Multi-frame Secondary Capture is stored only.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageClass:
    """One storage SOP Class that is accepted (PS3.4 B.5)."""

    uid: str
    name: str
    not_judged: NotJudged | None = None
    """None: its images are judged."""

    @property
    def transfer_syntaxes(self) -> tuple[str, ...]:
        return DATA_TRANSFER_SYNTAXES if self.not_judged is NotJudged.NOT_AN_IMAGE else IMAGE_TRANSFER_SYNTAXES


_ROOT = "1.2.840.10008.5.1.4.1.1"

STORAGE_CLASSES = (
    StorageClass(uid=f"{_ROOT}.1", name="Computed Radiography Image Storage"),
    StorageClass(uid=f"{_ROOT}.1.1", name="Digital X-Ray Image Storage - For Presentation"),
    StorageClass(uid=f"{_ROOT}.7", name="Secondary Capture Image Storage"),
    # Examined and found unfit: a study of nothing else is reported as not analysed, not met with silence.
    StorageClass(uid=f"{_ROOT}.1.1.1", name="Digital X-Ray Image Storage - For Processing"),
    StorageClass(
        uid=f"{_ROOT}.7.1",
        name="Multi-frame Single Bit Secondary Capture Image Storage",
        not_judged=NotJudged.SEVERAL_FRAMES,
    ),
    StorageClass(
        uid=f"{_ROOT}.7.2",
        name="Multi-frame Grayscale Byte Secondary Capture Image Storage",
        not_judged=NotJudged.SEVERAL_FRAMES,
    ),
    StorageClass(
        uid=f"{_ROOT}.7.3",
        name="Multi-frame Grayscale Word Secondary Capture Image Storage",
        not_judged=NotJudged.SEVERAL_FRAMES,
    ),
    StorageClass(
        uid=f"{_ROOT}.7.4",
        name="Multi-frame True Color Secondary Capture Image Storage",
        not_judged=NotJudged.SEVERAL_FRAMES,
    ),
    StorageClass(
        uid=f"{_ROOT}.11.1",
        name="Grayscale Softcopy Presentation State Storage",
        not_judged=NotJudged.NOT_AN_IMAGE,
    ),
    StorageClass(uid=f"{_ROOT}.88.59", name="Key Object Selection Document Storage", not_judged=NotJudged.NOT_AN_IMAGE),
    StorageClass(uid=SEGMENTATION, name="Segmentation Storage", not_judged=NotJudged.NOT_AN_IMAGE),
    StorageClass(uid=f"{_ROOT}.88.34", name="Comprehensive 3D SR Storage", not_judged=NotJudged.NOT_AN_IMAGE),
    StorageClass(uid=f"{_ROOT}.88.33", name="Comprehensive SR Storage", not_judged=NotJudged.NOT_AN_IMAGE),
    StorageClass(uid=f"{_ROOT}.88.22", name="Enhanced SR Storage", not_judged=NotJudged.NOT_AN_IMAGE),
)
STORAGE_CLASS_BY_UID = {storage_class.uid: storage_class for storage_class in STORAGE_CLASSES}


def class_name(uid: str) -> str:
    """Return what people call a SOP Class that a peer proposed; its UID where DICOM has no name for it."""
    return UID(uid).name if uid else "(others)"
