"""What the API takes and gives. Read from the facts by attribute; store keys and file names stay inside.

Times are ISO 8601 in UTC; probabilities lie in [0, 1]; ids are the node's own.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Generic, Literal, Self, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from db.facts import STUDY_STATES
from db.tables import Answer, DeliveryState, Hold, InstanceState, Verdict
from pacs_node.web.query import SentCursor

Item = TypeVar("Item")
Written = StringConstraints(strip_whitespace=True, pattern=r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*$")
"""What a person types: no control characters but tab and line breaks."""
STUDY_ID = "0193a1c2-6b5e-7c3a-9d2f-3b1c5a7e9f10"
INSTANCE_ID = "0193a1c2-6b61-7f44-8c1e-2a9b4d6c8e02"
REPORT_ID = "0193a1c2-7d02-7a10-b3c4-5d6e7f809102"
REVIEW_ID = "0193a1c2-9f00-7b21-a4d5-6e7f80910213"
DELIVERY_ID = "0193a1c2-7e15-7d03-9a1b-2c3d4e5f6071"
PREDICTION_ID = "0193a1c2-6c70-7a55-8d31-4e5f60718293"
WARNING_ID = "0193a1c2-6c71-7b66-9e42-5f60718293a4"
INSTANT = "2026-11-20T12:00:00Z"
CURSOR = "MjAyNi0xMS0yMFQxMjowMDowMCswMDowMF8wMTkzYTFjMi02YjVlLTdjM2EtOWQyZi0zYjFjNWE3ZTlmMTA="


class Schema(BaseModel):
    model_config = ConfigDict(from_attributes=True, extra="ignore")


class Body(BaseModel):
    """What a caller sends: a key that is not known is a mistake."""

    model_config = ConfigDict(extra="forbid")


class Problem(Schema):
    """An error (RFC 9457, application/problem+json)."""

    type: str = "about:blank"
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["There is no such study."])
    instance: str | None = Field(None, description="This request's number, as in the node's log.")
    errors: list[dict[str, str]] | None = Field(None, description="Which field broke which rule; never the value sent.")


class Page(Schema, Generic[Item]):
    """One page, the newest first."""

    items: list[Item]
    next_cursor: str | None = Field(
        None, examples=[CURSOR], description="Give it as `cursor` for the next page; null on the last one."
    )


class WarningOut(Schema):
    """A coded remark about an image."""

    code: str = Field(examples=["view_unknown"])
    severity: str = Field(examples=["warning"], description="`forbids` = the reason why there is no answer.")
    text: str = Field(examples=["The view is not stated; the model judges frontal views only."])


class PredictionOut(Schema):
    """What the model said about one finding in one image."""

    finding: str = Field(examples=["pneumonia"])
    probability: float = Field(examples=[0.937], ge=0, le=1)
    confidence: float = Field(examples=[93.7], description="100 max(p, 1 - p), percent.")
    threshold: float = Field(examples=[0.52])
    abstain_low: float = Field(examples=[0.4], description="Between the two ends the model gives no answer.")
    abstain_high: float = Field(examples=[0.62])
    model_name: str = Field(examples=["kermany-resnet50"])
    model_version: str = Field(examples=["1.0.0"])
    processing_time_ms: float = Field(examples=[212.4])


class DeliveryOut(Schema):
    """The current report at one destination."""

    destination: str = Field(examples=["main"])
    state: DeliveryState
    reason: str = Field("", examples=["no association"])


class ImageOut(Schema):
    """One SOP Instance of a study."""

    instance_id: UUID = Field(examples=[INSTANCE_ID])
    sop_instance_uid: str = Field(examples=["1.2.826.0.1.3680043.8.498.1"])
    sop_class_uid: str = Field(examples=["1.2.840.10008.5.1.4.1.1.1.1"])
    series_instance_uid: str = Field(examples=["1.2.826.0.1.3680043.8.498.2"])
    state: InstanceState
    is_judged: bool = Field(description="False for what is stored and never judged.")
    predictions: list[PredictionOut]
    warnings: list[WarningOut]


class InstanceOut(ImageOut):
    """One SOP Instance in full."""

    study_id: UUID = Field(examples=[STUDY_ID])
    transfer_syntax_uid: str = Field(examples=["1.2.840.10008.1.2.1"])
    size_bytes: int = Field(examples=[8_421_376])
    received_at: datetime
    voi: str | None = Field(examples=["window"], description="Where the grey levels come from.")
    is_purged: bool = Field(description="Its bytes are gone; what was found stays.")


PATIENT = frozenset({"patient_name", "patient_id", "accession_number"})
"""What of a study's line tells whose it is."""


