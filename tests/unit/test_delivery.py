"""What becomes of a report on its way to a PACS: where it goes, in which class and order, and after what failures."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from pydicom.uid import Comprehensive3DSRStorage, ComprehensiveSRStorage, EnhancedSRStorage
from sqlalchemy import Engine, select, update

from db import audit, facts, queue
from db.engine import Session, db_now, read_scope, session_scope
from db.facts import BuiltObject, StudyFacts
from db.tables import (
    PRIOR,
    Answer,
    DeliveredObject,
    Delivery,
    DeliveryState,
    Hold,
    Job,
    JobKind,
    JobState,
    ObjectKind,
)
from pacs_node.conformance import GRAYSCALE_PRESENTATION_STATE, SECONDARY_CAPTURE
from pacs_node.delivery import destinations
from pacs_node.delivery.courier import Courier, delivery_policy
from pacs_node.dimse.storage import StoreResult
from pacs_node.errors import DeliveryDelayed, DeliveryRejected
from pacs_node.report.codes import SR_SOP_CLASSES
from pacs_node.report.plan import delivery_plan
from pacs_node.settings import DestinationSettings, Settings
from pacs_node.store import ObjectStore
from tests import records
from tests.reports import make_image, make_predecessor, make_report

WAITING, SENT, HELD, FAILED = DeliveryState.WAITING, DeliveryState.SENT, DeliveryState.HELD, DeliveryState.FAILED
TODAY = datetime(2026, 3, 31, 12, tzinfo=UTC)


def make_settings(folder: Path, *names: str, **sections: Any) -> Settings:
    destinations = [{"name": name, "ae_title": name.upper(), "host": "127.0.0.1", "port": 104} for name in names]
    values: dict[str, Any] = {
        "node": {"data_dir": folder},
        "delivery": {"retry_base_s": 0.001, "retry_cap_s": 0.001, "max_attempts": 4},
        "destinations": destinations,
    }
    return Settings(**values | sections)


# Where a report goes


def make_study(hold: Hold | None = None, age_days: int | None = 3, sender: str = "CR_ROOM_1") -> StudyFacts:
    return StudyFacts(
        study_id=UUID(int=1),
        study_instance_uid="1.2",
        hold=hold,
        revision=1,
        calling_ae_title=sender,
        study_date=None if age_days is None else (TODAY - timedelta(days=age_days)).date(),
        priority=0,
        first_received_at=TODAY,
        last_received_at=TODAY,
        unreported_since=None,
        purged_at=None,
        images=(),
        current_report=None,
    )


PRESENT, LATERAL, HAND = make_image(p=0.9), make_image(codes=["not_frontal"]), make_image(codes=["not_chest"])
BOTH = [("picky", WAITING, ""), ("main", WAITING, "")]


@pytest.mark.parametrize(
    ("study", "report", "plan"),
    [
        (make_study(), make_report([PRESENT]), BOTH),
        (make_study(), make_report([LATERAL]), BOTH[1:]),
        (make_study(), make_report([HAND]), []),
        (make_study(), make_report([LATERAL], predecessor=make_predecessor()), BOTH),
        (
            make_study(),
            make_report([LATERAL], predecessor=make_predecessor(answer=Answer.NOT_ANALYSED, p=None)),
            BOTH[1:],
        ),
        (
            make_study(Hold.UNIDENTIFIED),
            make_report([PRESENT]),
            [("picky", HELD, "unidentified"), ("main", HELD, "unidentified")],
        ),
        (make_study(age_days=30), make_report([PRESENT]), BOTH),
        (make_study(age_days=31), make_report([PRESENT]), [("picky", HELD, PRIOR), ("main", HELD, PRIOR)]),
        (make_study(age_days=31, sender="ARCHIVE"), make_report([PRESENT]), BOTH),
        (make_study(age_days=None), make_report([PRESENT]), BOTH),
        (make_study(age_days=-1), make_report([PRESENT]), BOTH),
        (make_study(Hold.IDENTITY_CONFLICT, 31), make_report([LATERAL]), [("main", HELD, PRIOR)]),
    ],
)
def test_report_goes_where_settings_and_facts_allow(
    study: StudyFacts, report: facts.ReportFacts, plan: list[Any], tmp_path: Path
) -> None:
    picky = {"name": "picky", "ae_title": "P", "host": "h", "port": 104, "send_not_analysed": False}
    settings = make_settings(
        tmp_path,
        destinations=[picky, picky | {"name": "main", "send_not_analysed": True}],
        dicom={"peers": [{"ae_title": "ARCHIVE", "addresses": ["127.0.0.1"], "send_priors": True}]},
    )
    assert list(delivery_plan(study, report, settings)) == plan


def test_study_that_grew_old_here_is_no_prior_and_can_be_corrected(tmp_path: Path) -> None:
    received = TODAY - timedelta(days=58)
    study = replace(make_study(age_days=60), first_received_at=received)
    report = make_report([LATERAL], predecessor=make_predecessor())
    assert [state for _, state, _ in delivery_plan(study, report, make_settings(tmp_path, "main"))] == [WAITING]


# On its way


@dataclass
class Peer:
    """A PACS: what it accepts, what it says, and what it has."""

    classes: tuple[str, ...] = SR_SOP_CLASSES
    answer: Callable[[Path], None] = lambda path: None
    has: list[bytes] = field(default_factory=list)
    associations: int = 0
    is_away: bool = False
    is_open: bool = True

    def connect(self, destination: DestinationSettings) -> Any:
        self.associations += 1
        if self.is_away:
            raise DeliveryDelayed(destination.name, "no association: it does not answer")
        self.is_open = True
        return self

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def accepted_class(self, wanted: Any) -> str | None:
        return next((uid for uid in wanted if uid in self.classes), None)

    def send(self, path: Path, *, is_urgent: bool = False) -> StoreResult:
        self.answer(path)
        self.has.append(path.read_bytes())
        return StoreResult(sop_class_uid="", sop_instance_uid="", status=0)


class Hospital:
    """A node's database and store, and the PACS that it reports to."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine, self.folder = engine, folder
        self.store = ObjectStore(folder / "store")
        self.stop = threading.Event()
        self.peers = {"main": Peer()}
        self.settings = make_settings(folder, "main")

    def courier(self) -> Courier:
        connect = lambda destination: self.peers[destination.name].connect(destination)  # noqa: E731
        return Courier(self.settings, self.engine, self.stop, connect=connect)

    def report(self, study: str = "1.2.1", *, number: int = 1, is_built: bool = True, **freeze: Any) -> UUID:
        """Freeze and build the study's next report."""
        now = datetime.now(UTC)
        with session_scope(self.engine) as session:
            accepted = records.add_image(session, number, study=study, now=now)
            report_id = records.freeze(session, accepted.study_id, now=now, **freeze)
            assert report_id is not None
        if is_built:
            self.build(report_id)
        return report_id

    def build(
        self, report_id: UUID, state: DeliveryState = WAITING, pictures: dict[ObjectKind, str] | None = None
    ) -> None:
        with session_scope(self.engine) as session:
            report = facts.report_facts(session, report_id)
            objects = [self._built(report, uid) for uid in SR_SOP_CLASSES]
            objects += [replace(self._built(report, uid), kind=kind) for kind, uid in (pictures or {}).items()]
            plan = [(destination.name, state, "") for destination in self.settings.destinations]
            facts.record_report_built(session, report_id, objects, plan, now=datetime.now(UTC))

    def _built(self, report: facts.ReportFacts, sop_class_uid: str) -> BuiltObject:
        uid = f"{report.report_id.int}.{sop_class_uid.rpartition('.')[2]}"[-60:].lstrip("0.")
        file = self.store.place([f"{uid} revision {report.revision}".encode()])
        return BuiltObject(sop_instance_uid=uid, sop_class_uid=sop_class_uid, path=file.path, digest=file.digest)

    def deliveries(self) -> list[Any]:
        with read_scope(self.engine) as session:
            return list(session.execute(select(Delivery).order_by(Delivery.created_at)).scalars())

    def states(self) -> list[DeliveryState]:
        return [delivery.state for delivery in self.deliveries()]

    def delivered(self) -> dict[str, tuple[bool, str]]:
        """Return, by kind, whether each object was sent, and why it was refused."""
        with read_scope(self.engine) as session:
            rows = session.execute(select(DeliveredObject)).scalars()
            return {row.kind.value: (row.sent_at is not None, row.refusal) for row in rows}

    def jobs(self) -> list[Any]:
        with read_scope(self.engine) as session:
            query = select(Job).where(Job.kind == JobKind.DELIVER).order_by(Job.created_at)
            return list(session.execute(query).scalars())

    def expire_leases(self) -> None:
        with session_scope(self.engine) as session:
            past = datetime.now(UTC) - timedelta(seconds=1)
            session.execute(update(Job).where(Job.state == JobState.RUNNING).values(lease_until=past))

    def run(self, courier: Courier | None = None, turns: int = 20) -> None:
        """Take turns until nothing is due; retries are due at once."""
        courier = courier or self.courier()
        for _ in range(turns):
            with session_scope(self.engine) as session:
                session.execute(update(Job).where(Job.state == JobState.READY).values(due_at=datetime.now(UTC)))
            if not courier.turn():
                break

    def actions(self) -> list[str]:
        with read_scope(self.engine) as session:
            return [event.action for event in audit.tail(session, 1000)]


