"""Reports freeze the codes that the configuration names."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_27_c"
down_revision = "2026_11_27_b"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("reports", sa.Column("codes", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("reports", "codes")
