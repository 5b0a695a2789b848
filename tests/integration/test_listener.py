"""A listener as its senders see it: who is let in, what is accepted, and what each C-STORE is answered."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import FileDataset
from sqlalchemy import select

from db import facts
from db.engine import DatabaseAway, read_scope
from db.tables import Association, AuditEvent, Instance, Job, RefusedContext, Series, Study
from pacs_node.conformance import IMAGE_TRANSFER_SYNTAXES, STORAGE_CLASSES, VERIFICATION
from pacs_node.errors import ConfigError
from pacs_node.listener import incoming as incoming_module
from pacs_node.listener import intake as intake_module
from pacs_node.listener.service import bind_dicom_socket
from pacs_node.settings import DicomSettings
from pacs_node.store import ObjectStore, data_set_offset
from tests.acceptance.raw_dimse import (
    A_ABORT,
    CR,
    EXPLICIT_VR_LITTLE_ENDIAN,
    Aborted,
    Answer,
    RawAssociation,
    Rejected,
    _item,
    _pdu,
)
from tests.builders import as_bytes, make_radiograph
from tests.listening import Listening, listening_in_a_thread, settings_for, until

RADIOGRAPH = {"modality": "CR", "rows": 64, "columns": 64, "bits_stored": 8}


@pytest.fixture
def node(tmp_path: Path, sqlite_url: str) -> Iterator[Listening]:
    with listening_in_a_thread(settings_for(tmp_path, sqlite_url)) as node:
        yield node


def data_set_of(dataset: FileDataset) -> bytes:
    content = as_bytes(dataset)
    return content[data_set_offset(content) :]


def store(association: RawAssociation, dataset: FileDataset, **options: Any) -> Answer:
    return association.store(data_set_of(dataset), sop_instance_uid=str(dataset.SOPInstanceUID), **options)


def rows(node: Listening, table: Any) -> list[Any]:
    with read_scope(node.engine) as session:
        return list(session.scalars(select(table)))


def test_bind_says_in_one_line_that_the_port_is_in_use() -> None:
    with bind_dicom_socket(DicomSettings(port=0)) as first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigError, match=f"dicom.port {port} on 127.0.0.1 is in use"):
            bind_dicom_socket(DicomSettings(port=port))


def test_an_acknowledged_image_is_stored_byte_for_byte_under_one_row(node: Listening) -> None:
    dataset = make_radiograph(**RADIOGRAPH)
    with RawAssociation(node.address) as association:
        assert store(association, dataset).status == 0x0000
        (instance,) = rows(node, Instance)
        content = (node.settings.store_dir / instance.path).read_bytes()
        assert content[data_set_offset(content) :] == data_set_of(dataset)
        association.release()
    until(lambda: rows(node, Association)[0].end == "released")
    assert len(rows(node, Job)) == 1


def test_negotiation_accepts_the_table_and_nothing_else(node: Listening) -> None:
    offered = [(s.uid, syntax) for s in STORAGE_CLASSES[:3] for syntax in IMAGE_TRANSFER_SYNTAXES]
    offered += [(s.uid, EXPLICIT_VR_LITTLE_ENDIAN) for s in STORAGE_CLASSES]
    ct, mpeg = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.4.100"
    with RawAssociation(node.address, [*dict.fromkeys(offered), (ct, EXPLICIT_VR_LITTLE_ENDIAN), (CR, mpeg)]) as peer:
        assert {peer.results[context] for context in offered} == {0}
        assert peer.results[ct, EXPLICIT_VR_LITTLE_ENDIAN] == 3
        assert peer.results[CR, mpeg] == 4
    with RawAssociation(node.address, [(VERIFICATION, "1.2.840.10008.1.2")]) as peer:
        assert peer.results[VERIFICATION, "1.2.840.10008.1.2"] == 0


def test_what_is_refused_in_negotiation_is_written_down_and_an_echo_is_no_noise(node: Listening) -> None:
    ct, mpeg = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.4.100"
    dx, implicit = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.1.2"
    mixed = [(ct, implicit), (ct, EXPLICIT_VR_LITTLE_ENDIAN), (CR, mpeg), (CR, implicit), (dx, mpeg)]
    for calling, contexts in (
        ("MIXED", [*mixed, (VERIFICATION, implicit)]),
        ("ONLY_CT", [(ct, implicit), (VERIFICATION, implicit)]),
        ("ECHO", [(VERIFICATION, implicit)]),
        ("ODD_ECHO", [(VERIFICATION, mpeg)]),
    ):
        with RawAssociation(node.address, contexts, calling=calling) as peer:
            peer.release()
    until(lambda: node.count_open() == 0)
    found = {(r.calling_ae_title, r.abstract_syntax, r.reason): r for r in rows(node, RefusedContext)}
    assert set(found) == {("MIXED", ct, 3), ("MIXED", dx, 4), ("ONLY_CT", ct, 3)}
    assert {key[0]: (r.associations, r.empty_associations) for key, r in found.items()} == {
        "MIXED": (1, 0),
        "ONLY_CT": (1, 1),
    }


def test_statuses_of_what_is_not_stored(node: Listening) -> None:
    good = make_radiograph(**RADIOGRAPH)
    with RawAssociation(node.address) as association:
        mismatch = association.store(data_set_of(good), sop_instance_uid="9.9.9")
        garbage = association.store(b"GIF89a" * 100, sop_instance_uid="1.2.3")
        nothing = association.store(b"", sop_instance_uid="1.2.4")
        assert (mismatch.status, garbage.status, nothing.status) == (0xA900, 0xC000, 0xC000)
        assert all(answer.error_comment and len(answer.error_comment) <= 64 for answer in (mismatch, garbage, nothing))
        assert store(association, good).status == 0x0000
    assert node.counts().quarantined == 2
    assert node.counts().adds_up


def test_the_same_image_twice_is_success_twice_and_one_job(node: Listening) -> None:
    with RawAssociation(node.address) as association:
        assert [store(association, make_radiograph(**RADIOGRAPH)).status for _ in range(2)] == [0, 0]
    assert len(rows(node, Job)) == 1
    assert len(node.files()) == 1


def test_a_title_that_may_only_echo_is_not_authorised_to_store(tmp_path: Path, sqlite_url: str) -> None:
    peers = [
        {"ae_title": "ECHO_ONLY", "addresses": ["127.0.0.0/8"], "may_store": False},
        {"ae_title": "URGENT", "addresses": ["127.0.0.1"], "is_urgent": True},
    ]
    with listening_in_a_thread(settings_for(tmp_path, sqlite_url, peers=peers)) as node:
        with RawAssociation(node.address, calling="ECHO_ONLY") as association:
            assert store(association, make_radiograph(**RADIOGRAPH)).status == 0x0124
        with RawAssociation(node.address, calling="URGENT") as association:
            assert store(association, make_radiograph(**RADIOGRAPH)).status == 0x0000
        with pytest.raises(Rejected, match=r"\(1, 1, 3\)"):
            RawAssociation(node.address, calling="STRANGER")
        assert rows(node, Job)[0].priority == 1
        refused = [event for event in rows(node, AuditEvent) if event.action == "instance_refused"]
        assert [(event.actor, event.details["status"]) for event in refused] == [("ae:ECHO_ONLY", "0124")]
        assert len(node.files()) == 1


def test_a_wrong_called_title_is_rejected(node: Listening) -> None:
    with pytest.raises(Rejected, match=r"\(1, 1, 7\)"):
        RawAssociation(node.address, called="OTHER_NODE")


def test_one_association_too_many_is_rejected_for_now(tmp_path: Path, sqlite_url: str) -> None:
    with listening_in_a_thread(settings_for(tmp_path, sqlite_url, max_associations_per_ae=2)) as node:
        with RawAssociation(node.address), RawAssociation(node.address):
            with pytest.raises(Rejected, match=r"\(2, 3, 2\)"):
                RawAssociation(node.address)
            RawAssociation(node.address, calling="OTHER").release()
        until(lambda: node.count_open() == 0)
        RawAssociation(node.address).release()


def test_a_full_disk_is_answered_a700_and_recovers_by_itself(node: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    with RawAssociation(node.address) as association:
        with monkeypatch.context() as patch:
            patch.setattr(ObjectStore, "free_bytes", lambda _: -1)
            answer = store(association, make_radiograph(**RADIOGRAPH))
            assert (answer.status, answer.error_comment) == (0xA700, "the disk is nearly full")
            assert node.files() == []
        assert store(association, make_radiograph(**RADIOGRAPH)).status == 0x0000


def test_a_disk_that_fills_up_during_a_transfer_is_answered_a700(
    node: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([1] + [-1] * 1000)
    monkeypatch.setattr(incoming_module, "ROOM_CHECK_BYTES", 100_000)
    monkeypatch.setattr(ObjectStore, "free_bytes", lambda _: next(free))
    big = make_radiograph(**RADIOGRAPH | {"rows": 700, "columns": 700})
    with RawAssociation(node.address) as association:
        assert store(association, big).status == 0xA700
        assert node.files() == []


def test_a_long_queue_is_answered_a700_and_recovers_by_itself(node: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "QUEUE_LOOK_S", -1)
    with RawAssociation(node.address) as association:
        with monkeypatch.context() as patch:
            patch.setattr(intake_module.queue, "waiting", lambda *_: 10**9)
            assert store(association, make_radiograph(**RADIOGRAPH)).status == 0xA700
        assert store(association, make_radiograph(**RADIOGRAPH)).status == 0x0000


def test_a_database_that_is_away_is_answered_a700_or_a_transient_rejection(
    node: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise DatabaseAway("gone")

    with RawAssociation(node.address) as association:
        with monkeypatch.context() as patch:
            patch.setattr(facts, "add_instance", away)
            patch.setattr(facts, "count_open", away)
            assert store(association, make_radiograph(**RADIOGRAPH)).status == 0xA700
            with pytest.raises(Rejected, match=r"\(2, 3, 1\)"):
                RawAssociation(node.address)
        assert store(association, make_radiograph(**RADIOGRAPH)).status == 0x0000


def test_a_bug_is_answered_0110_and_the_association_goes_on(node: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    with RawAssociation(node.address) as association:
        with monkeypatch.context() as patch:
            patch.setattr(facts, "add_instance", bug)
            assert store(association, make_radiograph(**RADIOGRAPH)).status == 0x0110
        assert store(association, make_radiograph(**RADIOGRAPH)).status == 0x0000


def test_a_sender_that_dies_during_a_transfer_leaves_nothing(node: Listening) -> None:
    association = RawAssociation(node.address)
    store(association, make_radiograph(**RADIOGRAPH | {"rows": 500, "columns": 500}), stop_after=100_000)
    until(lambda: len(node.files("incoming")) == 1)
    association.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST, as a crash
    association.socket.close()
    until(lambda: node.files() == [] and node.count_open() == 0)
    assert rows(node, Association)[0].end == "aborted"
    assert node.counts().received == 0


def test_a_sender_that_stalls_is_cut_off(tmp_path: Path, sqlite_url: str) -> None:
    with listening_in_a_thread(settings_for(tmp_path, sqlite_url, network_timeout_s=1, acse_timeout_s=1)) as node:
        idle, mid_pdu = RawAssociation(node.address), RawAssociation(node.address)
        mid_pdu.socket.sendall(b"\x04\x00\x00\x00\x10\x00" + b"x" * 10)
        silent = socket.create_connection(node.address)
        for connection in (idle.socket, mid_pdu.socket, silent):
            connection.settimeout(60)
            while connection.recv(4096):
                pass
        until(lambda: node.count_open() == 0 and not connection_threads())


@pytest.mark.parametrize(
    "pdu",
    [
        pytest.param(b"\x04\x00" + struct.pack(">L", 0xFFFFFFFF), id="4 GB"),
        pytest.param(b"\x09\x00" + struct.pack(">L", 10) + bytes(10), id="of no known type"),
        pytest.param(b"\x04\x00" + struct.pack(">L", 6) + struct.pack(">LBB", 2, 99, 3), id="an empty command"),
        pytest.param(b"\x04\x00" + struct.pack(">L", 20) + b"\xff" * 20, id="a fragment longer than its PDU"),
        pytest.param(b"\x04\x00" + struct.pack(">L", 26) + struct.pack(">LBB", 22, 1, 2) + bytes(20), id="data first"),
        pytest.param(b"\x01\x00" + struct.pack(">L", 5) + bytes(5), id="a second, broken request"),
    ],
)
def test_a_malformed_pdu_ends_its_own_association_only(node: Listening, pdu: bytes) -> None:
    with RawAssociation(node.address) as bystander, RawAssociation(node.address) as attacker:
        attacker.socket.sendall(pdu)
        with pytest.raises(Aborted):
            attacker._receive()
        assert store(bystander, make_radiograph(**RADIOGRAPH)).status == 0x0000
    until(lambda: node.count_open() == 0)


def test_a_request_that_cannot_be_understood_is_aborted_at_once(tmp_path: Path, sqlite_url: str) -> None:
    """A presentation context with an even id: no timer ends it, each is longer than this test waits."""
    settings = settings_for(tmp_path, sqlite_url, acse_timeout_s=600, network_timeout_s=600)
    context = _item(0x20, bytes((2, 0, 0, 0)) + _item(0x30, CR.encode()) + _item(0x40, b"1.2.840.10008.1.2.1"))
    titles = b"PACS_NODE".ljust(16) + b"RAW".ljust(16)
    items = _item(0x10, b"1.2.840.10008.3.1.1.1") + context + _item(0x50, _item(0x51, struct.pack(">L", 16384)))
    with listening_in_a_thread(settings) as node:
        with socket.create_connection(node.address, timeout=60) as connection:
            connection.sendall(_pdu(1, struct.pack(">HH", 1, 0) + titles + bytes(32) + items))
            assert connection.recv(10)[:1] == bytes((A_ABORT,))
        until(lambda: not connection_threads())
        RawAssociation(node.address).release()


def test_a_store_that_names_no_object_is_aborted_at_once(node: Listening) -> None:
    with RawAssociation(node.address) as association, pytest.raises(Aborted):
        association.store(data_set_of(make_radiograph(**RADIOGRAPH)), sop_instance_uid="")
    until(lambda: node.files() == [])


def test_a_data_set_under_another_context_is_aborted(node: Listening) -> None:
    contexts = [(CR, EXPLICIT_VR_LITTLE_ENDIAN), (VERIFICATION, "1.2.840.10008.1.2")]
    with RawAssociation(node.address, contexts) as association:
        store_half(association, make_radiograph(**RADIOGRAPH))
        association._send_fragments(association.accepted[contexts[1]], b"x" * 100, 0, None)
        with pytest.raises(Aborted):
            association._receive()
    until(lambda: node.files() == [])


def test_a_sender_that_does_not_wait_for_answers_is_cut_off(node: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "add_instance", lambda *_, **__: time.sleep(1))
    with RawAssociation(node.address) as association:
        images = [make_radiograph(seed=seed, **RADIOGRAPH) for seed in range(20)]
        with pytest.raises((Aborted, ConnectionError)):
            send_without_waiting(association, images)
    until(lambda: node.files("incoming") == [])


def send_without_waiting(association: RawAssociation, images: list[FileDataset]) -> None:
    for image in images:
        store(association, image, is_answer_awaited=False)
    while True:
        association._receive()


def test_a_connection_that_asks_for_nothing_is_forgotten_when_it_closes(tmp_path: Path, sqlite_url: str) -> None:
    """A load balancer's probe: connect, close. No timer ends its threads: each is longer than this test waits."""
    settings = settings_for(tmp_path, sqlite_url, acse_timeout_s=600, network_timeout_s=600, dimse_timeout_s=600)
    with listening_in_a_thread(settings) as node:
        with RawAssociation(node.address) as association:
            assert connection_threads()
            association.release()
        until(lambda: node.count_open() == 0 and not connection_threads())
        for _ in range(5):
            socket.create_connection(node.address).close()
        until(lambda: not connection_threads())
        RawAssociation(node.address).release()


