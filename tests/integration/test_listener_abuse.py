"""A peer that was let in and means ill: what it says beside images costs it its own association at most."""

from __future__ import annotations

import socket
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import generate_uid
from sqlalchemy import func, select

from db.engine import read_scope
from db.tables import CommitmentRequest, RefusedContext, RejectedObject
from pacs_node.conformance import KEY_OBJECT_SELECTION, STORAGE_COMMITMENT, VERIFICATION
from pacs_node.dimse import commitment
from pacs_node.listener.scp import UNNEGOTIATED_CONNECTIONS
from tests.acceptance.raw_dimse import CR, EXPLICIT_VR_LITTLE_ENDIAN, Aborted, RawAssociation, Rejected, _item
from tests.builders import make_radiograph
from tests.integration.test_listener import RADIOGRAPH, data_set_of, store
from tests.listening import Listening, listening_in_a_thread, settings_for, until

IMPLICIT, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99"
PROMISES = (STORAGE_COMMITMENT, IMPLICIT)
N_EVENT_REPORT, N_ACTION = 0x0100, 0x0130


@pytest.fixture
def node(tmp_path: Path, sqlite_url: str) -> Iterator[Listening]:
    with listening_in_a_thread(settings_for(tmp_path, sqlite_url, storage_commitment=True)) as node:
        yield node


def count(node: Listening, table: Any) -> int:
    with read_scope(node.engine) as session:
        return int(session.scalar(select(func.count()).select_from(table)) or 0)


def short(number: int) -> bytes:
    return struct.pack("<H", number)


def element(group: int, number: int, value: bytes) -> bytes:
    """Return an element in Implicit VR Little Endian."""
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HHL", group, number, len(value)) + value


def asked(objects: int, transaction_uid: str = "", *, sop_instance_uid: str = "1.%d") -> bytes:
    """Return the Action Information of a request to keep so many objects."""
    items = b"".join(
        element(0xFFFE, 0xE000, element(8, 0x1150, b"1.2") + element(8, 0x1155, (sop_instance_uid % n).encode()))
        for n in range(objects)
    )
    return element(8, 0x1195, (transaction_uid or generate_uid()).encode()) + element(8, 0x1199, items)


def action(sop_class_uid: str = STORAGE_COMMITMENT) -> dict[int, bytes]:
    well_known = commitment.WELL_KNOWN_INSTANCE.encode() + b"\0" * (len(commitment.WELL_KNOWN_INSTANCE) % 2)
    named = {0x0003: sop_class_uid.encode() + b"\0" * (len(sop_class_uid) % 2), 0x1001: well_known}
    return named | {0x0100: short(N_ACTION), 0x1008: short(1)}


def event_report() -> dict[int, bytes]:
    named = {0x0002: STORAGE_COMMITMENT.encode(), 0x1000: commitment.WELL_KNOWN_INSTANCE.encode()}
    return named | {0x0100: short(N_EVENT_REPORT), 0x1002: short(1)}


def still_serves(node: Listening) -> None:
    with RawAssociation(node.address, timeout_s=10) as peer:
        assert store(peer, make_radiograph(**RADIOGRAPH)).status == 0
        peer.release()
    until(lambda: node.count_open() == 0, timeout_s=20)


def test_request_to_keep_is_taken_once(node: Listening) -> None:
    with RawAssociation(node.address, [PROMISES]) as peer:
        question = asked(3, "1.2.3.4")
        assert [peer.request(PROMISES, action(), question).status for _ in range(2)] == [0x0000, 0x0131]
        peer.release()
    assert count(node, CommitmentRequest) == 1


@pytest.mark.parametrize("name", [N_ACTION, N_EVENT_REPORT])
@pytest.mark.parametrize("context", [(STORAGE_COMMITMENT, DEFLATED), (CR, DEFLATED), (VERIFICATION, DEFLATED)])
def test_no_message_is_inflated(node: Listening, name: int, context: tuple[str, str]) -> None:
    """A megabyte of it would be a gigabyte in memory."""
    squeeze = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = squeeze.compress(bytes(600 << 20)) + squeeze.flush()
    assert len(bomb) < 1 << 20
    contexts = [context, (CR, EXPLICIT_VR_LITTLE_ENDIAN)]
    with RawAssociation(node.address, contexts) as peer:
        before = peak_memory()
        if context in peer.accepted:
            with suppress(Aborted):
                message = action() if name == N_ACTION else event_report()
                assert peer.request(context, message, bomb).status != 0
        assert peak_memory() - before < 200 << 20
    still_serves(node)


def peak_memory() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def test_action_of_another_service_is_no_request_to_keep(node: Listening) -> None:
    film_session = "1.2.840.10008.5.1.1.1"
    for context, sop_class_uid in ((PROMISES, film_session), ((CR, EXPLICIT_VR_LITTLE_ENDIAN), STORAGE_COMMITMENT)):
        with RawAssociation(node.address, [context]) as peer, suppress(Aborted):
            assert peer.request(context, action(sop_class_uid), asked(1)).status != 0
    assert count(node, CommitmentRequest) == 0
    still_serves(node)


