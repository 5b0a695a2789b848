"""A failed job may be closed by a person: it stays undone, and nobody waits for it any more."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_12_01_a"
down_revision = "2026_12_01"
branch_labels = None
depends_on = None


def _states(*values: str) -> None:
    """Allow these states of a job and no other."""
    allowed = ", ".join(f"'{value}'" for value in values)
    with op.batch_alter_table("jobs") as table:
        table.drop_constraint(op.f("ck_jobs_jobstate"), type_="check")
        table.create_check_constraint(op.f("ck_jobs_jobstate"), sa.text(f"state IN ({allowed})"))


def upgrade() -> None:
    _states("ready", "running", "done", "failed", "closed")


def downgrade() -> None:
    op.execute("UPDATE jobs SET state = 'failed' WHERE state = 'closed'")
    _states("ready", "running", "done", "failed")
