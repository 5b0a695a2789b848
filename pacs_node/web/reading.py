"""One study as the reading page shows it: what the model said, why, which images, where the report is. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import quote
from uuid import UUID

from db.facts import ImageFacts, PredictionFacts, ReviewState, StudyDetail
from db.tables import InstanceState
from pacs_node.report.answer import FINDING, FORBIDS, NOT_NAMED, prediction_of
from pacs_node.settings.web import STUDY_FIELD
from pacs_node.web import words
from pacs_node.web.choices import Choice, choices_for, veiled_choices
from pacs_node.web.reviewing import VERDICTS, ReviewView, review_view
from pacs_node.web.rows import Point, patient_line
from pacs_node.web.words import Kind, Saying, Sentence

_CAUTION = {
    Kind.POSITIVE: "Above the threshold. The model knows pneumonia only; it is blind to any other finding.",
    Kind.NEGATIVE: "Below the threshold. The model knows pneumonia only; this does not exclude any other finding.",
}
_OF_NOTHING = "0.0"
"""The tag of a study without a report and a review."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageView:
    """One image of the study on the shelf."""

    instance_id: UUID
    name: str
    kind: Kind
    words: str
    because: str
    probability_text: str
    has_picture: bool
    is_shown: bool
    is_explained: bool
    """The model judged it, so there is a heat map."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorView:
    """An earlier study of the same patient."""

    study_id: UUID
    date: str
    instance_id: UUID | None
    said: str
    read: str
    is_beside: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyView:
    """The reading page, in words."""

    study_id: UUID
    is_urgent: bool
    is_settled: bool
    patient_name: str
    patient_id: str
    patient_line: str
    accession_number: str
    study_line: str
    images: Sequence[ImageView]
    shown: ImageView | None
    decisive_id: UUID | None
    """The image that the answer is of, where it can be hung."""
    no_picture: str
    kind: Kind
    saying: Saying
    probability: float | None
    probability_text: str
    point: Point | None
    finding: str
    reasons: Sequence[Sentence]
    meaning: str
    """What such a probability meant before; empty = the model's card does not say."""
    caution: str
    warnings: Sequence[str]
    unjudged: Sequence[ImageView]
    reviews: Sequence[ReviewView]
    facts: Sequence[tuple[str, str]]
    choices: Sequence[Choice]
    veiled_choices: Sequence[Choice]
    """In their place while a reader hides the model's answer."""
    report_href: str
    viewer_href: str
    revision: int
    tag: str
    """Of the reviews as they were read: an answer to others is refused."""
    standing: Sequence[ReviewView]
    priors: Sequence[PriorView]
    beside: PriorView | None

    @property
    def is_hideable(self) -> bool:
        """Tell whether the model said something about the finding, which a reader may hide."""
        return self.kind in words.HIDEABLE

    @property
    def standing_of_result(self) -> Sequence[Sentence]:
        """Return those of the reasons that say nothing of the finding: held, withdrawn, failed, changing."""
        return [said for said in self.reasons if said.kind not in words.HIDEABLE]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What of a study the reader asked for."""

    image: UUID | None = None
    """On the light box; None = the one that decides the answer."""
    beside: UUID | None = None
    """The earlier study beside it."""
    viewer_url: str = ""
    """Of the hospital's viewer, with `{study_instance_uid}` in it; empty = none."""
    meaning: str = ""
    """What such a probability meant before (`web.meaning`)."""
    trained_on: str = ""
    """Of the model that answered."""


