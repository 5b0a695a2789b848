"""What peers tell the listener beside images: what they keep, what they want kept, and what they take back.

Takes a message and its `Caller`; writes the facts and gives the status it is answered with. Nothing here raises but
`OutOfResources`, which the sender of a rejection note is answered with.
"""

from __future__ import annotations

import logging
from typing import Any

from db import audit, facts
from db.audit import Action
from db.engine import DatabaseAway, Engine, db_now, session_scope
from pacs_node.conformance import STORAGE_COMMITMENT
from pacs_node.dimse import commitment
from pacs_node.errors import OutOfResources, StorageStatus
from pacs_node.listener.admission import Caller
from pacs_node.listener.rejected import RejectionNote, UnreadableNote, read_note
from pacs_node.settings import Settings
from pacs_node.store import Part
from pacs_node.told import apply_rejections, record_result

logger = logging.getLogger(__name__)

WAITING_REQUESTS = 200
"""Of one calling AE title that were not answered yet: one that nobody can be told about waits for a day."""


def read_rejecting(part: Part, transfer_syntax_uid: str) -> tuple[RejectionNote, ...]:
    """Return what a received Key Object Selection rejects; one that cannot be read is stored without effect."""
    try:
        return read_note(part, transfer_syntax_uid)
    except UnreadableNote as error:
        extra = {"action": "note_unread", "why": str(error)}
        logger.warning("A Key Object Selection is stored unread", extra=extra)
        return ()


class Hearing:
    """Used by all associations of a listener process at once."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings, self._engine = settings, engine

    def reject(self, notes: tuple[RejectionNote, ...], note_uid: str, caller: Caller) -> None:
        """Take rejected images out.

        Raises
        ------
        OutOfResources
            The database is away: the note is to be sent again.
        """
        actor = audit.peer(caller.calling_ae_title)
        try:
            with session_scope(self._engine) as session:
                now = db_now(session)
                if facts.is_own_object(session, note_uid):  # our own, sent back by a PACS that forwards everything
                    audit.append(session, Action.REJECTION_IGNORED, actor=actor, now=now)
                    return
                for note in notes:
                    facts.note_rejection(
                        session,
                        sop_instance_uids=note.sop_instance_uids,
                        study_instance_uid=note.study_instance_uid,
                        code=note.code,
                        note_uid=note_uid,
                        calling_ae_title=caller.calling_ae_title,
                        is_trusted=caller.may_reject,
                        now=now,
                    )
            apply_rejections(self._engine)
        except DatabaseAway as error:
            raise OutOfResources("the database is away") from error

    def result(self, event: Any) -> int:
        """Return the status of an N-EVENT-REPORT response (PS3.4 J.3.3)."""
        if not _is_about_commitment(event, event.request.AffectedSOPClassUID):
            return commitment.NO_SUCH_CLASS
        try:
            return commitment.status_of(event, lambda told: record_result(self._engine, self._settings, told))
        except Exception:  # a raising handler would answer nothing that the peer can use
            logger.exception("A storage commitment result could not be recorded", extra={"action": "result_failed"})
            return commitment.PROCESSING_FAILURE

    def request(self, event: Any, caller: Caller | None) -> int:
        """Return the status of an N-ACTION response; what is kept is told on an association of ours (PS3.4 J.3.2)."""
        if caller is None or not caller.may_store or not self._settings.dicom.storage_commitment:
            return int(StorageStatus.NOT_AUTHORISED)
        if not _is_about_commitment(event, event.request.RequestedSOPClassUID):
            return commitment.NO_SUCH_CLASS
        if str(event.request.RequestedSOPInstanceUID) != commitment.WELL_KNOWN_INSTANCE:
            return commitment.NO_SUCH_INSTANCE
        if event.action_type != commitment.REQUEST:
            return commitment.NO_SUCH_ACTION
        try:
            transaction_uid, objects = commitment.read_request(event.action_information)
            if len(objects) > commitment.MOST_OBJECTS:
                return commitment.RESOURCE_LIMITATION
            with session_scope(self._engine) as session:
                if facts.count_waiting_requests(session, caller.calling_ae_title) >= WAITING_REQUESTS:
                    return commitment.RESOURCE_LIMITATION
                is_new = facts.add_commitment_request(
                    session,
                    calling_ae_title=caller.calling_ae_title,
                    transaction_uid=transaction_uid,
                    objects=objects,
                    now=db_now(session),
                )
            return commitment.SUCCESS if is_new else commitment.DUPLICATE_TRANSACTION
        except ValueError:
            return commitment.INVALID_ARGUMENT
        except DatabaseAway:
            return commitment.RESOURCE_LIMITATION
        except Exception:  # a raising handler would answer nothing that the peer can use
            logger.exception("A storage commitment request failed", extra={"action": "request_failed"})
            return commitment.PROCESSING_FAILURE


def _is_about_commitment(event: Any, sop_class_uid: object) -> bool:
    """Tell whether a message is of the service under whose context it came, for pynetdicom looks at the message alone.

    No other context's transfer syntaxes are such that a message may be read in memory.
    """
    return str(sop_class_uid) == str(event.context.abstract_syntax) == STORAGE_COMMITMENT
