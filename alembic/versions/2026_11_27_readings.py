"""What took an image and in which view, for the quality page; reviews made before the model's answer was seen."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_27_e"
down_revision = "2026_11_27_d"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("instances", sa.Column("device", sa.String(length=129), nullable=False, server_default=""))
    op.add_column("instances", sa.Column("view", sa.String(length=16), nullable=False, server_default=""))
    op.add_column("reviews", sa.Column("is_blind", sa.Boolean(), nullable=False, server_default=sa.false()))


def downgrade() -> None:
    op.drop_column("reviews", "is_blind")
    op.drop_column("instances", "view")
    op.drop_column("instances", "device")
