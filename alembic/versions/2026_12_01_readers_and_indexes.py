"""What is asked by report, actor, day and destination is found in an index."""

from __future__ import annotations

from alembic import op

revision = "2026_12_01_c"
down_revision = "2026_12_01_b"
branch_labels = None
depends_on = None

_INDEXES = (
    ("reviews", ("report_id",)),
    ("audit_events", ("actor", "at", "id")),
    ("receipts", ("received_at",)),
    ("deliveries", ("destination", "sent_at")),
)


def upgrade() -> None:
    for table, columns in _INDEXES:
        op.create_index(op.f(f"ix_{table}_{'_'.join(columns)}"), table, list(columns))


def downgrade() -> None:
    for table, columns in _INDEXES:
        op.drop_index(op.f(f"ix_{table}_{'_'.join(columns)}"), table)
