"""Heat maps, rejection notes and verified reports beside the reports."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_24_b"
down_revision = "2026_11_24_a"
branch_labels = None
depends_on = None

_KINDS = ("sr", "heatmap", "gsps", "seg", "rejection")
_VERIFIED = sa.text("review_id IS NOT NULL")


def upgrade() -> None:
    kind = sa.Enum(*_KINDS, name="objectkind", native_enum=False, create_constraint=True, length=32)
    with op.batch_alter_table("own_objects") as table:  # all that were made before are reports
        table.add_column(sa.Column("kind", kind, nullable=False, server_default="sr"))
    with op.batch_alter_table("own_objects") as table:
        table.alter_column("kind", server_default=None)
    op.add_column("reports", sa.Column("review_id", sa.Uuid(), nullable=True))
    op.create_index(
        "ix_reports_review_id",
        "reports",
        ["review_id"],
        unique=True,
        sqlite_where=_VERIFIED,
        postgresql_where=_VERIFIED,
    )
    op.create_table(
        "heatmaps",
        sa.Column("instance_id", sa.Uuid(), nullable=False),
        sa.Column("model_name", sa.String(length=64), nullable=False),
        sa.Column("model_version", sa.String(length=32), nullable=False),
        sa.Column("path", sa.String(length=256), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["instance_id"], ["instances.id"], name=op.f("fk_heatmaps_instance_id")),
        sa.PrimaryKeyConstraint("instance_id", "model_name", "model_version", name=op.f("pk_heatmaps")),
    )


def downgrade() -> None:
    op.drop_table("heatmaps")
    # Readers' reports stay as rows: the next revision must be after theirs.
    op.execute(
        "UPDATE studies SET revision = (SELECT max(revision) FROM reports WHERE reports.study_id = studies.id) "
        "WHERE id IN (SELECT study_id FROM reports WHERE review_id IS NOT NULL)"
    )
    op.drop_index("ix_reports_review_id", "reports")
    op.drop_column("reports", "review_id")
    with op.batch_alter_table("own_objects") as table:
        table.drop_constraint(op.f("ck_own_objects_objectkind"), type_="check")
        table.drop_column("kind")
