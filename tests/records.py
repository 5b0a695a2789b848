"""Rows for the tests' databases: what intake, worker and schedule would have written."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import update

from db import facts
from db.engine import Session
from db.facts import NewInstance, NewPrediction, WarningFacts
from db.queue import QueuePolicy
from db.tables import Answer, Job, JobState

NOON = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)

POLICY = QueuePolicy(lease_s=60, max_attempts=3, max_crashes=3, retry_base_s=2.0, retry_cap_s=900.0, age_step_s=300)


def make_instance(number: int = 1, *, study: str = "1.2.1", **changes: Any) -> NewInstance:
    """Return a radiograph to be judged, another for each `number`; `changes` replace its fields."""
    fields: dict[str, Any] = {
        "study_instance_uid": study,
        "series_instance_uid": f"{study}.1",
        "sop_instance_uid": f"{study}.1.{number}",
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.1.1",
        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "modality": "DX",
        "patient_id": "PATIENT-1",
        "issuer_of_patient_id": "",
        "patient_name": "Doe^Jane",
        "patient_birth_date": "19700101",
        "patient_sex": "F",
        "accession_number": "A1",
        "study_date": NOON.date(),
        "study_description": "Chest PA",
        "digest": f"{number:064x}",
        "size_bytes": 1000 + number,
        "path": f"instances/{uuid4().hex}.dcm",
        "calling_ae_title": "CR_ROOM_1",
        "association_id": None,
        "priority": 0,
        "is_judged": True,
        "not_judged_reason": None,
    }
    return NewInstance(**(fields | changes))


def make_prediction(probability: float = 0.07, **changes: Any) -> NewPrediction:
    """Return what a model says about one image."""
    fields: dict[str, Any] = {
        "finding": "pneumonia",
        "probability": probability,
        "confidence": 100 * max(probability, 1 - probability),
        "threshold": 0.5,
        "abstain_low": 0.4,
        "abstain_high": 0.6,
        "model_name": "resnet50",
        "model_version": "1.0.0",
        "processing_time_ms": 12.5,
    }
    return NewPrediction(**(fields | changes))


LATERAL = WarningFacts(code="lateral_view", severity="forbids", text="A lateral view")
LOW_CONFIDENCE = WarningFacts(code="low_confidence", severity="warning", text="Close to the threshold")


def add_image(session: Session, number: int = 1, *, now: datetime = NOON, **changes: Any) -> facts.Accepted:
    """Receive one radiograph."""
    return facts.add_instance(session, make_instance(number, **changes), now=now)


def judge(session: Session, instance_id: UUID, probability: float = 0.07, *, now: datetime = NOON) -> None:
    """Record an answer for one image and end its job."""
    facts.record_judgement(
        session, instance_id, predictions=[make_prediction(probability)], warnings=[], voi="linear", now=now
    )
    end_jobs(session, instance_id)


def end_jobs(session: Session, subject_id: UUID) -> None:
    """End the job of a subject as its worker would."""
    session.execute(
        update(Job)
        .where(Job.subject_id == subject_id)
        .values(state=JobState.DONE, lease_until=None, lease_owner=None, finished_at=NOON)
    )


def freeze(session: Session, study_id: UUID, answer: Answer = Answer.ABSENT, **changes: Any) -> UUID | None:
    """Freeze the study's next report over its images as they stand."""
    study = facts.study_facts(session, study_id, lock=True)
    images = [
        {
            "instance_id": str(image.instance_id),
            "state": image.state.value,
            "prediction_ids": [str(prediction.prediction_id) for prediction in image.predictions],
            "codes": [warning.code for warning in image.warnings],
        }
        for image in study.images
    ]
    fields: dict[str, Any] = {
        "answer": answer,
        "probability": 0.07,
        "contents": {"images": images},
        "model_name": "resnet50",
        "model_version": "1.0.0",
        "is_sent": True,
        "now": NOON,
    }
    return facts.freeze_report(session, study_id, **(fields | changes))