def connection_threads() -> list[str]:
    """Name the threads that serve connections: one of socketserver's and pynetdicom's two for each."""
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if "process_request_thread" in name or name.startswith("AcceptorThread")]


def test_idle_associations_cost_next_to_nothing(node: Listening) -> None:
    """Measured until it holds: what else this machine does can only add to a measure."""
    associations = [RawAssociation(node.address) for _ in range(10)]
    until(lambda: node.count_open() == 10)
    assert any(busy_share() < 0.2 for _ in range(10))
    for association in associations:
        association.release()


def busy_share(over_s: float = 0.5) -> float:
    """Return how much of one core this process uses."""
    started, used = time.monotonic(), time.process_time()
    time.sleep(over_s)
    return (time.process_time() - used) / (time.monotonic() - started)


def test_draining_finishes_the_running_store_refuses_the_next_and_closes_the_door(
    tmp_path: Path, sqlite_url: str
) -> None:
    running, later = make_radiograph(seed=1, **RADIOGRAPH), make_radiograph(seed=2, **RADIOGRAPH)
    with listening_in_a_thread(settings_for(tmp_path, sqlite_url, drain_timeout_s=20)) as node:
        idle, busy = RawAssociation(node.address), RawAssociation(node.address)
        rest = store_half(busy, running)
        until(lambda: node.files("incoming"))
        node.stop.set()
        until(lambda: is_refused(node))
        with pytest.raises(Aborted):
            idle._receive()
        rest(is_answer_awaited=False)
        store(busy, later, is_answer_awaited=False)  # at once: the drain closes an association that falls quiet
        assert [busy._answer().status for _ in range(2)] == [0x0000, 0xA700]
        until(lambda: node.count_open() == 0)
    assert len(rows(node, Instance)) == 1


