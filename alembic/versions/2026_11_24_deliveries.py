"""Deliveries of several objects, storage commitment, recall."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_24_a"
down_revision = "2026_11_23"
branch_labels = None
depends_on = None

_UTC = sa.DateTime(timezone=True)
_KINDS = ("sr", "heatmap", "gsps", "seg", "rejection")
_NEW_COLUMNS = ("commit_due_at", "commit_asked", "commit_failures", "archived_at", "withdrawn_at", "withdrawal")
_COMMIT_DUE, _ANSWER_DUE = sa.text("commit_due_at IS NOT NULL"), sa.text("due_at IS NOT NULL")


def _names(name: str, *values: str) -> sa.Enum:
    return sa.Enum(*values, name=name, native_enum=False, length=32, create_constraint=True)


def _states(*values: str) -> None:
    """Allow these states of a delivery and no other."""
    allowed = ", ".join(f"'{value}'" for value in values)
    with op.batch_alter_table("deliveries") as table:
        table.drop_constraint(op.f("ck_deliveries_deliverystate"), type_="check")
        table.create_check_constraint(op.f("ck_deliveries_deliverystate"), sa.text(f"state IN ({allowed})"))


def upgrade() -> None:
    with op.batch_alter_table("deliveries") as table:
        table.add_column(sa.Column("commit_due_at", _UTC, nullable=True))
        table.add_column(sa.Column("commit_asked", sa.Integer(), nullable=False, server_default="0"))
        table.add_column(sa.Column("commit_failures", sa.Integer(), nullable=False, server_default="0"))
        table.add_column(sa.Column("archived_at", _UTC, nullable=True))
        table.add_column(sa.Column("withdrawn_at", _UTC, nullable=True))
        table.add_column(sa.Column("withdrawal", sa.String(length=32), nullable=True))
    with op.batch_alter_table("deliveries") as table:
        table.alter_column("commit_asked", existing_type=sa.Integer(), server_default=None)
        table.alter_column("commit_failures", existing_type=sa.Integer(), server_default=None)
    _states("waiting", "sent", "held", "failed", "withdrawn")
    op.add_column("reports", sa.Column("withdrawn_at", _UTC, nullable=True))
    op.add_column("reports", sa.Column("withdrawal", sa.String(length=32), nullable=True))
    op.create_index(
        "ix_deliveries_commit_due_at",
        "deliveries",
        ["commit_due_at"],
        sqlite_where=_COMMIT_DUE,
        postgresql_where=_COMMIT_DUE,
    )
    _add_tables()
    op.execute(
        "INSERT INTO delivered_objects (delivery_id, sop_instance_uid, sop_class_uid, kind, sent_at, refusal) "
        "SELECT id, sop_instance_uid, sop_class_uid, 'sr', sent_at, '' FROM deliveries "
        "WHERE state = 'sent' AND sop_instance_uid IS NOT NULL"
    )


def _add_tables() -> None:
    op.create_table(
        "delivered_objects",
        sa.Column("delivery_id", sa.Uuid(), nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("sop_class_uid", sa.String(length=64), nullable=False),
        sa.Column("kind", _names("objectkind", *_KINDS), nullable=False),
        sa.Column("sent_at", _UTC, nullable=True),
        sa.Column("refusal", sa.Text(), nullable=False),
        sa.Column("archived_at", _UTC, nullable=True),
        sa.ForeignKeyConstraint(["delivery_id"], ["deliveries.id"], name=op.f("fk_delivered_objects_delivery_id")),
        sa.PrimaryKeyConstraint("delivery_id", "sop_instance_uid", name=op.f("pk_delivered_objects")),
    )
    op.create_index("ix_delivered_objects_sop_instance_uid", "delivered_objects", ["sop_instance_uid"])
    op.create_table(
        "commitments",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("transaction_uid", sa.String(length=64), nullable=False),
        sa.Column("destination", sa.String(length=64), nullable=False),
        sa.Column("asked_at", _UTC, nullable=False),
        sa.Column("answered_at", _UTC, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_commitments")),
        sa.UniqueConstraint("transaction_uid", name=op.f("uq_commitments_transaction_uid")),
    )
    op.create_table(
        "commitment_requests",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("calling_ae_title", sa.String(length=16), nullable=False),
        sa.Column("transaction_uid", sa.String(length=64), nullable=False),
        sa.Column("objects", sa.JSON(), nullable=False),
        sa.Column("received_at", _UTC, nullable=False),
        sa.Column("due_at", _UTC, nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("answered_at", _UTC, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_commitment_requests")),
        sa.UniqueConstraint(
            "calling_ae_title",
            "transaction_uid",
            name=op.f("uq_commitment_requests_calling_ae_title_transaction_uid"),
        ),
    )
    op.create_index(
        "ix_commitment_requests_due_at",
        "commitment_requests",
        ["due_at"],
        sqlite_where=_ANSWER_DUE,
        postgresql_where=_ANSWER_DUE,
    )
    op.create_table(
        "recalls",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("report_id", sa.Uuid(), nullable=False),
        sa.Column("model_name", sa.String(length=64), nullable=False),
        sa.Column("model_version", sa.String(length=32), nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("recalled_at", _UTC, nullable=False),
        sa.ForeignKeyConstraint(["report_id"], ["reports.id"], name=op.f("fk_recalls_report_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_recalls")),
        sa.UniqueConstraint("report_id", name=op.f("uq_recalls_report_id")),
    )
    op.create_table(
        "rejected_objects",
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("code", sa.String(length=32), nullable=False),
        sa.Column("note_uid", sa.String(length=64), nullable=False),
        sa.Column("calling_ae_title", sa.String(length=16), nullable=False),
        sa.Column("is_trusted", sa.Boolean(), nullable=False),
        sa.Column("received_at", _UTC, nullable=False),
        sa.Column("applied_at", _UTC, nullable=True),
        sa.PrimaryKeyConstraint("study_instance_uid", "sop_instance_uid", name=op.f("pk_rejected_objects")),
    )
    op.create_index("ix_rejected_objects_sop_instance_uid", "rejected_objects", ["sop_instance_uid"])


def downgrade() -> None:
    for table in ("rejected_objects", "recalls", "commitment_requests", "commitments", "delivered_objects"):
        op.drop_table(table)
    op.drop_column("reports", "withdrawal")
    op.drop_column("reports", "withdrawn_at")
    op.execute("UPDATE deliveries SET state = 'failed' WHERE state = 'withdrawn'")
    _states("waiting", "sent", "held", "failed")
    op.drop_index("ix_deliveries_commit_due_at", "deliveries")
    with op.batch_alter_table("deliveries") as table:
        for column in _NEW_COLUMNS:
            table.drop_column(column)
