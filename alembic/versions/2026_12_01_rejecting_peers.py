"""Each sender's rejection of an object has a row of its own: a stranger's copy of a note is in nobody's way."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_12_01_b"
down_revision = "2026_12_01_a"
branch_labels = None
depends_on = None

_OBJECT = ("study_instance_uid", "sop_instance_uid")


def _key(*columns: str) -> None:
    """Let these columns together name a row."""
    with op.batch_alter_table("rejected_objects") as table:
        table.drop_constraint(op.f("pk_rejected_objects"), type_="primary")
        table.create_primary_key(op.f("pk_rejected_objects"), list(columns))


def upgrade() -> None:
    _key(*_OBJECT, "calling_ae_title")


def downgrade() -> None:
    op.execute(
        sa.text(
            "DELETE FROM rejected_objects WHERE (study_instance_uid, sop_instance_uid, calling_ae_title) IN ("
            "SELECT study_instance_uid, sop_instance_uid, calling_ae_title FROM ("
            "SELECT *, row_number() OVER (PARTITION BY study_instance_uid, sop_instance_uid "
            "ORDER BY applied_at IS NULL, is_trusted DESC, received_at) AS place FROM rejected_objects"
            ") AS ranked WHERE place > 1)"
        )
    )
    _key(*_OBJECT)
