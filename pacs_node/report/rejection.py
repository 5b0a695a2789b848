"""A note that objects of ours are no longer to be shown: a Key Object Selection as of IHE IOCM. Pure.

Takes a stored report of ours, the objects to reject and why; gives a data set. PACS that know IOCM hide what it names;
nothing is deleted anywhere by it, and the rejected SOP Instance UIDs are never used again.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import deepcopy
from datetime import datetime, tzinfo
from uuid import UUID

from highdicom import ko, sr
from pydicom import config
from pydicom.dataset import Dataset
from pydicom.uid import KeyObjectSelectionDocumentStorage

from db.facts import BuiltObject
from db.tables import ObjectKind
from pacs_node.identity import MANUFACTURER, device_uid
from pacs_node.report import codes
from pacs_node.report.document import finish, general_equipment, picture_series_uid, zone_of
from pacs_node.report.source import TYPE_2
from pacs_node.report.study import NodeIdentity, own_uid

SERIES_NUMBER = 9003
DESCRIPTION = "This AI result is withdrawn. Do not use it."
READERS_DESCRIPTION = "Its reader withdrew or changed this report. Do not use it."


def build_rejection_note(
    report: Dataset,
    rejected: Sequence[BuiltObject],
    *,
    code: str,
    installation_id: UUID,
    node: NodeIdentity,
    at: datetime,
    local_zone: tzinfo,
    model_name: str,
    description: str = DESCRIPTION,
) -> Dataset:
    """Return the note that rejects objects of one report; the same arguments give the same bytes.

    Parameters
    ----------
    report
        The report as the node stored it, in any of its SR classes: patient, study and model are copied from it.
    rejected
        What a destination holds of that report; at least one object.
    code
        The code value of the note's title, a key of `codes.REJECTIONS`.
    at
        When it was withdrawn, aware; it becomes Content Date and Time.
    local_zone
        Of the node: for dates and times where the report states no offset from UTC.
    model_name
        As in the report's facts: it names the series of the pictures.

    Raises
    ------
    ValueError
        Nothing is rejected, or the code is none for a rejection.

    References
    ----------
    PS3.3 A.35.4 (Key Object Selection Document), PS3.16 CID 7011 and TID 2010; IHE RAD TF-2 4.66 (IOCM)
    """
    if not rejected or code not in codes.REJECTIONS:
        raise ValueError(f"a rejection note needs objects to reject and a title of CID 7011, not {code!r}")
    study_uid = str(report.StudyInstanceUID)
    local = at.astimezone(zone_of(report, local_zone)).replace(microsecond=0)
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")  # a foreign UID may be any string; pydicom's warnings quote values
        evidence = [_reference(report, one, installation_id, model_name) for one in rejected]
        content = ko.KeyObjectSelection(
            document_title=codes.REJECTIONS[code],
            referenced_objects=evidence,
            observer_device_context=_observer(node),
            description=description,
        )
        parts = (study_uid, code, *sorted(one.sop_instance_uid for one in rejected))
        note: Dataset = ko.KeyObjectSelectionDocument(
            evidence=evidence,
            content=content,
            series_instance_uid=str(own_uid(installation_id, "rejection-series", study_uid)),
            series_number=SERIES_NUMBER,
            series_description="Rejection note",
            sop_instance_uid=str(own_uid(installation_id, "rejection", KeyObjectSelectionDocumentStorage, *parts)),
            instance_number=int(report.InstanceNumber),
            specific_character_set="ISO_IR 192",
            content_date=local.date(),
            content_time=local.time(),
            **general_equipment(node),
        )
        _drop_concept_names(note)
        finish(note, header=report, at=local, node=node, models=[])
        if "ContributingEquipmentSequence" in report:
            note.ContributingEquipmentSequence = deepcopy(report.ContributingEquipmentSequence)
    return note


def _observer(node: NodeIdentity) -> sr.ObserverContext:
    """Name the node: it withdraws the result, not the model."""
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=device_uid(node.name), name=node.name, manufacturer_name=MANUFACTURER, serial_number=node.name
    )
    return sr.ObserverContext(codes.DEVICE, device)


def _reference(report: Dataset, one: BuiltObject, installation_id: UUID, model_name: str) -> Dataset:
    """Return what highdicom needs of a rejected object: its UIDs, for patient and study are copied afterwards."""
    reference = Dataset()
    reference.StudyInstanceUID = report.StudyInstanceUID
    reference.SeriesInstanceUID = (
        report.SeriesInstanceUID
        if one.kind is ObjectKind.SR
        else picture_series_uid(installation_id, str(report.StudyInstanceUID), one.kind.value, model_name)
    )
    reference.SOPClassUID, reference.SOPInstanceUID = one.sop_class_uid, one.sop_instance_uid
    for keyword in TYPE_2:
        setattr(reference, keyword, "")
    if one.kind in (ObjectKind.HEATMAP, ObjectKind.SEG):  # highdicom tells images by their size
        reference.Rows = reference.Columns = 1
    return reference


def _drop_concept_names(note: Dataset) -> None:
    """Take out the concept name of the references, which highdicom 0.28 writes and TID 2010 forbids."""
    for item in note.ContentSequence:
        if item.ValueType in ("IMAGE", "COMPOSITE") and "ConceptNameCodeSequence" in item:
            del item.ConceptNameCodeSequence
