"""What becomes of a received object: filed, a duplicate, quarantined or refused."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import JPEGLSLossless, RLELossless
from sqlalchemy import Engine, select, text

from db import facts
from db.engine import DatabaseAway, read_scope, session_scope
from db.tables import AuditEvent, Instance, InstanceState, Job, Outcome, Receipt, Study, Warning
from pacs_node.errors import CannotUnderstand, DataSetMismatch, OutOfResources
from pacs_node.listener import intake as intake_module
from pacs_node.listener.header import encode_file_meta
from pacs_node.listener.intake import Intake, Limits, Reception
from pacs_node.listener.same_pixels import have_same_pixels, hold_same_pixels
from pacs_node.store import ObjectStore, Part, data_set_offset
from tests import records
from tests.builders import as_bytes, make_radiograph, save
from tests.records import NOON, judge

LIMITS = Limits(min_free_bytes=0, max_waiting=1000)
RADIOGRAPH = {"rows": 32, "columns": 32, "bits_stored": 8}


class World:
    """An intake with its store and database, and what they hold."""

    def __init__(self, engine: Engine, folder: Path, **options: Any) -> None:
        self.engine, self.store = engine, ObjectStore(folder / "store")
        options.setdefault("compare", lambda first, second: pytest.fail("nothing was to be compared"))
        self.intake = Intake(engine, self.store, options.pop("limits", LIMITS), **options)

    def receive(self, dataset: FileDataset, **changes: Any) -> Outcome:
        content = as_bytes(dataset)
        said = {
            "sop_class_uid": str(dataset.SOPClassUID),
            "sop_instance_uid": str(dataset.SOPInstanceUID),
            "transfer_syntax_uid": str(dataset.file_meta.TransferSyntaxUID),
        } | changes
        return self.receive_bytes(content[data_set_offset(content) :], **said)

    def receive_bytes(self, data_set: bytes, **said: Any) -> Outcome:
        reception = Reception(calling_ae_title="CR_ROOM_1", association_id=None, **said)
        return self.intake.accept(self.part(data_set, reception), reception)

    def part(self, data_set: bytes, reception: Reception) -> Part:
        part = self.store.begin()
        part.write_meta(
            encode_file_meta(reception.sop_class_uid, reception.sop_instance_uid, reception.transfer_syntax_uid, "X")
        )
        part.write(data_set)
        return part

    def rows(self, table: Any) -> list[Any]:
        with read_scope(self.engine) as session:
            return list(session.scalars(select(table)))

    def files(self) -> list[str]:
        root = self.store.absolute("")
        return [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]

    def counts(self) -> facts.Conservation:
        with read_scope(self.engine) as session:
            return facts.counts(session)


@pytest.fixture
def world(engine: Engine, tmp_path: Path) -> World:
    return World(engine, tmp_path)


@pytest.fixture
def small_world(sqlite_engine: Engine, tmp_path: Path) -> World:
    return World(sqlite_engine, tmp_path)


def test_accept_files_a_new_image_with_its_job_and_audit_event(world: World) -> None:
    dataset = make_radiograph(modality="CR", **RADIOGRAPH)
    assert world.receive(dataset) is Outcome.NEW
    (instance,) = world.rows(Instance)
    assert instance.state is InstanceState.WAITING
    assert instance.path in world.files()
    assert world.store.absolute(instance.path).stat().st_size == instance.size_bytes
    (job,) = world.rows(Job)
    assert job.subject_id == instance.id
    assert [event.action for event in world.rows(AuditEvent)] == ["instance_stored"]
    (study,) = world.rows(Study)
    assert (study.patient_id, study.patient_name) == (dataset.PatientID, str(dataset.PatientName))


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("  Hôpital   ST. ANNE ", "hôpital st. anne"),
        ("\ufdfa" * 64, "صلى الله عليه وسلم" * 3 + "صلى الله ع"),  # 18 characters each in one spelling
        ("", ""),
    ],
)
def test_accept_keeps_the_institution_in_one_spelling(world: World, written: str, kept: str) -> None:
    dataset = make_radiograph(**RADIOGRAPH)
    dataset.SpecificCharacterSet, dataset.InstitutionName = "ISO_IR 192", written
    assert world.receive(dataset) is Outcome.NEW
    (study,) = world.rows(Study)
    assert study.institution == kept


def test_accept_keeps_one_file_when_the_same_image_comes_again(world: World) -> None:
    dataset = make_radiograph(**RADIOGRAPH)
    assert [world.receive(dataset), world.receive(dataset)] == [Outcome.NEW, Outcome.DUPLICATE]
    assert len(world.files()) == 1
    assert len(world.rows(Job)) == 1
    assert world.counts().adds_up
    assert world.counts().duplicate == 1


def test_accept_keeps_an_image_that_comes_again_after_it_was_purged(world: World) -> None:
    dataset = make_radiograph(**RADIOGRAPH)
    world.receive(dataset)
    (before,) = world.rows(Instance)
    with session_scope(world.engine) as session:
        judge(session, before.id)
        records.freeze(session, before.study_id)
        assert facts.mark_purged(session, before.study_id, NOON)
    world.store.delete(before.path)
    assert world.receive(dataset) is Outcome.DUPLICATE
    (instance,), (study,) = world.rows(Instance), world.rows(Study)
    assert world.files() == [instance.path]
    assert (instance.gone_at, study.purged_at, instance.state) == (None, None, InstanceState.ANALYSED)
    assert study.last_received_at > before.received_at, "its retention time begins anew"
    assert world.counts().adds_up


def recoded(dataset: FileDataset, syntax: str) -> FileDataset:
    dataset.compress(syntax, generate_instance_uid=False)
    return dataset


def test_accept_knows_an_image_again_in_another_transfer_syntax(world: World) -> None:
    world.intake = Intake(world.engine, world.store, LIMITS, compare=in_this_process)
    assert world.receive(make_radiograph(**RADIOGRAPH)) is Outcome.NEW
    assert world.receive(recoded(make_radiograph(**RADIOGRAPH), RLELossless)) is Outcome.DUPLICATE
    assert len(world.files()) == 1


def in_this_process(first: Path, second: Path) -> bool:
    return hold_same_pixels(str(first), str(second))


def test_accept_compares_pixels_outside_the_transaction(small_world: World) -> None:
    """A comparison may take seconds; every other association would wait for the database meanwhile."""

    def compare(first: Path, second: Path) -> bool:
        with session_scope(small_world.engine) as session:  # waits, and fails, if the writer's lock is held
            session.execute(text("UPDATE installation SET created_at = created_at"))
        return in_this_process(first, second)

    small_world.intake = Intake(small_world.engine, small_world.store, LIMITS, compare=compare)
    small_world.receive(make_radiograph(**RADIOGRAPH))
    assert small_world.receive(recoded(make_radiograph(**RADIOGRAPH), RLELossless)) is Outcome.DUPLICATE


def test_accept_compares_in_a_killable_process_by_default(small_world: World) -> None:
    small_world.intake = Intake(small_world.engine, small_world.store, LIMITS)
    small_world.receive(make_radiograph(**RADIOGRAPH))
    assert small_world.receive(recoded(make_radiograph(**RADIOGRAPH), JPEGLSLossless)) is Outcome.DUPLICATE


def test_a_comparison_that_cannot_be_made_counts_as_different(tmp_path: Path) -> None:
    path = save(make_radiograph(**RADIOGRAPH, PixelData=b"too short"), tmp_path / "a.dcm")
    assert not have_same_pixels(path, path)


def test_accept_quarantines_other_content_under_a_known_uid_and_keeps_both(world: World) -> None:
    first = make_radiograph(seed=1, sop_instance_uid="1.2.3", study_instance_uid="1.2", **RADIOGRAPH)
    second = make_radiograph(seed=2, sop_instance_uid="1.2.3", study_instance_uid="1.2", **RADIOGRAPH)
    assert [world.receive(first), world.receive(second)] == [Outcome.NEW, Outcome.QUARANTINED]
    assert len(world.files()) == 2
    receipt = next(r for r in world.rows(Receipt) if r.outcome is Outcome.QUARANTINED)
    assert receipt.path in world.files()
    assert len(world.rows(Job)) == 1
    assert world.counts().adds_up


def test_accept_quarantines_bytes_that_are_no_dicom(world: World) -> None:
    with pytest.raises(CannotUnderstand):
        world.receive_bytes(b"GIF89a" * 10, sop_class_uid="1.2", sop_instance_uid="1.2.3", transfer_syntax_uid="1.2.4")
    (receipt,) = world.rows(Receipt)
    assert receipt.outcome is Outcome.QUARANTINED
    assert world.files() == [receipt.path]
    assert receipt.path.startswith("quarantine/")
    assert world.store.absolute(receipt.path).read_bytes().endswith(b"GIF89a")
    assert world.counts().adds_up


@pytest.mark.parametrize("said", [{"sop_instance_uid": "9.9.9"}, {"sop_class_uid": "1.2.840.10008.5.1.4.1.1.7"}])
def test_accept_refuses_a_data_set_that_is_not_what_the_command_said(small_world: World, said: dict[str, str]) -> None:
    with pytest.raises(DataSetMismatch):
        small_world.receive(make_radiograph(**RADIOGRAPH), **said)
    assert small_world.files() == []
    assert small_world.rows(Receipt) == []
    (event,) = small_world.rows(AuditEvent)
    assert (event.action, event.actor) == ("instance_refused", "ae:CR_ROOM_1")
    assert event.details == {"status": "A900", "reason": "SOP Class or Instance UID differs from the command's"}


def test_accept_puts_off_a_refusal_that_cannot_be_audited(small_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise DatabaseAway("gone")

    monkeypatch.setattr(facts, "record_refusal", away)
    with pytest.raises(OutOfResources):
        small_world.receive(make_radiograph(**RADIOGRAPH), sop_instance_uid="9.9.9")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"ImageType": ["DERIVED", "SECONDARY", "OTHER"]}, "derived"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2"}, "several_frames"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.34"}, "not_an_image"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.59"}, "not_an_image"),
    ],
)
def test_accept_stores_what_is_never_judged_with_its_reason(
    small_world: World, change: dict[str, Any], code: str
) -> None:
    dataset = make_radiograph(**RADIOGRAPH, **change)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    assert small_world.receive(dataset) is Outcome.NEW
    assert [warning.code for warning in small_world.rows(Warning)] == [code]
    assert small_world.rows(Job) == []
    assert small_world.rows(Instance)[0].state is InstanceState.NOT_ANALYSED
    assert small_world.rows(Study)[0].unreported_since is None


def test_accept_judges_derived_primary_images(small_world: World) -> None:
    """Digital radiography sends its processed image as DERIVED\\PRIMARY."""
    small_world.receive(make_radiograph(**RADIOGRAPH, ImageType=["DERIVED", "PRIMARY"]))
    assert len(small_world.rows(Job)) == 1


def test_accept_recognises_what_this_node_made_by_its_device_uid(sqlite_engine: Engine, tmp_path: Path) -> None:
    world = World(sqlite_engine, tmp_path, own_device_uids={"1.2.840.99"})
    item = Dataset()
    item.DeviceUID = "1.2.840.99"
    world.receive(make_radiograph(**RADIOGRAPH, ContributingEquipmentSequence=[item]))
    assert [warning.code for warning in world.rows(Warning)] == ["own_object"]
    assert world.rows(Job) == []


def test_accept_recognises_what_this_node_made_by_its_uid(small_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "is_own_object", lambda session, uid: uid == "2.25.3")
    small_world.receive(make_radiograph(**RADIOGRAPH, sop_instance_uid="2.25.3"))
    assert [warning.code for warning in small_world.rows(Warning)] == ["own_object"]


def test_require_room_refuses_below_the_watermark_and_takes_again_above(
    small_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_world.intake = Intake(small_world.engine, small_world.store, Limits(min_free_bytes=1000, max_waiting=9))
    monkeypatch.setattr(small_world.store, "free_bytes", lambda: 999)
    with pytest.raises(OutOfResources, match="disk"):
        small_world.intake.require_room()
    monkeypatch.setattr(small_world.store, "free_bytes", lambda: 1000)
    small_world.intake.require_room()


def test_require_room_refuses_while_the_queue_is_too_long(small_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "QUEUE_LOOK_S", -1)
    small_world.intake = Intake(small_world.engine, small_world.store, Limits(min_free_bytes=0, max_waiting=1))
    for seed in (1, 2):
        small_world.intake.require_room()
        small_world.receive(make_radiograph(seed=seed, **RADIOGRAPH))
    with pytest.raises(OutOfResources, match="wait to be judged"):
        small_world.intake.require_room()
    with session_scope(small_world.engine) as session:
        (first, *_) = session.scalars(select(Job))
        session.delete(first)
    small_world.intake.require_room()


def test_require_room_asks_for_the_queue_once_a_second_only(
    small_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(intake_module.queue, "waiting", lambda *_: asked.append(1) or 0)
    for _ in range(20):
        small_world.intake.require_room()
    assert len(asked) == 1


def test_accept_asks_to_try_again_when_the_database_is_away_and_leaves_no_row_without_bytes(
    small_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit may have arrived though its answer did not: the file must stay."""

    def lost(*_: Any, **__: Any) -> None:
        raise DatabaseAway("connection lost")

    with monkeypatch.context() as patch:
        patch.setattr(facts, "add_instance", lost)
        with pytest.raises(OutOfResources, match="database"):
            small_world.receive(make_radiograph(**RADIOGRAPH))
    assert len(small_world.files()) == 1
    assert small_world.receive(make_radiograph(**RADIOGRAPH)) is Outcome.NEW


