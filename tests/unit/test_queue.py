"""The job state machine: every arrow drawn in `db.queue`, on both databases."""

from __future__ import annotations

import contextlib
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event

from db import queue
from db.engine import NoSuchRecord, Session
from db.queue import Job, JobKind, JobState, LostLease, QueuePolicy
from tests.records import MINUTE, NOON, POLICY, SECOND, add_image


@pytest.fixture
def study_id(session: Session) -> UUID:
    """A study to hang jobs on; its own infer job is out of the way."""
    study_id = add_image(session).study_id
    for job in take(session, limit=10, owner="setup"):
        queue.finish(session, job, now=NOON)
    return study_id


def put(session: Session, study_id: UUID, **options: object) -> UUID:
    subject_id = uuid4()
    queue.enqueue(session, JobKind.INFER, subject_id, study_id, **({"now": NOON} | options))
    return subject_id


def take(session: Session, *, owner: str = "a", limit: int = 1, now=NOON, policy: QueuePolicy = POLICY) -> list[Job]:
    return queue.claim(session, JobKind.INFER, owner=owner, limit=limit, policy=policy, now=now)


def test_enqueue_knows_work_by_kind_and_subject(session: Session, study_id: UUID) -> None:
    subject_id = put(session, study_id)
    queue.enqueue(session, JobKind.INFER, subject_id, study_id, priority=9, now=NOON)
    queue.enqueue(session, JobKind.REPORT, subject_id, study_id, now=NOON)
    assert queue.waiting(session, JobKind.INFER) == 1
    assert queue.waiting(session, JobKind.REPORT) == 1
    assert take(session)[0].priority == 0


def test_claim_takes_up_to_limit_in_order_of_coming(session: Session, study_id: UUID) -> None:
    subjects = [put(session, study_id, now=NOON + i * SECOND) for i in range(5)]
    jobs = take(session, limit=3, now=NOON + MINUTE)
    assert [job.subject_id for job in jobs] == subjects[:3]
    assert {(job.state, job.lease_owner, job.lease_until) for job in jobs} == {
        (JobState.RUNNING, "a", NOON + 2 * MINUTE)
    }
    assert [job.subject_id for job in take(session, limit=3, now=NOON + MINUTE)] == subjects[3:]
    assert take(session, now=NOON + MINUTE) == []


def test_claim_leaves_what_is_not_due_or_of_another_kind(session: Session, study_id: UUID) -> None:
    put(session, study_id, due_at=NOON + MINUTE)
    queue.enqueue(session, JobKind.REPORT, uuid4(), study_id, now=NOON)
    assert take(session, limit=5) == []
    assert not queue.is_due(session, JobKind.INFER, now=NOON)
    assert queue.is_due(session, JobKind.INFER, now=NOON + MINUTE)
    assert queue.due_kinds(session, list(JobKind), now=NOON) == {JobKind.REPORT}
    assert len(take(session, limit=5, now=NOON + MINUTE)) == 1


@pytest.mark.parametrize(
    ("waited_s", "first"),
    [(0, "urgent"), (299, "urgent"), (301, "old")],
    ids=["urgent goes first", "not one step yet", "one level per step"],
)
def test_priority_goes_first_until_waiting_has_lifted_the_others(
    session: Session, study_id: UUID, waited_s: int, first: str
) -> None:
    subjects = {
        "old": put(session, study_id, now=NOON),
        "urgent": put(session, study_id, priority=1, now=NOON + waited_s * SECOND),
    }
    assert take(session, now=NOON + 10 * MINUTE)[0].subject_id == subjects[first]


def test_claim_reads_from_the_index_and_sorts_no_queue(session: Session, study_id: UUID) -> None:
    if session.get_bind().dialect.name != "sqlite":
        pytest.skip("PostgreSQL plans by what it counted")
    plans: list[str] = []

    def explain(connection: Any, _: Any, statement: str, parameters: Any, *__: Any) -> None:
        if statement.lstrip().startswith(("WITH", "UPDATE jobs")):
            cursor = connection.connection.dbapi_connection.cursor()
            plans.extend(row[-1] for row in cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters))

    put(session, study_id)
    event.listen(session.connection(), "before_cursor_execute", explain)
    take(session)
    ordered = "ix_jobs_state_kind_priority_due_at (state=? AND kind=? AND priority=? AND due_at<?)"
    assert sum(ordered in step for step in plans) == len(queue.PRIORITIES)
    assert [step for step in plans if step.startswith("SCAN jobs")] == []


