"""Run the migrations: one transaction for all of them, and one process at a time."""

from __future__ import annotations

import os

from alembic import context
from sqlalchemy import text

from db.engine import make_engine
from db.tables import Table, UtcDateTime

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


def render_item(kind: str, thing: object, _: object) -> str | bool:
    """Write our types into a new migration as they stand, so that it does not change with `db.tables`."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(thing, UtcDateTime) else False


engine = make_engine(wanted_url())
with engine.connect() as connection, connection.begin():
    if connection.dialect.name == "postgresql":  # SQLite's BEGIN IMMEDIATE has done it already
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
    context.configure(
        connection=connection, target_metadata=Table.metadata, transactional_ddl=True, render_item=render_item
    )
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
