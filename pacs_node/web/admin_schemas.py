"""What administrators send and get: models, recalls, exports, jobs, quarantine and the audit trail."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import AwareDatetime, ConfigDict, Field

from db.facts import ClosingReason
from db.queue import JobKind, JobState
from db.tables import ModelState
from pacs_node.web.schemas import INSTANCE_ID, INSTANT, STUDY_ID, Body, ModelName, Schema


class ModelVersionOut(Schema):
    """One version of a model in the books."""

    model_config = ConfigDict(from_attributes=True, protected_namespaces=())
    model_version_id: UUID
    name: str = Field(examples=["kermany-resnet50"])
    version: str = Field(examples=["1.0.0"])
    weights_sha256: str = Field(examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"])
    state: ModelState = Field(examples=["active"])
    added_at: datetime = Field(examples=[INSTANT])
    activated_at: datetime | None = Field(examples=[INSTANT], description="When it last became the one that answers.")


class NewRollback(Body):
    """Which version is to be put back."""

    to: ModelName | None = Field(None, description="Refused where another one answered before; left out = whichever.")


class ActivationOut(Schema):
    """Which version answers from now on, and which did until now."""

    active: ModelName
    before: ModelName


class NewRecall(Body):
    """Which of a version's answers are taken back, and whether they are judged anew."""

    since: AwareDatetime | None = Field(None, examples=[INSTANT], description="Said then or later; left out = all.")
    dry_run: bool = Field(True, description="Only say what would be done.")
    replace: bool = Field(True, description="`false`: nothing is judged anew; what was said is only rejected.")


class RecallOut(Schema):
    """What a recall came to; in a dry run, what it would come to."""

    dry_run: bool
    reports: int = Field(description="All that say what this version said.")
    recalled: int = Field(description="Of these, the ones that were not recalled before.")
    replaced: int = Field(description="Judged anew, so that a revision follows wherever the report was sent.")
    noted: int = Field(description="Rejection notes.")
    judged_anew: int = Field(description="Images.")
    awaited: int = Field(description="Recalled earlier; the replacement is on its way.")
    left: dict[str, int] = Field(description="By destination: results that stay there, to be taken out by hand.")


class NewTrainingExport(Body):
    """Which reviewed studies become training data."""

    since: AwareDatetime | None = Field(None, examples=[INSTANT], description="Reviewed then or later; left out = all.")
    accept_unstated: bool = Field(
        False, description="Also images whose header does not say whether text is burned in: somebody has looked."
    )


class TrainingExportOut(Schema):
    """Where the newest training export stands."""

    state: Literal["none", "running", "ready", "failed"] = Field(examples=["ready"])
    name: str = Field(examples=["training-20261120-120000"])
    said: list[str] = Field(
        examples=[["214 images of 180 patients (96 NORMAL, 118 PNEUMONIA)"]],
        description="What is in it and what stayed behind, or why there is none.",
    )


class AuditOut(Schema):
    """One event of the audit trail."""

    id: UUID
    at: datetime = Field(examples=[INSTANT])
    action: str = Field(examples=["study_viewed"])
    actor: str = Field(examples=["user:reader"])
    subject_id: UUID | None = Field(examples=[STUDY_ID], description="What it was done to.")
    details: dict[str, Any] = Field(examples=[{"what": "detail"}])
    sequence: int | None = Field(examples=[4_711], description="Its place in the sealed chain; null = not sealed yet.")


class ChainOut(Schema):
    """Whether the audit trail is whole."""

    unbroken: bool
    detail: str = Field(examples=["The chain is unbroken: 4711 events, checked just now; 3 not sealed yet."])


class EchoOut(Schema):
    """Whether a destination is there."""

    state: Literal["answers", "silent"] = Field(examples=["answers"])
    detail: str = Field(examples=["main answered."])


class Done(Schema):
    """What an administrator's action set going."""

    study_id: UUID = Field(examples=[STUDY_ID])
    subject_id: UUID = Field(examples=[INSTANCE_ID], description="What it was done to.")
    detail: str = Field(examples=["The image waits to be judged again."])


class QuarantinedOut(Schema):
    """Bytes that were kept apart: unreadable, or other content under a known SOP Instance UID."""

    receipt_id: UUID
    instance_id: UUID | None = Field(description="The first copy, where there is one.")
    reason: str = Field(examples=["unreadable"])
    size_bytes: int = Field(examples=[8_421_376])
    received_at: datetime
    is_purged: bool = Field(description="Its bytes are gone, after `store.quarantine_days`; this row stays.")


class NewClosing(Body):
    """Why a failed job is not to be done any more."""

    reason: ClosingReason = Field(examples=["sent_by_mistake"])


class JobOut(Schema):
    """One piece of work of the queue."""

    id: UUID
    kind: JobKind
    subject_id: UUID = Field(description="The instance to infer, the report to build or the delivery to make.")
    study_id: UUID
    state: JobState
    priority: int = Field(examples=[0])
    attempts: int = Field(examples=[1], description="Ended by an error.")
    crashes: int = Field(examples=[0], description="Ended by a lost lease.")
    created_at: datetime
    due_at: datetime
    finished_at: datetime | None
    error: str | None = Field(examples=["no association"])
