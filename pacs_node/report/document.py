"""What every object of ours carries whatever its kind: whose it is, who made it, when, and who is asked. Pure.

Takes a `StudyReport` or what it is made of; gives attributes. Hides what highdicom leaves out, and would copy or add by
itself; nothing is read from a clock and no UID is drawn, so that building twice gives the same bytes.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone, tzinfo
from uuid import UUID

from highdicom.sr.coding import CodedConcept
from pydicom import config
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import UID

from db.facts import ImageFacts
from models.card import ModelCard
from pacs_node.identity import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, MANUFACTURER, device_uid
from pacs_node.report import codes
from pacs_node.report.source import TYPE_2, TYPE_3, SafeHeader
from pacs_node.report.study import NodeIdentity, StudyReport, own_uid

NODE_MODEL_NAME = "pacs-node"
_COPIED = (*TYPE_2, *TYPE_3, "ProcedureCodeSequence", "OtherPatientIDsSequence")
_COPIED_ISSUERS = ("IssuerOfPatientIDQualifiersSequence", "IssuerOfAccessionNumberSequence")


def to_bytes(document: Dataset) -> bytes:
    """Return the object as a Part 10 file, Explicit VR Little Endian."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")  # pydicom's warnings quote values
        document.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def coded(code: Code) -> CodedConcept:
    """Return a code as highdicom's item of a sequence."""
    return CodedConcept.from_code(code)


def header_of(study: StudyReport) -> SafeHeader:
    """Return the header that patient and study are copied from: of an analysed image before another."""
    analysed = [image for image, _ in study.analysed]
    candidates = [*analysed, *study.named_images]
    found = next((study.headers[i.instance_id] for i in candidates if i.instance_id in study.headers), None)
    if found is None:
        raise ValueError("no image of the study has a header to copy patient and study from")
    return found


def made_at(study: StudyReport) -> datetime:
    """Return when the report was frozen, in the zone that the copied Study Time is in, in whole seconds."""
    zone = zone_of(header_of(study).dataset, study.local_zone)
    return study.report.content_at.astimezone(zone).replace(microsecond=0)


def zone_of(header: Dataset, local_zone: tzinfo) -> tzinfo:
    """Return the zone of the source's dates and times, for own ones are written in the same (PS3.3 C.12.1.1.8)."""
    offset = str(header.get("TimezoneOffsetFromUTC", ""))
    if not offset:
        return local_zone
    sign = -1 if offset.startswith("-") else 1
    return timezone(sign * timedelta(hours=int(offset[1:3]), minutes=int(offset[3:5])))


def reference_to(study_instance_uid: str, image: ImageFacts) -> Dataset:
    """Return what highdicom needs of a referenced image; patient and study are copied afterwards, by us."""
    reference = Dataset()
    reference.StudyInstanceUID, reference.SeriesInstanceUID = study_instance_uid, image.series_instance_uid
    reference.SOPClassUID, reference.SOPInstanceUID = image.sop_class_uid, image.sop_instance_uid
    for keyword in TYPE_2:
        setattr(reference, keyword, "")
    return reference


def picture_series_uid(installation_id: UUID, study_instance_uid: str, kind: str, model_name: str) -> str:
    """Return the series of the pictures of one kind that one model gives on a study."""
    return str(own_uid(installation_id, f"{kind}-series", study_instance_uid, model_name))


def general_equipment(node: NodeIdentity) -> dict[str, str]:
    """Return highdicom's arguments that name the node as the maker (PS3.3 C.7.5.1): the node, not the model."""
    return {
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": NODE_MODEL_NAME,
        "software_versions": node.software_version,
        "device_serial_number": node.name,
    }


def finish(
    document: Dataset, *, header: Dataset, at: datetime, node: NodeIdentity, models: Sequence[ModelCard]
) -> None:
    """Give an object that highdicom built whose it is, when it was made, by which models and by which program.

    Parameters
    ----------
    at
        In the zone of `made_at`.
    models
        Every model that took part, the one that the report names first (IHE RAD AIR 6.5.3.1).
    """
    document.SpecificCharacterSet = "ISO_IR 192"
    for keyword in (*_COPIED, *_COPIED_ISSUERS):
        if keyword in header:
            document[keyword] = header[keyword]
    document.InstanceCreationDate, document.InstanceCreationTime = f"{at:%Y%m%d}", f"{at:%H%M%S}"
    document.pop("ContributingEquipmentSequence", None)  # highdicom names itself
    if models:
        document.ContributingEquipmentSequence = [_equipment(card) for card in models]
    meta = document.file_meta  # in place of the library's name (PS3.10 7.1)
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    meta.SourceApplicationEntityTitle = node.ae_title


def _equipment(card: ModelCard) -> Dataset:
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [coded(codes.PROCESSING_EQUIPMENT)]
    item.Manufacturer, item.ManufacturerModelName = MANUFACTURER, card.name
    item.SoftwareVersions = card.version
    item.DeviceUID = device_uid(card.weights_sha256)
    item.ContributionDescription = "AI inference"
    return item
