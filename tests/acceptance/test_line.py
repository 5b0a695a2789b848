"""The straight line with real programs: images sent over the network become reports in a PACS, and nothing else."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import DigitalXRayImageStorageForProcessing

from tests.acceptance.node import QUICK, Node, until
from tests.acceptance.peers import (
    SUCCESS,
    ForwardingPacs,
    Modality,
    Orthanc,
    dcmsend,
    echoscu,
    named_images,
    predecessors,
    required_program,
    storescu,
    texts,
)
from tests.builders import data_folder, make_radiograph, radiograph_from_jpeg, save

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(240)]

ANYWHERE_HERE = ["127.0.0.0/8"]
PEERS = [
    {"ae_title": "MODALITY", "addresses": ANYWHERE_HERE},
    {"ae_title": "ARCHIVE", "addresses": ANYWHERE_HERE, "send_priors": True},
    {"ae_title": "ORTHANC", "addresses": ANYWHERE_HERE},
    {"ae_title": "FORWARDER", "addresses": ANYWHERE_HERE},
]
LABELS = {"NORMAL": "absent", "PNEUMONIA": "present"}
OF_EACH = 4
RIGHT_AT_LEAST = 7
"""Of 2 x OF_EACH radiographs that training has seen: a line that mixes images up or turns grey levels over is found."""
LOOP_S = 3.0
"""A loop would show within this time: the node settles after 0.5 s."""


@dataclass(frozen=True, kw_only=True)
class House:
    """The node between a modality and two PACS, one of which sends everything back."""

    node: Node
    orthanc: Orthanc
    forwarder: ForwardingPacs

    @property
    def modality(self) -> Modality:
        return Modality(node=self.node)

    def study(self, dataset: Dataset) -> dict[str, Any]:
        """Return the row of a study."""
        return dict(
            self.node.rows("SELECT * FROM studies WHERE study_instance_uid = ?", str(dataset.StudyInstanceUID))[0]
        )

    def instance(self, dataset: Dataset) -> dict[str, Any]:
        """Return the row of an instance."""
        return dict(
            self.node.rows("SELECT * FROM instances WHERE sop_instance_uid = ?", str(dataset.SOPInstanceUID))[0]
        )

    def reports(self, dataset: Dataset) -> list[Dataset]:
        """Return the reports on a study that Orthanc holds, oldest revision first."""
        return sorted(
            self.orthanc.reports(str(dataset.StudyInstanceUID)), key=lambda report: int(report.InstanceNumber)
        )

    def wait_report(self, dataset: Dataset, revision: int = 1) -> Dataset:
        """Wait for a revision of a study's report in Orthanc."""
        found = until(
            lambda: self.reports(dataset)[revision - 1 :],
            timeout_s=60,
            what="the report in Orthanc",
            describe=self.node.unfinished,
        )
        return found[0]

    def told(self, dataset: Dataset) -> dict[str, Any]:
        """Return what the API says in short about a study."""
        found = self.node.get(f"/api/v1/studies/{_dashed(self.study(dataset)['id'])}")
        summary: dict[str, Any] = found["summary"]
        return summary


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    required_program("Orthanc")
    folder = tmp_path_factory.mktemp("line")
    node: Node | None = None
    forwarder = ForwardingPacs(folder / "forwarder", lambda: node, ae_title="FORWARDER")  # type: ignore[arg-type,return-value]
    with Orthanc(folder / "orthanc") as orthanc, forwarder:
        node = Node(
            folder / "node",
            dicom=QUICK["dicom"] | {"peers": PEERS},
            model={"age_policy": "warn"},
            destinations=[orthanc.destination(), forwarder.destination("forwarder")],
        )
        with node:
            yield House(node=node, orthanc=orthanc, forwarder=forwarder)
            assert node.stop() == 0


