"""An association acceptor made of pynetdicom's, bent to this node's needs.

What it adds: it accepts on a socket that other processes share, bounds what a peer can make us buffer or wait for, and
waits where pynetdicom looks a thousand times a second, in two threads of every association. It decides nothing: who may
come in is asked of the listener. Touches private members of pynetdicom 3.0.4 (pinned).
"""

from __future__ import annotations

import contextlib
import logging
import queue
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from socketserver import TCPServer
from typing import Any

from pynetdicom import AE, _config, evt
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.association import Association
from pynetdicom.fsm import StateMachine
from pynetdicom.pdu import A_ABORT_RQ
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from pacs_node.listener.incoming import WAIT_S, StorageProvider, Transfers

logger = logging.getLogger(__name__)
_config.LOG_HANDLER_LEVEL = "none"  # its handlers format every PDU

NEGOTIATION_BYTES = 1 << 20
"""Of an A-ASSOCIATE-RQ: 128 presentation contexts with every transfer syntax need less."""
UNNEGOTIATED_CONNECTIONS = 64
"""Connections beyond the limit of associations: enough for those still to be told so by an A-ASSOCIATE-RJ."""
STRANGERS = 32
"""Connections at once from addresses from which nobody may call: they are told so, and never take the last place."""
COURTESY_S, COURTESY_MAX_S = 0.001, 0.01
"""Waited before a connection is accepted, for each that is served already."""
SERVICE_PROVIDER, REASON_NOT_SPECIFIED = 2, 0
"""Source and reason of an A-ABORT (PS3.8 Table 9-26)."""
TURN_S = 0.00005
"""Slept by pynetdicom's reading thread in each turn; it waits in `BoundedSocket.ready` instead."""


class _WakingQueue(queue.Queue[Any]):
    """Calls `wake` after every item."""

    def __init__(self, wake: Callable[[], None]) -> None:
        super().__init__()
        self._wake = wake

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        self._wake()


class BoundedSocket(AssociationSocket):  # type: ignore[misc]
    """Waits for a PDU or for something to send; reads a PDU in one buffer, of bounded length and in bounded time."""

    def __init__(self, association: Association, connection: socket.socket, transfers: Transfers) -> None:
        super().__init__(association, client_socket=connection)
        self._longest = max(transfers.pdu_bytes, NEGOTIATION_BYTES)
        self._timeout_s = transfers.pdu_timeout_s
        self._woken, self._waker = socket.socketpair()
        self._waker.setblocking(False)

    def wake(self) -> None:
        """Make `ready` return: there is something to send."""
        with contextlib.suppress(OSError):  # full: it is awake already; closed: nobody sleeps
            self._waker.send(b"\0")

    def close_waker(self) -> None:
        self._waker.close()
        self._woken.close()

    @property
    def ready(self) -> bool:
        """Wait until the peer sent something (True), or `wake` was called or `WAIT_S` passed (False)."""
        if self.socket is None or not self._is_connected:
            return False
        poll = select.poll()
        try:
            poll.register(self.socket, select.POLLIN)
            poll.register(self._woken, select.POLLIN)
            if isinstance(self.socket, ssl.SSLSocket) and self.socket.pending():
                return True  # decrypted already, where no poll sees it
            has_work = not self.event_queue.empty()  # pynetdicom asks here once for each event
            readable = {descriptor for descriptor, _ in poll.poll(0 if has_work else WAIT_S * 1000)}
            if self._woken.fileno() in readable:
                self._woken.recv(4096)
            return self.socket.fileno() in readable
        except (OSError, ValueError):
            self.event_queue.put("Evt17")  # transport connection closed (PS3.8 Table 9-10)
            return False

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
                # A sender without TCP_NODELAY waits for our acknowledgement, which Linux delays unless told each time.
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
                if time.monotonic() > deadline:
                    raise TimeoutError("a PDU took too long")
        del buffer[received:]
        return buffer


class NodeStateMachine(StateMachine):  # type: ignore[misc]
    """Ends an association by an A-ABORT (PS3.8 9.3.8) when an event cannot be dealt with.

    pynetdicom's reading thread would die, and the connection stay open and counted, whatever the peer does, until a
    timer ends it.
    """

    def do_action(self, event: str) -> None:
        try:
            super().do_action(event)
        except Exception:  # a request that pynetdicom cannot make sense of, or an event out of turn
            logger.exception("An association broke off", extra={"action": "association_broken"})
            abort = A_ABORT_RQ()
            abort.source, abort.reason_diagnostic = SERVICE_PROVIDER, REASON_NOT_SPECIFIED
            self.dul.socket.send(abort.encode())
            self.dul.assoc.is_aborted, self.dul.assoc.is_established = True, False
            self.dul.assoc._kill = True
            self.dul.kill_dul()
            self.dul.to_user_queue.put(None)


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
        if not self._is_secure():
            return
        association = self._create_association()
        try:
            association.start()
            association.join()
            association.dul.join()
        finally:
            association.dul.socket.close_waker()
            association.dimse.discard_all()
            self.server.on_end(association)

    def _is_secure(self) -> bool:
        """Shake hands if TLS is asked for; in this thread, so that a slow peer keeps nobody waiting."""
        if not isinstance(self.request, ssl.SSLSocket):
            return True
        try:
            self.request.do_handshake()
        except OSError as error:  # SSLError is one; what a stranger sent stands in none of its reasons
            reason = getattr(error, "reason", None) or type(error).__name__
            self.server.transfers.on_insecure(self.remote.address, f"TLS: {reason}".lower())
            return False
        return True

    def _create_association(self) -> Association:
        """As the base class does it, with our socket, queues and DIMSE provider, and contexts that are not copied."""
        server = self.server
        association = NodeAssociation(self.ae, MODE_ACCEPTOR)
        association._server = server
        association.name = f"AcceptorThread@{self.remote.port}"  # pynetdicom finds its acceptors by the name
        connection = BoundedSocket(association, self.request, server.transfers)
        association.set_socket(connection)
        association.dimse = StorageProvider(association, server.transfers)
        association.dul.to_provider_queue = _WakingQueue(connection.wake)
        association.dul.to_user_queue = _WakingQueue(association.dimse.wake)
        association.dul.state_machine = NodeStateMachine(association.dul)
        association.dul._run_loop_delay = TURN_S
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
        self._most = transfers.max_associations + UNNEGOTIATED_CONNECTIONS
        ae.maximum_associations = (
            self._most
        )  # pynetdicom counts this process's connections; the limits are the listener's
        self._unfinished = self._strangers = 0
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
        """Accept; a process that serves many lets one that serves fewer go first."""
        time.sleep(min(self._unfinished * COURTESY_S, COURTESY_MAX_S))
        connection, address = self.socket.accept()
        connection.settimeout(self.transfers.pdu_timeout_s)
        # Without it a response waits for the peer's delayed acknowledgement of the one before: 40 ms each.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if self.transfers.tls is not None:
            connection = self.transfers.tls.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=True
            )
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Close a connection at once when even those that wait to be refused are too many."""
        is_room = self._strangers < STRANGERS or self.transfers.is_known(client_address[0])
        return is_room and self._unfinished < self._most

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        is_stranger = not self.transfers.is_known(client_address[0])
        with self._lock:
            self._unfinished += 1
            self._strangers += is_stranger
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._unfinished -= 1
                self._strangers -= is_stranger

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
