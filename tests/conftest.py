"""Databases for the tests: each is built by the real migrations, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from filelock import FileLock
from sqlalchemy import Engine, create_engine, make_url, text

from db.engine import Session, make_engine, migrate

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch: where processes share the cores, threads only wait for them
    os.environ.setdefault("OMP_NUM_THREADS", "1")

DATABASES = ("sqlite", "postgresql")
START_ATTEMPTS = 3
"""pgserver waits only 10 s for its server, which a busy machine may need more than once."""


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL of this test session, as the URL of its maintenance database."""
    folder = Path(tempfile.mkdtemp(prefix="pn-pg-"))
    try:
        with FileLock(tmp_path_factory.getbasetemp().parent / "postgres.lock"):  # pgserver adds a user, if root calls
            server = _start_postgres(folder / "data")
    except (ImportError, OSError, subprocess.SubprocessError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        if os.environ.get("CI"):
            raise
        pytest.skip(f"PostgreSQL cannot start here: {error}")
    info = server.get_postmaster_info()
    url = f"postgresql+pg8000://postgres@/postgres?unix_sock={info.socket_dir}/.s.PGSQL.{info.port}"
    # Nothing here outlives the session; a checkpoint would only keep the tests waiting.
    quick = {"fsync": "off", "full_page_writes": "off", "checkpoint_timeout": "'1h'", "max_wal_size": "'8GB'"}
    _administer(
        url, *(f"ALTER SYSTEM SET {name} = {value}" for name, value in quick.items()), "SELECT pg_reload_conf()"
    )
    yield url
    info.process.send_signal(signal.SIGQUIT)  # at once: nobody needs its last checkpoint
    info.process.wait(timeout=30)
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


def _start_postgres(folder: Path) -> Any:
    import pgserver

    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            return pgserver.get_server(folder, cleanup_mode="stop")
        except subprocess.TimeoutExpired:
            if attempt == START_ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def _administer(url: str, *statements: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


def _named(url: str, database: str) -> str:
    return make_url(url).set(database=database).render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file to copy."""
    path = tmp_path_factory.mktemp("template") / "node.sqlite"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def migrated_postgres(postgres_url: str) -> str:
    """The name of a migrated PostgreSQL database to copy."""
    _administer(postgres_url, "CREATE DATABASE template_node")
    migrate(_named(postgres_url, "template_node"))
    return "template_node"


@pytest.fixture
def sqlite_url(migrated_sqlite: Path, tmp_path: Path) -> str:
    """A migrated SQLite database of this test alone."""
    path = tmp_path / "node.sqlite"
    shutil.copyfile(migrated_sqlite, path)
    return f"sqlite:///{path}"


@pytest.fixture
def postgresql_url(postgres_url: str, migrated_postgres: str) -> str:
    """A migrated PostgreSQL database of this test alone; it goes with its server, for DROP DATABASE takes its time."""
    name = f"t_{uuid4().hex}"
    _administer(postgres_url, f"CREATE DATABASE {name} TEMPLATE {migrated_postgres}")
    return _named(postgres_url, name)


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest) -> str:
    """A migrated database of this test alone: the test runs once on each kind."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture(params=DATABASES)
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without tables of this test alone: the test runs once on each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.sqlite'}"
    server: str = request.getfixturevalue("postgres_url")
    name = f"t_{uuid4().hex}"
    _administer(server, f"CREATE DATABASE {name}")
    return _named(server, name)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on a migrated database of this test alone: the test runs once on each kind."""
    engine = make_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session", params=DATABASES)
def _shared_engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    if request.param == "sqlite":
        path = tmp_path_factory.mktemp("shared") / "node.sqlite"
        shutil.copyfile(request.getfixturevalue("migrated_sqlite"), path)
        url = f"sqlite:///{path}"
    else:
        name = f"shared_{uuid4().hex}"  # a process that gets file after file makes it again
        server, template = (request.getfixturevalue(of) for of in ("postgres_url", "migrated_postgres"))
        _administer(server, f"CREATE DATABASE {name} TEMPLATE {template}")
        url = _named(server, name)
    engine = make_engine(url)
    yield engine
    engine.dispose()


@pytest.fixture
def session(_shared_engine: Engine) -> Iterator[Session]:
    """A transaction on an empty migrated database that is rolled back: the fast way where nothing need be committed."""
    with Session(_shared_engine, expire_on_commit=False) as session:
        yield session
        session.rollback()


@pytest.fixture
def sqlite_engine(sqlite_url: str) -> Iterator[Engine]:
    """An engine on SQLite alone, for tests to which the database does not matter."""
    engine = make_engine(sqlite_url)
    yield engine
    engine.dispose()