def study_view(
    study: StudyDetail, reviews: ReviewState, priors: Sequence[StudyDetail], shown: Shown, *, now: datetime
) -> StudyView:
    """Put a study into words."""
    summary = study.summary
    radiographs = [image for image in study.images if not _is_passed_over(image)]
    answer = summary.answer if summary.withdrawn_at is None else None  # a withdrawn one is none to agree with
    warnings = [warning for image in radiographs for warning in image.warnings]
    kind = words.kind_of(summary.answer, warnings)
    decisive = _decisive(radiographs, summary.probability)
    found = prediction_of(decisive) if decisive else None
    point = _point(found)
    shown_id = _shown(radiographs, shown.image, decisive)
    views = [_image_view(image, i, shown_id, study) for i, image in enumerate(radiographs, start=1)]
    band = (point.low, point.high) if point else None
    reasons = words.status_sentences(kind, summary.state, hold=summary.hold, band=band, probability=summary.probability)
    is_unanswered = kind in (Kind.NOT_ANALYSED, Kind.FAILED)
    earlier = [_prior_view(prior, shown.beside) for prior in priors]
    return StudyView(
        study_id=summary.study_id,
        is_urgent=summary.priority > 0,
        is_settled=summary.state in ("answered", "held", "failed"),
        patient_name=words.readable_name(summary.patient_name),
        patient_id=summary.patient_id or "no patient id",
        patient_line=patient_line(study.summary, now),
        accession_number=summary.accession_number,
        study_line=_study_line(study),
        images=views,
        shown=next((view for view in views if view.is_shown and view.has_picture), None),
        decisive_id=decisive.instance_id if decisive and decisive.instance_id not in study.gone else None,
        no_picture=_no_picture(study),
        kind=kind,
        saying=words.SAYINGS[kind],
        probability=summary.probability,
        probability_text=words.probability_text(summary.probability, summary.threshold)
        if summary.probability is not None
        else "",
        point=point,
        finding=FINDING,
        reasons=words.withdrawal_sentences(summary.withdrawn_at)
        + reasons
        + (words.reason_sentences(kind, warnings) if is_unanswered else []),
        meaning=shown.meaning,
        caution=_CAUTION.get(kind, ""),
        warnings=words.warning_sentences(warnings) + _delivery_warnings(study),
        unjudged=[view for view in views if view.because and not (is_unanswered and len(views) == 1)],
        reviews=[review_view(review, now, radiographs) for review in reversed(study.reviews)],
        facts=_facts(study, found, shown.trained_on, now),
        choices=choices_for(answer),
        veiled_choices=veiled_choices(answer),
        report_href=f"/api/v1/studies/{summary.study_id}/report"
        if study.reports and study.reports[-1].built_at
        else "",
        viewer_href=shown.viewer_url.replace(STUDY_FIELD, quote(study.study_instance_uid, safe="")),
        revision=summary.revision,
        tag=_tag(study, reviews),
        standing=[review_view(review, now, radiographs) for review in reviews.standing],
        priors=earlier,
        beside=next((prior for prior in earlier if prior.is_beside and prior.instance_id), None),
    )


def decisive_image(images: Sequence[ImageFacts], probability: float | None) -> ImageFacts | None:
    """Return the image to show for a study: the one whose probability is the study's, else the first radiograph."""
    radiographs = [image for image in images if not _is_passed_over(image)]
    return _decisive(radiographs, probability) or next(iter(radiographs), None)


def _is_passed_over(image: ImageFacts) -> bool:
    """What this node made, and what is no image, is not laid on the shelf."""
    return any(warning.code in NOT_NAMED for warning in image.warnings)


def _decisive(images: Sequence[ImageFacts], probability: float | None) -> ImageFacts | None:
    for image in images:
        prediction = prediction_of(image)
        if prediction is not None and prediction.probability == probability:
            return image
    return None


def _tag(study: StudyDetail, reviews: ReviewState) -> str:
    """Return the tag of what is shown: of nothing where a report came between two reads, so that no answer is taken."""
    shown = [report.report_id for report in study.reports if report.revision <= study.summary.revision]
    return reviews.tag if reviews.report_id is None or reviews.report_id in shown else _OF_NOTHING


def _point(found: PredictionFacts | None) -> Point | None:
    return Point(threshold=found.threshold, low=found.abstain_low, high=found.abstain_high) if found else None


def _shown(images: Sequence[ImageFacts], chosen: UUID | None, decisive: ImageFacts | None) -> UUID | None:
    ids = [image.instance_id for image in images]
    if chosen in ids:
        return chosen
    return decisive.instance_id if decisive else next(iter(ids), None)


