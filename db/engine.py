"""Opens the database, and is the only room that commits.

On SQLite every write transaction begins with BEGIN IMMEDIATE: a deferred one that reads and then writes fails with
"database is locked" under several processes, whatever the timeout. Reads use a plain BEGIN.
An engine belongs to one process: make it after the fork.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, Executable, create_engine, event, func, inspect, select, text
from sqlalchemy import Table as CoreTable
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy.pool import ConnectionPoolEntry

__all__ = [
    "DatabaseAway",
    "Engine",
    "NoSuchRecord",
    "SchemaMismatch",
    "Session",
    "add_if_new",
    "check_revision",
    "current_revision",
    "db_now",
    "head_revision",
    "insert_into",
    "make_engine",
    "migrate",
    "read_scope",
    "session_scope",
]

MIGRATIONS = Path(__file__).resolve().parent.parent / "alembic"
BUSY_TIMEOUT_MS = 30_000
AWAY_SQLSTATES = ("08", "28", "3D", "53", "57", "58", "40", "55P03")
"""PostgreSQL: connection, login, no such database, resources, operator intervention, system error, rollback, lock not
available (Appendix A)."""
ADDRESS = "address"
"""Key of a session's own notes: from where somebody asked for its transaction."""
FILE_GONE = "the database file was taken away: stop the node, then restore a backup"
SQLITE_BUG = 1
"""SQLITE_ERROR: a wrong statement or a missing table, which no waiting cures."""


_turns: WeakKeyDictionary[Engine, threading.Lock] = WeakKeyDictionary()


class SchemaMismatch(Exception):
    """The database's revision is not the one this program wants."""


class NoSuchRecord(LookupError):
    """There is no row with this id."""


class DatabaseAway(Exception):
    """The database cannot be reached, is full or stays locked: worth another try."""


def make_engine(url: str) -> Engine:
    """Return an engine for `url` with this node's pragmas, transactions and pool.

    Parameters
    ----------
    url
        ``sqlite:////path/node.sqlite`` or ``postgresql+pg8000://user@host/name``; a unix socket by
        ``?unix_sock=/path/.s.PGSQL.5432``.
    """
    is_sqlite = url.startswith("sqlite")
    engine = create_engine(
        url,
        hide_parameters=True,  # an error message must not carry a patient's name
        pool_size=8,
        max_overflow=56,  # an association's thread holds a connection only while it commits
        pool_timeout=30,
        pool_pre_ping=not is_sqlite,
    )
    if is_sqlite:
        event.listen(engine, "do_connect", _refuse_to_make_another(engine))
        event.listen(engine, "connect", _prepare_sqlite)
        _turns[engine] = threading.Lock()
    event.listen(engine, "begin", _begin_sqlite if is_sqlite else _begin_postgresql)
    return engine


def _refuse_to_make_another(engine: Engine) -> Callable[..., None]:
    """SQLite makes a missing file; where there was a database, an empty one must not take its place."""
    path, is_first = Path(engine.url.database or ""), True

    def look(*_: Any) -> None:
        nonlocal is_first
        if not is_first and not path.exists():
            raise DatabaseAway(FILE_GONE)
        is_first = False

    return look


def _file_of(path: str) -> tuple[int, int] | None:
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _prepare_sqlite(connection: sqlite3.Connection, record: ConnectionPoolEntry) -> None:
    path = connection.execute("PRAGMA database_list").fetchone()[2]
    record.info["file"] = path, _file_of(path)
    connection.isolation_level = None  # this module says BEGIN, not the driver
    connection.create_function("lower", 1, _lower, deterministic=True)  # SQLite's own knows A to Z alone
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    if cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")  # a commit that was acknowledged survives a power cut
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _lower(value: Any) -> str | None:
    return None if value is None else str(value).lower()


def _begin_sqlite(connection: Connection) -> None:
    path, file = connection.info["file"]
    if path and _file_of(path) != file:  # what is written to a deleted file is lost with the last process that holds it
        connection.invalidate()
        raise DatabaseAway(FILE_GONE)
    connection.exec_driver_sql("BEGIN" if _is_read_only(connection) else "BEGIN IMMEDIATE")


def _begin_postgresql(connection: Connection) -> None:
    if _is_read_only(connection):  # one snapshot for a page made of several statements
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")


def _is_read_only(connection: Connection) -> bool:
    return bool(connection.get_execution_options().get("pacs_node_read_only"))


@contextmanager
def session_scope(engine: Engine, *, address: str = "") -> Iterator[Session]:
    """Open a write transaction; commit at the end, roll back if anything was raised.

    Parameters
    ----------
    address
        From where somebody asked for it; stands in each of its audit events.

    Raises
    ------
    DatabaseAway
        The connection is refused or lost, the disk is full, the lock was not had in time, or a deadlock was broken.
    """
    info = {ADDRESS: address} if address else {}
    opened = Session(engine, expire_on_commit=False, info=info)
    with _away_is_named(), _turn(engine), opened as session, session.begin():
        yield session


