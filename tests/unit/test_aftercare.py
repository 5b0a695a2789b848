"""What becomes of results after they were sent: what is kept, what is taken back, what senders reject."""

from __future__ import annotations

import contextlib
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import ExplicitVRLittleEndian
from sqlalchemy import Engine, select, update

from db import facts
from db.engine import NoSuchRecord, db_now, read_scope, session_scope
from db.facts import OpenRequest
from db.tables import (
    Commitment,
    CommitmentRequest,
    DeliveryState,
    Instance,
    InstanceState,
    Job,
    JobKind,
    JobState,
    Study,
)
from pacs_node.delivery import aftercare
from pacs_node.delivery.aftercare import Aftercare, result_for
from pacs_node.dimse import commitment
from pacs_node.dimse.commitment import read_request, read_result
from pacs_node.errors import DeliveryDelayed
from pacs_node.listener.rejected import RejectionNote, UnreadableNote, read_note
from pacs_node.settings import DestinationSettings, Settings
from pacs_node.store import ObjectStore
from pacs_node.told import apply_rejections
from tests import records
from tests.unit.test_delivery import Hospital
from tests.unit.test_reconcile import open_from

SENT, WAITING, FAILED = DeliveryState.SENT, DeliveryState.WAITING, DeliveryState.FAILED
LIMITS: dict[str, Any] = {"max_failures": 2, "again_in_s": 2.0}


@pytest.fixture
def hospital(sqlite_engine: Engine, tmp_path: Path) -> Hospital:
    hospital = Hospital(sqlite_engine, tmp_path)
    profile = {"name": "main", "ae_title": "MAIN", "host": "h", "port": 104, "storage_commitment": True}
    hospital.settings = hospital.settings.model_copy(
        update={"destinations": (type(hospital.settings.destinations[0])(**profile),)}
    )
    return hospital


# Storage commitment


def ask(hospital: Hospital, transaction_uid: str, *, later: timedelta = timedelta()) -> facts.Question | None:
    with session_scope(hospital.engine) as session:
        now = datetime.now(UTC) + later
        return facts.open_commitment(
            session, "main", transaction_uid=transaction_uid, limit=9, again_at=now + timedelta(hours=1), now=now
        )


def answer(hospital: Hospital, transaction_uid: str, *, kept: Any = (), failed: Any = None) -> bool:
    with session_scope(hospital.engine) as session:
        told = {"kept": kept, "failed": failed or {}, "now": datetime.now(UTC)}
        return facts.record_commitment(session, transaction_uid, **told, **LIMITS)


def test_result_counts_as_archived_only_when_the_destination_promises_to_keep_it(hospital: Hospital) -> None:
    hospital.report()
    hospital.run()
    question = ask(hospital, "2.25.1")
    (delivery,) = hospital.deliveries()
    assert question is not None
    assert question.objects == ((delivery.sop_class_uid, delivery.sop_instance_uid),)
    assert delivery.archived_at is None
    assert ask(hospital, "2.25.2") is None
    for _ in range(2):
        assert answer(hospital, "2.25.1", kept=[delivery.sop_instance_uid])
    assert hospital.deliveries()[0].archived_at is not None
    assert hospital.actions().count("delivery_archived") == 1
    assert ask(hospital, "2.25.3", later=timedelta(days=9)) is None


def test_silence_is_asked_again_under_another_transaction_uid(hospital: Hospital) -> None:
    hospital.report()
    hospital.run()
    assert ask(hospital, "2.25.1") is not None
    assert ask(hospital, "2.25.2", later=timedelta(hours=2)) is not None
    with read_scope(hospital.engine) as session:
        assert sorted(session.execute(select(Commitment.transaction_uid)).scalars()) == ["2.25.1", "2.25.2"]
    (delivery,) = hospital.deliveries()
    assert answer(hospital, "2.25.1", kept=[delivery.sop_instance_uid])  # late, and true all the same
    assert hospital.deliveries()[0].archived_at is not None


def test_answer_to_a_question_that_we_never_asked_is_refused(hospital: Hospital) -> None:
    hospital.report()
    hospital.run()
    assert not answer(hospital, "2.25.666", kept=[hospital.deliveries()[0].sop_instance_uid])
    assert hospital.deliveries()[0].archived_at is None


