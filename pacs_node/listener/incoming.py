"""Messages as they arrive on an association: the data set of a C-STORE goes to the store while it comes, not into
memory.

Takes P-DATA from pynetdicom's reading thread, gives it whole messages; hides the file that grows, the bounds on what a
peer can make us buffer, and what is left behind when a peer goes. Touches private members of pynetdicom 3.0.4
(pinned).
"""

from __future__ import annotations

import contextlib
import io
import queue
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import P_DATA

from pacs_node.errors import OutOfResources, StorageRefused
from pacs_node.listener.c_store import ProtocolBreach, StoreRequest, decode_request, encode_response
from pacs_node.listener.header import UID_LENGTH, encode_file_meta
from pacs_node.store import ObjectStore, Part

ROOM_CHECK_BYTES = 16 << 20
"""While a large object arrives, room is asked for again after so many bytes."""
MESSAGE_BYTES = 1 << 20
"""Of a command set, and of the data set of anything but a C-STORE."""
WAITING_MESSAGES = 4
"""A peer that sends on without waiting for responses (never negotiated, PS3.7 D.3.3.3) is cut off at this many."""
RESPONSE_BYTES = 1024
"""A C-STORE-RSP is shorter."""
IS_COMMAND, IS_LAST = 1, 2
"""Bits of the message control header (PS3.8 E.2)."""
WAIT_S = 0.25
"""An association's threads wait for something to do and are woken; this often they look at their timers."""


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
    tls: ssl.SSLContext | None = None
    """None: plain TCP."""
    on_insecure: Callable[[str, str], None] = lambda address, reason: None
    """Told the address of a peer whose TLS handshake failed, and why."""
    is_known: Callable[[str], bool] = lambda address: True
    """Whether a peer may call from an address, under whatever title."""


class IncomingDataSet(io.BytesIO):
    """The data set of a C-STORE that is being received: a file that grows (a BytesIO to pynetdicom only).

    After a refusal (no room, a disk fault) the rest is swallowed, so that the peer gets a status, not a broken
    connection.
    """

    def __init__(self, request: StoreRequest, transfer_syntax_uid: str, calling_ae_title: str) -> None:
        super().__init__()
        self.request, self.transfer_syntax_uid = request, transfer_syntax_uid
        self._calling_ae_title = calling_ae_title
        self.part: Part | None = None
        self.refusal: StorageRefused | None = None
        self._next_check = ROOM_CHECK_BYTES

    def append(self, fragment: memoryview, transfers: Transfers) -> None:
        if self.refusal is not None:
            return
        try:
            self._append(fragment, transfers)
        except OSError:
            self._refuse(OutOfResources("the disk does not take it"))
        except StorageRefused as refusal:
            self._refuse(refusal)

    def _append(self, fragment: memoryview, transfers: Transfers) -> None:
        if self.part is None:
            transfers.may_begin()
            self.part = transfers.store.begin()
            request = self.request
            self.part.write_meta(
                encode_file_meta(
                    request.sop_class_uid, request.sop_instance_uid, self.transfer_syntax_uid, self._calling_ae_title
                )
            )
        self.part.write(fragment)
        if self.part.size_bytes > self._next_check:
            transfers.may_go_on()
            self._next_check += ROOM_CHECK_BYTES

    def _refuse(self, refusal: StorageRefused) -> None:
        self.refusal = refusal
        self.discard()

    def discard(self) -> None:
        if self.part is not None:
            self.part.discard()


