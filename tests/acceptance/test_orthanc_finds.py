"""Every kind of object that the node makes, stored by Orthanc over C-STORE and found again by QIDO-RS."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from pacs_node.dimse.storage import send_files
from pacs_node.report.sr import SR_CLASSES, build_sr, to_bytes
from pacs_node.settings import DestinationSettings
from tests.acceptance.peers import Orthanc, required_program
from tests.acceptance.test_network_services import DICOM_WEB
from tests.acceptance.test_sr_judges import HEADERS, kinds, note_on, pictures_of
from tests.builders import make_radiograph, required
from tests.reports import STUDY_UID

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]

PATIENT_NAME, PATIENT_ID, ACCESSION_NUMBER = "00100010", "00100020", "00080050"
SOP_CLASS, SOP_INSTANCE = "00080016", "00080018"


@dataclass(frozen=True, kw_only=True)
class Study:
    """What the node says of one study, and whose it is."""

    name: str
    uid: str
    source: Dataset
    objects: tuple[Dataset, ...]


def studies(folder: Path) -> Iterator[Study]:
    """Yield every kind of report in its three classes, and of every kind of source all that is made of it."""
    numbers = itertools.count(1)
    for name, header in HEADERS.items():
        for kind, report in kinds(header).items():
            if name != "dx" and kind not in ("present", "reader_corrects"):
                continue
            uid = f"{STUDY_UID}.{next(numbers)}"
            report = replace(report, study_instance_uid=uid)
            objects = [build_sr(report, sop_class_uid) for sop_class_uid in SR_CLASSES]
            if kind == "present":
                objects += [picture for _, picture in pictures_of(report, header, folder)]
                objects.append(note_on(report, "113001"))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pydicom about values that are illegal on purpose
                source = make_radiograph(rows=32, columns=32, **header)
            yield Study(name=f"{name} {kind}", uid=uid, source=source, objects=tuple(objects))


def expected(source: Dataset, keyword: str, longest: int) -> str:
    """Return a value as the source has it; an illegal one is left empty, never cut."""
    value = str(source.get(keyword, "") or "")
    return value if len(value) <= longest else ""


def said(match: dict[str, Any], tag: str) -> str:
    """Return a value of DICOM JSON (PS3.18 F.2); of a name its groups."""
    values = match.get(tag, {}).get("Value", [""])
    if not isinstance(values[0], dict):
        return str(values[0] or "")
    groups = [values[0].get(group, "") for group in ("Alphabetic", "Ideographic", "Phonetic")]
    return "=".join(groups).rstrip("=")


def test_orthanc_finds_every_kind_of_object_under_its_patient_study_and_accession_number(tmp_path: Path) -> None:
    required_program("Orthanc")
    required(DICOM_WEB.exists(), "the plugin orthanc-dicomweb")
    made = list(studies(tmp_path))
    files = []
    for study in made:
        for number, document in enumerate(study.objects):
            files.append(tmp_path / f"{study.uid}-{number}.dcm")
            files[-1].write_bytes(to_bytes(document))
    # What it is asked by DICOMweb it answers in its default encoding, Latin-1, in which most names cannot be written.
    with Orthanc(tmp_path / "orthanc", Plugins=[str(DICOM_WEB)], DefaultEncoding="Utf8") as orthanc:
        sent = send_files(files, DestinationSettings(**orthanc.destination()), calling_ae_title="PACS_NODE")
        assert {one.text for one in sent} == {"0000"}
        assert orthanc.count() == len(files)
        for study in made:
            (match,) = orthanc.get(f"/dicom-web/studies?StudyInstanceUID={study.uid}")
            found = [said(match, tag) for tag in (PATIENT_ID, PATIENT_NAME, ACCESSION_NUMBER)]
            keywords = (("PatientID", 64), ("PatientName", 194), ("AccessionNumber", 16))
            assert found == [expected(study.source, *keyword) for keyword in keywords], study.name
            instances = orthanc.get(f"/dicom-web/studies/{study.uid}/instances")
            assert {(said(one, SOP_CLASS), said(one, SOP_INSTANCE)) for one in instances} == {
                (str(one.SOPClassUID), str(one.SOPInstanceUID)) for one in study.objects
            }, study.name