def test_what_is_not_kept_is_sent_again_and_fails_when_it_is_never_kept(hospital: Hospital) -> None:
    hospital.report()
    hospital.run()
    uid = hospital.deliveries()[0].sop_instance_uid
    ask(hospital, "2.25.1")
    answer(hospital, "2.25.1", failed={uid: 0x0112})
    (delivery,) = hospital.deliveries()
    assert (delivery.state, delivery.reason) == (WAITING, "the destination does not keep it: no such object (0112)")
    hospital.run()
    assert hospital.states() == [SENT]
    assert len(hospital.peers["main"].has) == 2
    assert len(set(hospital.peers["main"].has)) == 1
    ask(hospital, "2.25.2")
    answer(hospital, "2.25.2", failed={uid: 0x0112})
    (delivery,), (job,) = hospital.deliveries(), hospital.jobs()
    assert (delivery.state, job.state) == (FAILED, JobState.FAILED)
    with session_scope(hospital.engine) as session:
        facts.retry_job(session, job.id, actor="admin", now=datetime.now(UTC))
    hospital.run()
    assert (hospital.states(), len(hospital.peers["main"].has)) == ([SENT], 3)


def test_class_that_the_destination_cannot_commit_to_is_not_sent_again(hospital: Hospital) -> None:
    hospital.report()
    hospital.run()
    ask(hospital, "2.25.1")
    answer(hospital, "2.25.1", failed={hospital.deliveries()[0].sop_instance_uid: 0x0122})
    assert hospital.states() == [FAILED]


def test_node_promises_only_what_it_stores_under_the_same_class() -> None:
    objects = (("1.2", "a"), ("1.2", "b"), ("1.3", "c"))
    request = OpenRequest(
        request_id=UUID(int=1), calling_ae_title="PACS", transaction_uid="2.25.1", objects=objects, attempts=1
    )
    result = result_for(request, {"a": "1.2", "c": "1.2"}, frozenset())
    assert (result.kept, result.failed) == (("a",), {"b": 0x0112, "c": 0x0119})