def store_half(association: RawAssociation, dataset: FileDataset) -> Any:
    """Send the first half of a data set; return how to send the rest and get the answer."""
    content = data_set_of(dataset)
    half = len(content) // 2
    association.store(content, sop_instance_uid=str(dataset.SOPInstanceUID), stop_after=half)

    def rest(*, is_answer_awaited: bool = True) -> Answer | None:
        context = association.accepted[CR, EXPLICIT_VR_LITTLE_ENDIAN]
        association._send_fragments(context, content[half:], 0, None)
        return association._answer() if is_answer_awaited else None

    return rest


def is_refused(node: Listening) -> bool:
    try:
        socket.create_connection(node.address, timeout=1).close()
    except ConnectionError:
        return True
    return False


def test_draining_gives_up_at_its_deadline(tmp_path: Path, sqlite_url: str) -> None:
    with listening_in_a_thread(settings_for(tmp_path, sqlite_url, drain_timeout_s=0.5)) as node:
        stuck = RawAssociation(node.address)
        store_half(stuck, make_radiograph(**RADIOGRAPH))
        until(lambda: node.files("incoming"))
        node.stop.set()
        with pytest.raises(Aborted):
            stuck._receive()
    assert node.files() == []
    assert rows(node, Association)[0].end == "aborted"


