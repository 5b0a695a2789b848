"""What the node files an object under, whatever its sender wrote."""

from __future__ import annotations

import io
import struct
import time
import zlib
from datetime import date
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filewriter import write_dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pacs_node import conformance as c
from pacs_node.errors import CannotUnderstand
from pacs_node.identity import IMPLEMENTATION_CLASS_UID
from pacs_node.listener.header import BUDGET_BYTES, clean_text, encode_file_meta, read_header
from pacs_node.store import data_set_offset

CR = "1.2.840.10008.5.1.4.1.1.1"


def a_data_set(**attributes: Any) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CR, "1.2.3"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2", "1.2.1"
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def encoded(dataset: Dataset, syntax: str = c.EXPLICIT_VR_LITTLE_ENDIAN) -> bytes:
    from pydicom.filebase import DicomBytesIO

    buffer = DicomBytesIO()
    buffer.is_implicit_VR = syntax == ImplicitVRLittleEndian
    buffer.is_little_endian = syntax != ExplicitVRBigEndian
    write_dataset(buffer, dataset)
    if syntax == c.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
        deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        return deflate.compress(buffer.getvalue()) + deflate.flush()
    return buffer.getvalue()


def header_of(content: bytes, syntax: str = c.EXPLICIT_VR_LITTLE_ENDIAN):
    return read_header(io.BytesIO(content), syntax)


@pytest.mark.parametrize(
    "syntax",
    [
        c.EXPLICIT_VR_LITTLE_ENDIAN,
        c.IMPLICIT_VR_LITTLE_ENDIAN,
        c.EXPLICIT_VR_BIG_ENDIAN,
        c.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    ],
)
def test_read_header_reads_every_attribute_in_each_encoding(syntax: str) -> None:
    dataset = a_data_set(
        Modality="CR",
        ImageType=["DERIVED", "PRIMARY", ""],
        PatientID=" P1 ",
        IssuerOfPatientID="HOSPITAL",
        PatientName="Doe^Jane^^",
        PatientBirthDate="19700101",
        PatientSex="F",
        AccessionNumber="A1",
        StudyDate="20261120",
        StudyDescription="Chest PA",
        InstitutionName=" Demo Hospital ",
    )
    header = header_of(encoded(dataset, syntax), syntax)
    assert (header.sop_class_uid, header.sop_instance_uid) == (CR, "1.2.3")
    assert (header.study_instance_uid, header.series_instance_uid) == ("1.2", "1.2.1")
    assert header.image_type[:2] == ("DERIVED", "PRIMARY")
    assert (header.patient_id, header.issuer_of_patient_id) == ("P1", "HOSPITAL")
    assert header.patient_name == "Doe^Jane"
    assert (header.patient_birth_date, header.patient_sex) == ("19700101", "F")
    assert (header.accession_number, header.study_description) == ("A1", "Chest PA")
    assert header.institution_name == "Demo Hospital"
    assert header.study_date == date(2026, 11, 20)


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("ISO_IR 100", "Buc^Jérôme"),
        ("ISO_IR 192", "Wang^XiaoDong=王^小东"),
        ("ISO 2022 IR 87", "Yamada^Tarou=山田^太郎"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
    ],
)
def test_read_header_decodes_names_in_their_character_set(character_set: str, name: str) -> None:
    sets = ["", character_set] if character_set.startswith("ISO 2022") else character_set
    assert header_of(encoded(a_data_set(SpecificCharacterSet=sets, PatientName=name))).patient_name == name


def test_read_header_survives_a_character_set_that_does_not_exist() -> None:
    content = encoded(a_data_set(PatientName="Doe^Jane"))
    unknown = struct.pack("<HH2sH", 8, 5, b"CS", 6) + b"KLINGO"
    assert header_of(unknown + content).patient_name == "Doe^Jane"


