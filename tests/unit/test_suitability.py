"""Which images may be judged, and what is said about the others."""

from __future__ import annotations

import pickle
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    DigitalXRayImageStorageForProcessing,
    GrayscaleSoftcopyPresentationStateStorage,
    JPEGBaseline8Bit,
)

from models.predictor import Prediction
from models.suitability import (
    CODES,
    Examination,
    Severity,
    examine,
    examine_file,
    make_warning,
    pixel_codes,
    settled,
    warnings_of,
)
from tests.builders import data_folder, draw_chest, make_card, make_population, make_radiograph, store_pixels

CARD = make_card()
SIZE = {"rows": 240, "columns": 232}
OTHER_DATES = ("AcquisitionDate", "SeriesDate", "ContentDate")


def examined(age_policy: str = "refuse", **options: Any) -> Examination:
    return examine(make_radiograph(**(SIZE | options)), CARD, age_policy=age_policy)


def codes_of(examination: Examination) -> set[str]:
    return {warning.code for warning in examination.warnings}


def forbidden_by(examination: Examination) -> set[str]:
    return {warning.code for warning in examination.warnings if warning.severity is Severity.FORBIDS}


def item(value: str, meaning: str = "") -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "SCT", meaning
    return code


@pytest.mark.parametrize("modality", ["DX", "CR"])
def test_frontal_chest_of_a_child_is_fit_without_remark(modality: str) -> None:
    examination = examined(modality=modality)
    assert examination.is_fit
    assert examination.warnings == ()
    assert examination.image_1HW is not None
    assert (examination.image_1HW.shape, examination.image_1HW.dtype) == ((1, 224, 224), np.float32)
    assert (examination.rows, examination.columns, examination.voi) == (240, 232, "window")


