"""What several processes do to one database at once: each function runs in its own process, with its own engine."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import func, select

from db import audit, facts, queue
from db.audit import Action
from db.engine import db_now, make_engine, session_scope
from db.queue import JobKind
from db.tables import Association
from tests.records import POLICY, make_instance


def append_events(url: str, writer: int, events: int) -> None:
    """Append events, each in a transaction that reads before it writes."""
    engine = make_engine(url)
    for number in range(events):
        with session_scope(engine) as session:
            session.execute(select(func.count()).select_from(Association))
            audit.append(session, Action.NODE_STARTED, actor=f"w{writer}", details={"n": number}, now=db_now(session))
    engine.dispose()


def send_study(url: str, sender: int, images: int) -> list[str]:
    """Receive the images that every sender sends; return what became of each."""
    engine = make_engine(url)
    outcomes = []
    for number in range(images):
        with session_scope(engine) as session:
            new = make_instance(number, path=f"{sender}/{number}")
            outcomes.append(facts.add_instance(session, new, now=db_now(session)).outcome.value)
    engine.dispose()
    return outcomes


def work_off(url: str, owner: str) -> list[UUID]:
    """Claim and finish jobs until none is left; return their ids."""
    engine, done = make_engine(url), []
    while True:
        with session_scope(engine) as session:
            jobs = queue.claim(session, JobKind.INFER, owner=owner, limit=4, policy=POLICY, now=db_now(session))
        if not jobs:
            engine.dispose()
            return done
        with session_scope(engine) as session:
            for job in jobs:
                queue.finish(session, job, now=db_now(session))
        done += [job.id for job in jobs]