def test_peer_whose_copy_was_quarantined_is_promised_nothing_about_it(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    with session_scope(hospital.engine) as session:
        for sender, digest in (("FIRST", "a"), ("MAIN", "b")):
            association_id = open_from(session, sender)
            records.add_image(session, 1, association_id=association_id, digest=digest * 64)
            records.add_image(session, 2, association_id=association_id)
    told = {}
    monkeypatch.setattr(commitment, "answer", lambda peer, result, *_, **__: told.update({peer.ae_title: result}))
    first = {"name": "first", "ae_title": "FIRST", "host": "h", "port": 104}
    settings = answering(hospital, *hospital.settings.destinations, DestinationSettings(**first))
    for sender in ("FIRST", "MAIN"):
        ask_us(hospital, sender, "1.2.1.1.1", "1.2.1.1.2")
    Aftercare(settings, hospital.engine, threading.Event()).turn()
    assert (told["FIRST"].kept, told["FIRST"].failed) == (("1.2.1.1.1", "1.2.1.1.2"), {})
    assert (told["MAIN"].kept, told["MAIN"].failed) == (("1.2.1.1.2",), {"1.2.1.1.1": 0x0110})


def answering(hospital: Hospital, *destinations: DestinationSettings) -> Settings:
    """Return the settings of a node that answers what it keeps, and asks nothing."""
    dicom = hospital.settings.dicom.model_copy(update={"storage_commitment": True})
    silent = tuple(one.model_copy(update={"storage_commitment": False}) for one in destinations)
    return hospital.settings.model_copy(update={"destinations": silent, "dicom": dicom})


def ask_us(hospital: Hospital, sender: str, *uids: str, transaction_uid: str = "2.25.1") -> None:
    with session_scope(hospital.engine) as session:
        facts.add_commitment_request(
            session,
            calling_ae_title=sender,
            transaction_uid=transaction_uid,
            objects=[("1.2.840.10008.5.1.4.1.1.1.1", uid) for uid in uids],
            now=db_now(session) - timedelta(seconds=1),
        )


def test_peer_that_cannot_be_told_is_tried_once_in_a_turn(hospital: Hospital, caplog: pytest.LogCaptureFixture) -> None:
    (away,) = hospital.settings.destinations
    settings = answering(hospital, away.model_copy(update={"host": "127.0.0.1", "port": 1}))
    for number in range(3):
        ask_us(hospital, "MAIN", "1.3", transaction_uid=f"2.25.{number}")
    Aftercare(settings, hospital.engine, threading.Event()).turn()
    assert [record.message for record in caplog.records].count("A peer could not be told what is kept") == 1
    with read_scope(hospital.engine) as session:
        assert facts.count_waiting_requests(session, "MAIN") == 3


def test_each_request_of_a_peer_that_cannot_be_told_has_its_own_attempts(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(aftercare, "time", SimpleNamespace(monotonic=lambda: clock.seconds))
    monkeypatch.setattr(aftercare, "ANSWER_ATTEMPTS", 2)
    settings = answering(hospital, *hospital.settings.destinations)
    for number in range(3):
        ask_us(hospital, "STRANGER", "1.3", transaction_uid=f"2.25.{number}")
    worker, seen = Aftercare(settings, hospital.engine, threading.Event()), []
    for _ in range(6):
        for _ in range(2):  # the second turn comes too soon
            worker.turn()
        with session_scope(hospital.engine) as session:
            rows = session.execute(select(CommitmentRequest.attempts, CommitmentRequest.due_at)).all()
            seen.append((sorted(row.attempts for row in rows), sum(row.due_at is None for row in rows)))
            is_open = CommitmentRequest.due_at > db_now(session)
            session.execute(update(CommitmentRequest).where(is_open).values(due_at=db_now(session)))
        clock.seconds += aftercare.ANSWER_AGAIN_S
    assert seen == [([0, 0, 1], 0), ([0, 1, 1], 0), ([1, 1, 1], 0), ([1, 1, 2], 1), ([1, 2, 2], 2), ([2, 2, 2], 3)]


def test_peer_that_cannot_be_told_is_in_nobodys_way_and_told_when_it_is_back(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tell(peer: DestinationSettings, result: commitment.CommitmentResult, *_: object, **__: object) -> None:
        if peer.ae_title == "MAIN" and clock.seconds == 0:
            raise DeliveryDelayed(peer.name, "no association")
        told.append(peer.ae_title)

    told: list[str] = []
    clock = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(aftercare, "time", SimpleNamespace(monotonic=lambda: clock.seconds))
    monkeypatch.setattr(commitment, "answer", tell)
    (main,) = hospital.settings.destinations
    settings = answering(hospital, main, main.model_copy(update={"name": "second", "ae_title": "SECOND"}))
    for number, sender in enumerate(("MAIN", "MAIN", "MAIN", "SECOND")):
        ask_us(hospital, sender, "1.3", transaction_uid=f"2.25.{number}")
    worker = Aftercare(settings, hospital.engine, threading.Event())
    worker.turn()
    assert told == ["SECOND"]
    clock.seconds += aftercare.ANSWER_AGAIN_S
    worker.turn()
    assert told == ["SECOND", "MAIN", "MAIN"], "and the one that was tried in vain when it is due"


def test_malformed_commitment_messages_are_refused() -> None:
    for read in (read_result, read_request):
        with pytest.raises(ValueError, match="malformed"):
            read(Dataset())


# Rejection notes that arrive


def make_note(code: str = "113001", *uids: str, study: str = "1.2.1") -> Dataset:
    title, item, series, evidence = Dataset(), Dataset(), Dataset(), Dataset()
    title.CodeValue, title.CodingSchemeDesignator, title.CodeMeaning = code, "DCM", "A title"
    items = []
    for uid in uids or ("1.2.1.1.1",):
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", uid
        items.append(item)
    series.SeriesInstanceUID, series.ReferencedSOPSequence = f"{study}.1", items
    evidence.StudyInstanceUID, evidence.ReferencedSeriesSequence = study, [series]
    note = Dataset()
    note.ConceptNameCodeSequence, note.CurrentRequestedProcedureEvidenceSequence = [title], [evidence]
    return note


def read(store: ObjectStore, content: bytes, transfer_syntax: str = ExplicitVRLittleEndian) -> Any:
    with store.begin() as part:
        part.write_meta(b"meta")
        part.write(content)
        return read_note(part, transfer_syntax)


def encoded(dataset: Dataset) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_dataset(buffer, dataset)
    return buffer.getvalue()


def test_rejecting_titles_are_told_from_others(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    for code in ("113001", "113037", "113038"):
        (note,) = read(store, encoded(make_note(code)))
        assert note == RejectionNote(code=code, study_instance_uid="1.2.1", sop_instance_uids=("1.2.1.1.1",))
    for code in ("113000", "113039"):
        assert read(store, encoded(make_note(code))) == ()


@pytest.mark.parametrize("content", [b"\x00" * (1 << 21), b"\x08\x00\x18\x00UI\xff\xff1.2", encoded(make_note())[:-9]])
def test_note_that_cannot_be_read_is_told_apart_from_none(tmp_path: Path, content: bytes) -> None:
    with contextlib.suppress(UnreadableNote):  # pydicom forgives a cut data set
        assert all(isinstance(note, RejectionNote) for note in read(ObjectStore(tmp_path), content))


def note(engine: Engine, *uids: str, study: str = "1.2.1", sender: str = "PACS", is_trusted: bool = True) -> None:
    with session_scope(engine) as session:
        facts.note_rejection(
            session,
            sop_instance_uids=uids,
            study_instance_uid=study,
            code="113038",
            note_uid="1.2.9",
            calling_ae_title=sender,
            is_trusted=is_trusted,
            now=datetime.now(UTC),
        )


def images(engine: Engine) -> list[Any]:
    with read_scope(engine) as session:
        return list(session.execute(select(Instance).order_by(Instance.received_at)).scalars())


def test_queued_job_of_a_rejected_image_is_cancelled(sqlite_engine: Engine) -> None:
    with session_scope(sqlite_engine) as session:
        records.add_image(session, 1)
        records.add_image(session, 2)
    note(sqlite_engine, "1.2.1.1.1", "1.2.1.1.77")
    assert apply_rejections(sqlite_engine) == 1
    assert apply_rejections(sqlite_engine) == 0
    assert [image.state for image in images(sqlite_engine)] == [InstanceState.NOT_ANALYSED, InstanceState.WAITING]
    with read_scope(sqlite_engine) as session:
        states = session.execute(select(Job.state).where(Job.kind == JobKind.INFER).order_by(Job.created_at)).scalars()
        assert sorted(states) == [JobState.DONE, JobState.READY]
        study_id = session.execute(select(Study.id)).scalar_one()
        warnings = facts.study_facts(session, study_id, lock=False).images[0].warnings
    assert [warning.code for warning in warnings] == ["rejected_by_sender"]


def test_closed_job_of_a_rejected_image_cannot_be_retried(sqlite_engine: Engine) -> None:
    with session_scope(sqlite_engine) as session:
        records.add_image(session, 1)
        session.execute(update(Job).values(state=JobState.CLOSED))
        job_id = session.execute(select(Job.id)).scalar_one()
    note(sqlite_engine, "1.2.1.1.1")
    assert apply_rejections(sqlite_engine) == 1
    with pytest.raises(NoSuchRecord), session_scope(sqlite_engine) as session:
        facts.retry_job(session, job_id, actor="user:ann", now=records.NOON)


def test_image_that_comes_after_its_rejection_is_taken_out_then(sqlite_engine: Engine) -> None:
    note(sqlite_engine, "1.2.1.1.1")
    assert apply_rejections(sqlite_engine) == 0
    with session_scope(sqlite_engine) as session:
        records.add_image(session, 1)
    assert apply_rejections(sqlite_engine) == 1


def test_note_about_another_study_rejects_nothing(sqlite_engine: Engine) -> None:
    with session_scope(sqlite_engine) as session:
        records.add_image(session, 1)
    note(sqlite_engine, "1.2.1.1.1", study="1.2.2")
    assert apply_rejections(sqlite_engine) == 0
    with read_scope(sqlite_engine) as session:
        assert not facts.has_open_rejections(session), "or it would be looked for every second"
    note(sqlite_engine, "1.2.1.1.1")
    assert apply_rejections(sqlite_engine) == 1, "the true note still counts"


def test_modality_rejects_its_own_images_alone(sqlite_engine: Engine) -> None:
    with session_scope(sqlite_engine) as session:
        association_id = open_from(session, "CR_ROOM_1")
        for number in (1, 2):
            records.add_image(session, number, association_id=association_id)
    note(sqlite_engine, "1.2.1.1.1", sender="CR_ROOM_2", is_trusted=False)
    assert apply_rejections(sqlite_engine) == 0
    note(sqlite_engine, "1.2.1.1.1", sender="PACS", is_trusted=True)
    assert apply_rejections(sqlite_engine) == 1, "a stranger's note is in nobody's way"
    note(sqlite_engine, "1.2.1.1.2", sender="CR_ROOM_1", is_trusted=False)
    assert apply_rejections(sqlite_engine) == 1


def test_copy_of_a_note_from_another_sender_is_not_in_the_way_of_the_modality(sqlite_engine: Engine) -> None:
    with session_scope(sqlite_engine) as session:
        records.add_image(session, 1, association_id=open_from(session, "CR_ROOM_1"))
    for sender, applied in (("PACS", 0), ("CR_ROOM_1", 1), ("CR_ROOM_1", 0), ("PACS", 0)):
        note(sqlite_engine, "1.2.1.1.1", sender=sender, is_trusted=False)
        assert apply_rejections(sqlite_engine) == applied


def test_image_that_two_senders_reject_is_taken_out_once(sqlite_engine: Engine) -> None:
    with session_scope(sqlite_engine) as session:
        records.add_image(session, 1, association_id=open_from(session, "CR_ROOM_1"))
    note(sqlite_engine, "1.2.1.1.1", sender="CR_ROOM_1", is_trusted=False)
    note(sqlite_engine, "1.2.1.1.1", sender="PACS")
    assert apply_rejections(sqlite_engine) == 1
    note(sqlite_engine, "1.2.1.1.1", sender="ARCHIVE")
    with read_scope(sqlite_engine) as session:
        assert not facts.has_open_rejections(session)


def test_note_counts_when_it_is_sent_again_by_a_peer_that_was_trusted_meanwhile(sqlite_engine: Engine) -> None:
    with session_scope(sqlite_engine) as session:
        records.add_image(session, 1)
    note(sqlite_engine, "1.2.1.1.1", is_trusted=False)
    assert apply_rejections(sqlite_engine) == 0
    note(sqlite_engine, "1.2.1.1.1")
    assert apply_rejections(sqlite_engine) == 1


def test_result_that_was_withdrawn_before_it_was_built_goes_nowhere(hospital: Hospital) -> None:
    report_id = hospital.report(is_built=False)
    with session_scope(hospital.engine) as session:
        facts.withdraw_report(session, report_id, code="113001", actor="admin", now=datetime.now(UTC))
    hospital.build(report_id)
    hospital.run()
    assert hospital.states() == [DeliveryState.WITHDRAWN]
    assert hospital.jobs() == []


def test_sent_result_about_a_rejected_image_is_withdrawn_and_the_study_reported_anew(hospital: Hospital) -> None:
    now = datetime.now(UTC)
    with session_scope(hospital.engine) as session:
        accepted = records.add_image(session, 1, now=now)
        records.judge(session, accepted.instance_id, 0.93, now=now)
        report_id = records.freeze(session, accepted.study_id, now=now)
    assert report_id is not None
    hospital.build(report_id)
    hospital.run()
    note(hospital.engine, "1.2.1.1.1")
    apply_rejections(hospital.engine)
    (delivery,) = hospital.deliveries()
    assert (delivery.state, delivery.withdrawal) == (WAITING, "113038")
    hospital.run()
    assert hospital.states() == [DeliveryState.WITHDRAWN]
    with read_scope(hospital.engine) as session:
        study = facts.study_facts(session, accepted.study_id, lock=False)
    assert study.unreported_since is not None
    assert study.images[0].state is InstanceState.NOT_ANALYSED