def test_priority_beyond_the_known_counts_as_the_nearest(session: Session, study_id: UUID) -> None:
    subjects = [put(session, study_id, priority=-3), put(session, study_id, priority=7)]
    assert [(job.subject_id, job.priority) for job in take(session, limit=5)] == [(subjects[1], 1), (subjects[0], 0)]


def test_job_whose_lease_expired_keeps_its_place(session: Session, study_id: UUID) -> None:
    first, second = put(session, study_id), put(session, study_id, now=NOON + SECOND)
    take(session)
    queue.reclaim_expired(session, policy=POLICY, now=NOON + 5 * MINUTE)
    later = NOON + 6 * MINUTE
    assert [job.subject_id for job in take(session, now=later) + take(session, now=later)] == [first, second]


def test_heartbeat_extends_only_leases_that_are_still_held(session: Session, study_id: UUID) -> None:
    put(session, study_id), put(session, study_id)
    kept, lost = take(session, limit=2)
    queue.release(session, [lost], NOON)
    held = queue.heartbeat(session, [kept, lost], owner="a", policy=POLICY, now=NOON + 30 * SECOND)
    assert [(job.id, job.lease_until) for job in held] == [(kept.id, NOON + 90 * SECOND)]
    assert take(session, now=NOON + 61 * SECOND)[0].id == lost.id


def test_finish_ends_a_job_and_its_lease(session: Session, study_id: UUID) -> None:
    put(session, study_id)
    job = take(session)[0]
    queue.finish(session, job, now=NOON + SECOND)
    ended = queue.show(session, job.id)
    assert (ended.state, ended.lease_owner, ended.finished_at) == (JobState.DONE, None, NOON + SECOND)


def test_finish_drops_result_when_lease_was_lost(session: Session, study_id: UUID) -> None:
    put(session, study_id)
    job = take(session)[0]
    queue.reclaim_expired(session, policy=POLICY, now=NOON + 2 * MINUTE)
    with pytest.raises(LostLease):
        queue.finish(session, job, now=NOON + 2 * MINUTE)


def test_finish_drops_result_when_the_same_worker_holds_the_job_anew(session: Session, study_id: UUID) -> None:
    put(session, study_id)
    hung = take(session)[0]
    again = take(session, now=NOON + 2 * MINUTE)[0]
    with pytest.raises(LostLease):
        queue.finish(session, hung, now=NOON + 2 * MINUTE)
    with pytest.raises(LostLease):
        queue.fail(session, hung, error="late", now=NOON + 2 * MINUTE, policy=POLICY)
    queue.finish(session, again, now=NOON + 2 * MINUTE)


def test_finish_twice_is_refused(session: Session, study_id: UUID) -> None:
    put(session, study_id)
    job = take(session)[0]
    queue.finish(session, job, now=NOON)
    with pytest.raises(LostLease):
        queue.finish(session, job, now=NOON)


def test_lost_lease_leaves_the_rest_of_the_transaction(session: Session, study_id: UUID) -> None:
    put(session, study_id), put(session, study_id)
    lost, kept = take(session, limit=2)
    queue.release(session, [lost], NOON)
    with contextlib.suppress(LostLease), session.begin_nested():
        queue.enqueue(session, JobKind.REPORT, uuid4(), study_id, now=NOON)
        queue.finish(session, lost, now=NOON)
    queue.finish(session, kept, now=NOON)
    assert queue.waiting(session, JobKind.REPORT) == 0


