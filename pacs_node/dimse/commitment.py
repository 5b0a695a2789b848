"""Storage commitment (PS3.4 Annex J) on associations of ours: asking a destination, and answering a peer.

Takes pairs of SOP Class and Instance UID; gives what is kept and what is not. Hides the N-ACTION, the N-EVENT-REPORT
and their data sets. A destination answers on the association on which it was asked, or on one of its own: then the
listener hears it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import build_context, build_role, evt

from pacs_node.conformance import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, STORAGE_COMMITMENT
from pacs_node.dimse.association import CONNECT_TIMEOUT_S, RESPONSE_TIMEOUT_S, associate
from pacs_node.errors import DeliveryDelayed, DeliveryRejected
from pacs_node.settings import DestinationSettings

WELL_KNOWN_INSTANCE = "1.2.840.10008.1.20.1.1"
"""Storage Commitment Push Model SOP Instance (PS3.4 J.3.5)."""
UID_LENGTH = 64
MOST_OBJECTS = 10_000
"""Of one request or result: our database looks them up in one statement."""
REQUEST = 1
"""Action Type ID (PS3.4 Table J.3-1)."""
ALL_KEPT, SOME_FAILED = 1, 2
"""Event Type IDs (PS3.4 Table J.3-2)."""
SUCCESS = 0x0000
INVALID_ARGUMENT, PROCESSING_FAILURE, NO_SUCH_EVENT, NO_SUCH_CLASS = 0x0115, 0x0110, 0x0113, 0x0118
"""Of an N-EVENT-REPORT response (PS3.7 10.1.1.1.8); an N-ACTION response has the same but the third."""
RESOURCE_LIMITATION, DUPLICATE_TRANSACTION, NO_SUCH_INSTANCE, NO_SUCH_ACTION = 0x0213, 0x0131, 0x0112, 0x0123
"""Of an N-ACTION response as well (PS3.4 J.3.2.2, PS3.7 10.1.4.1.10)."""
_CONTEXTS = (STORAGE_COMMITMENT, [EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN])

Pairs = Iterable[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitmentResult:
    """What a peer says it keeps, under the Transaction UID of the question."""

    transaction_uid: str
    kept: tuple[str, ...]
    """SOP Instance UIDs."""
    failed: Mapping[str, int]
    """SOP Instance UID -> Failure Reason (PS3.3 C.14.1.1)."""


def read_result(told: Dataset) -> CommitmentResult:
    """Read the Event Information of an N-EVENT-REPORT (PS3.4 Table J.3-2).

    Raises
    ------
    ValueError
        An attribute that it must have is missing or malformed.
    """
    try:
        result = CommitmentResult(
            transaction_uid=str(told.TransactionUID),
            kept=tuple(str(item.ReferencedSOPInstanceUID) for item in told.get("ReferencedSOPSequence") or ()),
            failed={
                str(item.ReferencedSOPInstanceUID): int(item.FailureReason)
                for item in told.get("FailedSOPSequence") or ()
            },
        )
        if len(result.kept) + len(result.failed) > MOST_OBJECTS:
            raise ValueError("too many objects")
        return result
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError("a malformed storage commitment result") from error


def read_request(asked: Dataset) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Read the Action Information of an N-ACTION (PS3.4 Table J.3-1): the Transaction UID and the objects.

    Raises
    ------
    ValueError
        An attribute that it must have is missing or malformed.
    """
    try:
        objects = tuple(
            (str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID))
            for item in asked.ReferencedSOPSequence
        )
        transaction_uid = str(asked.TransactionUID)
        uids = {transaction_uid, *(uid for pair in objects for uid in pair)}
        if not objects or not all(0 < len(uid) <= UID_LENGTH for uid in uids):
            raise ValueError("nothing is asked, or a UID is none")
        return transaction_uid, objects
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError("a malformed storage commitment request") from error


