"""Whatever stands in a data set, wherever and under whatever representation: it does not go out, and the pixels do."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import config
from pydicom._dicom_dict import DicomDictionary
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.pixels import pixel_array
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from pacs_node.export.deidentify import Deidentifier, NotDeidentifiable
from pacs_node.export.training_attributes import DATES, LUTS, NUMBERS, TEXTS, UIDS, WORDS
from tests.builders import as_bytes, make_radiograph, reread

OURS = Deidentifier(b"\x01" * 32)
PIXELS = {
    Tag(keyword)
    for keyword in (
        *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"),
        *("PhotometricInterpretation", "PixelData", "NumberOfFrames", "PlanarConfiguration", "SpecificCharacterSet"),
    )
}
"""Without these there is no image to give away."""
KNOWN = [Tag(tag) for tag in DicomDictionary if tag >> 16 not in (0, 2, 4) and Tag(tag) not in PIXELS and tag & 0xFFFF]
COPIED = [Tag(keyword) for keyword in (*WORDS, *TEXTS, *DATES, *UIDS, *NUMBERS, *LUTS, "PatientAge", "PatientName")]
VRS = ("LO", "SH", "PN", "LT", "ST", "UT", "UC", "CS", "AE", "UR", "DA", "TM", "DT", "AS", "UI", "DS", "IS", "UN", "OB")
SEQUENCES = [
    "ViewCodeSequence",
    "VOILUTSequence",
    "ModalityLUTSequence",
    "AnatomicRegionSequence",
    "RequestAttributesSequence",
]

secrets = st.text("BCDFGHJKQVWZ", min_size=12, max_size=16)
"""Letters of which no word of a standard is made."""
tags = st.one_of(
    st.sampled_from(COPIED), st.sampled_from(KNOWN), st.builds(Tag, st.just(0x0019), st.integers(0x1001, 0x10FF))
)
places = st.lists(st.sampled_from(SEQUENCES), max_size=3)


@st.composite
def hidden(draw: st.DrawFn) -> tuple[list[str], Any, str]:
    """Return where an element goes (the sequences down to it), its tag and its representation."""
    return draw(places), draw(tags), draw(st.sampled_from(VRS))


def hide(dataset: Dataset, path: list[str], tag: Any, vr: str, secret: str) -> None:
    """Put the secret into the data set at that place, beside what stands there."""
    for keyword in path:
        element = dataset.get_item(keyword) if keyword in dataset else None
        if element is None or element.VR != "SQ":
            dataset[keyword] = DataElement(keyword, "SQ", Sequence([Dataset()]))
        items = dataset[keyword].value
        if not items:
            items.append(Dataset())
        dataset = items[0]
    if tag.is_private:
        dataset.add_new(Tag(tag.group, 0x0010), "LO", secret[:8] * 2)
    element = DataElement(tag, "LO", "")
    # As a reader finds it in a file: the tag says one thing, its representation another, and its value a third.
    element.VR, element._value = vr, secret.encode() if vr in ("UN", "OB") else secret
    dataset.add(element)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True, database=None)
@given(secret=secrets, elements=st.lists(hidden(), min_size=1, max_size=12))
def test_no_text_of_a_data_set_goes_out_and_the_pixels_do(
    secret: str, elements: list[tuple[list[str], Any, str]]
) -> None:
    with config.disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = make_radiograph(rows=16, columns=12)
        for path, tag, vr in elements:
            hide(source, path, tag, vr, secret)
        source.SOPClassUID = source.file_meta.MediaStorageSOPClassUID
        source.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
        read = as_read_or_none(source)
        if read is None:
            return
        try:
            out = OURS.deidentify(read, patient="0123456789abcdef")
        except NotDeidentifiable:
            return
        assert secret.encode() not in as_bytes(out)
        assert secret[:8].encode() not in as_bytes(out)
        assert not any(Tag(tag).is_private for tag in out.keys())  # noqa: SIM118 - of a Dataset
        assert np.array_equal(pixel_array(reread(out)), pixel_array(read))


def as_read_or_none(source: Dataset) -> Dataset | None:
    """Return the data set as it is read from a file; None where no file can hold it (a text as a number)."""
    try:
        return reread(source)
    except (ValueError, TypeError, AttributeError, OSError):
        return None


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True, database=None)
@given(
    bits_stored=st.integers(2, 16),
    photometric=st.sampled_from(["MONOCHROME1", "MONOCHROME2"]),
    seed=st.integers(0, 2**31),
)
def test_pixels_are_the_same_to_the_bit(bits_stored: int, photometric: str, seed: int) -> None:
    source = make_radiograph(rows=8, columns=9, bits_stored=bits_stored, photometric=photometric)
    stored = np.random.default_rng(seed).integers(0, 2**bits_stored, (8, 9))
    source.PixelData = stored.astype("u1" if bits_stored <= 8 else "<u2").tobytes()
    out = reread(OURS.deidentify(reread(source), patient="0123456789abcdef"))
    assert np.array_equal(pixel_array(out), stored)
    assert (out.BitsStored, out.PhotometricInterpretation) == (bits_stored, photometric)


@given(first=st.text(max_size=20), second=st.text(max_size=20))
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_two_patients_are_two_and_one_stays_one(first: str, second: str) -> None:
    assert (OURS.name("patient", "", first) == OURS.name("patient", "", second)) == (first == second)
    assert OURS.name("patient", first, second) == OURS.name("patient", first, second)
    assert len(OURS.uid(first)) <= 64