def test_fail_tries_again_later_each_time_and_gives_up_after_max_attempts(session: Session, study_id: UUID) -> None:
    put(session, study_id)
    now, delays_s = NOON, []
    for attempt in range(1, POLICY.max_attempts + 1):
        job = take(session, now=now)[0]
        is_over = queue.fail(session, job, error=f"boom {attempt}", now=now, policy=POLICY)
        assert is_over == (attempt == POLICY.max_attempts)
        after = queue.show(session, job.id)
        delays_s.append((after.due_at - now).total_seconds())
        now = after.due_at
    assert delays_s == pytest.approx([2, 4, 8], rel=0.1)
    assert (after.state, after.attempts, after.error, after.crashes) == (JobState.FAILED, 3, "boom 3", 0)
    assert take(session, now=now + 60 * MINUTE) == []


def test_fail_obeys_permanent_and_retry_in_s(session: Session, study_id: UUID) -> None:
    put(session, study_id), put(session, study_id)
    first, second = take(session, limit=2)
    assert queue.fail(session, first, error="no", now=NOON, policy=POLICY, permanent=True)
    assert not queue.fail(session, second, error="soon", now=NOON, policy=POLICY, retry_in_s=7)
    assert queue.show(session, second.id).due_at == NOON + 7 * SECOND


def test_fail_keeps_an_error_that_no_database_would(session: Session, study_id: UUID) -> None:
    put(session, study_id)
    job = take(session)[0]
    queue.fail(session, job, error="x" * 10_000 + "\x00 \ud800 end", now=NOON, policy=POLICY)
    kept = queue.show(session, job.id).error
    assert kept is not None
    assert kept.endswith("end")
    assert len(kept) == queue.ERROR_CHARACTERS


@pytest.mark.parametrize("attempts", [1, 2, 5, 9, 10, 2000])
def test_backoff_doubles_up_to_its_cap_within_a_tenth(attempts: int) -> None:
    delays_s = [queue.backoff_s(POLICY, attempts, uuid4()) for _ in range(50)]
    expected_s = min(2.0 * 2.0 ** min(attempts - 1, 60), 900.0)
    assert all(0.9 * expected_s <= delay_s <= 1.1 * expected_s for delay_s in delays_s)
    assert len(set(delays_s)) > 10
    job_id = uuid4()
    assert queue.backoff_s(POLICY, attempts, job_id) == queue.backoff_s(POLICY, attempts, job_id)


def test_release_counts_neither_attempt_nor_crash(session: Session, study_id: UUID) -> None:
    put(session, study_id)
    queue.release(session, take(session), NOON)
    job = take(session, owner="b")[0]
    assert (job.attempts, job.crashes, job.lease_owner) == (0, 0, "b")


def test_release_of_a_lost_job_leaves_its_new_owner(session: Session, study_id: UUID) -> None:
    put(session, study_id)
    lost = take(session)
    taken = take(session, owner="b", now=NOON + 2 * MINUTE)
    queue.release(session, lost, NOON + 2 * MINUTE)
    queue.finish(session, taken[0], now=NOON + 2 * MINUTE)


def test_expired_lease_counts_a_crash_and_isolates_the_job(session: Session, study_id: UUID) -> None:
    poison = put(session, study_id, now=NOON)
    healthy = [put(session, study_id, now=NOON + i * SECOND) for i in (1, 2, 3)]
    assert len(take(session, limit=2)) == 2 - 1  # only the first is due: the rest come later
    later = NOON + 2 * MINUTE
    alone = take(session, limit=8, now=later)
    assert [(job.subject_id, job.crashes) for job in alone] == [(poison, 1)]
    assert [job.subject_id for job in take(session, limit=8, now=later)] == healthy


def test_suspect_behind_others_does_not_join_their_batch(session: Session, study_id: UUID) -> None:
    suspect = put(session, study_id, now=NOON)
    take(session)
    queue.reclaim_expired(session, policy=POLICY, now=NOON + 2 * MINUTE)
    first = put(session, study_id, priority=1, now=NOON)
    last = put(session, study_id, now=NOON + SECOND)
    later = NOON + 3 * MINUTE
    assert [job.subject_id for job in take(session, limit=8, now=later)] == [first, last]
    assert [job.subject_id for job in take(session, limit=8, now=later)] == [suspect]


