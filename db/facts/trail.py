"""The audit trail as people read it: pages of events, the newest first, and which studies they are about."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import select

from db.audit import AuditRecord
from db.engine import NoSuchRecord, Session
from db.facts.paging import older_than, page
from db.facts.visibility import Origin
from db.tables import AuditEvent, Delivery, Instance, Report, Review, Study, rows_of

_EVENTS = rows_of(AuditEvent)
_COLUMNS = [_EVENTS.c[name] for name in AuditRecord.__dataclass_fields__]
_STUDIES, _INSTANCES, _REPORTS = rows_of(Study), rows_of(Instance), rows_of(Report)
_DELIVERIES, _REVIEWS = rows_of(Delivery), rows_of(Review)


def list_events(
    session: Session,
    *,
    action: str | None = None,
    actor: str | None = None,
    subject_id: UUID | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> tuple[list[AuditRecord], str | None]:
    """Return one page of the trail, the newest first, and the cursor of the next page.

    Raises
    ------
    ForeignCursor
        `cursor` is none that this function gave.
    """
    query = select(*_COLUMNS)
    if action is not None:
        query = query.where(_EVENTS.c.action == action)
    if actor is not None:
        query = query.where(_EVENTS.c.actor == actor)
    if subject_id is not None:
        query = query.where(_EVENTS.c.subject_id == subject_id)
    if since is not None:
        query = query.where(_EVENTS.c.at >= since)
    if until is not None:
        query = query.where(_EVENTS.c.at < until)
    query = older_than(query, _EVENTS.c.at, _EVENTS.c.id, cursor, limit)
    rows = [AuditRecord(**row) for row in session.execute(query).mappings()]
    return page(rows, limit, lambda record: (record.at, record.id))


def one_event(session: Session, event_id: UUID) -> AuditRecord:
    """Return one event.

    Raises
    ------
    NoSuchRecord
        There is none of this id.
    """
    row = session.execute(select(*_COLUMNS).where(_EVENTS.c.id == event_id)).mappings().one_or_none()
    if row is None:
        raise NoSuchRecord(f"no event {event_id}")
    return AuditRecord(**row)


def events_after(session: Session, at: datetime, *, actions: Sequence[str], limit: int) -> list[AuditRecord]:
    """Return the events of these kinds from `at` on, the oldest first, at most `limit`."""
    query = select(*_COLUMNS).where(_EVENTS.c.at >= at, _EVENTS.c.action.in_(actions))
    rows = session.execute(query.order_by(_EVENTS.c.at, _EVENTS.c.id).limit(limit)).mappings()
    return [AuditRecord(**row) for row in rows]


def studies_of_subjects(session: Session, subjects: Sequence[UUID]) -> dict[UUID, tuple[UUID, Origin]]:
    """Return, by subject of an event, its study and where that came from; subjects without a study are left out."""
    sources = (
        select(_STUDIES.c.id, _STUDIES.c.id.label("study_id")).where(_STUDIES.c.id.in_(subjects)),
        select(_INSTANCES.c.id, _INSTANCES.c.study_id).where(_INSTANCES.c.id.in_(subjects)),
        select(_REPORTS.c.id, _REPORTS.c.study_id).where(_REPORTS.c.id.in_(subjects)),
        select(_REVIEWS.c.id, _REVIEWS.c.study_id).where(_REVIEWS.c.id.in_(subjects)),
        select(_DELIVERIES.c.id, _REPORTS.c.study_id)
        .join(_REPORTS, _REPORTS.c.id == _DELIVERIES.c.report_id)
        .where(_DELIVERIES.c.id.in_(subjects)),
    )
    found: dict[UUID, UUID] = {}
    for source in sources:
        found |= dict(session.execute(source).all())
    columns = (_STUDIES.c.id, _STUDIES.c.calling_ae_title, _STUDIES.c.institution)
    rows = session.execute(select(*columns).where(_STUDIES.c.id.in_(set(found.values()))))
    origins = {row.id: Origin(calling_ae_title=row.calling_ae_title, institution=row.institution) for row in rows}
    return {subject: (study_id, origins[study_id]) for subject, study_id in found.items()}
