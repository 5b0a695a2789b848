"""dcmtk's senders against listener processes on one socket: what they are told, what is stored, what a crash leaves."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, generate_uid
from sqlalchemy import select

from db.engine import read_scope
from db.tables import Association, Instance
from pacs_node.store import ObjectStore, data_set_offset
from tests.acceptance.peers import dcmtk, required_program
from tests.acceptance.raw_dimse import RawAssociation
from tests.builders import as_bytes, make_radiograph, save
from tests.listening import Listening, listening_processes, settings_for, start_listener, until

pytestmark = pytest.mark.acceptance

RADIOGRAPH = {"modality": "DX", "rows": 256, "columns": 200}
DCMTK = {
    "implicit": ("dcmconv", "+ti"),
    "explicit": ("dcmconv", "+te"),
    "big_endian": ("dcmconv", "+tb"),
    "deflated": ("dcmconv", "+td"),
    "rle": ("dcmcrle",),
    "jpeg_lossless_sv1": ("dcmcjpeg", "+e1"),
    "jpeg_lossless_14": ("dcmcjpeg", "+el"),
    "jpeg_extended": ("dcmcjpeg", "+ee"),
    "jpegls_lossless": ("dcmcjpls", "+el"),
    "jpegls_near_lossless": ("dcmcjpls", "+en", "+md", "2"),
}
SUCCESS = re.compile(r"Store Response \(Success\)|status SUCCESS  : 1")
GDCM = {"jpeg_2000_lossless": ("--j2k",), "jpeg_2000": ("--j2k", "--lossy", "-q", "80")}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Listening]:
    folder = tmp_path_factory.mktemp("node")
    with running(folder, migrated_sqlite, 2) as node:
        yield node


def running(folder: Path, template: Path, count: int, **dicom: object):  # type: ignore[no-untyped-def]
    (folder / "node.sqlite").write_bytes(template.read_bytes())
    return listening_processes(settings_for(folder, f"sqlite:///{folder / 'node.sqlite'}", **dicom), count)


def called(node: Listening) -> tuple[str, ...]:
    return "-aet", "MODALITY", "-aec", "PACS_NODE", "127.0.0.1", str(node.port)


def instance_of(node: Listening, sop_instance_uid: str) -> Instance | None:
    with read_scope(node.engine) as session:
        return session.scalars(select(Instance).where(Instance.sop_instance_uid == sop_instance_uid)).one_or_none()


def data_set(content: bytes) -> bytes:
    return content[data_set_offset(content) :]


def in_another_syntax(name: str, source: Path, target: Path) -> Path:
    """Write `source` in another transfer syntax, laid out as dcmtk does: its senders encode anew what they send."""
    program, *options = DCMTK.get(name, ("dcmconv",))
    if name in GDCM:
        gdcmconv = Path(sys.executable).parent / "gdcmconv"
        recoded = target.with_suffix(".gdcm")
        subprocess.run([gdcmconv, *GDCM[name], source, recoded], check=True, capture_output=True, timeout=60)
        source = recoded
    made = dcmtk(program, *options, source, target)
    assert made.returncode == 0, made.stderr
    return target


def send(node: Listening, name: str, file: Path) -> str:
    """Send a file as it is; dcmsend offers all uncompressed syntaxes at once and converts to the one we like best."""
    only = {"implicit": "-xi", "big_endian": "-xb"}
    if name in only:
        result = dcmtk("storescu", "-v", only[name], *called(node), file)
    else:
        result = dcmtk("dcmsend", "-v", "--decompress-never", *called(node), file)
    return result.stdout + result.stderr


@pytest.mark.parametrize("name", [*DCMTK, *GDCM])
def test_dcmsend_sends_each_transfer_syntax_and_its_bytes_are_stored(
    node: Listening, tmp_path: Path, name: str
) -> None:
    """Byte for byte and without a conversion on either side."""
    source = save(make_radiograph(**RADIOGRAPH, sop_instance_uid=generate_uid()), tmp_path / "source.dcm")
    file = in_another_syntax(name, source, tmp_path / f"{name}.dcm")
    meta = dcmread(file, stop_before_pixels=True).file_meta
    assert SUCCESS.search(send(node, name, file))
    stored = instance_of(node, meta.MediaStorageSOPInstanceUID)
    assert stored is not None
    assert stored.transfer_syntax_uid == meta.TransferSyntaxUID
    path = node.settings.store_dir / stored.path
    sent = data_set(file.read_bytes())
    assert data_set(path.read_bytes()) == sent + b"\0" * (len(sent) % 2)  # a deflated one may be odd on the disk
    assert dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID == meta.TransferSyntaxUID


def test_storescu_is_told_the_status(node: Listening, tmp_path: Path) -> None:
    good = save(make_radiograph(**RADIOGRAPH, sop_instance_uid=generate_uid()), tmp_path / "good.dcm")
    headless = make_radiograph(**RADIOGRAPH, sop_instance_uid=generate_uid(), StudyInstanceUID=None)
    assert dcmtk("storescu", *called(node), good).returncode == 0
    assert dcmtk("storescu", *called(node), save(headless, tmp_path / "headless.dcm")).returncode == 192  # C000
    ct = make_radiograph(**RADIOGRAPH, SOPClassUID=CTImageStorage)
    ct.file_meta.MediaStorageSOPClassUID = CTImageStorage
    refused = dcmtk("storescu", "-v", *called(node), save(ct, tmp_path / "ct.dcm"))
    assert "No presentation context" in refused.stdout + refused.stderr


def test_parallel_senders_are_served_by_all_processes_and_lose_nothing(node: Listening, tmp_path: Path) -> None:
    received = node.counts().received
    folders = []
    for sender in range(4):
        for number in range(10):
            dataset = make_radiograph(**RADIOGRAPH, seed=number, sop_instance_uid=generate_uid())
            save(dataset, tmp_path / str(sender) / f"{number}.dcm")
        folders.append(tmp_path / str(sender))

    def send_folder(folder: Path) -> int:
        return dcmtk("storescu", "+sd", *called(node), folder).returncode

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(send_folder, folders * 2)) == [0] * 8
    counts = node.counts()
    assert counts.received - received == 80
    assert counts.adds_up
    with read_scope(node.engine) as session:
        listeners = {a.listener.rpartition("-")[0] for a in session.scalars(select(Association))}
    assert listeners == {"listen-0", "listen-1"}


def transfer_half(node: Listening, dataset: Dataset) -> RawAssociation:
    association = RawAssociation(node.address)
    content = data_set(as_bytes(dataset))  # type: ignore[arg-type]
    association.store(content, sop_instance_uid=str(dataset.SOPInstanceUID), stop_after=len(content) // 2)
    until(lambda: len(node.files("incoming")) == 1)
    return association


def test_a_listener_killed_during_a_transfer_leaves_no_row_and_its_half_file_is_swept(
    tmp_path: Path, migrated_sqlite: Path
) -> None:
    dataset = make_radiograph(modality="CR", rows=300, columns=300)
    with running(tmp_path, migrated_sqlite, 1) as node:
        association = transfer_half(node, dataset)
        node.processes[0].kill()
        node.processes[0].wait()
        assert is_cut_off(association)
        assert (node.counts().received, instance_of(node, str(dataset.SOPInstanceUID))) == (0, None)
        (half,) = node.files("incoming")
        os.utime(half, (time.time() - 3600, time.time() - 3600))
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(send_one, node)  # its connection waits at the shared socket
            node.processes.append(start_listener(node.settings, node.descriptor, "listen-0"))
            assert waiting.result() == 0x0000
        until(lambda: not half.exists())
        assert node.counts().received == 1


def is_cut_off(association: RawAssociation) -> bool:
    """Whether the peer's end is gone without a word; the kernel says so by a reset where bytes lay unread."""
    try:
        return association.socket.recv(1) == b""
    except ConnectionResetError:
        return True


