"""Reports on their way to the PACS of other people: dcmtk's storescp that accepts one class alone, and Orthanc."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from sqlalchemy import Engine, select

from db import facts
from db.engine import read_scope, session_scope
from db.facts import BuiltObject
from db.tables import Delivery, DeliveryState, ObjectKind
from pacs_node.conformance import SECONDARY_CAPTURE
from pacs_node.delivery.courier import run_delivery
from pacs_node.report.codes import SR_SOP_CLASSES
from pacs_node.report.sr import build_sr, sop_instance_uid, to_bytes
from pacs_node.report.study import StudyReport
from pacs_node.settings import Settings
from pacs_node.store import ObjectStore
from tests import records
from tests.acceptance.node import ROOT, free_port, until
from tests.acceptance.peers import Orthanc, RecordingPacs, no_delay, predecessors, required_program
from tests.builders import make_radiograph
from tests.reports import STUDY_UID, make_image, make_predecessor, make_study_report, revised

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(120)]

EXPLICIT, IMPLICIT = "LittleEndianExplicit", "LittleEndianImplicit"
CONFIGURATION = """
[[TransferSyntaxes]]
[Offered]
TransferSyntax1 = {transfer_syntax}
[[PresentationContexts]]
[Offered]
PresentationContext1 = {sop_class}\\Offered
[[Profiles]]
[Only]
PresentationContexts = Offered
"""
NAME = "Yamada^Tarou=山田^太郎"


class House:
    """A node's database, store and delivery role; the PACS are real."""

    def __init__(self, engine: Engine, url: str, folder: Path) -> None:
        self.engine, self._url, self._folder = engine, url, folder
        self._store = ObjectStore(folder / "store")

    def add(self, report: StudyReport, *destinations: str, picture: Dataset | None = None) -> None:
        """Record a study's next report as the worker does."""
        now = datetime.now(UTC)
        with session_scope(self.engine) as session:
            number = report.report.revision
            accepted = records.add_image(session, number, study=report.study_instance_uid, now=now)
            report_id = records.freeze(session, accepted.study_id, now=now)
            assert report_id is not None
            objects = [self._place(report, sop_class_uid) for sop_class_uid in SR_SOP_CLASSES]
            if picture is not None:
                objects.append(self._place_picture(picture))
            plan = [(name, DeliveryState.WAITING, "") for name in destinations]
            facts.record_report_built(session, report_id, objects, plan, now=now)

    def _place(self, report: StudyReport, sop_class_uid: str) -> BuiltObject:
        file = self._store.place([to_bytes(build_sr(report, sop_class_uid))])
        uid = sop_instance_uid(report, sop_class_uid, report.report.revision)
        return BuiltObject(sop_instance_uid=uid, sop_class_uid=sop_class_uid, path=file.path, digest=file.digest)

    def _place_picture(self, picture: Dataset) -> BuiltObject:
        file = self._store.place([to_bytes(picture)])
        return BuiltObject(
            sop_instance_uid=picture.SOPInstanceUID,
            sop_class_uid=picture.SOPClassUID,
            path=file.path,
            digest=file.digest,
            kind=ObjectKind.HEATMAP,
        )

    def start_role(self, *destinations: dict[str, Any]) -> subprocess.Popen[bytes]:
        """Start the delivery role as a process of its own."""
        sections = {
            "node": {"data_dir": str(self._folder)},
            "database": {"url": self._url},
            "queue": {"lease_s": 2},
            "destinations": destinations,
        }
        environment = {f"PACS_NODE_{name.upper()}": json.dumps(value) for name, value in sections.items()}
        environment |= {"PACS_NODE_CONFIG": str(ROOT / "config.toml")}
        return subprocess.Popen([sys.executable, "-m", "pacs_node.cli", "deliver"], env=dict(os.environ) | environment)

    @contextmanager
    def delivering(self, *destinations: dict[str, Any], **sections: Any) -> Iterator[None]:
        """Run the delivery role."""
        settings = Settings(
            node={"data_dir": self._folder},
            database={"url": self._url},
            delivery={"retry_base_s": 0.2, "retry_cap_s": 0.5},
            destinations=destinations,
            **sections,
        )
        stop = threading.Event()
        role = threading.Thread(target=run_delivery, args=(settings, stop))
        role.start()
        try:
            yield
        finally:
            stop.set()
            role.join()

    def deliveries(self) -> Sequence[Delivery]:
        with read_scope(self.engine) as session:
            return session.execute(select(Delivery).order_by(Delivery.created_at)).scalars().all()

    def wait(self, *states: DeliveryState) -> Sequence[Delivery]:
        """Wait until the deliveries stand so."""
        until(lambda: [one.state for one in self.deliveries()] == list(states), timeout_s=30, what=f"{states}")
        return self.deliveries()


@pytest.fixture
def house(sqlite_engine: Engine, sqlite_url: str, tmp_path: Path) -> House:
    return House(sqlite_engine, sqlite_url, tmp_path)


