"""What a peer is offered; and what it proposed and did not get, written down as soon as an association is accepted.

A modality whose SOP Class is refused sends nothing, and no receipt says so. Takes a negotiated association; what could
not be written waits for the next beat.
"""

from __future__ import annotations

import collections
import logging
import threading
from dataclasses import dataclass

from pynetdicom import AE
from pynetdicom.association import Association

from db import facts
from db.engine import DatabaseAway, Engine, db_now, session_scope
from pacs_node.conformance import (
    DATA_TRANSFER_SYNTAXES,
    MESSAGE_TRANSFER_SYNTAXES,
    STORAGE_CLASSES,
    STORAGE_COMMITMENT,
    VERIFICATION,
)
from pacs_node.identity import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from pacs_node.settings import DicomSettings

logger = logging.getLogger(__name__)

MOST_UNWRITTEN = 1000
"""Associations whose refused contexts wait for the database; of more only the number is kept, for the log."""


def application(settings: DicomSettings) -> AE:
    """Return what this node offers a peer that calls."""
    ae = AE(ae_title=settings.ae_title)
    ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.maximum_pdu_size = settings.max_pdu_bytes
    ae.acse_timeout, ae.dimse_timeout = settings.acse_timeout_s, settings.dimse_timeout_s
    ae.network_timeout = settings.network_timeout_s
    ae.add_supported_context(VERIFICATION, list(DATA_TRANSFER_SYNTAXES))
    for storage_class in STORAGE_CLASSES:
        ae.add_supported_context(storage_class.uid, list(storage_class.transfer_syntaxes))
    # The peer as SCP tells us what it keeps; as SCU it asks us, if that is switched on.
    ae.add_supported_context(
        STORAGE_COMMITMENT, list(MESSAGE_TRANSFER_SYNTAXES), scu_role=settings.storage_commitment, scp_role=True
    )
    return ae


@dataclass(frozen=True, slots=True, kw_only=True)
class Negotiated:
    """What one association proposed in vain: abstract syntaxes, each with the result of its contexts."""

    calling_ae_title: str
    refused: frozenset[tuple[str, int]]
    is_empty: bool
    """Nothing but Verification was accepted."""


def negotiated(association: Association, calling_ae_title: str) -> Negotiated:
    """Return the SOP Classes of which no presentation context was accepted (PS3.8 9.3.3.2).

    A class that was refused in one transfer syntax and accepted in another can be sent; Verification carries nothing.
    """
    usable = {str(context.abstract_syntax) for context in association.accepted_contexts} | {VERIFICATION}
    refused = {(str(context.abstract_syntax), context.result) for context in association.rejected_contexts}
    return Negotiated(
        calling_ae_title=calling_ae_title,
        refused=frozenset((uid, result) for uid, result in refused if uid not in usable),
        is_empty=usable == {VERIFICATION},
    )


class Refusals:
    """The counts of one listener process; used by all its associations at once."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._unwritten: collections.deque[Negotiated] = collections.deque()
        self._dropped = 0
        self._one_writer, self._one_reader = threading.Lock(), threading.Lock()

    def note(self, found: Negotiated) -> None:
        """Write down what was refused, if anything; later, with the next beat, if the database is away."""
        if not found.refused:
            return
        with self._one_reader:
            if len(self._unwritten) < MOST_UNWRITTEN:
                self._unwritten.append(found)
            else:
                self._dropped += 1
        try:
            self.write()
        except DatabaseAway:
            logger.warning("Refused contexts wait: the database is away", extra={"action": "database_away"})

    def write(self) -> None:
        """Write down what waits.

        Raises
        ------
        DatabaseAway
            To be tried again with the next beat.
        """
        with self._one_writer:
            while self._unwritten:
                found = self._unwritten[0]
                with session_scope(self._engine) as session:
                    now = db_now(session)
                    facts.record_refused_contexts(
                        session,
                        found.calling_ae_title,
                        found.refused,
                        is_empty=found.is_empty,
                        day=now.astimezone().date(),
                        now=now,
                    )
                self._unwritten.popleft()
        with self._one_reader:
            dropped, self._dropped = self._dropped, 0
        if dropped:
            extra = {"action": "refusals_dropped", "associations": dropped}
            logger.error("Refused contexts are not counted: too many waited for the database", extra=extra)
