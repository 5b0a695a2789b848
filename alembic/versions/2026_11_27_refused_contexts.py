"""Presentation contexts that were refused, per day and sender."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_27_b"
down_revision = "2026_11_27_a"
branch_labels = None
depends_on = None

_KEY = ("day", "calling_ae_title", "abstract_syntax", "reason")


def upgrade() -> None:
    op.create_table(
        "refused_contexts",
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("calling_ae_title", sa.String(length=16), nullable=False),
        sa.Column("abstract_syntax", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("associations", sa.Integer(), nullable=False),
        sa.Column("empty_associations", sa.Integer(), nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint(*_KEY, name=op.f("pk_refused_contexts")),
    )


def downgrade() -> None:
    op.drop_table("refused_contexts")