@contextmanager
def storescp(folder: Path, sop_class_uid: str, transfer_syntax: str) -> Iterator[dict[str, Any]]:
    """Run dcmtk's storescp with one presentation context alone; yield its `[[destinations]]` entry."""
    program, port = required_program("storescp"), free_port()
    profile = folder / "storescp.cfg"
    profile.write_text(CONFIGURATION.format(sop_class=sop_class_uid, transfer_syntax=transfer_syntax), encoding="ascii")
    (folder / "received").mkdir()
    command = [program, "-aet", "PICKY", "-od", str(folder / "received"), "-xf", str(profile), "Only", str(port)]
    process = subprocess.Popen(command, env=no_delay())
    try:
        yield {"name": "picky", "ae_title": "PICKY", "host": "127.0.0.1", "port": port}
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.parametrize("transfer_syntax", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize("sop_class_uid", SR_SOP_CLASSES)
def test_peer_that_accepts_one_class_gets_the_report_in_that_class(
    house: House, sop_class_uid: str, transfer_syntax: str, tmp_path: Path
) -> None:
    report = make_study_report(make_image(1, p=0.931), header={"patient_name": NAME})
    house.add(report, "picky")
    with storescp(tmp_path, sop_class_uid, transfer_syntax) as destination, house.delivering(destination):
        (delivery,) = house.wait(DeliveryState.SENT)
    (file,) = (tmp_path / "received").iterdir()
    received = dcmread(file)
    assert received.SOPClassUID == delivery.sop_class_uid == sop_class_uid
    assert received.SOPInstanceUID == delivery.sop_instance_uid
    assert str(received.PatientName) == NAME
    assert received == dcmread(io.BytesIO(to_bytes(build_sr(report, sop_class_uid))))


def test_peer_that_accepts_no_report_at_all_is_shown_as_failed(house: House, tmp_path: Path) -> None:
    house.add(make_study_report(make_image(1, p=0.931)), "picky")
    with storescp(tmp_path, "CTImageStorage", EXPLICIT) as destination, house.delivering(destination):
        (delivery,) = house.wait(DeliveryState.FAILED)
    assert "accepts none of the presentation contexts" in delivery.reason


def test_role_that_is_killed_while_it_sends_sends_the_same_again_and_nothing_twice_without_need(
    house: House, tmp_path: Path
) -> None:
    """SIGKILL when the PACS has the heat map and the node does not know it yet."""
    picture = make_radiograph(rows=64, columns=64)
    picture.SOPClassUID = picture.file_meta.MediaStorageSOPClassUID = SECONDARY_CAPTURE
    house.add(make_study_report(make_image(1, p=0.931)), "pacs", picture=picture)
    with RecordingPacs(tmp_path / "pacs") as pacs:
        roles = [house.start_role(pacs.destination())]

        def kill_once(request: Any) -> int:
            if str(request.AffectedSOPClassUID) == SECONDARY_CAPTURE and len(roles) == 1:
                roles[0].kill()
                roles[0].wait()
                roles.append(house.start_role(pacs.destination()))
            return 0x0000

        pacs.answer = kill_once
        try:
            until(lambda: house.deliveries()[0].state is DeliveryState.SENT, timeout_s=100, what="a delivery")
        finally:
            for role in roles:
                role.kill()
                role.wait()
        report, *pictures = pacs.received
    assert report.sop_class_uid == SR_SOP_CLASSES[0]
    assert [one.sop_class_uid for one in pictures] == [SECONDARY_CAPTURE] * 2
    assert len({one.read().PixelData for one in pictures}) == 1
    assert {one.sop_instance_uid for one in pictures} == {picture.SOPInstanceUID}


def test_orthanc_keeps_the_chain_of_revisions_under_the_right_patient(house: House, tmp_path: Path) -> None:
    """Orthanc is away at first; then both revisions arrive, in order, each once."""
    required_program("Orthanc")
    orthanc = Orthanc(tmp_path / "orthanc")
    first = make_study_report(make_image(1, p=0.07), header={"patient_name": NAME})
    second = revised(make_study_report(make_image(1, p=0.931), header={"patient_name": NAME}), make_predecessor())
    house.add(first, "orthanc")
    with house.delivering(orthanc.destination()):
        until(lambda: house.deliveries()[0].reason, timeout_s=20, what="a first try")
        assert house.deliveries()[0].state is DeliveryState.WAITING
        with orthanc:
            house.add(second, "orthanc")
            deliveries = house.wait(DeliveryState.SENT, DeliveryState.SENT)
            reports = sorted(orthanc.reports(STUDY_UID), key=lambda report: int(report.InstanceNumber))
            studies = orthanc.find("Study", StudyInstanceUID=STUDY_UID)
            series = orthanc.find("Series", StudyInstanceUID=STUDY_UID)
    assert [report.SOPInstanceUID for report in reports] == [delivery.sop_instance_uid for delivery in deliveries]
    assert predecessors(reports[0]) == []
    assert predecessors(reports[1]) == [reports[0].SOPInstanceUID]
    (study,), (one_series,) = studies, series
    patient = first.headers[first.images[0].instance_id].dataset
    assert study["PatientMainDicomTags"]["PatientID"] == patient.PatientID
    assert study["PatientMainDicomTags"]["PatientName"] == NAME
    assert study["MainDicomTags"]["AccessionNumber"] == patient.AccessionNumber
    assert one_series["MainDicomTags"]["Modality"] == "SR"
