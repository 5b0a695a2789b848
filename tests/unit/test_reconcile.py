"""Received = analysed + not analysed + failed + waiting + duplicate + quarantined, per day and per sender."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydicom import config
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind
from sqlalchemy import Engine, delete

from db import facts
from db.engine import Session, db_now, session_scope
from db.facts import Conservation
from db.tables import Instance, Job, Receipt
from pacs_node.commands.reconcile import DAYS_MAX, DAYS_SHOWN, days_of, reconcile, reconcile_with, span_of
from pacs_node.dimse.retrieve import find_studies
from pacs_node.errors import ConfigError, DeliveryRejected
from pacs_node.settings import DestinationSettings
from tests.listening import settings_for
from tests.records import DAY, LATERAL, NOON, add_image, judge

MORNING, EVENING = NOON - DAY / 2, NOON + DAY / 2


def open_from(session: Session, calling_ae_title: str) -> UUID:
    association_id = uuid4()
    facts.open_association(
        session, association_id=association_id, listener="l", calling_ae_title=calling_ae_title,
        called_ae_title="PACS_NODE", peer_address="127.0.0.1", now=NOON,
    )  # fmt: skip
    return association_id


def quarantine_from(session: Session, association_id: UUID | None) -> None:
    kept = {"path": "q/1.dcm", "digest": "0" * 64, "size_bytes": 9, "reason": "not DICOM"}
    facts.quarantine(session, **kept, association_id=association_id, now=NOON)


def ends(session: Session) -> dict[str, tuple[Conservation, int]]:
    return {one.calling_ae_title: (one.ends, one.refused) for one in facts.sums_by_sender(session, MORNING, EVENING)}


def conservation(**counts: int) -> Conservation:
    names = ("analysed", "not_analysed", "failed", "waiting", "duplicate", "quarantined")
    values = dict.fromkeys(names, 0) | counts
    return Conservation(received=sum(values.values()), **values)


def test_every_sender_has_its_own_sum(session: Session) -> None:
    room, mobile = open_from(session, "CR_ROOM_1"), open_from(session, "MOBILE")
    for number in (1, 2, 3, 4):
        add_image(session, number, association_id=room)
    add_image(session, 1, association_id=mobile)  # the same again
    judge(session, add_image(session, 5, association_id=mobile).instance_id, 0.9)
    unfit = add_image(session, 6, association_id=mobile).instance_id
    facts.record_judgement(session, unfit, predictions=[], warnings=[LATERAL], voi=None, now=NOON)
    failed = add_image(session, 7, association_id=mobile).instance_id
    facts.record_failure(session, failed, error_text="it broke", now=NOON)
    quarantine_from(session, mobile)
    quarantine_from(session, None)
    assert ends(session) == {
        "": (conservation(quarantined=1), 0),
        "CR_ROOM_1": (conservation(waiting=4), 0),
        "MOBILE": (conservation(analysed=1, not_analysed=1, failed=1, duplicate=1, quarantined=1), 0),
    }


def test_what_was_refused_is_counted_apart(session: Session) -> None:
    association_id = open_from(session, "STRANGER")
    facts.record_refusal(
        session, status="0124", reason="may not store here", calling_ae_title="STRANGER",
        association_id=association_id, now=NOON,
    )  # fmt: skip
    assert ends(session) == {"STRANGER": (conservation(), 1)}


def test_a_day_begins_at_its_first_instant_and_ends_before_the_next(session: Session) -> None:
    for number, at in enumerate((MORNING - timedelta(seconds=1), MORNING, EVENING - timedelta(seconds=1), EVENING)):
        add_image(session, number, now=at)
    assert ends(session) == {"": (conservation(waiting=2), 0)}


@pytest.mark.parametrize("lost", [Instance, Receipt])
def test_a_row_that_is_gone_is_said_plainly(sqlite_engine: Engine, capsys: pytest.CaptureFixture[str], lost) -> None:
    with session_scope(sqlite_engine) as session:
        today = db_now(session).astimezone().date()
        accepted = add_image(session, 1, association_id=open_from(session, "CR_ROOM_1"), now=db_now(session))
        add_image(session, 2, association_id=open_from(session, "CR_ROOM_2"), now=db_now(session))
    assert reconcile(sqlite_engine, day=today, since=None) == 0
    assert "every object is in one end state" in capsys.readouterr().out
    with session_scope(sqlite_engine) as session:
        session.connection().exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        session.execute(delete(Job).where(Job.subject_id == accepted.instance_id))
        session.execute(delete(Receipt).where(Receipt.instance_id == accepted.instance_id))
        if lost is Instance:
            session.execute(delete(Instance).where(Instance.id == accepted.instance_id))
            row = {"outcome": "new", "digest": "0" * 64, "size_bytes": 1, "received_at": db_now(session)}
            session.add(Receipt(**row))
    assert reconcile(sqlite_engine, day=None, since=today) == 1
    said = capsys.readouterr()
    assert "DIFFERS" in said.out
    assert "do not add up" in said.err


def test_nothing_received_is_said_and_no_fault(sqlite_engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    assert reconcile(sqlite_engine, day=date(2020, 2, 29), since=None) == 0
    assert "nothing was received (2020-02-29)" in capsys.readouterr().out


@contextmanager
def archive(find: Any) -> Iterator[int]:
    ae = AE(ae_title="ARCHIVE")
    ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, find)])
    yield server.server_address[1]
    server.shutdown()


def _destination(port: int) -> DestinationSettings:
    return DestinationSettings(name="archive", ae_title="ARCHIVE", host="127.0.0.1", port=port)


@pytest.fixture
def pacs() -> Iterator[int]:
    """A PACS with two studies of CR, one of CT and one that does not say; gives its port."""

    def find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        assert event.identifier.StudyDate == "20260304-20260304"
        for uid, modalities in (("1.2.1", "CR"), ("1.2.2", ["DX", "PR"]), ("1.2.3", "CT"), ("1.2.4", "")):
            match = Dataset()
            match.StudyInstanceUID, match.ModalitiesInStudy, match.StudyDate = uid, modalities, "20260304"
            yield 0xFF00, match
        yield 0x0000, None

    with archive(find) as port:
        yield port


def test_radiographs_that_a_pacs_has_and_that_never_came_are_named(
    sqlite_engine: Engine, sqlite_url: str, pacs: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_for(tmp_path, sqlite_url).model_copy(update={"destinations": (_destination(pacs),)})
    day = date(2026, 3, 4)
    with session_scope(sqlite_engine) as session:
        add_image(session, 1, study="1.2.1")
        add_image(session, 2, study="1.2.2", modality="PR", is_judged=False, not_judged_reason=("not_an_image", "PR"))
    assert reconcile_with(settings, sqlite_engine, "archive", day=day, since=None) == 1
    said = capsys.readouterr()
    assert "1.2.2  20260304  DX/PR" in said.out, "its presentation state came, its image did not"
    assert "archive: 2 studies with CR or DX, of 1 of them no image to be judged came here" in said.out
    assert "archive: 1 studies are not comparable" in said.err
    with session_scope(sqlite_engine) as session:
        add_image(session, 3, study="1.2.2")
    assert reconcile_with(settings, sqlite_engine, "archive", day=day, since=None) == 1, (
        "one does not say what it holds"
    )
    with session_scope(sqlite_engine) as session:
        add_image(session, 4, study="1.2.4")
    assert reconcile_with(settings, sqlite_engine, "archive", day=day, since=None) == 0
    with pytest.raises(ConfigError, match="archive"):
        reconcile_with(settings, sqlite_engine, "elsewhere", day=day, since=None)


@pytest.mark.parametrize("uid", [None, "", ["1.2.1", "1.2.2"], "*"])
def test_match_that_names_no_study_is_never_moved(uid: Any) -> None:
    def find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        match = Dataset()
        with config.disable_value_validation():
            match.StudyInstanceUID = uid
        yield 0xFF00, match

    with archive(find) as port, pytest.raises(DeliveryRejected, match="without a Study Instance UID"):
        find_studies(_destination(port), {"PatientID": "1"}, calling_ae_title="PACS_NODE")


def test_days_are_local_and_follow_each_other() -> None:
    today = date(2026, 11, 24)
    assert days_of(None, None, today) == [today - timedelta(days=n) for n in reversed(range(DAYS_SHOWN))]
    assert days_of(None, today, today) == [today]
    assert days_of(date(2026, 1, 1), None, today) == [date(2026, 1, 1)]
    for since in (today + timedelta(days=1), today - timedelta(days=DAYS_MAX)):
        with pytest.raises(ValueError, match="--since"):
            days_of(None, since, today)
    start, end = span_of(today)
    assert start.astimezone(UTC) == datetime.combine(today, datetime.min.time()).astimezone(UTC)
    assert end == span_of(today + timedelta(days=1))[0]
