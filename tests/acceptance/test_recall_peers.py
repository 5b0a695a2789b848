"""A model version is recalled while PACS of other people hold what it said: Orthanc, told by notes, and dcmtk, not."""

from __future__ import annotations

import io
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from db.tables import ObjectKind
from models.registry import Registry
from pacs_node.wiring import BUNDLED_MODELS
from tests.acceptance.node import Node, free_port, until
from tests.acceptance.peers import SUCCESS, Modality, Orthanc, named_images, no_delay, required_program
from tests.acceptance.test_commands import REFUSED_TO_START, another_version, the_one_line
from tests.builders import make_radiograph

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]

NEW = "9.9.9"
REJECTED_FOR_QUALITY, REPLACED_REPORT = "113001", "121360"


@dataclass(frozen=True, kw_only=True)
class House:
    """The node, and two PACS that it reports to."""

    node: Node
    orthanc: Orthanc
    plain: Path
    """Where dcmtk's storescp puts what it gets."""

    def send(self, *seeds: int) -> list[str]:
        """Send radiographs, each of a study of its own; return the Study Instance UIDs."""
        datasets = [make_radiograph(seed=seed) for seed in seeds]
        assert Modality(node=self.node).send(datasets) == [SUCCESS] * len(seeds)
        return [str(dataset.StudyInstanceUID) for dataset in datasets]

    def of_modality(self, study_uid: str, modality: str) -> list[Dataset]:
        """Return what Orthanc has of a study in that modality, the oldest first."""
        series = self.orthanc.find("Series", StudyInstanceUID=study_uid, Modality=modality)
        files = [self.orthanc.file(instance) for one in series for instance in one["Instances"]]
        found = [dcmread(io.BytesIO(content)) for content in files]
        return sorted(found, key=lambda one: int(one.InstanceNumber))

    def at_plain(self, study_uid: str) -> list[Dataset]:
        """Return what storescp has of a study, the oldest first."""
        found = [dcmread(file) for file in self.plain.iterdir()]
        of_study = [one for one in found if one.StudyInstanceUID == study_uid]
        return sorted(of_study, key=lambda one: int(one.InstanceNumber))

    def line(self, study_uid: str) -> dict[str, Any]:
        """Return the study's line in the worklist of the API."""
        id_ = self.node.rows("SELECT id FROM studies WHERE study_instance_uid = ?", study_uid)[0]["id"]
        lines = self.node.get("/api/v1/studies?limit=200")["items"]
        return next(dict(line) for line in lines if line["study_id"].replace("-", "") == id_)

    def wait_reports(self, studies: list[str], number: int) -> None:
        """Wait until both PACS have so many reports about each study."""

        def are_there() -> bool:
            counts = [len(self.of_modality(uid, "SR")) for uid in studies] + [
                len(self.at_plain(uid)) for uid in studies
            ]
            return counts == [number] * len(counts)

        until(are_there, timeout_s=90, what=f"report {number}", describe=self.node.unfinished, every_s=0.5)


@contextmanager
def storescp(folder: Path) -> Iterator[int]:
    """Run dcmtk's storescp; yield its port."""
    folder.mkdir()
    port = free_port()
    process = subprocess.Popen([required_program("storescp"), "-od", str(folder), str(port)], env=no_delay())
    try:
        yield port
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    required_program("Orthanc")
    plain = tmp_path / "plain"
    with Orthanc(tmp_path / "orthanc") as orthanc, storescp(plain) as port:
        dcmtk = {"name": "plain", "ae_title": "PLAIN", "host": "127.0.0.1", "port": port, "objects": ["sr"]}
        noting = orthanc.destination(objects=["sr"], send_rejection_notes=True)
        node = Node(tmp_path / "node", model={"age_policy": "warn"}, destinations=[noting, dcmtk])
        with node:
            yield House(node=node, orthanc=orthanc, plain=plain)


@contextmanager
def asleep(node: Node) -> Iterator[None]:
    """Let the worker sleep: it wakes with the model that it had."""
    worker = node.role("work-1")
    assert worker is not None
    worker.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        worker.send_signal(signal.SIGCONT)


def purposes(report: Dataset) -> dict[str, str]:
    """Return why a report names others, by SOP Instance UID."""
    return {
        str(one.ReferencedSOPInstanceUID): str(one.PurposeOfReferenceCodeSequence[0].CodeValue)
        for item in report.get("PredecessorDocumentsSequence", [])
        for series in item.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    }


def test_what_a_recalled_model_said_is_rejected_and_replaced_where_it_was_sent(house: House, tmp_path: Path) -> None:
    node, card = house.node, Registry([BUNDLED_MODELS]).newest()
    old = f"{card.name}/{card.version}"
    studies = house.send(810, 811)
    house.wait_reports(studies, 1)
    said = {uid: house.of_modality(uid, "SR")[0].SOPInstanceUID for uid in studies}
    assert [house.line(uid)["withdrawn_at"] for uid in studies] == [None, None]
    assert "models add FOLDER" in the_one_line(node.command("recall", "--model", old), REFUSED_TO_START)

    node.command("models", "add", str(another_version(tmp_path / "bundle", NEW).folder), check=True)
    with asleep(node):
        late = house.send(812)  # nobody has judged it; the worker that wakes may do it with the old model
        node.command("models", "activate", f"{card.name}/{NEW}", check=True)
        assert "2 would be recalled now" in node.command("recall", "--model", old, "--dry-run", check=True).stdout
        done = node.command("recall", "--model", old, check=True)
        assert "2 recalled now: 2 judged anew and replaced, 2 rejection note(s)" in done.stdout
        page = node.get("/")
        for uid in studies:
            assert house.line(uid)["withdrawn_at"] is not None
            assert house.line(uid)["model_version"] == card.version
        assert page.count('<b class="failed">Withdrawn</b>') == len(studies)
        assert page.count("do not rely on this result") == len(studies)
    house.wait_reports(studies, 2)
    house.wait_reports(late, 1)
    node.wait_quiet()

    for uid in studies:
        for before, after in (house.of_modality(uid, "SR"), house.at_plain(uid)):
            assert before.SOPInstanceUID == said[uid]
            assert purposes(after) == {said[uid]: REPLACED_REPORT}
        (note,) = house.of_modality(uid, "KO")
        assert note.ConceptNameCodeSequence[0].CodeValue == REJECTED_FOR_QUALITY
        assert named_images(note) == [said[uid]]
        assert (house.line(uid)["withdrawn_at"], house.line(uid)["model_version"]) == (None, NEW)
    standing = "SELECT DISTINCT model_version FROM predictions WHERE superseded_at IS NULL"
    assert [row["model_version"] for row in node.rows(standing)] == [NEW], "one recall was enough"
    assert house.of_modality(late[0], "KO") == []
    assert node.get("/").count("Withdrawn") == 0

    again = node.command("recall", "--model", old)
    assert (again.returncode, "0 recalled now" in again.stdout) == (0, True)
    assert re.search(rf"{re.escape(card.version)} .*recalled", node.command("models", "list").stdout)
    assert "known: " in the_one_line(node.command("recall", "--model", "slip/1"), REFUSED_TO_START)
    assert "nothing to roll back to" in the_one_line(node.command("models", "rollback"), REFUSED_TO_START)
    assert node.command("audit", "verify").returncode == 0
    kinds = node.rows("SELECT count(*) AS n FROM own_objects WHERE kind = ?", ObjectKind.REJECTION.value)
    assert kinds[0]["n"] == len(studies)