@contextmanager
def _turn(engine: Engine) -> Iterator[None]:
    """Let this process's writers wait in line: SQLite's own waiting sleeps, and let one of four starve for a second."""
    lock = _turns.get(engine)
    if lock is None:
        yield
        return
    if not lock.acquire(timeout=BUSY_TIMEOUT_MS / 1000):
        raise DatabaseAway("database is locked by another thread")
    try:
        yield
    finally:
        lock.release()


@contextmanager
def read_scope(engine: Engine) -> Iterator[Session]:
    """Open a transaction that only reads, all of it from one snapshot; nothing is ever committed.

    Raises
    ------
    DatabaseAway
        As for `session_scope`.
    """
    reader = engine.execution_options(pacs_node_read_only=True)
    with _away_is_named(), Session(reader, autoflush=False) as session:
        yield session


@contextmanager
def _away_is_named() -> Iterator[None]:
    try:
        yield
    except PoolTimeout as error:
        raise DatabaseAway("no free connection in the pool") from error
    except DBAPIError as error:
        reason = _reason_away(error)
        if reason is None:
            raise
        raise DatabaseAway(reason) from error


def _reason_away(error: DBAPIError) -> str | None:
    """Say why the database is away; None for a bug in a statement. Never quotes values."""
    origin = error.orig
    if isinstance(origin, sqlite3.Error):
        is_away = isinstance(origin, sqlite3.OperationalError) and origin.sqlite_errorcode != SQLITE_BUG
        return str(origin) if is_away else None
    if (server_says := _server_says(origin)) is not None:
        is_away = str(server_says.get("C", "")).startswith(AWAY_SQLSTATES)
        return str(server_says.get("M", "")) if is_away or error.connection_invalidated else None
    is_away = error.connection_invalidated or _is_interface_error(origin)
    return f"no connection to database.url ({origin})" if is_away else None


def _server_says(origin: BaseException | None) -> dict[str, Any] | None:
    """Return the server's own words; the driver may have failed anew when it hung up on them."""
    while origin is not None:
        if origin.args and isinstance(origin.args[0], dict):
            return origin.args[0]
        origin = origin.__context__
    return None


def _is_interface_error(origin: BaseException | None) -> bool:
    """Tell whether the driver (PEP 249) failed before the server could answer."""
    return type(origin).__name__ in ("InterfaceError", "OperationalError")


def db_now(session: Session) -> datetime:
    """Return the database's own clock, aware UTC: leases of several machines are measured by it alone."""
    if session.get_bind().dialect.name == "sqlite":
        return datetime.now(UTC)  # SQLite runs inside this process: this is its clock
    instant: datetime = session.execute(select(func.clock_timestamp())).scalar_one()
    return instant.astimezone(UTC)


def insert_into(session: Session, table: CoreTable) -> postgresql.Insert | sqlite.Insert:
    """Return this database's INSERT that knows ON CONFLICT."""
    return sqlite.insert(table) if session.get_bind().dialect.name == "sqlite" else postgresql.insert(table)


def add_if_new(session: Session, table: CoreTable, unique: tuple[str, ...], row: dict[str, Any]) -> Any:
    """Insert `row` unless a row with the same `unique` columns is there; return its primary key, or None if one was."""
    return session.execute(_insert_if_new(session.get_bind().dialect.name, table, unique), row).scalar_one_or_none()


@cache
def _insert_if_new(dialect: str, table: CoreTable, unique: tuple[str, ...]) -> Executable:
    """Build each statement once: a C-STORE waits for several."""
    statement = sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)
    return statement.on_conflict_do_nothing(index_elements=unique).returning(*table.primary_key.columns)


def current_revision(engine: Engine) -> str | None:
    """Return the revision the database is at; None if it has no tables yet."""
    with read_scope(engine) as session:
        if not inspect(session.connection()).has_table("alembic_version"):
            return None
        revision: str | None = session.execute(text("SELECT version_num FROM alembic_version")).scalar()
        return revision


def head_revision() -> str:
    """Return the revision this program wants."""
    from alembic.script import ScriptDirectory  # slow to import, and few processes ask

    head = ScriptDirectory.from_config(_alembic_config("")).get_current_head()
    if head is None:
        raise SchemaMismatch(f"no migrations in {MIGRATIONS}")
    return head


def check_revision(engine: Engine) -> None:
    """Refuse a database of another revision.

    Raises
    ------
    SchemaMismatch
        One line: what it found, what it wants and what to do.
    """
    found, wanted = current_revision(engine), head_revision()
    if found != wanted:
        state = f"is at revision {found}" if found else "has no tables yet"
        raise SchemaMismatch(f"the database {state}, this program wants {wanted}: run `pacs-node migrate`")


def migrate(url: str) -> None:
    """Bring the database at `url` to this program's revision; does nothing when it is there already.

    Raises
    ------
    SchemaMismatch
        The database is at a revision that this program does not know.
    DatabaseAway
        As for `session_scope`.
    """
    from alembic import command
    from alembic.util import CommandError

    try:
        with _away_is_named():
            command.upgrade(_alembic_config(url), "head")
    except CommandError as error:
        raise SchemaMismatch(f"the database belongs to a newer program: {error}") from error


def _alembic_config(url: str) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["url"] = url
    return config
