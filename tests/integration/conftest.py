"""Nodes for the web tests: on each kind of database, on SQLite alone, and one with drawing processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from db.engine import make_engine
from tests.builders import make_bundle
from tests.web_world import BASE_URL, World, make_world


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_bundle(folder, name="drawn", version="0.0.1")
    return folder


@pytest.fixture
def world(engine: Engine, tmp_path: Path, models_folder: Path) -> World:
    """A node on each kind of database."""
    return make_world(engine, tmp_path / "var", models_folder)


@pytest.fixture
def small_world(sqlite_engine: Engine, tmp_path: Path, models_folder: Path) -> World:
    """A node where the kind of database does not matter."""
    return make_world(sqlite_engine, tmp_path / "var", models_folder)


@pytest.fixture(scope="module")
def drawn_world(
    tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path, models_folder: Path
) -> Iterator[tuple[World, TestClient, UUID]]:
    """A node with drawing processes, shared: they take seconds to start. With one image of 96 x 80 pixels."""
    root = tmp_path_factory.mktemp("drawn")
    (root / "node.sqlite").write_bytes(migrated_sqlite.read_bytes())
    engine = make_engine(f"sqlite:///{root / 'node.sqlite'}")
    world = make_world(engine, root / "var", models_folder)
    instance_id = world.receive(1).instance_id
    with TestClient(world.app, base_url=BASE_URL) as client:
        yield world, client, instance_id
    engine.dispose()
