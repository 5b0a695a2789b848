"""One listener process: what may be sent to the node, and what a sender is answered.

Takes associations from a socket that all listeners share. Every C-STORE goes through `intake` and is answered with
success only when its bytes and its row outlive a power cut. Hides negotiation, statuses, the heartbeat of open
associations and the drain.
"""

from __future__ import annotations

import errno
import functools
import logging
import socket
import ssl
import threading
import time
from typing import Any

import pydicom.config
from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.association import Association

from db.engine import DatabaseAway, Engine, check_revision, make_engine
from db.tables import Outcome
from models.errors import ModelError
from pacs_node.conformance import KEY_OBJECT_SELECTION
from pacs_node.dimse.tls import listening_context, names_of_peer
from pacs_node.errors import CannotUnderstand, ConfigError, OutOfResources, StorageRefused, StorageStatus
from pacs_node.identity import device_uid
from pacs_node.listener.admission import CONGESTED, Admission, Caller, Rejection, is_known_address
from pacs_node.listener.hearing import Hearing, read_rejecting
from pacs_node.listener.incoming import IncomingDataSet, Transfers
from pacs_node.listener.intake import Intake, Limits, Reception
from pacs_node.listener.negotiation import Refusals, application, negotiated
from pacs_node.listener.scp import SharedSocketServer, reject
from pacs_node.settings import DicomSettings, Settings
from pacs_node.store import ObjectStore
from pacs_node.wiring import registry_of

logger = logging.getLogger(__name__)

BACKLOG = 128
BEAT_S = 3.0
"""Well below the time after which a silent listener's associations count as lost."""
QUIET_S = 0.5
"""While draining, an association without a message for so long is closed."""
LAST_WORDS_S = 2.0
"""For associations closed at the deadline to be written down."""
STALE_PART_S = 600.0
"""Nobody writes to the file of a living transfer less often: `scp` closes a connection that stalls."""
ERROR_COMMENT_LENGTH = 64
HIGH_PRIORITY = 1
"""Of a C-STORE (PS3.7 9.3.1.1)."""
STAT = 1


def bind_dicom_socket(settings: DicomSettings) -> socket.socket:
    """Return the one listening socket of the node.

    Raises
    ------
    ConfigError
        The port is in use or not allowed, the host is not one of this machine's, or a certificate cannot be used.
    """
    listening_context(settings)
    where = f"dicom.port {settings.port} on {settings.host}"
    try:
        family, kind, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart need not wait for TIME_WAIT
            listening.bind(address)
            listening.listen(BACKLOG)
        except BaseException:  # do not leak the socket
            listening.close()
            raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"{where} is in use by another program: stop it or choose another port") from None
        raise ConfigError(f"{where} cannot be opened: {error.strerror or error}") from None
    return listening


