"""Model versions that were recalled; readers' reports that replace one another."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_27_a"
down_revision = "2026_11_24_e"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "recalled_models",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=32), nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("recalled_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", "version", name=op.f("pk_recalled_models")),
    )
    op.add_column("reports", sa.Column("replaced_id", sa.Uuid(), nullable=True))


def downgrade() -> None:
    op.drop_column("reports", "replaced_id")
    op.drop_table("recalled_models")
