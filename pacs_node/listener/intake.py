"""From received bytes to facts: one object is filed, durable, before anybody is told that it arrived.

Takes a file that was written as it came (`store.Part`) and what the network said about it; gives what became of it, or
raises the `StorageRefused` that the peer is answered. File first, then one transaction: a crash between them leaves a
file that no row names.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from db import facts, queue
from db.engine import DatabaseAway, Engine, Session, db_now, read_scope, session_scope
from db.facts import Accepted, NewInstance
from db.tables import JobKind, Outcome
from pacs_node.conformance import STORAGE_CLASS_BY_UID, NotJudged
from pacs_node.errors import CannotUnderstand, DataSetMismatch, OutOfResources, StorageStatus
from pacs_node.listener.group_commit import GroupCommit
from pacs_node.listener.header import Header, read_header
from pacs_node.listener.same_pixels import have_same_pixels
from pacs_node.store import QUARANTINE, ObjectStore, Part, StoredFile

logger = logging.getLogger(__name__)

QUEUE_LOOK_S = 1.0
"""The length of the queue is asked for once in this time, not for every object."""
OWN_UID_ROOT = "2.25."
"""Every UID that this node makes is derived from a UUID (PS3.5 B.2): others need not be looked for among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reception:
    """What the network said about one object (PS3.7 9.1.1.1)."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae_title: str
    association_id: UUID | None
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Beyond these an object is refused for now: the sender should try again."""

    min_free_bytes: int
    max_waiting: int
    """Images waiting to be judged."""


class _Undecided(Exception):
    """The transaction needs to know whether two files hold the same pixels."""

    def __init__(self, existing: str, new: str) -> None:
        self.files = (existing, new)


