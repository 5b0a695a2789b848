"""The content tree of a report: TID 1500 with one TID 1501 group for each analysed image. Pure.

Takes a `StudyReport`; gives the root content item, the same for every SR class. Hides the template.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from highdicom import sr
from highdicom.sr.value_types import (
    CodeContentItem,
    ContainerContentItem,
    ImageContentItem,
    TextContentItem,
)
from pydicom.sr.coding import Code

from db.facts import ImageFacts, PredictionFacts
from db.tables import Answer
from models.card import ModelCard, Population
from pacs_node.identity import MANUFACTURER, device_uid
from pacs_node.report import codes, wording
from pacs_node.report.answer import presence_of
from pacs_node.report.study import StudyReport, own_uid


def root_item(study: StudyReport) -> ContainerContentItem:
    """Return the report's root (PS3.16 TID 1500)."""
    root = ContainerContentItem(name=codes.IMAGING_MEASUREMENT_REPORT, template_id="1500")
    content = sr.ContentSequence()
    content.extend(sr.LanguageOfContentItemAndDescendants(codes.LANGUAGE))
    content.extend(_observer(study))
    procedure = study.concepts.procedure_reported
    content.append(CodeContentItem(name=codes.PROCEDURE_REPORTED, value=procedure, relationship_type="HAS CONCEPT MOD"))
    content.append(_image_library(study))
    if study.verification is not None:
        groups = [_reviewed_group(study)]
    else:
        groups = [_group(study, image, prediction) for image, prediction in study.analysed]
    if groups:
        content.append(_container(codes.IMAGING_MEASUREMENTS, groups))
    content.append(_container(codes.QUALITATIVE_EVALUATIONS, _sentences(study)))
    root.ContentSequence = content
    return root


def _container(name: Code, items: Sequence[Any]) -> ContainerContentItem:
    container = ContainerContentItem(name=name, relationship_type="CONTAINS")
    container.ContentSequence = sr.ContentSequence(items)
    return container


def _observer(study: StudyReport) -> sr.ObservationContext:
    """Name the model version as the observer (TID 1004), or the reader (TID 1003): a device never verifies.

    IHE AIR wants the model's values to be those in Contributing Equipment.
    """
    if study.verification is not None:
        reader = sr.PersonObserverIdentifyingAttributes(
            name=study.verification.person_name,
            login_name=study.verification.login,
            organization_name=study.verification.organization,
            role_in_procedure=codes.VERIFYING,
        )
        return sr.ObservationContext(observer_person_context=sr.ObserverContext(codes.PERSON, reader))
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=device_uid(study.card.weights_sha256),
        name=study.node.name,
        manufacturer_name=MANUFACTURER,
        model_name=study.card.name,
        serial_number=study.node.name,
    )
    return sr.ObservationContext(observer_device_context=sr.ObserverContext(codes.DEVICE, device))


def _image_library(study: StudyReport) -> ContainerContentItem:
    """Reference every image that the report speaks of, analysed or not (TID 1600)."""
    images = [
        ImageContentItem(
            name=codes.SOURCE,
            referenced_sop_class_uid=image.sop_class_uid,
            referenced_sop_instance_uid=image.sop_instance_uid,
            relationship_type="CONTAINS",
        )
        for image in study.named_images
    ]
    return _container(codes.IMAGE_LIBRARY, [_container(codes.IMAGE_LIBRARY_GROUP, images)])


def _group(study: StudyReport, image: ImageFacts, prediction: PredictionFacts) -> ContainerContentItem:
    """Return what the model found in one image (TID 1501); P(finding) also where the finding is absent."""
    card = study.cards[prediction.model_name, prediction.model_version]
    finding = next(finding for finding in card.findings if finding.name == prediction.finding)
    certainty = wording.percent_of(prediction.probability, prediction.threshold)
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(study, image, finding.name),
        finding_type=study.concepts.finding(finding),
        finding_sites=[sr.FindingSite(anatomic_location=study.concepts.finding_site)],
        algorithm_id=_algorithm(card, prediction),
        measurements=[sr.Measurement(name=codes.CERTAINTY_OF_FINDING, value=certainty, unit=codes.PERCENT)],
        qualitative_evaluations=[
            sr.QualitativeEvaluation(name=codes.PRESENCE_OF_PROPERTY, value=_presence(study, prediction))
        ],
        source_images=[sr.SourceImageForMeasurementGroup(image.sop_class_uid, image.sop_instance_uid)],
    )
    item: ContainerContentItem = group[0]
    return item


