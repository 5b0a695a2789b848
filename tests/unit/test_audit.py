"""The audit trail: what was sealed cannot be changed unseen, on both databases."""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

import pytest
from sqlalchemy import delete, select, update

from db import audit
from db.audit import Action
from db.engine import Session
from db.tables import AuditEvent, AuditHead
from tests.records import NOON, SECOND

KEY = b"k" * 32


def add_events(session: Session, count: int, *, start: int = 0) -> None:
    for number in range(start, start + count):
        details = {"number": number, "grüße": [1.5, None, True]}
        audit.append(
            session,
            Action.INSTANCE_STORED,
            actor="test",
            subject_id=uuid4(),
            details=details,
            now=NOON + number * SECOND,
        )


def edit(**values: object) -> Callable[[Session], None]:
    return lambda session: session.execute(update(AuditEvent).where(AuditEvent.sequence == 3).values(**values))


def remove(*sequences: int) -> Callable[[Session], None]:
    return lambda session: session.execute(delete(AuditEvent).where(AuditEvent.sequence.in_(sequences)))


def swap(session: Session) -> None:
    for before, after in ((3, 100), (4, 3), (100, 4)):
        session.execute(update(AuditEvent).where(AuditEvent.sequence == before).values(sequence=after))


def unseal(session: Session) -> None:
    session.execute(update(AuditEvent).where(AuditEvent.sequence == 3).values(sequence=None, link=None))


def insert_forged(session: Session) -> None:
    audit.append(session, Action.STUDY_RELEASED, actor="intruder", now=NOON)
    session.execute(update(AuditEvent).where(AuditEvent.sequence.is_(None)).values(sequence=7, link="0" * 64))


def cut_tail_and_move_head(session: Session) -> None:
    remove(5, 6)(session)
    link = session.execute(select(AuditEvent.link).where(AuditEvent.sequence == 4)).scalar_one()
    session.execute(update(AuditHead).values(sequence=4, link=link))


def cut_tail_and_head(session: Session) -> None:
    remove(5, 6)(session)
    session.execute(delete(AuditHead))


def test_seal_numbers_events_in_order_and_verify_finds_nothing(session: Session) -> None:
    add_events(session, 7)
    assert audit.seal(session, KEY, limit=5) == 5
    verdict = audit.verify(session, KEY)
    assert (verdict.sealed, verdict.unsealed, verdict.broken) == (5, 2, [])
    assert audit.seal(session, KEY) == 2
    assert audit.seal(session, KEY) == 0
    numbered = session.execute(select(AuditEvent.sequence, AuditEvent.details).order_by(AuditEvent.sequence)).all()
    assert [(sequence, details["number"]) for sequence, details in numbered] == [(i + 1, i) for i in range(7)]


def test_event_that_commits_late_is_chained_where_it_was_found(session: Session) -> None:
    add_events(session, 2, start=5)
    audit.seal(session, KEY)
    add_events(session, 2)
    audit.seal(session, KEY)
    assert audit.verify(session, KEY).broken == []


def test_an_empty_trail_is_whole(session: Session) -> None:
    assert audit.seal(session, KEY) == 0
    assert audit.verify(session, KEY) == audit.Verdict(sealed=0, unsealed=0, broken=[], head=None)


@pytest.mark.parametrize(
    ("tamper", "broken"),
    [
        pytest.param(edit(actor="someone else"), [3], id="actor edited"),
        pytest.param(edit(details={}), [3], id="details edited"),
        pytest.param(edit(at=NOON), [3], id="time edited"),
        pytest.param(edit(subject_id=None), [3], id="subject edited"),
        pytest.param(edit(link=None), [3, 4], id="link erased"),
        pytest.param(remove(1), [1, 2], id="first deleted"),
        pytest.param(remove(3), [3, 4], id="one deleted"),
        pytest.param(remove(6), [6], id="last deleted"),
        pytest.param(remove(1, 2, 3, 4, 5, 6), [1, 2, 3, 4, 5, 6], id="all deleted"),
        pytest.param(swap, [3, 4, 5], id="two change places"),
        pytest.param(unseal, [3, 4], id="one unsealed"),
        pytest.param(insert_forged, [7], id="one forged"),
        pytest.param(cut_tail_and_move_head, [4], id="tail cut and the head moved to an earlier link"),
        pytest.param(cut_tail_and_head, [4], id="tail and head cut"),
    ],
)
def test_verify_finds_tampering(session: Session, tamper: Callable[[Session], None], broken: list[int]) -> None:
    add_events(session, 6)
    audit.seal(session, KEY)
    tamper(session)
    assert audit.verify(session, KEY).broken == broken
    add_events(session, 2, start=10)
    audit.seal(session, KEY)
    assert audit.verify(session, KEY).broken, "sealing on must not cover the tracks"


def test_verify_with_another_key_finds_every_event_broken(session: Session) -> None:
    add_events(session, 3)
    audit.seal(session, KEY)
    assert audit.verify(session, b"another").broken == [1, 2, 3]


def test_verdict_names_no_more_than_it_can_show(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "BROKEN_SHOWN", 2)
    add_events(session, 8)
    audit.seal(session, KEY)
    remove(1, 2, 3, 4, 5)(session)
    assert audit.verify(session, KEY).broken == [1, 2]


@pytest.mark.parametrize(
    "key", ["patient_id", "patient_name", "accession_number", "birth_date", "issuer_of_patient_id"]
)
def test_append_refuses_patient_attributes(session: Session, key: str) -> None:
    with pytest.raises(ValueError, match=key):
        audit.append(session, Action.STUDY_VIEWED, actor="test", details={key: "x"}, now=NOON)


def test_tail_returns_the_newest_events_in_order(session: Session) -> None:
    add_events(session, 5)
    audit.seal(session, KEY, limit=4)
    rows = audit.tail(session, 2)
    assert [(row.sequence, row.details["number"]) for row in rows] == [(4, 3), (None, 4)]
    assert {(row.actor, row.action) for row in rows} == {("test", Action.INSTANCE_STORED)}
