"""Presentation contexts that were refused: what a modality wanted to send and could not, and nobody would hear of.

One row for each day, sender, SOP Class and reason. A peer that proposes ever new UIDs fills its own share of a day's
rows; what goes beyond is counted in one row of its own.
"""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from sqlalchemy import delete, func, select

from db.engine import Session, insert_into
from db.facts.visibility import Visible
from db.tables import RefusedContext, rows_of

PER_SENDER = 256
"""Rows of one sender in a day: twice what one association can propose (PS3.8 9.3.2.2)."""
PER_DAY = 4096
OTHERS = ""
"""Abstract syntax of what was no UID or is beyond these bounds; also the sender, when the day's rows are used up."""

_TABLE = rows_of(RefusedContext)
_KEY = ("day", "calling_ae_title", "abstract_syntax", "reason")
_UID = re.compile(r"[0-9.]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedContexts:
    """What one sender proposed in vain.

    Attributes
    ----------
    reason
        Result of the presentation context (PS3.8 Table 9-18).
    associations, empty_associations
        In how many it was proposed; in how many of them nothing but Verification was accepted.
    """

    calling_ae_title: str
    abstract_syntax: str
    reason: int
    associations: int
    empty_associations: int
    last_at: datetime


def record_refused_contexts(
    session: Session, calling_ae_title: str, refused: Set[tuple[str, int]], *, is_empty: bool, day: date, now: datetime
) -> None:
    """Count what one association proposed in vain.

    Parameters
    ----------
    refused
        Abstract syntaxes with the result of their contexts; at least one.
    is_empty
        Nothing but Verification was accepted.
    day
        The listener's local day.
    """
    places = _places(session, calling_ae_title, refused, day)
    counts: dict[str, Any] = {"associations": 1, "empty_associations": int(is_empty), "last_at": now}
    # In one order: two listeners that count the same contexts wait for each other's rows, and never in a circle.
    rows = [dict(zip(_KEY, (day, *place), strict=True)) | counts for place in sorted(places)]
    statement = insert_into(session, _TABLE).values(rows)
    added = {name: _TABLE.c[name] + statement.excluded[name] for name in ("associations", "empty_associations")}
    session.execute(statement.on_conflict_do_update(index_elements=_KEY, set_=added | {"last_at": now}))


def _places(session: Session, sender: str, refused: Set[tuple[str, int]], day: date) -> set[tuple[str, str, int]]:
    """Return the rows to count in, of which new ones only while there is room."""
    of_day = _TABLE.c.day == day
    of_sender = select(_TABLE.c.abstract_syntax, _TABLE.c.reason).where(of_day, _TABLE.c.calling_ae_title == sender)
    known = {(uid, reason) for uid, reason in session.execute(of_sender)}
    free = PER_DAY - session.execute(select(func.count()).select_from(_TABLE).where(of_day)).scalar_one()
    room = min(free, PER_SENDER - len(known))
    places = set()
    for uid, reason in sorted(refused):
        if (uid, reason) in known:
            places.add((sender, uid, reason))
        elif room > 0 and _UID.fullmatch(uid):
            places.add((sender, uid, reason))
            room -= 1
        else:
            places.add((sender if free > 0 else OTHERS, OTHERS, reason))
    return places


def list_refused_contexts(
    session: Session, *, since: date, until: date, sender: str = "", visible: Visible | None = None
) -> tuple[RefusedContexts, ...]:
    """Return what was refused on these days, both included; first of whom nothing else was accepted, then the most.

    Parameters
    ----------
    sender
        A calling AE title; empty = all.
    visible
        The calling AE titles that may be named; None = all.
    """
    associations, empty = func.sum(_TABLE.c.associations), func.sum(_TABLE.c.empty_associations)
    key = [_TABLE.c[name] for name in _KEY[1:]]
    query = (
        select(*key, associations, empty, func.max(_TABLE.c.last_at))
        .where(_TABLE.c.day.between(since, until))
        .group_by(*key)
        .order_by(empty.desc(), associations.desc(), *key)
    )
    if sender:
        query = query.where(_TABLE.c.calling_ae_title == sender)
    if visible is not None:
        query = query.where(_TABLE.c.calling_ae_title.in_(visible.senders))
    names = ("calling_ae_title", "abstract_syntax", "reason", "associations", "empty_associations", "last_at")
    return tuple(RefusedContexts(**dict(zip(names, row, strict=True))) for row in session.execute(query))


def count_refused_contexts(session: Session, day: date) -> dict[int, tuple[int, int]]:
    """Return, by reason, how many contexts were refused on a day, and how many of them in empty associations."""
    sums = func.sum(_TABLE.c.associations), func.sum(_TABLE.c.empty_associations)
    query = select(_TABLE.c.reason, *sums).where(_TABLE.c.day == day).group_by(_TABLE.c.reason)
    return {reason: (all_of_them, empty) for reason, all_of_them, empty in session.execute(query)}


def purge_refused_contexts(session: Session, *, before: date) -> None:
    """Delete the counts of days before this one."""
    session.execute(delete(_TABLE).where(_TABLE.c.day < before))
