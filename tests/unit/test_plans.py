"""What pages ask is found in an index, not by reading a whole table: SQLite's plans of the questions they ask."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event

from db import facts
from db.engine import Session, read_scope
from db.facts import quality
from db.facts.peers import destination_standings
from db.facts.quality import Scope
from db.facts.readings import coverage
from db.facts.study_filters import count_groups
from db.tables import Table
from tests.records import NOON

DAY = Scope(since=NOON - timedelta(days=1), until=NOON)


def steps_of(engine: Engine, ask: Callable[[Session], object]) -> list[str]:
    """Return how SQLite goes about what is asked."""
    steps: list[str] = []

    def explain(connection: Any, _: Any, statement: str, parameters: Any, *__: Any) -> None:
        cursor = connection.connection.dbapi_connection.cursor()
        steps.extend(row[-1] for row in cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters))

    with read_scope(engine) as session:
        event.listen(session.connection(), "before_cursor_execute", explain)
        ask(session)
    return steps


@pytest.mark.parametrize(
    ("ask", "wanted"),
    [
        (lambda s: coverage(s, DAY), "reviews USING INDEX ix_reviews_report_id (report_id=?)"),
        (lambda s: count_groups(s, {"is_reviewed": False}), "studies USING COVERING INDEX ix_studies_open"),
        (lambda s: facts.list_groups(s, ["negative"], limit=9), "studies USING COVERING INDEX ix_studies_open"),
        (lambda s: facts.list_groups(s, ["positive"], limit=9), "studies USING COVERING INDEX ix_studies_suspected"),
        (lambda s: facts.list_events(s, actor="user:a"), "ix_audit_events_actor_at_id (actor=?)"),
        (lambda s: quality.count_objects(s, DAY), "ix_receipts_received_at (received_at>? AND received_at<?)"),
        (destination_standings, "USING COVERING INDEX ix_deliveries_destination_sent_at"),
        (destination_standings, "ix_jobs_state_kind_priority_due_at (state=? AND kind=?)"),
    ],
    ids=[
        "quality page",
        "open work",
        "group of open work",
        "suspected",
        "trail of one actor",
        "objects of a day",
        "last delivery",
        "deliveries that wait",
    ],
)
def test_question_is_answered_from_its_index(
    sqlite_engine: Engine, ask: Callable[[Session], object], wanted: str
) -> None:
    steps = steps_of(sqlite_engine, ask)
    assert any(wanted in step for step in steps), steps
    scanned = [step.split()[1] for step in steps if step.startswith("SCAN") and " USING " not in step]
    assert [name for name in scanned if name in Table.metadata.tables] == []
