"""Jobs as they stand: values, the rule of retrying, and what can be asked about them without changing them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import BindParameter, ColumnElement, Executable, Row, and_, bindparam, exists, func, or_, select

from db.engine import NoSuchRecord, Session
from db.tables import Job as JobRow
from db.tables import JobKind, JobState, rows_of

PRIORITIES = (0, 1)
"""Routine and STAT: a claim looks for each by itself, so that a long queue costs it no more than a short one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePolicy:
    """How long a lease holds and how often a job is tried."""

    lease_s: float
    max_attempts: int
    max_crashes: int
    retry_base_s: float
    """The first delay; doubles with every attempt."""
    retry_cap_s: float
    age_step_s: float
    """A waiting job rises one priority level after each such time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One piece of work as it stood when it was read."""

    id: UUID
    kind: JobKind
    subject_id: UUID
    """The instance to infer, the report to build or the delivery to make."""
    study_id: UUID
    priority: int
    attempts: int
    """Ended by an error."""
    crashes: int
    """Ended by a lost lease."""
    created_at: datetime
    lease_until: datetime | None
    lease_owner: str | None
    state: JobState
    due_at: datetime
    finished_at: datetime | None
    error: str | None


JOBS = rows_of(JobRow)
COLUMNS = [JOBS.c[name] for name in Job.__dataclass_fields__]


def backoff_s(policy: QueuePolicy, attempts: int, job_id: UUID) -> float:
    """Return the seconds before the next attempt: doubled each time, capped, spread by -10..+10 % from the job's id."""
    delay_s = min(policy.retry_base_s * 2.0 ** min(attempts - 1, 60), policy.retry_cap_s)
    spread = (job_id.int + attempts * 0x9E3779B1) % 1009 / 1008
    return delay_s * (0.9 + 0.2 * spread)


def due_kinds(session: Session, kinds: Sequence[JobKind], *, now: datetime) -> frozenset[JobKind]:
    """Return, without a lock, those of `kinds` of which a claim would find something."""
    found = session.execute(_look(tuple(kinds)), {"now": now}).one()
    return frozenset(kind for kind, is_found in zip(kinds, found, strict=True) if is_found)


@cache
def _look(kinds: tuple[JobKind, ...]) -> Executable:
    """Build the statement once: idle workers ask ten times a second."""
    now = bindparam("now", type_=JOBS.c.due_at.type)
    ready = (exists().where(JOBS.c.kind == kind, is_ready(now)) for kind in kinds)
    expired = (exists().where(JOBS.c.kind == kind, is_expired(now)) for kind in kinds)
    return select(*(or_(*either) for either in zip(ready, expired, strict=True)))


def is_due(session: Session, kind: JobKind, *, now: datetime) -> bool:
    """Tell, without a lock, whether a claim would find something."""
    return bool(due_kinds(session, [kind], now=now))


def list_jobs(
    session: Session, *, state: JobState | None = None, kind: JobKind | None = None, limit: int, offset: int = 0
) -> list[Job]:
    """Return jobs, the newest first."""
    query = select(*COLUMNS).order_by(JOBS.c.created_at.desc(), JOBS.c.id.desc()).limit(limit).offset(offset)
    if state is not None:
        query = query.where(JOBS.c.state == state)
    if kind is not None:
        query = query.where(JOBS.c.kind == kind)
    return jobs_in(session.execute(query).all())


def show(session: Session, job_id: UUID) -> Job:
    """Return one job.

    Raises
    ------
    NoSuchRecord
        There is no such job.
    """
    jobs = jobs_in(session.execute(select(*COLUMNS).where(JOBS.c.id == job_id)).all())
    if not jobs:
        raise NoSuchRecord(f"no job {job_id}")
    return jobs[0]


def counts(session: Session) -> dict[tuple[JobKind, JobState], int]:
    """Return how many jobs there are of each kind in each state; pairs without a job are left out."""
    query = select(JOBS.c.kind, JOBS.c.state, func.count()).group_by(JOBS.c.kind, JOBS.c.state)
    return {(kind, state): count for kind, state, count in session.execute(query)}


def waiting(session: Session, kind: JobKind) -> int:
    """Return how many jobs of a kind are ready, due or not."""
    query = select(func.count()).select_from(JOBS).where(JOBS.c.kind == kind, JOBS.c.state == JobState.READY)
    return session.execute(query).scalar_one()


def is_ready(now: datetime | BindParameter[datetime]) -> ColumnElement[bool]:
    """Match the jobs that wait for a worker and are due."""
    return and_(JOBS.c.state == JobState.READY, JOBS.c.priority.in_(PRIORITIES), JOBS.c.due_at <= now)


def is_expired(now: datetime | BindParameter[datetime]) -> ColumnElement[bool]:
    """Match the jobs whose lease has ended without them."""
    return and_(JOBS.c.state == JobState.RUNNING, JOBS.c.lease_until <= now)


def jobs_in(rows: Sequence[Row[Any]]) -> list[Job]:
    """Return the jobs in rows of `COLUMNS`."""
    return [Job(**row._mapping) for row in rows]