def ask(
    destination: DestinationSettings,
    transaction_uid: str,
    objects: Pairs,
    *,
    calling_ae_title: str,
    on_result: Callable[[CommitmentResult], bool],
    wait_s: float,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    response_timeout_s: float = RESPONSE_TIMEOUT_S,
) -> None:
    """Ask a destination whether it keeps objects; wait a moment for an answer on the same association.

    Parameters
    ----------
    on_result
        Called, in another thread, with an answer that comes in time; returns whether it was an answer to us.
    wait_s
        After that the association is released; the answer comes to the listener.

    Raises
    ------
    DeliveryDelayed, DeliveryRejected
        It was not asked: no association, or the N-ACTION was not answered with success.
    """
    answered = threading.Event()

    def take(event: evt.Event) -> int:
        status = status_of(event, on_result)
        answered.set()
        return status

    association = associate(
        destination,
        calling_ae_title,
        [build_context(*_CONTEXTS)],
        connect_timeout_s,
        response_timeout_s,
        handlers=[(evt.EVT_N_EVENT_REPORT, take)],
    )
    try:
        asked = Dataset()
        asked.TransactionUID = transaction_uid
        asked.ReferencedSOPSequence = [_reference(*pair) for pair in objects]
        answer, _ = association.send_n_action(asked, REQUEST, STORAGE_COMMITMENT, WELL_KNOWN_INSTANCE)
        if answer.get("Status") != SUCCESS:
            status = answer.get("Status")
            text = "no answer to the request for storage commitment" if status is None else f"N-ACTION: {status:04X}"
            raise DeliveryDelayed(destination.name, text)
        answered.wait(wait_s)
    except (RuntimeError, OSError) as error:  # pynetdicom: the association is over
        raise DeliveryDelayed(destination.name, "the association was lost") from error
    finally:
        association.release()


def status_of(event: Any, on_result: Callable[[CommitmentResult], bool]) -> int:
    """Hand a received N-EVENT-REPORT to `on_result`; return the status it is answered with. Never raises."""
    if event.event_type not in (ALL_KEPT, SOME_FAILED):
        return NO_SUCH_EVENT
    try:
        result = read_result(event.event_information)
        return SUCCESS if on_result(result) else INVALID_ARGUMENT
    except ValueError:
        return INVALID_ARGUMENT
    except Exception:  # noqa: BLE001 - a stranger's data set, or a database that is away: the peer tells us again
        return PROCESSING_FAILURE


def answer(
    peer: DestinationSettings,
    result: CommitmentResult,
    classes: Mapping[str, str],
    *,
    calling_ae_title: str,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    response_timeout_s: float = RESPONSE_TIMEOUT_S,
) -> None:
    """Tell a peer what this node keeps of what it asked, on an association of our own (PS3.4 J.3.3).

    Parameters
    ----------
    classes
        SOP Instance UID -> the SOP Class UID by which the peer asked.

    Raises
    ------
    DeliveryDelayed, DeliveryRejected
        It could not be told.
    """
    told = Dataset()
    told.TransactionUID = result.transaction_uid
    if result.kept:
        told.ReferencedSOPSequence = [_reference(classes[uid], uid) for uid in result.kept]
    if result.failed:
        told.FailedSOPSequence = [_reference(classes[uid], uid, reason) for uid, reason in result.failed.items()]
    association = associate(
        peer,
        calling_ae_title,
        [build_context(*_CONTEXTS)],
        connect_timeout_s,
        response_timeout_s,
        roles=[build_role(STORAGE_COMMITMENT, scp_role=True)],
    )
    try:
        event_type = SOME_FAILED if result.failed else ALL_KEPT
        response, _ = association.send_n_event_report(told, event_type, STORAGE_COMMITMENT, WELL_KNOWN_INSTANCE)
    except (RuntimeError, OSError, ValueError) as error:
        raise DeliveryDelayed(peer.name, "the association was lost") from error
    finally:
        association.release()
    status = response.get("Status")
    if status != SUCCESS:
        text = "no answer" if status is None else f"{status:04X}"
        raise (DeliveryDelayed if status in (None, PROCESSING_FAILURE) else DeliveryRejected)(
            peer.name, f"N-EVENT-REPORT: {text}"
        )


def _reference(sop_class_uid: str, sop_instance_uid: str, failure_reason: int | None = None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class_uid, sop_instance_uid
    if failure_reason is not None:
        item.FailureReason = failure_reason
    return item
