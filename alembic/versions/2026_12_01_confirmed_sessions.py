"""A session knows when its person last showed their password anew: what reaches far wants it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_12_01_e"
down_revision = "2026_12_01_d"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("web_sessions", sa.Column("confirmed_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("web_sessions", "confirmed_at")
