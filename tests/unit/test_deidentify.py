"""Nothing of the patient is left in an image that goes to training, and nothing of the image is lost."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicomanonymizer.simpledicomanonymizer import initialize_actions
from pydicom import config, dcmread
from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.multival import MultiValue
from pydicom.pixels import pixel_array
from pydicom.tag import Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from models.preprocess import read_radiograph
from pacs_node.export.deidentify import DAYS_MAX, TABLE, Deidentifier, NotDeidentifiable
from pacs_node.export.training_attributes import NUMBERS, PALETTES, WORDS
from tests.builders import as_bytes, make_radiograph, reread, transcoded_by_gdcm

KEY = b"\x01" * 32
OURS = Deidentifier(KEY)
PATIENT = OURS.name("patient", "", "SYN-1")
RETAINED = {"PatientSex", "PatientAge"}
"""The option Retain Patient Characteristics."""
TEXTS = {"LO", "SH", "PN", "LT", "ST", "UT", "UC", "CS", "AE", "UR"}
SECRET = "ZEBEDEUS"


def away(source: Dataset, **options: Any) -> FileDataset:
    """Return the image as whoever gets it reads it."""
    return dcmread(io.BytesIO(as_bytes(OURS.deidentify(source, patient=PATIENT, **options))))


def radiograph(**options: Any) -> FileDataset:
    return reread(make_radiograph(rows=48, columns=40, **options))


def elements(dataset: Dataset) -> Iterator[DataElement]:
    for element in dataset:
        yield element
        if element.VR == "SQ":
            for item in element.value:
                yield from elements(item)


def values(dataset: Dataset) -> Iterator[Any]:
    for element in elements(dataset):
        if element.VR != "SQ":
            yield from element.value if isinstance(element.value, MultiValue | list) else [element.value]


# Table E.1-1


def table_tags() -> list[int]:
    """Return every attribute of the table; of the repeating groups the first and the last one."""
    tags = []
    for tag in initialize_actions(TABLE):
        if len(tag) == 2:
            tags.append(Tag(tag))
        else:
            group, element = tag[0], tag[1] or 0x0010
            tags += [Tag(group, element), Tag(group + 0x1E, element)]
    return tags


def value_of(vr: str, number: int) -> Any:
    """Return a legal value of a representation that occurs nowhere else, another for each number."""
    binary = struct.pack("<Q", 0xBADC0DE000000000 + number)
    match vr:
        case "DA":
            return f"19{number % 60 + 10:02}{number % 12 + 1:02}{number % 27 + 1:02}"
        case "TM":
            return f"{number % 24:02}3141.{number:06}"
        case "DT":
            return f"19470203{number % 24:02}3141.{number:06}"
        case "UI":
            return f"1.2.826.0.1.3680043.8.498.{number}"
        case "AS":
            return f"{number:03}D"
        case "DS":
            return f"31337.{number}"
        case "IS":
            return str(31337000 + number)
        case "FD" | "FL":
            return 31337.0 + number
        case "US" | "SS" | "SL" | "UL" | "SV" | "UV":
            return 13000 + number
        case "AT":
            return Tag(0x7654, number)
        case "OB" | "OW" | "OF" | "OD" | "OL" | "OV" | "UN":
            return binary
        case _:
            return f"{SECRET}{number}"


def element_of(tag: int, number: int) -> DataElement:
    # The table is newer than pydicom's dictionary, which lacks some of its attributes: those travel as UN.
    vr = dictionary_VR(tag).split(" or ")[0] if dictionary_has_tag(tag) else "UN"
    if vr == "SQ":
        item = Dataset()
        item.PatientName, item.TextValue, item.UID = f"{SECRET}{number}", f"{SECRET}{number}", value_of("UI", number)
        return DataElement(tag, vr, [item])
    return DataElement(tag, vr, value_of(vr, number))


TAGS = table_tags()


def with_table(dataset: FileDataset, *, skip: tuple[str, ...] = ()) -> FileDataset:
    """Put an element for each attribute of the table in, at the top and in items of sequences that are read."""
    nested = Dataset()
    for number, tag in enumerate(TAGS):
        if keyword_for_tag(tag) in skip:
            continue
        element = element_of(tag, number)
        if Tag(tag).group == 2:
            dataset.file_meta.add(element)
            continue
        if Tag(tag) != Tag("SOPInstanceUID"):
            nested.add(element_of(tag, number))
        dataset.add(element)
    lut = Dataset()
    lut.update(nested)
    lut.LUTDescriptor, lut.LUTData, lut.LUTExplanation = [2, 0, 16], [0, 65535], SECRET
    lut["LUTDescriptor"].VR, lut["LUTData"].VR = "US", "US"
    view = Dataset()
    view.update(nested)
    view.CodeValue, view.CodingSchemeDesignator, view.CodeMeaning = "272479007", "SCT", SECRET
    deeper = Dataset()
    deeper.update(nested)
    deeper.ViewModifierCodeSequence = [nested]
    dataset.VOILUTSequence, dataset.ViewCodeSequence = [lut], [view]
    dataset.AnatomicRegionSequence[0].update(nested)
    dataset.SharedFunctionalGroupsSequence = [deeper]
    return dataset


@pytest.fixture(scope="module")
def full() -> FileDataset:
    with config.disable_value_validation():
        source = with_table(make_radiograph(rows=48, columns=40))
        for block in (0x0011, 0x0009):
            private = source.private_block(block, SECRET, create=True)
            private.add_new(1, "LO", SECRET)
            private.add_new(2, "SQ", [Dataset()])
        return source


def test_table_is_the_one_of_2026c_and_is_in_the_test_as_a_whole(full: FileDataset) -> None:
    assert len(initialize_actions(TABLE)) == 655
    missing = [tag for tag in TAGS if tag not in full and tag not in full.file_meta]
    assert not missing


def test_no_value_of_any_attribute_of_the_table_goes_out(full: FileDataset) -> None:
    with config.disable_value_validation():
        out = away(full)
        content = as_bytes(out)
        said = [str(value) for value in (*values(out), *values(out.file_meta))]
        for number, tag in enumerate(TAGS):
            keyword = keyword_for_tag(tag)
            if keyword in RETAINED:
                continue
            element = element_of(tag, number)
            for value in values(element.value[0]) if element.VR == "SQ" else [element.value]:
                assert str(value) not in said, keyword
                if isinstance(value, str):
                    assert value.encode() not in content, keyword
                if isinstance(value, bytes):
                    assert value not in content, keyword
    assert SECRET.encode() not in content
    assert out.PatientAge == full.PatientAge


def test_attributes_of_the_table_are_not_there_at_all_but_for_what_an_option_or_the_iod_keeps(
    full: FileDataset,
) -> None:
    here = {keyword_for_tag(tag) for tag in TAGS if tag in away(full)}
    empty = {"StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID", "PatientBirthDate"}
    made = {"SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientName", "PatientID"}
    options = {"StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "StudyDescription", "SeriesDescription"}
    assert here <= empty | made | options | RETAINED | {"AcquisitionContextSequence"}
    assert not away(full).AcquisitionContextSequence
    assert not any(away(full)[keyword].value for keyword in empty)


def test_nothing_but_known_numbers_and_words_is_copied_verbatim() -> None:
    table = {Tag(tag) for tag in initialize_actions(TABLE) if len(tag) == 2}
    copied = {*NUMBERS, *PALETTES, *WORDS}
    assert {keyword for keyword in copied if Tag(keyword) in table} == {"PatientSex"}
    free_text = {"LO", "SH", "PN", "LT", "ST", "UT", "UC", "AE", "UR", "UN", "OB"}
    assert {k for k in (*NUMBERS, *PALETTES) if set(dictionary_VR(k).split(" or ")) & free_text} == set()


# What it says instead


def test_says_by_which_profile_and_options() -> None:
    out = away(radiograph())
    assert out.PatientIdentityRemoved == "YES"
    codes = [(item.CodeValue, item.CodingSchemeDesignator) for item in out.DeidentificationMethodCodeSequence]
    assert codes == [("113100", "DCM"), ("113105", "DCM"), ("113107", "DCM"), ("113108", "DCM")]
    assert out.LongitudinalTemporalInformationModified == "MODIFIED"


def test_uids_are_mapped_also_in_the_file_meta_and_belong_together() -> None:
    source = radiograph()
    out = away(source)
    assert out.SOPInstanceUID == out.file_meta.MediaStorageSOPInstanceUID == OURS.uid(source.SOPInstanceUID)
    assert out.StudyInstanceUID == OURS.uid(source.StudyInstanceUID) != source.StudyInstanceUID
    assert out.SOPInstanceUID.is_valid
    assert "SourceApplicationEntityTitle" not in out.file_meta
    assert as_bytes(out)[:128] == bytes(128)


def test_same_key_gives_the_same_bytes_and_another_key_other_names() -> None:
    source = radiograph()
    again = Deidentifier(KEY).deidentify(source, patient=PATIENT)
    assert as_bytes(again) == as_bytes(OURS.deidentify(source, patient=PATIENT))
    other = Deidentifier(b"\x02" * 32)
    assert other.uid(source.SOPInstanceUID) != OURS.uid(source.SOPInstanceUID)
    assert other.name("patient", "", "SYN-1") != PATIENT
    assert OURS.name("patient", "A", "BC") != OURS.name("patient", "AB", "C")
    with pytest.raises(ValueError, match="shorter than 16 bytes"):
        Deidentifier(b"short")


def test_source_stays_as_it_is() -> None:
    source = radiograph()
    before = as_bytes(source)
    away(source)
    assert as_bytes(source) == before


def test_dates_move_by_the_same_days_for_a_patient_and_others_for_another() -> None:
    first, second = OURS.moved("20260101", "a"), OURS.moved("20260131", "a")
    days = [np.datetime64(f"{day[:4]}-{day[4:6]}-{day[6:]}") for day in (first, second)]
    assert days[1] - days[0] == np.timedelta64(30, "D")
    assert 1 <= (np.datetime64("2026-01-01") - days[0]).astype(int) <= DAYS_MAX
    assert OURS.moved("20260101", "b") != first


@pytest.mark.parametrize("day", ["", "2026", "20260230", "2026.01.01", "20260101-20260102", "ZEBEDEUS", "00000000"])
def test_what_is_no_date_is_emptied(day: str) -> None:
    assert OURS.moved(day, "a") == ""


@pytest.mark.parametrize(
    ("stated", "kept"),
    [("004Y", "004Y"), ("011M", "011M"), ("089Y", "089Y"), ("090Y", "090Y"), ("104Y", "090Y"), ("034", "034Y")],
)
def test_age_is_kept_and_grouped_over_89_years(stated: str, kept: str) -> None:
    with config.disable_value_validation():
        assert away(radiograph(PatientAge=stated)).PatientAge == kept


def test_age_is_calculated_where_only_the_birth_date_tells_it() -> None:
    out = away(radiograph(PatientAge=None, PatientBirthDate="20200115", StudyDate="20260114"))
    assert (out.PatientAge, out.PatientBirthDate) == ("005Y", "")
    assert "PatientAge" not in away(radiograph(PatientAge=None, PatientBirthDate=""))


def test_descriptions_keep_the_words_that_say_what_was_radiographed() -> None:
    out = away(radiograph(StudyDescription="Chest PA^Zebedeus, Dr. Who", SeriesDescription="portable AP (bed 7)"))
    assert (out.StudyDescription, out.SeriesDescription) == ("CHEST PA", "PORTABLE AP")


@pytest.mark.parametrize(
    ("position", "code", "view"),
    [
        ("PA", "399348003", "PA"),
        ("AP", None, "AP"),
        ("", "272479007", "PA"),
        ("", "399348003", "AP"),
        ("", "399033003", ""),
        ("LL", None, ""),
    ],
)
def test_view_comes_from_its_attribute_or_its_code(position: str, code: str | None, view: str) -> None:
    source = radiograph(ViewPosition=position, ViewCodeSequence=None)
    if code:
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code, "SCT", SECRET
        source.ViewCodeSequence = [item]
    assert away(source).get("ViewPosition", "") == view


# The pixels


@pytest.mark.parametrize("modality", ["DX", "CR"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("bits_stored", [8, 12, 16])
def test_pixels_are_the_same_to_the_bit_and_so_is_what_training_sees(
    modality: str, photometric: str, bits_stored: int
) -> None:
    source = radiograph(modality=modality, photometric=photometric, bits_stored=bits_stored)
    out = away(source)
    assert np.array_equal(pixel_array(out), pixel_array(source))
    assert np.array_equal(read_radiograph(out).grey_HW, read_radiograph(source).grey_HW)
    assert (out.BitsStored, out.HighBit) == (bits_stored, bits_stored - 1)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_compressed_pixels_are_written_anew(syntax: str) -> None:
    native = make_radiograph(rows=48, columns=40)
    source = make_radiograph(rows=48, columns=40)
    source.compress(syntax, generate_instance_uid=False)
    out = away(reread(source))
    assert out.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert np.array_equal(pixel_array(out), native.pixel_array)


@pytest.mark.parametrize(("syntax", "is_lossy"), [("JPEGLosslessProcess14_1", False), ("JPEGBaselineProcess1", True)])
def test_jpeg_gives_training_what_serving_saw_and_stays_marked_as_lossy(
    syntax: str, is_lossy: bool, tmp_path: Path
) -> None:
    bits = 8 if is_lossy else 12
    native = make_radiograph(rows=48, columns=40, bits_stored=bits)
    source = transcoded_by_gdcm(native, syntax, tmp_path, is_lossy=is_lossy)
    out = away(source)
    assert np.array_equal(read_radiograph(out).grey_HW, read_radiograph(source).grey_HW)
    assert out.LossyImageCompression == ("01" if is_lossy else "00")


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_every_encoding_of_native_pixels_is_read(syntax: str) -> None:
    source = radiograph(transfer_syntax=syntax)
    out = away(source)
    assert out.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert np.array_equal(read_radiograph(out).grey_HW, read_radiograph(source).grey_HW)


def test_look_up_tables_and_padding_go_with_the_pixels() -> None:
    source = make_radiograph(
        rows=48, columns=40, bits_stored=12, PixelPaddingValue=0, WindowCenter=None, WindowWidth=None
    )
    lut = Dataset()
    lut.LUTDescriptor, lut.LUTData, lut.LUTExplanation = [4096, 0, 16], list(range(0, 65536, 16)), SECRET
    lut["LUTDescriptor"].VR, lut["LUTData"].VR = "US", "US"
    source.VOILUTSequence = [lut]
    source = reread(source)
    out = away(source)
    assert np.array_equal(read_radiograph(out).grey_HW, read_radiograph(source).grey_HW)
    assert read_radiograph(out).voi == "lut"
    assert "LUTExplanation" not in out.VOILUTSequence[0]


def test_window_is_copied_to_the_last_digit() -> None:
    source = radiograph(WindowCenter="2047.123456789", WindowWidth="4e3", RescaleSlope="1.000")
    out = away(source)
    assert [str(out[k].value) for k in ("WindowCenter", "WindowWidth", "RescaleSlope")] == [
        "2047.123456789",
        "4e3",
        "1.000",
    ]


# What is not given away


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"modality": "SC"}, "secondary_capture"),
        ({"ConversionType": "DF"}, "secondary_capture"),
        ({"BurnedInAnnotation": "YES"}, "text_in_pixels"),
        ({"BurnedInAnnotation": "PERHAPS"}, "text_in_pixels"),
        ({"BurnedInAnnotation": ["YES", "NO"]}, "text_in_pixels"),
        ({"BurnedInAnnotation": None}, "text_not_excluded"),
        ({"BurnedInAnnotation": ""}, "text_not_excluded"),
        ({"HighBit": 15, "BitsStored": 12}, "not_one_image"),
        ({"NumberOfFrames": 2}, "not_one_image"),
        ({"PixelData": b"\0\0"}, "undecodable"),
        ({"PixelData": None}, "undecodable"),
        ({"SOPInstanceUID": None}, "undecodable"),
    ],
)
def test_image_that_may_show_who_it_is_stays_here(changes: dict[str, Any], code: str) -> None:
    with config.disable_value_validation():
        source = make_radiograph(rows=48, columns=40, **changes)
        with pytest.raises(NotDeidentifiable) as refusal:
            OURS.deidentify(source, patient=PATIENT)
    assert refusal.value.code == code


def test_unstated_pixels_go_where_somebody_has_looked() -> None:
    assert "BurnedInAnnotation" not in away(radiograph(BurnedInAnnotation=None), accept_unstated=True)
    with config.disable_value_validation(), pytest.raises(NotDeidentifiable):
        away(radiograph(BurnedInAnnotation="YES"), accept_unstated=True)


@pytest.mark.parametrize("is_compressed", [False, True])
def test_text_drawn_into_the_free_bits_of_the_pixels_stays_here(is_compressed: bool) -> None:
    source = make_radiograph(rows=48, columns=40, bits_stored=12)
    pixels = source.pixel_array.copy()
    drawn = pixels.copy()
    drawn[3:9, 5:30] |= 1 << 15
    source.PixelData = drawn.tobytes()
    if is_compressed:
        source.BitsStored, source.HighBit = 16, 15
        source.compress(RLELossless, generate_instance_uid=False)
        source.BitsStored, source.HighBit = 12, 11
    out = away(reread(source))
    assert np.array_equal(np.frombuffer(out.PixelData, dtype="<u2").reshape(48, 40), pixels)


def test_declared_overlay_in_the_pixels_stays_here() -> None:
    source = make_radiograph(rows=48, columns=40)
    source.add_new(0x60000010, "US", 48)
    with pytest.raises(NotDeidentifiable) as refusal:
        OURS.deidentify(source, patient=PATIENT)
    assert refusal.value.code == "overlay_in_pixels"


def test_overlay_with_data_of_its_own_is_left_behind() -> None:
    source = make_radiograph(rows=48, columns=40)
    source.add_new(0x60000010, "US", 48)
    source.add_new(0x60003000, "OW", b"\xff" * 240)
    assert not [tag for tag in away(source).keys() if tag.group == 0x6000]  # noqa: SIM118 - of a Dataset


def test_error_and_warnings_quote_nothing(recwarn: pytest.WarningsRecorder) -> None:
    with config.disable_value_validation():
        source = radiograph(PatientAge=SECRET, StudyDate=SECRET, PatientSex=SECRET, RescaleSlope=None)
    source._dict[Tag("RescaleSlope")] = source.get_item("PatientID")
    with pytest.raises(NotDeidentifiable) as refusal:
        OURS.deidentify(source, patient=PATIENT)
    assert SECRET not in str(refusal.value)
    assert not [w for w in recwarn if SECRET in str(w.message)]