@pytest.mark.parametrize("is_same_image", [False, True])
def test_eight_associations_at_once_lose_and_double_nothing(
    tmp_path: Path, database_url: str, is_same_image: bool
) -> None:
    """One study by eight senders at once, each image its own, or the same image by all."""
    each = 4
    images = [
        make_radiograph(
            seed=1 if is_same_image else sender * each + number,
            study_instance_uid="1.2.3",
            patient_id="P1",
            patient_name="Doe^Jane",
            **RADIOGRAPH,
        )
        for sender in range(8)
        for number in range(each)
    ]
    barrier = threading.Barrier(8)

    def send(sender: int) -> list[int]:
        with RawAssociation(node.address) as association:
            barrier.wait()
            return [store(association, image).status for image in images[sender * each : (sender + 1) * each]]

    with listening_in_a_thread(settings_for(tmp_path, database_url)) as node, ThreadPoolExecutor(8) as pool:
        statuses = [status for sent in pool.map(send, range(8)) for status in sent]
        assert statuses == [0x0000] * 32
        assert (len(rows(node, Study)), rows(node, Study)[0].hold) == (1, None)
        distinct = 1 if is_same_image else 32
        assert len(rows(node, Instance)) == len(rows(node, Job)) == len(node.files()) == distinct
        assert len(rows(node, Series)) == distinct
        counts = node.counts()
        assert (counts.received, counts.waiting, counts.duplicate) == (32, distinct, 32 - distinct)
