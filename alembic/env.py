"""Run the migrations: one transaction for all of them, and one process at a time."""

from __future__ import annotations

import os

from alembic import context
from sqlalchemy import text

from db.engine import make_engine
from db.tables import Table

MIGRATION_LOCK = 0x9AC5  # any number, as long as it is always this one


def wanted_url() -> str:
    """Return the database to migrate: from `db.engine.migrate`, from `alembic -x url=...`, or from the environment."""
    url = (
        context.config.attributes.get("url")
        or context.get_x_argument(as_dictionary=True).get("url")
        or os.environ.get("PACS_NODE_DATABASE__URL")
    )
    if not url:
        raise SystemExit("which database? alembic -x url=sqlite:///var/node.sqlite ..., or PACS_NODE_DATABASE__URL")
    return str(url)


engine = make_engine(wanted_url())
with engine.connect() as connection, connection.begin():
    if connection.dialect.name == "postgresql":  # SQLite's BEGIN IMMEDIATE has done it already
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
    context.configure(connection=connection, target_metadata=Table.metadata, transactional_ddl=True)
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
