"""What every route is handed: the node's rooms, built once by `create_app`, and who is asking.

`app.state.web` is shared; a route's `WebContext` is a view of it with the caller of that one request.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, HTTPException, Request
from fastapi.templating import Jinja2Templates

from db import audit
from db.audit import Action
from db.engine import DatabaseAway, Engine, SchemaMismatch, Session, db_now, read_scope, session_scope
from db.facts.visibility import origin_of
from models.card import ModelCard
from models.errors import ModelError
from models.registry import Registry
from pacs_node.settings import Settings
from pacs_node.store import ObjectStore
from pacs_node.web.access import NOBODY, Visitor, caller_of
from pacs_node.web.hospital import HospitalLogin
from pacs_node.web.limits import Limits
from pacs_node.web.predictions import Predictions
from pacs_node.web.render import Renderer
from pacs_node.web.training_export import TrainingExports
from pacs_node.wiring import active_card

CARD_S = 10.0
VIEW_S = 60.0
LIST_S = 3600.0
VIEWS_MAX = 10_000


@dataclass(kw_only=True)
class _Kept:
    """What all requests share."""

    card: tuple[float, ModelCard] | None = None
    noted: dict[tuple[object, ...], float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(kw_only=True, repr=False)  # the settings may hold a password
class Web:
    """The web role's own state."""

    engine: Engine
    store: ObjectStore
    registry: Registry
    settings: Settings
    renderer: Renderer
    templates: Jinja2Templates
    limits: Limits
    hospital: HospitalLogin | None = None
    """The hospital's login, where there is one."""
    predictions: Predictions
    training: TrainingExports
    caller: Visitor = NOBODY
    """Who sent the request that is answered now."""
    _kept: _Kept = field(default_factory=_Kept)

    def card(self) -> ModelCard:
        """Return the card of the model that answers now, read anew after some seconds.

        Raises
        ------
        ModelError
            There is none, or its card cannot be read.
        """
        now, kept = time.monotonic(), self._kept.card
        if kept is None or now - kept[0] > CARD_S:
            kept = self._kept.card = (now, active_card(self.engine, self.registry))
        return kept[1]

    def forget_card(self) -> None:
        """Read the card anew at the next question: another version answers."""
        self._kept.card = None

    def model_line(self) -> str:
        """Return what stands at the foot of every page about the model; never raises, an error page has a foot too."""
        try:
            card = self.card()
        except (ModelError, DatabaseAway, SchemaMismatch):
            return "Which model answers cannot be told now."
        patients = f"patients of {card.ages_text}"
        return f"Model {card.name} {card.version}, validated on frontal chest radiographs of {patients}."

    def note(self, action: Action, subject_id: UUID | None = None, details: Mapping[str, Any] | None = None) -> None:
        """Audit that the caller did something, in a transaction of its own: for what has no fact."""
        with self.change() as session:
            now = db_now(session)
            audit.append(session, action, actor=self.caller.actor, subject_id=subject_id, details=details, now=now)

    def change(self) -> AbstractContextManager[Session]:
        """Open a write transaction for the caller, whose audit events say from where."""
        return session_scope(self.engine, address=self.caller.address)

    def note_view(self, study_id: UUID, what: str) -> None:
        """Audit that the caller sees the study; the pictures that one view asks for are not told one by one.

        What a page fetches by itself is told as that: it left the node, and nobody need have looked at it.
        """
        what = f"{what}, in the background" if self.caller.is_background else what
        self.note_once((self.caller.actor, study_id, what), Action.STUDY_VIEWED, study_id, {"what": what})

    def note_search(self, found: int) -> None:
        """Audit that someone looked for a patient or an order, and how many studies that showed; never for whom."""
        self.note(Action.STUDY_SEARCHED, details={"found": found})

    def note_list(self, what: str) -> None:
        """Audit that the caller sees the patients of a list: once an hour, for a page asks for it again and again."""
        key = (self.caller.actor, self.caller.address, "list", what)
        self.note_once(key, Action.STUDIES_LISTED, None, {"what": what}, every_s=LIST_S)

    def note_once(
        self,
        key: tuple[object, ...],
        action: Action,
        subject_id: UUID | None,
        details: Mapping[str, Any],
        *,
        every_s: float = VIEW_S,
    ) -> None:
        """Audit what happens many times a minute once a minute, or once in `every_s`."""
        now, kept = time.monotonic(), self._kept
        with kept.lock:
            if now - kept.noted.get(key, -every_s) < every_s:
                return
        self.note(action, subject_id, details)
        with kept.lock:  # after the commit: what was not audited is not taken for audited
            if len(kept.noted) >= VIEWS_MAX:
                kept.noted.clear()
            kept.noted[key] = now

    def require_visible(self, **subject: UUID | str) -> None:
        """Let the caller look at one study, or at what belongs to it; a refusal is audited.

        Parameters
        ----------
        subject
            One of `access.SUBJECTS`.

        Raises
        ------
        HTTPException
            404 it belongs to another group; said as of what does not exist.
        """
        ((name, value),) = subject.items()
        if self.caller.visible is None or not is_id(value):
            return  # the route says what is wrong with an id
        with read_scope(self.engine) as session:
            origin = origin_of(session, name, UUID(str(value)))
        if origin is not None and self.caller.visible.covers(origin):
            return
        if origin is not None:
            key = (self.caller.actor, self.caller.address, name, value)
            self.note_once(key, Action.ACCESS_REFUSED, UUID(str(value)), {"what": "of another group"})
        raise HTTPException(404, f"There is no {name.removesuffix('_id')} {value}.")

    def of(self, caller: Visitor) -> Web:
        """Return the same rooms for one request."""
        return replace(self, caller=caller)


def is_id(value: UUID | str) -> bool:
    """Tell whether this is one of our ids, or text that stands for one."""
    try:
        UUID(str(value))
    except ValueError:
        return False
    return True


def _web_of(request: Request) -> Web:
    web: Web = request.app.state.web
    return web.of(caller_of(request.scope))


WebContext = Annotated[Web, Depends(_web_of)]
