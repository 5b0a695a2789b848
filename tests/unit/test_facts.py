"""What becomes of a received object, and whose it is; on both databases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import func, select

from db import audit, facts, queue
from db.audit import Action
from db.engine import Session
from db.queue import JobKind
from db.tables import (
    Hold,
    Instance,
    InstanceState,
    Job,
    Outcome,
    Receipt,
    Series,
    Study,
    Table,
)
from tests.records import (
    NOON,
    SECOND,
    add_image,
    make_instance,
)

RECODED = "1.2.840.10008.1.2.4.70"
OTHER_DIGEST = "f" * 64


def count(session: Session, kind: type[Table]) -> int:
    return session.execute(select(func.count()).select_from(kind)).scalar_one()


def actions(session: Session) -> list[str]:
    return [row.action for row in audit.tail(session, 100)]


# Reception


def test_new_image_gets_its_rows_receipt_job_and_audit_event(session: Session) -> None:
    accepted = add_image(session, priority=1)
    assert (accepted.outcome, accepted.hold) == (Outcome.NEW, None)
    assert [count(session, kind) for kind in (Study, Series, Instance, Receipt)] == [1, 1, 1, 1]
    job = queue.list_jobs(session, limit=10)[0]
    assert (job.kind, job.subject_id, job.study_id, job.priority) == (
        JobKind.INFER,
        accepted.instance_id,
        accepted.study_id,
        1,
    )
    assert actions(session) == [Action.INSTANCE_STORED]
    study = facts.study_facts(session, accepted.study_id, lock=True)
    assert (study.unreported_since, study.last_received_at, study.revision) == (NOON, NOON, 0)


def test_image_that_is_never_judged_ends_with_its_reason_and_opens_no_report(session: Session) -> None:
    reason = ("own_object", "This node made it")
    accepted = add_image(session, is_judged=False, not_judged_reason=reason)
    image = facts.instance_detail(session, accepted.instance_id).image
    assert image.state is InstanceState.NOT_ANALYSED
    assert [(warning.code, warning.severity, warning.text) for warning in image.warnings] == [
        ("own_object", "forbids", "This node made it")
    ]
    assert queue.list_jobs(session, limit=10) == []
    assert facts.study_facts(session, accepted.study_id, lock=False).unreported_since is None


def test_second_image_joins_its_study_and_series(session: Session) -> None:
    first = add_image(session, 1)
    second = add_image(session, 2, now=NOON + SECOND, priority=1)
    other = add_image(session, 3, series_instance_uid="1.2.1.2", now=NOON - SECOND)
    assert first.study_id == second.study_id == other.study_id
    assert [count(session, kind) for kind in (Study, Series, Instance)] == [1, 2, 3]
    study = facts.study_facts(session, first.study_id, lock=False)
    assert (study.last_received_at, study.priority) == (NOON + SECOND, 1)
    assert [image.sop_instance_uid for image in study.images] == ["1.2.1.1.3", "1.2.1.1.1", "1.2.1.1.2"]


def test_same_data_set_again_is_a_duplicate_without_a_job(session: Session) -> None:
    first = add_image(session)
    again = add_image(session)
    assert again == replace(first, outcome=Outcome.DUPLICATE, is_kept=False)
    assert [count(session, kind) for kind in (Instance, Receipt, Job)] == [1, 2, 1]
    assert actions(session)[-1] == Action.INSTANCE_DUPLICATE


@pytest.mark.parametrize(
    ("changes", "is_same_pixels", "outcome", "hold"),
    [
        ({"transfer_syntax_uid": RECODED}, True, Outcome.DUPLICATE, None),
        ({"transfer_syntax_uid": RECODED}, False, Outcome.QUARANTINED, None),
        ({"transfer_syntax_uid": RECODED}, None, Outcome.QUARANTINED, None),
        ({}, True, Outcome.QUARANTINED, None),
        ({"transfer_syntax_uid": RECODED, "series_instance_uid": "9.9"}, True, Outcome.QUARANTINED, None),
        ({"transfer_syntax_uid": RECODED, "patient_id": "2"}, True, Outcome.QUARANTINED, Hold.IDENTITY_CONFLICT),
        ({"patient_name": "Roe^Jane"}, None, Outcome.QUARANTINED, Hold.IDENTITY_CONFLICT),
        ({"study_instance_uid": "9.9"}, None, Outcome.QUARANTINED, Hold.IDENTITY_CONFLICT),
    ],
    ids=[
        "recoded, same pixels",
        "recoded, other pixels",
        "recoded, nobody compares",
        "same transfer syntax",
        "other series",
        "other patient id",
        "other name",
        "other study",
    ],
)
def test_same_uid_with_another_digest(
    session: Session, changes: dict[str, Any], is_same_pixels: bool | None, outcome: Outcome, hold: Hold | None
) -> None:
    first = add_image(session)
    copy = make_instance(digest=OTHER_DIGEST, **changes)
    same_pixels = None if is_same_pixels is None else (lambda _existing, _new: bool(is_same_pixels))
    accepted = facts.add_instance(session, copy, now=NOON, same_pixels=same_pixels)
    assert (accepted.outcome, accepted.hold) == (outcome, hold)
    assert (accepted.instance_id, accepted.study_id) == (first.instance_id, first.study_id)
    assert [count(session, kind) for kind in (Study, Instance, Job)] == [1, 1, 1]
    quarantined, _ = facts.list_quarantined(session)
    assert [kept.path for kept in quarantined] == ([copy.path] if outcome is Outcome.QUARANTINED else [])
    assert (Action.STUDY_HELD in actions(session)) == (hold is not None)


def test_same_pixels_is_asked_with_the_stored_and_the_new_path(session: Session) -> None:
    first, copy = make_instance(), make_instance(digest=OTHER_DIGEST, transfer_syntax_uid=RECODED)
    asked = []
    facts.add_instance(session, first, now=NOON)
    facts.add_instance(session, copy, now=NOON, same_pixels=lambda *paths: bool(asked.append(paths)))
    assert asked == [(first.path, copy.path)]
    stored = facts.stored_copy(session, first.sop_instance_uid)
    assert stored is not None
    assert (stored.path, stored.transfer_syntax_uid) == (first.path, first.transfer_syntax_uid)
    assert facts.stored_copy(session, "9.9") is None


def test_unreadable_bytes_are_kept_with_their_reason(session: Session) -> None:
    kept_as = {"path": "quarantine/x", "digest": "0" * 64, "size_bytes": 9}
    facts.quarantine(session, **kept_as, reason="not DICOM\x00", association_id=None, now=NOON)
    kept = facts.list_quarantined(session)[0][0]
    assert (kept.path, kept.reason, kept.instance_id) == ("quarantine/x", "not DICOM\ufffd", None)
    assert facts.counts(session).adds_up


# Identity


@pytest.mark.parametrize(
    ("changes", "hold"),
    [
        ({}, None),
        ({"patient_name": "Doe^Jane^^ "}, None),
        ({"patient_id": " PATIENT-1"}, None),
        ({"accession_number": "A2", "patient_sex": "O"}, None),
        ({"patient_id": "PATIENT-2"}, Hold.IDENTITY_CONFLICT),
        ({"patient_id": ""}, Hold.IDENTITY_CONFLICT),
        ({"issuer_of_patient_id": "HOSPITAL-B"}, Hold.IDENTITY_CONFLICT),
        ({"patient_name": "Doe^John"}, Hold.IDENTITY_CONFLICT),
        ({"patient_birth_date": "19700102"}, Hold.IDENTITY_CONFLICT),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else str(value),
)
def test_second_image_of_a_study_that_differs_in_identity_holds_it(
    session: Session, changes: dict[str, Any], hold: Hold | None
) -> None:
    add_image(session, 1)
    accepted = add_image(session, 2, **changes)
    assert (accepted.outcome, accepted.hold) == (Outcome.NEW, hold)
    assert facts.study_facts(session, accepted.study_id, lock=False).hold == hold


def test_missing_patient_id_holds_the_study_until_an_admin_decides_once(session: Session) -> None:
    first = add_image(session, 1, patient_id=" ")
    assert first.hold is Hold.UNIDENTIFIED
    assert add_image(session, 2, patient_id="").hold is Hold.UNIDENTIFIED
    assert actions(session).count(Action.STUDY_HELD) == 1
    facts.release_study(session, first.study_id, actor="admin", now=NOON)
    assert add_image(session, 3, patient_id="").hold is None
    assert add_image(session, 4, patient_id="PATIENT-1").hold is Hold.IDENTITY_CONFLICT


def test_text_that_no_database_takes_is_kept_readable(session: Session) -> None:
    odd = {"patient_name": "D\x00e^J\udcff", "study_description": "x" * 5000, "patient_id": "1" * 300}
    accepted = add_image(session, 1, **odd)
    assert add_image(session, 2, **odd).hold is None
    detail = facts.study_detail(session, accepted.study_id)
    assert detail.summary.patient_name == "D\ufffde^J?"
    assert (len(detail.study_description), len(detail.summary.patient_id)) == (5000, 300)


@pytest.mark.parametrize("name", ["study_instance_uid", "series_instance_uid", "sop_instance_uid", "sop_class_uid"])
@pytest.mark.parametrize("uid", ["", "1" * 65])
def test_uid_that_is_none_is_refused_before_the_database(name: str, uid: str) -> None:
    with pytest.raises(ValueError, match=name):
        make_instance(**{name: uid})


def test_patient_attributes_are_not_printed(session: Session) -> None:
    accepted = add_image(session)
    printed = f"{make_instance()} {facts.study_detail(session, accepted.study_id)} {facts.list_studies(session)}"
    for attribute in ("PATIENT-1", "Doe", "19700101", "A1'"):
        assert attribute not in printed
