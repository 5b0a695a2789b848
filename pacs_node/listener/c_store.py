"""The command sets of C-STORE as bytes (PS3.7 9.3.1): Implicit VR Little Endian, group 0000 (PS3.7 6.3.1). Pure.

pynetdicom reads and writes them as whole data sets, which costs as much as filing a small image.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

REQUEST, RESPONSE = 0x0001, 0x8001
"""Command Field (PS3.7 E.1)."""
NO_DATA_SET = 0x0101
"""Command Data Set Type (PS3.7 E.1)."""
MEDIUM = b"\0\0"
"""The Priority of a request that says none."""


class ProtocolBreach(Exception):
    """The peer broke the protocol, or went beyond what this node bears: the association is aborted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRequest:
    """A C-STORE-RQ, and the presentation context it came under."""

    context_id: int
    message_id: int
    sop_class_uid: str
    sop_instance_uid: str
    priority: int
    has_data_set: bool


def decode_request(context_id: int, command: bytes) -> StoreRequest | None:
    """Decode a C-STORE-RQ; None for any other message.

    Raises
    ------
    ProtocolBreach
        It is one, and a field it must have is missing or malformed.
    """
    elements = _elements(command)
    if elements.get(0x0100) != struct.pack("<H", REQUEST):
        return None
    try:
        if not (_uid(elements[0x0002]) and _uid(elements[0x1000])):
            raise ProtocolBreach("a C-STORE-RQ that names no object")  # pynetdicom would never answer it
        return StoreRequest(
            context_id=context_id,
            message_id=_number(elements[0x0110]),
            sop_class_uid=_uid(elements[0x0002]),
            sop_instance_uid=_uid(elements[0x1000]),
            priority=_number(elements.get(0x0700, MEDIUM)),
            has_data_set=_number(elements[0x0800]) != NO_DATA_SET,
        )
    except (struct.error, KeyError, UnicodeDecodeError) as error:
        raise ProtocolBreach("a malformed C-STORE-RQ") from error


def encode_response(
    *, message_id: int, status: int, error_comment: str, sop_class_uid: str, sop_instance_uid: str
) -> bytes:
    """Encode a C-STORE-RSP to the request with `message_id`."""
    elements = (
        (0x0002, _even(sop_class_uid, b"\0")),
        (0x0100, struct.pack("<H", RESPONSE)),
        (0x0120, struct.pack("<H", message_id)),
        (0x0800, struct.pack("<H", NO_DATA_SET)),
        (0x0900, struct.pack("<H", status)),
        (0x0902, _even(error_comment, b" ")),
        (0x1000, _even(sop_instance_uid, b"\0")),
    )
    encoded = b"".join(struct.pack("<HHL", 0, number, len(value)) + value for number, value in elements if value)
    return struct.pack("<HHLL", 0, 0x0000, 4, len(encoded)) + encoded


def _elements(command: bytes) -> dict[int, bytes]:
    """Return the values of group 0000 by element number; what does not add up ends the reading."""
    elements: dict[int, bytes] = {}
    position = 0
    while position + 8 <= len(command):
        group, number, length = struct.unpack_from("<HHL", command, position)
        position += 8
        if group != 0 or position + length > len(command):
            break
        elements[number] = command[position : position + length]
        position += length
    return elements


def _number(value: bytes) -> int:
    (number,) = struct.unpack("<H", value)
    return int(number)


def _uid(value: bytes) -> str:
    return value.decode("ascii").strip(" \0")


def _even(text: str, padding: bytes) -> bytes:
    value = text.encode("ascii", "replace")
    return value + padding * (len(value) % 2)
