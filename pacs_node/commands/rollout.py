"""Which model version answers: verified before it is added or activated, audited, taken up by running workers."""

from __future__ import annotations

from pathlib import Path

from db import facts
from db.audit import Action
from db.engine import check_revision, db_now, make_engine, read_scope, session_scope
from pacs_node.errors import ConfigError
from pacs_node.settings import Settings
from pacs_node.wiring import active_card, registry_of


def listing(settings: Settings) -> list[list[str]]:
    """Return a row per version on disk: mark, name, version, added, active since or recalled, start of its checksum."""
    engine = make_engine(settings.database_url)
    check_revision(engine)
    registry = registry_of(settings)
    active = active_card(engine, registry)
    with read_scope(engine) as session:
        known = {(m.name, m.version): m for m in facts.list_model_versions(session)}
        recalled = facts.recalled_models(session)
    rows = []
    for card in registry.cards():
        row = known.get((card.name, card.version))
        is_active = (card.name, card.version) == (active.name, active.version)
        added = f"{row.added_at:%Y-%m-%d %H:%M}" if row else "bundled"
        since = f"{row.activated_at:%Y-%m-%d %H:%M}" if row and row.activated_at and is_active else "-"
        since = "recalled" if (card.name, card.version) in recalled else since
        rows.append(["*" if is_active else "", card.name, card.version, added, since, card.weights_sha256[:12]])
    return rows


def add(settings: Settings, folder: Path, *, actor: str) -> str:
    """Copy a bundle into the model folder after its checksum and shapes were verified; it does not answer yet."""
    engine = make_engine(settings.database_url)
    check_revision(engine)
    settings.model_dir.mkdir(parents=True, exist_ok=True)
    card = registry_of(settings).add(folder)
    with session_scope(engine) as session:
        facts.add_model_version(
            session,
            name=card.name,
            version=card.version,
            weights_sha256=card.weights_sha256,
            actor=actor,
            now=db_now(session),
        )
    return f"Added {card.name} {card.version}. It answers after `pacs-node models activate {card.name}/{card.version}`."


def activate(settings: Settings, what: str, *, actor: str, action: Action = Action.MODEL_ACTIVATED) -> str:
    """Let NAME/VERSION answer from now on; running workers take it up within seconds."""
    name, slash, version = what.partition("/")
    if not slash or not version:
        raise ConfigError(f"{what!r}: write NAME/VERSION as `pacs-node models list` shows them")
    engine = make_engine(settings.database_url)
    check_revision(engine)
    registry = registry_of(settings)
    before = active_card(engine, registry)
    card = registry.find(name, version)
    registry.verify(card)
    with session_scope(engine) as session:
        now = db_now(session)
        for known in (before, card):  # the bundled model enters the books when it is first replaced
            facts.add_model_version(
                session,
                name=known.name,
                version=known.version,
                weights_sha256=known.weights_sha256,
                actor=actor,
                now=now,
            )
        if facts.active_model(session) is None:
            facts.activate_model(session, before.name, before.version, actor=actor, now=now)
        facts.activate_model(session, card.name, card.version, actor=actor, now=now, action=action)
    return f"{card.name} {card.version} answers from now on (before: {before.name} {before.version})."


def roll_back(settings: Settings, *, actor: str) -> str:
    """Return to the version that answered before the active one.

    Raises
    ------
    ConfigError
        No other version ever answered.
    """
    engine = make_engine(settings.database_url)
    check_revision(engine)
    with read_scope(engine) as session:
        previous = facts.previous_active(session)
    if previous is None:
        raise ConfigError("no other version answered before: nothing to roll back to")
    return activate(settings, "/".join(previous), actor=actor, action=Action.MODEL_ROLLED_BACK)