class StorageProvider(DIMSEServiceProvider):  # type: ignore[misc]
    """Receives C-STORE itself, leaves other messages to pynetdicom. Runs in the connection's reading thread."""

    def __init__(self, association: Association, transfers: Transfers) -> None:
        super().__init__(association)
        self._transfers = transfers
        self._command = bytearray()
        self._arriving: IncomingDataSet | None = None
        self._other_bytes = 0
        self._unhandled: set[IncomingDataSet] = set()
        self._is_handling = False
        self.active_at = time.monotonic()

    @property
    def is_busy(self) -> bool:
        """A message is arriving, waits to be handled or is being handled."""
        is_arriving = self._arriving is not None or self.message is not None or bool(self._command)
        return self._is_handling or is_arriving or not self.msg_queue.empty()

    def get_msg(self, block: bool = False) -> Any:
        """Wait for the next message; pynetdicom would look a thousand times a second."""
        try:
            return self.msg_queue.get(timeout=self.dimse_timeout if block else WAIT_S)
        except queue.Empty:
            return None, None

    def wake(self) -> None:
        """Make `get_msg` return: there is something else to look at."""
        self.msg_queue.put((None, None))

    def send_msg(self, primitive: Any, context_id: int) -> None:
        """Send a C-STORE-RSP in one PDU; pynetdicom would build it as a data set, as costly as reading one."""
        is_answer = isinstance(primitive, C_STORE) and primitive.MessageIDBeingRespondedTo is not None
        if not is_answer or 0 < self.maximum_pdu_size < RESPONSE_BYTES:
            super().send_msg(primitive, context_id)
            return
        pdata = P_DATA()
        response = encode_response(
            message_id=primitive.MessageIDBeingRespondedTo,
            status=primitive.Status,
            error_comment=primitive.ErrorComment or "",
            sop_class_uid=str(primitive.AffectedSOPClassUID),
            sop_instance_uid=str(primitive.AffectedSOPInstanceUID),
        )
        value = bytes((IS_COMMAND | IS_LAST,)) + response
        pdata.presentation_data_value_list.append((context_id, value))
        self.dul.send_pdu(pdata)

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take the fragments of one P-DATA (PS3.8 E.2); what breaks the protocol ends this association only."""
        self.active_at = time.monotonic()
        try:
            for context_id, value in primitive.presentation_data_value_list:
                self._receive(context_id, value[0], memoryview(value)[1:])
        except Exception:  # noqa: BLE001 - a malformed message may make a decoder raise anything
            self.dul.event_queue.put("Evt19")  # "unrecognised or invalid PDU": A-ABORT (PS3.8 Table 9-10)

    def _receive(self, context_id: int, control: int, fragment: memoryview) -> None:
        is_last = bool(control & IS_LAST)
        if control & IS_COMMAND:
            self._receive_command(context_id, fragment, is_last)
        elif self._arriving is not None:
            if context_id != self._arriving.request.context_id:
                raise ProtocolBreach("a data set under two presentation contexts")
            self._arriving.append(fragment, self._transfers)
            if is_last:
                self._finish(self._arriving)
        else:
            self._pass_on(context_id, control, fragment)

    def _receive_command(self, context_id: int, fragment: memoryview, is_last: bool) -> None:
        if self._arriving is not None or len(self._command) + len(fragment) > MESSAGE_BYTES:
            raise ProtocolBreach("a command within a data set, or too long")
        self._command += fragment
        if not is_last:
            return
        command, self._command = bytes(self._command), bytearray()
        request = decode_request(context_id, command)
        if request is None:
            self._pass_on(context_id, IS_COMMAND | IS_LAST, memoryview(command))
            return
        self._arriving = self._begin(request)
        if not request.has_data_set:
            self._finish(self._arriving)

    def _begin(self, request: StoreRequest) -> IncomingDataSet:
        if self.msg_queue.qsize() >= WAITING_MESSAGES:
            raise ProtocolBreach("too many messages at once")
        context = self.assoc._accepted_cx.get(request.context_id)
        if context is None or max(len(request.sop_class_uid), len(request.sop_instance_uid)) > UID_LENGTH:
            raise ProtocolBreach("a presentation context that was not accepted, or a UID that is too long")
        calling = self.assoc.requestor.ae_title.strip()
        data_set = IncomingDataSet(request, str(context.transfer_syntax[0]), calling)
        self._unhandled.add(data_set)
        return data_set

    def _finish(self, data_set: IncomingDataSet) -> None:
        request = data_set.request
        message = C_STORE()
        message.MessageID, message.Priority = request.message_id, request.priority
        message.AffectedSOPClassUID, message.AffectedSOPInstanceUID = request.sop_class_uid, request.sop_instance_uid
        message.DataSet = data_set
        message._context_id = request.context_id
        self._arriving = None
        self.msg_queue.put((request.context_id, message))

    def _pass_on(self, context_id: int, control: int, fragment: memoryview) -> None:
        """Leave a fragment of another message to pynetdicom, which collects it in memory."""
        self._other_bytes = self._other_bytes + len(fragment) if self.message is not None else len(fragment)
        if self._other_bytes > MESSAGE_BYTES or self.msg_queue.qsize() >= WAITING_MESSAGES:
            raise ProtocolBreach("a message that is too long, or too many at once")
        pdata = P_DATA()
        pdata.presentation_data_value_list.append((context_id, bytes((control,)) + fragment))
        super().receive_primitive(pdata)

    @contextlib.contextmanager
    def handling(self, data_set: IncomingDataSet) -> Iterator[None]:
        """Mark a data set as being dealt with; its file is gone afterwards unless it was kept."""
        self._is_handling = True
        try:
            yield
        finally:
            data_set.discard()
            self._unhandled.discard(data_set)
            self._is_handling = False
            self.active_at = time.monotonic()

    def discard_all(self) -> None:
        """Delete what was never handled: the peer is gone."""
        for data_set in list(self._unhandled):
            data_set.discard()
