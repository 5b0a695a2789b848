"""Refused presentation contexts: counted per day, sender, SOP Class and reason, in a table that no peer can fill."""

from __future__ import annotations

from contextlib import AbstractContextManager
from datetime import date, datetime

import pytest
from sqlalchemy import func, select

from db import facts
from db.engine import DatabaseAway, Engine, Session, db_now, session_scope
from db.facts import RefusedContexts, refusals
from db.tables import RefusedContext
from pacs_node.commands.reconcile import reconcile
from pacs_node.listener import negotiation
from tests.records import DAY, NOON, add_image
from tests.unit.test_reconcile import open_from

CT, MPEG = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.77.1.1.1"
TODAY = NOON.astimezone().date()


def refuse(session: Session, *contexts: tuple[str, int], sender: str = "CT_1", now: datetime = NOON) -> None:
    facts.record_refused_contexts(session, sender, set(contexts), is_empty=sender == "CT_1", day=day_of(now), now=now)


def day_of(now: datetime) -> date:
    return now.astimezone().date()


def found(session: Session, **chosen: str) -> list[tuple[str, str, int, int, int]]:
    rows = facts.list_refused_contexts(session, since=TODAY, until=TODAY, **chosen)
    return [(r.calling_ae_title, r.abstract_syntax, r.reason, r.associations, r.empty_associations) for r in rows]


def test_each_context_is_counted_once_for_an_association(session: Session) -> None:
    refuse(session, (CT, 3), (MPEG, 3))
    refuse(session, (CT, 3))
    refuse(session, (CT, 4), sender="ROUTER")
    refuse(session, (CT, 3), now=NOON + DAY)
    assert found(session) == [("CT_1", CT, 3, 2, 2), ("CT_1", MPEG, 3, 1, 1), ("ROUTER", CT, 4, 1, 0)]
    assert found(session, sender="ROUTER") == [("ROUTER", CT, 4, 1, 0)]
    (both, *_) = facts.list_refused_contexts(session, since=TODAY, until=day_of(NOON + DAY))
    assert both == RefusedContexts(
        calling_ae_title="CT_1", abstract_syntax=CT, reason=3, associations=3, empty_associations=3,
        last_at=NOON + DAY,
    )  # fmt: skip


def test_what_a_reader_may_not_see_is_not_listed(session: Session) -> None:
    refuse(session, (CT, 3))
    assert (
        facts.list_refused_contexts(
            session, since=TODAY, until=TODAY, visible=facts.Visible(senders=frozenset({"ROUTER"}))
        )
        == ()
    )


def test_a_peer_with_ever_new_uids_fills_no_table(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "PER_SENDER", 10)
    monkeypatch.setattr(refusals, "PER_DAY", 25)
    for association in range(6):
        refuse(session, *((f"1.2.{association}.{number}", 3) for number in range(128)))
    counted = found(session)
    assert len(counted) == 11
    assert counted[0] == ("CT_1", refusals.OTHERS, 3, 6, 6), "once for an association, however many it stands for"
    for stranger in range(50):
        refuse(session, *((f"1.2.{number}", 3) for number in range(5)), sender=f"STRANGER_{stranger}")
    assert session.scalar(select(func.count()).select_from(RefusedContext)) <= 27
    refuse(session, ("1.2.0.1", 3), (CT, 4))  # the day is full
    counted = found(session)
    assert {row[:3] for row in counted} >= {("", refusals.OTHERS, 3), ("", refusals.OTHERS, 4)}
    assert ("CT_1", "1.2.0.1", 3, 2, 2) in counted, "what has its row already is counted there"


def test_what_is_no_uid_is_not_written_down(session: Session) -> None:
    refuse(session, ("DOE^JOHN", 3), ("1.2\n", 3), ("", 3), ("1." * 40, 3))
    assert found(session) == [("CT_1", refusals.OTHERS, 3, 1, 1)]


def test_what_waits_for_the_database_is_bounded_and_what_was_dropped_is_said(
    sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(_: Engine) -> AbstractContextManager[Session]:
        raise DatabaseAway("gone")

    waiting = negotiation.Refusals(sqlite_engine)
    with monkeypatch.context() as gone:
        gone.setattr(negotiation, "session_scope", away)
        gone.setattr(negotiation, "MOST_UNWRITTEN", 3)
        for _ in range(5):
            waiting.note(negotiation.Negotiated(calling_ae_title="CT_1", refused=frozenset({(CT, 3)}), is_empty=True))
    for _ in range(2):
        waiting.write()
    (said,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert (said.action, said.associations) == ("refusals_dropped", 2)  # type: ignore[attr-defined]
    with session_scope(sqlite_engine) as session:
        assert facts.count_refused_contexts(session, day_of(db_now(session))) == {3: (3, 3)}


def test_old_days_go(session: Session) -> None:
    refuse(session, (CT, 3))
    refuse(session, (CT, 3), now=NOON + DAY)
    facts.purge_refused_contexts(session, before=day_of(NOON + DAY))
    assert found(session) == []
    assert session.scalar(select(func.count()).select_from(RefusedContext)) == 1


def test_reconcile_names_what_was_refused(sqlite_engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    with session_scope(sqlite_engine) as session:
        now = db_now(session)
        add_image(session, 1, association_id=open_from(session, "CR_ROOM_1"), now=now)
        refuse(session, (CT, 3), (MPEG, 4), now=now)
    assert reconcile(sqlite_engine, day=day_of(now), since=None) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [str(day_of(now)), "CR_ROOM_1", *"100010000", "adds", "up"] in lines
    assert [str(day_of(now)), "CT_1", *"000000002", "adds", "up"] in lines
    said = [" ".join(line) for line in lines]
    assert any(
        line.startswith(f"CT_1 CT Image Storage {CT} abstract syntax not supported (3) 1 1 ") for line in said
    ), said
    assert any("transfer syntaxes not supported (4)" in line for line in said)
    assert "every object is in one end state" in said[-1]