@pytest.fixture(scope="module")
def originals() -> dict[str, list[Dataset]]:
    """Return full-size radiographs by label; every second one is a CR, every third inverted."""
    return {
        label: [
            radiograph_from_jpeg(
                path,
                seed=100 * (1 + number) + len(label),
                modality=("DX", "CR")[number % 2],
                photometric=("MONOCHROME2", "MONOCHROME2", "MONOCHROME1")[number % 3],
                bits_stored=(12, 8, 14, 10)[number % 4],
            )
            for number, path in enumerate(sorted(data_folder("originals", label).iterdir())[:OF_EACH])
        ]
        for label in LABELS
    }


def test_verification_answers_and_a_wrong_title_does_not(house: House) -> None:
    assert echoscu(house.node, "-aet", "MODALITY").returncode == 0
    wrong = echoscu(house.node, "-v", "-aet", "MODALITY", called="SOMEBODY")
    assert (wrong.returncode, "Called AE Title Not Recognized" in wrong.stdout + wrong.stderr) == (1, True)
    assert echoscu(house.node, "-aet", "STRANGER").returncode != 0


@pytest.fixture(scope="module")
def answered(
    house: House, originals: dict[str, list[Dataset]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Dataset]]:
    """Send the originals with storescu and wait until every report is in Orthanc."""
    folder = tmp_path_factory.mktemp("originals")
    every = [dataset for datasets in originals.values() for dataset in datasets]
    sent = storescu(house.node, [save(d, folder / f"{i}.dcm") for i, d in enumerate(every)])
    assert sent.returncode == 0, sent.stderr
    for dataset in every:
        house.wait_report(dataset)
    return originals


def test_reports_are_found_by_patient_study_and_accession(house: House, answered: dict[str, list[Dataset]]) -> None:
    for dataset in (d for datasets in answered.values() for d in datasets):
        by_patient = house.orthanc.find("Series", PatientID=dataset.PatientID, Modality="SR")
        by_order = house.orthanc.find("Series", AccessionNumber=dataset.AccessionNumber, Modality="SR")
        assert len(by_patient) == len(by_order) == 1
        (report,) = house.reports(dataset)
        for keyword in (
            "PatientID",
            "PatientName",
            "PatientBirthDate",
            "StudyInstanceUID",
            "AccessionNumber",
            "StudyDate",
        ):
            assert report[keyword].value == dataset[keyword].value, keyword
        assert named_images(report) == [dataset.SOPInstanceUID]


def test_database_api_and_report_say_the_same(house: House, answered: dict[str, list[Dataset]]) -> None:
    for dataset in (d for datasets in answered.values() for d in datasets):
        instance, told = house.instance(dataset), house.told(dataset)
        prediction = house.node.rows("SELECT * FROM predictions WHERE instance_id = ?", instance["id"])[0]
        assert instance["state"] == "analysed"
        assert told["probability"] == pytest.approx(prediction["probability"])
        assert prediction["confidence"] == pytest.approx(
            100 * max(prediction["probability"], 1 - prediction["probability"])
        )
        said = re.search(r"Probability of pneumonia (?:[<>] )?([\d.]+) %", texts(house.reports(dataset)[0]))
        assert said is not None
        assert float(said[1]) == pytest.approx(100 * prediction["probability"], abs=0.1)
        assert told["answer"].upper() in texts(house.reports(dataset)[0]).upper()


def test_answers_are_right(house: House, answered: dict[str, list[Dataset]]) -> None:
    answers = [(LABELS[label], house.told(d)["answer"]) for label, datasets in answered.items() for d in datasets]
    assert sum(wanted == answer for wanted, answer in answers) >= RIGHT_AT_LEAST, answers


def test_every_transfer_of_an_image_again_is_a_duplicate(house: House, answered: dict[str, list[Dataset]]) -> None:
    dataset = answered["NORMAL"][0]
    assert house.modality.send([dataset, dataset]) == [SUCCESS, SUCCESS]
    house.node.wait_quiet()
    outcomes = house.node.rows("SELECT outcome FROM receipts WHERE instance_id = ?", house.instance(dataset)["id"])
    assert sorted(row["outcome"] for row in outcomes) == ["duplicate", "duplicate", "new"]
    assert len(house.reports(dataset)) == 1


