"""`pacs-node models`: which version answers, told and changed at the terminal."""

from __future__ import annotations

from pathlib import Path

from db.engine import Engine, check_revision, db_now, make_engine, session_scope
from db.facts.recalls import Model
from models.registry import Registry
from pacs_node import rollout
from pacs_node.errors import ConfigError
from pacs_node.settings import Settings
from pacs_node.wiring import registry_of


def listing(settings: Settings) -> list[list[str]]:
    """Return a row per version: mark, name, version, ages, added, active since or recalled, start of its checksum."""
    rows = []
    for one in rollout.known_versions(*_rooms(settings)):
        added = f"{one.added_at:%Y-%m-%d %H:%M}" if one.added_at else "bundled"
        since = f"{one.activated_at:%Y-%m-%d %H:%M}" if one.activated_at and one.is_active else "-"
        since = "recalled" if one.is_recalled else since
        added = added if one.is_here else "gone from disk"
        rows.append(
            ["*" if one.is_active else "", one.name, one.version, one.ages, added, since, one.weights_sha256[:12]]
        )
    return rows


def add(settings: Settings, folder: Path, *, actor: str) -> str:
    """Copy a bundle into the model folder after its checksum and shapes were verified; it does not answer yet."""
    engine, registry = _rooms(settings)
    settings.model_dir.mkdir(parents=True, exist_ok=True)
    card = registry.add(folder)
    with session_scope(engine) as session:
        rollout.enter(session, card, actor=actor, now=db_now(session))
    return f"Added {card.name} {card.version}. It answers after `pacs-node models activate {card.name}/{card.version}`."


def activate(settings: Settings, what: str, *, actor: str) -> str:
    """Let NAME/VERSION answer from now on."""
    name, slash, version = what.partition("/")
    if not slash or not version:
        raise ConfigError(f"{what!r}: write NAME/VERSION as `pacs-node models list` shows them")
    engine, registry = _rooms(settings)
    before = rollout.activate(engine, registry, (name, version), actor=actor)
    return _told(registry, (name, version), before)


def roll_back(settings: Settings, *, actor: str) -> str:
    """Return to the version that answered before the active one."""
    engine, registry = _rooms(settings)
    return _told(registry, *rollout.roll_back(engine, registry, actor=actor))


def _told(registry: Registry, model: Model, before: Model) -> str:
    ages = registry.find(*model).ages_text
    return f"{' '.join(model)} answers from now on (before: {' '.join(before)}). Validated on patients of {ages}."


def _rooms(settings: Settings) -> tuple[Engine, Registry]:
    engine = make_engine(settings.database_url)
    check_revision(engine)
    return engine, registry_of(settings)
