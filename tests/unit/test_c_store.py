"""The command sets of C-STORE, against pynetdicom's own."""

from __future__ import annotations

import io
import struct
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom.dimse_messages import C_STORE_RQ, C_STORE_RSP
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import decode, encode

from pacs_node.listener.c_store import ProtocolBreach, StoreRequest, decode_request, encode_response

CR = "1.2.840.10008.5.1.4.1.1.1"


def a_request(**changes: Any) -> C_STORE:
    request = C_STORE()
    request.MessageID, request.Priority, request.DataSet = 7, 1, io.BytesIO(b"x")
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = CR, "1.2.34"
    for keyword, value in changes.items():
        setattr(request, keyword, value)
    return request


def encoded(primitive: C_STORE, kind: type[C_STORE_RQ] = C_STORE_RQ) -> bytes:
    message = kind()
    message.primitive_to_message(primitive)
    return bytes(encode(message.command_set, True, True))


@pytest.mark.parametrize("move", [{}, {"MoveOriginatorApplicationEntityTitle": "PACS", "MoveOriginatorMessageID": 5}])
def test_decode_request_reads_what_pynetdicom_writes(move: dict[str, Any]) -> None:
    assert decode_request(3, encoded(a_request(**move))) == StoreRequest(
        context_id=3, message_id=7, sop_class_uid=CR, sop_instance_uid="1.2.34", priority=1, has_data_set=True
    )


def test_decode_request_sees_that_there_is_no_data_set() -> None:
    request = decode_request(1, encoded(a_request(DataSet=None)))
    assert request is not None
    assert not request.has_data_set


def command(**elements: Any) -> bytes:
    dataset = Dataset()
    for keyword, value in ({"CommandField": 1, "MessageID": 7, "CommandDataSetType": 1} | elements).items():
        setattr(dataset, keyword, value)
    return bytes(encode(dataset, True, True))


@pytest.mark.parametrize(
    "other", [b"", b"\xff" * 30, b"\0" * 7, command(CommandField=0x30), command(CommandField=0x8001)]
)
def test_decode_request_leaves_other_messages_alone(other: bytes) -> None:
    assert decode_request(1, other) is None


@pytest.mark.parametrize(
    "malformed",
    [
        command(),
        command(AffectedSOPClassUID=CR),
        command(AffectedSOPClassUID=CR, AffectedSOPInstanceUID="1.2")[:-4],
        encoded(a_request()).replace(struct.pack("<HHLH", 0, 0x0110, 2, 7), struct.pack("<HHL", 0, 0x0110, 0)),
        encoded(a_request()).replace(b"1.2.34", b"1.\xff.34"),
        encoded(a_request()).replace(b"1.2.34", b"\0" * 6),
    ],
)
def test_decode_request_refuses_one_that_is_malformed(malformed: bytes) -> None:
    with pytest.raises(ProtocolBreach):
        decode_request(1, malformed)


def test_decode_request_takes_one_without_priority_as_medium() -> None:
    request = decode_request(1, command(AffectedSOPClassUID=CR, AffectedSOPInstanceUID="1.2"))
    assert request is not None
    assert request.priority == 0


@pytest.mark.parametrize("comment", ["", "odd", "even", "the disk is nearly full"])
@pytest.mark.parametrize("uid", ["1.2.3", "1.2.34"])
def test_encode_response_writes_what_pynetdicom_reads(comment: str, uid: str) -> None:
    answer = encode_response(message_id=7, status=0xA700, error_comment=comment, sop_class_uid=CR, sop_instance_uid=uid)
    read = decode(io.BytesIO(answer), True, True)
    assert read.CommandGroupLength == len(answer) - 12
    assert (read.CommandField, read.MessageIDBeingRespondedTo, read.Status) == (0x8001, 7, 0xA700)
    assert (read.AffectedSOPClassUID, read.AffectedSOPInstanceUID) == (CR, uid)
    assert read.get("ErrorComment", "") == comment
    message = C_STORE_RSP()
    message.command_set = read
    assert message.message_to_primitive().is_valid_response
