"""The Structured Report of a study's answer: one Comprehensive 3D SR (TID 1500), or one of its two older kin. Pure.

Takes a `StudyReport`; gives data sets and bytes. Nothing is read from a clock and no UID is drawn: building twice gives
the same bytes. Hides what highdicom leaves out, and would copy or add by itself.
"""

from __future__ import annotations

import io
import warnings
from datetime import timedelta, timezone, tzinfo
from typing import Any

from highdicom import sr
from highdicom.sr.coding import CodedConcept
from pydicom import config
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import UID

from db.facts import ImageFacts
from db.tables import Answer
from models.card import ModelCard
from pacs_node.identity import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, MANUFACTURER, device_uid
from pacs_node.report import codes
from pacs_node.report.source import TYPE_2, TYPE_3, SafeHeader
from pacs_node.report.tree import StudyReport, own_uid, root_item

SERIES_NUMBER = 9001
NODE_MODEL_NAME = "pacs-node"
SR_CLASSES: dict[str, Any] = dict(
    zip(codes.SR_SOP_CLASSES, (sr.Comprehensive3DSR, sr.ComprehensiveSR, sr.EnhancedSR), strict=True)
)
_COPIED = (*TYPE_2, *TYPE_3, "ProcedureCodeSequence", "OtherPatientIDsSequence")
_COPIED_ISSUERS = ("IssuerOfPatientIDQualifiersSequence", "IssuerOfAccessionNumberSequence")


def build_sr(study: StudyReport, sop_class_uid: str) -> Dataset:
    """Return the report as an object of one of `SR_CLASSES`, UNVERIFIED, with file meta.

    References
    ----------
    PS3.3 A.35.13 (Comprehensive 3D SR), C.17.2 (SR Document General); IHE RAD AIR 6.5.3
    """
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")  # a foreign UID may be any string; pydicom's warnings quote values
        document = _document(study, sop_class_uid)
        _copy_header(document, _header(study).dataset)
        _add_requests(document, _header(study).dataset)
        _add_equipment(document, study)
        _name_writer(document, study)
    return document


