"""The pictures of a report: what they show, what they say they are, and that they can be built again byte for byte."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from datetime import UTC
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import GrayscaleSoftcopyPresentationStateStorage, SecondaryCaptureImageStorage, SegmentationStorage

from db.facts import BuiltObject
from db.tables import ObjectKind
from pacs_node.identity import IMPLEMENTATION_CLASS_UID
from pacs_node.report import codes
from pacs_node.report.document import to_bytes
from pacs_node.report.heatmap import build_heatmap, overlay
from pacs_node.report.picture import Picture, read_picture
from pacs_node.report.region import build_gsps, build_seg
from pacs_node.report.rejection import build_rejection_note
from pacs_node.report.sr import SR_CLASSES, build_sr
from tests.builders import as_bytes, make_radiograph
from tests.reports import CARD, HERE, NOON, STUDY_UID, make_image, make_study_report

PRESENT = make_image(1, p=0.931)
BUILDERS: dict[str, Callable[..., Dataset | None]] = {"sc": build_heatmap, "gsps": build_gsps, "seg": build_seg}


def make_map(*, side: int = 32, peak: int = 255) -> np.ndarray:
    """Return a map whose peak lies in the lower left of the picture: a third in from the left, two down."""
    row, column = np.mgrid[0:side, 0:side] / side
    bump = np.exp(-(((column - 0.33) / 0.1) ** 2) - ((row - 0.66) / 0.1) ** 2)
    heatmap_hw: np.ndarray = np.rint(peak * bump).astype(np.uint8)
    return heatmap_hw


def make_picture(folder: Path, *, rows: int = 240, columns: int = 320, **attributes: Any) -> Picture:
    file = folder / "source.dcm"
    file.write_bytes(as_bytes(make_radiograph(rows=rows, columns=columns, seed=1, **attributes)))
    return read_picture(str(file))


def built(kind: str, picture: Picture, heatmap_hw: np.ndarray | None = None) -> Dataset:
    """Return the object as its reader gets it."""
    study = make_study_report(PRESENT)
    heatmap_hw = make_map() if heatmap_hw is None else heatmap_hw
    document = BUILDERS[kind](study, PRESENT, PRESENT.predictions[0], picture, heatmap_hw)
    assert document is not None
    return dcmread(io.BytesIO(to_bytes(document)))


@pytest.mark.parametrize("kind", BUILDERS)
def test_building_twice_gives_the_same_bytes(kind: str, tmp_path: Path) -> None:
    picture, study = make_picture(tmp_path), make_study_report(PRESENT)

    def once() -> bytes:
        document = BUILDERS[kind](study, PRESENT, PRESENT.predictions[0], picture, make_map())
        assert document is not None
        return to_bytes(document)

    first = once()
    time.sleep(1.1 - time.time() % 1)  # into the next second: whatever reads a clock shows
    assert once() == first


@pytest.mark.parametrize(
    ("kind", "sop_class_uid", "series_number"),
    [
        ("sc", SecondaryCaptureImageStorage, 9101),
        ("gsps", GrayscaleSoftcopyPresentationStateStorage, 9103),
        ("seg", SegmentationStorage, 9105),
    ],
)
def test_picture_says_whose_and_what_it_is(kind: str, sop_class_uid: str, series_number: int, tmp_path: Path) -> None:
    document = built(kind, make_picture(tmp_path))
    assert document.SOPClassUID == document.file_meta.MediaStorageSOPClassUID == sop_class_uid
    assert (document.StudyInstanceUID, document.SeriesNumber) == (STUDY_UID, series_number)
    assert (document.PatientID, document.SpecificCharacterSet) == ("PHANTOM-1", "ISO_IR 192")
    assert document.file_meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
    (equipment,) = document.ContributingEquipmentSequence
    assert (equipment.ManufacturerModelName, equipment.SoftwareVersions) == (CARD.name, CARD.version)
    assert document.BodyPartExamined == "CHEST"
    assert PRESENT.sop_instance_uid in str(document)


def test_secondary_capture_is_derived_marked_and_as_large_as_its_source(tmp_path: Path) -> None:
    document = built("sc", make_picture(tmp_path, LossyImageCompression="01", LossyImageCompressionRatio="12.5"))
    assert list(document.ImageType) == ["DERIVED", "SECONDARY", "OTHER"]
    assert (document.ConversionType, document.BurnedInAnnotation) == ("WSD", "YES")
    assert (document.Rows, document.Columns, document.PhotometricInterpretation) == (240, 320, "RGB")
    assert (document.LossyImageCompression, document.LossyImageCompressionRatio) == ("01", 12.5)
    (source,) = document.SourceImageSequence
    assert source.ReferencedSOPInstanceUID == PRESENT.sop_instance_uid
    assert source.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
    assert CARD.name in document.DerivationDescription


def test_monochrome1_and_2_give_the_same_picture(tmp_path: Path) -> None:
    one, two = (make_picture(tmp_path, photometric=f"MONOCHROME{number}") for number in (1, 2))
    assert (one.is_monochrome1, two.is_monochrome1) == (True, False)
    assert np.abs(one.grey_HW.astype(int) - two.grey_HW).max() <= 1
    shapes = [built("gsps", picture).PresentationLUTShape for picture in (one, two)]
    assert shapes == ["INVERSE", "IDENTITY"]


def test_colours_lie_on_the_map_alone_and_the_greys_stay_elsewhere() -> None:
    grey_HW = np.full((240, 320), 100, dtype=np.uint8)
    rgb_HWC = overlay(grey_HW, make_map(), "AI RESULT")
    is_coloured = rgb_HWC.max(axis=2) != rgb_HWC.min(axis=2)
    peak = rgb_HWC[158, 105].astype(int)
    assert peak[0] > peak[2], "red where the map is highest"
    assert not is_coloured[20:, 200:].any()
    assert (rgb_HWC[20:, 200:] == 100).all()


def test_low_values_of_the_map_are_not_drawn() -> None:
    faint = make_map(peak=int(255 * 0.14))
    assert (overlay(np.full((240, 320), 100, dtype=np.uint8), faint, "AI")[20:] == 100).all()


@pytest.mark.parametrize(("rows", "columns"), [(224, 224), (420, 512), (3000, 2500), (300, 100), (64, 3000)])
def test_banner_is_whole_whatever_the_size(rows: int, columns: int) -> None:
    banner = "AI RESULT - NOT FOR DIAGNOSIS - cxr-pneumonia 1.3.0"
    flat = np.full((rows, columns), 100, dtype=np.uint8)
    rgb_HWC = overlay(flat, np.zeros((8, 8), dtype=np.uint8), banner)
    is_yellow = (rgb_HWC[..., 0] > 150) & (rgb_HWC[..., 2] < 100)
    assert is_yellow.any()
    assert not is_yellow[:, -1].any(), "no letter is cut off at the right edge"
    assert (rgb_HWC[-1] == 100).all()


def test_presentation_state_outlines_the_region_and_keeps_the_window(tmp_path: Path) -> None:
    document = built("gsps", make_picture(tmp_path, WindowCenter="2000", WindowWidth="3000"))
    (annotation,) = document.GraphicAnnotationSequence
    (ellipse,) = annotation.GraphicObjectSequence
    points = np.array(ellipse.GraphicData).reshape(4, 2)
    assert np.allclose(points.mean(axis=0), (0.33 * 320 + 5, 0.66 * 240 + 4), atol=8)
    assert annotation.TextObjectSequence[0].UnformattedTextValue == "AI: pneumonia 93.1 % (not for diagnosis)"
    (voi,) = document.SoftcopyVOILUTSequence
    assert (voi.WindowCenter, voi.WindowWidth) == (2000, 3000)


def test_segmentation_marks_the_region(tmp_path: Path) -> None:
    document = built("seg", make_picture(tmp_path))
    region_HW = document.pixel_array
    assert region_HW.shape == (240, 320)
    row, column = np.nonzero(region_HW)
    assert (abs(row.mean() - 0.66 * 240 - 4) < 8, abs(column.mean() - 0.33 * 320 - 5) < 8) == (True, True)
    assert document.SegmentationType == "BINARY"


@pytest.mark.parametrize("build", [build_gsps, build_seg])
def test_map_that_shows_nothing_gives_no_region(build: Callable[..., Dataset | None], tmp_path: Path) -> None:
    study, picture = make_study_report(PRESENT), make_picture(tmp_path)
    nothing = np.zeros((32, 32), dtype=np.uint8)
    assert build(study, PRESENT, PRESENT.predictions[0], picture, nothing) is None


@pytest.mark.parametrize(
    "attributes",
    [
        {"PatientOrientation": "NONSENSE", "BodyPartExamined": "chest!", "WindowWidth": "0"},
        {"PatientOrientation": None, "BodyPartExamined": None},
        {"LossyImageCompression": "YES", "PixelAspectRatio": "0\\0"},
    ],
)
def test_illegal_attributes_are_left_out(attributes: dict[str, Any], tmp_path: Path) -> None:
    picture = make_picture(tmp_path, **attributes)
    document = built("sc", picture)
    assert not document.PatientOrientation or list(document.PatientOrientation) == ["L", "F"]
    assert document.LossyImageCompression == "00"
    assert "PixelAspectRatio" not in document


# Rejection


def rejection(*objects: BuiltObject, code: str = "113001") -> Dataset:
    study = make_study_report(PRESENT)
    report = build_sr(study, next(iter(SR_CLASSES)))
    return build_rejection_note(
        report,
        objects,
        code=code,
        installation_id=HERE,
        node=study.node,
        at=NOON,
        local_zone=UTC,
        model_name="m",
    )


def an_object(kind: ObjectKind, number: int) -> BuiltObject:
    classes = {ObjectKind.SR: next(iter(SR_CLASSES)), ObjectKind.HEATMAP: SecondaryCaptureImageStorage}
    return BuiltObject(
        sop_instance_uid=f"2.25.{number}", sop_class_uid=str(classes[kind]), path="", digest="", kind=kind
    )


def test_rejection_note_names_what_it_rejects_and_why() -> None:
    note = rejection(an_object(ObjectKind.SR, 1), an_object(ObjectKind.HEATMAP, 2))
    assert note.ConceptNameCodeSequence[0].CodeValue == "113001"
    references = [item for item in note.ContentSequence if "ReferencedSOPSequence" in item]
    assert [item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in references] == ["2.25.1", "2.25.2"]
    assert [item.ValueType for item in references] == ["COMPOSITE", "IMAGE"]
    assert not any("ConceptNameCodeSequence" in item for item in references)
    (study,) = note.CurrentRequestedProcedureEvidenceSequence
    assert study.StudyInstanceUID == note.StudyInstanceUID == STUDY_UID
    assert len(study.ReferencedSeriesSequence) == 2
    assert (note.PatientID, note.SeriesNumber) == ("PHANTOM-1", 9003)


@pytest.mark.parametrize("code", codes.REJECTIONS)
def test_rejecting_again_for_another_reason_is_another_note(code: str) -> None:
    one, other = rejection(an_object(ObjectKind.SR, 1), code=code), rejection(an_object(ObjectKind.SR, 2), code=code)
    assert one.SOPInstanceUID != other.SOPInstanceUID
    assert one.SOPInstanceUID == rejection(an_object(ObjectKind.SR, 1), code=code).SOPInstanceUID


def test_note_that_rejects_nothing_or_for_no_known_reason_is_not_built() -> None:
    for arguments in ((), (an_object(ObjectKind.SR, 1),)):
        with pytest.raises(ValueError, match="a rejection note needs"):
            rejection(*arguments, code="1")
