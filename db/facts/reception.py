"""What becomes of one received object: new, a duplicate, or quarantined; right under many associations at once.

Study, series and instance go in by INSERT ... ON CONFLICT DO NOTHING, and an existing study row is written last: two
associations that send one study at once wait for each other only at the end, and never in a circle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import bindparam, case, func, insert, literal, select, update

from db import audit, queue
from db.audit import Action
from db.engine import Session, add_if_new
from db.facts.arrival import Identity, NewInstance, clean, hold_after, hold_of_new_study
from db.facts.holds import hold_study
from db.facts.visibility import one_spelling
from db.locks import wait_turn
from db.tables import Hold, Instance, InstanceState, JobKind, Outcome, Receipt, Series, Study, Warning, new_id, rows_of

SamePixels = Callable[[str, str], bool]
"""Tell whether two stored objects, given by their paths, decode to the same pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """What became of an object, and where it (or the first copy) stands."""

    outcome: Outcome
    instance_id: UUID
    study_id: UUID
    hold: Hold | None
    is_kept: bool
    """A row names the new bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCopy:
    """The first copy of a SOP Instance."""

    instance_id: UUID
    study_id: UUID
    path: str
    digest: str
    sop_class_uid: str
    transfer_syntax_uid: str
    series_instance_uid: str
    identity: Identity
    """As the first instance of its study said."""
    state: InstanceState
    hold: Hold | None
    gone_at: datetime | None
    """None: its bytes are here."""


_STUDIES, _SERIES, _INSTANCES, _RECEIPTS = rows_of(Study), rows_of(Series), rows_of(Instance), rows_of(Receipt)
_ADD_INSTANCE, _ADD_RECEIPT, _ADD_WARNING = insert(_INSTANCES), insert(_RECEIPTS), insert(rows_of(Warning))
_IDENTITY = tuple(_STUDIES.c[name] for name in Identity.__dataclass_fields__)
_COPY = (
    select(
        _INSTANCES.c.id.label("instance_id"),
        *(_INSTANCES.c[name] for name in ("study_id", "path", "digest", "sop_class_uid", "transfer_syntax_uid")),
        *(_INSTANCES.c[name] for name in ("state", "gone_at")),
        _SERIES.c.series_instance_uid,
        _STUDIES.c.hold,
        *_IDENTITY,
    )
    .join_from(_INSTANCES, _SERIES, _SERIES.c.id == _INSTANCES.c.series_id)
    .join(_STUDIES, _STUDIES.c.id == _INSTANCES.c.study_id)
    .where(_INSTANCES.c.sop_instance_uid == bindparam("sop_uid"))
)
_LOOK_UP = (
    select(
        _INSTANCES.c.id.label("copy_id"),
        _STUDIES.c.id.label("study_id"),
        _STUDIES.c.hold,
        *_IDENTITY,
        _SERIES.c.id.label("series_id"),
    )
    .select_from(select(literal(1)).subquery("always"))
    .outerjoin(_INSTANCES, _INSTANCES.c.sop_instance_uid == bindparam("sop_uid"))
    .outerjoin(_STUDIES, _STUDIES.c.study_instance_uid == bindparam("study_uid"))
    .outerjoin(
        _SERIES, (_SERIES.c.study_id == _STUDIES.c.id) & (_SERIES.c.series_instance_uid == bindparam("series_uid"))
    )
)
_LATEST = case((_STUDIES.c.last_received_at < bindparam("now"), bindparam("now")), else_=_STUDIES.c.last_received_at)
_MOST_URGENT = case((_STUDIES.c.priority < bindparam("urgency"), bindparam("urgency")), else_=_STUDIES.c.priority)
_TOUCH_STUDY = (
    update(_STUDIES)
    .where(_STUDIES.c.id == bindparam("study"))
    .values(
        last_received_at=_LATEST,
        priority=_MOST_URGENT,
        unreported_since=func.coalesce(
            _STUDIES.c.unreported_since, bindparam("judged_from", type_=_STUDIES.c.last_received_at.type)
        ),
        purged_at=None,
    )
)


def add_instance(
    session: Session, new: NewInstance, *, now: datetime, same_pixels: SamePixels | None = None
) -> Accepted:
    """Accept one durable object: its rows, its receipt, its job and its audit event.

    NEW: stored for the first time; queued to be judged, or *not analysed* with its reason.
    DUPLICATE: it is here with the same data set, or in another transfer syntax with equal identity and pixels. Where
    the first copy's bytes are gone, these take their place, and an image that failed for want of them is judged.
    QUARANTINED: it is here with other content; the first stays, the bytes at `new.path` are kept and shown.
    A disagreement about whose study it is holds the study, see `db.facts.arrival`.

    Parameters
    ----------
    same_pixels
        Asked, inside this transaction, about a copy in another transfer syntax; see `stored_copy` to compare before it.
    """
    wait_turn(session, f"sop {new.sop_instance_uid}")
    found = _look_up(session, new)
    if found.copy_id is None:
        return _accept_new(session, new, found, now)
    copy = stored_copy(session, new.sop_instance_uid)
    assert copy is not None
    return _accept_copy(session, copy, new, now, same_pixels)


def stored_copy(session: Session, sop_instance_uid: str) -> StoredCopy | None:
    """Return the stored copy of a SOP Instance; None if there is none."""
    row = session.execute(_COPY, {"sop_uid": sop_instance_uid}).one_or_none()
    if row is None:
        return None
    names = StoredCopy.__dataclass_fields__.keys() - {"identity"}
    return StoredCopy(identity=_identity_of(row), **{name: getattr(row, name) for name in names})


def quarantine(
    session: Session,
    *,
    path: str,
    digest: str,
    size_bytes: int,
    reason: str,
    association_id: UUID | None,
    now: datetime,
) -> None:
    """Record bytes that were kept though nobody can read them as DICOM."""
    receipt_id = new_id()
    row = {"id": receipt_id, "outcome": Outcome.QUARANTINED, "reason": clean(reason), "path": path, "received_at": now}
    row |= {"digest": digest, "size_bytes": size_bytes, "association_id": association_id}
    session.execute(_ADD_RECEIPT, row)
    audit.append(session, Action.INSTANCE_QUARANTINED, actor="listener", subject_id=receipt_id, now=now)


def record_refusal(
    session: Session, *, status: str, reason: str, calling_ae_title: str, association_id: UUID | None, now: datetime
) -> None:
    """Record that a sender was refused an object for good: nothing of it is kept, so nothing else tells of it.

    Parameters
    ----------
    reason
        In the node's own words.
    """
    details = {"status": status, "reason": reason}
    actor = audit.peer(calling_ae_title)
    audit.append(session, Action.INSTANCE_REFUSED, actor=actor, subject_id=association_id, details=details, now=now)


def _accept_copy(
    session: Session, copy: StoredCopy, new: NewInstance, now: datetime, same_pixels: SamePixels | None
) -> Accepted:
    agrees = copy.identity.agrees_with(new.identity)
    hold = copy.hold
    if new.digest == copy.digest or (agrees and _is_same_image(copy, new, same_pixels)):
        outcome, action, reason = Outcome.DUPLICATE, Action.INSTANCE_DUPLICATE, ""
    else:
        outcome, action = Outcome.QUARANTINED, Action.INSTANCE_QUARANTINED
        reason = (
            "other content under the same SOP Instance UID"
            if agrees
            else "another patient or study under the same SOP Instance UID"
        )
    is_back = outcome is Outcome.DUPLICATE and copy.gone_at is not None
    if is_back:
        _put_in_place(session, copy, new, now)
    _add_receipt(session, new, outcome, copy.instance_id, reason, now)
    details = {"reason": reason} if reason else {"is_back": True} if is_back else None
    audit.append(session, action, actor=_actor(new), subject_id=copy.instance_id, details=details, now=now)
    if outcome is Outcome.QUARANTINED and not agrees:
        hold = Hold.IDENTITY_CONFLICT
        hold_study(session, copy.study_id, hold, actor=_actor(new), now=now)
    is_kept = is_back or outcome is Outcome.QUARANTINED
    return Accepted(outcome=outcome, instance_id=copy.instance_id, study_id=copy.study_id, hold=hold, is_kept=is_kept)


def _put_in_place(session: Session, copy: StoredCopy, new: NewInstance, now: datetime) -> None:
    """Let new bytes stand for those of a copy that are gone; the retention time begins anew."""
    here = {name: getattr(new, name) for name in ("path", "size_bytes", "transfer_syntax_uid")} | {"gone_at": None}
    session.execute(update(_INSTANCES).where(_INSTANCES.c.id == copy.instance_id).values(here))
    if copy.state is InstanceState.FAILED:
        queue.requeue(session, JobKind.INFER, copy.instance_id, now=now)
    touch = {"study": copy.study_id, "now": now, "urgency": new.priority, "judged_from": None}
    session.execute(_TOUCH_STUDY, touch)


def _is_same_image(copy: StoredCopy, new: NewInstance, same_pixels: SamePixels | None) -> bool:
    """In the same transfer syntax another digest is other content; in another one the pixels decide."""
    is_alike = copy.sop_class_uid == new.sop_class_uid and copy.series_instance_uid == new.series_instance_uid
    is_recoded = copy.transfer_syntax_uid != new.transfer_syntax_uid
    return is_alike and is_recoded and same_pixels is not None and same_pixels(copy.path, new.path)


def _look_up(session: Session, new: NewInstance) -> Any:
    """Return what is known of the object's instance, study and series, in one round trip."""
    uids = {"sop_uid": new.sop_instance_uid, "study_uid": new.study_instance_uid, "series_uid": new.series_instance_uid}
    return session.execute(_LOOK_UP, uids).one()


