"""What every route is handed: the node's rooms, built once by `create_app`."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Request
from fastapi.templating import Jinja2Templates

from db import audit
from db.audit import Action
from db.engine import DatabaseAway, Engine, SchemaMismatch, db_now, session_scope
from models.card import ModelCard
from models.errors import ModelError
from models.registry import Registry
from pacs_node.settings import Settings
from pacs_node.store import ObjectStore
from pacs_node.web.render import Renderer
from pacs_node.wiring import active_card

ACTOR = "web"
"""Who did it, in the audit trail, until there are logins."""
CARD_S = 10.0
VIEW_S = 60.0
VIEWS_MAX = 10_000


@dataclass(kw_only=True, repr=False)  # the settings may hold a password
class Web:
    """The web role's own state."""

    engine: Engine
    store: ObjectStore
    registry: Registry
    settings: Settings
    renderer: Renderer
    templates: Jinja2Templates
    _card: tuple[float, ModelCard] | None = None
    _viewed: dict[tuple[UUID, str], float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def card(self) -> ModelCard:
        """Return the card of the model that answers now, read anew after some seconds.

        Raises
        ------
        ModelError
            There is none, or its card cannot be read.
        """
        now = time.monotonic()
        if self._card is None or now - self._card[0] > CARD_S:
            self._card = (now, active_card(self.engine, self.registry))
        return self._card[1]

    def model_line(self) -> str:
        """Return what stands at the foot of every page about the model; never raises, an error page has a foot too."""
        try:
            card = self.card()
        except (ModelError, DatabaseAway, SchemaMismatch):
            return "Which model answers cannot be told now."
        patients = f"patients of {card.ages_text}"
        return f"Model {card.name} {card.version}, validated on frontal chest radiographs of {patients}."

    def note_view(self, study_id: UUID, what: str) -> None:
        """Audit that someone sees the study; the pictures that one view asks for are not told one by one."""
        now, key = time.monotonic(), (study_id, what)
        with self._lock:
            if now - self._viewed.get(key, -VIEW_S) < VIEW_S:
                return
        with session_scope(self.engine) as session:
            audit.append(
                session,
                Action.STUDY_VIEWED,
                actor=ACTOR,
                subject_id=study_id,
                details={"what": what},
                now=db_now(session),
            )
        with self._lock:  # after the commit: what was not audited is not taken for audited
            if len(self._viewed) >= VIEWS_MAX:
                self._viewed.clear()
            self._viewed[key] = now

    def note_search(self, found: int) -> None:
        """Audit that someone looked for a patient or an order, and how many studies that showed; never for whom."""
        with session_scope(self.engine) as session:
            audit.append(session, Action.STUDY_SEARCHED, actor=ACTOR, details={"found": found}, now=db_now(session))


def _web_of(request: Request) -> Web:
    web: Web = request.app.state.web
    return web


WebContext = Annotated[Web, Depends(_web_of)]
