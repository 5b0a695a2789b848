"""The Structured Report of a study's answer: one Comprehensive 3D SR (TID 1500), or one of its two older kin. Pure.

Takes a `StudyReport`; gives data sets. A reader's word on an AI result is a report of the same tree, VERIFIED and in a
series of its own. Building twice gives the same bytes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

from highdicom import sr
from pydicom import config
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from db.tables import Answer
from models.card import ModelCard
from pacs_node.report import codes
from pacs_node.report.document import coded, finish, general_equipment, header_of, made_at, reference_to, to_bytes
from pacs_node.report.study import StudyReport, own_uid
from pacs_node.report.tree import root_item

__all__ = ["SR_CLASSES", "build_sr", "series_instance_uid", "sop_instance_uid", "to_bytes"]

SERIES_NUMBER = 9001
REVIEWED_SERIES_NUMBER = 9002
SR_CLASSES: dict[str, Any] = dict(
    zip(codes.SR_SOP_CLASSES, (sr.Comprehensive3DSR, sr.ComprehensiveSR, sr.EnhancedSR), strict=True)
)


def build_sr(study: StudyReport, sop_class_uid: str) -> Dataset:
    """Return the report as an object of one of `SR_CLASSES`, with file meta.

    The model's is UNVERIFIED and PRELIMINARY, a reader's VERIFIED and FINAL.

    References
    ----------
    PS3.3 A.35.13 (Comprehensive 3D SR), C.17.2 (SR Document General); IHE RAD AIR 6.5.3
    """
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")  # a foreign UID may be any string; pydicom's warnings quote values
        document = _document(study, sop_class_uid)
        header = header_of(study).dataset
        finish(document, header=header, at=made_at(study), node=study.node, models=_models(study))
        _add_requests(document, header)
    return document


def sop_instance_uid(study: StudyReport, sop_class_uid: str, revision: int) -> str:
    """Return the SOP Instance UID of a revision in one of the SR classes."""
    return str(own_uid(study.installation_id, "sr", study.study_instance_uid, revision, sop_class_uid))


def series_instance_uid(study: StudyReport, model_name: str) -> str:
    """Return the series of all reports that one model gives on this study."""
    return str(own_uid(study.installation_id, "sr-series", study.study_instance_uid, model_name))


def _document(study: StudyReport, sop_class_uid: str) -> Dataset:
    at, predecessors = made_at(study), list(_predecessors(study, sop_class_uid))
    document: Dataset = SR_CLASSES[sop_class_uid](
        evidence=[reference_to(study.study_instance_uid, image) for image in study.named_images],
        content=root_item(study),
        sop_instance_uid=sop_instance_uid(study, sop_class_uid, study.report.revision),
        instance_number=study.report.revision,
        is_complete=study.report.answer is not Answer.INCOMPLETE,
        previous_versions=[named for named, _ in predecessors] or None,
        specific_character_set="ISO_IR 192",
        content_date=at.date(),
        content_time=at.time(),
        **general_equipment(study.node),
        **_series(study),
    )
    purposes = {named.SOPInstanceUID: purpose for named, purpose in predecessors}
    for item in document.get("PredecessorDocumentsSequence", []):
        for series in item.ReferencedSeriesSequence:
            for named in series.ReferencedSOPSequence:  # CID 7009
                named.PurposeOfReferenceCodeSequence = [coded(purposes[named.ReferencedSOPInstanceUID])]
    if study.verification is not None:
        (observer,) = document.VerifyingObserverSequence
        verified_at = study.verification.at.astimezone(at.tzinfo)
        observer.VerificationDateTime = f"{verified_at:%Y%m%d%H%M%S}"
    return document


def _series(study: StudyReport) -> dict[str, Any]:
    """Return where the report stands: the model's series, or a reader's, whose report is verified."""
    verification, model_name = study.verification, study.report.model_name
    if verification is None:
        return {
            "series_instance_uid": series_instance_uid(study, model_name),
            "series_number": SERIES_NUMBER,
            "series_description": _series_description(model_name),
        }
    return {
        "series_instance_uid": _reviewed_series_uid(study),
        "series_number": REVIEWED_SERIES_NUMBER,
        "series_description": "AI result - reviewed",
        "is_verified": True,
        "is_final": True,
        "verifying_observer_name": verification.person_name,
        "verifying_organization": verification.organization,
    }


def _series_description(model_name: str) -> str:
    description = f"AI result - {model_name} (unverified)"
    return description if len(description) <= 64 else "AI result (unverified)"


def _models(study: StudyReport) -> list[ModelCard]:
    """Return the cards of every model that took part, the report's own first; a reader's report has none."""
    if study.verification is not None:
        return []
    report = study.report
    versions = [(report.model_name, report.model_version)]
    versions += [(prediction.model_name, prediction.model_version) for _, prediction in study.analysed]
    return [study.cards[version] for version in dict.fromkeys(versions)]


def _reviewed_series_uid(study: StudyReport) -> str:
    return str(own_uid(study.installation_id, "reviewed-series", study.study_instance_uid))


def _predecessors(study: StudyReport, sop_class_uid: str) -> Iterator[tuple[Dataset, Code]]:
    """Give the reports that this one is about or replaces, in the same SR class, and why (PS3.3 C.17.2.3)."""
    before, replaced = study.report.predecessor, study.report.replaced
    if before is not None:
        series = series_instance_uid(study, before.model_name)
        purpose = codes.PRELIMINARY_REPORT if study.verification else codes.REPLACED_REPORT
        yield _named(study, series, sop_class_uid, before.revision), purpose
    if replaced is not None:
        yield _named(study, _reviewed_series_uid(study), sop_class_uid, replaced.revision), codes.REPLACED_REPORT


def _named(study: StudyReport, series_uid: str, sop_class_uid: str, revision: int) -> Dataset:
    """Return what highdicom needs of an earlier report."""
    named = Dataset()
    named.StudyInstanceUID, named.SeriesInstanceUID = study.study_instance_uid, series_uid
    named.SOPClassUID, named.SOPInstanceUID = sop_class_uid, sop_instance_uid(study, sop_class_uid, revision)
    return named


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