class StudyLine(Schema):
    """One study with its answer and where its report stands."""

    study_id: UUID = Field(examples=[STUDY_ID])
    state: str = Field(examples=["answered"], description=f"{', '.join(STUDY_STATES[:-1])} or {STUDY_STATES[-1]}")
    failed_job_id: UUID | None = Field(
        description="The report could not be built; this job builds it when it is run again by `pacs-node jobs retry`."
    )
    answer: Answer | None = Field(description="Of the current report; null before the first.")
    probability: float | None = Field(examples=[0.937])
    threshold: float | None = Field(examples=[0.52])
    abstain_low: float | None = Field(examples=[0.4])
    abstain_high: float | None = Field(examples=[0.62])
    model_version: str | None = Field(examples=["1.0.0"])
    withdrawn_at: datetime | None = Field(description="Since then the answer counts no more, until it is replaced.")
    warnings: list[WarningOut]
    images: int = Field(examples=[2], description="How many instances it has.")
    deliveries: list[DeliveryOut]
    revision: int = Field(examples=[1], description="Of the current report; 0 = none yet.")
    hold: Hold | None = Field(description="Why nothing about it leaves the node.")
    priority: int = Field(examples=[0], description="Above 0: asked for as urgent.")
    is_reviewed: bool = Field(
        description="Readers have answered the current report, and what they said asks for no other reader."
    )
    needs_reader: bool = Field(description="The readers so far are unsure, or as many say one thing as another.")
    calling_ae_title: str = Field(examples=["CR_ROOM_1"])
    received_at: datetime
    last_received_at: datetime
    patient_name: str | None = Field(examples=["ALDER^Demo"], description="Null in a list for role service.")
    patient_id: str | None = Field(examples=["SYN-0417"], description="As the name.")
    accession_number: str | None = Field(examples=["A-220417"], description="As the name.")
    study_date: date | None


class ReportOut(Schema):
    """One revision of a study's report, as it was frozen."""

    report_id: UUID = Field(examples=[REPORT_ID])
    revision: int = Field(examples=[1])
    answer: Answer = Field(examples=["present"])
    probability: float | None = Field(examples=[0.937])
    model_name: str = Field(examples=["kermany-resnet50"])
    model_version: str = Field(examples=["1.0.0"])
    content_at: datetime = Field(examples=[INSTANT])
    is_sent: bool = Field(description="False when the answer stays in the house.")
    built_at: datetime | None
    withdrawn_at: datetime | None = Field(
        None, description="Since then it counts no more: its model was recalled, or an image was rejected."
    )


class RegionBox(Schema):
    """A rectangle of one image, in whole pixels of the stored image from its top left corner."""

    model_config = ConfigDict(from_attributes=True, extra="forbid")
    instance_id: UUID = Field(examples=[INSTANCE_ID])
    left: int = Field(ge=0, le=65_535, examples=[812])
    top: int = Field(ge=0, le=65_535, examples=[1_130])
    right: int = Field(ge=1, le=65_535, examples=[1_240], description="Outside; the width is right - left.")
    bottom: int = Field(ge=1, le=65_535, examples=[1_600], description="Outside the rectangle.")

    @model_validator(mode="after")
    def _has_an_area(self) -> Self:
        if self.left >= self.right or self.top >= self.bottom:
            raise ValueError("left lies before right, and top above bottom")
        return self


class ReviewOut(Schema):
    """What one reader said about one report."""

    review_id: UUID = Field(examples=[REVIEW_ID])
    study_id: UUID = Field(examples=[STUDY_ID])
    report_id: UUID | None = Field(examples=[REPORT_ID])
    verdict: Verdict = Field(examples=["disagree"])
    corrected_finding: str | None = Field(examples=["normal"], description="What the reader sees instead.")
    comment: str = Field(examples=["Skin fold, not consolidation."])
    region: RegionBox | None
    is_blind: bool = Field(examples=[False], description="Given before the reader saw the model's answer.")
    reviewer: str = Field(examples=["Dr R. Reader"])
    reading: int = Field(examples=[1], description="1 = the first reader's word, 2 = the second reader's, ...")
    predecessor_id: UUID | None = Field(description="The same reader's review that this one takes the place of.")
    created_at: datetime = Field(examples=[INSTANT])


class ReviewStateOut(Schema):
    """Where the reading of a study's current report stands; its tag is the ETag of the answer."""

    tag: str = Field(examples=[f"{REPORT_ID}.{REVIEW_ID}"], description="Send it as If-Match with the next verdict.")
    report_id: UUID | None = Field(examples=[REPORT_ID])
    standing: list[ReviewOut] = Field(description="The last verdict of each reader who did not withdraw.")
    history: list[ReviewOut] = Field(description="Every word ever said about the study, the first one first.")


class StudyOut(Schema):
    """One study in full."""

    summary: StudyLine
    study_instance_uid: str = Field(examples=["1.2.826.0.1.3680043.8.498.3"])
    issuer_of_patient_id: str = Field(examples=["DEMO HOSPITAL"])
    patient_birth_date: str = Field(examples=["19700101"])
    patient_sex: str = Field(examples=["O"])
    study_description: str = Field(examples=["Chest PA"])
    purged_at: datetime | None
    images: list[ImageOut]
    reports: list[ReportOut]
    reviews: list[ReviewOut]