class Listener:
    """The handlers of one listener process. Each runs in its association's thread; none of them raises."""

    def __init__(self, settings: Settings, engine: Engine, admission: Admission, intake: Intake) -> None:
        self._admission, self._intake = admission, intake
        self._hearing = Hearing(settings, engine)
        self.refusals = Refusals(engine)
        self._callers: dict[Association, Caller] = {}
        self.draining = threading.Event()

    @property
    def handlers(self) -> list[Any]:
        return [
            (evt.EVT_REQUESTED, self.admit),
            (evt.EVT_ACCEPTED, self.note_refused),
            (evt.EVT_C_STORE, self.store),
            (evt.EVT_N_EVENT_REPORT, self.hear_result),
            (evt.EVT_N_ACTION, self.hear_request),
        ]

    def require_open(self) -> None:
        """Raise `OutOfResources` for an object that begins to arrive while the listener drains."""
        if self.draining.is_set():
            raise OutOfResources("the node is stopping")
        self._intake.require_room()

    def admit(self, event: evt.Event) -> None:
        """Let an association in or reject it, before it is negotiated."""
        association: Association = event.assoc
        decision = self._decide(association)
        if isinstance(decision, Rejection):
            reject(association, decision.result, decision.source, decision.reason)
        else:
            self._callers[association] = decision

    def note_refused(self, event: evt.Event) -> None:
        """Count the presentation contexts that were refused, once they are negotiated."""
        self.refusals.note(negotiated(event.assoc, self._callers[event.assoc].calling_ae_title))

    def _decide(self, association: Association) -> Caller | Rejection:
        if self.draining.is_set():
            return CONGESTED
        request = association.requestor.primitive
        try:
            return self._admission.judge(
                str(request.calling_ae_title),
                str(request.called_ae_title),
                association.requestor.address,
                _certificate_of(association),
            )
        except DatabaseAway:
            return CONGESTED
        except Exception:  # pynetdicom would go on and accept: in doubt the door stays shut
            logger.exception("An association could not be judged", extra={"action": "association_failed"})
            return CONGESTED

    def store(self, event: evt.Event) -> int | Dataset:
        """Answer a C-STORE (PS3.4 B.2.3)."""
        data_set: IncomingDataSet = event.request.DataSet
        with event.assoc.dimse.handling(data_set):
            try:
                return self._store(event, data_set)
            except StorageRefused as refusal:
                logger.warning("An object was refused", extra={"action": "store_refused", "reason": str(refusal)})
                return _response(refusal.status, str(refusal))
            except Exception:  # a raising handler would answer C211, which tells a sender nothing
                logger.exception("An object could not be filed", extra={"action": "store_failed"})
                return _response(StorageStatus.PROCESSING_FAILURE, "internal error, see the node's log")

    def _store(self, event: evt.Event, data_set: IncomingDataSet) -> int | Dataset:
        caller = self._callers[event.assoc]
        refusal = _refusal(event, caller)
        if refusal is not None:
            status, reason = refusal
            self._intake.note_refusal(status, reason, caller.calling_ae_title, caller.association_id)
            return _response(status, reason)
        if data_set.refusal is not None:
            raise data_set.refusal
        if data_set.part is None:
            raise CannotUnderstand("there is no data set")
        is_note = event.request.AffectedSOPClassUID == KEY_OBJECT_SELECTION
        rejecting = read_rejecting(data_set.part, data_set.transfer_syntax_uid) if is_note else ()
        outcome = self._intake.accept(
            data_set.part,
            Reception(
                sop_class_uid=str(event.request.AffectedSOPClassUID),
                sop_instance_uid=str(event.request.AffectedSOPInstanceUID),
                transfer_syntax_uid=data_set.transfer_syntax_uid,
                calling_ae_title=caller.calling_ae_title,
                association_id=caller.association_id,
                priority=STAT if caller.is_urgent or event.request.Priority == HIGH_PRIORITY else 0,
            ),
        )
        if (
            rejecting and outcome is not Outcome.QUARANTINED
        ):  # before it is acknowledged: its sender tries again if that fails
            self._hearing.reject(rejecting, str(event.request.AffectedSOPInstanceUID), caller)
        return int(StorageStatus.SUCCESS)

    def hear_request(self, event: evt.Event) -> tuple[int, None]:
        """Answer an N-ACTION: a peer asks us to keep what it sent."""
        return self._hearing.request(event, self._callers.get(event.assoc)), None

    def hear_result(self, event: evt.Event) -> tuple[int, None]:
        """Answer an N-EVENT-REPORT: a destination says what it keeps of our results."""
        return self._hearing.result(event), None

    def end(self, association: Association) -> None:
        """Note that an association is over, however it ended."""
        caller = self._callers.get(association)
        if caller is not None:
            self._admission.close(caller, is_released=association.is_released)
            del self._callers[association]

    def drain(self, deadline: float) -> None:
        """Let running stores finish and close what is quiet; at `deadline` (monotonic), close everything."""
        while self._callers and time.monotonic() < deadline:
            for association in list(self._callers):
                provider = association.dimse
                if not provider.is_busy and time.monotonic() - provider.active_at > QUIET_S:
                    association.abort(block=False)
            time.sleep(0.02)
        for association in list(self._callers):
            association.abort(block=False)
        give_up = time.monotonic() + LAST_WORDS_S
        while self._callers and time.monotonic() < give_up:
            time.sleep(0.02)


