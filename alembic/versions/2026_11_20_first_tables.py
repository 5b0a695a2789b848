"""The first tables, and the id of this installation."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "2026_11_20"
down_revision = None
branch_labels = None
depends_on = None

_UTC = sa.DateTime(timezone=True)
_CURRENT = sa.text("superseded_at IS NULL")
_NOT_PURGED = sa.text("purged_at IS NULL")
_UNREPORTED = sa.text("unreported_since IS NOT NULL")
_ACTIVE = sa.text("state = 'active'")


def _names(name: str, *values: str) -> sa.Enum:
    return sa.Enum(*values, name=name, native_enum=False, create_constraint=True, length=32)


def upgrade() -> None:
    op.create_table(
        "associations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("listener", sa.String(length=64), nullable=False),
        sa.Column("calling_ae_title", sa.String(length=16), nullable=False),
        sa.Column("called_ae_title", sa.String(length=16), nullable=False),
        sa.Column("peer_address", sa.String(length=64), nullable=False),
        sa.Column("opened_at", _UTC, nullable=False),
        sa.Column("seen_at", _UTC, nullable=False),
        sa.Column("released_at", _UTC, nullable=True),
        sa.Column("end", sa.String(length=16), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_associations")),
    )
    op.create_index("ix_associations_listener", "associations", ["listener"])
    op.create_index("ix_associations_released_at", "associations", ["released_at"])
    op.create_table(
        "audit_events",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("at", _UTC, nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("subject_id", sa.Uuid(), nullable=True),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=True),
        sa.Column("link", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_events")),
        sa.UniqueConstraint("sequence", name=op.f("uq_audit_events_sequence")),
    )
    op.create_index("ix_audit_events_action", "audit_events", ["action"])
    op.create_index("ix_audit_events_at", "audit_events", ["at"])
    op.create_index("ix_audit_events_subject_id", "audit_events", ["subject_id"])
    op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("link", sa.String(length=64), nullable=False),
        sa.Column("mac", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_head")),
    )
    op.create_table(
        "installation",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("installation_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", _UTC, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_installation")),
    )
    op.create_table(
        "model_versions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=32), nullable=False),
        sa.Column("weights_sha256", sa.String(length=64), nullable=False),
        sa.Column("state", _names("modelstate", "available", "active"), nullable=False),
        sa.Column("added_at", _UTC, nullable=False),
        sa.Column("activated_at", _UTC, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model_versions")),
        sa.UniqueConstraint("name", "version", name=op.f("uq_model_versions_name_version")),
    )
    op.create_index(
        "ix_model_versions_one_active",
        "model_versions",
        ["state"],
        unique=True,
        sqlite_where=_ACTIVE,
        postgresql_where=_ACTIVE,
    )
    op.create_table(
        "studies",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("patient_id", sa.Text(), nullable=False),
        sa.Column("issuer_of_patient_id", sa.Text(), nullable=False),
        sa.Column("patient_name", sa.Text(), nullable=False),
        sa.Column("patient_birth_date", sa.Text(), nullable=False),
        sa.Column("patient_sex", sa.Text(), nullable=False),
        sa.Column("accession_number", sa.Text(), nullable=False),
        sa.Column("study_date", sa.Date(), nullable=True),
        sa.Column("study_description", sa.Text(), nullable=False),
        sa.Column("calling_ae_title", sa.String(length=16), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("first_received_at", _UTC, nullable=False),
        sa.Column("last_received_at", _UTC, nullable=False),
        sa.Column("hold", _names("hold", "identity_conflict", "unidentified"), nullable=True),
        sa.Column("unreported_since", _UTC, nullable=True),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("purged_at", _UTC, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_studies")),
        sa.UniqueConstraint("study_instance_uid", name=op.f("uq_studies_study_instance_uid")),
    )
    op.create_index("ix_studies_accession_number", "studies", ["accession_number"])
    op.create_index("ix_studies_first_received_at", "studies", ["first_received_at"])
    op.create_index(
        "ix_studies_not_purged",
        "studies",
        ["last_received_at"],
        sqlite_where=_NOT_PURGED,
        postgresql_where=_NOT_PURGED,
    )
    op.create_index("ix_studies_patient_id", "studies", ["patient_id"])
    op.create_index(
        "ix_studies_unreported",
        "studies",
        ["unreported_since"],
        sqlite_where=_UNREPORTED,
        postgresql_where=_UNREPORTED,
    )
    op.create_table(
        "task_locks",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("holder", sa.String(length=64), nullable=False),
        sa.Column("held_until", _UTC, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_task_locks")),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", _names("jobkind", "infer", "report", "deliver"), nullable=False),
        sa.Column("subject_id", sa.Uuid(), nullable=False),
        sa.Column("study_id", sa.Uuid(), nullable=False),
        sa.Column("state", _names("jobstate", "ready", "running", "done", "failed"), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("crashes", sa.Integer(), nullable=False),
        sa.Column("created_at", _UTC, nullable=False),
        sa.Column("due_at", _UTC, nullable=False),
        sa.Column("lease_owner", sa.String(length=64), nullable=True),
        sa.Column("lease_until", _UTC, nullable=True),
        sa.Column("finished_at", _UTC, nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.CheckConstraint("(state = 'running') = (lease_until IS NOT NULL)", name=op.f("ck_jobs_lease")),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name=op.f("fk_jobs_study_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        sa.UniqueConstraint("kind", "subject_id", name=op.f("uq_jobs_kind_subject_id")),
    )
    op.create_index("ix_jobs_state_kind_due_at", "jobs", ["state", "kind", "due_at"])
    op.create_index("ix_jobs_study_id", "jobs", ["study_id"])
    op.create_table(
        "reports",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("study_id", sa.Uuid(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("predecessor_id", sa.Uuid(), nullable=True),
        sa.Column(
            "answer",
            _names("answer", "present", "absent", "undetermined", "incomplete", "not_analysed"),
            nullable=False,
        ),
        sa.Column("probability", sa.Double(), nullable=True),
        sa.Column("contents", sa.JSON(), nullable=False),
        sa.Column("images", sa.JSON(), nullable=False),
        sa.Column("model_name", sa.String(length=64), nullable=False),
        sa.Column("model_version", sa.String(length=32), nullable=False),
        sa.Column("content_at", _UTC, nullable=False),
        sa.Column("is_sent", sa.Boolean(), nullable=False),
        sa.Column("built_at", _UTC, nullable=True),
        sa.ForeignKeyConstraint(["predecessor_id"], ["reports.id"], name=op.f("fk_reports_predecessor_id")),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name=op.f("fk_reports_study_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reports")),
        sa.UniqueConstraint("study_id", "revision", name=op.f("uq_reports_study_id_revision")),
    )
    op.create_index("ix_reports_answer", "reports", ["answer"])
    op.create_table(
        "series",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("study_id", sa.Uuid(), nullable=False),
        sa.Column("series_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("modality", sa.String(length=16), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name=op.f("fk_series_study_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_series")),
        sa.UniqueConstraint("study_id", "series_instance_uid", name=op.f("uq_series_study_id_series_instance_uid")),
    )
    op.create_table(
        "deliveries",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("report_id", sa.Uuid(), nullable=False),
        sa.Column("destination", sa.String(length=64), nullable=False),
        sa.Column("state", _names("deliverystate", "waiting", "sent", "held", "failed"), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("sop_class_uid", sa.String(length=64), nullable=True),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=True),
        sa.Column("created_at", _UTC, nullable=False),
        sa.Column("sent_at", _UTC, nullable=True),
        sa.ForeignKeyConstraint(["report_id"], ["reports.id"], name=op.f("fk_deliveries_report_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deliveries")),
        sa.UniqueConstraint("report_id", "destination", name=op.f("uq_deliveries_report_id_destination")),
    )
    op.create_index("ix_deliveries_sop_instance_uid", "deliveries", ["sop_instance_uid"])
    op.create_index("ix_deliveries_state", "deliveries", ["state"])
    op.create_table(
        "instances",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("study_id", sa.Uuid(), nullable=False),
        sa.Column("series_id", sa.Uuid(), nullable=False),
        sa.Column("association_id", sa.Uuid(), nullable=True),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("sop_class_uid", sa.String(length=64), nullable=False),
        sa.Column("transfer_syntax_uid", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("path", sa.String(length=256), nullable=False),
        sa.Column("received_at", _UTC, nullable=False),
        sa.Column("state", _names("instancestate", "waiting", "analysed", "not_analysed", "failed"), nullable=False),
        sa.Column("is_judged", sa.Boolean(), nullable=False),
        sa.Column("voi", sa.String(length=32), nullable=True),
        sa.ForeignKeyConstraint(["association_id"], ["associations.id"], name=op.f("fk_instances_association_id")),
        sa.ForeignKeyConstraint(["series_id"], ["series.id"], name=op.f("fk_instances_series_id")),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name=op.f("fk_instances_study_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instances")),
        sa.UniqueConstraint("path", name=op.f("uq_instances_path")),
        sa.UniqueConstraint("sop_instance_uid", name=op.f("uq_instances_sop_instance_uid")),
    )
    op.create_index("ix_instances_association_id", "instances", ["association_id"])
    op.create_index("ix_instances_received_at", "instances", ["received_at"])
    op.create_index("ix_instances_series_id", "instances", ["series_id"])
    op.create_index("ix_instances_state", "instances", ["state"])
    op.create_index("ix_instances_study_id", "instances", ["study_id"])
    op.create_table(
        "own_objects",
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("report_id", sa.Uuid(), nullable=False),
        sa.Column("sop_class_uid", sa.String(length=64), nullable=False),
        sa.Column("path", sa.String(length=256), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("created_at", _UTC, nullable=False),
        sa.ForeignKeyConstraint(["report_id"], ["reports.id"], name=op.f("fk_own_objects_report_id")),
        sa.PrimaryKeyConstraint("sop_instance_uid", name=op.f("pk_own_objects")),
    )
    op.create_index("ix_own_objects_report_id", "own_objects", ["report_id"])
    op.create_table(
        "reviews",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("study_id", sa.Uuid(), nullable=False),
        sa.Column("report_id", sa.Uuid(), nullable=True),
        sa.Column("verdict", _names("verdict", "agree", "disagree", "comment"), nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.Column("reviewer", sa.String(length=64), nullable=False),
        sa.Column("created_at", _UTC, nullable=False),
        sa.ForeignKeyConstraint(["report_id"], ["reports.id"], name=op.f("fk_reviews_report_id")),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name=op.f("fk_reviews_study_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reviews")),
    )
    op.create_index("ix_reviews_study_id", "reviews", ["study_id"])
    op.create_table(
        "predictions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("instance_id", sa.Uuid(), nullable=False),
        sa.Column("finding", sa.String(length=64), nullable=False),
        sa.Column("probability", sa.Double(), nullable=False),
        sa.Column("confidence", sa.Double(), nullable=False),
        sa.Column("threshold", sa.Double(), nullable=False),
        sa.Column("abstain_low", sa.Double(), nullable=False),
        sa.Column("abstain_high", sa.Double(), nullable=False),
        sa.Column("model_name", sa.String(length=64), nullable=False),
        sa.Column("model_version", sa.String(length=32), nullable=False),
        sa.Column("processing_time_ms", sa.Double(), nullable=False),
        sa.Column("created_at", _UTC, nullable=False),
        sa.Column("superseded_at", _UTC, nullable=True),
        sa.CheckConstraint("confidence BETWEEN 50 AND 100", name=op.f("ck_predictions_confidence")),
        sa.CheckConstraint("probability BETWEEN 0 AND 1", name=op.f("ck_predictions_probability")),
        sa.ForeignKeyConstraint(["instance_id"], ["instances.id"], name=op.f("fk_predictions_instance_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_predictions")),
    )
    op.create_index(
        "ix_predictions_current",
        "predictions",
        ["instance_id", "finding"],
        unique=True,
        sqlite_where=_CURRENT,
        postgresql_where=_CURRENT,
    )
    op.create_table(
        "receipts",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("association_id", sa.Uuid(), nullable=True),
        sa.Column("instance_id", sa.Uuid(), nullable=True),
        sa.Column("outcome", _names("outcome", "new", "duplicate", "quarantined"), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("path", sa.String(length=256), nullable=True),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("received_at", _UTC, nullable=False),
        sa.ForeignKeyConstraint(["association_id"], ["associations.id"], name=op.f("fk_receipts_association_id")),
        sa.ForeignKeyConstraint(["instance_id"], ["instances.id"], name=op.f("fk_receipts_instance_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_receipts")),
    )
    op.create_index("ix_receipts_association_id", "receipts", ["association_id"])
    op.create_index("ix_receipts_instance_id", "receipts", ["instance_id"])
    op.create_index("ix_receipts_outcome_received_at", "receipts", ["outcome", "received_at"])
    op.create_table(
        "warnings",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("instance_id", sa.Uuid(), nullable=False),
        sa.Column("code", sa.String(length=64), nullable=False),
        sa.Column("severity", sa.String(length=16), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("created_at", _UTC, nullable=False),
        sa.Column("superseded_at", _UTC, nullable=True),
        sa.ForeignKeyConstraint(["instance_id"], ["instances.id"], name=op.f("fk_warnings_instance_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_warnings")),
    )
    op.create_index(
        "ix_warnings_current",
        "warnings",
        ["instance_id", "code"],
        unique=True,
        sqlite_where=_CURRENT,
        postgresql_where=_CURRENT,
    )
    _name_installation()


def _name_installation() -> None:
    """Random, so that two nodes on one PACS never make the same UID."""
    installation = sa.table(
        "installation", sa.column("id"), sa.column("installation_id", sa.Uuid()), sa.column("created_at", _UTC)
    )
    row = {"id": 1, "installation_id": uuid.uuid4(), "created_at": datetime.now(UTC)}
    op.bulk_insert(installation, [row])


def downgrade() -> None:
    for table in (
        "warnings",
        "receipts",
        "predictions",
        "reviews",
        "own_objects",
        "instances",
        "deliveries",
        "series",
        "reports",
        "jobs",
        "task_locks",
        "studies",
        "model_versions",
        "installation",
        "audit_head",
        "audit_events",
        "associations",
    ):
        op.drop_table(table)