def _accept_new(session: Session, new: NewInstance, found: Any, now: datetime) -> Accepted:
    study_id, before = found.study_id, found.hold
    judged_from = now if new.is_judged else None
    if study_id is None:
        study_id = _add_study(session, new, judged_from, now)
        if study_id is None:  # another association added it since the look
            return _accept_new(session, new, _look_up(session, new), now)
        hold = hold_of_new_study(new.identity)
        instance_id = _add_image(session, new, study_id, None, now)
    else:
        hold = hold_after(_identity_of(found), new.identity, before)
        instance_id = _add_image(session, new, study_id, found.series_id, now)
        touch = {"study": study_id, "now": now, "urgency": new.priority, "judged_from": judged_from}
        session.execute(_TOUCH_STUDY, touch)
    if hold is not None and hold != before:
        hold_study(session, study_id, hold, actor=_actor(new), now=now)
    return Accepted(outcome=Outcome.NEW, instance_id=instance_id, study_id=study_id, hold=hold, is_kept=True)


def _add_study(session: Session, new: NewInstance, judged_from: datetime | None, now: datetime) -> Any:
    """Add the study's row and return its id; None when it is there already."""
    row: dict[str, Any] = {name: clean(getattr(new, name)) for name in _STUDY_TEXTS}
    row |= {"institution": one_spelling(clean(new.institution_name)), "study_date": new.study_date}
    row |= {"priority": new.priority, "first_received_at": now, "last_received_at": now}
    return add_if_new(session, _STUDIES, ("study_instance_uid",), row | {"unreported_since": judged_from})


