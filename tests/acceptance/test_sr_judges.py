"""Every kind of report, from every kind of source, before the judges of other people."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    SecondaryCaptureImageStorage,
)

from db.tables import Answer, InstanceState
from pacs_node.report.source import TYPE_2
from pacs_node.report.sr import SR_CLASSES, build_sr, to_bytes
from pacs_node.report.tree import StudyReport
from tests.acceptance import judges
from tests.reports import make_image, make_predecessor, make_study_report, revised

pytestmark = pytest.mark.acceptance

SOP_CLASSES = {
    "DX": DigitalXRayImageStorageForPresentation,
    "CR": ComputedRadiographyImageStorage,
    "SC": SecondaryCaptureImageStorage,
}


def kinds(header: dict[str, Any]) -> dict[str, StudyReport]:
    """Return every kind of report on images with that header."""

    def study(*images: dict[str, Any]) -> StudyReport:
        sop_class_uid = SOP_CLASSES[header.get("modality", "DX")]
        made = [make_image(number, sop_class_uid=sop_class_uid, **image) for number, image in enumerate(images, 1)]
        return make_study_report(*made, header=header)

    present, absent, lateral = {"p": 0.931}, {"p": 0.07}, {"codes": ["not_frontal", "view_unknown"]}
    unfinished, undecodable = {"state": InstanceState.WAITING}, {"codes": ["undecodable"]}
    return {
        "present": study(present),
        "absent": study(absent),
        "undetermined": study({"p": 0.55, "codes": ["low_confidence", "age_unknown"]}),
        "incomplete": study(absent, undecodable, unfinished),
        "not_analysed": study(lateral, undecodable),
        "several": study(present, absent, {"p": 0.00001}, lateral),
        "revision_2": revised(study(present), make_predecessor()),
        "revision_3": revised(study(undecodable), make_predecessor(2, answer=Answer.UNDETERMINED, p=0.99999)),
    }


def _request() -> Dataset:
    request = Dataset()
    request.RequestedProcedureID, request.RequestedProcedureDescription = "RP1", "Chest"
    return request


HEADERS: dict[str, dict[str, Any]] = {
    "dx": {},
    "dx_monochrome1": {"photometric": "MONOCHROME1"},
    "cr": {"modality": "CR"},
    "sc": {"modality": "SC"},
    "nothing_but_uids": dict.fromkeys(TYPE_2),
    "illegal_values": {
        "StudyDate": "2026.01.02",
        "StudyTime": "10:11",
        "PatientBirthDate": "1970",
        "PatientSex": "U",
        "PatientAge": "56",
        "AccessionNumber": "A" * 20,
        "StudyDescription": "X" * 70,
    },
    "no_orientation": {"PatientOrientation": None, "ImagerPixelSpacing": None, "Manufacturer": None},
    "latin_1": {"SpecificCharacterSet": "ISO_IR 100", "patient_name": "Müller^Jörg"},
    "japanese": {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "patient_name": "Yamada^Tarou=山田^太郎"},
    "korean": {"SpecificCharacterSet": ["", "ISO 2022 IR 149"], "patient_name": "Hong^Gildong=洪^吉洞=홍^길동"},
    "chinese": {"SpecificCharacterSet": "GB18030", "patient_name": "Wang^XiaoDong=王^小东"},
    "one_word_name": {"patient_name": "Unknown"},
    "offset": {"TimezoneOffsetFromUTC": "+0930"},
    "ordered": {"RequestAttributesSequence": [_request()]},
}


def cases() -> Iterator[tuple[str, StudyReport, str]]:
    """Yield each kind in each class from a plain source, and each source with kinds and classes in turn."""
    for (kind, study), sop_class_uid in itertools.product(kinds({}).items(), SR_CLASSES):
        yield f"{kind}-{sop_class_uid.rpartition('.')[2]}", study, sop_class_uid
    kind_names, classes = itertools.cycle(kinds({})), itertools.cycle(SR_CLASSES)
    for (name, header), kind, sop_class_uid in zip(HEADERS.items(), kind_names, classes, strict=False):
        yield f"{name}-{kind}-{sop_class_uid.rpartition('.')[2]}", kinds(header)[kind], sop_class_uid


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("reports")
    files = []
    for name, study, sop_class_uid in cases():
        file = folder / f"{name}.dcm"
        file.write_bytes(to_bytes(build_sr(study, sop_class_uid)))
        files.append(file)
    return files


@pytest.mark.parametrize("judge", [judges.dciodvfy, judges.dsrdump], ids=["dciodvfy", "dsrdump"])
def test_judge_finds_no_fault(judge: Callable[[list[Path]], judges.Complaints], reports: list[Path]) -> None:
    complaints = judge(reports)
    assert {file.name: said for file, said in complaints.items() if said} == {}
    assert len(complaints) == len(reports)


def test_pixelmed_finds_no_fault(reports: list[Path]) -> None:
    plain = 3 * len(kinds({}))
    complaints = judges.pixelmed(reports[:plain:4] + reports[plain::3])  # 1 s a file: kinds, classes, sources in turn
    assert {file.name: said for file, said in complaints.items() if said} == {}


def test_judges_do_find_faults(tmp_path: Path) -> None:
    document = build_sr(make_study_report(make_image(p=0.9)), next(iter(SR_CLASSES)))
    del document.ContentSequence[-1].ValueType
    document.PatientSex = "X"
    file = tmp_path / "broken.dcm"
    file.write_bytes(to_bytes(document))
    assert judges.dciodvfy([file])[file]
    assert judges.dsrdump([file])[file]