def to_bytes(document: Dataset) -> bytes:
    """Return the object as a Part 10 file, Explicit VR Little Endian."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        document.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def sop_instance_uid(study: StudyReport, sop_class_uid: str, revision: int) -> str:
    """Return the SOP Instance UID of a revision in one of the SR classes."""
    return str(own_uid(study.installation_id, "sr", study.study_instance_uid, revision, sop_class_uid))


def _document(study: StudyReport, sop_class_uid: str) -> Dataset:
    at = study.report.content_at.astimezone(_zone(study)).replace(microsecond=0)
    document: Dataset = SR_CLASSES[sop_class_uid](
        evidence=[_reference(study, image) for image in study.named_images],
        content=root_item(study),
        series_instance_uid=_series_instance_uid(study, study.report.model_name),
        series_number=SERIES_NUMBER,
        series_description=_series_description(study.report.model_name),
        sop_instance_uid=sop_instance_uid(study, sop_class_uid, study.report.revision),
        instance_number=study.report.revision,
        is_complete=study.report.answer is not Answer.INCOMPLETE,
        previous_versions=_predecessor(study, sop_class_uid),
        specific_character_set="ISO_IR 192",
        content_date=at.date(),
        content_time=at.time(),
        manufacturer=MANUFACTURER,
        manufacturer_model_name=NODE_MODEL_NAME,
        software_versions=study.node.software_version,
        device_serial_number=study.node.name,
    )
    document.InstanceCreationDate, document.InstanceCreationTime = document.ContentDate, document.ContentTime
    for item in document.get("PredecessorDocumentsSequence", []):
        replaced = item.ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
        replaced.PurposeOfReferenceCodeSequence = [_coded(codes.REPLACED_REPORT)]  # CID 7009
    return document


def _coded(code: Code) -> CodedConcept:
    return CodedConcept.from_code(code)


def _header(study: StudyReport) -> SafeHeader:
    """Return the header that patient and study are copied from: of an analysed image before another."""
    analysed = [image for image, _ in study.analysed]
    candidates = [*analysed, *study.named_images]
    found = next((study.headers[i.instance_id] for i in candidates if i.instance_id in study.headers), None)
    if found is None:
        raise ValueError("no image of the study has a header to copy patient and study from")
    return found


def _zone(study: StudyReport) -> tzinfo:
    """Return the zone that the copied Study Time is in: own times are written in the same one."""
    offset = str(_header(study).dataset.get("TimezoneOffsetFromUTC", ""))
    if not offset:
        return study.local_zone
    sign = -1 if offset.startswith("-") else 1
    return timezone(sign * timedelta(hours=int(offset[1:3]), minutes=int(offset[3:5])))


def _series_instance_uid(study: StudyReport, model_name: str) -> str:
    """Return the series of all reports that one model gives on this study."""
    return str(own_uid(study.installation_id, "sr-series", study.study_instance_uid, model_name))


def _series_description(model_name: str) -> str:
    description = f"AI result - {model_name} (unverified)"
    return description if len(description) <= 64 else "AI result (unverified)"


def _reference(study: StudyReport, image: ImageFacts) -> Dataset:
    """Return what highdicom needs of an evidence image; patient and study are copied afterwards, by us."""
    reference = Dataset()
    reference.StudyInstanceUID, reference.SeriesInstanceUID = study.study_instance_uid, image.series_instance_uid
    reference.SOPClassUID, reference.SOPInstanceUID = image.sop_class_uid, image.sop_instance_uid
    for keyword in TYPE_2:
        setattr(reference, keyword, "")
    return reference


def _predecessor(study: StudyReport, sop_class_uid: str) -> list[Dataset] | None:
    """Return the report that this one replaces, in the same SR class (PS3.3 C.17.2.3)."""
    predecessor = study.report.predecessor
    if predecessor is None:
        return None
    replaced = Dataset()
    replaced.StudyInstanceUID = study.study_instance_uid
    replaced.SeriesInstanceUID = _series_instance_uid(study, predecessor.model_name)
    replaced.SOPClassUID = sop_class_uid
    replaced.SOPInstanceUID = sop_instance_uid(study, sop_class_uid, predecessor.revision)
    return [replaced]


def _copy_header(document: Dataset, header: Dataset) -> None:
    for keyword in (*_COPIED, *_COPIED_ISSUERS):
        if keyword in header:
            document[keyword] = header[keyword]


def _add_requests(document: Dataset, header: Dataset) -> None:
    """Name the order that the images were made for (PS3.3 C.17.2, Referenced Request Sequence)."""
    requests = []
    for ordered in header.get("RequestAttributesSequence", []):
        request = Dataset()
        request.StudyInstanceUID, request.ReferencedStudySequence = document.StudyInstanceUID, []
        request.AccessionNumber = document.AccessionNumber
        request.PlacerOrderNumberImagingServiceRequest = request.FillerOrderNumberImagingServiceRequest = ""
        request.RequestedProcedureID = ordered.RequestedProcedureID
        request.RequestedProcedureDescription = ordered.get("RequestedProcedureDescription", "")
        request.RequestedProcedureCodeSequence = []
        requests.append(request)
    if requests:
        document.ReferencedRequestSequence = requests


def _add_equipment(document: Dataset, study: StudyReport) -> None:
    """Name every model that took part, the report's own first (IHE RAD AIR 6.5.3.1)."""
    report = study.report
    versions = [(report.model_name, report.model_version)]
    versions += [(prediction.model_name, prediction.model_version) for _, prediction in study.analysed]
    document.ContributingEquipmentSequence = [_equipment(study.cards[version]) for version in dict.fromkeys(versions)]


def _equipment(card: ModelCard) -> Dataset:
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [_coded(codes.PROCESSING_EQUIPMENT)]
    item.Manufacturer, item.ManufacturerModelName = MANUFACTURER, card.name
    item.SoftwareVersions = card.version
    item.DeviceUID = device_uid(card.weights_sha256)
    item.ContributionDescription = "AI inference"
    return item


def _name_writer(document: Dataset, study: StudyReport) -> None:
    """Name this product in the file meta, in place of the library (PS3.10 7.1)."""
    meta = document.file_meta
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    meta.SourceApplicationEntityTitle = study.node.ae_title