def full_disk(self: Part, *_: Any) -> None:
    self.discard()
    raise OSError(errno.ENOSPC, "No space left on device")


def test_accept_asks_to_try_again_when_the_disk_is_full(small_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Part, "keep", full_disk)
    with pytest.raises(OutOfResources, match="disk"):
        small_world.receive(make_radiograph(**RADIOGRAPH))
    assert small_world.rows(Instance) == []
    assert small_world.files() == []


def test_two_patients_under_one_study_hold_it(small_world: World) -> None:
    for seed, patient in ((1, "P1"), (2, "P2")):
        small_world.receive(make_radiograph(seed=seed, patient_id=patient, study_instance_uid="1.2", **RADIOGRAPH))
    assert small_world.rows(Study)[0].hold == "identity_conflict"


def test_two_patients_whose_ids_differ_behind_the_64th_character_stay_two(small_world: World) -> None:
    for seed, patient in ((1, "P" * 70 + "1"), (2, "P" * 70 + "2")):
        dataset = make_radiograph(seed=seed, study_instance_uid="1.2", **RADIOGRAPH)
        dataset["PatientID"]._value = patient
        small_world.receive(dataset)
    assert small_world.rows(Study)[0].hold == "identity_conflict"


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_hold_same_pixels_compares_what_is_drawn(tmp_path: Path, photometric: str) -> None:
    one = str(save(make_radiograph(**RADIOGRAPH), tmp_path / "one.dcm"))
    drawn_otherwise = make_radiograph(**RADIOGRAPH, PhotometricInterpretation=photometric)
    other = str(save(drawn_otherwise, tmp_path / "other.dcm"))
    assert hold_same_pixels(one, other) is (photometric == "MONOCHROME2")


def test_accept_names_the_association_and_the_urgency(world: World) -> None:
    association_id = uuid4()
    with session_scope(world.engine) as session:
        facts.open_association(
            session,
            association_id=association_id,
            listener="l",
            calling_ae_title="A",
            called_ae_title="B",
            peer_address="127.0.0.1",
            now=NOON,
        )
    dataset = make_radiograph(**RADIOGRAPH)
    reception = Reception(
        sop_class_uid=str(dataset.SOPClassUID),
        sop_instance_uid=str(dataset.SOPInstanceUID),
        transfer_syntax_uid=str(dataset.file_meta.TransferSyntaxUID),
        calling_ae_title="CR_ROOM_1",
        association_id=association_id,
        priority=1,
    )
    content = as_bytes(dataset)
    world.intake.accept(world.part(content[data_set_offset(content) :], reception), reception)
    assert world.rows(Instance)[0].association_id == association_id
    assert world.rows(Job)[0].priority == 1
