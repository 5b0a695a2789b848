"""Images know whether their bytes are gone: a purged study comes alive when another image of it comes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_12_01"
down_revision = "2026_11_27_e"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("instances", sa.Column("gone_at", sa.DateTime(timezone=True), nullable=True))
    op.execute(
        "UPDATE instances SET gone_at = (SELECT purged_at FROM studies WHERE studies.id = instances.study_id) "
        "WHERE study_id IN (SELECT id FROM studies WHERE purged_at IS NOT NULL)"
    )


def downgrade() -> None:
    op.drop_column("instances", "gone_at")
