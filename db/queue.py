"""The durable queue: one row per piece of work, handed out under a lease.

    enqueue            claim                finish
    ───────▶ READY ─────────────▶ RUNNING ─────────▶ DONE
             ▲ ▲ ▲                 │ │ │               │
             │ │ └─ fail (again) ──┘ │ │               │
             │ │    release          │ │               │
             │ └─── lease expired ───┘ └─ fail (for good), crashes used up ─▶ FAILED
             └──── requeue, retry ────────────────────────────────┴──────────────┤
                                                                    close ──▶ CLOSED

A claim takes what is ready and due, and what runs under an expired lease: its worker died or hung, which counts as a
*crash*, apart from the *attempts* that ended by an error. A job that crashed is claimed alone from then on, so that an
image that kills its worker does not take its batch along. Owner, attempts and crashes name one holding of a job: who
has lost it gets `LostLease`.
Times are handed in; callers take them from `db.engine.db_now`, the one clock that all machines share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from functools import cache
from uuid import UUID

from sqlalchemy import (
    CTE,
    ColumnElement,
    Executable,
    and_,
    bindparam,
    case,
    exists,
    extract,
    func,
    not_,
    or_,
    select,
    tuple_,
    union_all,
    update,
)

from db.engine import Session, add_if_new
from db.jobs import (
    COLUMNS,
    JOBS,
    PRIORITIES,
    Job,
    QueuePolicy,
    backoff_s,
    counts,
    due_kinds,
    is_due,
    is_expired,
    is_ready,
    jobs_in,
    list_jobs,
    show,
    waiting,
)
from db.tables import JobKind, JobState

__all__ = [
    "PRIORITIES",
    "Job",
    "JobKind",
    "JobState",
    "LostLease",
    "QueuePolicy",
    "backoff_s",
    "claim",
    "close",
    "counts",
    "due_kinds",
    "enqueue",
    "fail",
    "finish",
    "heartbeat",
    "is_due",
    "list_jobs",
    "reclaim_expired",
    "release",
    "requeue",
    "retry",
    "show",
    "waiting",
]

ERROR_CHARACTERS = 8000
"""Kept of an error's text: its end, where a traceback says what happened."""


class LostLease(Exception):
    """The job is no longer ours: another worker has it, or it ended; drop the result."""


_IDLE = {"lease_owner": None, "lease_until": None}
_FRESH = {"attempts": 0, "crashes": 0, "finished_at": None, "error": None}


def enqueue(
    session: Session,
    kind: JobKind,
    subject_id: UUID,
    study_id: UUID,
    *,
    priority: int = 0,
    now: datetime,
    due_at: datetime | None = None,
) -> None:
    """Add work to do; does nothing when this work is known already, whatever its state.

    Parameters
    ----------
    priority
        0 or 1, see `PRIORITIES`; what lies beyond counts as the nearest.
    """
    row = {"kind": kind, "subject_id": subject_id, "study_id": study_id, "state": JobState.READY}
    row |= {"priority": min(max(priority, PRIORITIES[0]), PRIORITIES[-1])}
    add_if_new(session, JOBS, ("kind", "subject_id"), row | {"created_at": now, "due_at": due_at or now})


def requeue(session: Session, kind: JobKind, subject_id: UUID, *, now: datetime) -> None:
    """Make work that is over ready again, with its attempts and crashes forgiven."""
    is_over = JOBS.c.state.in_([JobState.DONE, JobState.FAILED, JobState.CLOSED])
    session.execute(
        update(JOBS)
        .where(JOBS.c.kind == kind, JOBS.c.subject_id == subject_id, is_over)
        .values(state=JobState.READY, due_at=now, **_FRESH)
    )


