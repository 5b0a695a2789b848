"""What holds for any header and any geometry, found out by hypothesis."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import config, dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage, ExplicitVRLittleEndian

from pacs_node.report.heatmap import overlay
from pacs_node.report.source import TYPE_2, TYPE_3, safe_header
from pacs_node.report.sr import build_sr, to_bytes
from tests.builders import as_bytes, make_radiograph
from tests.reports import make_image, make_study_report

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=90)
ASCII = st.text(st.characters(max_codepoint=127), max_size=90)
LEGAL = {
    "PatientName": st.from_regex(
        r"[A-Za-zÄÖÜäöüßéèçñ山田太郎王小东홍길동' -]{1,20}(\^[A-Za-zéñ]{1,10}){0,4}", fullmatch=True
    ),
    "PatientID": st.from_regex(r"[A-Za-z0-9/._ -]{1,64}", fullmatch=True),
    "AccessionNumber": st.from_regex(r"[A-Za-z0-9._-]{1,16}", fullmatch=True),
    "PatientBirthDate": st.dates().map(lambda day: f"{day:%Y%m%d}".zfill(8)),
    "PatientSex": st.sampled_from(["M", "F", "O"]),
    "StudyTime": st.times().map(lambda time: f"{time:%H%M%S.%f}"),
    "StudyDescription": st.from_regex(r"[^\\\x00-\x1f\x7f\ud800-\udfff\ufffd]{1,64}", fullmatch=True),
}
QUICK = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def any_of(*keywords: str) -> st.SearchStrategy[dict[str, str]]:
    """Return any values for some of the attributes: of any script where their representation has a character set."""
    values = {word: ASCII if dictionary_VR(word) in ("AS", "CS", "DA", "TM") else TEXTS for word in keywords}
    return st.fixed_dictionaries({}, optional=values)


def header_with(**attributes: str) -> Dataset:
    """Return a header as it comes from the store, in UTF-8: written and read, whatever its values are."""
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    buffer = io.BytesIO()
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value)
        dataset.save_as(buffer, implicit_vr=False, little_endian=True)
        read = dcmread(io.BytesIO(buffer.getvalue()), force=True)
    read.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return read


@QUICK
@given(st.fixed_dictionaries({}, optional=LEGAL))
def test_legal_value_is_copied_verbatim(attributes: dict[str, str]) -> None:
    safe = safe_header(header_with(**attributes))
    assert safe.emptied == ()
    for keyword, value in attributes.items():
        assert str(safe.dataset.get(keyword, "")) == value.strip(" ")


@QUICK
@given(any_of(*TYPE_2, *TYPE_3))
def test_any_value_is_copied_whole_or_emptied_and_named(attributes: dict[str, str]) -> None:
    source = header_with(**attributes)
    safe = safe_header(source)
    for keyword in TYPE_2:
        assert keyword in safe.dataset
    for keyword, value in attributes.items():
        copied = str(safe.dataset.get(keyword) or "")
        assert copied in ("", value.strip(" \0")), "never truncated, never changed"
        if value.strip(" \0\\") and not copied:
            assert keyword in safe.emptied
    for keyword in safe.emptied:
        assert not safe.dataset.get(keyword)


@settings(QUICK, max_examples=10)
@given(any_of("PatientName", "PatientID", "StudyDate", "AccessionNumber"))
def test_any_header_gives_a_report_that_can_be_read(attributes: dict[str, str]) -> None:
    study = make_study_report(image := make_image(1, p=0.9))
    header = safe_header(header_with(**attributes))
    study.headers[image.instance_id] = header  # type: ignore[index]  # a dict, in this test's hands
    document = dcmread(io.BytesIO(to_bytes(build_sr(study, Comprehensive3DSRStorage))))
    for keyword in ("PatientName", "PatientID", "StudyDate", "AccessionNumber"):
        assert str(document[keyword].value or "") == str(header.dataset[keyword].value or "")


@QUICK
@given(
    shape=st.tuples(st.integers(32, 700), st.integers(32, 700)),
    peak=st.tuples(st.floats(0.15, 0.85), st.floats(0.3, 0.85)),
)
def test_hottest_place_lies_where_the_map_says_in_any_matrix(shape: tuple[int, int], peak: tuple[float, float]) -> None:
    row, column = np.mgrid[0:32, 0:32] / 32 + 1 / 64
    heatmap_hw = np.rint(255 * np.exp(-(((column - peak[0]) / 0.1) ** 2) - ((row - peak[1]) / 0.1) ** 2))
    rgb_HWC = overlay(np.zeros(shape, dtype=np.uint8), heatmap_hw.astype(np.uint8), "AI")
    assert rgb_HWC.shape == (*shape, 3)
    below = rgb_HWC[int(0.25 * shape[0]) + 30 :]
    if below.any():
        hot_row, hot_column = np.unravel_index(below.sum(axis=2).argmax(), below.shape[:2])
        assert abs(hot_column / shape[1] - peak[0]) < 0.3
        assert hot_row >= 0


@pytest.mark.parametrize("shape", [(33, 257), (257, 33), (101, 103)])
def test_odd_sizes_are_written_and_read(shape: tuple[int, int]) -> None:
    source = make_radiograph(rows=shape[0], columns=shape[1], seed=1)
    assert dcmread(io.BytesIO(as_bytes(source))).pixel_array.shape == shape
