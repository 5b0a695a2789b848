"""Whose a study's first image is, for groups by institution; studies that are here already name none."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_27_institution"
down_revision = "2026_11_24_e"
branch_labels = None
depends_on = None

_WORKLIST = (
    *("first_received_at", "id", "answer", "probability", "model_version", "calling_ae_title", "priority"),
    *("revision", "reviewed_revision", "hold", "unreported_since"),
)


def upgrade() -> None:
    op.add_column("studies", sa.Column("institution", sa.String(length=64), nullable=False, server_default=""))
    op.drop_index("ix_studies_worklist", "studies")
    op.create_index("ix_studies_worklist", "studies", [*_WORKLIST, "institution"])


def downgrade() -> None:
    op.drop_index("ix_studies_worklist", "studies")
    op.create_index("ix_studies_worklist", "studies", list(_WORKLIST))
    op.drop_column("studies", "institution")
