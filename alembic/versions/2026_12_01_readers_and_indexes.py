"""A study may ask for another reader; open work, and what is asked by report, actor, day or destination, is indexed."""

from __future__ import annotations

import sqlalchemy as sa
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
_OPEN = (
    *("first_received_at", "id", "answer", "probability", "model_version", "calling_ae_title", "priority"),
    *("revision", "reviewed_revision", "hold", "unreported_since", "institution", "asked_revision", "last_received_at"),
)
_SUSPECTED = ("probability", "id", "answer", "priority", "revision", "reviewed_revision", "asked_revision")
_PARTIAL = (
    ("ix_studies_open", "studies", _OPEN, "reviewed_revision <> revision"),
    ("ix_studies_suspected", "studies", _SUSPECTED, "reviewed_revision <> revision"),
    ("ix_reports_withdrawn", "reports", ("study_id", "revision"), "withdrawn_at IS NOT NULL"),
)
_SURE = """
FROM reviews v WHERE v.study_id = studies.id AND v.verdict IN ('agree', 'disagree')
  AND NOT EXISTS (SELECT 1 FROM reviews later WHERE later.predecessor_id = v.id)
  AND (v.report_id = (SELECT r.id FROM reports r WHERE r.study_id = studies.id AND r.revision = studies.revision)
       OR (v.report_id IS NULL AND studies.revision = 0))
"""
_MOST = f"""
SELECT count(*) {_SURE} GROUP BY v.verdict || coalesce(v.corrected_finding, '') ORDER BY count(*) DESC LIMIT 1
"""
_ASKED = f"""
UPDATE studies SET asked_revision = revision, reviewed_revision = -1
WHERE reviewed_revision = revision AND (NOT EXISTS (SELECT 1 {_SURE}) OR ({_MOST}) = ({_MOST} OFFSET 1))
"""
_ANSWERED = "UPDATE studies SET reviewed_revision = revision WHERE asked_revision = revision"


def upgrade() -> None:
    op.add_column("studies", sa.Column("asked_revision", sa.Integer(), nullable=False, server_default="-1"))
    for table, columns in _INDEXES:
        op.create_index(op.f(f"ix_{table}_{'_'.join(columns)}"), table, list(columns))
    op.execute(_ASKED)
    for name, table, columns, where in _PARTIAL:
        op.create_index(name, table, list(columns), sqlite_where=sa.text(where), postgresql_where=sa.text(where))


def downgrade() -> None:
    for name, table, *_ in _PARTIAL:
        op.drop_index(name, table)
    op.execute(_ANSWERED)
    for table, columns in _INDEXES:
        op.drop_index(op.f(f"ix_{table}_{'_'.join(columns)}"), table)
    op.drop_column("studies", "asked_revision")