@pytest.mark.parametrize(
    ("code", "options"),
    [
        ("wrong_modality", {"Modality": "MG"}),
        ("wrong_modality", {"SOPClassUID": CTImageStorage}),
        ("wrong_modality", {"SOPClassUID": GrayscaleSoftcopyPresentationStateStorage}),
        ("not_chest", {"BodyPartExamined": "HIP"}),
        ("not_chest", {"BodyPartExamined": "CHESTABDOMEN"}),
        ("not_chest", {"BodyPartExamined": "THORACIC SPINE"}),
        ("not_chest", {"BodyPartExamined": "CHEST_ABD"}),
        ("not_chest", {"BodyPartExamined": "CHEST_RIBS"}),
        ("not_chest", {"BodyPartExamined": "CHESTABD"}),
        ("not_chest", {"BodyPartExamined": "THORAXABD"}),
        ("not_chest", {"body_part": None, "StudyDescription": "XR ABDO", "ProcedureCodeSequence": None}),
        ("not_chest", {"body_part": None, "StudyDescription": "XR Chest and Abdo", "ProcedureCodeSequence": None}),
        ("not_chest", {"body_part": None, "StudyDescription": "Thorax_Abd a.p.", "ProcedureCodeSequence": None}),
        ("not_chest", {"body_part": None, "StudyDescription": "Chest ribcage", "ProcedureCodeSequence": None}),
        ("not_chest", {"body_part": None, "StudyDescription": "XR_hand_left", "ProcedureCodeSequence": None}),
        ("not_chest", {"body_part": None, "StudyDescription": "XR knee", "ProcedureCodeSequence": None}),
        ("not_chest", {"body_part": None, "StudyDescription": "Chest, ribs", "ProcedureCodeSequence": None}),
        ("not_chest", {"body_part": None, "StudyDescription": "Sternum", "ProcedureCodeSequence": None}),
        ("body_part_unknown", {"body_part": None, "StudyDescription": "XR", "ProcedureCodeSequence": None}),
        ("not_frontal", {"view_position": "LL"}),
        ("not_frontal", {"ViewPosition": "LATERAL"}),
        ("not_frontal", {"ViewPosition": "", "ViewCodeSequence": [item("399173006")]}),
        ("not_frontal", {"view_position": None, "PatientOrientation": ["A", "F"]}),
        ("not_frontal", {"view_position": None, "SeriesDescription": "Chest lat"}),
        ("not_frontal", {"view_position": None, "SeriesDescription": "Chest_lat"}),
        ("not_frontal", {"view_position": None, "ViewPosition": "LAT_ERECT"}),
        ("not_frontal", {"view_position": "PA", "PatientOrientation": ["A", "F"]}),
        ("not_frontal", {"view_position": "AP", "ViewCodeSequence": [item("399067008")]}),
        ("not_frontal", {"view_position": "PA", "ViewCodeSequence": [item("R-10236")]}),
        (
            "not_frontal",
            {"ViewPosition": "", "ViewCodeSequence": [item("272479007")], "PatientOrientation": ["P", "F"]},
        ),
        ("not_frontal", {"ViewPosition": "", "ViewCodeSequence": [item("LOCAL-LAT")]}),
        ("not_human", {"PatientSpeciesDescription": "Canis lupus familiaris"}),
        ("not_human", {"PatientSpeciesCodeSequence": [item("448771007", "Domestic dog")]}),
        ("not_human", {"ProtocolName": "Feline thorax"}),
        ("not_human", {"ProtocolName": "Thorax_dog"}),
        ("for_processing", {"PresentationIntentType": "FOR PROCESSING"}),
        ("for_processing", {"SOPClassUID": DigitalXRayImageStorageForProcessing}),
        ("derived_secondary", {"ImageType": ["DERIVED", "SECONDARY"]}),
        ("no_pixels", {"PixelData": None}),
        ("undecodable", {"PixelData": b"\0" * 64}),
        ("left_justified_bits", {"HighBit": 15}),
        ("several_frames", {"NumberOfFrames": 2}),
        ("low_resolution", {"rows": 223}),
        ("blank_image", {"pixels": np.full((240, 232), 0.5)}),
        ("no_chest_seen", {"pixels": np.indices((240, 232)).sum(0) // 28 % 2}),
        ("age_outside_card", {"patient_age": "056Y"}),
    ],
)
def test_unfit_image_is_not_answered_and_its_code_says_why(code: str, options: dict[str, Any]) -> None:
    examination = examined(**options)
    assert not examination.is_fit
    assert code in codes_of(examination)
    assert all(warning.severity is Severity.FORBIDS for warning in examination.warnings)


@pytest.mark.parametrize(
    ("code", "severity", "options"),
    [
        ("age_unknown", "warning", {"PatientAge": "", "StudyDate": "", **dict.fromkeys(OTHER_DATES, "")}),
        ("view_unknown", "warning", {"view_position": None}),
        ("view_unknown", "warning", {"view_position": None, "SeriesDescription": "PA and LAT"}),
        ("secondary_capture", "warning", {"modality": "SC"}),
        ("lut_shape_contradicts", "warning", {"PresentationLUTShape": "INVERSE"}),
        ("burned_in_annotation", "warning", {"BurnedInAnnotation": "YES"}),
        ("lossy_source", "note", {"LossyImageCompression": "01"}),
        ("no_window", "note", {"WindowWidth": None}),
        ("ap_or_portable", "note", {"view_position": "AP"}),
        ("ap_or_portable", "note", {"view_position": None, "ViewPosition": "AP PORTABLE"}),
        ("ap_or_portable", "note", {"ViewPosition": "", "ViewCodeSequence": [item("399348003")]}),
        ("ap_or_portable", "note", {"SeriesDescription": "Chest, bedside"}),
        ("ap_or_portable", "note", {"view_position": None, "SeriesDescription": "chest a.p. / AP"}),
        ("identity_incomplete", "note", {"PatientID": ""}),
        ("identity_incomplete", "note", {"PatientName": None}),
        ("identity_incomplete", "note", {"PatientBirthDate": ""}),
        ("inverted", "warning", {"pixels": 1 - draw_chest(240, 232)}),
        ("looks_turned", "warning", {"pixels": draw_chest(240, 232)[::-1]}),
        ("exposure_out_of_range", "warning", {"pixels": 0.4 * draw_chest(240, 232)}),
        ("low_contrast", "warning", {"pixels": 0.4 + 0.2 * draw_chest(240, 232)}),
        ("clipped", "warning", {"pixels": np.clip(1.5 * draw_chest(240, 232) - 0.1, 0, 1)}),
        ("much_padding", "warning", {"pixels": np.where(np.arange(240)[:, None] < 85, 0, draw_chest(240, 232))}),
    ],
)
def test_remark_travels_with_the_image(code: str, severity: str, options: dict[str, Any]) -> None:
    examination = examined(**options)
    assert examination.is_fit
    assert [(warning.code, warning.severity) for warning in examination.warnings] == [(code, severity)]


@pytest.mark.parametrize(
    "options",
    [
        {"BodyPartExamined": "Thorax"},
        {"BodyPartExamined": "LUNG"},
        {"modality": "CR", "body_part": None, "StudyDescription": "Rx torax pa", "ProcedureCodeSequence": None},
        {"body_part": None, "AnatomicRegionSequence": [item("816094009", "Chest")], "StudyDescription": None},
        {"ViewPosition": "", "ViewCodeSequence": [item("272479007")]},
        {"view_position": None, "SeriesDescription": "view: PA"},
        {"view_position": None, "SeriesDescription": "Chest_PA"},
        {"view_position": "PA", "SeriesDescription": "AP and PA"},
        {"view_position": "PA", "ViewCodeSequence": [item("LOCAL-7")]},
        {"body_part": None, "StudyDescription": "Thorax, Western Clinic", "ProcedureCodeSequence": None},
        {"body_part": None, "StudyDescription": "Chest PA distributed", "ProcedureCodeSequence": None},
        {"PatientSpeciesDescription": "Homo sapiens"},
        {"PatientSpeciesDescription": "human_child"},
        {"PatientSpeciesCodeSequence": [item("337915000", "Homo sapiens")]},
        {"ImageType": ["DERIVED", "PRIMARY"]},
    ],
)
def test_usual_spellings_are_understood(options: dict[str, Any]) -> None:
    assert examined(**options).warnings == ()


@pytest.mark.parametrize(
    ("age", "birth_date", "is_fit"),
    [
        ("001Y", None, True),
        ("005Y", None, True),
        ("071M", None, True),
        ("072M", None, False),
        ("011M", None, False),
        ("400D", None, True),
        ("006Y", None, False),
        ("62", None, False),
        (None, "20210301", True),
        (None, "20200301", False),
        (None, "20200302", True),
        (None, "19500101", False),
    ],
)
def test_age_is_taken_from_age_or_birth_date(age: str | None, birth_date: str | None, is_fit: bool) -> None:
    examination = examined(patient_age=None, PatientAge=age, PatientBirthDate=birth_date, study_date=date(2026, 3, 1))
    assert examination.is_fit is is_fit
    assert codes_of(examination) - {"identity_incomplete"} == (set() if is_fit else {"age_outside_card"})


def test_age_policy_warn_answers_and_warns() -> None:
    examination = examined("warn", patient_age="056Y")
    assert examination.is_fit
    assert [(w.code, w.severity) for w in examination.warnings] == [("age_outside_card", Severity.WARNING)]


SEVERAL = make_card(
    populations=(
        make_population("adults", (18, 60)), make_population("children", (1, 5)), make_population("older", (61, 95))
    )
)  # fmt: skip


@pytest.mark.parametrize(
    ("age", "code"),
    [
        ("003Y", ""),
        ("018Y", ""),
        ("060Y", ""),
        ("095Y", ""),
        ("071M", ""),
        ("006M", "age_outside_card"),
        ("006Y", "age_outside_card"),
        ("017Y", "age_outside_card"),
        ("096Y", "age_outside_card"),
        (None, "age_unknown"),
    ],
)
def test_age_between_two_populations_is_refused_unless_the_policy_warns(age: str | None, code: str) -> None:
    dataset = make_radiograph(**SIZE, patient_age=None, PatientAge=age or "", PatientBirthDate="20990101")
    refused, warned = (examine(dataset, SEVERAL, age_policy=policy) for policy in ("refuse", "warn"))
    assert codes_of(refused) == codes_of(warned) == ({code} if code else set())
    assert refused.is_fit is (code != "age_outside_card")
    assert warned.is_fit
    assert all("1 to 5 and 18 to 95 years" in warning.text for warning in warned.warnings)


def test_reader_is_told_as_whom_an_image_without_an_age_is_judged() -> None:
    dataset = make_radiograph(**SIZE, patient_age=None, PatientAge="", PatientBirthDate="20990101")
    [warning] = examine(dataset, SEVERAL).warnings
    assert SEVERAL.population_of(None).name in warning.text


@pytest.mark.parametrize(("age", "years"), [("071M", 5), ("072M", 6), ("051W", 0), ("062Y", 62), (None, None)])
def test_examination_carries_the_completed_years(age: str | None, years: int | None) -> None:
    assert examined("warn", patient_age=age, PatientBirthDate="").age_years == years


def test_no_text_carries_a_patient_attribute_or_an_open_blank() -> None:
    examination = examined("warn", patient_age="056Y", patient_name="Secret^Name", patient_id="SECRET-7")
    texts = " ".join(warning.text for warning in examination.warnings)
    assert "1 to 5 years" in texts
    assert not any(word in texts for word in ("Secret", "SECRET", "56", "{"))


def test_every_code_has_a_sentence_for_the_radiologist_and_one_for_the_admin() -> None:
    for code, row in CODES.items():
        assert row.code == code
        assert row.text.endswith("."), code
        assert row.advice.endswith("."), code
        assert "{" not in row.advice, code
        assert not row.is_no_answer or row.severity is Severity.WARNING, code


STABLE = {
    "forbids": "wrong_modality not_chest no_chest_seen body_part_unknown not_frontal turned not_human for_processing "
    "derived_secondary no_pixels undecodable left_justified_bits colour several_frames low_resolution blank_image "
    "age_outside_card rejected_by_sender processing_failed decode_timeout",
    "warning": "age_unknown depends_on_age view_unknown secondary_capture lut_shape_contradicts burned_in_annotation "
    "low_confidence inverted looks_turned exposure_out_of_range low_contrast clipped much_padding out_of_distribution",
    "note": "lossy_source no_window stored_in_colour ap_or_portable identity_incomplete first_seen_device",
}
"""Names and severities stand in databases, reports and other programs: they may be added to, not changed."""


def test_codes_keep_their_names_and_severities() -> None:
    found = {code: row.severity.value for code, row in CODES.items()}
    assert found == {code: severity for severity, codes in STABLE.items() for code in codes.split()}


def test_grey_image_in_colour_is_answered_with_a_note() -> None:
    dataset = make_radiograph(**SIZE, modality="SC", bits_stored=8)
    grey_HW = np.frombuffer(dataset.PixelData, np.uint8).reshape(240, 232)
    store_pixels(
        dataset, np.repeat(grey_HW[..., None], 3, axis=2), SamplesPerPixel=3, PlanarConfiguration=0,
        PhotometricInterpretation="RGB",
    )  # fmt: skip
    examination = examine(dataset, CARD)
    assert examination.voi == "displayed"
    assert codes_of(examination) == {"secondary_capture", "stored_in_colour"}


def test_examination_survives_pickling() -> None:
    examination = examined(WindowWidth=None)
    again = pickle.loads(pickle.dumps(examination))
    assert again.warnings == examination.warnings
    np.testing.assert_array_equal(again.image_1HW, examination.image_1HW)


@pytest.mark.parametrize("content", [b"", b"not DICOM" * 50, b"\0" * 128 + b"DICM" + b"\xff" * 60])
def test_file_that_is_no_dicom_is_undecodable(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.dcm"
    path.write_bytes(content)
    assert not examine_file(str(path), CARD).is_fit


def test_compressed_rubbish_is_undecodable() -> None:
    dataset = make_radiograph(**SIZE, bits_stored=8)
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xe0rubbish"])
    assert codes_of(examine(dataset, CARD)) == {"undecodable"}


def make_prediction(probability: float, **more: Any) -> Prediction:
    return Prediction(
        finding="pneumonia", probability=probability, threshold=0.5, abstain_low=0.4, abstain_high=0.6,
        model_name="drawn", model_version="0.0.1", **more,
    )  # fmt: skip


@pytest.mark.parametrize(("probability", "is_low"), [(0.39, False), (0.4, True), (0.59, True), (0.6, False)])
def test_low_confidence_is_said_inside_the_abstain_band(probability: float, is_low: bool) -> None:
    prediction = make_prediction(probability)
    assert [warning.code for warning in warnings_of(prediction)] == (["low_confidence"] if is_low else [])
    assert all("40 to 60 %" in warning.text for warning in warnings_of(prediction))


@pytest.mark.parametrize(
    ("score", "limit", "is_said"), [(None, None, False), (1.0, None, False), (1.3, 1.3, False), (1.31, 1.3, True)]
)
def test_image_over_the_cards_limit_is_out_of_distribution(
    score: float | None, limit: float | None, is_said: bool
) -> None:
    prediction = make_prediction(0.99, ood_score=score, ood_limit=limit)
    assert [warning.code for warning in warnings_of(prediction)] == (["out_of_distribution"] if is_said else [])


@pytest.mark.parametrize("probability", [0.0, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("code", ["inverted", "out_of_distribution", "depends_on_age"])
def test_probability_that_is_no_answer_lies_in_the_abstain_band(code: str, probability: float) -> None:
    of_prediction = {
        "out_of_distribution": {"ood_score": 2.0, "ood_limit": 1.5},
        "depends_on_age": {"depends_on_age": True},
    }
    seen = () if code in of_prediction else (make_warning(code),)
    prediction = make_prediction(probability, **of_prediction.get(code, {}))
    ((found,), warnings) = settled([prediction], seen)
    assert found.abstain_low <= probability < found.abstain_high
    assert (found.probability, found.threshold) == (probability, 0.5)
    assert code in [warning.code for warning in warnings]
    assert settled([prediction], seen) == ((found,), warnings)


def test_warning_that_leaves_the_answer_alone_leaves_it_alone() -> None:
    prediction = make_prediction(0.9)
    remark = make_warning("view_unknown")
    assert settled([prediction, prediction], [remark]) == ((prediction, prediction), (remark,))


def test_pixels_that_show_no_chest_say_nothing_else() -> None:
    noise_1HW = np.random.default_rng(1).random((1, 224, 224)).astype(np.float32)
    assert pixel_codes(noise_1HW) == ["no_chest_seen"]
    assert pixel_codes(np.full((1, 224, 224), 0.5, dtype=np.float32)) == ["blank_image"]


@pytest.mark.parametrize(
    ("attributes", "device"),
    [
        ({"Manufacturer": " Fuji ", "ManufacturerModelName": "CR-1"}, ("FUJI", "CR-1", "DIRECT")),
        ({"Manufacturer": None, "ManufacturerModelName": "x" * 99, "DetectorType": None}, ("", "X" * 64, "")),
        ({"Manufacturer": "", "ManufacturerModelName": None}, None),
    ],
)
def test_examination_says_what_took_the_image(attributes: dict[str, Any], device: tuple[str, ...] | None) -> None:
    found = examined(**({"DetectorType": "DIRECT"} | attributes)).device
    assert (found and (found.manufacturer, found.model_name, found.detector_type)) == device


def test_real_frontal_chest_radiographs_are_refused_for_age_only() -> None:
    folder = data_folder("dicom", "chest")
    for path in sorted(folder.glob("*.dcm")):
        if path.name != "dx_image.dcm":
            assert forbidden_by(examine_file(str(path), CARD)) <= {"age_outside_card"}, path.name
            assert examine_file(str(path), CARD, age_policy="warn").is_fit, path.name


def test_dog_is_not_answered() -> None:
    examination = examine_file(str(data_folder("dicom", "chest") / "dx_image.dcm"), CARD, age_policy="warn")
    assert {"not_human", "not_frontal"} <= codes_of(examination)


@pytest.mark.parametrize("folder", ["mixed", "hostile"])
def test_nothing_but_a_chest_radiograph_is_answered(folder: str) -> None:
    for path in sorted(data_folder("dicom", folder).iterdir()):
        examination = examine_file(str(path), CARD, age_policy="warn")
        assert not examination.is_fit, path.name
        assert examination.warnings, path.name


@pytest.mark.parametrize("orientation", [["R", "F"], ["F", "R"], ["R", "H"], ["L", "H"]])
def test_turned_or_mirrored_image_is_not_answered(orientation: list[str]) -> None:
    assert "turned" in codes_of(examined(PatientOrientation=orientation))


def test_file_that_cannot_be_read_is_no_verdict_on_the_image(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        examine_file(str(tmp_path / "gone.dcm"), CARD)
