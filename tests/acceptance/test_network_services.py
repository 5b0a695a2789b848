"""What leaves and what comes in beside plain C-STORE, against Orthanc and dcmtk: commitment, TLS, STOW-RS, C-MOVE."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from sqlalchemy import Engine, update

from db import audit, facts
from db.engine import read_scope, session_scope
from db.facts import BuiltObject
from db.tables import Delivery, DeliveryState
from pacs_node.commands.fetch import fetch
from pacs_node.dimse.retrieve import find_studies
from pacs_node.dimse.storage import echo
from pacs_node.errors import DeliveryFailed
from pacs_node.report.document import to_bytes
from pacs_node.report.rejection import build_rejection_note
from pacs_node.report.study import NodeIdentity
from pacs_node.settings import DestinationSettings, Settings
from tests.acceptance.certificates import Authority, Certificate
from tests.acceptance.node import free_port, until
from tests.acceptance.peers import Orthanc, dcmtk, named_images, no_delay, required_program
from tests.acceptance.test_delivery_peers import House
from tests.builders import make_radiograph, required, save
from tests.listening import Listening, listening_in_a_thread, settings_for
from tests.reports import STUDY_UID, make_image, make_study_report

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(180)]
DICOM_WEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@pytest.fixture
def house(sqlite_engine: Engine, sqlite_url: str, tmp_path: Path) -> House:
    return House(sqlite_engine, sqlite_url, tmp_path)


@contextmanager
def listening(house: House, url: str, folder: Path, **dicom: Any) -> Iterator[Listening]:
    """Run a listener on the house's database."""
    with listening_in_a_thread(settings_for(folder, url, **dicom)) as node:
        yield node


def modality(port: int) -> dict[str, Any]:
    """Return how Orthanc knows the node."""
    own = {"AET": "PACS_NODE", "Host": "127.0.0.1", "Port": port, "AllowStorageCommitment": True}
    return {"DicomModalities": {"node": own}, "DicomAlwaysAllowFind": True, "DicomAlwaysAllowMove": True}


# Storage commitment


def test_orthanc_promises_to_keep_a_result_and_it_counts_as_archived(
    house: House, sqlite_url: str, tmp_path: Path
) -> None:
    required_program("Orthanc")
    house.add(make_study_report(make_image(1, p=0.931)), "orthanc")
    with listening(house, sqlite_url, tmp_path) as node:
        orthanc = Orthanc(tmp_path / "orthanc", **modality(node.port))
        with orthanc, house.delivering(orthanc.destination(storage_commitment=True)):
            house.wait(DeliveryState.SENT)
            until(lambda: house.deliveries()[0].archived_at, timeout_s=60, what="a promise")


def test_result_that_orthanc_lost_is_sent_again_until_it_keeps_it(
    house: House, sqlite_url: str, tmp_path: Path
) -> None:
    required_program("Orthanc")
    house.add(make_study_report(make_image(1, p=0.931)), "orthanc")
    with listening(house, sqlite_url, tmp_path) as node:
        orthanc = Orthanc(tmp_path / "orthanc", **modality(node.port))
        with orthanc:
            with house.delivering(orthanc.destination()):
                house.wait(DeliveryState.SENT)
            (series,) = orthanc.find("Series", StudyInstanceUID=STUDY_UID)
            orthanc.delete(f"/series/{series['ID']}")
            with session_scope(house.engine) as session:  # a restart later it is asked
                session.execute(update(Delivery).values(commit_due_at=datetime.now(UTC)))
            with house.delivering(orthanc.destination(storage_commitment=True)):
                until(lambda: house.deliveries()[0].archived_at, timeout_s=90, what="a promise")
            assert len(orthanc.reports(STUDY_UID)) == 1
    (delivery,) = house.deliveries()
    assert (delivery.state, delivery.commit_failures) == (DeliveryState.SENT, 1)


