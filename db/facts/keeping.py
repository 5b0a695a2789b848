"""Storage commitment: what peers ask us to keep of theirs (what destinations keep of ours: `db.facts.commitments`)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, and_, delete, func, or_, select, update

from db import audit
from db.audit import DELIVERER, Action
from db.engine import Session, add_if_new
from db.tables import Association, CommitmentRequest, Instance, Outcome, Receipt, rows_of


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRequest:
    """A peer's question that waits for its answer."""

    request_id: UUID
    calling_ae_title: str
    transaction_uid: str
    objects: tuple[tuple[str, str], ...]
    """(SOP Class UID, SOP Instance UID)"""
    attempts: int


_REQUESTS, _INSTANCES = rows_of(CommitmentRequest), rows_of(Instance)
_RECEIPTS, _ASSOCIATIONS = rows_of(Receipt), rows_of(Association)


def add_commitment_request(
    session: Session,
    *,
    calling_ae_title: str,
    transaction_uid: str,
    objects: Collection[tuple[str, str]],
    now: datetime,
) -> bool:
    """Keep a peer's question until it is answered; False when the peer used this Transaction UID before."""
    row = {"calling_ae_title": calling_ae_title, "transaction_uid": transaction_uid, "received_at": now, "due_at": now}
    row["objects"] = [{"sop_class_uid": name, "sop_instance_uid": uid} for name, uid in objects]
    added = add_if_new(session, _REQUESTS, ("calling_ae_title", "transaction_uid"), row | {"attempts": 0})
    if added is None:
        return False
    details = {"objects": len(objects), "transaction_uid": transaction_uid}
    actor = audit.peer(calling_ae_title)
    audit.append(session, Action.COMMITMENT_REQUESTED, actor=actor, subject_id=added, details=details, now=now)
    return True


def count_waiting_requests(session: Session, calling_ae_title: str) -> int:
    """Return how many questions of a peer are not answered yet."""
    is_open = (_REQUESTS.c.calling_ae_title == calling_ae_title) & _REQUESTS.c.due_at.is_not(None)
    return session.execute(select(func.count()).select_from(_REQUESTS).where(is_open)).scalar_one()


def claim_commitment_request(
    session: Session, *, but_of: Collection[str], again_in_s: float, now: datetime
) -> OpenRequest | None:
    """Take the question that has waited longest; it is due again later, should its answer not arrive.

    Parameters
    ----------
    but_of
        Calling AE titles whose questions are left: those who cannot be told just now.
    again_in_s
        Seconds to the next try after the first; doubled with each.
    """
    first = select(_REQUESTS).where(_is_due(but_of, now)).order_by(_REQUESTS.c.due_at).limit(1)
    row = session.execute(first.with_for_update(skip_locked=True)).one_or_none()
    if row is None:
        return None
    due_at = now + timedelta(seconds=again_in_s * 2.0 ** min(row.attempts, 30))
    session.execute(update(_REQUESTS).where(_REQUESTS.c.id == row.id).values(due_at=due_at, attempts=row.attempts + 1))
    return OpenRequest(
        request_id=row.id,
        calling_ae_title=row.calling_ae_title,
        transaction_uid=row.transaction_uid,
        objects=tuple((one["sop_class_uid"], one["sop_instance_uid"]) for one in row.objects),
        attempts=row.attempts + 1,
    )


def is_commitment_requested(session: Session, *, but_of: Collection[str], now: datetime) -> bool:
    """Tell, without a lock, whether another peer than these waits for its answer."""
    return session.execute(select(_REQUESTS.c.id).where(_is_due(but_of, now)).limit(1)).first() is not None


def kept_classes(session: Session, sop_instance_uids: Collection[str]) -> dict[str, str]:
    """Return SOP Instance UID -> SOP Class UID of those objects that are stored here and not gone."""
    is_asked = _INSTANCES.c.sop_instance_uid.in_(sop_instance_uids)
    query = select(_INSTANCES.c.sop_instance_uid, _INSTANCES.c.sop_class_uid).where(
        is_asked, _INSTANCES.c.gone_at.is_(None)
    )
    return {row.sop_instance_uid: row.sop_class_uid for row in session.execute(query)}


def quarantined_of(session: Session, calling_ae_title: str, sop_instance_uids: Collection[str]) -> frozenset[str]:
    """Return those of these SOP Instance UIDs under which this peer sent content that is not the one stored here."""
    query = (
        select(_INSTANCES.c.sop_instance_uid)
        .join(_RECEIPTS, _RECEIPTS.c.instance_id == _INSTANCES.c.id)
        .join(_ASSOCIATIONS, _ASSOCIATIONS.c.id == _RECEIPTS.c.association_id)
        .where(_INSTANCES.c.sop_instance_uid.in_(sop_instance_uids), _RECEIPTS.c.outcome == Outcome.QUARANTINED)
        .where(_ASSOCIATIONS.c.calling_ae_title == calling_ae_title)
    )
    return frozenset(session.execute(query).scalars())


def close_commitment_request(session: Session, request_id: UUID, *, answered: bool, now: datetime) -> None:
    """Record that a peer has its answer, or that no more is tried."""
    values = {"due_at": None, "answered_at": now if answered else None}
    is_open = or_(_REQUESTS.c.due_at.is_not(None), _REQUESTS.c.answered_at.is_(None))
    session.execute(update(_REQUESTS).where(_REQUESTS.c.id == request_id, is_open).values(**values))
    details = {"is_answered": answered}
    audit.append(session, Action.COMMITMENT_ANSWERED, actor=DELIVERER, subject_id=request_id, details=details, now=now)


def purge_commitment_requests(session: Session, *, before: datetime) -> None:
    """Delete the questions of peers that came before then and are answered, or given up."""
    session.execute(delete(_REQUESTS).where(_REQUESTS.c.received_at < before, _REQUESTS.c.due_at.is_(None)))


def _is_due(but_of: Collection[str], now: datetime) -> ColumnElement[bool]:
    return and_(_REQUESTS.c.due_at <= now, _REQUESTS.c.calling_ae_title.not_in(but_of))