def run_listener(
    settings: Settings, listening: socket.socket | None, listener_name: str, stop: threading.Event
) -> None:
    """Serve associations until `stop` is set, then drain.

    Parameters
    ----------
    listening
        Bound and listening, shared with the other listeners; None: this process binds its own.
    listener_name
        Names this process in the associations it opens.

    Raises
    ------
    ConfigError
        The port cannot be opened.
    SchemaMismatch
        The database is of another revision.
    """
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE  # its warnings quote values
    listening = listening or bind_dicom_socket(settings.dicom)
    engine = make_engine(settings.database_url)
    check_revision(engine)
    store = ObjectStore(settings.store_dir)
    limits = Limits(min_free_bytes=int(settings.store.min_free_gb * 1e9), max_waiting=settings.queue.max_waiting)
    admission = Admission(settings.dicom, engine, listener_name)
    intake = Intake(engine, store, limits, own_device_uids=_own_device_uids(settings))
    listener = Listener(settings, engine, admission, intake)
    transfers = Transfers(
        store=store,
        may_begin=listener.require_open,
        may_go_on=intake.require_room,
        pdu_bytes=settings.dicom.max_pdu_bytes,
        pdu_timeout_s=settings.dicom.network_timeout_s,
        max_associations=settings.dicom.max_associations,
        tls=listening_context(settings.dicom),
        on_insecure=admission.note_insecure,
        is_known=functools.partial(is_known_address, settings.dicom),
    )
    server = SharedSocketServer(application(settings.dicom), listening, transfers, listener.handlers, listener.end)
    is_over = threading.Event()
    threading.Thread(
        target=_beat, args=(admission, listener.refusals, store, is_over), name="beat", daemon=True
    ).start()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, name="accept", daemon=True).start()
    stop.wait()
    logger.info("The listener drains", extra={"action": "listener_drains"})
    listener.draining.set()
    server.shutdown()
    listener.drain(time.monotonic() + settings.dicom.drain_timeout_s)
    is_over.set()
    engine.dispose()


def _own_device_uids(settings: Settings) -> set[str]:
    """The Device UIDs of the models on disk; a broken model must not keep images out."""
    try:
        return {device_uid(card.weights_sha256) for card in registry_of(settings).cards()}
    except ModelError:
        logger.warning(
            "The models cannot be read: own objects are known by their UIDs alone", extra={"action": "no_models"}
        )
        return set()


def _refusal(event: evt.Event, caller: Caller) -> tuple[StorageStatus, str] | None:
    """Return why nothing of that SOP Class is taken from this caller; None if it is."""
    if not caller.may_store:
        return StorageStatus.NOT_AUTHORISED, "this AE title may not store here"
    if event.request.AffectedSOPClassUID != event.context.abstract_syntax:
        return StorageStatus.SOP_CLASS_NOT_SUPPORTED, "the SOP Class is not that of the presentation context"
    return None


def _certificate_of(association: Association) -> frozenset[str]:
    connection = association.dul.socket.socket
    return names_of_peer(connection) if isinstance(connection, ssl.SSLSocket) else frozenset()


def _beat(admission: Admission, refusals: Refusals, store: ObjectStore, is_over: threading.Event) -> None:
    while True:
        try:
            admission.beat()
            refusals.write()
            store.sweep_incoming(older_than_s=STALE_PART_S)
        except (DatabaseAway, OSError):
            logger.warning("The heartbeat waits: database or disk are away", extra={"action": "beat_failed"})
        except Exception:  # a heart that stops would count all associations as lost while images still come
            logger.exception("A heartbeat failed", extra={"action": "beat_failed"})
        if is_over.wait(BEAT_S):
            return


def _response(status: StorageStatus, comment: str) -> Dataset:
    response = Dataset()
    response.Status = int(status)
    response.ErrorComment = comment[:ERROR_COMMENT_LENGTH]
    return response
