"""Every kind of object that the node makes, from every kind of source, before the judges of other people.

CI judges a pairwise subset; with JUDGE_EVERYTHING set (`make validate`) every kind of every source is judged.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    SecondaryCaptureImageStorage,
)

from db.facts import BuiltObject
from db.tables import Answer, InstanceState, ObjectKind
from pacs_node.report import codes
from pacs_node.report.heatmap import build_heatmap
from pacs_node.report.picture import read_picture
from pacs_node.report.region import build_gsps, build_seg
from pacs_node.report.rejection import build_rejection_note
from pacs_node.report.source import TYPE_2
from pacs_node.report.sr import SR_CLASSES, build_sr, to_bytes
from pacs_node.report.study import StudyReport
from tests.acceptance import judges
from tests.builders import as_bytes, make_radiograph
from tests.reports import HERE, NOON, changed, make_image, make_predecessor, make_study_report, reviewed, revised

pytestmark = pytest.mark.acceptance

EVERYTHING = bool(os.environ.get("JUDGE_EVERYTHING"))

OTHER_CODES = {
    "findings": {"pneumonia": {"equivalents": [{"value": "RID5350", "scheme": "RADLEX", "meaning": "pneumonia"}]}},
    "finding_site": {"code": {"value": "999000011000000103", "scheme": "SCT", "meaning": "Lungs"}},
    "procedure_reported": {"code": {"value": "363679005", "scheme": "SCT", "meaning": "Imaging procedure"}},
}
SOP_CLASSES = {
    "DX": DigitalXRayImageStorageForPresentation,
    "CR": ComputedRadiographyImageStorage,
    "SC": SecondaryCaptureImageStorage,
}


def kinds(header: dict[str, Any]) -> dict[str, StudyReport]:
    """Return every kind of report on images with that header."""

    def study(*images: dict[str, Any], **report: Any) -> StudyReport:
        sop_class_uid = SOP_CLASSES[header.get("modality", "DX")]
        made = [make_image(number, sop_class_uid=sop_class_uid, **image) for number, image in enumerate(images, 1)]
        return make_study_report(*made, header=header, **report)

    present, absent, lateral = {"p": 0.931}, {"p": 0.07}, {"codes": ["not_frontal", "view_unknown"]}
    unfinished, undecodable = {"state": InstanceState.WAITING}, {"codes": ["undecodable"]}
    return {
        "present": study(present),
        "absent": study(absent),
        "undetermined": study({"p": 0.55, "codes": ["low_confidence", "age_unknown"]}),
        "incomplete": study(absent, undecodable, unfinished),
        "not_analysed": study(lateral, undecodable),
        "other_codes": study(present, codes=OTHER_CODES),
        "several": study(present, absent, {"p": 0.00001}, lateral),
        "revision_2": revised(study(present), make_predecessor()),
        "revision_3": revised(study(undecodable), make_predecessor(2, answer=Answer.UNDETERMINED, p=0.99999)),
        "reader_agrees": reviewed(study(present), Answer.PRESENT),
        "reader_changes": changed(study(present), Answer.ABSENT),
        "reader_corrects": reviewed(study(present, absent), Answer.ABSENT, comment="Atelectasis, no pneumonia."),
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
    """Yield each kind in each class from a plain source; each source with kinds and classes in turn, or every kind."""
    for (kind, study), sop_class_uid in itertools.product(kinds({}).items(), SR_CLASSES):
        yield f"{kind}-{sop_class_uid.rpartition('.')[2]}", study, sop_class_uid
    kind_names, classes = itertools.cycle(kinds({})), itertools.cycle(SR_CLASSES)
    for name, header in HEADERS.items():
        studies = kinds(header)
        for kind in studies if EVERYTHING else (next(kind_names),):
            sop_class_uid = next(classes)
            yield f"{name}-{kind}-{sop_class_uid.rpartition('.')[2]}", studies[kind], sop_class_uid


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("reports")
    files = []
    for name, study, sop_class_uid in cases():
        file = folder / f"{name}.dcm"
        file.write_bytes(to_bytes(build_sr(study, sop_class_uid)))
        files.append(file)
    return files


def pictures_of(study: StudyReport, header: dict[str, Any], folder: Path) -> Iterator[tuple[str, Dataset]]:
    """Yield each kind of picture of a study's first analysed image."""
    row, column = np.mgrid[0:56, 0:56] / 56
    heatmap_hw = np.rint(255 * np.exp(-(((column - 0.3) / 0.1) ** 2) - ((row - 0.6) / 0.1) ** 2)).astype(np.uint8)
    source = folder / "source.bin"
    source.write_bytes(as_bytes(make_radiograph(rows=240, columns=200, seed=1, **header)))
    picture, (image, prediction) = read_picture(str(source)), study.analysed[0]
    for kind, build in (("sc", build_heatmap), ("gsps", build_gsps), ("seg", build_seg)):
        document = build(study, image, prediction, picture, heatmap_hw)
        assert document is not None
        yield kind, document


