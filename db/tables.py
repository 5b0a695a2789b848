"""Every table of the audit database, in the order in which an image meets them.

Our ids are UUIDs, times are timezone-aware UTC. Patient attributes live in `studies` alone: everything else names a
study by our id.
"""

from __future__ import annotations

import enum
import secrets
import time
from datetime import UTC, date, datetime
from typing import Any, cast
from uuid import UUID

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    Enum,
    ForeignKey,
    Index,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy import Table as CoreTable
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC instant; SQLite, which knows no time zones, keeps it naive."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a time zone reached the database")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Table(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    type_annotation_map = {datetime: UtcDateTime(), dict[str, Any]: JSON(), list[dict[str, Any]]: JSON()}  # noqa: RUF012


def _names(kind: type[enum.StrEnum], *, is_checked: bool = True) -> Enum:
    """Store an enumeration by value as text with a CHECK (a copy needs none), so that both databases agree."""
    return Enum(
        kind, native_enum=False, length=32, values_callable=lambda k: [m.value for m in k], create_constraint=is_checked
    )


def rows_of(kind: type[Table]) -> CoreTable:
    """Return the Core table of a class, for statements whose speed counts (a C-STORE waits for them)."""
    return cast(CoreTable, kind.__table__)


_last_id = 0


def new_id() -> UUID:
    """Return a time-ordered UUID (version 7, RFC 9562): later rows sort later, and share a page of an index."""
    global _last_id
    # 48 bits of milliseconds, 12 of their fraction; never behind the last one, so that one process keeps its order.
    _last_id = max(_last_id + 1, time.time_ns() * 4096 // 1_000_000)
    millisecond, fraction = divmod(_last_id, 4096)
    return UUID(int=millisecond << 80 | 0x7 << 76 | fraction << 64 | 0b10 << 62 | secrets.randbits(62))


def _index_where(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    """Index only the rows that `where` chooses: the few that are asked for, or among which there may be only one."""
    return Index(name, *columns, unique=unique, sqlite_where=text(where), postgresql_where=text(where))


class InstanceState(enum.StrEnum):
    """Where an instance stands; all but WAITING are end states (rule 7)."""

    WAITING = "waiting"
    ANALYSED = "analysed"
    NOT_ANALYSED = "not_analysed"
    FAILED = "failed"


class Outcome(enum.StrEnum):
    """What became of one C-STORE that was answered with success, or whose bytes were kept."""

    NEW = "new"
    DUPLICATE = "duplicate"
    QUARANTINED = "quarantined"


class Hold(enum.StrEnum):
    """Why nothing about a study leaves the node until an admin decides."""

    IDENTITY_CONFLICT = "identity_conflict"
    UNIDENTIFIED = "unidentified"
    WITHDRAWN = "withdrawn"
    """An administrator took back what was said of it: it is another patient's, or should not have been said."""


class JobKind(enum.StrEnum):
    INFER = "infer"
    REPORT = "report"
    DELIVER = "deliver"


class JobState(enum.StrEnum):
    READY = "ready"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CLOSED = "closed"
    """A person decided that it stays undone; its subject stays as the failure left it."""


class Answer(enum.StrEnum):
    """The study's answer, see `pacs_node.report.answer`."""

    PRESENT = "present"
    ABSENT = "absent"
    UNDETERMINED = "undetermined"
    INCOMPLETE = "incomplete"
    NOT_ANALYSED = "not_analysed"


class DeliveryState(enum.StrEnum):
    WAITING = "waiting"
    SENT = "sent"
    HELD = "held"
    FAILED = "failed"
    WITHDRAWN = "withdrawn"
    """No longer said: nothing of it was sent, or the destination has been told as far as it wants to be."""


NOT_REVIEWED = -1
"""Of no report; below every revision, so that reviewed < current says: readers have not answered."""
PRIOR = "prior"
"""Reason of a HELD delivery: the study is old (a prior, a migration); its report is not sent by itself."""


class ObjectKind(enum.StrEnum):
    """What a SOP Instance of ours is."""

    SR = "sr"
    HEATMAP = "heatmap"
    GSPS = "gsps"
    SEG = "seg"
    REJECTION = "rejection"


class Verdict(enum.StrEnum):
    AGREE = "agree"
    DISAGREE = "disagree"
    UNSURE = "unsure"
    COMMENT = "comment"
    """Words beside a verdict; they neither stand nor fall with one."""
    WITHDRAW = "withdraw"
    """Takes the reader's own standing verdict back."""


class Role(enum.StrEnum):
    """What an account or a token may be; nobody is given PUBLIC, it is what everyone has."""

    PUBLIC = "public"
    RADIOLOGIST = "radiologist"
    ADMIN = "admin"
    SERVICE = "service"


class ModelState(enum.StrEnum):
    AVAILABLE = "available"
    ACTIVE = "active"


class Installation(Table):
    """One row, written by the first migration: two nodes on one PACS must never make the same UID."""

    __tablename__ = "installation"
    id: Mapped[int] = mapped_column(primary_key=True)
    installation_id: Mapped[UUID]
    created_at: Mapped[datetime]


class Association(Table):
    """A DICOM association that a listener accepted."""

    __tablename__ = "associations"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    listener: Mapped[str] = mapped_column(String(64), index=True)
    calling_ae_title: Mapped[str] = mapped_column(String(16))
    called_ae_title: Mapped[str] = mapped_column(String(16))
    peer_address: Mapped[str] = mapped_column(String(64))
    opened_at: Mapped[datetime]
    seen_at: Mapped[datetime]
    """Last heartbeat of its listener; a dead listener's associations count as released."""
    released_at: Mapped[datetime | None] = mapped_column(index=True)
    end: Mapped[str | None] = mapped_column(String(16))
    """released, aborted or lost"""


class RefusedContext(Table):
    """What a sender proposed in vain on one local day of the listener; `db.facts.refusals` bounds its rows."""

    __tablename__ = "refused_contexts"
    day: Mapped[date] = mapped_column(primary_key=True)
    calling_ae_title: Mapped[str] = mapped_column(String(16), primary_key=True)
    abstract_syntax: Mapped[str] = mapped_column(String(64), primary_key=True)
    reason: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """Result of a presentation context (PS3.8 Table 9-18)."""
    associations: Mapped[int]
    empty_associations: Mapped[int]
    """Of these, the ones in which nothing but Verification was accepted: no object can have come."""
    last_at: Mapped[datetime]


INSTITUTION_LENGTH = 64
WORKLIST_COLUMNS = (
    *("first_received_at", "id", "answer", "probability", "model_version", "calling_ae_title", "priority"),
    *("revision", "reviewed_revision", "hold", "unreported_since", "institution"),
)
"""The order of a worklist, then what its filters ask: a page is found in one index, whatever is filtered."""
OPEN_COLUMNS = (*WORKLIST_COLUMNS, "asked_revision", "last_received_at")
"""The same of the studies that readers have yet to answer, and what tells where in the list they stand."""
SUSPECTED_COLUMNS = ("probability", "id", "answer", "priority", "revision", "reviewed_revision", "asked_revision")
"""Of those studies too, for what stands in the order of the probability."""


class Study(Table):
    """Patient attributes are unbounded text: peers send longer values than their VR allows (PS3.5 6.2)."""

    __tablename__ = "studies"
    __table_args__ = (
        _index_where("ix_studies_not_purged", "last_received_at", where="purged_at IS NULL"),
        _index_where("ix_studies_unreported", "unreported_since", where="unreported_since IS NOT NULL"),
        Index("ix_studies_worklist", *WORKLIST_COLUMNS),
        _index_where("ix_studies_open", *OPEN_COLUMNS, where="reviewed_revision <> revision"),
        _index_where("ix_studies_suspected", *SUSPECTED_COLUMNS, where="reviewed_revision <> revision"),
        Index(None, "calling_ae_title", "first_received_at", "id"),
        Index(None, "priority", "first_received_at", "id"),
        Index(None, "probability", "id"),
    )
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    study_instance_uid: Mapped[str] = mapped_column(String(64), unique=True)
    patient_id: Mapped[str] = mapped_column(Text, index=True)
    issuer_of_patient_id: Mapped[str] = mapped_column(Text)
    patient_name: Mapped[str] = mapped_column(Text)
    patient_birth_date: Mapped[str] = mapped_column(Text)
    patient_sex: Mapped[str] = mapped_column(Text)
    accession_number: Mapped[str] = mapped_column(Text, index=True)
    study_date: Mapped[date | None]
    study_description: Mapped[str] = mapped_column(Text)
    calling_ae_title: Mapped[str] = mapped_column(String(16))
    """Who sent its first image."""
    institution: Mapped[str] = mapped_column(String(INSTITUTION_LENGTH), default="")
    """Whose its first image is, in the one spelling that groups are compared in (`db.facts.visibility`)."""
    priority: Mapped[int] = mapped_column(default=0)
    first_received_at: Mapped[datetime]
    last_received_at: Mapped[datetime]
    hold: Mapped[Hold | None] = mapped_column(_names(Hold))
    unreported_since: Mapped[datetime | None]
    """When its facts first changed after the last report was frozen; NULL = nothing to report."""
    revision: Mapped[int] = mapped_column(default=0)
    """Of the current report; 0 = none yet."""
    answer: Mapped[Answer | None] = mapped_column(_names(Answer, is_checked=False))
    """Of the current report, as are the next two: a copy, so that a worklist is filtered without a look elsewhere."""
    probability: Mapped[float | None]
    model_version: Mapped[str | None] = mapped_column(String(32))
    reviewed_revision: Mapped[int] = mapped_column(default=NOT_REVIEWED)
    """The current report is reviewed while this is its revision."""
    asked_revision: Mapped[int] = mapped_column(default=NOT_REVIEWED)
    """What readers said of the current report asks for another reader while this is its revision."""
    purged_at: Mapped[datetime | None]
    """When the bytes of all its images went; NULL again as soon as one comes."""


class Series(Table):
    __tablename__ = "series"
    __table_args__ = (UniqueConstraint("study_id", "series_instance_uid"),)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    study_id: Mapped[UUID] = mapped_column(ForeignKey("studies.id"))
    series_instance_uid: Mapped[str] = mapped_column(String(64))
    modality: Mapped[str] = mapped_column(String(16))


class Instance(Table):
    """One SOP Instance, stored once, with its end state."""

    __tablename__ = "instances"
    __table_args__ = (Index(None, "state", "received_at", "id"), Index(None, "received_at", "id"))
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    study_id: Mapped[UUID] = mapped_column(ForeignKey("studies.id"), index=True)
    series_id: Mapped[UUID] = mapped_column(ForeignKey("series.id"), index=True)
    association_id: Mapped[UUID | None] = mapped_column(ForeignKey("associations.id"), index=True)
    sop_instance_uid: Mapped[str] = mapped_column(String(64), unique=True)
    sop_class_uid: Mapped[str] = mapped_column(String(64))
    transfer_syntax_uid: Mapped[str] = mapped_column(String(64))
    digest: Mapped[str] = mapped_column(String(64))
    """SHA-256 of the data set without its file meta."""
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    path: Mapped[str] = mapped_column(String(256), unique=True)
    """Key in the object store."""
    received_at: Mapped[datetime]
    state: Mapped[InstanceState] = mapped_column(_names(InstanceState))
    is_judged: Mapped[bool]
    """False for what is stored and never judged (our own objects, DERIVED\\SECONDARY, states, FOR PROCESSING)."""
    voi: Mapped[str | None] = mapped_column(String(32))
    """Which VOI path the preprocessing took."""
    device: Mapped[str] = mapped_column(String(129), default="")
    """Manufacturer and model of what took it, as the worker read them; empty = not stated, or not judged."""
    view: Mapped[str] = mapped_column(String(16), default="")
    """PA or AP; empty as above."""
    gone_at: Mapped[datetime | None]
    """Since when its bytes are known to be gone, purged or lost; NULL = they are here."""


class Receipt(Table):
    """One reception: received = new + duplicate + quarantined adds up here."""

    __tablename__ = "receipts"
    __table_args__ = (Index(None, "outcome", "received_at"), Index(None, "received_at"))
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    association_id: Mapped[UUID | None] = mapped_column(ForeignKey("associations.id"), index=True)
    instance_id: Mapped[UUID | None] = mapped_column(ForeignKey("instances.id"), index=True)
    outcome: Mapped[Outcome] = mapped_column(_names(Outcome))
    reason: Mapped[str] = mapped_column(Text, default="")
    path: Mapped[str | None] = mapped_column(String(256))
    """Of quarantined bytes, until they are purged."""
    digest: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    received_at: Mapped[datetime]


class Job(Table):
    """See `db.queue` for the state machine."""

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("kind", "subject_id"),
        Index(None, "state", "kind", "priority", "due_at"),
        CheckConstraint("(state = 'running') = (lease_until IS NOT NULL)", name="lease"),
    )
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    kind: Mapped[JobKind] = mapped_column(_names(JobKind))
    subject_id: Mapped[UUID]
    """The instance to infer, the report to build or the delivery to make."""
    study_id: Mapped[UUID] = mapped_column(ForeignKey("studies.id"), index=True)
    state: Mapped[JobState] = mapped_column(_names(JobState))
    priority: Mapped[int] = mapped_column(default=0)
    attempts: Mapped[int] = mapped_column(default=0)
    """Ended by an error."""
    crashes: Mapped[int] = mapped_column(default=0)
    """Ended by a lost lease: its worker died or hung."""
    created_at: Mapped[datetime]
    due_at: Mapped[datetime]
    lease_owner: Mapped[str | None] = mapped_column(String(64))
    lease_until: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    error: Mapped[str | None] = mapped_column(Text)


PREDICTION_COLUMNS = ("created_at", "id", "finding", "probability", "model_version", "instance_id")
"""The order of a list of results, then what its filters ask."""


class Prediction(Table):
    """What the model said; a newer judgement supersedes it, nothing is deleted."""

    __tablename__ = "predictions"
    __table_args__ = (
        _index_where("ix_predictions_current", "instance_id", "finding", where="superseded_at IS NULL", unique=True),
        _index_where("ix_predictions_listed", *PREDICTION_COLUMNS, where="superseded_at IS NULL"),
        CheckConstraint("probability BETWEEN 0 AND 1", name="probability"),
        CheckConstraint("confidence BETWEEN 50 AND 100", name="confidence"),
    )
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    instance_id: Mapped[UUID] = mapped_column(ForeignKey("instances.id"))
    finding: Mapped[str] = mapped_column(String(64))
    probability: Mapped[float]
    """In [0, 1]."""
    confidence: Mapped[float]
    """100 max(p, 1 - p), percent."""
    threshold: Mapped[float]
    abstain_low: Mapped[float]
    abstain_high: Mapped[float]
    model_name: Mapped[str] = mapped_column(String(64))
    model_version: Mapped[str] = mapped_column(String(32))
    processing_time_ms: Mapped[float]
    """From the start of its decoding to its probability; the forward pass is shared by its batch."""
    created_at: Mapped[datetime]
    superseded_at: Mapped[datetime | None]
    """NULL = of the newest judgement."""


class Warning(Table):
    """A coded remark about one instance; `forbids` = the reason why there is no answer."""

    __tablename__ = "warnings"
    __table_args__ = (
        _index_where("ix_warnings_current", "instance_id", "code", where="superseded_at IS NULL", unique=True),
        _index_where("ix_warnings_coded", "code", "created_at", "id", "instance_id", where="superseded_at IS NULL"),
        _index_where("ix_warnings_listed", "created_at", "id", where="superseded_at IS NULL"),
    )
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    instance_id: Mapped[UUID] = mapped_column(ForeignKey("instances.id"))
    code: Mapped[str] = mapped_column(String(64))
    severity: Mapped[str] = mapped_column(String(16))
    text: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime]
    superseded_at: Mapped[datetime | None]
    """NULL = of the newest judgement."""


class Device(Table):
    """A device model whose images this node has judged; no patient and no single device."""

    __tablename__ = "devices"
    __table_args__ = (UniqueConstraint("manufacturer", "model_name", "detector_type"),)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    manufacturer: Mapped[str] = mapped_column(String(64))
    model_name: Mapped[str] = mapped_column(String(64))
    detector_type: Mapped[str] = mapped_column(String(64))
    first_instance_id: Mapped[UUID] = mapped_column(ForeignKey("instances.id"))
    """Its image says so."""
    first_seen_at: Mapped[datetime]


class Report(Table):
    """A frozen answer: what it says is decided here, before any DICOM object is built from it."""

    __tablename__ = "reports"
    __table_args__ = (
        UniqueConstraint("study_id", "revision"),
        Index(None, "answer", "content_at", "id"),
        Index(None, "content_at", "id"),
        _index_where("ix_reports_unbuilt", "study_id", where="built_at IS NULL"),
        _index_where("ix_reports_withdrawn", "study_id", "revision", where="withdrawn_at IS NOT NULL"),
        _index_where("ix_reports_review_id", "review_id", where="review_id IS NOT NULL", unique=True),
    )
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    study_id: Mapped[UUID] = mapped_column(ForeignKey("studies.id"))
    revision: Mapped[int]
    predecessor_id: Mapped[UUID | None] = mapped_column(ForeignKey("reports.id"))
    answer: Mapped[Answer] = mapped_column(_names(Answer))
    probability: Mapped[float | None]
    contents: Mapped[dict[str, Any]]
    """{"images": [{"instance_id", "state", "prediction_ids": [...], "codes": [...]}, ...]} in order of reception."""
    images: Mapped[list[dict[str, Any]]]
    """The same images by value (`db.facts.images`), so that building twice says the same whatever happened since."""
    codes: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """Codes that the configuration named then, in place of the shipped ones; NULL = none."""
    model_name: Mapped[str] = mapped_column(String(64))
    model_version: Mapped[str] = mapped_column(String(32))
    content_at: Mapped[datetime]
    """ContentDate and ContentTime."""
    is_sent: Mapped[bool]
    """False when the answer stays in the house (no chest in the study, nothing said before; or wanted nowhere)."""
    built_at: Mapped[datetime | None]
    review_id: Mapped[UUID | None]
    """Whose word it is: NULL = the model's. No foreign key, for reviews point here."""
    withdrawn_at: Mapped[datetime | None]
    """Since then nothing of it leaves the node: its model was recalled, or a sender rejected an image of it."""
    withdrawal: Mapped[str | None] = mapped_column(String(32))
    """Code value of the reason (PS3.16 CID 7011)."""
    replaced_id: Mapped[UUID | None]
    """The same reader's report that this one takes the place of; NULL = the first, or the model's. No foreign key, for
    SQLite adds none to a table that others point at."""


class Delivery(Table):
    """A report on its way to one destination, with everything that this destination gets of it."""

    __tablename__ = "deliveries"
    __table_args__ = (
        UniqueConstraint("report_id", "destination"),
        Index(None, "state", "created_at", "id"),
        Index(None, "created_at", "id"),
        Index(None, "destination", "sent_at"),
        _index_where("ix_deliveries_commit_due_at", "commit_due_at", where="commit_due_at IS NOT NULL"),
    )
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    report_id: Mapped[UUID] = mapped_column(ForeignKey("reports.id"))
    destination: Mapped[str] = mapped_column(String(64))
    state: Mapped[DeliveryState] = mapped_column(_names(DeliveryState))
    reason: Mapped[str] = mapped_column(Text, default="")
    """Why it is held, or what the peer said last."""
    sop_class_uid: Mapped[str | None] = mapped_column(String(64))
    """What the destination accepted; kept, so that a retry never sends another UID."""
    sop_instance_uid: Mapped[str | None] = mapped_column(String(64), index=True)
    created_at: Mapped[datetime]
    sent_at: Mapped[datetime | None]
    commit_due_at: Mapped[datetime | None]
    """When the destination is asked (again) whether it keeps what it got; NULL = nothing to ask."""
    commit_asked: Mapped[int] = mapped_column(default=0)
    """How often it was asked since it last answered."""
    commit_failures: Mapped[int] = mapped_column(default=0)
    """How often it answered that it does not keep everything."""
    archived_at: Mapped[datetime | None]
    """When it had promised to keep everything (storage commitment)."""
    withdrawn_at: Mapped[datetime | None]
    """When the node decided that this result must no longer be shown there."""
    withdrawal: Mapped[str | None] = mapped_column(String(32))
    """Why: the code value of the rejection note's title (PS3.16 CID 7011)."""


class DeliveredObject(Table):
    """One object of a delivery: stored by the destination, refused by it, or to be sent to it again."""

    __tablename__ = "delivered_objects"
    delivery_id: Mapped[UUID] = mapped_column(ForeignKey("deliveries.id"), primary_key=True)
    sop_instance_uid: Mapped[str] = mapped_column(String(64), primary_key=True, index=True)
    sop_class_uid: Mapped[str] = mapped_column(String(64))
    kind: Mapped[ObjectKind] = mapped_column(_names(ObjectKind))
    sent_at: Mapped[datetime | None]
    """NULL: refused, or, without a refusal, to be sent again."""
    refusal: Mapped[str] = mapped_column(Text, default="")
    archived_at: Mapped[datetime | None]


class Commitment(Table):
    """One question to a destination whether it keeps what it got (PS3.4 J.3.2), under its Transaction UID."""

    __tablename__ = "commitments"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    transaction_uid: Mapped[str] = mapped_column(String(64), unique=True)
    destination: Mapped[str] = mapped_column(String(64))
    asked_at: Mapped[datetime]
    answered_at: Mapped[datetime | None]


class CommitmentRequest(Table):
    """One question of a peer whether this node keeps what the peer sent; answered later, on an association of ours."""

    __tablename__ = "commitment_requests"
    __table_args__ = (
        UniqueConstraint("calling_ae_title", "transaction_uid"),
        _index_where("ix_commitment_requests_due_at", "due_at", where="due_at IS NOT NULL"),
    )
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    calling_ae_title: Mapped[str] = mapped_column(String(16))
    transaction_uid: Mapped[str] = mapped_column(String(64))
    objects: Mapped[list[dict[str, Any]]]
    """{"sop_class_uid", "sop_instance_uid"}"""
    received_at: Mapped[datetime]
    due_at: Mapped[datetime | None]
    """NULL = answered, or given up."""
    attempts: Mapped[int] = mapped_column(default=0)
    answered_at: Mapped[datetime | None]


class Recall(Table):
    """A report that was called back because of what its model said."""

    __tablename__ = "recalls"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    report_id: Mapped[UUID] = mapped_column(ForeignKey("reports.id"), unique=True)
    model_name: Mapped[str] = mapped_column(String(64))
    model_version: Mapped[str] = mapped_column(String(32))
    actor: Mapped[str] = mapped_column(String(64))
    recalled_at: Mapped[datetime]


class RecalledModel(Table):
    """A version whose word was taken back: what it says yet is not recorded, until it is activated again."""

    __tablename__ = "recalled_models"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[str] = mapped_column(String(32), primary_key=True)
    actor: Mapped[str] = mapped_column(String(64))
    recalled_at: Mapped[datetime]


class RejectedObject(Table):
    """An object that a peer rejected by a Key Object note (IHE IOCM), known here or not yet; a row for each peer."""

    __tablename__ = "rejected_objects"
    study_instance_uid: Mapped[str] = mapped_column(String(64), primary_key=True)
    sop_instance_uid: Mapped[str] = mapped_column(String(64), primary_key=True, index=True)
    code: Mapped[str] = mapped_column(String(32))
    """The code value of the note's title (PS3.16 CID 7011)."""
    note_uid: Mapped[str] = mapped_column(String(64))
    calling_ae_title: Mapped[str] = mapped_column(String(16), primary_key=True)
    is_trusted: Mapped[bool]
    """Its sender may reject what others sent; else the note counts for its own images alone."""
    received_at: Mapped[datetime]
    applied_at: Mapped[datetime | None]
    """When the image was taken out of its study's answer; NULL = it has not come, or the note does not count."""


class OwnObject(Table):
    """A SOP Instance this node made, so that it is recognised when a PACS sends it back."""

    __tablename__ = "own_objects"
    sop_instance_uid: Mapped[str] = mapped_column(String(64), primary_key=True)
    report_id: Mapped[UUID] = mapped_column(ForeignKey("reports.id"), index=True)
    kind: Mapped[ObjectKind] = mapped_column(_names(ObjectKind))
    sop_class_uid: Mapped[str] = mapped_column(String(64))
    path: Mapped[str] = mapped_column(String(256))
    digest: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]


