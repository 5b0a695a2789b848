"""The other programs of a hospital, real ones where there are any: modalities that send, PACS that receive.

dcmtk and Orthanc come from the system; the recording and the forwarding PACS are pynetdicom, because they must be able
to be slow, to say no, and to send everything back. Every program gets TCP_NODELAY=1: without it dcmtk stalls 40 ms per
image.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pynetdicom import AE, StoragePresentationContexts, evt
from pynetdicom.association import Association
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import Verification

from tests.acceptance.node import Node, free_port, until
from tests.builders import required

SUCCESS = 0x0000
SR_SOP_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.88.34": "Comprehensive 3D SR",
    "1.2.840.10008.5.1.4.1.1.88.33": "Comprehensive SR",
    "1.2.840.10008.5.1.4.1.1.88.22": "Enhanced SR",
}


def program(name: str) -> str | None:
    """Return where a system's program lies; the virtual environment has pynetdicom scripts of dcmtk's names."""
    own = Path(sys.executable).parent
    folders = [f for f in os.get_exec_path() if Path(f) != own and Path(f).resolve() != own.resolve()]
    return shutil.which(name, path=os.pathsep.join([*folders, "/usr/sbin"]))


def required_program(name: str) -> str:
    """Return where a system's program lies, or skip."""
    found = program(name)
    required(found, f"the program {name}")
    assert found is not None
    return found


def no_delay() -> dict[str, str]:
    """Return the environment in which dcmtk and Orthanc send small packets at once."""
    return dict(os.environ) | {"TCP_NODELAY": "1"}


# dcmtk