def test_job_that_crashes_its_worker_each_time_fails(session: Session, study_id: UUID) -> None:
    subject_id = put(session, study_id)
    now = NOON
    for crash in range(POLICY.max_crashes):
        assert [job.crashes for job in take(session, now=now)] == [crash]
        now += 2 * MINUTE
    assert take(session, now=now) == []
    failed = queue.reclaim_expired(session, policy=POLICY, now=now)
    assert [(job.subject_id, job.state, job.crashes) for job in failed] == [(subject_id, JobState.FAILED, 3)]
    assert queue.reclaim_expired(session, policy=POLICY, now=now) == []


def test_retry_forgives_a_failed_job_and_no_other(session: Session, study_id: UUID) -> None:
    put(session, study_id)
    job = take(session)[0]
    assert queue.retry(session, job.id, now=NOON) is None
    queue.fail(session, job, error="no", now=NOON, policy=POLICY, permanent=True)
    again = queue.retry(session, job.id, now=NOON)
    assert again is not None
    assert (again.state, again.attempts, again.crashes, again.error) == (JobState.READY, 0, 0, None)


def test_retry_brings_the_next_try_forward(session: Session, study_id: UUID) -> None:
    """Who has mended the destination need not wait for the delay; what was only put off at first keeps its time."""
    put(session, study_id)
    job = take(session)[0]
    queue.fail(session, job, error="away", now=NOON, policy=POLICY, retry_in_s=900)
    again = queue.retry(session, job.id, now=NOON)
    assert again is not None
    assert (again.state, again.attempts, again.due_at) == (JobState.READY, 0, NOON)
    assert queue.retry(session, job.id, now=NOON) is None
    later = put(session, study_id, now=NOON + MINUTE)
    (put_off,) = [one for one in queue.list_jobs(session, state=JobState.READY, limit=9) if one.subject_id == later]
    assert queue.retry(session, put_off.id, now=NOON) is None


def test_closed_job_rests_until_a_person_retries_it(session: Session, study_id: UUID) -> None:
    put(session, study_id)
    job = take(session)[0]
    assert queue.close(session, job.id) is None
    queue.fail(session, job, error="no", now=NOON, policy=POLICY, permanent=True)
    closed = queue.close(session, job.id)
    assert closed is not None
    assert (closed.state, closed.error) == (JobState.CLOSED, "no")
    assert queue.close(session, job.id) is None
    assert take(session) == []
    assert queue.retry(session, job.id, now=NOON) is not None
    assert [again.id for again in take(session)] == [job.id]


def test_requeue_runs_work_again_that_is_over(session: Session, study_id: UUID) -> None:
    subject_id = put(session, study_id)
    job = take(session)[0]
    queue.requeue(session, JobKind.INFER, subject_id, now=NOON)
    assert queue.show(session, job.id).state is JobState.RUNNING
    queue.finish(session, job, now=NOON)
    queue.requeue(session, JobKind.INFER, subject_id, now=NOON)
    assert queue.show(session, job.id).state is JobState.READY


def test_jobs_are_listed_counted_and_shown(session: Session, study_id: UUID) -> None:
    subjects = [put(session, study_id, now=NOON + i * SECOND) for i in range(1, 4)]
    queue.fail(session, take(session, now=NOON + MINUTE)[0], error="no", now=NOON, policy=POLICY, permanent=True)
    assert queue.counts(session) == {
        (JobKind.INFER, JobState.DONE): 1,
        (JobKind.INFER, JobState.FAILED): 1,
        (JobKind.INFER, JobState.READY): 2,
    }
    listed = queue.list_jobs(session, kind=JobKind.INFER, state=JobState.READY, limit=10)
    assert [job.subject_id for job in listed] == subjects[:0:-1]
    assert queue.list_jobs(session, state=JobState.READY, limit=1, offset=1) == listed[1:]
    with pytest.raises(NoSuchRecord):
        queue.show(session, uuid4())
