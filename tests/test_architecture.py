"""Who may import whom, read from the source (architecture: arrows point down; one owner per library)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("models", "db", "pacs_node", "training")

MAY_USE_OF_OURS = {
    "models": {"models"},
    "db": {"db"},
    "training": {"training", "models"},
    "pacs_node": {"pacs_node", "models", "db"},
}
NEVER = {
    "models": {"sqlalchemy", "fastapi", "pynetdicom", "alembic", "apscheduler"},
    "db": {"torch", "onnxruntime", "pydicom", "pynetdicom", "fastapi", "monai"},
    "training": {"onnxruntime", "sqlalchemy", "fastapi", "pynetdicom"},
    "pacs_node": {"onnxruntime", "torchvision", "monai"},
}
OWNERS = {
    "pynetdicom": {"listener", "dimse", "demo"},
    "highdicom": {"report"},
    "httpx": {"delivery", "web"},
    "fastapi": {"web"},
    "starlette": {"web"},
    "uvicorn": {"web"},
    "apscheduler": {"schedule"},
    "pebble": {"decoding"},
    "dicomanonymizer": {"export"},
    "argon2": {"passwords"},
    "authlib": {"web"},
    "joserfc": {"web"},
    "limits": {"web"},
}
LEVELS = (
    {"cli", "commands", "demo"},
    {"listener", "worker", "delivery", "schedule", "web"},
    {"export", "recall", "report", "rollout", "dimse", "told"},
    {
        *("conformance", "decoding", "errors", "identity", "invitations", "lease", "log", "passwords", "phantom"),
        *("settings", "store", "supervisor", "wiring"),
    },
)


def sources(package: str) -> Iterator[Path]:
    return (ROOT / package).rglob("*.py")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(path: Path) -> str:
    """Return the file's or folder's name directly below pacs_node."""
    return path.relative_to(ROOT / "pacs_node").parts[0].removesuffix(".py")


def level_of(room: str) -> int:
    levels = [i for i, rooms in enumerate(LEVELS) if room in rooms]
    assert levels, f"pacs_node.{room} has no level yet: give it one in LEVELS"
    return levels[0]


@pytest.mark.parametrize("package", OURS)
def test_packages_import_only_what_lies_below(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources(package)
        for name in imports(path)
        if ((top := name.split(".")[0]) in OURS and top not in MAY_USE_OF_OURS[package]) or top in NEVER[package]
    ]
    assert not wrong


def test_alembic_knows_the_tables_only() -> None:
    wrong = [
        name
        for path in sources("alembic")
        for name in imports(path)
        if name.startswith(("pacs_node", "models", "training"))
    ]
    assert not wrong
    assert not (ROOT / "alembic" / "__init__.py").exists()


@pytest.mark.parametrize("library", OWNERS)
def test_each_library_has_its_owner(library: str) -> None:
    users = {room_of(path) for path in sources("pacs_node") if any(n.split(".")[0] == library for n in imports(path))}
    assert users <= OWNERS[library]


def test_every_room_has_its_level_and_imports_downwards() -> None:
    wrong = []
    for path in sources("pacs_node"):
        room = room_of(path)
        if room == "__init__":
            continue
        for name in imports(path):
            parts = name.split(".")
            if (
                parts[0] == "pacs_node"
                and len(parts) > 1
                and any(parts[1] in rooms for rooms in LEVELS)
                and parts[1] != room
            ):
                is_sideways_role = level_of(parts[1]) == level_of(room) == 1
                if level_of(parts[1]) < level_of(room) or is_sideways_role:
                    wrong.append(f"{path.relative_to(ROOT)}: {name}")
    assert not wrong


def test_sessions_are_opened_by_db_and_sqlalchemy_stays_opaque() -> None:
    allowed = {"sqlalchemy.engine", "sqlalchemy.engine.Engine", "sqlalchemy.orm", "sqlalchemy.orm.Session"}
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources("pacs_node")
        for name in imports(path)
        if name.split(".")[0] == "sqlalchemy" and name not in allowed
    ]
    assert not wrong


def test_every_broad_except_gives_its_reason() -> None:
    wrong = []
    for package in OURS:
        for path in sources(package):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if re.search(r"except (Base)?Exception( as \w+)?:(?!  # .+)", line):
                    wrong.append(f"{path.relative_to(ROOT)}:{number}")
    assert not wrong