@pytest.mark.parametrize("keyword", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize("value", [None, "", "1" * 65, "1.2\n3", "1.2\\3", "é"])
def test_read_header_cannot_understand_an_object_without_a_usable_uid(keyword: str, value: str | None) -> None:
    dataset = a_data_set()
    element = dataset[keyword]
    if value is None:
        del dataset[keyword]
    else:
        element._value = value
    with pytest.raises(CannotUnderstand, match=keyword):
        header_of(encoded(dataset))


@pytest.mark.parametrize("uid", ["1..2", ".", "not-a-uid", "../../etc/passwd", "1" * 64, "'; DROP TABLE studies"])
def test_read_header_takes_any_printable_string_as_a_uid(uid: str) -> None:
    dataset = a_data_set()
    dataset["SOPInstanceUID"]._value = uid
    assert header_of(encoded(dataset)).sop_instance_uid == uid


def test_read_header_finds_uids_behind_the_tags_where_they_belong() -> None:
    early, late = Dataset(), Dataset()
    for element in a_data_set():
        (late if element.keyword == "StudyInstanceUID" else early).add(element)
    early.Rows = 5
    assert header_of(encoded(early) + encoded(late)).study_instance_uid == "1.2"


@pytest.mark.parametrize("content", [b"", b"\x00" * 500, b"GIF89a" * 100, bytes(range(256)) * 40, b"\xff" * 4096])
def test_read_header_cannot_understand_what_is_no_dicom(content: bytes) -> None:
    for syntax in (c.EXPLICIT_VR_LITTLE_ENDIAN, c.IMPLICIT_VR_LITTLE_ENDIAN, c.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN):
        with pytest.raises(CannotUnderstand):
            header_of(content, syntax)


ITEM = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
SEQUENCE = struct.pack("<HH2s2xL", 0x0008, 0x1115, b"SQ", 0xFFFFFFFF)
EMPTY_ITEM = struct.pack("<HHL", 0xFFFE, 0xE000, 0)
LONG_ELEMENT = struct.pack("<HH2s2xL", 0x0008, 0x0008, b"UN", 50 << 20) + bytes(50 << 20)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param((SEQUENCE + ITEM) * 50_000, id="nested without end"),
        pytest.param(SEQUENCE + EMPTY_ITEM * (2 << 20), id="16 MB of empty items"),
        pytest.param(LONG_ELEMENT, id="50 MB in one wanted value"),
    ],
)
def test_read_header_gives_up_within_its_budget(content: bytes) -> None:
    started = time.monotonic()
    with pytest.raises(CannotUnderstand):
        header_of(content)
    assert time.monotonic() - started < 20


def test_read_header_does_not_inflate_more_than_its_budget() -> None:
    dataset = a_data_set()
    content = encoded(dataset) + struct.pack("<HH2s2xL", 0x0029, 0x1010, b"OB", 200 << 20) + bytes(200 << 20)
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = deflate.compress(content) + deflate.flush()
    assert len(bomb) < BUDGET_BYTES
    assert header_of(bomb, c.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN).sop_instance_uid == "1.2.3"


def test_read_header_skips_long_private_values_without_reading_them() -> None:
    before = struct.pack("<HH2s2xL", 0x0009, 0x1010, b"OB", 20 << 20) + bytes(20 << 20)
    dataset = encoded(a_data_set())
    split = dataset.index(struct.pack("<HH", 0x0020, 0x000D))
    assert header_of(dataset[:split] + before + dataset[split:]).study_instance_uid == "1.2"


def test_read_header_finds_the_device_uids_of_contributing_equipment() -> None:
    item = Dataset()
    item.DeviceUID = "1.2.9"
    content = encoded(a_data_set(ContributingEquipmentSequence=[item]))
    assert header_of(content).device_uids == ("1.2.9",)


def test_clean_text_keeps_two_long_texts_apart() -> None:
    first, second = "P" * 100 + "1", "P" * 100 + "2"
    assert clean_text("short", 64) == "short"
    assert len(clean_text(first, 64)) == 64
    assert clean_text(first, 64) != clean_text(second, 64)


def test_clean_text_lets_no_control_character_or_surrogate_through() -> None:
    assert clean_text("a\x00b\x1bc\ud800d\x85", 64) == "a\ufffdb\ufffdc\ufffdd\ufffd"
    assert clean_text("山田\u3000太郎", 64) == "山田\u3000太郎"


def test_file_meta_is_read_back_by_pydicom_whatever_the_length_of_its_uids() -> None:
    for uid in ("1.2.3", "1.2.34"):
        meta = encode_file_meta(CR, uid, ExplicitVRLittleEndian, "CR_ROOM_1")
        dataset = dcmread(io.BytesIO(meta + encoded(a_data_set(SOPInstanceUID=uid))))
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID == uid
        assert dataset.file_meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
        assert dataset.file_meta.SourceApplicationEntityTitle == "CR_ROOM_1"
        assert data_set_offset(meta) == len(meta)