def test_two_views_become_one_report_that_says_why_one_is_not_judged(house: House) -> None:
    frontal = make_radiograph(seed=501)
    lateral = _same_study(frontal, make_radiograph(seed=502, view_position="LL"))
    assert house.modality.send([frontal, lateral]) == [SUCCESS, SUCCESS]
    report = house.wait_report(frontal)
    assert set(named_images(report)) == {frontal.SOPInstanceUID, lateral.SOPInstanceUID}
    assert "only frontal views are judged" in texts(report)
    assert [house.instance(d)["state"] for d in (frontal, lateral)] == ["analysed", "not_analysed"]
    assert len(house.reports(frontal)) == 1


def test_a_late_image_opens_a_revision_that_names_its_predecessor(house: House) -> None:
    first = make_radiograph(seed=511)
    late = _same_study(first, make_radiograph(seed=512))
    assert house.modality.send([first]) == [SUCCESS]
    before = house.wait_report(first)
    assert house.modality.send([late]) == [SUCCESS]
    after = house.wait_report(first, revision=2)
    assert predecessors(after) == [before.SOPInstanceUID]
    assert set(named_images(after)) == {first.SOPInstanceUID, late.SOPInstanceUID}


def test_raw_images_alone_are_reported_as_not_analysed(house: House) -> None:
    """A modality that sends For Processing alone is set up wrongly: silence would be read as normal."""
    raw = make_radiograph(seed=515, SOPClassUID=DigitalXRayImageStorageForProcessing)
    raw.PresentationIntentType = "FOR PROCESSING"
    raw.file_meta.MediaStorageSOPClassUID = raw.SOPClassUID
    assert house.modality.send([raw]) == [SUCCESS]
    report = house.wait_report(raw)
    assert named_images(report) == [raw.SOPInstanceUID]
    assert "raw detector data" in texts(report)
    assert house.told(raw)["answer"] == "not_analysed"


def test_another_body_part_is_not_analysed_and_not_reported(house: House) -> None:
    hand = make_radiograph(
        seed=521, body_part="HAND", AnatomicRegionSequence=None, StudyDescription="XR hand", ProcedureCodeSequence=None
    )
    assert house.modality.send([hand]) == [SUCCESS]
    house.node.wait_quiet()
    assert house.instance(hand)["state"] == "not_analysed"
    assert house.reports(hand) == []
    assert house.told(hand)["answer"] == "not_analysed"


def test_a_pacs_that_sends_everything_back_starts_no_loop(house: House, answered: dict[str, list[Dataset]]) -> None:
    house.node.wait_quiet()
    before = house.node.count("SELECT count(*) FROM reports")
    time.sleep(LOOP_S)
    house.node.wait_quiet()
    assert house.node.count("SELECT count(*) FROM reports") == before
    reports = [r for records in house.forwarder.reports().values() for r in records]
    received = [record.sop_instance_uid for record in house.forwarder.received]
    assert len(received) == len(set(received)), "a report or a picture was sent twice"
    assert len(reports) >= 2 * OF_EACH
    assert {status for _, status in house.forwarder.forwarded} == {SUCCESS}
    query = "SELECT is_judged, state FROM instances WHERE sop_class_uid LIKE '1.2.840.10008.5.1.4.1.1.88.%'"
    came_back = [(row["is_judged"], row["state"]) for row in house.node.rows(query)]
    assert came_back == [(0, "not_analysed")] * len(reports)


def test_orthanc_sends_to_the_node(house: House, tmp_path: Path) -> None:
    datasets = [make_radiograph(seed=seed, modality="CR") for seed in (531, 532)]
    done = house.orthanc.send([save(d, tmp_path / f"{d.PatientID}.dcm") for d in datasets], house.node)
    assert (done["InstancesCount"], done["FailedInstancesCount"]) == (2, 0)
    for dataset in datasets:
        report = house.wait_report(dataset)
        assert named_images(report) == [dataset.SOPInstanceUID]


