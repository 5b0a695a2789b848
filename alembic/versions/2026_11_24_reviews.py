"""Reviews that name what they correct; indexes for lists of 100,000 studies."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision = "2026_11_24_c"
down_revision = "2026_11_24_b"
branch_labels = None
depends_on = None

_CURRENT = sa.text("superseded_at IS NULL")
_UNBUILT = sa.text("built_at IS NULL")
_WORKLIST = (
    *("first_received_at", "id", "answer", "probability", "model_version", "calling_ae_title", "priority"),
    *("revision", "reviewed_revision", "hold", "unreported_since"),
)
_LISTED = ("created_at", "id", "finding", "probability", "model_version", "instance_id")
_VERDICT = "ck_reviews_verdict"
_OLD = "('agree', 'disagree', 'comment')"
_NEW = "('agree', 'disagree', 'unsure', 'comment', 'withdraw')"
_REPLACED = (
    ("studies", ("first_received_at",)),
    ("instances", ("received_at",)),
    ("instances", ("state",)),
    ("reports", ("answer",)),
    ("deliveries", ("state",)),
    ("audit_events", ("at",)),
    ("audit_events", ("action",)),
)
"""One column led each; what takes its place goes on with the order of the list."""
_ADDED = (
    ("studies", ("calling_ae_title", "first_received_at", "id")),
    ("studies", ("priority", "first_received_at", "id")),
    ("studies", ("probability", "id")),
    ("instances", ("state", "received_at", "id")),
    ("instances", ("received_at", "id")),
    ("reports", ("answer", "content_at", "id")),
    ("reports", ("content_at", "id")),
    ("deliveries", ("state", "created_at", "id")),
    ("deliveries", ("created_at", "id")),
    ("reviews", ("created_at", "id")),
    ("audit_events", ("action", "at", "id")),
    ("audit_events", ("at", "id")),
)
_PARTIAL = (
    ("ix_predictions_listed", "predictions", _CURRENT, _LISTED),
    ("ix_warnings_coded", "warnings", _CURRENT, ("code", "created_at", "id", "instance_id")),
    ("ix_warnings_listed", "warnings", _CURRENT, ("created_at", "id")),
    ("ix_reports_unbuilt", "reports", _UNBUILT, ("study_id",)),
)
_COPIED = """
UPDATE studies SET
  answer = (SELECT r.answer FROM reports r WHERE r.study_id = studies.id AND r.revision = studies.revision),
  probability = (SELECT r.probability FROM reports r WHERE r.study_id = studies.id AND r.revision = studies.revision),
  model_version =
    (SELECT r.model_version FROM reports r WHERE r.study_id = studies.id AND r.revision = studies.revision),
  reviewed_revision = CASE WHEN EXISTS (
    SELECT 1 FROM reviews v JOIN reports r ON r.id = v.report_id
    WHERE r.study_id = studies.id AND r.revision = studies.revision AND v.verdict <> 'comment'
  ) THEN studies.revision ELSE -1 END
WHERE studies.revision > 0
"""


def upgrade() -> None:
    op.add_column("studies", sa.Column("answer", sa.String(length=32), nullable=True))
    op.add_column("studies", sa.Column("probability", sa.Double(), nullable=True))
    op.add_column("studies", sa.Column("model_version", sa.String(length=32), nullable=True))
    op.add_column("studies", sa.Column("reviewed_revision", sa.Integer(), nullable=False, server_default="-1"))
    op.execute(_COPIED)
    _change_verdicts(_NEW)
    with op.batch_alter_table("reviews") as table:
        table.add_column(sa.Column("predecessor_id", sa.Uuid(), nullable=True))
        table.add_column(sa.Column("reading", sa.Integer(), nullable=False, server_default="1"))
        table.add_column(sa.Column("corrected_finding", sa.String(length=64), nullable=True))
        table.add_column(sa.Column("region", sa.JSON(), nullable=True))
        table.create_foreign_key(op.f("fk_reviews_predecessor_id"), "reviews", ["predecessor_id"], ["id"])
        table.create_unique_constraint(op.f("uq_reviews_predecessor_id"), ["predecessor_id"])
    for table, columns in _REPLACED:
        op.drop_index(_name(table, columns), table)
    for table, columns in _ADDED:
        op.create_index(_name(table, columns), table, list(columns))
    op.create_index("ix_studies_worklist", "studies", list(_WORKLIST))
    for name, table, where, columns in _PARTIAL:
        op.create_index(name, table, list(columns), sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    for name, table, *_ in _PARTIAL:
        op.drop_index(name, table)
    op.drop_index("ix_studies_worklist", "studies")
    for table, columns in _ADDED:
        op.drop_index(_name(table, columns), table)
    for table, columns in _REPLACED:
        op.create_index(_name(table, columns), table, list(columns))
    with op.batch_alter_table("reviews") as table:
        table.drop_constraint(op.f("uq_reviews_predecessor_id"), type_="unique")
        table.drop_constraint(op.f("fk_reviews_predecessor_id"), type_="foreignkey")
        for column in ("predecessor_id", "reading", "corrected_finding", "region"):
            table.drop_column(column)
    op.execute("DELETE FROM reviews WHERE verdict IN ('unsure', 'withdraw')")
    _change_verdicts(_OLD)
    for column in ("reviewed_revision", "model_version", "probability", "answer"):
        op.drop_column("studies", column)


def _change_verdicts(allowed: str) -> None:
    with op.batch_alter_table("reviews") as table:
        table.drop_constraint(op.f(_VERDICT), type_="check")
    with op.batch_alter_table("reviews") as table:
        table.create_check_constraint(op.f(_VERDICT), f"verdict IN {allowed}")


def _name(table: str, columns: Sequence[str]) -> str:
    return f"ix_{table}_{'_'.join(columns)}"
