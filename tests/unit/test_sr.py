"""The report as an object: what it says, whose it is, and that it can be built again byte for byte."""

from __future__ import annotations

import hashlib
import io
import itertools
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta, timezone
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    ExplicitVRLittleEndian,
)

from db.tables import Answer, InstanceState
from pacs_node.identity import IMPLEMENTATION_CLASS_UID, device_uid
from pacs_node.report.sr import SR_CLASSES, build_sr, sop_instance_uid, to_bytes
from pacs_node.report.study import StudyReport
from pacs_node.settings.codes import CodesSettings
from tests.reports import (
    CARD,
    HERE,
    SERIES_UID,
    STUDY_UID,
    changed,
    make_header,
    make_image,
    make_predecessor,
    make_prediction,
    make_study_report,
    reviewed,
    revised,
)

PRESENT = make_image(1, p=0.931)
OTHER_PLACE = timezone(timedelta(hours=5, minutes=30))


def built(study: StudyReport, sop_class_uid: str = Comprehensive3DSRStorage) -> Dataset:
    """Return the report as its reader gets it."""
    return dcmread(io.BytesIO(to_bytes(build_sr(study, sop_class_uid))))


def items(node: Dataset, meaning: str) -> list[Dataset]:
    """Return the content items below `node` with that concept name."""
    found = []
    for child in node.get("ContentSequence", []):
        if child.ConceptNameCodeSequence[0].CodeMeaning == meaning:
            found.append(child)
        found += items(child, meaning)
    return found


def texts(document: Dataset, meaning: str) -> list[str]:
    return [item.TextValue for item in items(document, meaning)]


def codes(document: Dataset, meaning: str) -> list[str]:
    return [item.ConceptCodeSequence[0].CodeMeaning for item in items(document, meaning)]


def numbers(document: Dataset) -> list[float]:
    return [float(item.MeasuredValueSequence[0].NumericValue) for item in items(document, "Certainty of Finding")]


@pytest.mark.parametrize(
    ("images", "narrative", "presences", "certainties"),
    [
        ([PRESENT], "Probability of pneumonia 93.1 % (threshold 50 %): PRESENT.", ["Present"], [93.1]),
        ([make_image(1, p=0.07)], "7.0 % (threshold 50 %): ABSENT.", ["Absent"], [7.0]),
        ([make_image(1, p=0.55)], "55.0 % (threshold 50 %): UNDETERMINED.", ["Undetermined"], [55.0]),
        (
            [make_image(1, p=0.07), make_image(2, p=0.8)],
            "80.0 % (threshold 50 %): PRESENT.",
            ["Absent", "Present"],
            [7.0, 80.0],
        ),
        (
            [make_image(1, p=0.07), make_image(2, codes=["undecodable"])],
            "7.0 % (threshold 50 %): INCOMPLETE.",
            ["Undetermined"],
            [7.0],
        ),
        ([make_image(1, codes=["undecodable"])], "NOT ANALYSED", [], []),
        ([make_image(1, p=0.00001)], "Probability of pneumonia < 0.1 % (threshold 50 %)", ["Absent"], [0.1]),
        ([make_image(1, p=0.99999)], "Probability of pneumonia > 99.9 %", ["Present"], [99.9]),
    ],
)
def test_answer_is_said_in_words_and_in_codes(
    images: list[Any], narrative: str, presences: list[str], certainties: list[float]
) -> None:
    document = built(make_study_report(*images))
    (said,) = texts(document, "Narrative Summary")
    assert narrative in said
    assert "Other disease was not assessed." in said
    assert f"Model {CARD.name} {CARD.version}." in said
    assert texts(document, "Comment")[-1].endswith("Research use only.")
    assert codes(document, "Presence of property") == presences
    assert numbers(document) == certainties
    assert len(items(document, "Measurement Group")) == len(presences)


def test_normal_is_never_coded() -> None:
    document = built(make_study_report(make_image(1, p=0.01)))
    assert codes(document, "Finding") == ["Pneumonia"]
    assert b"17621005" not in to_bytes(document)