class Intake:
    """Files objects; one per process, used by all its associations at once.

    Parameters
    ----------
    own_device_uids
        Device UIDs (0018,1002) that this node's models write into the Contributing Equipment of what they make.
    compare
        Tells whether two files hold the same pixels; by default in a process that may be killed.
    """

    def __init__(
        self,
        engine: Engine,
        store: ObjectStore,
        limits: Limits,
        *,
        own_device_uids: Collection[str] = (),
        compare: Callable[[Path, Path], bool] = have_same_pixels,
    ) -> None:
        self._engine, self._store, self._limits = engine, store, limits
        self._group = GroupCommit(engine)
        self._own_device_uids = frozenset(own_device_uids)
        self._compare = compare
        self._queue_looked_at = -QUEUE_LOOK_S
        self._waiting = 0

    def require_room(self) -> None:
        """Refuse what could not be kept or judged: before a byte is written, and again while a large object arrives.

        Raises
        ------
        OutOfResources
            The disk is below its watermark, the queue too long or the database away.
        """
        if self._store.free_bytes() < self._limits.min_free_bytes:
            raise OutOfResources("the disk is nearly full")
        if time.monotonic() - self._queue_looked_at > QUEUE_LOOK_S:
            self._waiting = self._count_waiting()
            self._queue_looked_at = time.monotonic()
        if self._waiting > self._limits.max_waiting:
            raise OutOfResources("too many images wait to be judged")

    def _count_waiting(self) -> int:
        try:
            with read_scope(self._engine) as session:
                return queue.waiting(session, JobKind.INFER)
        except DatabaseAway as error:
            raise OutOfResources("the database is away") from error

    def accept(self, part: Part, reception: Reception) -> Outcome:
        """File one object. When this returns, its bytes and its row outlive a power cut; `part` is used up in any case.

        Raises
        ------
        DataSetMismatch
            Its SOP Class or Instance UID is not what the command said; nothing is kept.
        CannotUnderstand
            It cannot be read as DICOM; its bytes are kept in quarantine.
        OutOfResources
            Disk or database fail at the moment.
        """
        with part:
            try:
                with part.data_set() as data_set:
                    header = read_header(data_set, reception.transfer_syntax_uid)
            except CannotUnderstand as refusal:
                self._quarantine(part, reception, str(refusal))
                raise
            if (header.sop_class_uid, header.sop_instance_uid) != (reception.sop_class_uid, reception.sop_instance_uid):
                mismatch = DataSetMismatch("SOP Class or Instance UID differs from the command's")
                self.note_refusal(mismatch.status, str(mismatch), reception.calling_ae_title, reception.association_id)
                raise mismatch
            stored = _keep(part)
        accepted = self._file(header, stored, reception)
        if not accepted.is_kept:
            self._store.delete(stored.path)
        if accepted.outcome is Outcome.QUARANTINED:
            logger.error(
                "An object came again with other content: the first stays, the second is quarantined",
                extra={"action": "instance_quarantined", "instance_id": str(accepted.instance_id)},
            )
        return accepted.outcome

    def _file(self, header: Header, stored: StoredFile, reception: Reception) -> Accepted:
        """Write the facts; a question about pixels ends the transaction, is answered outside it, and it runs again."""
        answers: dict[tuple[str, str], bool] = {}

        def same_pixels(existing: str, new: str) -> bool:
            if (existing, new) not in answers:
                raise _Undecided(existing, new)
            return answers[existing, new]

        def write(session: Session) -> Accepted:
            may_be_ours = header.sop_instance_uid.startswith(OWN_UID_ROOT)
            is_known = may_be_ours and facts.is_own_object(session, header.sop_instance_uid)
            new = self._new_instance(header, stored, reception, is_known)
            return facts.add_instance(session, new, now=db_now(session), same_pixels=same_pixels)

        while True:
            try:
                return self._group.run(write)
            except _Undecided as undecided:
                existing, candidate = undecided.files
                answers[existing, candidate] = self._compare(
                    self._store.absolute(existing), self._store.absolute(candidate)
                )
            except DatabaseAway as error:  # the commit may have arrived: the file stays, as an orphan if it did not
                raise OutOfResources("the database is away") from error

    def _new_instance(self, header: Header, stored: StoredFile, reception: Reception, is_known: bool) -> NewInstance:
        is_own = is_known or not self._own_device_uids.isdisjoint(header.device_uids)
        reason = NotJudged.OWN_OBJECT if is_own else reason_not_judged(header)
        return NewInstance(
            study_instance_uid=header.study_instance_uid,
            series_instance_uid=header.series_instance_uid,
            sop_instance_uid=header.sop_instance_uid,
            sop_class_uid=header.sop_class_uid,
            transfer_syntax_uid=reception.transfer_syntax_uid,
            modality=header.modality,
            patient_id=header.patient_id,
            issuer_of_patient_id=header.issuer_of_patient_id,
            patient_name=header.patient_name,
            patient_birth_date=header.patient_birth_date,
            patient_sex=header.patient_sex,
            accession_number=header.accession_number,
            study_date=header.study_date,
            study_description=header.study_description,
            institution_name=header.institution_name,
            digest=stored.digest,
            size_bytes=stored.size_bytes,
            path=stored.path,
            calling_ae_title=reception.calling_ae_title,
            association_id=reception.association_id,
            priority=reception.priority,
            is_judged=reason is None,
            not_judged_reason=(reason.value, reason.text) if reason else None,
        )

    def note_refusal(
        self, status: StorageStatus, reason: str, calling_ae_title: str, association_id: UUID | None
    ) -> None:
        """Audit an object that is refused for good.

        Raises
        ------
        OutOfResources
            The database is away: the sender may try again, and is refused then.
        """
        try:
            with session_scope(self._engine) as session:
                facts.record_refusal(
                    session,
                    status=f"{status:04X}",
                    reason=reason,
                    calling_ae_title=calling_ae_title,
                    association_id=association_id,
                    now=db_now(session),
                )
        except DatabaseAway as error:
            raise OutOfResources("the database is away") from error

    def _quarantine(self, part: Part, reception: Reception, reason: str) -> None:
        stored = _keep(part, QUARANTINE)
        try:
            with session_scope(self._engine) as session:
                facts.quarantine(
                    session,
                    path=stored.path,
                    digest=stored.digest,
                    size_bytes=stored.size_bytes,
                    reason=reason,
                    association_id=reception.association_id,
                    now=db_now(session),
                )
        except DatabaseAway as error:
            raise OutOfResources("the database is away") from error


def reason_not_judged(header: Header) -> NotJudged | None:
    """Return why an object that others made is stored only; None for an image to be judged.

    ImageType DERIVED\\SECONDARY (PS3.3 C.7.6.1.1.2) is made from another image: a heat map, an enhanced copy.
    """
    storage_class = STORAGE_CLASS_BY_UID.get(header.sop_class_uid)
    if storage_class is None:
        return NotJudged.NOT_AN_IMAGE
    if storage_class.not_judged is None and header.image_type[:2] == ("DERIVED", "SECONDARY"):
        return NotJudged.DERIVED
    return storage_class.not_judged


def _keep(part: Part, area: str | None = None) -> StoredFile:
    try:
        return part.keep(area) if area else part.keep()
    except OSError as error:
        raise OutOfResources("the disk does not take it") from error
