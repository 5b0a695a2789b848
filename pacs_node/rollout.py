"""Which model version answers: verified before it does, audited, taken up by running workers within seconds.

Takes a name and a version; the command, the API and the page do it by these functions alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.engine import Engine

from db import facts
from db.audit import Action
from db.engine import Session, db_now, read_scope, session_scope
from db.facts.recalls import Model
from models.card import ModelCard
from models.errors import BundleConflict
from models.registry import Registry
from pacs_node.errors import ConfigError
from pacs_node.wiring import active_card


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownVersion:
    """One version in the model folders, in the books, or in both."""

    name: str
    version: str
    weights_sha256: str
    is_active: bool
    is_recalled: bool
    is_here: bool
    """False: it is in the books, and in no model folder."""
    ages: str
    """Of the patients it was validated on, in words; empty where its card is gone."""
    added_at: datetime | None
    """None = never entered: it came with the program, and was neither activated nor replaced yet."""
    activated_at: datetime | None

    @property
    def model(self) -> Model:
        return self.name, self.version


def known_versions(engine: Engine, registry: Registry) -> list[KnownVersion]:
    """Return every version: those of the model folders by name, the oldest first, then those that are gone from there.

    Raises
    ------
    ModelError
        A card cannot be read, or there is no model at all.
    """
    with read_scope(engine) as session:
        booked = {(one.name, one.version): one for one in facts.list_model_versions(session)}
        active, recalled = facts.active_model(session), facts.recalled_models(session)
    cards = {(card.name, card.version): card for card in registry.cards()}
    if active is None:
        first = active_card(engine, registry)
        active = first.name, first.version
    return [
        KnownVersion(
            name=model[0],
            version=model[1],
            weights_sha256=cards[model].weights_sha256 if model in cards else booked[model].weights_sha256,
            is_active=model == active,
            is_recalled=model in recalled,
            is_here=model in cards,
            ages=cards[model].ages_text if model in cards else "",
            added_at=booked[model].added_at if model in booked else None,
            activated_at=booked[model].activated_at if model in booked else None,
        )
        for model in (*cards, *(model for model in booked if model not in cards))
    ]


def enter(session: Session, card: ModelCard, *, actor: str, now: datetime) -> None:
    """Enter a version into the books; does nothing when it stands there.

    Raises
    ------
    BundleConflict
        It stands there with other weights.
    """
    try:
        facts.add_model_version(session, card.name, card.version, card.weights_sha256, actor=actor, now=now)
    except ValueError as error:
        raise BundleConflict(str(error)) from error


def activate(
    engine: Engine,
    registry: Registry,
    model: Model,
    *,
    actor: str,
    address: str = "",
    action: Action = Action.MODEL_ACTIVATED,
) -> Model:
    """Let a version answer from now on, once its weights load and are its card's; return the one that answered before.

    Raises
    ------
    UnknownModel, WeightsMismatch, BundleConflict
        It is in no model folder; its weights are not its card's; the books know it with other weights.
    """
    card = registry.find(*model)
    registry.verify(card)
    with read_scope(engine) as session:
        is_first = facts.active_model(session) is None
    bundled = active_card(engine, registry) if is_first else None
    with session_scope(engine, address=address) as session:
        now = db_now(session)
        enter(session, card, actor=actor, now=now)
        if bundled is not None and facts.active_model(session) is None:  # it enters the books when it is first replaced
            enter(session, bundled, actor=actor, now=now)
            facts.activate_model(session, bundled.name, bundled.version, actor=actor, now=now)
        before = facts.active_model(session) or model
        facts.activate_model(session, *model, actor=actor, now=now, action=action)
    return before


def roll_back(
    engine: Engine, registry: Registry, *, to: Model | None = None, actor: str, address: str = ""
) -> tuple[Model, Model]:
    """Return to the version that answered before the active one; return it, and the one that answered until now.

    Parameters
    ----------
    to
        The version that the caller expects to be put back; None = whichever it is.

    Raises
    ------
    ConfigError
        No other version answered before that was not recalled, or not the one that is expected. And as `activate`.
    """
    with read_scope(engine) as session:
        previous = facts.previous_active(session)
    if previous is None:
        raise ConfigError("no other version answered before that was not recalled: nothing to roll back to")
    if to not in (None, previous):
        raise ConfigError(f"the version that answered before is {' '.join(previous)}")
    before = activate(engine, registry, previous, actor=actor, address=address, action=Action.MODEL_ROLLED_BACK)
    return previous, before