@pytest.fixture
def hospital(sqlite_engine: Engine, tmp_path: Path) -> Iterator[Hospital]:
    return Hospital(sqlite_engine, tmp_path)


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        (SR_SOP_CLASSES, Comprehensive3DSRStorage),
        ((EnhancedSRStorage, ComprehensiveSRStorage), ComprehensiveSRStorage),
        ((EnhancedSRStorage,), EnhancedSRStorage),
    ],
)
def test_report_is_sent_in_the_best_class_that_the_peer_accepts(
    hospital: Hospital, accepted: tuple[str, ...], chosen: str
) -> None:
    hospital.peers["main"].classes = accepted
    hospital.report()
    hospital.run()
    (delivery,), (job,) = hospital.deliveries(), hospital.jobs()
    assert (delivery.state, delivery.sop_class_uid, delivery.reason) == (SENT, chosen, "")
    assert delivery.sent_at is not None
    assert delivery.sop_instance_uid.endswith(chosen.rpartition(".")[2])
    assert job.state is JobState.DONE
    (received,) = hospital.peers["main"].has
    assert received.startswith(delivery.sop_instance_uid.encode())
    assert "delivery_sent" in hospital.actions()


def test_report_fails_when_the_peer_accepts_no_class(hospital: Hospital) -> None:
    hospital.peers["main"].classes = ()
    hospital.report()
    hospital.run()
    (delivery,) = hospital.deliveries()
    assert (delivery.state, delivery.reason) == (FAILED, "main: the peer does not accept any of the SR classes"[6:])
    assert hospital.jobs()[0].state is JobState.FAILED


