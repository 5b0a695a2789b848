"""The audit trail: plain inserts beside the facts, sealed into one chain afterwards.

An event is appended in its fact's transaction, without a number, so that ingest is not serialised. One sealer numbers
the committed events in the order in which it finds them and links each to the one before: HMAC-SHA256, with a key that
is not in the database, over the previous link and the event. Editing, deleting, inserting or re-ordering sealed events
breaks a link; `audit_head` tells where the chain ends, so that cutting off its tail is found too.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import bindparam, func, insert, select, update

from db.engine import ADDRESS, Session, insert_into
from db.locks import wait_turn
from db.tables import AuditEvent, AuditHead, rows_of

BROKEN_SHOWN = 1000
"""A verdict names this many broken sequence numbers and no more."""
START = ""
"""What the first event is linked to."""
PATIENT_KEYS = ("patient", "accession", "birth", "issuer")
"""No key of an event's details begins so: the trail outlives the patient's consent and is read by many."""


class Action(enum.StrEnum):
    """What was done."""

    INSTANCE_STORED = "instance_stored"
    INSTANCE_DUPLICATE = "instance_duplicate"
    INSTANCE_QUARANTINED = "instance_quarantined"
    INSTANCE_REFUSED = "instance_refused"
    QUARANTINE_PURGED = "quarantine_purged"
    STUDY_HELD = "study_held"
    STUDY_RELEASED = "study_released"
    STUDY_VIEWED = "study_viewed"
    STUDY_SEARCHED = "study_searched"
    STUDIES_LISTED = "studies_listed"
    STUDY_PURGED = "study_purged"
    INSTANCE_JUDGED = "instance_judged"
    INSTANCE_NOT_ANALYSED = "instance_not_analysed"
    INSTANCE_FAILED = "instance_failed"
    UPLOAD_JUDGED = "upload_judged"
    UPLOAD_NOT_ANALYSED = "upload_not_analysed"
    REPORT_FROZEN = "report_frozen"
    REPORT_BUILT = "report_built"
    REPORT_CANCELLED = "report_cancelled"
    REPORT_FAILED = "report_failed"
    REPORT_WITHDRAWN = "report_withdrawn"
    HEATMAP_FAILED = "heatmap_failed"
    ATTRIBUTES_EMPTIED = "attributes_emptied"
    DELIVERY_SENT = "delivery_sent"
    DELIVERY_DELAYED = "delivery_delayed"
    DELIVERY_HELD = "delivery_held"
    DELIVERY_FAILED = "delivery_failed"
    DELIVERY_ARCHIVED = "delivery_archived"
    DELIVERY_WITHDRAWN = "delivery_withdrawn"
    OBJECT_SENT = "object_sent"
    OBJECT_REFUSED = "object_refused"
    COMMITMENT_ASKED = "commitment_asked"
    COMMITMENT_FAILED = "commitment_failed"
    COMMITMENT_REQUESTED = "commitment_requested"
    COMMITMENT_ANSWERED = "commitment_answered"
    REPORT_RECALLED = "report_recalled"
    JUDGEMENT_RECALLED = "judgement_recalled"
    IMAGE_REJECTED = "image_rejected"
    REJECTION_IGNORED = "rejection_ignored"
    STUDY_FETCHED = "study_fetched"
    REVIEW_ADDED = "review_added"
    REVIEWS_EXPORTED = "reviews_exported"
    JOB_RETRIED = "job_retried"
    JOB_CLOSED = "job_closed"
    INSTANCE_RERUN = "instance_rerun"
    DELIVERY_RESENT = "delivery_resent"
    LIST_EXPORTED = "list_exported"
    DICOM_FETCHED = "dicom_fetched"
    MODEL_LOADED = "model_loaded"
    MODEL_ADDED = "model_added"
    MODEL_ACTIVATED = "model_activated"
    MODEL_ROLLED_BACK = "model_rolled_back"
    MODEL_RECALLED = "model_recalled"
    ORPHAN_SWEPT = "orphan_swept"
    NODE_STARTED = "node_started"
    NODE_STOPPED = "node_stopped"
    ROLE_RESTARTED = "role_restarted"
    ASSOCIATION_REFUSED = "association_refused"
    ACCESS_REFUSED = "access_refused"
    LOGGED_IN = "logged_in"
    LOGGED_OUT = "logged_out"
    LOGIN_FAILED = "login_failed"
    PASSWORD_SHOWN = "password_shown"
    ACCOUNT_CHANGED = "account_changed"
    TOKEN_CREATED = "token_created"
    TOKEN_REVOKED = "token_revoked"
    SETTINGS_CHANGED = "settings_changed"
    DATABASE_MIGRATED = "database_migrated"
    BACKUP_MADE = "backup_made"
    CHAIN_VERIFIED = "chain_verified"


PEER = "ae:"
"""Before its AE title: who an application on the network is as an actor."""


DELIVERER = "deliver"
"""The role that sends, as an actor."""


def peer(calling_ae_title: str) -> str:
    """Return the actor that an application on the network is."""
    return PEER + calling_ae_title


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """One event as it stands in the trail."""

    id: UUID
    at: datetime
    action: str
    actor: str
    subject_id: UUID | None
    details: dict[str, Any]
    sequence: int | None
    """Its place in the chain, from 1; None = not sealed yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What walking the whole chain found."""

    sealed: int
    unsealed: int
    broken: list[int]
    """Sequence numbers that are missing or do not fit their link, at most `BROKEN_SHOWN`."""
    head: str | None
    """The last link; None = nothing sealed yet."""


_EVENTS = rows_of(AuditEvent)
_INSERT = insert(_EVENTS)
_SEALED = (
    _EVENTS.c.id,
    _EVENTS.c.at,
    _EVENTS.c.action,
    _EVENTS.c.actor,
    _EVENTS.c.subject_id,
    _EVENTS.c.details,
    _EVENTS.c.sequence,
)


def append(
    session: Session,
    action: Action,
    *,
    actor: str,
    subject_id: UUID | None = None,
    details: Mapping[str, Any] | None = None,
    now: datetime,
) -> None:
    """Add an event to this transaction; with `session_scope(address=...)` it says from where.

    Parameters
    ----------
    actor
        Who did it: a role, ``ae:TITLE`` or a user's name, at most 64 characters.
    subject_id
        The study, instance, report, delivery, ... it was done to.
    details
        What JSON can hold, and no patient attribute.

    Raises
    ------
    ValueError
        A key of `details` names a patient attribute.
    """
    details = dict(details or {})
    if ADDRESS in session.info:
        details["from"] = session.info[ADDRESS]
    for key in details:
        if key.startswith(PATIENT_KEYS):
            raise ValueError(f"audit details must not hold a patient attribute: {key}")
    session.execute(
        _INSERT, {"at": now, "action": action, "actor": actor[:64], "subject_id": subject_id, "details": details}
    )


def seal(session: Session, key: bytes, *, limit: int = 1000) -> int:
    """Number and link up to `limit` committed events; return how many. Two sealers wait for each other."""
    wait_turn(session, "seal")
    sequence, link = _end_of_chain(session, key)
    unsealed = select(*_SEALED).where(_EVENTS.c.sequence.is_(None)).order_by(_EVENTS.c.at, _EVENTS.c.id).limit(limit)
    links = []
    for event in session.execute(unsealed).all():
        sequence += 1
        link = _link(key, link, event, sequence)
        links.append({"event_id": event.id, "new_sequence": sequence, "new_link": link})
    if links:
        numbered = update(_EVENTS).where(_EVENTS.c.id == bindparam("event_id"))
        session.connection().execute(
            numbered.values(sequence=bindparam("new_sequence"), link=bindparam("new_link")), links
        )
        _move_head(session, key, sequence, link)
    return len(links)


def verify(session: Session, key: bytes) -> Verdict:
    """Walk the whole chain and name what does not fit."""
    previous, expected = START, 1
    broken: list[int] = []
    chain = select(*_SEALED, _EVENTS.c.link).where(_EVENTS.c.sequence.is_not(None)).order_by(_EVENTS.c.sequence)
    sealed = 0
    for event in session.execute(chain.execution_options(yield_per=1000)):
        broken += _missing(expected, event.sequence, len(broken))
        if (
            not hmac.compare_digest(_link(key, previous, event, event.sequence), event.link or "")
            and len(broken) < BROKEN_SHOWN
        ):
            broken.append(event.sequence)
        previous, expected, sealed = event.link or "", event.sequence + 1, sealed + 1
    broken += _broken_end(session, key, expected - 1, previous, len(broken))
    unsealed = session.execute(
        select(func.count()).select_from(_EVENTS).where(_EVENTS.c.sequence.is_(None))
    ).scalar_one()
    return Verdict(sealed=sealed, unsealed=unsealed, broken=sorted(set(broken)), head=previous or None)


def tail(session: Session, limit: int) -> list[AuditRecord]:
    """Return the newest events, the oldest of them first."""
    newest = select(*_SEALED).order_by(_EVENTS.c.at.desc(), _EVENTS.c.id.desc()).limit(limit)
    return [AuditRecord(**event._mapping) for event in reversed(session.execute(newest).all())]


def _end_of_chain(session: Session, key: bytes) -> tuple[int, str]:
    """Return the number and the link to go on from; a head that is not genuine leaves a gap for `verify` to name."""
    head = session.execute(select(AuditHead)).scalar_one_or_none()
    newest = select(_EVENTS.c.sequence, _EVENTS.c.link).where(_EVENTS.c.sequence.is_not(None))
    last = session.execute(newest.order_by(_EVENTS.c.sequence.desc()).limit(1)).one_or_none()
    if head is None and last is None:
        return 0, START
    is_genuine = head is not None and hmac.compare_digest(_head_mac(key, head.sequence, head.link), head.mac)
    if head is not None and is_genuine and (last is None or last.sequence <= head.sequence):
        return head.sequence, head.link
    return (last.sequence + 1, last.link or START) if last else (1, START)


def _move_head(session: Session, key: bytes, sequence: int, link: str) -> None:
    values = {"sequence": sequence, "link": link, "mac": _head_mac(key, sequence, link)}
    statement = insert_into(session, rows_of(AuditHead)).values(id=1, **values)
    session.execute(statement.on_conflict_do_update(index_elements=["id"], set_=values))


def _broken_end(session: Session, key: bytes, last: int, link: str, known: int) -> list[int]:
    """Return what is missing after the last event, and the end itself if it is not where the head says."""
    head = session.execute(select(AuditHead.sequence, AuditHead.link, AuditHead.mac)).one_or_none()
    if head is None:
        return [last] if last else []
    is_genuine = hmac.compare_digest(_head_mac(key, head.sequence, head.link), head.mac)
    if is_genuine and (head.sequence, head.link) == (last, link):
        return []
    return list(_missing(last + 1, head.sequence + 1, known)) or [last]


def _missing(expected: int, found: int, known: int) -> Iterator[int]:
    return iter(range(expected, min(found, expected + max(0, BROKEN_SHOWN - known))))


def _link(key: bytes, previous: str, event: Any, sequence: int) -> str:
    """Return HMAC-SHA256 over the previous link and the event as canonical JSON."""
    fields = {
        "previous": previous,
        "sequence": sequence,
        "id": event.id.hex,
        "at": event.at.astimezone(UTC).isoformat(timespec="microseconds"),
        "action": event.action,
        "actor": event.actor,
        "subject_id": event.subject_id.hex if event.subject_id else None,
        "details": event.details,
    }
    return _mac(key, json.dumps(fields, sort_keys=True, separators=(",", ":")))


def _head_mac(key: bytes, sequence: int, link: str) -> str:
    return _mac(key, f"head:{sequence}:{link}")


def _mac(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