def test_the_admins_own_sender_reaches_the_node(house: House, tmp_path: Path) -> None:
    dataset = make_radiograph(seed=541)
    save(dataset, tmp_path / "folder" / "image.dcm")
    sent = house.node.command(
        "send", str(tmp_path), "--to", f"PACS_NODE@127.0.0.1:{house.node.dicom_port}", "--calling", "MODALITY"
    )
    assert sent.returncode == 0, sent.stderr
    house.wait_report(dataset)


@pytest.fixture(scope="module")
def real(house: House) -> dict[str, dict[str, Any]]:
    """Send the real chest radiographs with dcmsend, as stored; return instances and studies by file name."""
    files = sorted(data_folder("dicom", "chest").iterdir())
    sent = dcmsend(house.node, files, calling="ARCHIVE")
    assert sent.returncode == 0, sent.stderr
    house.node.wait_quiet()
    return {path.name: _of_file(house.node, path) for path in files}


def test_real_radiographs_are_judged(house: House, real: dict[str, dict[str, Any]]) -> None:
    states = {name: row["state"] for name, row in real.items()}
    assert states["RG1_J2KI.dcm"] == "analysed"
    assert states["gdcm-CR-MONO1-10-chest.dcm"] == "analysed"
    assert states["dx_image.dcm"] == "not_analysed"
    codes = "SELECT code FROM warnings WHERE instance_id = ?"
    assert "lossy_source" in {row["code"] for row in house.node.rows(codes, real["RG1_J2KI.dcm"]["id"])}


def test_a_real_file_with_a_falsified_tag_is_quarantined(house: House, real: dict[str, dict[str, Any]]) -> None:
    twice = [name for name in real if "850819" in name or name == "Fake_MONOHR1.dcm"]
    assert len({real[name]["id"] for name in twice}) == 1, "both bear one SOP Instance UID"
    outcomes = house.node.rows("SELECT outcome FROM receipts WHERE instance_id = ?", real[twice[0]]["id"])
    assert sorted(row["outcome"] for row in outcomes) == ["new", "quarantined"]


def test_an_unidentified_study_is_held_until_released(house: House, real: dict[str, dict[str, Any]]) -> None:
    study_id, uid = (
        real["gdcm-CR-MONO1-10-chest.dcm"]["study_id"],
        real["gdcm-CR-MONO1-10-chest.dcm"]["study_instance_uid"],
    )
    assert house.node.rows("SELECT hold FROM studies WHERE id = ?", study_id)[0]["hold"] == "unidentified"
    assert house.orthanc.reports(uid) == []
    listed = house.node.command("studies", "list").stdout
    assert "held: unidentified" in listed
    released = house.node.command("studies", "release", _dashed(study_id))
    assert released.returncode == 0, released.stderr
    until(lambda: house.orthanc.reports(uid), timeout_s=30, what="the released report", describe=house.node.unfinished)


def test_results_are_worth_reading(house: House, answered: dict[str, list[Dataset]]) -> None:
    """The means of both labels lie apart: nothing on the way turned the grey levels over."""
    probabilities = {label: [house.told(d)["probability"] for d in datasets] for label, datasets in answered.items()}
    assert mean(probabilities["PNEUMONIA"]) > mean(probabilities["NORMAL"])


def _same_study(first: Dataset, other: Dataset) -> Dataset:
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "PatientID", "PatientBirthDate", "AccessionNumber"):
        setattr(other, keyword, getattr(first, keyword))
    return other


def _of_file(node: Node, path: Path) -> dict[str, Any]:
    uid = str(dcmread(path, stop_before_pixels=True).SOPInstanceUID)
    query = """SELECT i.id, i.state, i.study_id, s.study_instance_uid
               FROM instances i JOIN studies s ON s.id = i.study_id WHERE i.sop_instance_uid = ?"""
    return dict(node.rows(query, uid)[0])


def _dashed(hexadecimal: str) -> str:
    """SQLite keeps our ids without dashes."""
    return str(uuid.UUID(hexadecimal))
