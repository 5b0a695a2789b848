"""The first page of every filter with 100,000 studies in the table, on SQLite and on PostgreSQL.

The table is made, not received: rows as intake, worker and schedule leave them, with what is rare in a hospital rare
here (1 % unread, 0.5 % urgent, some dozens held or failed, one model version that only the oldest studies have).
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from uuid import UUID

from sqlalchemy import insert, text

from bench.table import Bar, Table, note
from db import facts
from db.engine import Engine, Session, make_engine, migrate, read_scope, session_scope
from db.facts import Asked, StudyFilters, Visible
from db.facts.study_filters import count_groups, count_studies
from db.tables import (
    NOT_REVIEWED,
    Answer,
    Delivery,
    DeliveryState,
    Hold,
    Instance,
    InstanceState,
    Job,
    JobKind,
    JobState,
    Prediction,
    Report,
    Series,
    Study,
    Warning,
    new_id,
    rows_of,
)

STUDIES, QUICK_STUDIES = 100_000, 5_000
ASKED = 20
"""Times that each filter is asked in one round."""
BAR_MS = 100.0
NEWEST = datetime(2026, 11, 20, 12, tzinfo=UTC)
EVERY = timedelta(seconds=40)
AT_ONCE = 2_000
SENDERS = tuple(f"CR_ROOM_{n}" for n in range(1, 13))
ROOMS, CLINIC = Visible(senders=frozenset(SENDERS[:2])), Visible(institutions=frozenset({"clinic"}))
"""What a group sees: a sixth of the studies, and some dozens of them."""
Ask = Callable[[Session], object]

FILTERS: dict[str, Ask] = {
    "all": lambda s: facts.list_studies(s),
    "oldest first": lambda s: facts.list_studies(s, sort="received_at"),
    "by probability": lambda s: facts.list_studies(s, sort="-probability"),
    "by priority": lambda s: facts.list_studies(s, sort="-priority"),
    **{f"state {state}": partial(facts.list_studies, state=state) for state in facts.STUDY_STATES},
    **{f"answer {answer}": partial(facts.list_studies, answer=answer) for answer in Answer},
    "probability 0.98 to 0.99": lambda s: facts.list_studies(s, probability_from=0.98, probability_to=0.99),
    "probability, none has it": lambda s: facts.list_studies(s, probability_from=0.9995),
    "finding pneumonia, above 0.9": lambda s: facts.list_studies(s, finding="pneumonia", probability_from=0.9),
    "finding that nobody has": lambda s: facts.list_studies(s, finding="effusion"),
    "warning that many have": lambda s: facts.list_studies(s, warning="view_unknown"),
    "warning that few have": lambda s: facts.list_studies(s, warning="processing_failed"),
    "sender": lambda s: facts.list_studies(s, calling_ae_title=SENDERS[3]),
    "sender that sent nothing": lambda s: facts.list_studies(s, calling_ae_title="NOBODY"),
    "model of the oldest": lambda s: facts.list_studies(s, model_version="0.9.0"),
    "reviewed": lambda s: facts.list_studies(s, is_reviewed=True),
    "not reviewed": lambda s: facts.list_studies(s, is_reviewed=False),
    "urgent": lambda s: facts.list_studies(s, priority=1),
    "a day of last month": lambda s: facts.list_studies(
        s, received_from=NEWEST - timedelta(days=31), received_before=NEWEST - timedelta(days=30)
    ),
    "unread, urgent, present": lambda s: facts.list_studies(s, is_reviewed=False, priority=1, answer=Answer.PRESENT),
    "one group's senders": lambda s: facts.list_studies(s, visible=ROOMS),
    "one group's institution": lambda s: facts.list_studies(s, visible=CLINIC),
    "a group that sees nothing": lambda s: facts.list_studies(s, visible=Visible()),
    "first page of the worklist": lambda s: _open_work(s),
    "what was not delivered": lambda s: facts.list_studies(s, is_undelivered=True),
    "list of images, institution": lambda s: facts.list_instances(s, Asked(visible=CLINIC)),
    "list of results, two senders": lambda s: facts.list_results(s, Asked(visible=ROOMS)),
    "list of reports, no sender": lambda s: facts.list_reports(s, Asked(calling_ae_title="NOBODY")),
    "list of deliveries, oldest": lambda s: facts.list_deliveries(s, Asked(is_oldest_first=True)),
    "list of images, failed": lambda s: facts.list_instances(s, Asked(), state=InstanceState.FAILED),
    "list of results, above 0.9": lambda s: facts.list_results(s, Asked(), finding="pneumonia", probability_from=0.9),
    "list of warnings by code": lambda s: facts.list_warnings(s, Asked(), code="processing_failed"),
    "list of reports, incomplete": lambda s: facts.list_reports(s, Asked(), answer=Answer.INCOMPLETE),
    "list of deliveries, failed": lambda s: facts.list_deliveries(s, Asked(), state=DeliveryState.FAILED),
}


def _open_work(session: Session) -> None:
    """Ask what the page asks: its counts, then the beginning of every group."""
    unread: StudyFilters = {"is_reviewed": False}
    groups = {count.group for count in count_groups(session, unread)}
    count_groups(session, {"is_undelivered": True})
    count_studies(session, {"is_reviewed": True}, limit=10_001)
    facts.list_groups(session, groups, limit=40, **unread)


def run(folder: Path, *, is_quick: bool, rounds: int) -> Table:
    """Fill one table of each kind and ask every filter for its first page, `rounds` times over."""
    count = QUICK_STUDIES if is_quick else STUDIES
    measured: dict[str, dict[str, tuple[float, float]]] = {}
    for kind, opened in (("SQLite", _sqlite), ("PostgreSQL", _postgresql)):
        with opened(folder) as url:
            migrate(url)
            engine = make_engine(url)
            note(f"worklist: {count} studies into {kind}")
            fill(engine, count)
            measured[kind] = {name: _measure(engine, ask, rounds) for name, ask in FILTERS.items()}
            engine.dispose()
    rows = tuple((name, *(f"{ms:.1f}" for kind in measured for ms in measured[kind][name])) for name in FILTERS)
    worst = {kind: max(p95 for _, p95 in found.values()) for kind, found in measured.items()}
    return Table(
        title=f"worklist: first page of every filter, {count} studies",
        head=("filter", *(f"{kind} {what}" for kind in measured for what in ("p50 ms", "p95 ms"))),
        rows=rows,
        bars=tuple(
            Bar(text=f"{kind}: every filter under {BAR_MS:g} ms p95 (worst {ms:.1f})", is_met=ms < BAR_MS)
            for kind, ms in worst.items()
        ),
    )


def _measure(engine: Engine, ask: Ask, rounds: int) -> tuple[float, float]:
    """Return p50 and p95 in ms, of one call with its transaction; the first call is not counted."""
    took = []
    for _ in range(1 + rounds * ASKED):
        started = time.perf_counter()
        with read_scope(engine) as session:
            ask(session)
        took.append(1000 * (time.perf_counter() - started))
    return median(took[1:]), quantiles(took[1:], n=20)[-1]


def fill(engine: Engine, count: int) -> None:
    """Write `count` studies of one image each, the oldest first."""
    draw = random.Random(5)
    for first in range(0, count, AT_ONCE):
        rows: dict[Any, list[dict[str, Any]]] = {}
        for number in range(first, min(count, first + AT_ONCE)):
            for table, row in _study(number, count, draw):
                rows.setdefault(table, []).append(row)
        with session_scope(engine) as session:
            for table, found in rows.items():
                session.execute(insert(rows_of(table)), found)
    if engine.dialect.name == "postgresql":  # its autovacuum would have come by in the months that this stands for
        with session_scope(engine) as session:
            session.execute(text("ANALYZE"))


def _study(number: int, count: int, draw: random.Random) -> Iterator[tuple[type, dict[str, Any]]]:
    at, study_id, series_id, instance_id, report_id = NEWEST - EVERY * (count - number), *(new_id() for _ in range(4))
    probability = draw.betavariate(0.4, 1.2) * 0.999
    answer = draw.choices(list(Answer), weights=[12, 80, 4, 0.05, 3.95])[0]
    fate = draw.choices(["", "held", "failed", "unbuilt", "judging", "due"], weights=[9990, 2, 2, 2, 2, 2])[0]
    shown = probability if answer in (Answer.PRESENT, Answer.ABSENT, Answer.UNDETERMINED) else None
    model = {"model_name": "resnet50", "model_version": "0.9.0" if number < count // 5 else "1.0.0"}
    yield (
        Study,
        _row(number, study_id, at)
        | {
            "priority": int(draw.random() < 0.005),
            "calling_ae_title": draw.choice(SENDERS),
            "institution": "clinic" if number % 2003 == 0 else "hospital",
            "hold": Hold.UNIDENTIFIED if fate == "held" else None,
            "unreported_since": at if fate == "due" else None,
            "reviewed_revision": NOT_REVIEWED if draw.random() < 0.01 else 1,
            "answer": answer,
            "probability": shown,
            "model_version": model["model_version"],
        },
    )
    yield Series, {"id": series_id, "study_id": study_id, "series_instance_uid": f"1.3.{number}", "modality": "DX"}
    state = InstanceState.FAILED if draw.random() < 0.0005 else InstanceState.ANALYSED
    yield Instance, _image(number, instance_id, study_id, series_id, at) | {"state": state}
    yield (
        Prediction,
        {
            **model,
            "instance_id": instance_id,
            "finding": "pneumonia",
            "probability": probability,
            "confidence": 100 * max(probability, 1 - probability),
            **{"threshold": 0.5, "abstain_low": 0.4, "abstain_high": 0.6, "processing_time_ms": 60.0, "created_at": at},
        },
    )
    if draw.random() < 0.1 or state is InstanceState.FAILED:
        code = "processing_failed" if state is InstanceState.FAILED else "view_unknown"
        yield Warning, {"instance_id": instance_id, "code": code, "severity": "warning", "text": "-", "created_at": at}
    yield (
        Report,
        {
            **model,
            **{"id": report_id, "study_id": study_id, "revision": 1, "answer": answer, "probability": shown},
            **{"contents": {"images": []}, "images": [], "content_at": at, "is_sent": True},
            "built_at": None if fate in ("failed", "unbuilt") else at,
        },
    )
    sent = DeliveryState.FAILED if draw.random() < 0.001 else DeliveryState.SENT
    yield Delivery, {"report_id": report_id, "destination": "main", "state": sent, "created_at": at, "reason": ""}
    for kind, subject_id in ((JobKind.INFER, instance_id), (JobKind.REPORT, report_id)):
        is_open = (kind, fate) == (JobKind.INFER, "judging")
        has_failed = (kind, fate) == (JobKind.REPORT, "failed")
        ended = JobState.READY if is_open else JobState.FAILED if has_failed else JobState.DONE
        yield (
            Job,
            {
                **{"kind": kind, "subject_id": subject_id, "study_id": study_id, "state": ended},
                **{"created_at": at, "due_at": at, "finished_at": None if is_open else at},
            },
        )


def _row(number: int, study_id: UUID, at: datetime) -> dict[str, Any]:
    return {
        **{"id": study_id, "study_instance_uid": f"1.2.{number}", "first_received_at": at, "last_received_at": at},
        **{"patient_id": f"SYN-{number // 3}", "issuer_of_patient_id": "", "patient_name": f"ALDER^Demo{number // 3}"},
        **{"patient_birth_date": "19700101", "patient_sex": "O", "accession_number": f"A-{number}"},
        **{"study_date": at.date(), "study_description": "Chest PA", "revision": 1},
    }


def _image(number: int, instance_id: UUID, study_id: UUID, series_id: UUID, at: datetime) -> dict[str, Any]:
    return {
        **{"id": instance_id, "study_id": study_id, "series_id": series_id, "sop_instance_uid": f"1.4.{number}"},
        **{"sop_class_uid": "1.2.840.10008.5.1.4.1.1.1.1", "transfer_syntax_uid": "1.2.840.10008.1.2.1"},
        **{"digest": f"{number:064x}", "size_bytes": 8_000_000, "path": f"i/{number}", "received_at": at},
        **{"is_judged": True, "voi": "window"},
    }


@contextmanager
def _sqlite(folder: Path) -> Iterator[str]:
    yield f"sqlite:///{folder / 'worklist.sqlite'}"


@contextmanager
def _postgresql(folder: Path) -> Iterator[str]:
    import pgserver

    server = pgserver.get_server(folder / "pg", cleanup_mode="stop")
    info = server.get_postmaster_info()
    yield f"postgresql+pg8000://postgres@/postgres?unix_sock={info.socket_dir}/.s.PGSQL.{info.port}"
    server.cleanup()
    shutil.rmtree(folder / "pg", ignore_errors=True)