def test_later_revision_keeps_the_class_of_the_report_it_replaces(hospital: Hospital) -> None:
    hospital.peers["main"].classes = (EnhancedSRStorage,)
    hospital.report()
    hospital.run()
    hospital.peers["main"].classes = SR_SOP_CLASSES
    hospital.report(number=2)
    hospital.run()
    assert [delivery.sop_class_uid for delivery in hospital.deliveries()] == [EnhancedSRStorage] * 2
    hospital.peers["main"].classes = (Comprehensive3DSRStorage,)
    hospital.report(number=3)
    hospital.run()
    assert hospital.deliveries()[2].reason == "the peer does not accept the SR class that it was sent before"


class PowerCut(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("wanted", [["enhanced"], ["enhanced", "comprehensive_3d"]])
def test_profile_says_which_sr_class_is_preferred(hospital: Hospital, wanted: list[str]) -> None:
    profile = {"name": "main", "ae_title": "MAIN", "host": "h", "port": 104, "sr_classes": wanted}
    hospital.settings = make_settings(hospital.folder, destinations=[profile])
    hospital.report()
    hospital.run()
    assert hospital.deliveries()[0].sop_class_uid == EnhancedSRStorage


# Pictures beside the report

PICTURES = {ObjectKind.HEATMAP: SECONDARY_CAPTURE, ObjectKind.GSPS: GRAYSCALE_PRESENTATION_STATE}
EVERYTHING = (*SR_SOP_CLASSES, *PICTURES.values())


def with_objects(hospital: Hospital, *objects: str, **more: Any) -> None:
    profile = {"name": "main", "ae_title": "MAIN", "host": "h", "port": 104, "objects": objects} | more
    hospital.settings = make_settings(hospital.folder, destinations=[profile])


def test_pictures_follow_the_report_as_the_profile_names_them(hospital: Hospital) -> None:
    with_objects(hospital, "gsps", "sr")
    hospital.peers["main"].classes = EVERYTHING
    hospital.build(hospital.report(is_built=False), pictures=PICTURES)
    hospital.run()
    assert hospital.states() == [SENT]
    assert hospital.delivered() == {"sr": (True, ""), "gsps": (True, "")}
    report, picture = hospital.peers["main"].has
    assert b".34 revision" in report
    assert b".1 revision" in picture


def test_picture_of_a_class_that_the_peer_does_not_take_is_a_note(hospital: Hospital) -> None:
    hospital.build(hospital.report(is_built=False), pictures=PICTURES)
    hospital.run()
    assert hospital.states() == [SENT]
    assert hospital.delivered() == {"sr": (True, ""), "heatmap": (False, "the peer does not accept its SOP Class")}
    assert "object_refused" in hospital.actions()


def test_picture_that_the_peer_refuses_is_a_note_and_is_not_sent_again(hospital: Hospital) -> None:
    peer = hospital.peers["main"]
    peer.classes = EVERYTHING

    def refuse_pictures(path: Path) -> None:
        if b".7 revision" in path.read_bytes():
            raise DeliveryRejected("main", "C-STORE answered C000")

    peer.answer = refuse_pictures
    hospital.build(hospital.report(is_built=False), pictures=PICTURES)
    hospital.run()
    assert (hospital.states(), len(peer.has)) == ([SENT], 1)
    assert hospital.delivered()["heatmap"] == (False, "C-STORE answered C000")


@pytest.mark.parametrize("fault", [DeliveryDelayed("main", "C-STORE answered A700"), PowerCut])
def test_picture_that_is_tried_again_does_not_send_the_report_twice(hospital: Hospital, fault: Any) -> None:
    peer = hospital.peers["main"]
    peer.classes = EVERYTHING

    def fail_once(path: Path) -> None:
        if b".7 revision" in path.read_bytes():
            peer.answer = lambda path: None
            raise fault

    peer.answer = fail_once
    hospital.build(hospital.report(is_built=False), pictures=PICTURES)
    if fault is PowerCut:
        with pytest.raises(PowerCut):
            hospital.run(turns=1)
        hospital.expire_leases()
    hospital.run()
    assert hospital.states() == [SENT]
    assert [b".7 revision" in content for content in peer.has] == [False, True]


# What is withdrawn


def withdraw(hospital: Hospital, report_id: UUID) -> int:
    with session_scope(hospital.engine) as session:
        return facts.withdraw_report(session, report_id, code="113001", actor="admin", now=datetime.now(UTC))


def test_report_that_was_withdrawn_before_it_was_sent_never_leaves(hospital: Hospital) -> None:
    report_id = hospital.report()
    assert withdraw(hospital, report_id) == 0
    hospital.run()
    assert (hospital.states(), hospital.peers["main"].has) == ([DeliveryState.WITHDRAWN], [])
    assert hospital.jobs()[0].state is JobState.DONE
    hospital.report(number=2)
    hospital.run()
    assert hospital.states() == [DeliveryState.WITHDRAWN, SENT]


def test_destination_without_rejection_notes_keeps_a_withdrawn_report_and_that_is_said(hospital: Hospital) -> None:
    report_id = hospital.report()
    hospital.run()
    assert withdraw(hospital, report_id) == 1
    assert withdraw(hospital, report_id) == 0
    hospital.run()
    (delivery,) = hospital.deliveries()
    assert delivery.state is DeliveryState.WITHDRAWN
    assert "takes no rejection notes" in delivery.reason
    assert len(hospital.peers["main"].has) == 1


def test_report_that_is_withdrawn_while_it_is_sent_is_not_left_as_sent(hospital: Hospital) -> None:
    report_id = hospital.report()
    hospital.peers["main"].answer = lambda path: withdraw(hospital, report_id) and None
    hospital.run(turns=1)
    assert hospital.states() == [WAITING]
    with session_scope(hospital.engine) as session:
        facts.requeue_waiting_deliveries(session, now=datetime.now(UTC))
    hospital.run()
    assert hospital.states() == [DeliveryState.WITHDRAWN]


def test_rejection_note_leaves_though_the_study_is_held(hospital: Hospital) -> None:
    """It takes back what is seen there, and says nothing new of the patient."""
    with_objects(hospital, "sr", send_rejection_notes=True)
    report_id = hospital.report()
    hospital.run()
    withdraw(hospital, report_id)
    with session_scope(hospital.engine) as session:
        study_id = facts.report_facts(session, report_id).study_id
        facts.hold_study(session, study_id, Hold.IDENTITY_CONFLICT, actor="intake", now=datetime.now(UTC))
    assert hospital.states() == [WAITING]


def test_withdrawn_report_is_not_sent_anew(hospital: Hospital) -> None:
    """Left where it is, for something replaces it there; but never sent once more."""
    report_id = hospital.report()
    hospital.run()
    (delivery,) = hospital.deliveries()
    with session_scope(hospital.engine) as session:
        facts.withdraw_report(session, report_id, code="113001", only=(), actor="admin", now=datetime.now(UTC))
        with pytest.raises(facts.CannotBeRepeated, match="withdrawn"):
            facts.resend_delivery(session, delivery.id, actor="admin", now=datetime.now(UTC))
    assert hospital.states() == [SENT]


def test_crash_between_sending_and_recording_sends_the_same_object_again(hospital: Hospital) -> None:
    peer = hospital.peers["main"]
    peer.classes = (EnhancedSRStorage,)
    hospital.report()

    def store_and_die(path: Path) -> None:
        peer.has.append(path.read_bytes())
        raise PowerCut

    peer.answer = store_and_die
    with pytest.raises(PowerCut):
        hospital.run()
    assert hospital.states() == [WAITING]
    peer.answer, peer.classes = lambda path: None, SR_SOP_CLASSES
    hospital.expire_leases()
    hospital.run()
    assert hospital.states() == [SENT]
    assert len(peer.has) == 2
    assert len(set(peer.has)) == 1


def test_revisions_arrive_in_order_whatever_is_claimed_first(hospital: Hospital) -> None:
    first, second = hospital.report(is_built=False), hospital.report(number=2, is_built=False)
    other = hospital.report("1.2.2", number=3, is_built=False)
    for report_id in (second, other, first):
        hospital.build(report_id)
    hospital.run()
    assert hospital.states() == [SENT] * 3
    sent = [bytes_ for bytes_ in hospital.peers["main"].has if str(other.int)[-20:].encode() not in bytes_]
    assert [text[-1:] for text in sent] == [b"1", b"2"]


def test_revision_waits_for_one_that_is_not_built_yet(hospital: Hospital) -> None:
    first, second = hospital.report(is_built=False), hospital.report(number=2)
    hospital.run(turns=2)
    assert hospital.peers["main"].has == []
    assert hospital.deliveries()[0].reason == "revision 1 is not built yet"
    hospital.build(first)
    hospital.run()
    assert hospital.states() == [SENT, SENT]
    assert second != first
    assert [text[-1:] for text in hospital.peers["main"].has] == [b"1", b"2"]


def test_delayed_delivery_is_tried_again_until_its_attempts_are_used_up(hospital: Hospital) -> None:
    def full(path: Path) -> None:
        raise DeliveryDelayed("main", "C-STORE answered A700")

    hospital.peers["main"].answer = full
    hospital.report()
    hospital.run(turns=2)
    (delivery,), (job,) = hospital.deliveries(), hospital.jobs()
    assert (delivery.state, delivery.reason, job.attempts) == (WAITING, "C-STORE answered A700", 2)
    hospital.run()
    (delivery,), (job,) = hospital.deliveries(), hospital.jobs()
    assert (delivery.state, job.state, job.attempts) == (FAILED, JobState.FAILED, 4)
    assert hospital.actions().count("delivery_delayed") == 3
    assert "delivery_failed" in hospital.actions()


def test_rejected_delivery_fails_at_once_and_can_be_run_again(hospital: Hospital) -> None:
    def refuse(path: Path) -> None:
        raise DeliveryRejected("main", "C-STORE answered C000")

    hospital.peers["main"].answer = refuse
    hospital.report()
    hospital.run()
    (delivery,), (job,) = hospital.deliveries(), hospital.jobs()
    assert (delivery.state, delivery.reason, job.attempts) == (FAILED, "C-STORE answered C000", 1)
    hospital.peers["main"].answer = lambda path: None
    with session_scope(hospital.engine) as session:
        facts.retry_job(session, job.id, actor="admin", now=datetime.now(UTC))
    hospital.run()
    assert hospital.states() == [SENT]


def test_destination_that_was_removed_fails_with_its_reason(hospital: Hospital) -> None:
    hospital.report()
    hospital.settings = make_settings(hospital.folder, "other")
    hospital.run()
    (delivery,) = hospital.deliveries()
    assert (delivery.state, delivery.reason) == (FAILED, "the configuration names no such destination any more")


def test_report_whose_file_is_gone_fails_with_its_reason(hospital: Hospital) -> None:
    hospital.report()
    for key in list(hospital.store.iterate(older_than_s=-1)):
        hospital.store.delete(key)
    hospital.run()
    assert hospital.deliveries()[0].reason == "the stored report is gone"


def test_study_held_meanwhile_stays_in_the_house_until_it_is_released(hospital: Hospital) -> None:
    report_id = hospital.report()
    with read_scope(hospital.engine) as session:
        study_id = facts.report_facts(session, report_id).study_id

    def hold_then_fail(path: Path) -> None:
        with session_scope(hospital.engine) as session:
            records.add_image(session, 9, patient_id="SOMEBODY ELSE", now=datetime.now(UTC))
        raise DeliveryDelayed("main", "C-STORE answered A700")

    hospital.peers["main"].answer = hold_then_fail
    hospital.run()
    (delivery,) = hospital.deliveries()
    assert (delivery.state, delivery.reason) == (HELD, "identity_conflict")
    assert hospital.jobs()[0].state is JobState.DONE
    hospital.peers["main"].answer = lambda path: None
    with session_scope(hospital.engine) as session:
        facts.release_study(session, study_id, actor="admin", now=datetime.now(UTC))
    hospital.run()
    assert hospital.states() == [SENT]


def retry(hospital: Hospital, session: Session) -> None:
    (job,) = hospital.jobs()
    facts.retry_job(session, job.id, actor="admin", now=datetime.now(UTC))


def lose_at_the_archive(hospital: Hospital, session: Session) -> None:
    now = datetime.now(UTC)
    session.execute(update(Delivery).values(commit_due_at=now))
    asked = facts.open_commitment(session, "main", transaction_uid="1.2.9", limit=9, again_at=now, now=now)
    assert asked is not None
    failed = {sop_instance_uid: 0x0112 for _, sop_instance_uid in asked.objects}
    facts.record_commitment(session, "1.2.9", kept=(), failed=failed, max_failures=5, again_in_s=0.0, now=now)


@pytest.mark.parametrize(("before", "queue_again"), [(FAILED, retry), (SENT, lose_at_the_archive)])
def test_report_of_a_held_study_that_is_queued_again_stays_in_the_house(
    before: DeliveryState, queue_again: Callable[..., None], hospital: Hospital
) -> None:
    peer = hospital.peers["main"]
    peer.is_away = before is FAILED
    report_id = hospital.report()
    hospital.run()
    assert hospital.states() == [before]
    peer.is_away = False
    received = len(peer.has)
    with session_scope(hospital.engine) as session:
        study_id = facts.report_facts(session, report_id).study_id
        facts.hold_study(session, study_id, Hold.IDENTITY_CONFLICT, actor="intake", now=datetime.now(UTC))
        queue_again(hospital, session)
    hospital.run()
    (delivery,) = hospital.deliveries()
    assert (delivery.state, delivery.reason, len(peer.has)) == (HELD, "identity_conflict", received)
    with session_scope(hospital.engine) as session:
        assert facts.release_study(session, study_id, actor="admin", now=datetime.now(UTC)) == 1
    hospital.run()
    assert (hospital.states(), len(peer.has)) == ([SENT], received + 1)


def test_release_of_a_study_waits_for_the_courier_that_sees_it_held(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = Hospital(engine, tmp_path)
    report_id = hospital.report()
    with session_scope(engine) as session:
        study_id = facts.report_facts(session, report_id).study_id
        facts.hold_study(session, study_id, Hold.UNIDENTIFIED, actor="intake", now=datetime.now(UTC))
        session.execute(update(Delivery).values(state=WAITING))

    def release() -> None:
        with session_scope(engine) as session:
            facts.release_study(session, study_id, actor="admin", now=datetime.now(UTC))

    def look_on(*looked_at: Any) -> tuple[facts.DeliveryFacts, ...]:
        if not releasing.ident:
            releasing.start()
            releasing.join(0.5)
        return earlier_deliveries(*looked_at)

    releasing, earlier_deliveries = threading.Thread(target=release), facts.earlier_deliveries
    monkeypatch.setattr(facts, "earlier_deliveries", look_on)
    hospital.run()
    releasing.join()
    hospital.run()
    assert hospital.states() == [SENT]


def test_report_that_follows_a_held_one_is_held_and_released_with_it(hospital: Hospital) -> None:
    first, second = hospital.report(is_built=False), hospital.report(number=2, is_built=False)
    hospital.build(first, HELD)
    hospital.build(second)
    hospital.run()
    assert hospital.states() == [HELD, HELD]
    with session_scope(hospital.engine) as session:
        study_id = facts.report_facts(session, first).study_id
        assert facts.release_study(session, study_id, actor="admin", now=datetime.now(UTC)) == 2
    hospital.run()
    assert [text[-1:] for text in hospital.peers["main"].has] == [b"1", b"2"]


def test_failed_report_gets_one_more_chance_from_its_successor(hospital: Hospital) -> None:
    hospital.peers["main"].is_away = True
    hospital.report()
    hospital.run()
    assert hospital.states() == [FAILED]
    hospital.peers["main"].is_away = False
    hospital.report(number=2)
    hospital.run()
    assert hospital.states() == [SENT, SENT]
    assert "job_retried" in hospital.actions()


def test_report_whose_delivery_was_closed_is_not_waited_for(hospital: Hospital) -> None:
    hospital.peers["main"].is_away = True
    hospital.report()
    hospital.run()
    with session_scope(hospital.engine) as session:
        (job,) = queue.list_jobs(session, state=JobState.FAILED, limit=2)
        reason = facts.ClosingReason.NOT_WANTED
        facts.close_job(session, job.id, reason=reason, actor="user:ann", now=db_now(session))
    hospital.peers["main"].is_away = False
    hospital.report(number=2)
    hospital.run()
    assert hospital.states() == [FAILED, SENT]
    assert "job_retried" not in hospital.actions()


def test_successor_of_a_report_that_is_refused_again_fails_and_says_what_to_do(hospital: Hospital) -> None:
    def refuse(path: Path) -> None:
        raise DeliveryRejected("main", "C-STORE answered C000")

    hospital.peers["main"].answer = refuse
    hospital.report()
    hospital.report(number=2)
    hospital.run()
    first, second = hospital.deliveries()
    assert (first.state, second.state) == (FAILED, FAILED)
    assert second.reason == "revision 1 was not delivered: retry it first"


def test_destination_that_is_away_costs_one_association_and_does_not_hold_up_the_others(hospital: Hospital) -> None:
    hospital.peers = {"main": Peer(is_away=True), "second": Peer()}
    hospital.settings = make_settings(hospital.folder, "main", "second", delivery={"retry_base_s": 60.0})
    for number in range(1, 4):
        hospital.report(f"1.2.{number}", number=number)
    courier = hospital.courier()
    hospital.run(courier, turns=3)
    assert hospital.peers["main"].associations == 1
    assert len(hospital.peers["second"].has) == 3
    waiting = [delivery for delivery in hospital.deliveries() if delivery.destination == "main"]
    assert {(delivery.state, delivery.reason) for delivery in waiting} == {
        (WAITING, "no association: it does not answer")
    }


def silent_peer() -> Peer:
    """Return one that takes associations and answers no C-STORE."""

    def say_nothing(path: Path) -> None:
        peer.is_open = False
        raise DeliveryDelayed("main", "no answer to C-STORE")

    peer = Peer(answer=say_nothing)
    return peer


def test_destination_that_answers_no_c_store_does_not_hold_up_the_others(hospital: Hospital) -> None:
    hospital.peers = {"main": silent_peer(), "second": Peer()}
    for number in range(1, 41):
        hospital.report(f"1.2.{number}", number=number)
    hospital.settings = make_settings(hospital.folder, "main", "second", delivery={"retry_base_s": 60.0})
    hospital.report("1.2.41", number=41)
    courier = hospital.courier()
    for _ in range(4):
        courier.turn()
    assert hospital.peers["main"].associations == 1
    assert len(hospital.peers["second"].has) == 1


def test_silent_destination_is_left_alone_longer_each_time_until_it_answers(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(destinations, "time", SimpleNamespace(monotonic=lambda: clock.seconds))
    hospital.settings = make_settings(hospital.folder, "main", delivery={"retry_base_s": 2.0})
    hospital.peers["main"] = peer = silent_peer()
    silence, courier = peer.answer, hospital.courier()
    seen: list[int] = []
    for seconds in (0.0, 1.9, 2.1, 6.0, 6.2, 14.1, 16.2):
        clock.seconds = seconds
        peer.answer = (lambda path: None) if seconds == 6.2 else silence
        hospital.report(f"1.2.{seconds}", number=1 + len(seen))
        hospital.run(courier, turns=1)
        seen.append(peer.associations)
    assert seen == [1, 1, 2, 2, 3, 4, 5], "pauses of 2 and 4 seconds, then of 2 again"


def test_what_an_ended_association_leaves_is_given_back_without_counting(hospital: Hospital) -> None:
    peer = hospital.peers["main"]

    def end(path: Path) -> None:
        peer.is_open, peer.answer = False, lambda path: None
        raise DeliveryDelayed("main", "the association was lost")

    peer.answer = end
    for number in range(1, 4):
        hospital.report(f"1.2.{number}", number=number)
    hospital.run(turns=1)
    assert sorted(job.attempts for job in hospital.jobs()) == [0, 0, 1]
    hospital.run()
    assert hospital.states() == [SENT] * 3
    assert peer.associations == 2


def test_courier_that_is_asked_to_stop_gives_back_what_it_has_not_begun(hospital: Hospital) -> None:
    hospital.peers["main"].answer = lambda path: hospital.stop.set()
    for number in range(1, 4):
        hospital.report(f"1.2.{number}", number=number)
    hospital.run(turns=1)
    assert sorted(hospital.states()) == [SENT, WAITING, WAITING]
    assert sorted(job.state for job in hospital.jobs()) == [JobState.DONE, JobState.READY, JobState.READY]
    assert {job.attempts for job in hospital.jobs()} == {0}


def test_bug_with_one_report_does_not_keep_the_others_back(hospital: Hospital) -> None:
    def stumble(path: Path) -> None:
        hospital.peers["main"].answer = lambda path: None
        raise ZeroDivisionError

    hospital.peers["main"].answer = stumble
    for number in range(1, 4):
        hospital.report(f"1.2.{number}", number=number)
    hospital.run(turns=1)
    assert sorted(hospital.states()) == [SENT, SENT, WAITING]


def test_delivery_that_another_process_took_over_is_left_to_it(hospital: Hospital) -> None:
    hospital.report()

    def lose(path: Path) -> None:
        hospital.expire_leases()
        with session_scope(hospital.engine) as session:
            now = datetime.now(UTC)
            policy = delivery_policy(hospital.settings)
            assert queue.claim(session, JobKind.DELIVER, owner="other", limit=1, policy=policy, now=now)

    hospital.peers["main"].answer = lose
    hospital.run(turns=1)
    assert hospital.states() == [WAITING]
    assert hospital.jobs()[0].lease_owner == "other"


def test_predecessor_is_the_newest_report_that_left_the_house(hospital: Hospital) -> None:
    hospital.report(is_built=False, is_sent=False, answer=Answer.NOT_ANALYSED)
    second = hospital.report(number=2)
    hospital.report(number=3, is_built=False, is_sent=False)
    fourth = hospital.report(number=4)
    with read_scope(hospital.engine) as session:
        assert facts.report_facts(session, second).predecessor is None
        predecessor = facts.report_facts(session, fourth).predecessor
    assert predecessor is not None
    assert (predecessor.report_id, predecessor.revision, predecessor.answer) == (second, 2, Answer.ABSENT)
    hospital.run()
    assert hospital.states() == [SENT, SENT]


def test_policy_takes_leases_from_the_queue_and_attempts_from_the_delivery(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, queue={"lease_s": 7, "max_attempts": 1}, delivery={"max_attempts": 30})
    policy = delivery_policy(settings)
    assert (policy.lease_s, policy.max_attempts, policy.retry_cap_s) == (7, 30, 900)