def _reviewed_group(study: StudyReport) -> ContainerContentItem:
    """Return what the reader says of the study, without a number, under the UID of the finding that decided it."""
    images = [image for image, _ in study.analysed]
    if study.answer.decisive is None:
        raise ValueError("a reader's report is about an image that was analysed")
    decisive, _ = study.answer.decisive
    finding = next(finding for finding in study.card.findings if finding.name == study.answer.finding)
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(study, decisive, finding.name),
        finding_type=study.concepts.finding(finding),
        finding_sites=[sr.FindingSite(anatomic_location=study.concepts.finding_site)],
        qualitative_evaluations=[
            sr.QualitativeEvaluation(name=codes.PRESENCE_OF_PROPERTY, value=codes.PRESENCE[study.report.answer])
        ],
        source_images=[sr.SourceImageForMeasurementGroup(i.sop_class_uid, i.sop_instance_uid) for i in images],
    )
    item: ContainerContentItem = group[0]
    return item


def _tracking(study: StudyReport, image: ImageFacts, finding: str) -> sr.TrackingIdentifier:
    """Name a finding in an image by the same UID in every revision, the reader's included."""
    return sr.TrackingIdentifier(
        uid=own_uid(study.installation_id, "tracking", study.study_instance_uid, finding, image.sop_instance_uid),
        identifier=f"{finding}/{study.place_of(image)}",
    )


def _presence(study: StudyReport, prediction: PredictionFacts) -> Code:
    """Return the coded presence: a negative image of an incomplete study does not read as a negative study."""
    presence = presence_of(prediction)
    if presence is Answer.ABSENT and study.report.answer is Answer.INCOMPLETE:
        return codes.UNDETERMINED
    return codes.PRESENCE[presence]


def _algorithm(card: ModelCard, prediction: PredictionFacts) -> sr.AlgorithmIdentification:
    """Identify the model version and how its number came about (TID 4019)."""
    band = f"{wording.limit_text(prediction.abstain_low)} to {wording.limit_text(prediction.abstain_high)}"
    return sr.AlgorithmIdentification(
        name=card.name,
        version=card.version,
        family=codes.ARTIFICIAL_INTELLIGENCE,
        parameters=[
            f"weights sha256={card.weights_sha256}",
            f"decision threshold={wording.limit_text(prediction.threshold)}",
            f"undetermined band={band}",
            "output=softmax probability, calibrated by the patient's age",
            *[_calibration(population) for population in card.populations],
            f"input={card.input_size}x{card.input_size} pixels, modality LUT and VOI LUT applied, area averaging",
        ],
    )


def _calibration(population: Population) -> str:
    bias = " ".join(f"{value:g}" for value in population.bias)
    return f"calibration of {population.name}=temperature {population.temperature:g}, bias {bias}"


def _sentences(study: StudyReport) -> list[TextContentItem]:
    """Return the report in words, for the many viewers that show text only (TID 1500 rows 12-14)."""
    if study.verification is not None:
        remarks, caution = [study.verification.comment] * bool(study.verification.comment), wording.REVIEWED
    else:
        remarks, caution = _remarks(study), wording.RESEARCH_USE_ONLY
    return [
        _text(codes.NARRATIVE_SUMMARY, _narrative(study)),
        *[_text(codes.COMMENT, remark) for remark in remarks],
        _text(codes.COMMENT, caution),
    ]


def _remarks(study: StudyReport) -> list[str]:
    """Return what the model could not judge, and what to mind about what it could."""
    named = {image.instance_id for image in study.named_images}
    remarks = [
        wording.not_analysed_sentence(study.name_of(missing.image), missing.text)
        for missing in study.answer.not_analysed
        if missing.image.instance_id in named
    ]
    for image, _ in study.analysed:
        texts = [warning.text for warning in image.warnings if warning.severity == "warning"]
        remarks += wording.warning_sentences(study.name_of(image), texts)
    return remarks


def _text(name: Code, value: str) -> TextContentItem:
    return TextContentItem(name=name, value=value, relationship_type="CONTAINS")


def _narrative(study: StudyReport) -> str:
    report, answer, predecessor = study.report, study.answer, study.report.predecessor
    threshold = answer.threshold if answer.threshold is not None else 1.0
    percent = None
    if predecessor is not None and predecessor.probability is not None:
        percent = wording.percent_text(predecessor.probability, threshold)
    if study.verification is not None:
        if predecessor is None:
            raise ValueError("a reader's report names the AI result that it is about")
        said = wording.reviewed_sentence(answer.finding, report.answer, predecessor.answer, percent)
        if report.replaced is None:
            return said
        changed = wording.changed_sentence(report.revision, report.replaced.revision, report.replaced.answer)
        return f"{said} {changed}"
    result = wording.result_sentence(answer.finding, report.answer, report.probability, answer.threshold)
    replaced = None
    if predecessor is not None:
        replaced = wording.replaces_sentence(report.revision, predecessor.revision, predecessor.answer, percent)
    return wording.narrative(result, f"{study.card.name} {study.card.version}", replaced)