class Heatmap(Table):
    """Where in an image a model version saw its finding: a grey PNG in the object store, 0 to 255 for 0 to 1."""

    __tablename__ = "heatmaps"
    instance_id: Mapped[UUID] = mapped_column(ForeignKey("instances.id"), primary_key=True)
    model_name: Mapped[str] = mapped_column(String(64), primary_key=True)
    model_version: Mapped[str] = mapped_column(String(32), primary_key=True)
    path: Mapped[str] = mapped_column(String(256))
    created_at: Mapped[datetime]


class Review(Table):
    __tablename__ = "reviews"
    __table_args__ = (Index(None, "created_at", "id"),)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    study_id: Mapped[UUID] = mapped_column(ForeignKey("studies.id"), index=True)
    report_id: Mapped[UUID | None] = mapped_column(ForeignKey("reports.id"), index=True)
    verdict: Mapped[Verdict] = mapped_column(_names(Verdict))
    comment: Mapped[str] = mapped_column(Text, default="")
    reviewer: Mapped[str] = mapped_column(String(64))
    predecessor_id: Mapped[UUID | None] = mapped_column(ForeignKey("reviews.id"), unique=True)
    """The same reader's review that this one takes the place of; no review is changed or deleted."""
    reading: Mapped[int] = mapped_column(default=1)
    """1 = the first reader's word, 2 = the second reader's, ..."""
    corrected_finding: Mapped[str | None] = mapped_column(String(64))
    region: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """{"instance_id", "left", "top", "right", "bottom"}: a rectangle of whole pixels, the far edges outside it."""
    is_blind: Mapped[bool] = mapped_column(default=False)
    """Given before its reader saw the model's answer."""
    created_at: Mapped[datetime]


