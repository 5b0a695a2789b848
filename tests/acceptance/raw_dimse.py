"""A sender that speaks DICOM with raw bytes (PS3.8 9.3, PS3.7 6.3): whatever it is given goes out as the data set.

Shares no code with the node or with pynetdicom, so that what a library would refuse to send arrives.
"""

from __future__ import annotations

import itertools
import socket
import struct
from dataclasses import dataclass

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
CR = "1.2.840.10008.5.1.4.1.1.1"
EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
A_ASSOCIATE_AC, A_ASSOCIATE_RJ, P_DATA_TF, A_RELEASE_RP, A_ABORT = 2, 3, 4, 6, 7
COMMAND, LAST = 1, 2
"""Bits of a message control header (PS3.8 E.2)."""


class Rejected(Exception):
    """A-ASSOCIATE-RJ: (result, source, reason)."""


class Aborted(Exception):
    """The peer aborted, or closed the connection."""


@dataclass(frozen=True)
class Answer:
    """A C-STORE-RSP."""

    status: int
    error_comment: str


class RawAssociation:
    """One association as storage SCU; `contexts` are (SOP Class, transfer syntax) pairs, each a presentation
    context."""

    def __init__(
        self,
        address: tuple[str, int],
        contexts: list[tuple[str, str]] | None = None,
        *,
        calling: str = "RAW",
        called: str = "PACS_NODE",
        timeout_s: float = 60,
        user_items: bytes = b"",
        source: str = "",
    ) -> None:
        """`user_items` are more sub-items of the User Information (PS3.7 D.3.3); `source` is an address of ours."""
        self.contexts = contexts or [(CR, EXPLICIT_VR_LITTLE_ENDIAN)]
        self._message_ids = itertools.count(1)
        self.socket = socket.create_connection(address, timeout=timeout_s, source_address=(source, 0))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._negotiate(calling, called, user_items)
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self) -> RawAssociation:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def _negotiate(self, calling: str, called: str, user_items: bytes) -> None:
        items = _item(0x10, APPLICATION_CONTEXT.encode())
        for index, (sop_class, transfer_syntax) in enumerate(self.contexts):
            syntaxes = _item(0x30, sop_class.encode()) + _item(0x40, transfer_syntax.encode())
            items += _item(0x20, bytes((2 * index + 1, 0, 0, 0)) + syntaxes)
        items += _item(0x50, _item(0x51, struct.pack(">L", 16384)) + _item(0x52, b"1.2.3") + user_items)
        titles = called.ljust(16).encode() + calling.ljust(16).encode()
        self.socket.sendall(_pdu(1, struct.pack(">HH", 1, 0) + titles + bytes(32) + items))
        kind, body = self._receive()
        if kind == A_ASSOCIATE_RJ:
            raise Rejected(tuple(body[1:4]))
        self.accepted: dict[tuple[str, str], int] = {}
        self.results: dict[tuple[str, str], int] = {}
        position = 68
        while position < len(body):
            item, length = body[position], struct.unpack_from(">H", body, position + 2)[0]
            if item == 0x21:
                context = body[position + 4]
                self.results[self.contexts[context // 2]] = body[position + 6]
                if body[position + 6] == 0:
                    self.accepted[self.contexts[context // 2]] = context
            position += 4 + length

    def store(
        self,
        data_set: bytes,
        *,
        sop_instance_uid: str,
        sop_class_uid: str = CR,
        transfer_syntax_uid: str = EXPLICIT_VR_LITTLE_ENDIAN,
        stop_after: int | None = None,
        priority: int = 0,
        is_answer_awaited: bool = True,
    ) -> Answer:
        """Send one C-STORE-RQ; with `stop_after`, only that many bytes of its data set, and wait for no answer."""
        context = self.accepted[sop_class_uid, transfer_syntax_uid]
        command = _command(sop_class_uid, sop_instance_uid, next(self._message_ids), priority)
        self._send_fragments(context, command, COMMAND, None)
        self._send_fragments(context, data_set, 0, stop_after)
        return self._answer() if is_answer_awaited and stop_after is None else Answer(-1, "")

    def request(self, context: tuple[str, str], elements: dict[int, bytes], data_set: bytes | None = None) -> Answer:
        """Send any other request under a context, whatever its command elements say, and wait for its answer."""
        context_id = self.accepted[context]
        elements = {0x0110: struct.pack("<H", next(self._message_ids))} | elements
        elements[0x0800] = struct.pack("<H", 0x0101 if data_set is None else 1)
        self._send_fragments(context_id, _encoded(elements), COMMAND, None)
        if data_set is not None:
            self._send_fragments(context_id, data_set, 0, None)
        return self._answer()

    def abort(self) -> None:
        """Send an A-ABORT as the service user (PS3.8 9.3.8)."""
        self.socket.sendall(_pdu(A_ABORT, bytes(4)))

    def _send_fragments(self, context: int, data: bytes, kind: int, stop_after: int | None) -> None:
        size = 16000
        end = len(data) if stop_after is None else stop_after
        for start in range(0, max(1, end), size):
            chunk = data[start : min(start + size, end)]
            is_last = start + size >= end and stop_after is None
            value = struct.pack(">LBB", len(chunk) + 2, context, kind | (LAST if is_last else 0)) + chunk
            self.socket.sendall(_pdu(P_DATA_TF, value))

    def _answer(self) -> Answer:
        command = b""
        while True:
            kind, body = self._receive()
            if kind != P_DATA_TF:
                raise Aborted(f"PDU type {kind} instead of a response")
            control = body[5]
            command += body[6 : 4 + struct.unpack_from(">L", body)[0]]
            if control & LAST:
                break
        elements = dict(_elements(command))
        comment = elements.get((0, 0x0902), b"").decode().strip(" \0")
        return Answer(struct.unpack("<H", elements[0, 0x0900])[0], comment)

    def release(self) -> None:
        self.socket.sendall(_pdu(5, bytes(4)))
        kind, _ = self._receive()
        assert kind == A_RELEASE_RP, kind

    def _receive(self) -> tuple[int, bytes]:
        kind, length = struct.unpack(">BxL", self._exactly(6))
        body = self._exactly(length)
        if kind == A_ABORT:
            raise Aborted("A-ABORT")
        return kind, body

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                chunk = self.socket.recv(size - len(data))
            except ConnectionError as error:
                raise Aborted("reset") from error
            if not chunk:
                raise Aborted("closed")
            data += chunk
        return data


def split_file(content: bytes) -> tuple[str, bytes]:
    """Return the transfer syntax and the data set of a Part 10 file, however broken its file meta; else all of it."""
    transfer_syntax = EXPLICIT_VR_LITTLE_ENDIAN
    if content[128:132] != b"DICM":
        return transfer_syntax, content
    position = 132
    while content[position : position + 2] == b"\x02\x00" and position + 12 <= len(content):
        _, element, vr, short = struct.unpack_from("<HH2sH", content, position)
        is_long = vr in (b"OB", b"OW", b"UN", b"SQ", b"UT") or not vr.isalpha()
        length = struct.unpack_from("<L", content, position + 8)[0] if is_long else short
        value = position + (12 if is_long else 8)
        if element == 0x0010:
            transfer_syntax = content[value : value + length].decode("ascii", "replace").strip(" \0")
        position = value + length
    return transfer_syntax, content[position:]


def _command(sop_class: str, sop_instance: str, message_id: int, priority: int) -> bytes:
    """C-STORE-RQ (PS3.7 9.3.1.1), Implicit VR Little Endian."""
    return _encoded(
        {
            0x0002: _even(sop_class),
            0x0100: struct.pack("<H", 1),
            0x0110: struct.pack("<H", message_id),
            0x0700: struct.pack("<H", priority),
            0x0800: struct.pack("<H", 1),
            0x1000: _even(sop_instance),
        }
    )


def _encoded(elements: dict[int, bytes]) -> bytes:
    command = b"".join(_element(number, value) for number, value in sorted(elements.items()))
    return _element(0x0000, struct.pack("<L", len(command))) + command


def _element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHL", 0, number, len(value)) + value


def _elements(command: bytes) -> list[tuple[tuple[int, int], bytes]]:
    found, position = [], 0
    while position < len(command):
        group, number, length = struct.unpack_from("<HHL", command, position)
        found.append(((group, number), command[position + 8 : position + 8 + length]))
        position += 8 + length
    return found


def _even(uid: str) -> bytes:
    return uid.encode() + b"\0" * (len(uid) % 2)


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def _pdu(kind: int, body: bytes) -> bytes:
    return struct.pack(">BxL", kind, len(body)) + body
