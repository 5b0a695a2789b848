"""Readers' reports: a reader's verdict on an AI result, to be sent as a report of its own (VERIFIED).

The report bears its review's id. It is a revision of its study in its own right, but the model's report stays the
current one: that is what the next images are compared with, and what readers review.

A reader has one word about a study. A changed one makes a report that names the former, which is withdrawn when the
new one is built; where none is said any more, what this reader's reports said of that AI result is withdrawn at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import delete, insert, select

from db import audit, queue
from db.audit import Action
from db.engine import Session
from db.facts.deliveries import deliveries_of
from db.facts.reports import next_revision
from db.facts.reviews import ReviewFacts, review_facts
from db.facts.withdrawals import withdraw_report
from db.tables import Answer, Job, JobKind, JobState, Report, Review, Study, Verdict, new_id, rows_of

DELAY_S = 10.0

_REPORTS, _STUDIES, _JOBS, _REVIEWS = rows_of(Report), rows_of(Study), rows_of(Job), rows_of(Review)
_SAID = (Answer.PRESENT, Answer.ABSENT, Answer.UNDETERMINED)
"""What a reader can agree or disagree with."""
_COPIED = ("study_id", "contents", "images", "model_name", "model_version", "is_sent", "codes")


def request_verified_report(
    session: Session, review_id: UUID, *, finding: str = "pneumonia", now: datetime, delay_s: float = DELAY_S
) -> UUID | None:
    """Freeze the report of a reader's verdict and queue its building after a delay, in which it may be cancelled.

    Whether such reports are wanted (`[reviews] send_verified`) is for the caller to ask. Asking twice gives the same
    report.

    Returns
    -------
    UUID | None
        None where there is nothing to verify: the verdict is none, or the AI result was withdrawn, was never to leave
        the node or did not say present, absent or undetermined.

    Raises
    ------
    NoSuchRecord
        There is no such review.
    """
    review = review_facts(session, review_id)
    session.execute(select(_STUDIES.c.id).where(_STUDIES.c.id == review.study_id).with_for_update(key_share=True))
    of_review = select(_REPORTS.c.id).where(_REPORTS.c.review_id == review_id)
    there: UUID | None = session.execute(of_review).scalar_one_or_none()
    if there is not None:
        return there
    reviewed = session.execute(select(_REPORTS).where(_REPORTS.c.id == review.report_id)).one_or_none()
    answer = None if reviewed is None else _answer_of(review, reviewed.answer, finding)
    if reviewed is None or answer is None or not reviewed.is_sent or reviewed.withdrawn_at is not None:
        return None
    report_id, revision = new_id(), next_revision(session, review.study_id)
    row: dict[str, Any] = {name: getattr(reviewed, name) for name in _COPIED}
    row |= {"id": report_id, "revision": revision, "predecessor_id": reviewed.id, "review_id": review_id}
    row["replaced_id"] = _replaced_by(session, review)
    session.execute(insert(_REPORTS), row | {"answer": answer, "probability": None, "content_at": review.created_at})
    due_at = now + timedelta(seconds=delay_s)
    queue.enqueue(session, JobKind.REPORT, report_id, review.study_id, now=now, due_at=due_at)
    details = {"study_id": str(review.study_id), "revision": revision, "answer": answer.value}
    details["review_id"] = str(review_id)
    audit.append(session, Action.REPORT_FROZEN, actor=review.reviewer, subject_id=report_id, details=details, now=now)
    return report_id


def cancel_verified_report(session: Session, review_id: UUID, *, now: datetime) -> bool:
    """Take back a reader's report that nobody has begun to build; False if it is too late, or there is none."""
    review = review_facts(session, review_id)
    report = session.execute(
        select(_REPORTS.c.id, _REPORTS.c.revision).where(
            _REPORTS.c.review_id == review_id, _REPORTS.c.built_at.is_(None)
        )
    ).one_or_none()
    if report is None:
        return False
    is_untouched = (_JOBS.c.kind == JobKind.REPORT) & (_JOBS.c.subject_id == report.id)
    is_untouched &= (_JOBS.c.state == JobState.READY) & (_JOBS.c.attempts == 0)
    if session.execute(delete(_JOBS).where(is_untouched).returning(_JOBS.c.id)).first() is None:
        return False
    session.execute(delete(_REPORTS).where(_REPORTS.c.id == report.id))
    details = {"study_id": str(review.study_id), "revision": report.revision, "review_id": str(review_id)}
    actor = review.reviewer
    audit.append(session, Action.REPORT_CANCELLED, actor=actor, subject_id=report.id, details=details, now=now)
    return True