class ModelVersion(Table):
    __tablename__ = "model_versions"
    __table_args__ = (
        UniqueConstraint("name", "version"),
        _index_where("ix_model_versions_one_active", "state", where="state = 'active'", unique=True),
    )
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(64))
    version: Mapped[str] = mapped_column(String(32))
    weights_sha256: Mapped[str] = mapped_column(String(64))
    state: Mapped[ModelState] = mapped_column(_names(ModelState))
    added_at: Mapped[datetime]
    activated_at: Mapped[datetime | None]


class AuditEvent(Table):
    """Appended with its fact; numbered and chained later by the one sealer (`db.audit`)."""

    __tablename__ = "audit_events"
    __table_args__ = (Index(None, "action", "at", "id"), Index(None, "actor", "at", "id"), Index(None, "at", "id"))
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    at: Mapped[datetime]
    action: Mapped[str] = mapped_column(String(64))
    actor: Mapped[str] = mapped_column(String(64))
    subject_id: Mapped[UUID | None] = mapped_column(index=True)
    details: Mapped[dict[str, Any]]
    sequence: Mapped[int | None] = mapped_column(BigInteger, unique=True)
    link: Mapped[str | None] = mapped_column(String(64))
    """HMAC-SHA256 over the previous link and this event; NULL = not sealed yet."""


