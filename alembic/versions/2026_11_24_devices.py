"""Device models that were seen."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_24_e"
down_revision = "2026_11_24_d"
branch_labels = None
depends_on = None

_MODEL = ("manufacturer", "model_name", "detector_type")


def upgrade() -> None:
    op.create_table(
        "devices",
        sa.Column("id", sa.Uuid(), nullable=False),
        *(sa.Column(name, sa.String(length=64), nullable=False) for name in _MODEL),
        sa.Column("first_instance_id", sa.Uuid(), nullable=False),
        sa.Column("first_seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["first_instance_id"], ["instances.id"], name=op.f("fk_devices_first_instance_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_devices")),
        sa.UniqueConstraint(*_MODEL, name=op.f("uq_devices_manufacturer_model_name_detector_type")),
    )


def downgrade() -> None:
    op.drop_table("devices")
