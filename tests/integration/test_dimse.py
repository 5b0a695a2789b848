"""Our calls to other applications, and what their answers mean for the work in hand."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)
from pynetdicom import AE, evt

from pacs_node.dimse import storage
from pacs_node.dimse.storage import SendSession, echo, find_files, send_files
from pacs_node.errors import DeliveryDelayed, DeliveryRejected
from pacs_node.identity import IMPLEMENTATION_CLASS_UID
from pacs_node.settings import DestinationSettings
from pacs_node.settings.dicom import TLS_FILES
from tests.builders import make_radiograph, save

CR = str(ComputedRadiographyImageStorage)
RADIOGRAPH = {"modality": "CR", "rows": 32, "columns": 32, "bits_stored": 8}
EXPLICIT, IMPLICIT = str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian)


class Pacs:
    """A storage SCP that answers as told."""

    def __init__(self, status: Any = 0x0000, syntaxes: tuple[str, ...] = (EXPLICIT,), **options: Any) -> None:
        self.status, self.received = status, []
        self.requestor: Any = None
        ae = AE(ae_title="PACS")
        ae.require_called_aet = True
        for name, value in options.items():
            setattr(ae, name, value)
        ae.add_supported_context("1.2.840.10008.1.1")
        ae.add_supported_context(CR, list(syntaxes))
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_C_ECHO, lambda event: 0x0000)]
        self.server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)

    def _store(self, event: evt.Event) -> Any:
        self.requestor = event.assoc.requestor
        self.received.append(event.encoded_dataset(include_meta=False))
        return self.status(event) if callable(self.status) else self.status

    def destination(self, **changes: Any) -> DestinationSettings:
        port = self.server.socket.getsockname()[1]
        return DestinationSettings(**{"name": "main", "ae_title": "PACS", "host": "127.0.0.1", "port": port} | changes)


@contextmanager
def pacs(*args: Any, **options: Any) -> Iterator[Pacs]:
    pacs = Pacs(*args, **options)
    try:
        yield pacs
    finally:
        pacs.server.shutdown()


def open_session(pacs: Pacs, *contexts: tuple[str, str], **changes: Any) -> SendSession:
    return SendSession(
        pacs.destination(**changes),
        contexts or [(CR, EXPLICIT)],
        calling_ae_title="PACS_NODE",
        connect_timeout_s=2,
        response_timeout_s=2,
    )


@pytest.fixture
def radiograph(tmp_path: Path) -> Path:
    return save(make_radiograph(**RADIOGRAPH), tmp_path / "radiograph.dcm")


def test_echo_is_silent_when_the_peer_answers() -> None:
    with pacs() as peer:
        echo(peer.destination(), calling_ae_title="PACS_NODE", timeout_s=2)


def a_closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        return int(unused.getsockname()[1])


@pytest.mark.parametrize(
    ("changes", "failure", "reason"),
    [
        ({"port": a_closed_port()}, DeliveryDelayed, "does not answer"),
        ({"host": "no-such-host.invalid"}, DeliveryDelayed, "no connection"),
        ({"ae_title": "OTHER"}, DeliveryRejected, "Called AE title not recognised"),
        (
            {"tls": True} | dict.fromkeys(TLS_FILES, Path("/nowhere")),
            DeliveryDelayed,
            "tls_certificate /nowhere: No such",
        ),
    ],
)
def test_echo_says_why_there_is_no_association(changes: dict[str, Any], failure: type[Exception], reason: str) -> None:
    with pacs() as peer, pytest.raises(failure, match=reason):
        echo(peer.destination(**changes), calling_ae_title="PACS_NODE", timeout_s=2)


def test_echo_is_delayed_by_a_transient_rejection() -> None:
    with pacs(maximum_associations=1) as peer, open_session(peer), pytest.raises(DeliveryDelayed, match="rejected"):
        echo(peer.destination(), calling_ae_title="PACS_NODE", timeout_s=2)


def test_a_peer_that_never_answers_delays() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        destination = DestinationSettings(name="main", ae_title="PACS", host="127.0.0.1", port=silent.getsockname()[1])
        with pytest.raises(DeliveryDelayed, match="does not answer"):
            echo(destination, calling_ae_title="PACS_NODE", timeout_s=1)


def test_a_batch_goes_over_one_association_byte_for_byte(tmp_path: Path) -> None:
    files = [save(make_radiograph(seed=seed, **RADIOGRAPH), tmp_path / f"{seed}.dcm") for seed in (1, 2)]
    with pacs() as peer, open_session(peer) as session:
        results = [session.send(file, is_urgent=True) for file in files]
        assert [result.status for result in results] == [0, 0]
        assert results[0].sop_instance_uid == dcmread(files[0]).SOPInstanceUID
        for file, received in zip(files, peer.received, strict=True):
            assert file.read_bytes().endswith(received)
        assert len(peer.received[0]) > 1024
        assert peer.requestor.implementation_class_uid == IMPLEMENTATION_CLASS_UID
        assert peer.requestor.ae_title == "PACS_NODE"


def test_small_packets_are_sent_at_once(radiograph: Path) -> None:
    with pacs() as peer, open_session(peer) as session:
        connection = session._association.dul.socket.socket
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


@pytest.mark.parametrize("status", [0x0000, 0x0111, 0xB000, 0xB006, 0xB007])
def test_success_and_warnings_mean_that_the_peer_has_it(radiograph: Path, status: int) -> None:
    with pacs(status) as peer, open_session(peer) as session:
        assert session.send(radiograph).status == status


@pytest.mark.parametrize(
    ("status", "failure"),
    [
        (0xA700, DeliveryDelayed),
        (0xA7FF, DeliveryDelayed),
        (0x0110, DeliveryDelayed),
        (0xA900, DeliveryRejected),
        (0xC000, DeliveryRejected),
        (0xCFFF, DeliveryRejected),
        (0x0122, DeliveryRejected),
        (0x0124, DeliveryRejected),
        (0x0117, DeliveryRejected),
    ],
)
def test_each_failure_status_delays_or_rejects(radiograph: Path, status: int, failure: type[Exception]) -> None:
    with pacs(status) as peer, open_session(peer) as session:
        with pytest.raises(failure, match=f"{status:04X}"):
            session.send(radiograph)
        peer.status = 0x0000
        assert session.send(radiograph).status == 0


def test_the_peers_own_words_reach_the_operator(radiograph: Path) -> None:
    def full(_: evt.Event) -> Dataset:
        answer = Dataset()
        answer.Status, answer.ErrorComment = 0xA700, "archive is full"
        return answer

    with pacs(full) as peer, open_session(peer) as session, pytest.raises(DeliveryDelayed, match="archive is full"):
        session.send(radiograph)


def test_the_peers_own_words_command_no_terminal_and_end(radiograph: Path) -> None:
    def chatty(_: evt.Event) -> Dataset:
        answer = Dataset()
        answer.Status, answer.ErrorComment = 0xA700, "\x1b[2J" + "x" * 5000
        return answer

    with pacs(chatty) as peer, open_session(peer) as session, pytest.raises(DeliveryDelayed) as told:
        session.send(radiograph)
    assert told.value.reason == "C-STORE answered A700: [2J" + "x" * 61


def abort(event: evt.Event) -> int:
    event.assoc.abort()
    return 0


def never_answer(event: evt.Event) -> int:
    threading.Event().wait(4)
    return 0


@pytest.mark.parametrize("fault", [abort, never_answer])
def test_a_lost_association_delays_and_is_noticed(radiograph: Path, fault: Callable[[evt.Event], int]) -> None:
    with pacs(fault) as peer, open_session(peer) as session:
        for _ in range(2):
            with pytest.raises(DeliveryDelayed):
                session.send(radiograph)
            assert not session.is_open, "the courier leaves the destination alone by this"


def test_no_accepted_context_rejects() -> None:
    with pacs() as peer, pytest.raises(DeliveryRejected, match="none of the presentation contexts"):
        open_session(peer, ("1.2.840.10008.5.1.4.1.1.88.34", EXPLICIT))


def test_accepted_class_is_the_first_of_ours_that_the_peer_takes() -> None:
    best, fallback = "1.2.840.10008.5.1.4.1.1.88.34", CR
    proposed = [(uid, syntax) for uid in (best, fallback) for syntax in (EXPLICIT, IMPLICIT)]
    with pacs() as peer, open_session(peer, *proposed) as session:
        assert session.accepted_class([best, fallback]) == fallback
        assert session.accepted_class([best]) is None
        assert session.accepts(CR, EXPLICIT)
        assert not session.accepts(CR, IMPLICIT)


def test_an_uncompressed_object_is_encoded_again_for_a_peer_that_takes_implicit_only(radiograph: Path) -> None:
    with pacs(syntaxes=(IMPLICIT,)) as peer, open_session(peer, (CR, EXPLICIT), (CR, IMPLICIT)) as session:
        assert session.send(radiograph).status == 0
        assert b"CS" not in peer.received[0][:200]


def test_a_compressed_object_is_never_decompressed(tmp_path: Path) -> None:
    dataset = make_radiograph(**RADIOGRAPH)
    dataset.compress(RLELossless, generate_instance_uid=False)
    file = save(dataset, tmp_path / "rle.dcm")
    with pacs() as peer:
        with open_session(peer) as session, pytest.raises(DeliveryRejected, match="RLE"):
            session.send(file)
        (sent,) = send_files([file], peer.destination(), calling_ae_title="PACS_NODE")
        assert (sent.is_dicom, sent.is_sent) == (True, False)
        assert "presentation context" in sent.text


def test_send_files_skips_what_is_no_dicom_and_says_what_became_of_each(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        save(make_radiograph(seed=seed, **RADIOGRAPH), tmp_path / "deep" / "er" / f"{seed}.dcm")
    (tmp_path / "notes.txt").write_text("not DICOM")
    statuses = iter([0x0000, 0xA700, 0x0000])
    with pacs(lambda _: next(statuses)) as peer:
        sent = list(send_files(find_files([tmp_path]), peer.destination(), calling_ae_title="MODALITY"))
    assert {s.path.name: s.text.split(":")[0] for s in sent} == {
        "notes.txt": "not a DICOM object",
        "1.dcm": "0000",
        "2.dcm": "C-STORE answered A700",
        "3.dcm": "0000",
    }
    assert [s.is_sent for s in sent if s.is_dicom] == [True, False, True]


def test_send_files_opens_a_lost_association_again(tmp_path: Path) -> None:
    files = [save(make_radiograph(seed=seed, **RADIOGRAPH), tmp_path / f"{seed}.dcm") for seed in (1, 2)]
    answers: list[Callable[[evt.Event], int]] = [abort, lambda _: 0]
    with pacs(lambda event: answers.pop(0)(event)) as peer:
        sent = list(send_files(files, peer.destination(), calling_ae_title="MODALITY"))
    assert [s.is_sent for s in sent] == [False, True]


def test_send_files_needs_more_than_one_association_for_more_than_128_contexts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "MAXIMUM_CONTEXTS", 2)
    files = [
        save(make_radiograph(seed=1, **RADIOGRAPH), tmp_path / "1.dcm"),
        save(make_radiograph(seed=2, **RADIOGRAPH | {"modality": "DX"}), tmp_path / "2.dcm"),
    ]
    with pacs() as peer:
        sent = list(send_files(files, peer.destination(), calling_ae_title="MODALITY"))
    assert [s.is_sent for s in sent] == [True, False]
