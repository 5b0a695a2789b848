"""Studies as the database would tell them to `pacs_node.report`: images, answers, headers and a node, all fixed."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID, uuid5

from pydicom import dcmread
from pydicom.uid import DigitalXRayImageStorageForPresentation

from db.facts import ImageFacts, PredecessorFacts, PredictionFacts, ReportFacts, WarningFacts
from db.tables import Answer, InstanceState
from models.card import ModelCard
from models.suitability import CODES
from pacs_node.report.answer import answer_of
from pacs_node.report.source import SafeHeader, safe_header
from pacs_node.report.study import NodeIdentity, StudyReport, Verification
from tests.builders import as_bytes, make_card, make_population, make_radiograph

HERE = UUID("0f4a1c1e-2f5b-4f0c-8a53-6a1d2c3b4e5f")
"""An installation id."""
STUDY_UID = "1.2.826.0.1.3680043.8.498.7"
SERIES_UID = "1.2.826.0.1.3680043.8.498.7.1"
NOON = datetime(2026, 3, 4, 12, 0, 30, 500_000, tzinfo=UTC)
CARD: ModelCard = make_card(
    name="cxr-pneumonia",
    version="1.3.0",
    populations=(make_population(temperature=1.25),),
    weights_sha256="9f" * 32,
    intended_use="Research.",
    limitations=("Children.",),
)


def make_prediction(probability: float, *, low: float = 0.4, high: float = 0.6, **more: Any) -> PredictionFacts:
    """Return what the model of CARD says with that probability."""
    values: dict[str, Any] = {
        "prediction_id": uuid5(HERE, f"prediction {probability}"),
        "finding": "pneumonia",
        "probability": probability,
        "confidence": 100 * max(probability, 1 - probability),
        "threshold": 0.5,
        "abstain_low": low,
        "abstain_high": high,
        "model_name": CARD.name,
        "model_version": CARD.version,
        "processing_time_ms": 12.5,
    }
    return PredictionFacts(**values | more)


def make_image(
    number: int = 1,
    *,
    p: float | None = None,
    codes: Sequence[str] = (),
    state: InstanceState | None = None,
    is_judged: bool = True,
    prediction: PredictionFacts | None = None,
    **more: Any,
) -> ImageFacts:
    """Return image `number` of the study: analysed with probability `p`, or not, for the reasons in `codes`."""
    prediction = prediction or (make_prediction(p) if p is not None else None)
    values: dict[str, Any] = {
        "instance_id": uuid5(HERE, f"image {number}"),
        "sop_instance_uid": f"{SERIES_UID}.{number}",
        "sop_class_uid": DigitalXRayImageStorageForPresentation,
        "series_instance_uid": SERIES_UID,
        "path": f"instances/{number}.dcm",
        "state": state or (InstanceState.ANALYSED if prediction else InstanceState.NOT_ANALYSED),
        "is_judged": is_judged,
        "predictions": (prediction,) if prediction else (),
        "warnings": tuple(_warning(code) for code in codes),
    }
    return ImageFacts(**values | more)


def _warning(code: str) -> WarningFacts:
    if code not in CODES:
        return WarningFacts(code=code, severity="forbids", text=f"It is {code}.")
    row = CODES[code]
    text = row.text.format(low=40, high=60, ages="1 to 5 years", population="children")
    return WarningFacts(code=code, severity=row.severity.value, text=text)


def make_header(number: int = 1, **attributes: Any) -> SafeHeader:
    """Return the header of a radiograph as it comes from the store: written, read, made safe."""
    values: dict[str, Any] = {"InstanceNumber": number, "study_date": date(2026, 3, 4)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom about values that are illegal on purpose
        dataset = make_radiograph(rows=32, columns=32, seed=number, **values | attributes)
    return safe_header(dcmread(io.BytesIO(as_bytes(dataset)), stop_before_pixels=True))


def make_report(images: Sequence[ImageFacts], **more: Any) -> ReportFacts:
    """Return the first revision of a report on those images."""
    answer = answer_of(images)
    values: dict[str, Any] = {
        "report_id": uuid5(HERE, "report"),
        "study_id": uuid5(HERE, "study"),
        "revision": 1,
        "predecessor": None,
        "answer": answer.answer,
        "probability": answer.probability,
        "contents": answer.contents,
        "model_name": CARD.name,
        "model_version": CARD.version,
        "content_at": NOON,
        "is_sent": answer.is_chest,
        "built_at": None,
    }
    return ReportFacts(**values | more)


def make_predecessor(revision: int = 1, *, answer: Answer = Answer.ABSENT, p: float | None = 0.07) -> PredecessorFacts:
    """Return an earlier report of the study."""
    return PredecessorFacts(
        report_id=uuid5(HERE, f"report {revision}"),
        revision=revision,
        answer=answer,
        probability=p,
        model_name=CARD.name,
        content_at=NOON,
        objects=(),
    )


def make_study_report(*images: ImageFacts, header: dict[str, Any] | None = None, **more: Any) -> StudyReport:
    """Return everything that a report on those images is made of; `more` are fields of the frozen report."""
    headers = {image.instance_id: make_header(number, **header or {}) for number, image in enumerate(images, 1)}
    return StudyReport(
        installation_id=HERE,
        study_instance_uid=STUDY_UID,
        report=make_report(images, **more),
        answer=answer_of(images),
        images=images,
        headers=headers,
        cards={(CARD.name, CARD.version): CARD},
        node=NodeIdentity(name="node-1", ae_title="PACS_NODE", software_version="0.1.0"),
        local_zone=UTC,
    )


def revised(study: StudyReport, predecessor: PredecessorFacts) -> StudyReport:
    """Return the study's next revision, which replaces `predecessor`."""
    report = replace(study.report, revision=predecessor.revision + 1, predecessor=predecessor)
    return replace(study, report=report)


def reviewed(study: StudyReport, answer: Answer, *, comment: str = "") -> StudyReport:
    """Return a reader's report on the study's first revision."""
    before = make_predecessor(answer=study.report.answer, p=study.report.probability)
    report = replace(study.report, revision=2, predecessor=before, answer=answer, probability=None)
    reader = Verification(person_name="Reader^Ada", login="ada", organization="Test hospital", at=NOON, comment=comment)
    return replace(study, report=report, verification=reader)


def changed(study: StudyReport, answer: Answer) -> StudyReport:
    """Return the same reader's next report on the study's first revision, which replaces the one of `reviewed`."""
    again = reviewed(study, answer)
    former = make_predecessor(2, answer=Answer.PRESENT, p=None)
    return replace(again, report=replace(again.report, revision=3, replaced=former))