def test_node_tells_orthanc_what_it_keeps(sqlite_url: str, house: House, tmp_path: Path) -> None:
    required_program("Orthanc")
    file = save(make_radiograph(rows=64, columns=64), tmp_path / "image.dcm")
    image = dcmread(file)
    with listening(house, sqlite_url, tmp_path, storage_commitment=True) as node:
        orthanc = Orthanc(tmp_path / "orthanc", **modality(node.port))
        with orthanc, house.delivering(orthanc.destination(), dicom={"storage_commitment": True}):
            (resource,) = [orthanc.post("/instances", file.read_bytes())["ID"]]
            orthanc.post("/modalities/node/store", {"Resources": [resource], "Synchronous": True})
            body = {"DicomInstances": [[image.SOPClassUID, image.SOPInstanceUID], [image.SOPClassUID, "1.2.3.4"]]}
            transaction = orthanc.post("/modalities/node/storage-commitment", body)["ID"]
            told = until(
                lambda: (found := orthanc.get(f"/storage-commitment/{transaction}"))["Status"] != "Pending" and found,
                timeout_s=60,
                what="an answer",
            )
    assert [one["SOPInstanceUID"] for one in told["Success"]] == [image.SOPInstanceUID]
    assert [(one["SOPInstanceUID"], one["Description"]) for one in told["Failures"]] == [
        ("1.2.3.4", "One or more of the elements in the Referenced SOP Instance Sequence was not available")
    ]


# TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@contextmanager
def storescp_tls(folder: Path, own: Certificate) -> Iterator[dict[str, Any]]:
    """Run dcmtk's storescp, which wants the caller's certificate; yield its `[[destinations]]` entry."""
    program, port = required_program("storescp"), free_port()
    (folder / "received").mkdir()
    secured = ["+tls", own.private_key, own.certificate, "+cf", own.ca, "-rc"]
    command = [program, "-aet", "PACS", "-od", folder / "received", *secured, str(port)]
    process = subprocess.Popen([str(part) for part in command], env=no_delay())
    try:
        yield {"name": "tls", "ae_title": "PACS", "host": "localhost", "port": port}
    finally:
        process.terminate()
        process.wait(20)


def test_report_goes_to_dcmtk_under_tls_with_both_certificates(
    house: House, authority: Authority, tmp_path: Path
) -> None:
    peer, own = authority.sign("pacs"), authority.sign("node")
    house.add(make_study_report(make_image(1, p=0.931)), "tls")
    with storescp_tls(tmp_path, peer) as entry, house.delivering(entry | own.settings()):
        house.wait(DeliveryState.SENT)
    assert len(list((tmp_path / "received").iterdir())) == 1


@pytest.mark.parametrize("wrong", ["another authority", "another name"])
def test_destination_whose_certificate_is_not_to_be_believed_gets_nothing(
    authority: Authority, wrong: str, tmp_path: Path
) -> None:
    own = authority.sign("node")
    stranger = Authority(tmp_path, "other").sign("pacs")
    misnamed = authority.sign("pacs", "DNS:elsewhere.example.org")
    peer = stranger if wrong == "another authority" else misnamed
    with storescp_tls(tmp_path, peer) as entry:
        destination = DestinationSettings(**entry | own.settings())
        until(lambda: "certificate is not believed" in why_no_echo(destination), timeout_s=20, what="a refusal")


def why_no_echo(destination: DestinationSettings) -> str:
    with pytest.raises(DeliveryFailed) as failure:
        echo(destination, calling_ae_title="PACS_NODE", timeout_s=5)
    return failure.value.reason


def storescu(node: Listening, file: Path, *options: str | Path, calling: str = "ROOM") -> int:
    return dcmtk(
        "storescu", *options, "-aet", calling, "-aec", "PACS_NODE", "localhost", str(node.port), file
    ).returncode


def test_listener_takes_only_certificates_of_its_authority_under_their_own_titles(
    authority: Authority, sqlite_url: str, tmp_path: Path
) -> None:
    own, room = authority.sign("node"), authority.sign("room")
    other = Authority(tmp_path / "other", "other").sign("room")
    file = save(make_radiograph(rows=700, columns=700), tmp_path / "image.dcm")
    peers = [
        {"ae_title": "ROOM", "addresses": ["127.0.0.1", "::1"], "certificates": ["room"]},
        {"ae_title": "WARD", "addresses": ["127.0.0.1", "::1"], "certificates": ["ward"]},
    ]
    settings = settings_for(tmp_path, sqlite_url, peers=peers, **own.settings())
    believed = ("+cf", authority.certificate)
    with listening_in_a_thread(settings) as node:
        assert storescu(node, file, "+tls", room.private_key, room.certificate, *believed) == 0
        assert storescu(node, file, "+tls", room.private_key, room.certificate, *believed, calling="WARD") != 0
        assert storescu(node, file, "+tls", other.private_key, other.certificate, *believed) != 0
        assert storescu(node, file, "+tla", *believed) != 0
        assert storescu(node, file) != 0
        assert node.counts().received == 1
        assert storescu(node, file, "+tls", room.private_key, room.certificate, *believed) == 0


# Recall


