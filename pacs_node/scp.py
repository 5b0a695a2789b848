"""pynetdicom bent to this node's needs; the only room that touches its private members (pynetdicom 3.0.4, pinned).

What it adds to an association acceptor: it accepts on a socket that other processes share, bounds what a peer can make
us buffer or wait for, and writes the data set of a C-STORE to the store while it arrives, instead of collecting it in
memory. It decides nothing: who may come in and what becomes of an object is asked of the listener.
"""

from __future__ import annotations

import contextlib
import io
import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from socketserver import TCPServer
from typing import Any

from pynetdicom import AE, _config, evt
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ, DIMSEMessage
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from pacs_node.errors import OutOfResources, StorageRefused
from pacs_node.header import encode_file_meta
from pacs_node.store import ObjectStore, Part

logger = logging.getLogger(__name__)
_config.LOG_HANDLER_LEVEL = "none"  # its handlers format every PDU

ROOM_CHECK_BYTES = 16 << 20
"""While a large object arrives, room is asked for again after so many bytes."""
NEGOTIATION_BYTES = 1 << 20
"""Of an A-ASSOCIATE-RQ: 128 presentation contexts with every transfer syntax need less."""
MESSAGE_BYTES = 1 << 20
"""Of a command set, and of the data set of anything but a C-STORE."""
WAITING_MESSAGES = 4
"""A peer that sends on without waiting for responses (never negotiated, PS3.7 D.3.3.3) is cut off at this many."""
UNNEGOTIATED_CONNECTIONS = 64
"""Connections beyond the limit of associations: enough for those still to be told so by an A-ASSOCIATE-RJ."""