def _image_view(image: ImageFacts, position: int, shown_id: UUID | None, study: StudyDetail) -> ImageView:
    found = prediction_of(image)
    kind = words.kind_of_image(image.state)
    reasons = [
        w.text if w.code != words.FAILURE else words.FAILED_TEXT for w in image.warnings if w.severity == FORBIDS
    ]
    is_unjudged = image.state in (InstanceState.NOT_ANALYSED, InstanceState.FAILED)
    return ImageView(
        instance_id=image.instance_id,
        name=", ".join(filter(None, [f"Image {position}", study.views.get(image.instance_id)])),
        kind=kind,
        words=words.SAYINGS[kind].short.lower(),
        because=f"because {'; '.join(map(words.clause, reasons)) or 'no reason was recorded'}." if is_unjudged else "",
        probability_text=words.probability_text(found.probability, found.threshold) if found else "",
        has_picture=image.instance_id not in study.gone,
        is_shown=image.instance_id == shown_id,
        is_explained=found is not None,
    )


def _prior_view(prior: StudyDetail, beside: UUID | None) -> PriorView:
    summary = prior.summary
    decisive = decisive_image(prior.images, summary.probability)
    said = words.SAYINGS[words.kind_of(summary.answer, [])].whole.lower()
    if summary.probability is not None and summary.model_version:
        written = words.probability_text(summary.probability, summary.threshold)
        said = f"{said}, {written} by version {summary.model_version}"
    if summary.withdrawn_at is not None:
        said = f"{words.WITHDRAWN.lower()}: {said}"
    last = max(summary.standing, key=lambda review: review.created_at, default=None)
    read = f"{VERDICTS[last.verdict]}, {last.reviewer}" if last else "not reviewed"
    return PriorView(
        study_id=summary.study_id,
        date=f"{summary.study_date or summary.received_at.date()}",
        instance_id=decisive.instance_id if decisive and decisive.instance_id not in prior.gone else None,
        said=said,
        read=read,
        is_beside=summary.study_id == beside,
    )


def _study_line(study: StudyDetail) -> str:
    summary = study.summary
    taken = f"{summary.study_date}" if summary.study_date else ""
    parts = [summary.accession_number or "no accession", study.study_description, taken, summary.calling_ae_title]
    return ", ".join(part for part in parts if part)


def _no_picture(study: StudyDetail) -> str:
    if study.gone:
        return "The input images were purged after the retention time; results and reports are kept."
    return "No image of this study has arrived yet."


def _delivery_warnings(study: StudyDetail) -> list[str]:
    return [words.delivery_sentence(delivery) for delivery in study.summary.deliveries if delivery.state != "sent"]


def _facts(study: StudyDetail, found: PredictionFacts | None, trained_on: str, now: datetime) -> list[tuple[str, str]]:
    summary = study.summary
    facts = [("Received", f"{words.clock(summary.received_at, now)} from {summary.calling_ae_title}")]
    if found is not None:
        facts.append(("Model", f"{found.model_name} {found.model_version}; research use only"))
        facts.append(("Trained on", trained_on or "not known: its card does not say, or is not here any more"))
        facts.append(
            ("Threshold", f"{found.threshold:.2f}, no answer from {found.abstain_low:.2f} to {found.abstain_high:.2f}")
        )
    facts += [
        ("Delivery", words.delivery_sentence(delivery)) for delivery in summary.deliveries if delivery.state == "sent"
    ]
    for report in study.reports:
        is_awaited = report.revision == summary.revision and summary.failed_job_id is None
        built = "" if report.built_at else ", being built" if is_awaited else ", not built"
        said = words.SAYINGS[words.kind_of(report.answer, ())].whole.lower()
        withdrawn = f", {words.WITHDRAWN.lower()}" if report.withdrawn_at else ""
        facts.append(
            (f"Revision {report.revision}", f"{words.clock(report.content_at, now)}: {said}{built}{withdrawn}")
        )
    return facts