def send_one(node: Listening) -> int:
    dataset = make_radiograph(modality="CR", rows=64, columns=64, seed=9)
    with RawAssociation(node.address) as association:
        return association.store(data_set(as_bytes(dataset)), sop_instance_uid=str(dataset.SOPInstanceUID)).status


def test_a_killed_listener_takes_no_waiting_connection_along(tmp_path: Path, migrated_sqlite: Path) -> None:
    with running(tmp_path, migrated_sqlite, 2) as node:
        assert dcmtk("echoscu", *called(node)).returncode == 0
        node.processes[0].kill()
        with ThreadPoolExecutor(8) as pool:
            codes = list(pool.map(lambda _: dcmtk("echoscu", *called(node)).returncode, range(24)))
        assert codes == [0] * 24


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_ends_the_process_with_0(
    tmp_path: Path, migrated_sqlite: Path, number: signal.Signals
) -> None:
    with running(tmp_path, migrated_sqlite, 1) as node:
        assert dcmtk("echoscu", *called(node)).returncode == 0
        association = RawAssociation(node.address)
        node.processes[0].send_signal(number)
        assert association.socket.recv(100)[:1] == b"\x07"  # A-ABORT: it was quiet
        assert node.processes[0].wait(timeout=20) == 0
        assert node.count_open() == 0


def test_storescu_gets_a700_below_the_watermark(tmp_path: Path, migrated_sqlite: Path) -> None:
    required_program("storescu")
    (tmp_path / "node.sqlite").write_bytes(migrated_sqlite.read_bytes())
    settings = settings_for(tmp_path, f"sqlite:///{tmp_path / 'node.sqlite'}")
    too_much = settings.store.model_copy(update={"min_free_gb": ObjectStore(tmp_path / "s").free_bytes() / 1e9 + 1000})
    file = save(make_radiograph(**RADIOGRAPH), tmp_path / "a.dcm")
    with listening_processes(settings.model_copy(update={"store": too_much}), 1) as node:
        assert dcmtk("storescu", *called(node), file).returncode == 167  # A700
        assert node.files() == []
