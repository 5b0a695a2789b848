"""Headers as the world sends them: what a report copies is right or empty, never truncated, and the audit is told."""

from __future__ import annotations

import io
import warnings
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from pacs_node.report.source import TYPE_2, safe_header
from tests.builders import as_bytes, make_radiograph
from tests.reports import make_header

LONG = "A" * 65


@pytest.mark.parametrize("keyword", TYPE_2)
def test_missing_type_2_attribute_becomes_empty_without_complaint(keyword: str) -> None:
    header = make_header(**{keyword: None})
    assert keyword in header.dataset
    assert not header.dataset[keyword].value
    assert header.emptied == ()


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("StudyDate", "2026.01.02"),
        ("StudyDate", "20260231"),
        ("PatientBirthDate", "1970"),
        ("StudyTime", "10:11:12"),
        ("StudyTime", "251112"),
        ("PatientSex", "U"),
        ("PatientSex", "male"),
        ("PatientAge", "56"),
        ("AccessionNumber", "A" * 17),
        ("StudyID", "A" * 17),
        ("patient_id", LONG),
        ("patient_id", "A\\B"),
        ("patient_id", "A\nB"),
        ("IssuerOfPatientID", LONG),
        ("StudyDescription", LONG),
        ("patient_name", LONG),
        ("patient_name", "A=B=C=D"),
        ("patient_name", "A^B^C^D^E^F"),
        ("ReferringPhysicianName", "A\\B"),
        ("TimezoneOffsetFromUTC", "CET"),
        ("TimezoneOffsetFromUTC", "+1500"),
    ],
)
def test_illegal_value_is_emptied_and_named(keyword: str, value: str) -> None:
    header = make_header(**{keyword: value})
    name = {"patient_id": "PatientID", "patient_name": "PatientName"}.get(keyword, keyword)
    assert header.emptied == (name,)
    assert not header.dataset.get(name)


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 100", "Müller^Jörg"),
        ("ISO_IR 192", "Prüfung^Ärztin"),
        (["ISO 2022 IR 6", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
        ("ISO_IR 144", "Щукин^Юлий"),
    ],
)
def test_name_in_a_declared_character_set_is_kept(charset: Any, name: str) -> None:
    header = make_header(SpecificCharacterSet=charset, patient_name=name)
    assert str(header.dataset.PatientName) == name
    assert header.emptied == ()


@pytest.mark.parametrize("declared", ["          ", "ISO_IR 6  ", "ISO_IR 192", "ISO_IR 999"])
def test_bytes_without_a_declared_meaning_are_not_guessed(declared: str) -> None:
    written = as_bytes(make_radiograph(rows=32, columns=32, SpecificCharacterSet="ISO_IR 100", patient_name="Müller"))
    received = written.replace(b"ISO_IR 100", declared.encode())
    header = safe_header(dcmread(io.BytesIO(received), stop_before_pixels=True))
    assert not header.dataset.PatientName
    assert header.emptied == ("PatientName",)


def test_outer_blanks_are_no_fault() -> None:
    header = make_header(patient_id=" A1 ", AccessionNumber="X ")
    assert (header.dataset.PatientID, header.dataset.AccessionNumber, header.emptied) == ("A1", "X", ())


def test_items_are_copied_whole_or_not_at_all() -> None:
    whole, broken = Dataset(), Dataset()
    whole.CodeValue, whole.CodingSchemeDesignator, whole.CodeMeaning = "399208008", "SCT", "Plain chest X-ray"
    broken.CodeValue, broken.CodingSchemeDesignator, broken.CodeMeaning = "A" * 17, "L", "Chest"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header = make_header(ProcedureCodeSequence=[whole, broken])
    assert [item.CodeValue for item in header.dataset.ProcedureCodeSequence] == ["399208008"]
    assert header.emptied == ("ProcedureCodeSequence",)


def test_only_what_a_report_copies_is_kept() -> None:
    header = make_header(PatientComments="talks", InstitutionName="House", PatientWeight="70")
    assert not {"PatientComments", "InstitutionName", "PatientWeight", "WindowCenter"} & set(header.dataset.dir())


def test_nothing_about_the_patient_is_warned_about(
    recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    source = Dataset()
    source.add_new("PatientName", "PN", b"M\xfcller" * 20)
    source.add_new("StudyDate", "DA", b"yesterday")
    recwarn.clear()
    caplog.clear()
    safe_header(source)
    assert not recwarn.list
    assert not caplog.records
