"""Who may open an association, and how many."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, select

from db import facts
from db.engine import DatabaseAway, db_now, read_scope, session_scope
from db.tables import Association, AuditEvent
from pacs_node.listener import admission as admission_module
from pacs_node.listener.admission import (
    CALLED_UNKNOWN,
    CALLING_UNKNOWN,
    LIMIT_REACHED,
    Admission,
    Caller,
    find_peer,
)
from pacs_node.settings import DicomSettings, PeerSettings

ROOM = PeerSettings(ae_title="CR_ROOM_1", addresses=("192.0.2.17", "198.51.100.0/24", "2001:db8::/32"))


def settings_of(*peers: PeerSettings, **changes: Any) -> DicomSettings:
    return DicomSettings(peers=peers, **changes)


@pytest.mark.parametrize(
    ("calling", "address", "is_let_in"),
    [
        ("CR_ROOM_1", "192.0.2.17", True),
        ("CR_ROOM_1", "198.51.100.200", True),
        ("CR_ROOM_1", "2001:db8::5", True),
        ("CR_ROOM_1", "::ffff:192.0.2.17", True),
        ("CR_ROOM_1", "192.0.2.18", False),
        ("cr_room_1", "192.0.2.17", False),
        ("OTHER", "192.0.2.17", False),
        ("CR_ROOM_1", "127.0.0.1", False),
    ],
)
def test_find_peer_wants_title_and_address_of_one_entry(calling: str, address: str, is_let_in: bool) -> None:
    assert (find_peer(settings_of(ROOM), calling, address) is not None) is is_let_in


@pytest.mark.parametrize(
    ("address", "is_let_in"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("::ffff:127.0.0.1", True), ("192.0.2.1", False)],
)
def test_find_peer_lets_only_this_machine_in_when_nobody_is_listed(address: str, is_let_in: bool) -> None:
    assert (find_peer(settings_of(), "ANY TITLE", address) is not None) is is_let_in


def judge(admission: Admission, **changes: str) -> object:
    said = {"calling_ae_title": "CR_ROOM_1", "called_ae_title": "PACS_NODE", "address": "127.0.0.1"} | changes
    return admission.judge(**said)


def test_judge_says_which_title_is_unknown_and_audits_it_once(sqlite_engine: Engine) -> None:
    admission = Admission(settings_of(ROOM), sqlite_engine, "listen-1")
    for _ in range(3):
        assert judge(admission, called_ae_title="OTHER_NODE") is CALLED_UNKNOWN
        assert judge(admission) is CALLING_UNKNOWN
    with read_scope(sqlite_engine) as session:
        events = list(session.scalars(select(AuditEvent)))
    assert [event.action for event in events] == ["association_refused"] * 2
    assert {event.details["reason"] for event in events} == {CALLED_UNKNOWN.text, CALLING_UNKNOWN.text}


def test_judge_ignores_outer_blanks_of_titles(sqlite_engine: Engine) -> None:
    admission = Admission(settings_of(), sqlite_engine, "listen-1")
    caller = judge(admission, calling_ae_title=" CR_ROOM_1 ", called_ae_title="PACS_NODE       ")
    assert isinstance(caller, Caller)
    assert caller.calling_ae_title == "CR_ROOM_1"


def test_limits_hold_over_all_listeners_and_per_calling_title(engine: Engine) -> None:
    settings = settings_of(max_associations=3, max_associations_per_ae=2)
    first, second = Admission(settings, engine, "listen-1"), Admission(settings, engine, "listen-2")
    callers = [judge(first), judge(second)]
    assert all(isinstance(caller, Caller) for caller in callers)
    assert judge(first) is LIMIT_REACHED
    assert isinstance(judge(first, calling_ae_title="OTHER"), Caller)
    assert judge(second, calling_ae_title="THIRD") is LIMIT_REACHED
    first.close(callers[0], is_released=True)  # type: ignore[arg-type]
    assert isinstance(judge(second, calling_ae_title="THIRD"), Caller)


def test_an_association_is_written_down_and_its_end_too(sqlite_engine: Engine) -> None:
    admission = Admission(settings_of(), sqlite_engine, "listen-1")
    callers = [judge(admission), judge(admission)]
    for caller, is_released in zip(callers, (True, False), strict=True):
        admission.close(caller, is_released=is_released)  # type: ignore[arg-type]
    with read_scope(sqlite_engine) as session:
        rows = list(session.scalars(select(Association).order_by(Association.opened_at)))
    assert [row.end for row in rows] == ["released", "aborted"]
    assert {row.peer_address for row in rows} == {"127.0.0.1"}


def test_an_end_that_could_not_be_written_is_written_with_the_next_beat(
    sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise DatabaseAway("gone")

    admission = Admission(settings_of(), sqlite_engine, "listen-1")
    caller = judge(admission)
    with monkeypatch.context() as patch:
        patch.setattr(facts, "close_association", away)
        admission.close(caller, is_released=True)  # type: ignore[arg-type]
    with read_scope(sqlite_engine) as session:
        assert facts.count_open(session) == 1
    admission.beat()
    with read_scope(sqlite_engine) as session:
        assert facts.count_open(session) == 0


def test_a_listener_that_starts_again_does_not_keep_its_predecessors_associations_alive(sqlite_engine: Engine) -> None:
    killed = Admission(settings_of(), sqlite_engine, "listen-1")
    judge(killed)
    with read_scope(sqlite_engine) as session:
        before = session.scalars(select(Association)).one().seen_at
    Admission(settings_of(), sqlite_engine, "listen-1").beat()
    with read_scope(sqlite_engine) as session:
        assert session.scalars(select(Association)).one().seen_at == before
    with session_scope(sqlite_engine) as session:
        assert facts.lose_associations(session, silent_for_s=-1, now=db_now(session)) == 1


def test_a_stranger_with_ever_new_titles_or_addresses_does_not_fill_the_trail(
    sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission_module, "REFUSALS_OF_ADDRESS", 3)
    monkeypatch.setattr(admission_module, "REFUSALS_AUDITED", 5)
    admission = Admission(settings_of(ROOM), sqlite_engine, "listen-1")
    for number in range(10):
        judge(admission, calling_ae_title=f"STRANGER{number}")
    assert count_events(sqlite_engine) == 3
    for number in range(10):
        judge(admission, address=f"203.0.113.{number}")
    assert count_events(sqlite_engine) == 5
    monkeypatch.setattr(admission_module, "AUDIT_REFUSAL_S", 0.0)  # the minute is over
    judge(admission, calling_ae_title="STRANGER0")
    assert count_events(sqlite_engine) == 6


def count_events(engine: Engine) -> int:
    with read_scope(engine) as session:
        return len(session.scalars(select(AuditEvent)).all())