def claim(session: Session, kind: JobKind, *, owner: str, limit: int, policy: QueuePolicy, now: datetime) -> list[Job]:
    """Take up to `limit` due jobs under a lease, most urgent first; a job that crashed before comes alone.

    A job of priority p counts as if it had come due p age steps earlier: waiting lifts it one level per step, so that
    nothing waits for ever.
    """
    values = {"now": now, "owner": owner, "until": now + timedelta(seconds=policy.lease_s)}
    jobs = jobs_in(session.execute(_claim(kind, limit, policy.age_step_s, policy.max_crashes), values).all())
    return sorted(jobs, key=lambda job: (job.due_at.timestamp() - job.priority * policy.age_step_s, job.id))


@cache
def _claim(kind: JobKind, limit: int, age_step_s: float, max_crashes: int) -> Executable:
    """Build the statement once: SQLite is locked while it runs, and building takes longer than running."""
    due = union_all(*(select(part) for part in _claimable(kind, limit, max_crashes))).subquery("due")
    age = extract("epoch", due.c.due_at) - due.c.priority * age_step_s
    place = func.row_number().over(order_by=(age, due.c.id))
    placed = select(due.c.id, due.c.is_suspect, place.label("place")).cte("placed")
    first = placed.alias("first")
    suspect_leads = exists().where(first.c.place == 1, first.c.is_suspect)
    joins = and_(placed.c.place <= limit, not_(placed.c.is_suspect), not_(suspect_leads))
    return (
        update(JOBS)
        .where(JOBS.c.id.in_(select(placed.c.id).where(or_(placed.c.place == 1, joins))))
        .values(
            state=JobState.RUNNING,
            lease_owner=bindparam("owner"),
            lease_until=bindparam("until"),
            crashes=_crashes_now(),
            finished_at=None,
        )
        .returning(*COLUMNS)
    )