def test_images_without_an_answer_are_named_with_their_reason() -> None:
    lateral = make_image(2, codes=["not_frontal"])
    failed = make_image(3, state=InstanceState.FAILED, codes=["processing_failed"])
    document = built(make_study_report(PRESENT, lateral, failed))
    said = texts(document, "Comment")
    assert said[0].startswith("Image 2 of 3 (series 1, number 2) was not analysed: The view is lateral")
    assert said[1] == "Image 3 of 3 (series 1, number 3) was not analysed: Processing failed."
    assert evidence(document) == [image.sop_instance_uid for image in (PRESENT, lateral, failed)]


def test_own_objects_are_not_named() -> None:
    own = make_image(2, codes=["own_object"], is_judged=False)
    document = built(make_study_report(PRESENT, own))
    assert evidence(document) == [PRESENT.sop_instance_uid]
    assert own.sop_instance_uid.encode() not in to_bytes(document)


def test_warnings_travel_with_the_answer_and_notes_stay() -> None:
    image = make_image(1, p=0.9, codes=["view_unknown", "lossy_source"])
    said = texts(built(make_study_report(image)), "Comment")
    assert said[0].startswith("Image 1 of 1 (series 1, number 1): The view is not stated")
    assert len(said) == 2


def evidence(document: Dataset) -> list[str]:
    (study,) = document.CurrentRequestedProcedureEvidenceSequence
    assert study.StudyInstanceUID == STUDY_UID
    (series,) = study.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == SERIES_UID
    return [item.ReferencedSOPInstanceUID for item in series.ReferencedSOPSequence]


def test_new_revision_names_and_tells_what_it_replaces() -> None:
    first = make_study_report(make_image(1, p=0.07))
    document = built(revised(make_study_report(PRESENT), make_predecessor()), ComprehensiveSRStorage)
    (study,) = document.PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    (replaced,) = series.ReferencedSOPSequence
    before = built(first, ComprehensiveSRStorage)
    assert study.StudyInstanceUID == before.StudyInstanceUID
    assert series.SeriesInstanceUID == before.SeriesInstanceUID == document.SeriesInstanceUID
    assert replaced.ReferencedSOPInstanceUID == before.SOPInstanceUID != document.SOPInstanceUID
    assert replaced.ReferencedSOPClassUID == before.SOPClassUID == ComprehensiveSRStorage
    assert replaced.PurposeOfReferenceCodeSequence[0].CodeValue == "121360"
    (said,) = texts(document, "Narrative Summary")
    assert "Revision 2: it replaces revision 1 of this AI result, which said ABSENT, 7.0 %." in said
    assert (before.InstanceNumber, document.InstanceNumber) == (1, 2)


def test_replacing_a_report_without_a_number_gives_none() -> None:
    study = revised(make_study_report(PRESENT), make_predecessor(answer=Answer.NOT_ANALYSED, p=None))
    assert "which said NOT ANALYSED." in texts(built(study), "Narrative Summary")[0]


def test_codes_of_the_configuration_take_the_place_of_ours_or_stand_beside_them() -> None:
    settings = CodesSettings.model_validate(
        {
            "findings": {"pneumonia": {"equivalents": [code("RID5350", "RADLEX", "pneumonia")]}},
            "finding_site": {"code": code("T" * 17, "99X", "Lungs")},
            "procedure_reported": {"code": code("363679005", "SCT", "Imaging procedure")},
        }
    )
    for study in (said := make_study_report(PRESENT, codes=settings.said())), reviewed(said, Answer.ABSENT):
        document = built(study)
        (finding,) = items(document, "Finding")
        concept = finding.ConceptCodeSequence[0]
        assert (concept.CodeValue, concept.CodingSchemeDesignator) == ("233604007", "SCT")
        (equivalent,) = concept.EquivalentCodeSequence
        assert [equivalent[key].value for key in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")] == [
            *("RID5350", "RADLEX", "pneumonia")
        ]
        site = items(document, "Finding Site")[0].ConceptCodeSequence[0]
        assert (site.LongCodeValue, "CodeValue" in site) == ("T" * 17, False)
        assert items(document, "Procedure reported")[0].ConceptCodeSequence[0].CodeValue == "363679005"
    assert CodesSettings().said() == {}


