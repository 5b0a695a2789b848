"""Where everything went that each sender sent in a span of time: the sums that must add up, sender by sender.

Receipts are counted by what was answered, instances by where they stand: two tables, so that a lost row is found.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Text, func, select

from db.audit import PEER, Action
from db.engine import Session
from db.facts.results import Conservation
from db.tables import Association, AuditEvent, Instance, InstanceState, Outcome, Receipt, Study, rows_of

UIDS_AT_ONCE = 500
UNKNOWN_SENDER = ""
"""Of what came over no association that was written down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SenderCounts:
    """One sender's objects by where they ended."""

    calling_ae_title: str
    ends: Conservation
    refused: int
    """Objects and associations that were refused for good, apart from the sum: nothing of them was received."""


_ASSOCIATIONS, _INSTANCES, _RECEIPTS, _EVENTS = (
    rows_of(Association),
    rows_of(Instance),
    rows_of(Receipt),
    rows_of(AuditEvent),
)
_STUDIES = rows_of(Study)
_REFUSALS = (Action.INSTANCE_REFUSED, Action.ASSOCIATION_REFUSED)


def sums_by_sender(session: Session, start: datetime, end: datetime) -> tuple[SenderCounts, ...]:
    """Return the counts of every sender that sent or was refused something, start <= time < end, in order of name."""
    counted: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for table, kind in ((_RECEIPTS, _RECEIPTS.c.outcome), (_INSTANCES, _INSTANCES.c.state)):
        sender = _ASSOCIATIONS.c.calling_ae_title
        query = (
            select(sender, kind.cast(Text), func.count())
            .select_from(table.outerjoin(_ASSOCIATIONS, _ASSOCIATIONS.c.id == table.c.association_id))
            .where(*_within(table.c.received_at, start, end))
            .group_by(sender, kind)
        )
        for name, end_state, count in session.execute(query):
            counted[name or UNKNOWN_SENDER][end_state] += count
    refused = _refusals(session, start, end)
    return tuple(
        SenderCounts(calling_ae_title=name, ends=_ends(counted[name]), refused=refused[name])
        for name in sorted(counted.keys() | refused.keys())
    )


def studies_without_image(session: Session, study_instance_uids: Sequence[str]) -> tuple[str, ...]:
    """Return those of the studies of which no image to be judged ever came, in their order.

    A report or a presentation state that came makes no study known: its image may have been refused in negotiation.
    """
    images = _STUDIES.join(_INSTANCES, _INSTANCES.c.study_id == _STUDIES.c.id)
    known = select(_STUDIES.c.study_instance_uid).select_from(images).where(_INSTANCES.c.is_judged).distinct()
    came: set[str] = set()
    for start in range(0, len(study_instance_uids), UIDS_AT_ONCE):
        asked = study_instance_uids[start : start + UIDS_AT_ONCE]
        came.update(session.execute(known.where(_STUDIES.c.study_instance_uid.in_(asked))).scalars())
    return tuple(uid for uid in study_instance_uids if uid not in came)


def _refusals(session: Session, start: datetime, end: datetime) -> Counter[str]:
    query = (
        select(_EVENTS.c.actor, func.count())
        .where(_EVENTS.c.action.in_(_REFUSALS), *_within(_EVENTS.c.at, start, end))
        .group_by(_EVENTS.c.actor)
    )
    return Counter({str(actor).removeprefix(PEER): count for actor, count in session.execute(query)})


def _within(at: ColumnElement[datetime], start: datetime, end: datetime) -> tuple[ColumnElement[bool], ...]:
    return (at >= start, at < end)


def _ends(found: Counter[str]) -> Conservation:
    ends = {str(end): found[end] for end in (*InstanceState, Outcome.DUPLICATE, Outcome.QUARANTINED)}
    return Conservation(received=sum(found[outcome] for outcome in Outcome), **ends)