def note_on(study: StudyReport, code: str) -> Dataset:
    """Return the note that rejects a study's report and a picture."""
    report = build_sr(study, next(iter(SR_CLASSES)))
    rejected = [
        BuiltObject(
            sop_instance_uid=str(report.SOPInstanceUID), sop_class_uid=str(report.SOPClassUID), path="", digest=""
        ),
        BuiltObject(
            sop_instance_uid="2.25.7",
            sop_class_uid=SecondaryCaptureImageStorage,
            path="",
            digest="",
            kind=ObjectKind.HEATMAP,
        ),
    ]
    return build_rejection_note(
        report,
        rejected,
        code=code,
        installation_id=HERE,
        node=study.node,
        at=NOON,
        local_zone=study.local_zone,
        model_name=study.card.name,
    )


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Each kind of picture of each source."""
    folder, files = tmp_path_factory.mktemp("pictures"), []
    for name, header in HEADERS.items():
        for kind, document in pictures_of(kinds(header)["present"], header, folder):
            file = folder / f"{name}-{kind}.dcm"
            file.write_bytes(to_bytes(document))
            files.append(file)
    return files


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A rejection note for each reason, and one for each source."""
    folder, files = tmp_path_factory.mktemp("notes"), []
    reasons = itertools.cycle(codes.REJECTIONS)
    for name, header in (*HEADERS.items(), *((f"plain_{code}", {}) for code in codes.REJECTIONS)):
        file = folder / f"{name}.dcm"
        file.write_bytes(to_bytes(note_on(kinds(header)["present"], next(reasons))))
        files.append(file)
    return files


def faults(complaints: judges.Complaints) -> dict[str, list[str]]:
    return {file.name: said for file, said in complaints.items() if said}


@pytest.mark.parametrize("judge", [judges.dciodvfy, judges.dsrdump], ids=["dciodvfy", "dsrdump"])
def test_judge_finds_no_fault(
    judge: Callable[[list[Path]], judges.Complaints], reports: list[Path], notes: list[Path]
) -> None:
    complaints = judge([*reports, *notes])
    assert faults(complaints) == {}
    assert len(complaints) == len(reports) + len(notes)


def test_judge_finds_no_fault_in_pictures(pictures: list[Path]) -> None:
    assert faults(judges.dciodvfy(pictures)) == {}


def test_dcmpschk_finds_no_fault_in_presentation_states(pictures: list[Path]) -> None:
    has_ascii_name = {
        name
        for name, header in HEADERS.items()
        if str(header.get("patient_name", "")).isascii() and "PatientName" not in header
    }
    states = [file for file in pictures if file.name.removesuffix("-gsps.dcm") in has_ascii_name]
    assert len(states) > len(HEADERS) / 2
    assert faults(judges.dcmpschk(states)) == {}


def test_pixelmed_finds_no_fault(reports: list[Path], notes: list[Path]) -> None:
    plain = len(SR_CLASSES) * len(kinds({}))
    some = reports[:plain:4] + reports[plain::3] + notes[::9]  # 1 s a file: kinds, classes, sources in turn
    complaints = judges.pixelmed([*reports, *notes] if EVERYTHING else some)
    assert faults(complaints) == {}


def test_judges_do_find_faults(tmp_path: Path) -> None:
    document = build_sr(make_study_report(make_image(p=0.9)), next(iter(SR_CLASSES)))
    del document.ContentSequence[-1].ValueType
    document.PatientSex = "X"
    file = tmp_path / "broken.dcm"
    file.write_bytes(to_bytes(document))
    assert judges.dciodvfy([file])[file]
    assert judges.dsrdump([file])[file]
