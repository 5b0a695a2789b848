"""A study may be held because an administrator withdrew what the node said of it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_12_01_d"
down_revision = "2026_12_01_c"
branch_labels = None
depends_on = None

_BEFORE = "hold IN ('identity_conflict', 'unidentified')"
_SINCE = "hold IN ('identity_conflict', 'unidentified', 'withdrawn')"


def _rule(old: str, new: str) -> None:
    """Replace what a hold may be.

    SQLite would have to rebuild the table, which others point at; a CHECK is its text alone, and may be written anew:
    https://www.sqlite.org/lang_altertable.html, section 7, the second procedure.
    """
    connection = op.get_bind()
    if connection.dialect.name != "sqlite":
        name = op.f("ck_studies_hold")
        op.drop_constraint(name, "studies", type_="check")
        op.create_check_constraint(name, "studies", sa.text(new))
        return
    version = connection.exec_driver_sql("PRAGMA schema_version").scalar_one()
    connection.exec_driver_sql("PRAGMA writable_schema = ON")
    written = "UPDATE sqlite_master SET sql = replace(sql, ?, ?) WHERE type = 'table' AND name = 'studies'"
    connection.exec_driver_sql(written, (old, new))
    connection.exec_driver_sql(f"PRAGMA schema_version = {version + 1}")
    connection.exec_driver_sql("PRAGMA writable_schema = OFF")


def upgrade() -> None:
    _rule(_BEFORE, _SINCE)


def downgrade() -> None:
    op.execute("UPDATE studies SET hold = 'unidentified' WHERE hold = 'withdrawn'")
    _rule(_SINCE, _BEFORE)