class ProtocolBreach(Exception):
    """The peer broke the protocol, or went beyond the bounds above: the association is aborted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfers:
    """What an incoming data set needs from the node."""

    store: ObjectStore
    may_begin: Callable[[], None]
    """Raises StorageRefused when no object should begin to arrive now."""
    may_go_on: Callable[[], None]
    """The same for one that is arriving."""
    pdu_bytes: int
    pdu_timeout_s: float
    """A PDU that began to arrive is complete within this time, or its connection is closed."""
    max_associations: int


class IncomingDataSet(io.BytesIO):
    """The data set of the message that is being received: of a C-STORE a file that grows, else a few bytes in memory.

    After a refusal (no room, a disk fault) the rest is swallowed, so that the peer gets a status, not a broken
    connection.
    """

    def __init__(self, message: DIMSEMessage, provider: StorageProvider) -> None:
        super().__init__()
        self._message, self._provider = message, provider
        self.part: Part | None = None
        self.refusal: StorageRefused | None = None
        self.transfer_syntax_uid = ""
        self._next_check = ROOM_CHECK_BYTES

    def write(self, fragment: Any) -> int:
        if not isinstance(self._message, C_STORE_RQ):
            if self.tell() + len(fragment) > MESSAGE_BYTES:
                raise ProtocolBreach("the data set of a message is too long")
            return super().write(fragment)
        if self.refusal is None:
            try:
                self._write(fragment)
            except OSError:
                self.refuse(OutOfResources("the disk does not take it"))
            except StorageRefused as refusal:
                self.refuse(refusal)
        return len(fragment)

    def refuse(self, refusal: StorageRefused) -> None:
        self.refusal = refusal
        self.discard()

    def discard(self) -> None:
        if self.part is not None:
            self.part.discard()

    def _write(self, fragment: bytes) -> None:
        if self.part is None:
            self._provider.transfers.may_begin()
            self.part = self._begin()
            self._provider.opened.add(self)
        self.part.write(fragment)
        if self.part.size_bytes > self._next_check:
            self._provider.transfers.may_go_on()
            self._next_check += ROOM_CHECK_BYTES

    def _begin(self) -> Part:
        command = self._message.command_set
        sop_class, sop_instance = str(command.get("AffectedSOPClassUID")), str(command.get("AffectedSOPInstanceUID"))
        if max(len(sop_class), len(sop_instance)) > 64:
            raise ProtocolBreach("a UID in the command is too long")
        association = self._provider.assoc
        contexts = {context.context_id: context.transfer_syntax[0] for context in association.accepted_contexts}
        if self._message.context_id not in contexts:
            raise ProtocolBreach("a data set under a presentation context that was not accepted")
        self.transfer_syntax_uid = str(contexts[self._message.context_id])
        calling = association.requestor.ae_title.strip()
        part = self._provider.transfers.store.begin()
        part.write_meta(encode_file_meta(sop_class, sop_instance, self.transfer_syntax_uid, calling))
        return part


class StorageProvider(DIMSEServiceProvider):  # type: ignore[misc]
    """Receives messages; `transfers` says where their data sets go. Runs in the connection's reading thread."""

    def __init__(self, association: Association, transfers: Transfers) -> None:
        super().__init__(association)
        self.transfers = transfers
        self.opened: set[IncomingDataSet] = set()
        self.is_handling = False
        self.active_at = time.monotonic()

    @property
    def is_busy(self) -> bool:
        """A message is arriving, waits to be handled or is being handled."""
        return self.is_handling or self.message is not None or not self.msg_queue.empty()

    def receive_primitive(self, primitive: P_DATA) -> None:
        self.active_at = time.monotonic()
        try:
            if self.message is None:
                self._begin_message()
            if self.message.encoded_command_set.tell() > MESSAGE_BYTES:
                raise ProtocolBreach("a command set is too long")
            super().receive_primitive(primitive)
        except Exception:  # noqa: BLE001 - what a malformed message makes the decoder raise ends this association only
            self.dul.event_queue.put("Evt19")  # "unrecognised or invalid PDU": A-ABORT (PS3.8 Table 9-10)

    def _begin_message(self) -> None:
        if self.msg_queue.qsize() >= WAITING_MESSAGES:
            raise ProtocolBreach("too many messages at once")
        self.message = DIMSEMessage()
        self.message.data_set = IncomingDataSet(self.message, self)

    @contextlib.contextmanager
    def handling(self, data_set: IncomingDataSet) -> Any:
        """Mark a data set as being dealt with; its file is gone afterwards unless it was kept."""
        self.is_handling = True
        try:
            yield
        finally:
            data_set.discard()
            self.opened.discard(data_set)
            self.is_handling = False
            self.active_at = time.monotonic()

    def discard_all(self) -> None:
        """Delete what never became a message: the peer is gone."""
        for data_set in list(self.opened):
            data_set.discard()


class BoundedSocket(AssociationSocket):  # type: ignore[misc]
    """Reads a PDU in one buffer, of bounded length and in bounded time."""

    def __init__(self, association: Association, connection: socket.socket, transfers: Transfers) -> None:
        super().__init__(association, client_socket=connection)
        self._longest = max(transfers.pdu_bytes, NEGOTIATION_BYTES)
        self._timeout_s = transfers.pdu_timeout_s

    def recv(self, nr_bytes: int) -> bytearray:
        """Return `nr_bytes`, or fewer when the peer closed the connection.

        Raises
        ------
        OSError
            The PDU is longer than was negotiated, or the peer is too slow; pynetdicom then closes the connection.
        """
        if nr_bytes > self._longest:
            raise OSError("a PDU is longer than the maximum length")
        buffer = bytearray(nr_bytes)
        deadline = time.monotonic() + self._timeout_s
        received = 0
        with memoryview(buffer) as view:
            while received < nr_bytes:
                count = self.socket.recv_into(view[received:])
                if count == 0:
                    break
                received += count
                if time.monotonic() > deadline:
                    raise TimeoutError("a PDU took too long")
        del buffer[received:]
        return buffer


class NodeAssociation(Association):  # type: ignore[misc]
    """Ends by an A-ABORT when a malformed request makes negotiation raise, instead of leaving its connection open."""

    def run_reactor(self) -> None:
        try:
            super().run_reactor()
        except Exception:  # a thread that dies here would leave the connection open and counted until the peer goes
            logger.exception("An association broke off", extra={"action": "association_broken"})
            self.abort()


