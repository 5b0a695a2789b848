"""What strangers may send to a listener: whatever it is, the process stays up, stays small and answers the next sender.

The whole node under the same objects, until each has its end state: `test_conservation`.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pacs_node.conformance import DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, IMAGE_TRANSFER_SYNTAXES
from tests.acceptance.peers import dcmtk
from tests.acceptance.raw_dimse import CR, EXPLICIT_VR_LITTLE_ENDIAN, P_DATA_TF, RawAssociation, split_file
from tests.builders import data_folder
from tests.listening import Listening, listening_processes, settings_for

pytestmark = pytest.mark.acceptance

CT = b"1.2.840.10008.5.1.4.1.1.2\0"
"""The hostile corpus calls itself CT; CR is as long."""
GROWTH_BYTES = 200_000_000
"""Of each listener, over everything below; see `pacs_node.listener.header.BUDGET_BYTES`."""
SUCCESS, MISMATCH, CANNOT_UNDERSTAND = 0x0000, 0xA900, 0xC000


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Listening]:
    folder = tmp_path_factory.mktemp("node")
    (folder / "node.sqlite").write_bytes(migrated_sqlite.read_bytes())
    with listening_processes(settings_for(folder, f"sqlite:///{folder / 'node.sqlite'}"), 2) as node:
        echo(node)
        before = [rss(process.pid) for process in node.processes]
        yield node
        echo(node)
        assert [process.poll() for process in node.processes] == [None, None]
        growth = [rss(process.pid) - size for process, size in zip(node.processes, before, strict=True)]
        assert max(growth) < GROWTH_BYTES, growth
        assert node.counts().adds_up
        assert node.files("incoming") == []


def echo(node: Listening) -> None:
    assert dcmtk("echoscu", "-aec", "PACS_NODE", "127.0.0.1", str(node.port)).returncode == 0


def rss(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss)


def uid_in(data_set: bytes) -> str:
    """Return the SOP Instance UID as the sender would know it; one of ours where there is none to be sent."""
    found = re.search(rb"\x08\x00\x18\x00(?:UI..|..\0\0)([0-9.]{1,64})", data_set, re.DOTALL)
    return found[1].decode() if found else "1.2.3"


@pytest.mark.parametrize("corpus", ["hostile", "mixed"])
def test_every_object_of_a_corpus_gets_a_status_and_what_was_received_adds_up(node: Listening, corpus: str) -> None:
    before, statuses = node.counts(), Counter[int]()
    for batch in batched(sorted(data_folder("dicom", corpus).iterdir()), 50):
        with RawAssociation(node.address, [(CR, syntax) for syntax in IMAGE_TRANSFER_SYNTAXES]) as association:
            for path in batch:
                syntax, data_set = split_file(path.read_bytes().replace(CT, CR.encode() + b"\0"))
                answer = association.store(
                    data_set,
                    sop_instance_uid=uid_in(data_set),
                    transfer_syntax_uid=syntax if syntax in IMAGE_TRANSFER_SYNTAXES else EXPLICIT_VR_LITTLE_ENDIAN,
                )
                statuses[answer.status] += 1
            association.release()
    assert set(statuses) <= {SUCCESS, MISMATCH, CANNOT_UNDERSTAND}
    assert statuses[SUCCESS] > 0
    after = node.counts()
    assert after.received - before.received == statuses[SUCCESS] + statuses[CANNOT_UNDERSTAND]
    assert after.adds_up


def batched(paths: list[Path], size: int) -> Iterator[list[Path]]:
    for start in range(0, len(paths), size):
        yield paths[start : start + size]


ITEM = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
SEQUENCE = struct.pack("<HH2s2xL", 0x0008, 0x1115, b"SQ", 0xFFFFFFFF)
EMPTY_ITEM = struct.pack("<HHL", 0xFFFE, 0xE000, 0)


@pytest.mark.parametrize(
    "data_set",
    [
        pytest.param((SEQUENCE + ITEM) * 200_000, id="nested 200,000 deep"),
        pytest.param(SEQUENCE + EMPTY_ITEM * 4_000_000, id="4,000,000 empty items"),
        pytest.param(struct.pack("<HH2s2xL", 8, 8, b"UN", 1 << 26) + bytes(1 << 26), id="64 MB where text belongs"),
    ],
)
def test_a_header_bomb_is_quarantined(node: Listening, data_set: bytes) -> None:
    with RawAssociation(node.address) as association:
        assert association.store(data_set, sop_instance_uid="1.2.3").status == CANNOT_UNDERSTAND


def test_a_deflated_bomb_is_quarantined(node: Listening) -> None:
    deflate = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    bomb = b"".join(deflate.compress(bytes(1 << 24)) for _ in range(64)) + deflate.flush()
    with RawAssociation(node.address, [(CR, DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN)]) as association:
        answer = association.store(
            bomb, sop_instance_uid="1.2.3", transfer_syntax_uid=DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN
        )
    assert answer.status == CANNOT_UNDERSTAND


def test_an_object_without_end_is_not_collected_in_memory(node: Listening) -> None:
    """Half a gigabyte that never ends in a last fragment: it lies in a file, which is gone with the sender."""
    sizes = [rss(process.pid) for process in node.processes]
    chunk = bytes(120_000)
    with RawAssociation(node.address) as association:
        association.store(b"x", sop_instance_uid="1.2.3", stop_after=1)
        context = association.accepted[CR, EXPLICIT_VR_LITTLE_ENDIAN]
        value = struct.pack(">LBB", len(chunk) + 2, context, 0) + chunk
        pdu = struct.pack(">BxL", P_DATA_TF, len(value)) + value
        for _ in range(4000):
            association.socket.sendall(pdu)
        grown = max(rss(process.pid) - size for process, size in zip(node.processes, sizes, strict=True))
    assert grown < 50_000_000
