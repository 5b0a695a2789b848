"""Every coded concept that the reports use, in one table; the finding's own code comes from the model card.

All but two are in DICOM's own dictionary or context groups (PS3.16); the finding (SNOMED CT) is the card's choice, and
`QUALITATIVE_EVALUATIONS` stands in TID 1500 itself.
"""

from __future__ import annotations

from pydicom.sr.coding import Code
from pydicom.uid import Comprehensive3DSRStorage, ComprehensiveSRStorage, EnhancedSRStorage

from db.tables import Answer

SR_SOP_CLASSES = (Comprehensive3DSRStorage, ComprehensiveSRStorage, EnhancedSRStorage)
"""What a report is built as, best first; the older classes are subsets of the first, and our tree uses nothing more."""

IMAGING_MEASUREMENT_REPORT = Code("126000", "DCM", "Imaging Measurement Report")
LANGUAGE = Code("en-US", "RFC5646", "English (United States)")
DEVICE = Code("121007", "DCM", "Device")
PERSON = Code("121006", "DCM", "Person")
VERIFYING = Code("121098", "DCM", "Verifying")
PROCEDURE_REPORTED = Code("121058", "DCM", "Procedure reported")
RADIOGRAPHY = Code("43468-8", "LN", "XR unspecified body region")
"""The radiography member of CID 100; validators with the CID 100 of 2019 do not know it yet."""

IMAGE_LIBRARY = Code("111028", "DCM", "Image Library")
IMAGE_LIBRARY_GROUP = Code("126200", "DCM", "Image Library Group")
SOURCE = Code("260753009", "SCT", "Source")

IMAGING_MEASUREMENTS = Code("126010", "DCM", "Imaging Measurements")
LUNG = Code("39607008", "SCT", "Lung")
ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")
CERTAINTY_OF_FINDING = Code("111012", "DCM", "Certainty of Finding")
PERCENT = Code("%", "UCUM", "Percent")
PRESENCE_OF_PROPERTY = Code("121052", "DCM", "Presence of property")

QUALITATIVE_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")
NARRATIVE_SUMMARY = Code("111412", "DCM", "Narrative Summary")
COMMENT = Code("121106", "DCM", "Comment")

SOURCE_IMAGE = Code("121322", "DCM", "Source image for image processing operation")
PROCESSING_EQUIPMENT = Code("109102", "DCM", "Processing Equipment")
PRELIMINARY_REPORT = Code("121362", "DCM", "Preliminary report")
"""What a reader's report names the AI result that it verifies or corrects (CID 7009)."""
REPLACED_REPORT = Code("121360", "DCM", "Replaced report")

UNDETERMINED = Code("373068000", "SCT", "Undetermined")
PRESENCE = {
    Answer.PRESENT: Code("52101004", "SCT", "Present"),
    Answer.ABSENT: Code("272519000", "SCT", "Absent"),
    Answer.UNDETERMINED: UNDETERMINED,
}
"""CID 240; "normal" is never coded: the model finds pneumonia absent, no more."""

ABNORMAL_STRUCTURE = Code("49755003", "SCT", "Morphologically Abnormal Structure")
OPACITY = Code("112001", "DCM", "Opacity")
"""What the region of a segmentation is said to be (CID 7150, CID 6102): what the model looked at, no more."""

QUALITY = "113001"
"""Why a result is withdrawn that its model should not have said, or that its reader took back."""
REJECTIONS = {
    QUALITY: Code("113001", "DCM", "Rejected for Quality Reasons"),
    "113037": Code("113037", "DCM", "Rejected for Patient Safety Reasons"),
    "113038": Code("113038", "DCM", "Incorrect Modality Worklist Entry"),
}
"""Titles of a rejection note, by code value (CID 7011)."""