_STUDY_TEXTS = (
    "study_instance_uid",
    "patient_id",
    "issuer_of_patient_id",
    "patient_name",
    "patient_birth_date",
    "patient_sex",
    "accession_number",
    "study_description",
    "calling_ae_title",
)


_INSTANCE_FIELDS = (
    "sop_instance_uid",
    "sop_class_uid",
    "transfer_syntax_uid",
    "digest",
    "size_bytes",
    "path",
    "association_id",
    "is_judged",
)


def _add_image(session: Session, new: NewInstance, study_id: UUID, series_id: UUID | None, now: datetime) -> UUID:
    """Add the instance with its series, its receipt, its audit event, and its job or the reason why it has none."""
    instance_id = new_id()
    row = {name: getattr(new, name) for name in _INSTANCE_FIELDS}
    row |= {"id": instance_id, "study_id": study_id, "received_at": now}
    row["series_id"] = series_id or _add_series(session, new, study_id)
    row["state"] = InstanceState.WAITING if new.is_judged else InstanceState.NOT_ANALYSED
    session.execute(_ADD_INSTANCE, row)
    _add_receipt(session, new, Outcome.NEW, instance_id, "", now)
    if new.is_judged:
        queue.enqueue(session, JobKind.INFER, instance_id, study_id, priority=new.priority, now=now)
    elif new.not_judged_reason is not None:
        code, text = new.not_judged_reason
        warning = {"instance_id": instance_id, "code": code, "severity": "forbids", "text": text, "created_at": now}
        session.execute(_ADD_WARNING, warning)
    audit.append(session, Action.INSTANCE_STORED, actor=_actor(new), subject_id=instance_id, now=now)
    return instance_id


def _add_series(session: Session, new: NewInstance, study_id: UUID) -> UUID:
    row = {"study_id": study_id, "series_instance_uid": new.series_instance_uid, "modality": clean(new.modality)[:16]}
    added = add_if_new(session, _SERIES, ("study_id", "series_instance_uid"), row)
    found: UUID = added or _look_up(session, new).series_id
    return found


def _add_receipt(
    session: Session, new: NewInstance, outcome: Outcome, instance_id: UUID, reason: str, now: datetime
) -> None:
    row = {"outcome": outcome, "instance_id": instance_id, "reason": reason, "received_at": now}
    row |= {"path": new.path if outcome is Outcome.QUARANTINED else None, "association_id": new.association_id}
    session.execute(_ADD_RECEIPT, row | {"digest": new.digest, "size_bytes": new.size_bytes})


def _identity_of(row: Any) -> Identity:
    return Identity(**{name: getattr(row, name) for name in Identity.__dataclass_fields__})


def _actor(new: NewInstance) -> str:
    return audit.peer(new.calling_ae_title)
