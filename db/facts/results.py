"""Single images and totals as people see them: one image, the quarantine, and the sums that must add up."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Text, func, select, union_all

from db.engine import NoSuchRecord, Session
from db.facts.images import ImageFacts, image_of
from db.facts.paging import older_than, page
from db.facts.visibility import Visible, may_see
from db.tables import (
    Delivery,
    DeliveryState,
    Instance,
    InstanceState,
    Job,
    JobKind,
    JobState,
    Outcome,
    Receipt,
    Study,
    rows_of,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceDetail:
    """One image in full."""

    image: ImageFacts
    study_id: UUID
    study_instance_uid: str
    transfer_syntax_uid: str
    digest: str
    size_bytes: int
    received_at: datetime
    voi: str | None
    is_purged: bool
    """Its bytes are gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """Bytes that were kept apart: unreadable, or other content under a known SOP Instance UID."""

    receipt_id: UUID
    instance_id: UUID | None
    """The first copy."""
    reason: str
    path: str | None
    """None = its bytes were purged."""
    size_bytes: int
    received_at: datetime

    @property
    def is_purged(self) -> bool:
        """Tell whether its bytes are gone; what is known about them stays."""
        return self.path is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Conservation:
    """Every object received, by where it ended: `received` is the sum of the others (rule 7)."""

    received: int
    analysed: int
    not_analysed: int
    failed: int
    waiting: int
    duplicate: int
    quarantined: int

    @property
    def adds_up(self) -> bool:
        """Tell whether nothing was lost."""
        judged = self.analysed + self.not_analysed + self.failed + self.waiting
        return self.received == judged + self.duplicate + self.quarantined


_INSTANCES, _STUDIES, _RECEIPTS = rows_of(Instance), rows_of(Study), rows_of(Receipt)
_DELIVERIES, _JOBS = rows_of(Delivery), rows_of(Job)


def instance_detail(session: Session, instance_id: UUID) -> InstanceDetail:
    """Return one image in full.

    Raises
    ------
    NoSuchRecord
        There is no such instance.
    """
    image = image_of(session, instance_id)
    if image is None:
        raise NoSuchRecord(f"no instance {instance_id}")
    names = ("study_id", "transfer_syntax_uid", "digest", "size_bytes", "received_at", "voi")
    query = (
        select(
            *(_INSTANCES.c[n] for n in names),
            _STUDIES.c.study_instance_uid,
            _INSTANCES.c.gone_at.is_not(None).label("is_purged"),
        )
        .join(_STUDIES, _STUDIES.c.id == _INSTANCES.c.study_id)
        .where(_INSTANCES.c.id == instance_id)
    )
    return InstanceDetail(image=image, **session.execute(query).mappings().one())


def list_quarantined(
    session: Session, *, limit: int = 50, cursor: str | None = None
) -> tuple[list[Quarantined], str | None]:
    """Return one page of quarantined objects, the newest first, and the cursor of the next page."""
    columns = [_RECEIPTS.c[name] for name in Quarantined.__dataclass_fields__ if name != "receipt_id"]
    query = select(_RECEIPTS.c.id.label("receipt_id"), *columns).where(_RECEIPTS.c.outcome == Outcome.QUARANTINED)
    query = older_than(query, _RECEIPTS.c.received_at, _RECEIPTS.c.id, cursor, limit)
    rows = [Quarantined(**row) for row in session.execute(query).mappings()]
    return page(rows, limit, lambda kept: (kept.received_at, kept.receipt_id))


def counts(session: Session) -> Conservation:
    """Count every object received by where it ended, in one statement and so at one instant."""
    receipts = select(_RECEIPTS.c.outcome.cast(Text).label("name"), func.count().label("n")).group_by(
        _RECEIPTS.c.outcome
    )
    instances = select(_INSTANCES.c.state.cast(Text).label("name"), func.count().label("n")).group_by(
        _INSTANCES.c.state
    )
    found = dict(session.execute(union_all(receipts, instances)).all())
    ends = {end: found.get(end, 0) for end in (*InstanceState, Outcome.DUPLICATE, Outcome.QUARANTINED)}
    return Conservation(received=sum(found.get(outcome, 0) for outcome in Outcome), **ends)


def count_deliveries(session: Session) -> dict[tuple[str, DeliveryState], int]:
    """Return how many deliveries there are to each destination in each state."""
    query = select(_DELIVERIES.c.destination, _DELIVERIES.c.state, func.count())
    rows = session.execute(query.group_by(_DELIVERIES.c.destination, _DELIVERIES.c.state))
    return {(destination, state): count for destination, state, count in rows}


def oldest_waiting(session: Session) -> dict[JobKind, datetime]:
    """Return, by kind, when the oldest job that is ready came; kinds without one are left out."""
    ready = (
        select(_JOBS.c.kind, func.min(_JOBS.c.created_at)).where(_JOBS.c.state == JobState.READY).group_by(_JOBS.c.kind)
    )
    return dict(session.execute(ready).all())


def oldest_unreported(session: Session) -> datetime | None:
    """Return since when the study that waits longest has waited for its report; None if none waits."""
    oldest = select(func.min(_STUDIES.c.unreported_since)).where(_STUDIES.c.unreported_since.is_not(None))
    since: datetime | None = session.execute(oldest).scalar_one()
    return since


def list_senders(session: Session, visible: Visible | None = None) -> list[str]:
    """Return the calling AE titles that the studies which may be seen came from, in alphabetical order."""
    query = select(_STUDIES.c.calling_ae_title).distinct().order_by(_STUDIES.c.calling_ae_title)
    return list(session.execute(query if visible is None else query.where(may_see(visible))).scalars())