def code(value: str, scheme: str, meaning: str) -> dict[str, str]:
    return {"value": value, "scheme": scheme, "meaning": meaning}


@pytest.mark.parametrize("sop_class_uid", SR_CLASSES)
def test_building_twice_gives_the_same_bytes(sop_class_uid: str) -> None:
    def once() -> bytes:
        study = revised(make_study_report(PRESENT, make_image(2, codes=["undecodable"])), make_predecessor())
        return to_bytes(build_sr(study, sop_class_uid))

    assert once() == once()


def test_another_process_builds_the_same_bytes() -> None:
    program = (
        "import hashlib; from tests.reports import *; from pacs_node.report.sr import *;"
        "report = to_bytes(build_sr(make_study_report(make_image(1, p=0.931)), next(iter(SR_CLASSES))));"
        "print(hashlib.sha256(report).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    )
    ours = to_bytes(build_sr(make_study_report(PRESENT), Comprehensive3DSRStorage))
    assert done.stdout.strip() == hashlib.sha256(ours).hexdigest()


def test_uids_differ_by_installation_study_revision_and_class() -> None:
    study = make_study_report(PRESENT)
    elsewhere = replace(study, installation_id=type(HERE)(int=1))
    other = replace(study, study_instance_uid="1.2.3")
    uids = [
        sop_instance_uid(one, sop_class, revision)
        for one, sop_class, revision in itertools.product((study, elsewhere, other), SR_CLASSES, (1, 2))
    ]
    assert len(set(uids)) == len(uids)
    assert all(uid.startswith("2.25.") and len(uid) <= 64 for uid in uids)


def test_tracking_uid_is_the_images_and_survives_revisions() -> None:
    def tracked(study: StudyReport) -> list[str]:
        return [item.UID for item in items(built(study), "Tracking Unique Identifier")]

    second = make_image(2, p=0.1)
    later = revised(make_study_report(make_image(1, p=0.2), second), make_predecessor())
    assert tracked(make_study_report(PRESENT)) == tracked(later)[:1]
    assert len(set(tracked(later))) == 2


@pytest.mark.parametrize("sop_class_uid", SR_CLASSES)
def test_all_classes_carry_the_same_tree_and_header(sop_class_uid: str) -> None:
    study = make_study_report(PRESENT, make_image(2, codes=["not_frontal"]))
    best, other = built(study), built(study, sop_class_uid)
    assert other.file_meta.MediaStorageSOPClassUID == other.SOPClassUID == sop_class_uid
    assert other.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert other.file_meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
    for document in (best, other):
        del document.SOPClassUID, document.SOPInstanceUID
    assert best == other


def test_classes_are_proposed_best_first() -> None:
    assert list(SR_CLASSES) == [Comprehensive3DSRStorage, ComprehensiveSRStorage, EnhancedSRStorage]


def test_patient_and_study_are_the_sources_own() -> None:
    ordered = Dataset()
    ordered.RequestedProcedureID, ordered.RequestedProcedureDescription = "RP1", "Chest"
    name = "Yamada^Tarou=山田^太郎"
    document = built(make_study_report(PRESENT, header={"patient_name": name, "RequestAttributesSequence": [ordered]}))
    source = make_header(1).dataset
    for keyword in ("PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber"):
        assert document[keyword].value == source[keyword].value
    assert document.SpecificCharacterSet == "ISO_IR 192"
    assert str(document.PatientName) == name
    assert name.encode() in to_bytes(document)
    assert document.IssuerOfPatientID == "TESTHOSP"
    assert document.ProcedureCodeSequence[0].CodeValue == "399208008"
    assert document.ReferencedRequestSequence[0].RequestedProcedureID == "RP1"
    assert (document.VerificationFlag, document.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    assert document.SeriesDescription == "AI result - cxr-pneumonia (unverified)"


def test_header_is_that_of_an_analysed_image() -> None:
    study = make_study_report(make_image(1, codes=["undecodable"]), make_image(2, p=0.1))
    assert built(study).PatientID == "PHANTOM-2"


def test_image_whose_file_is_gone_is_named_by_its_place() -> None:
    study = make_study_report(PRESENT, make_image(2, codes=["undecodable"]))
    headers = {PRESENT.instance_id: study.headers[PRESENT.instance_id]}
    said = texts(built(replace(study, headers=headers)), "Comment")
    assert said[0].startswith("Image 2 of 2 was not analysed")


def test_report_without_any_header_is_not_built() -> None:
    with pytest.raises(ValueError, match="no image of the study has a header"):
        build_sr(replace(make_study_report(PRESENT), headers={}), Comprehensive3DSRStorage)


@pytest.mark.parametrize(
    ("offset", "date", "time"),
    [(None, "20260304", "173030"), ("-0800", "20260304", "040030"), ("+1400", "20260305", "020030")],
)
def test_own_times_are_in_the_zone_of_the_copied_study_time(offset: str | None, date: str, time: str) -> None:
    study = replace(make_study_report(PRESENT, header={"TimezoneOffsetFromUTC": offset}), local_zone=OTHER_PLACE)
    document = built(study)
    assert (document.ContentDate, document.ContentTime) == (date, time)
    assert (document.InstanceCreationDate, document.InstanceCreationTime) == (date, time)
    assert document.get("TimezoneOffsetFromUTC") == offset


def test_model_is_named_with_the_same_values_everywhere() -> None:
    document = built(make_study_report(PRESENT))
    (equipment,) = document.ContributingEquipmentSequence
    assert equipment.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
    assert [equipment.Manufacturer] == texts(document, "Device Observer Manufacturer")
    assert [equipment.ManufacturerModelName] == texts(document, "Device Observer Model Name")
    assert [equipment.ManufacturerModelName] == texts(document, "Algorithm Name") == [CARD.name]
    assert [equipment.SoftwareVersions] == texts(document, "Algorithm Version") == [CARD.version]
    assert [equipment.DeviceUID] == [item.UID for item in items(document, "Device Observer UID")]
    assert equipment.DeviceUID == device_uid(CARD.weights_sha256)
    parameters = texts(document, "Algorithm Parameters")
    assert f"weights sha256={CARD.weights_sha256}" in parameters
    assert "decision threshold=50 %" in parameters
    assert "undetermined band=40 % to 60 %" in parameters
    assert "calibration of children=temperature 1.25, bias 0 0" in parameters


def test_each_model_version_that_judged_is_named() -> None:
    newer = replace(CARD, version="2.0.0", weights_sha256="ab" * 32)
    study = make_study_report(PRESENT, make_image(2, prediction=make_prediction(0.2, model_version="2.0.0")))
    document = built(replace(study, cards={**study.cards, (newer.name, newer.version): newer}))
    assert [item.SoftwareVersions for item in document.ContributingEquipmentSequence] == ["1.3.0", "2.0.0"]
    assert texts(document, "Algorithm Version") == ["1.3.0", "2.0.0"]


def test_frozen_answer_wins_over_a_newer_reading_of_the_images() -> None:
    study = make_study_report(make_image(1, p=0.55))
    frozen = replace(study.report, answer=Answer.PRESENT)
    assert "PRESENT" in texts(built(replace(study, report=frozen)), "Narrative Summary")[0]


def test_uid_that_is_no_uid_is_answered_under_that_very_uid() -> None:
    image = make_image(1, p=0.1, series_instance_uid="A B", sop_instance_uid="1.02.x")
    document = built(replace(make_study_report(image), study_instance_uid="no-uid"))
    assert document.StudyInstanceUID == "no-uid"
    assert items(document, "Source")[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.02.x"


def test_nothing_about_the_patient_is_warned_about_or_logged(
    recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG"):
        study = make_study_report(PRESENT, header={"patient_name": "OneWordName"})
        recwarn.clear()
        to_bytes(build_sr(study, Comprehensive3DSRStorage))
    assert not recwarn.list
    assert not [record for record in caplog.records if "OneWordName" in record.getMessage()]


# Readers' reports


@pytest.mark.parametrize(
    ("answer", "presence", "said"),
    [
        (Answer.PRESENT, "Present", "The reader agrees with the AI result (AI: PRESENT, 93.1 %). Pneumonia: PRESENT."),
        (Answer.ABSENT, "Absent", "The reader disagrees with the AI result (AI: PRESENT, 93.1 %). Pneumonia: ABSENT."),
        (Answer.UNDETERMINED, "Undetermined", "The reader disagrees with the AI result"),
    ],
)
def test_readers_report_is_verified_and_gives_no_number(answer: Answer, presence: str, said: str) -> None:
    study = make_study_report(make_image(2, p=0.07), PRESENT)
    before, document = built(study), built(reviewed(study, answer, comment="Atelectasis."))
    assert (document.VerificationFlag, document.PreliminaryFlag) == ("VERIFIED", "FINAL")
    (observer,) = document.VerifyingObserverSequence
    assert (str(observer.VerifyingObserverName), observer.VerifyingOrganization) == ("Reader^Ada", "Test hospital")
    assert observer.VerificationDateTime == "20260304120030"
    assert texts(document, "Person Observer's Login Name") == ["ada"]
    assert items(document, "Device Observer UID") == []
    assert "ContributingEquipmentSequence" not in document
    assert codes(document, "Presence of property") == [presence]
    assert numbers(document) == []
    assert texts(document, "Narrative Summary")[0].startswith(said)
    assert texts(document, "Comment")[0] == "Atelectasis."
    decisive = items(before, "Tracking Unique Identifier")[1]
    assert [item.UID for item in items(document, "Tracking Unique Identifier")] == [decisive.UID]


def test_readers_report_is_about_the_image_that_decided_not_the_one_with_the_highest_number() -> None:
    unlike = make_image(2, prediction=make_prediction(0.97, low=0.0, high=1.0))  # out of distribution: undetermined
    study = make_study_report(unlike, make_image(3, p=0.8))
    decisive = items(built(study), "Tracking Unique Identifier")[1]
    document = built(reviewed(study, Answer.PRESENT))
    assert [item.UID for item in items(document, "Tracking Unique Identifier")] == [decisive.UID]


def test_readers_report_stands_in_its_own_series_and_names_the_ai_result() -> None:
    study = make_study_report(PRESENT)
    before, document = built(study), built(reviewed(study, Answer.ABSENT))
    assert document.SeriesInstanceUID != before.SeriesInstanceUID
    assert (document.SeriesNumber, document.SeriesDescription) == (9002, "AI result - reviewed")
    replaced = document.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert replaced.ReferencedSOPInstanceUID == before.SOPInstanceUID
    assert replaced.PurposeOfReferenceCodeSequence[0].CodeValue == "121362"


def test_changed_readers_report_names_the_ai_result_and_the_former_one() -> None:
    study = make_study_report(PRESENT)
    first, former, document = built(study), built(reviewed(study, Answer.PRESENT)), built(changed(study, Answer.ABSENT))
    assert document.SeriesInstanceUID == former.SeriesInstanceUID
    named = {
        one.ReferencedSOPInstanceUID: (series.SeriesInstanceUID, one.PurposeOfReferenceCodeSequence[0].CodeValue)
        for item in document.PredecessorDocumentsSequence
        for series in item.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    }
    assert named == {
        first.SOPInstanceUID: (first.SeriesInstanceUID, "121362"),
        former.SOPInstanceUID: (former.SeriesInstanceUID, "121360"),
    }
    replaces = "Revision 3: it replaces revision 2, the same reader's report, which said PRESENT."
    assert texts(document, "Narrative Summary")[0].endswith(replaces)