def follow_review(
    session: Session,
    review_id: UUID,
    *,
    is_sent: bool,
    code: str,
    now: datetime,
    delay_s: float = DELAY_S,
) -> UUID | None:
    """Let a reader's reports on a study follow the reader's newest verdict; return the new report, if there is one.

    Following twice changes nothing.

    Parameters
    ----------
    is_sent
        Readers' reports are wanted, and the reader answers for this one.
    code
        Code value of a rejection note's title (PS3.16 CID 7011).
    delay_s
        As of `request_verified_report`.

    Raises
    ------
    NoSuchRecord
        There is no such review.
    """
    review = review_facts(session, review_id)
    if review.verdict is Verdict.COMMENT:
        return None
    session.execute(select(_STUDIES.c.id).where(_STUDIES.c.id == review.study_id).with_for_update(key_share=True))
    withdrawal: dict[str, Any] = {"code": code, "actor": review.reviewer, "now": now}
    for report in _reports_of_reader(session, review):
        if report.built_at is None and not cancel_verified_report(session, report.review_id, now=now):
            withdraw_report(session, report.id, **withdrawal)
    wanted = is_sent and review.verdict is not Verdict.WITHDRAW
    made = request_verified_report(session, review_id, now=now, delay_s=delay_s) if wanted else None
    if made is None:  # what the reader said of an earlier AI result was not taken back
        for report in _reports_of_reader(session, review):
            if report.about == review.report_id:
                withdraw_report(session, report.id, **withdrawal)
    return made


def _reports_of_reader(session: Session, review: ReviewFacts) -> Sequence[Any]:
    """Return the reports of a review's reader on its study that other reviews made, the newest first."""
    query = (
        select(_REPORTS.c.id, _REPORTS.c.review_id, _REPORTS.c.built_at, _REPORTS.c.withdrawn_at)
        .add_columns(_REVIEWS.c.report_id.label("about"))
        .join(_REVIEWS, _REVIEWS.c.id == _REPORTS.c.review_id)
        .where(_REPORTS.c.study_id == review.study_id, _REVIEWS.c.reviewer == review.reviewer)
        .where(_REPORTS.c.review_id != review.review_id)
        .order_by(_REPORTS.c.revision.desc())
    )
    return session.execute(query).all()


def _replaced_by(session: Session, review: ReviewFacts) -> UUID | None:
    """Return the reader's newest report that went out, or is about to."""
    for report in _reports_of_reader(session, review):
        is_there = any(delivery.may_be_there for delivery in deliveries_of(session, report.id))
        if is_there or (report.built_at is not None and report.withdrawn_at is None):
            return UUID(str(report.id))
    return None


def _answer_of(review: ReviewFacts, said: Answer, finding: str) -> Answer | None:
    """Return what the reader says of the finding; None if that cannot be told."""
    if said not in _SAID:
        return None
    if review.verdict is Verdict.AGREE:
        return said
    if review.verdict is Verdict.UNSURE:
        return Answer.UNDETERMINED
    if review.verdict is not Verdict.DISAGREE:
        return None
    if review.corrected_finding is not None:
        return Answer.PRESENT if review.corrected_finding == finding else Answer.ABSENT
    return {Answer.PRESENT: Answer.ABSENT, Answer.ABSENT: Answer.PRESENT}.get(said)