class AuditHead(Table):
    """One row: where the chain ends, so that cutting off its tail is found."""

    __tablename__ = "audit_head"
    id: Mapped[int] = mapped_column(primary_key=True)
    sequence: Mapped[int] = mapped_column(BigInteger)
    link: Mapped[str] = mapped_column(String(64))
    mac: Mapped[str] = mapped_column(String(64))
    """HMAC-SHA256 over sequence and link: an earlier link alone cannot be put here."""


class TaskLock(Table):
    """A scheduled task runs on one machine at a time."""

    __tablename__ = "task_locks"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    holder: Mapped[str] = mapped_column(String(64))
    held_until: Mapped[datetime]


class AccountRow(Table):
    """A person who may log in: by a password of this node, or by the hospital's account."""

    __tablename__ = "accounts"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    """In lower case: `Anna` and `anna` are one person."""
    password_hash: Mapped[str | None] = mapped_column(String(256))
    """Argon2id in PHC format, parameters and salt included; NULL = no password yet, or never one of this node."""
    hospital_id: Mapped[str | None] = mapped_column(String(512), unique=True)
    """Issuer and subject of an OpenID Connect login; NULL = local."""
    roles: Mapped[str] = mapped_column(String(64))
    """Names of `Role` with a space between them."""
    groups: Mapped[str] = mapped_column(Text, default="")
    """Names of `[[web.groups]]` with a space between them."""
    failed_logins: Mapped[int] = mapped_column(default=0)
    """In a row, since the last success or rest."""
    rests_until: Mapped[datetime | None]
    is_locked: Mapped[bool] = mapped_column(default=False)
    """By an administrator, until one opens it."""
    created_at: Mapped[datetime]
    last_login_at: Mapped[datetime | None]


class WebSession(Table):
    """A browser in which somebody is logged in; the row goes at logout."""

    __tablename__ = "web_sessions"
    token_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    """The cookie itself is nowhere but in the browser."""
    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"), index=True)
    created_at: Mapped[datetime]
    seen_at: Mapped[datetime]
    confirmed_at: Mapped[datetime | None]
    """When the person last showed their password anew; NULL = not since the login."""


class AccountLink(Table):
    """A one-time link by which a person chooses a password; the row goes when it is used."""

    __tablename__ = "account_links"
    token_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    account_id: Mapped[UUID | None] = mapped_column(ForeignKey("accounts.id"), index=True)
    """NULL = makes the first administrator."""
    expires_at: Mapped[datetime]


class ApiToken(Table):
    """What a program shows in place of a login; it stays listed after it was revoked."""

    __tablename__ = "api_tokens"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    token_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    roles: Mapped[str] = mapped_column(String(64))
    groups: Mapped[str] = mapped_column(Text, default="")
    created_by: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
