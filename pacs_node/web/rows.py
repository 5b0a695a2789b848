"""One study as a row of the worklist, in words; what of it the reading page says too. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from db.facts import ReviewFacts, StudySummary
from db.tables import DeliveryState
from pacs_node.web import words
from pacs_node.web.reviewing import review_words
from pacs_node.web.words import Kind, ReportWords, Saying, Sentence

SEXES = {"F": "F", "M": "M", "O": "other"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Where the model's answer turns: threshold and the band in which it gives none."""

    threshold: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One study in words."""

    study_id: UUID
    kind: Kind
    saying: Saying
    probability: float | None
    probability_text: str
    point: Point | None
    is_urgent: bool
    is_reviewed: bool
    needs_reader: bool
    is_undelivered: bool
    is_withdrawn: bool
    """The model's answer counts no more, whatever it was."""
    patient_name: str
    patient_line: str
    accession_number: str
    study_line: str
    sentences: Sequence[Sentence]
    report: ReportWords
    waiting: str
    waiting_since: datetime
    received: str
    failed_job_id: UUID | None

    @property
    def is_silent(self) -> bool:
        """Tell whether the model says nothing that counts."""
        return self.kind.is_silent or (self.is_withdrawn and self.kind is not Kind.HIDDEN)

    def says(self, kind: Kind) -> bool:
        """Tell whether this is the model's answer, and counts."""
        return self.kind is kind and not self.is_withdrawn


def row_of(study: StudySummary, now: datetime, *, is_hidden: bool = False) -> Row:
    """Put one study into words; hidden = without what the model said (`web.blind`)."""
    kind = words.kind_of(study.answer, study.warnings)
    is_hidden = is_hidden and kind in words.HIDEABLE
    kind, probability = (Kind.HIDDEN, None) if is_hidden else (kind, study.probability)
    point = None if is_hidden else point_of(study)
    band = (point.low, point.high) if point else None
    said = words.withdrawal_sentences(study.withdrawn_at)
    said += words.status_sentences(kind, study.state, hold=study.hold, band=band, probability=probability)
    said += words.reason_sentences(kind, study.warnings)
    said += [] if is_hidden else [Sentence(text) for text in words.warning_sentences(study.warnings)]
    said += [Sentence(words.delivery_sentence(d)) for d in study.deliveries if d.state is DeliveryState.FAILED]
    said += [_answer_given(review, now, is_hidden=is_hidden) for review in study.standing]
    is_failed, is_withdrawn = study.failed_job_id is not None, study.withdrawn_at is not None
    images = f"{study.images} images" if study.images != 1 else "1 image"
    return Row(
        study_id=study.study_id,
        kind=kind,
        saying=words.SAYINGS[kind],
        probability=probability,
        probability_text="" if probability is None else words.probability_text(probability, study.threshold),
        point=point,
        is_urgent=study.priority > 0,
        is_reviewed=study.is_reviewed,
        needs_reader=study.needs_reader,
        is_undelivered=is_failed or any(delivery.state is DeliveryState.FAILED for delivery in study.deliveries),
        is_withdrawn=is_withdrawn,
        patient_name=words.readable_name(study.patient_name),
        patient_line=patient_line(study, now),
        accession_number=study.accession_number,
        study_line=f"{study.calling_ae_title}, {images}",
        sentences=said,
        report=words.report_words(
            study.deliveries, is_reported=study.revision > 0, is_failed=is_failed, is_withdrawn=is_withdrawn
        ),
        waiting="answered" if study.is_reviewed else words.time_since(study.last_received_at, now),
        waiting_since=study.last_received_at,
        received=words.clock(study.last_received_at, now),
        failed_job_id=study.failed_job_id,
    )


def _answer_given(review: ReviewFacts, now: datetime, *, is_hidden: bool) -> Sentence:
    who = f"{review.reviewer}, {words.clock(review.created_at, now)}"
    if is_hidden:
        return Sentence(f"{who}; what it says is shown after yours.", "Answered:")
    return Sentence(f"{who}.", f"{review_words(review)}:")


def point_of(study: StudySummary) -> Point | None:
    """Return the operating point that was stored with the shown probability."""
    if study.threshold is None or study.abstain_low is None or study.abstain_high is None:
        return None
    return Point(threshold=study.threshold, low=study.abstain_low, high=study.abstain_high)


def patient_line(study: StudySummary, now: datetime) -> str:
    """Return the patient's id, sex and age at the study, as far as they are known."""
    age = words.age_text(study.patient_birth_date, study.study_date or now.date())
    return ", ".join(filter(None, [study.patient_id or "no patient id", SEXES.get(study.patient_sex, ""), age]))
