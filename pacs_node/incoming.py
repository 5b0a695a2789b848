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
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ, DIMSEMessage
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import P_DATA

from pacs_node.errors import OutOfResources, StorageRefused
from pacs_node.header import encode_file_meta
from pacs_node.store import ObjectStore, Part

ROOM_CHECK_BYTES = 16 << 20
"""While a large object arrives, room is asked for again after so many bytes."""
MESSAGE_BYTES = 1 << 20
"""Of a command set, and of the data set of anything but a C-STORE."""
WAITING_MESSAGES = 4
"""A peer that sends on without waiting for responses (never negotiated, PS3.7 D.3.3.3) is cut off at this many."""
RESPONSE_BYTES = 1024
"""A C-STORE-RSP is shorter."""
LAST_COMMAND_FRAGMENT = b"\x03"
"""Message control header (PS3.8 E.2)."""
WAIT_S = 0.25
"""An association's threads wait for something to do and are woken; this often they look at their timers."""


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
        context = association._accepted_cx.get(self._message.context_id)
        if context is None:
            raise ProtocolBreach("a data set under a presentation context that was not accepted")
        self.transfer_syntax_uid = str(context.transfer_syntax[0])
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
        pdata.presentation_data_value_list.append((context_id, LAST_COMMAND_FRAGMENT + _encode_answer(primitive)))
        self.dul.send_pdu(pdata)

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
    def handling(self, data_set: IncomingDataSet) -> Iterator[None]:
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


def _encode_answer(answer: C_STORE) -> bytes:
    """Encode the command set of a C-STORE-RSP (PS3.7 9.3.1.2), Implicit VR Little Endian (PS3.7 6.3.1)."""
    elements = [
        (0x0002, _even(str(answer.AffectedSOPClassUID), b"\0")),
        (0x0100, struct.pack("<H", 0x8001)),
        (0x0120, struct.pack("<H", answer.MessageIDBeingRespondedTo)),
        (0x0800, struct.pack("<H", 0x0101)),
        (0x0900, struct.pack("<H", answer.Status)),
        (0x0902, _even(answer.ErrorComment or "", b" ")),
        (0x1000, _even(str(answer.AffectedSOPInstanceUID), b"\0")),
    ]
    encoded = b"".join(struct.pack("<HHL", 0, number, len(value)) + value for number, value in elements if value)
    return struct.pack("<HHLL", 0, 0x0000, 4, len(encoded)) + encoded


def _even(text: str, padding: bytes) -> bytes:
    value = text.encode("ascii", "replace")
    return value + padding * (len(value) % 2)