class StudySearch(Body):
    """Who or what is sought; at least one key. Sent as a body, so that no address names a patient."""

    patient_id: Annotated[str, Written] | None = Field(None, max_length=64, examples=["SYN-0417"])
    patient_name: Annotated[str, Written] | None = Field(
        None, max_length=64, examples=["ALDER"], description="Any part, in any case."
    )
    accession_number: Annotated[str, Written] | None = Field(None, max_length=64, examples=["A-220417"])
    limit: int = Field(50, ge=1, le=200)
    cursor: SentCursor = Field(
        None, min_length=1, max_length=200, examples=[CURSOR], description="From `next_cursor` of the page before."
    )


class NewReview(Body):
    """What a reader says about the study's current report."""

    study_id: UUID = Field(examples=[STUDY_ID])
    verdict: Verdict = Field(
        examples=["disagree"],
        description="`agree` needs an answer to agree with; `withdraw` takes the reader's own standing verdict back.",
    )
    corrected_finding: Literal["normal", "pneumonia", "other"] | None = Field(
        None,
        examples=["normal"],
        description="With `disagree` alone; may be left out where the answer was yes or no. `other` is another finding "
        "and no pneumonia: it counts, and is reported, as that. Who names what the model said is kept as `agree`.",
    )
    comment: Annotated[str, Written] = Field("", max_length=2000, examples=["Skin fold, not consolidation."])
    region: RegionBox | None = Field(None, description="Where in an image of the study.")
    is_blind: bool = Field(
        False,
        description="The reader has not seen the model's answer: `disagree` with the finding seen, or `unsure`. "
        "Kept only where `reviews.answer_first` hid it from who is logged in; the API hides nothing from a program.",
    )
    reviewer: Annotated[str, Written] | None = Field(
        None, min_length=1, max_length=64, examples=["Dr R. Reader"], description="Left out = who is logged in."
    )
    predecessor_id: UUID | None = Field(
        None, description="The reader's own review that is changed or withdrawn; left out = the one that stands."
    )


class ModelName(Schema):
    """One version of a model."""

    name: str = Field(max_length=64, examples=["chest-pneumonia"])
    version: str = Field(max_length=32, examples=["0.1.0"])


class ResultOut(PredictionOut):
    """One prediction of an image's newest judgement."""

    prediction_id: UUID = Field(examples=[PREDICTION_ID])
    study_id: UUID = Field(examples=[STUDY_ID])
    instance_id: UUID = Field(examples=[INSTANCE_ID])
    created_at: datetime
    superseded_at: datetime | None = Field(description="Since then another judgement stands; in a list always null.")


class InstanceLine(Schema):
    """One image as a list shows it."""

    instance_id: UUID = Field(examples=[INSTANCE_ID])
    study_id: UUID = Field(examples=[STUDY_ID])
    sop_instance_uid: str = Field(examples=["1.2.826.0.1.3680043.8.498.1"])
    sop_class_uid: str = Field(examples=["1.2.840.10008.5.1.4.1.1.1.1"])
    transfer_syntax_uid: str = Field(examples=["1.2.840.10008.1.2.1"])
    state: InstanceState = Field(examples=["analysed"])
    is_judged: bool = Field(examples=[True], description="False for what is stored and never judged.")
    size_bytes: int = Field(examples=[8_421_376])
    received_at: datetime = Field(examples=[INSTANT])


class WarningLine(WarningOut):
    """One warning of an image's newest judgement."""

    warning_id: UUID = Field(examples=[WARNING_ID])
    study_id: UUID = Field(examples=[STUDY_ID])
    instance_id: UUID = Field(examples=[INSTANCE_ID])
    created_at: datetime = Field(examples=[INSTANT])
    superseded_at: datetime | None = Field(description="Since then another judgement stands; in a list always null.")


class ReportLine(ReportOut):
    """One revision of a study's report as a list shows it."""

    study_id: UUID = Field(examples=[STUDY_ID])
    review_id: UUID | None = Field(description="The reader's review that this report verifies; null = the model's own.")


class DeliveryDetail(DeliveryOut):
    """One report on its way to one destination."""

    delivery_id: UUID = Field(examples=[DELIVERY_ID])
    study_id: UUID = Field(examples=[STUDY_ID])
    report_id: UUID = Field(examples=[REPORT_ID])
    revision: int = Field(examples=[1])
    review_id: UUID | None = Field(description="The reader's review that this report verifies; null = the model's own.")
    sop_class_uid: str | None = Field(examples=["1.2.840.10008.5.1.4.1.1.88.34"])
    sop_instance_uid: str | None = Field(examples=["2.25.1234567890"])
    created_at: datetime = Field(examples=[INSTANT])
    sent_at: datetime | None = Field(examples=[INSTANT])
