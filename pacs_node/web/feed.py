"""News about studies, as they are committed: one look at the database each second, however many listen.

The audit trail is read for it: every fact has its event there, in the same transaction, whichever process made it; so
several web processes tell the same. A transaction may become visible later than its time says, so each look goes back
`OVERLAP` and passes over what was told; what comes later than that is told by the page's own question now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from db import facts
from db.audit import Action, AuditRecord
from db.engine import DatabaseAway, Engine, db_now, read_scope
from db.facts import Origin

logger = logging.getLogger(__name__)

EVERY_S = 1.0
HEARTBEAT_S = 10.0
OVERLAP = timedelta(seconds=5)
MEMORY = timedelta(minutes=10)
"""A listener that was away longer is told to ask for everything."""
STREAMS_MAX = 64
STREAMS_OF_ONE = 16
"""Of `STREAMS_MAX`, so that nobody takes the live news from the others."""
WAITING_MAX = 1000
"""News that one slow listener may leave unread."""
EVENTS_MAX = 2000
"""Of the trail in one look."""
_STUDY = (
    *(Action.INSTANCE_STORED, Action.INSTANCE_JUDGED, Action.INSTANCE_NOT_ANALYSED, Action.INSTANCE_FAILED),
    *(Action.INSTANCE_RERUN, Action.REPORT_FROZEN, Action.REPORT_BUILT, Action.REPORT_FAILED),
    *(Action.REPORT_WITHDRAWN, Action.JUDGEMENT_RECALLED),
    *(Action.STUDY_HELD, Action.STUDY_RELEASED, Action.STUDY_PURGED),
)
_DELIVERY = (
    *(Action.DELIVERY_SENT, Action.DELIVERY_DELAYED, Action.DELIVERY_HELD, Action.DELIVERY_FAILED),
    *(Action.DELIVERY_ARCHIVED, Action.DELIVERY_WITHDRAWN, Action.DELIVERY_RESENT),
)
KINDS: dict[str, str] = {
    **dict.fromkeys(_STUDY, "study"),
    **dict.fromkeys(_DELIVERY, "delivery"),
    Action.REVIEW_ADDED: "review",
}
"""What each action is told as."""


class TooManyListeners(Exception):
    """`STREAMS_MAX` streams are open in this process, or `STREAMS_OF_ONE` of the same caller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """Something happened to a study."""

    event_id: str
    """Where a listener goes on that lost its connection."""
    kind: str
    """study, delivery or review."""
    study_id: UUID
    origin: Origin
    actions: tuple[str, ...]
    at: datetime


class Feed:
    """The news of one web process; looks at the database only while somebody listens."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._listeners: dict[asyncio.Queue[News | None], str] = {}
        self._looking: asyncio.Task[None] | None = None
        self._told: dict[UUID, datetime] = {}

    @contextlib.asynccontextmanager
    async def listen(self, caller: str) -> AsyncIterator[asyncio.Queue[News | None]]:
        """Give the queue in which news arrive; None in it = some were lost, ask for everything.

        Parameters
        ----------
        caller
            Who listens, as in the audit trail.

        Raises
        ------
        TooManyListeners
            Come again later.
        """
        callers = list(self._listeners.values())
        if len(callers) >= STREAMS_MAX or callers.count(caller) >= STREAMS_OF_ONE:
            raise TooManyListeners
        waiting: asyncio.Queue[News | None] = asyncio.Queue(WAITING_MAX)
        self._listeners[waiting] = caller
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_on())
        try:
            yield waiting
        finally:
            del self._listeners[waiting]

    def missed(self, last_event_id: str) -> list[News] | None:
        """Return what happened since an event that a listener saw last; None = too long ago to tell, or no such id."""
        try:
            at, _ = facts.read_cursor(last_event_id)
        except ValueError:
            return None
        with read_scope(self._engine) as session:
            if not isinstance(at, datetime) or at < db_now(session) - MEMORY:
                return None
            events = facts.events_after(session, at - OVERLAP, actions=list(KINDS), limit=EVENTS_MAX)
            return None if len(events) == EVENTS_MAX else _news(events, facts.studies_of_subjects(session, _of(events)))

    async def _look_on(self) -> None:
        self._told.clear()
        since = await asyncio.to_thread(self._now)
        while self._listeners:
            try:
                news, since = await asyncio.to_thread(self._look, since)
            except DatabaseAway:
                logger.warning("The news could not be read", extra={"action": "feed_away"}, exc_info=True)
                news = []
            for one in news:
                self._tell(one)
            await asyncio.sleep(EVERY_S)

    def _now(self) -> datetime:
        with read_scope(self._engine) as session:
            return db_now(session)

    def _look(self, since: datetime) -> tuple[list[News], datetime]:
        """Return what is new, and from when to look next."""
        with read_scope(self._engine) as session:
            now = db_now(session)
            events = facts.events_after(session, since, actions=list(KINDS), limit=EVENTS_MAX)
            fresh = [event for event in events if event.id not in self._told]
            news = _news(fresh, facts.studies_of_subjects(session, _of(fresh)))
        self._told |= {event.id: event.at for event in fresh}
        following = events[-1].at if len(events) == EVENTS_MAX else now - OVERLAP
        self._told = {event_id: at for event_id, at in self._told.items() if at >= following}
        return news, following

    def _tell(self, news: News) -> None:
        for waiting in self._listeners:
            if waiting.full():
                while not waiting.empty():
                    waiting.get_nowait()
                waiting.put_nowait(None)
            else:
                waiting.put_nowait(news)


def _of(events: Iterable[AuditRecord]) -> list[UUID]:
    return list({event.subject_id for event in events if event.subject_id is not None})


def _news(events: Iterable[AuditRecord], study_of: dict[UUID, tuple[UUID, Origin]]) -> list[News]:
    """Return one piece of news for each study and kind, in the order of the last event of each."""
    gathered: dict[tuple[str, UUID], News] = {}
    for event in events:
        if event.subject_id not in study_of:
            continue
        study_id, origin = study_of[event.subject_id]
        key = KINDS[event.action], study_id
        before = gathered.pop(key, None)
        gathered[key] = News(
            event_id=f"{event.at.isoformat()}_{event.id}",
            kind=key[0],
            study_id=study_id,
            origin=origin,
            actions=tuple(dict.fromkeys((*(before.actions if before else ()), event.action))),
            at=event.at,
        )
    return list(gathered.values())