def _claimable(kind: JobKind, limit: int, max_crashes: int) -> Iterator[CTE]:
    """Give the first due jobs of each priority, and the expired ones: each from its end of the index.

    An expired job whose crashes are used up is left to `reclaim_expired`, whose caller tells its subject.
    """
    now = bindparam("now", type_=JOBS.c.due_at.type)
    is_taken_back = and_(is_expired(now), _crashes_now() < max_crashes)
    ready = {f"ready_{priority}": and_(is_ready(now), JOBS.c.priority == priority) for priority in PRIORITIES}
    for name, condition in (ready | {"expired": is_taken_back}).items():
        yield (
            select(JOBS.c.id, JOBS.c.due_at, JOBS.c.priority, _is_suspect().label("is_suspect"))
            .where(JOBS.c.kind == kind, condition)
            .order_by(JOBS.c.due_at, JOBS.c.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
            .cte(name)
        )


def heartbeat(session: Session, jobs: Sequence[Job], *, owner: str, policy: QueuePolicy, now: datetime) -> list[Job]:
    """Extend the leases; return the jobs that are still ours."""
    held = (
        update(JOBS)
        .where(_are_held(jobs), JOBS.c.lease_owner == owner)
        .values(lease_until=now + timedelta(seconds=policy.lease_s))
        .returning(*COLUMNS)
    )
    return jobs_in(session.execute(held).all())


def finish(session: Session, job: Job, *, now: datetime) -> None:
    """End a job well.

    Raises
    ------
    LostLease
        The job is no longer ours.
    """
    _end_holding(session, job, state=JobState.DONE, finished_at=now, error=None)


def fail(
    session: Session,
    job: Job,
    *,
    error: str,
    now: datetime,
    policy: QueuePolicy,
    permanent: bool = False,
    retry_in_s: float | None = None,
) -> bool:
    """End an attempt by an error; return True when the job has failed for good, False when it will be tried again.

    Parameters
    ----------
    permanent
        No other try can help.
    retry_in_s
        Delay of the next attempt in seconds; None = `backoff_s`.

    Raises
    ------
    LostLease
        The job is no longer ours.
    """
    attempts = job.attempts + 1
    is_over = permanent or attempts >= policy.max_attempts
    delay_s = backoff_s(policy, attempts, job.id) if retry_in_s is None else retry_in_s
    _end_holding(
        session,
        job,
        state=JobState.FAILED if is_over else JobState.READY,
        attempts=attempts,
        due_at=now + timedelta(seconds=delay_s),
        finished_at=now if is_over else None,
        error=_storable(error),
    )
    return is_over


def release(session: Session, jobs: Sequence[Job], now: datetime) -> None:
    """Give jobs back unfinished, due at `now`: a worker that stops counts neither as an attempt nor as a crash."""
    session.execute(update(JOBS).where(_are_held(jobs)).values(state=JobState.READY, due_at=now, **_IDLE))


def reclaim_expired(session: Session, *, policy: QueuePolicy, now: datetime) -> list[Job]:
    """Take expired leases back; return the jobs that failed by it, because they crashed too often.

    The caller marks their subjects failed in the same transaction.
    """
    expired = is_expired(now)
    is_used_up = _crashes_now() >= policy.max_crashes
    failed = (
        update(JOBS)
        .where(expired, is_used_up)
        .values(
            state=JobState.FAILED,
            crashes=_crashes_now(),
            finished_at=now,
            error="its worker died or hung each time",
            **_IDLE,
        )
        .returning(*COLUMNS)
    )
    jobs = jobs_in(session.execute(failed).all())
    session.execute(
        update(JOBS)
        .where(expired, not_(is_used_up))
        .values(state=JobState.READY, crashes=_crashes_now(), **_IDLE)  # it keeps its place in the queue
    )
    return jobs


def retry(session: Session, job_id: UUID, *, now: datetime) -> Job | None:
    """Make a job that failed (closed or not), or waits for its next try, due now, its attempts forgiven; else None."""
    is_delayed = (JOBS.c.state == JobState.READY) & (JOBS.c.attempts > 0) & (JOBS.c.due_at > now)
    again = (
        update(JOBS)
        .where(JOBS.c.id == job_id, JOBS.c.state.in_([JobState.FAILED, JobState.CLOSED]) | is_delayed)
        .values(state=JobState.READY, due_at=now, **_FRESH)
        .returning(*COLUMNS)
    )
    return next(iter(jobs_in(session.execute(again).all())), None)


def close(session: Session, job_id: UUID) -> Job | None:
    """Let a job that failed rest for good, its error kept; None if it did not fail."""
    closed = (
        update(JOBS)
        .where(JOBS.c.id == job_id, JOBS.c.state == JobState.FAILED)
        .values(state=JobState.CLOSED)
        .returning(*COLUMNS)
    )
    return next(iter(jobs_in(session.execute(closed).all())), None)


def _is_suspect() -> ColumnElement[bool]:
    return _crashes_now() > 0


def _crashes_now() -> ColumnElement[int]:
    """Crashes of a job that is taken now: one that still runs has just lost its worker."""
    return JOBS.c.crashes + case((JOBS.c.state == JobState.RUNNING, 1), else_=0)


def _are_held(jobs: Sequence[Job]) -> ColumnElement[bool]:
    """Match the jobs whose very holding is still the one the caller was given."""
    holding = tuple_(JOBS.c.id, JOBS.c.lease_owner, JOBS.c.attempts, JOBS.c.crashes)
    held = [(job.id, job.lease_owner, job.attempts, job.crashes) for job in jobs]
    return and_(JOBS.c.state == JobState.RUNNING, holding.in_(held))


def _end_holding(session: Session, job: Job, **values: object) -> None:
    ended = session.execute(update(JOBS).where(_are_held([job])).values(**_IDLE, **values).returning(JOBS.c.id)).first()
    if ended is None:
        raise LostLease(f"job {job.id} is no longer held by {job.lease_owner}")


def _storable(error: str) -> str:
    """PostgreSQL takes neither NUL nor lone surrogates, and a decoder's message may hold both."""
    return error.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")[-ERROR_CHARACTERS:]
