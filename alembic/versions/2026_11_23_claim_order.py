"""An index in the order in which jobs are claimed: a claim need not sort the whole queue."""

from __future__ import annotations

from alembic import op

revision = "2026_11_23"
down_revision = "2026_11_20"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("ix_jobs_state_kind_due_at", "jobs")
    op.create_index("ix_jobs_state_kind_priority_due_at", "jobs", ["state", "kind", "priority", "due_at"])


def downgrade() -> None:
    op.drop_index("ix_jobs_state_kind_priority_due_at", "jobs")
    op.create_index("ix_jobs_state_kind_due_at", "jobs", ["state", "kind", "due_at"])