def dcmtk(name: str, *arguments: str | Path, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a dcmtk program to its end."""
    command = [required_program(name), *map(str, arguments)]
    return subprocess.run(
        command, env=no_delay(), capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False
    )


def storescu(
    node: Node, files: Iterable[Path], *options: str, calling: str = "MODALITY", timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """Send files in one association."""
    to = ("-aet", calling, "-aec", node.ae_title, "127.0.0.1", str(node.dicom_port))
    return dcmtk("storescu", "-v", *options, *to, *files, timeout_s=timeout_s)


def dcmsend(
    node: Node, files: Iterable[Path], *options: str, calling: str = "MODALITY"
) -> subprocess.CompletedProcess[str]:
    """Send files as they are; transfer syntaxes are negotiated file by file."""
    to = ("-aet", calling, "-aec", node.ae_title, "127.0.0.1", str(node.dicom_port))
    return dcmtk("dcmsend", "-v", "--decompress-never", *options, *to, *files)


def echoscu(node: Node, *options: str, called: str | None = None) -> subprocess.CompletedProcess[str]:
    """Verify."""
    return dcmtk("echoscu", *options, "-aec", called or node.ae_title, "127.0.0.1", str(node.dicom_port))


# A modality of our own, that knows what was acknowledged


@dataclass(kw_only=True)
class Modality:
    """Sends like a patient modality: what was not acknowledged is sent again; keeps the time of every success."""

    node: Node
    ae_title: str = "MODALITY"
    acknowledged: dict[str, float] = field(default_factory=dict)
    """SOP Instance UID -> monotonic time of the success response."""
    is_sending: threading.Event = field(default_factory=threading.Event)

    def send(self, datasets: Sequence[Dataset], *, attempts: int = 1, pause_s: float = 0.5) -> list[int]:
        """Send in one association, and what is left in another, at most `attempts` times; return the statuses."""
        statuses: dict[str, int] = {}
        left = list(datasets)
        for attempt in range(attempts):
            if attempt:
                time.sleep(pause_s)
            self._send_once(left, statuses)
            left = [d for d in left if statuses.get(d.SOPInstanceUID) != SUCCESS]
            if not left:
                break
        return [statuses.get(d.SOPInstanceUID, -1) for d in datasets]

    def _send_once(self, datasets: Sequence[Dataset], statuses: dict[str, int]) -> None:
        association = self._associate(datasets)
        if not association.is_established:
            return
        self.is_sending.set()
        try:
            for dataset in datasets:
                status = association.send_c_store(dataset)
                if "Status" not in status:
                    break
                statuses[dataset.SOPInstanceUID] = int(status.Status)
                if status.Status == SUCCESS:
                    self.acknowledged[str(dataset.SOPInstanceUID)] = time.monotonic()
        except (RuntimeError, ValueError, OSError):  # the peer went away between two images
            pass
        finally:
            self.is_sending.clear()
            if association.is_established:
                association.release()

    def _associate(self, datasets: Sequence[Dataset]) -> Association:
        ae = AE(self.ae_title)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
        ae.connection_timeout = 5
        for pair in {(d.SOPClassUID, d.file_meta.TransferSyntaxUID) for d in datasets}:
            ae.add_requested_context(*pair)
        return ae.associate(
            "127.0.0.1",
            self.node.dicom_port,
            ae_title=self.node.ae_title,
            max_pdu=131072,
            evt_handlers=[(evt.EVT_CONN_OPEN, _send_at_once)],
        )


# A PACS that records


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One object that a PACS stored."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    at: float
    """Monotonic time after the file was written, before the success response."""

    def read(self) -> Dataset:
        return dcmread(self.path)


class RecordingPacs:
    """A Storage SCP that keeps every object with its file; can be slow, choosy and refusing."""

    def __init__(
        self,
        folder: Path,
        *,
        ae_title: str = "PACS",
        port: int | None = None,
        sop_classes: Iterable[str] | None = None,
        delay_s: float = 0.0,
    ) -> None:
        self.folder = folder
        self.ae_title = ae_title
        self.port = port or free_port()
        self.delay_s = delay_s
        self.answer: Callable[[Dataset], int] = lambda _: SUCCESS
        self.received: list[Received] = []
        self.is_receiving = threading.Event()
        self._sop_classes = None if sop_classes is None else set(sop_classes)
        self._server: Any = None
        folder.mkdir(parents=True, exist_ok=True)

    def destination(self, name: str = "pacs", **more: Any) -> dict[str, Any]:
        """Return the `[[destinations]]` entry that names this PACS."""
        return {"name": name, "ae_title": self.ae_title, "host": "127.0.0.1", "port": self.port} | more

    def start(self) -> RecordingPacs:
        ae = AE(self.ae_title)
        ae.maximum_pdu_size = 131072
        ae.supported_contexts = [
            build_context(c.abstract_syntax, c.transfer_syntax)
            for c in StoragePresentationContexts
            if self._sop_classes is None or c.abstract_syntax in self._sop_classes
        ]
        ae.add_supported_context(Verification)
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_CONN_OPEN, _send_at_once)]
        self._server = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        return self

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server = None

    def __enter__(self) -> RecordingPacs:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _store(self, event: Any) -> int:
        self.is_receiving.set()
        try:
            time.sleep(self.delay_s)
            status = self.answer(event.request)
            if status == SUCCESS:
                self._keep(event)
            return status
        finally:
            self.is_receiving.clear()

    def _keep(self, event: Any) -> None:
        uid = str(event.request.AffectedSOPInstanceUID)
        path = self.folder / f"{len(self.received):05d}-{uid}.dcm"
        path.write_bytes(event.encoded_dataset())
        record = Received(
            path=path, sop_class_uid=str(event.request.AffectedSOPClassUID), sop_instance_uid=uid, at=time.monotonic()
        )
        self.received.append(record)
        self.stored(record)

    def stored(self, record: Received) -> None:
        """For a PACS that does more than keep."""

    def reports(self) -> dict[str, list[Received]]:
        """Return the reports by Study Instance UID, each object once, in order of reception."""
        reports: dict[str, dict[str, Received]] = defaultdict(dict)
        for record in list(self.received):
            if record.sop_class_uid in SR_SOP_CLASSES:
                study = str(dcmread(record.path, specific_tags=["StudyInstanceUID"]).StudyInstanceUID)
                reports[study].setdefault(record.sop_instance_uid, record)
        return {study: list(records.values()) for study, records in reports.items()}

    def wait_report(self, study_instance_uid: str, *, timeout_s: float = 60, number: int = 1) -> Dataset:
        """Wait for the study's `number`-th report and return it."""
        found = until(
            lambda: self.reports().get(study_instance_uid, [])[number - 1 :],
            timeout_s=timeout_s,
            what=f"report {number} of a study",
        )
        return found[0].read()


class ForwardingPacs(RecordingPacs):
    """A PACS with a routing rule that sends everything it stores to the node, reports included."""

    def __init__(self, folder: Path, node: Callable[[], Node], **options: Any) -> None:
        super().__init__(folder, **options)
        self._node = node
        self.forwarded: list[tuple[str, int]] = []
        """SOP Instance UID and the node's status."""

    def stored(self, record: Received) -> None:
        threading.Thread(target=self._forward, args=(record,), daemon=True).start()

    def _forward(self, record: Received) -> None:
        back = Modality(node=self._node(), ae_title=self.ae_title)
        dataset = record.read()
        (status,) = back.send([dataset])
        self.forwarded.append((record.sop_instance_uid, status))


def _send_at_once(event: Any) -> None:
    """Turn Nagle's algorithm off: otherwise the last packet of an image waits 40 ms for a delayed acknowledgement."""
    connection = event.assoc.dul.socket.socket
    if connection is not None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


# Orthanc


class Orthanc:
    """A real PACS of the system. Its DICOM port binds every address: what is sent here is loopback traffic only."""

    def __init__(self, folder: Path, *, ae_title: str = "ORTHANC", **options: Any) -> None:
        """`options` are Orthanc's own; all but ports, titles and folders are its defaults."""
        self.folder = folder
        self.ae_title = ae_title
        self.http_port, self.port = free_port(), free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._options: Mapping[str, Any] = {
            "Name": "ACCEPTANCE",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "HttpPort": self.http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomAet": ae_title,
            "DicomPort": self.port,
        } | options

    def destination(self, name: str = "orthanc", **more: Any) -> dict[str, Any]:
        return {"name": name, "ae_title": self.ae_title, "host": "127.0.0.1", "port": self.port} | more

    def start(self) -> Orthanc:
        binary = required_program("Orthanc")
        (self.folder / "storage").mkdir(parents=True, exist_ok=True)
        config = self.folder / "orthanc.json"
        config.write_text(json.dumps(self._options), encoding="utf-8")
        with (self.folder / "orthanc.log").open("wb") as log:
            self.process = subprocess.Popen([binary, str(config)], env=no_delay(), stdout=log, stderr=log)
        until(self._answers, timeout_s=30, what="Orthanc", every_s=0.05)
        return self

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def __enter__(self) -> Orthanc:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _answers(self) -> bool:
        try:
            self.get("/system")
        except OSError:
            return False
        return True

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=30) as response:
            return json.loads(response.read())

    def file(self, instance: str) -> bytes:
        """Return one instance as a Part 10 file."""
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self.http_port}/instances/{instance}/file", timeout=30
        ) as response:
            return bytes(response.read())

    def post(self, path: str, body: Any, *, method: str = "POST") -> Any:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}", content, method=method)
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = response.read()
            return json.loads(answer) if answer else None

    def delete(self, path: str) -> None:
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}", method="DELETE")
        with urllib.request.urlopen(request, timeout=60):
            pass

    def find(self, level: str, **query: str) -> list[dict[str, Any]]:
        """Query by DICOM keywords, as a reader's list does; return the matches with their tags."""
        body = {"Level": level, "Query": query, "Expand": True}
        found: list[dict[str, Any]] = self.post("/tools/find", body)
        return found

    def reports(self, study_instance_uid: str) -> list[Dataset]:
        """Return every SR of a study."""
        series = self.find("Series", StudyInstanceUID=study_instance_uid, Modality="SR")
        files = [self.file(instance) for one in series for instance in one["Instances"]]
        return [dcmread(io.BytesIO(content)) for content in files]

    def send(self, files: Iterable[Path], to: Node) -> dict[str, Any]:
        """Take files in and send them on to the node, as a modality or a router does."""
        peer = {"AET": to.ae_title, "Host": "127.0.0.1", "Port": to.dicom_port}
        self.post("/modalities/node", peer, method="PUT")
        ids = [self.post("/instances", file.read_bytes())["ID"] for file in files]
        done: dict[str, Any] = self.post("/modalities/node/store", {"Resources": ids, "Synchronous": True})
        return done

    def count(self) -> int:
        return int(self.get("/statistics")["CountInstances"])


# Reading reports


def named_images(report: Dataset) -> list[str]:
    """Return the SOP Instance UIDs that a report names as evidence of its own study (PS3.3 C.17.2)."""
    return [
        str(item.ReferencedSOPInstanceUID)
        for study in report.get("CurrentRequestedProcedureEvidenceSequence", [])
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    ]


def predecessors(report: Dataset) -> list[str]:
    """Return the SOP Instance UIDs of the reports that this one replaces (PS3.3 C.17.2)."""
    return [
        str(item.ReferencedSOPInstanceUID)
        for study in report.get("PredecessorDocumentsSequence", [])
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    ]


def texts(report: Dataset) -> str:
    """Return every text and code meaning of a report, a line each."""
    found: list[str] = []

    def walk(item: Dataset) -> None:
        if "TextValue" in item:
            found.append(str(item.TextValue))
        for code in item.get("ConceptCodeSequence", []):
            found.append(str(code.CodeMeaning))
        for child in item.get("ContentSequence", []):
            walk(child)

    walk(report)
    return "\n".join(found)