class Connection(RequestHandler):  # type: ignore[misc]
    """One connection from its first byte to its last; runs in a thread of its own, which outlives the association's."""

    server: SharedSocketServer

    def handle(self) -> None:
        association = self._create_association()
        try:
            association.start()
            association.join()
            association.dul.join()
        finally:
            association.dimse.discard_all()
            self.server.on_end(association)

    def _create_association(self) -> Association:
        """As the base class does it, with our socket and DIMSE provider, and without a deep copy of every context."""
        server = self.server
        association = NodeAssociation(self.ae, MODE_ACCEPTOR)
        association._server = server
        association.name = f"AcceptorThread@{self.remote.port}"  # pynetdicom finds its acceptors by the name
        association.set_socket(BoundedSocket(association, self.request, server.transfers))
        association.dimse = StorageProvider(association, server.transfers)
        association.acceptor.maximum_length = self.ae.maximum_pdu_size
        association.acceptor.ae_title = server.ae_title
        association.acceptor.address_info = self.local
        association.acceptor.implementation_class_uid = self.ae.implementation_class_uid
        association.acceptor.implementation_version_name = self.ae.implementation_version_name
        association.acceptor.supported_contexts = server.contexts  # negotiation only reads them
        association.requestor.address_info = self.remote
        for event, handlers in server._handlers.items():
            if event.is_intervention:
                association.bind(event, *handlers)
            else:
                for handler in handlers:
                    association.bind(event, *handler)
        return association


class SharedSocketServer(ThreadedAssociationServer):  # type: ignore[misc]
    """Accepts on a listening socket that other processes accept on too, each connection in a thread."""

    daemon_threads = True
    block_on_close = False  # the listener waits for its associations, with a deadline
    socket: Any

    def __init__(
        self,
        ae: AE,
        listening: socket.socket,
        transfers: Transfers,
        handlers: list[Any],
        on_end: Callable[[Association], None],
    ) -> None:
        self._listening = listening
        self.transfers, self.on_end = transfers, on_end
        self._unfinished = 0
        self._lock = threading.Lock()
        super().__init__(
            ae,
            listening.getsockname(),
            ae.ae_title,
            ae.supported_contexts,
            evt_handlers=[*handlers, (evt.EVT_CONN_CLOSE, _stop_waiting)],
            request_handler=Connection,
        )

    def server_bind(self) -> None:
        """Take the given socket instead of the one that socketserver made."""
        self.socket.close()
        self.socket = self._listening
        # Each process is told of a new connection, one gets it: for the others accept() must return at once.
        self.socket.setblocking(False)

    def server_activate(self) -> None:
        """It listens already."""

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = self.socket.accept()
        connection.settimeout(self.transfers.pdu_timeout_s)
        # Without it a response waits for the peer's delayed acknowledgement of the one before: 40 ms each.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Close a connection at once when even those that wait to be refused are too many."""
        return self._unfinished < self.transfers.max_associations + UNNEGOTIATED_CONNECTIONS

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._unfinished += 1
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._unfinished -= 1

    def server_close(self) -> None:
        """Close this process's handle only: `shutdown()` on the socket would close it for every listener."""
        self.socket.close()

    def shutdown(self) -> None:
        """Stop accepting; what is connected goes on."""
        TCPServer.shutdown(self)
        self.server_close()


def _stop_waiting(event: evt.Event) -> None:
    """End an association whose connection closed before it asked; pynetdicom would wait for its ACSE timeout."""
    if event.assoc.requestor.primitive is None:
        event.assoc.dul.to_user_queue.put(None)


def reject(association: Association, result: int, source: int, reason: int) -> None:
    """Answer A-ASSOCIATE-RJ (PS3.8 9.3.4) from a handler of EVT_REQUESTED."""
    association.acse.send_reject(result, source, reason)
    evt.trigger(association, evt.EVT_REJECTED, {})
    association.kill()
