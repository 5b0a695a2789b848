"""What readers said about an answer."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import insert, select

from db import audit
from db.audit import Action
from db.engine import NoSuchRecord, Session
from db.facts.arrival import clean
from db.facts.paging import older_than, page
from db.tables import Report, Review, Study, Verdict, new_id, rows_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewFacts:
    """One reader's word on one report."""

    review_id: UUID
    study_id: UUID
    report_id: UUID | None
    """The report that was current then."""
    verdict: Verdict
    comment: str
    reviewer: str
    created_at: datetime


_REVIEWS, _REPORTS, _STUDIES = rows_of(Review), rows_of(Report), rows_of(Study)
_COLUMNS = (
    _REVIEWS.c.id.label("review_id"),
    *(_REVIEWS.c[name] for name in list(ReviewFacts.__dataclass_fields__)[1:]),
)


def add_review(
    session: Session, study_id: UUID, *, verdict: Verdict, comment: str, reviewer: str, now: datetime
) -> ReviewFacts:
    """Record a reader's word on the study's current report.

    Raises
    ------
    NoSuchRecord
        There is no such study.
    """
    if session.execute(select(_STUDIES.c.id).where(_STUDIES.c.id == study_id)).first() is None:
        raise NoSuchRecord(f"no study {study_id}")
    newest = select(_REPORTS.c.id).where(_REPORTS.c.study_id == study_id).order_by(_REPORTS.c.revision.desc()).limit(1)
    review = ReviewFacts(
        review_id=new_id(),
        study_id=study_id,
        report_id=session.execute(newest).scalar_one_or_none(),
        verdict=verdict,
        comment=clean(comment),
        reviewer=clean(reviewer)[:64],
        created_at=now,
    )
    row = {name: getattr(review, name) for name in list(ReviewFacts.__dataclass_fields__)[1:]}
    session.execute(insert(_REVIEWS), row | {"id": review.review_id})
    details = {"study_id": str(study_id), "verdict": verdict.value}
    audit.append(
        session, Action.REVIEW_ADDED, actor=review.reviewer, subject_id=review.review_id, details=details, now=now
    )
    return review


def reviews_of_study(session: Session, study_id: UUID) -> tuple[ReviewFacts, ...]:
    """Return the reviews of a study, the first one first."""
    query = select(*_COLUMNS).where(_REVIEWS.c.study_id == study_id).order_by(_REVIEWS.c.created_at, _REVIEWS.c.id)
    return tuple(ReviewFacts(**row) for row in session.execute(query).mappings())


def list_reviews(
    session: Session,
    *,
    study_id: UUID | None = None,
    verdict: Verdict | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> tuple[list[ReviewFacts], str | None]:
    """Return one page of reviews, the newest first, and the cursor of the next page."""
    query = select(*_COLUMNS)
    if study_id is not None:
        query = query.where(_REVIEWS.c.study_id == study_id)
    if verdict is not None:
        query = query.where(_REVIEWS.c.verdict == verdict)
    query = older_than(query, _REVIEWS.c.created_at, _REVIEWS.c.id, cursor, limit)
    rows = [ReviewFacts(**row) for row in session.execute(query).mappings()]
    return page(rows, limit, lambda review: (review.created_at, review.review_id))