def test_recalled_result_is_rejected_in_orthanc_by_a_key_object_note(house: House, tmp_path: Path) -> None:
    required_program("Orthanc")
    orthanc = Orthanc(tmp_path / "orthanc")
    house.add(make_study_report(make_image(1, p=0.931)), "orthanc")
    with orthanc, house.delivering(orthanc.destination(send_rejection_notes=True)):
        (delivery,) = house.wait(DeliveryState.SENT)
        with session_scope(house.engine) as session:
            withdrawn = {"code": "113001", "actor": "admin", "now": datetime.now(UTC)}
            assert facts.withdraw_report(session, delivery.report_id, **withdrawn) == 1
        (delivery,) = house.wait(DeliveryState.WITHDRAWN)
        (series,) = orthanc.find("Series", StudyInstanceUID=STUDY_UID, Modality="KO")
        note = dcmread(io.BytesIO(orthanc.file(series["Instances"][0])))
    assert note.ConceptNameCodeSequence[0].CodeValue == "113001"
    assert named_images(note) == [delivery.sop_instance_uid]
    assert delivery.reason == "a rejection note was sent"


def test_rejection_note_of_a_modality_takes_its_image_out(house: House, sqlite_url: str, tmp_path: Path) -> None:
    file = save(make_radiograph(rows=700, columns=700), tmp_path / "image.dcm")
    image = dcmread(file)
    with listening(house, sqlite_url, tmp_path) as node:
        assert storescu(node, file) == 0
        note = rejection_of(image, tmp_path / "note.dcm")
        assert storescu(node, note) == 0
        assert storescu(node, note) == 0
        assert node.counts().not_analysed == 2  # the image, and the note itself, which is no image
        with read_scope(node.engine) as session:
            actions = [event.action for event in audit.tail(session, 50)]
    assert actions.count("image_rejected") == 1


def rejection_of(image: Dataset, path: Path) -> Path:
    """Save a note of the modality's own that rejects an image."""
    node = NodeIdentity(name="modality", ae_title="MODALITY", software_version="1")
    image.InstanceNumber = 1
    rejected = BuiltObject(sop_instance_uid=image.SOPInstanceUID, sop_class_uid=image.SOPClassUID, path="", digest="")
    note = build_rejection_note(
        image,
        [rejected],
        code="113001",
        installation_id=UUID(int=7),
        node=node,
        at=datetime.now(UTC),
        local_zone=UTC,
        model_name="none",
    )
    path.write_bytes(to_bytes(note))
    return path


# STOW-RS


def test_report_goes_to_orthanc_by_stow(house: House, tmp_path: Path) -> None:
    required_program("Orthanc")
    required(DICOM_WEB.exists(), "the plugin orthanc-dicomweb")
    orthanc = Orthanc(tmp_path / "orthanc", Plugins=[str(DICOM_WEB)])
    house.add(make_study_report(make_image(1, p=0.931)), "web")
    url = f"http://127.0.0.1:{orthanc.http_port}/dicom-web"
    with orthanc, house.delivering({"name": "web", "kind": "stow", "url": url}):
        (delivery,) = house.wait(DeliveryState.SENT)
        (report,) = orthanc.reports(STUDY_UID)
    assert report.SOPInstanceUID == delivery.sop_instance_uid


# Fetching


def test_missing_study_is_fetched_from_orthanc(sqlite_url: str, house: House, tmp_path: Path) -> None:
    required_program("Orthanc")
    files = [
        save(make_radiograph(rows=64, columns=64, seed=seed, AccessionNumber="A77"), tmp_path / f"{seed}.dcm")
        for seed in (1, 2)
    ]
    with listening(house, sqlite_url, tmp_path) as node:
        orthanc = Orthanc(tmp_path / "orthanc", **modality(node.port))
        with orthanc:
            for file in files:
                orthanc.post("/instances", file.read_bytes())
            settings = Settings(
                node=node.settings.node, database=node.settings.database, destinations=[orthanc.destination()]
            )
            found = find_studies(settings.destinations[0], {"AccessionNumber": "A77"}, calling_ae_title="PACS_NODE")
            assert {study.study_instance_uid for study in found} == {dcmread(f).StudyInstanceUID for f in files}
            assert {study.accession_number for study in found} == {"A77"}
            assert fetch(settings, "orthanc", {"AccessionNumber": "B1"}, actor="admin", dry_run=False) == 1
            assert fetch(settings, "orthanc", {"AccessionNumber": "A77"}, actor="admin", dry_run=False) == 0
            assert node.counts().received == 2