@pytest.mark.parametrize(("number", "value", "status"), [(0x1008, short(2), 0x0123), (0x1001, b"1.2.3\0", 0x0112)])
def test_action_that_the_service_does_not_have_is_no_request_to_keep(
    node: Listening, number: int, value: bytes, status: int
) -> None:
    with RawAssociation(node.address, [PROMISES]) as peer:
        assert peer.request(PROMISES, action() | {number: value}, asked(1)).status == status
        peer.release()
    assert count(node, CommitmentRequest) == 0


def test_request_about_more_than_an_answer_can_name_is_refused(node: Listening) -> None:
    with RawAssociation(node.address, [PROMISES]) as peer:
        assert peer.request(PROMISES, action(), asked(commitment.MOST_OBJECTS)).status == 0
        assert peer.request(PROMISES, action(), asked(commitment.MOST_OBJECTS + 1)).status == 0x0213
        assert peer.request(PROMISES, action(), asked(1, sop_instance_uid="1" * 65 + "%d")).status == 0x0115
        assert peer.request(PROMISES, action(), b"\x08\x00").status in (0x0110, 0x0115)
    assert count(node, CommitmentRequest) == 1
    still_serves(node)


def test_flood_of_requests_ends_at_what_may_wait(node: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pacs_node.listener.hearing.WAITING_REQUESTS", 5)
    with RawAssociation(node.address, [PROMISES]) as peer:
        statuses = [peer.request(PROMISES, action(), asked(1)).status for _ in range(8)]
    assert statuses == [0x0000] * 5 + [0x0213] * 3
    with RawAssociation(node.address, [PROMISES], calling="OTHER") as peer:
        assert peer.request(PROMISES, action(), asked(1)).status == 0, "each asks for itself"
    still_serves(node)


def test_event_report_about_what_was_never_asked_is_refused_and_leaves_nothing(node: Listening) -> None:
    role = _item(0x54, struct.pack(">H", len(STORAGE_COMMITMENT)) + STORAGE_COMMITMENT.encode() + b"\0\1")
    with RawAssociation(node.address, [PROMISES], user_items=role) as peer:
        for _ in range(20):
            assert peer.request(PROMISES, event_report(), asked(100)).status == 0x0115
    still_serves(node)


@pytest.mark.parametrize("count_of_studies", [2100, 9000])
def test_note_with_many_studies_is_stored_without_effect(node: Listening, count_of_studies: int) -> None:
    """Each object and each study costs statements under the one write lock of the database."""
    studies = b"".join(
        element(0xFFFE, 0xE000, element(0x20, 0x0D, f"9.{n}".encode()) + element(8, 0x1115, series(n)))
        for n in range(count_of_studies)
    )
    title = element(8, 0x0100, b"113001") + element(8, 0x0102, b"DCM ") + element(8, 0x0104, b"x ")
    uids = element(8, 0x16, KEY_OBJECT_SELECTION.encode()) + element(8, 0x18, b"1.2.9")
    place = element(0x20, 0x0D, b"1.2.1") + element(0x20, 0x0E, b"1.2.2")
    evidence = element(0x40, 0xA375, studies)
    note = uids + place + element(0x40, 0xA043, element(0xFFFE, 0xE000, title)) + evidence
    context = (KEY_OBJECT_SELECTION, IMPLICIT)
    with RawAssociation(node.address, [context]) as peer:
        begun = time.monotonic()
        sent = {"sop_class_uid": KEY_OBJECT_SELECTION, "transfer_syntax_uid": IMPLICIT}
        assert peer.store(note, sop_instance_uid="1.2.9", **sent).status == 0
        took_s = time.monotonic() - begun
    assert count(node, RejectedObject) == 0
    assert took_s < 30
    still_serves(node)


def series(number: int) -> bytes:
    named = element(8, 0x1150, b"1.2") + element(8, 0x1155, f"8.{number}".encode())
    return element(0xFFFE, 0xE000, element(0x20, 0x0E, b"1.2") + element(8, 0x1199, element(0xFFFE, 0xE000, named)))


def test_image_of_a_class_that_was_not_negotiated_is_not_stored(node: Listening) -> None:
    ct = "1.2.840.10008.5.1.4.1.1.2"
    dataset = make_radiograph(**RADIOGRAPH)
    dataset.SOPClassUID = ct
    with RawAssociation(node.address) as peer:
        peer.accepted[ct, EXPLICIT_VR_LITTLE_ENDIAN] = peer.accepted[CR, EXPLICIT_VR_LITTLE_ENDIAN]
        assert store(peer, dataset, sop_class_uid=ct).status == 0x0122
        dataset.SOPClassUID = CR
        assert store(peer, dataset).status == 0, "the association goes on"
    assert node.counts().received == 1
    still_serves(node)


@pytest.mark.parametrize("command", [0x0020, 0x0010, 0x0021, 0x0110, 0x0120, 0x0140, 0x0150, 0x0FFF, 0x8001, 0x7777])
def test_request_of_a_service_that_is_not_offered_ends_its_own_association_at_most(
    node: Listening, command: int
) -> None:
    context = (CR, EXPLICIT_VR_LITTLE_ENDIAN)
    named = {0x0002: CR.encode() + b"\0", 0x0003: CR.encode() + b"\0", 0x1000: b"1.2\0", 0x1001: b"1.2\0"}
    with RawAssociation(node.address, timeout_s=3) as peer, suppress(Aborted, TimeoutError, KeyError):
        answer = peer.request(context, named | {0x0100: short(command), 0x0700: short(0)}, b"")
        assert answer.status != 0
    still_serves(node)


def test_abort_in_the_midst_of_an_image_leaves_nothing(node: Listening) -> None:
    for _ in range(5):
        peer = RawAssociation(node.address)
        content = data_set_of(make_radiograph(**RADIOGRAPH))
        peer.store(content, sop_instance_uid="1.2.3", stop_after=len(content) // 2)
        until(lambda: node.files("incoming"))
        peer.abort()
        until(lambda: node.count_open() == 0 and not node.files("incoming"))
        peer.socket.close()
    assert node.counts().received == 0
    still_serves(node)


def test_ever_new_contexts_fill_no_table(node: Listening) -> None:
    for turn in range(4):
        strange = [(f"1.2.{turn}.{number}", IMPLICIT) for number in range(127)]
        with RawAssociation(node.address, [*strange, (VERIFICATION, IMPLICIT)]) as peer:
            peer.release()
    until(lambda: node.count_open() == 0)
    assert count(node, RefusedContext) <= 257
    still_serves(node)


def test_strangers_that_connect_and_say_nothing_do_not_shut_out_the_known(tmp_path: Path, sqlite_url: str) -> None:
    peers = [{"ae_title": "RAW", "addresses": ["127.0.0.1"]}]
    settings = settings_for(tmp_path, sqlite_url, peers=peers, max_associations=2)
    with listening_in_a_thread(settings) as node, ExitStack() as held:
        for _ in range(2 + UNNEGOTIATED_CONNECTIONS + 10):
            silent = socket.create_connection(node.address, timeout=10, source_address=("127.0.0.3", 0))
            held.enter_context(silent)
        time.sleep(0.5)
        still_serves(node)
        held.pop_all().close()
        until(lambda: _answer_to_a_stranger(node) == (1, 1, 3))


def _answer_to_a_stranger(node: Listening) -> tuple[int, ...]:
    """Return how it is rejected: where there is room, it is told why."""
    try:
        RawAssociation(node.address, source="127.0.0.3")
    except Rejected as rejection:
        return tuple(rejection.args[0])
    except Aborted:
        pass
    return ()


@pytest.mark.parametrize(
    "user_items",
    [
        _item(0x54, struct.pack(">H", 3) + b"1.2" + b"\1\1") * 5000,
        _item(0x56, struct.pack(">H", 3) + b"1.2" + b"x" * 8) * 3000,
        _item(0x57, struct.pack(">H", 3) + b"1.2" + struct.pack(">HH", 0, 0)) * 4000,
        _item(0x58, b"\2\1" + struct.pack(">H", 4) + b"root" + struct.pack(">H", 4) + b"pass"),
        _item(0x58, b"\5\1" + struct.pack(">HH", 60000, 0)),
        _item(0x53, struct.pack(">HH", 0, 0)),
        _item(0x54, struct.pack(">H", 500) + b"1.2" + b"\1\1"),
        _item(0x54, b""),
        _item(0xFF, b"x" * 100) * 500,
    ],
)
def test_strange_user_information_costs_its_own_association_at_most(node: Listening, user_items: bytes) -> None:
    begun = time.monotonic()
    with suppress(Aborted, TimeoutError), RawAssociation(node.address, user_items=user_items, timeout_s=20) as peer:
        peer.release()
    assert time.monotonic() - begun < 15
    still_serves(node)


def test_roles_that_are_not_offered_are_not_given(node: Listening) -> None:
    """A peer that wants to be asked (SCP) where it may only send would leave its images without an answer."""
    roles = b"".join(
        _item(0x54, struct.pack(">H", len(uid)) + uid.encode() + flags)
        for uid, flags in ((CR, b"\0\1"), (VERIFICATION, b"\1\1"))
    )
    with RawAssociation(node.address, user_items=roles) as peer:
        assert store(peer, make_radiograph(**RADIOGRAPH)).status == 0
    still_serves(node)
