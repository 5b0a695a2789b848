"""What readers said about an answer. Every word is kept: a change is a new review that names the one it replaces.

Each reader of a study's report has a chain of verdicts; its last link *stands* unless it withdraws. The first reader's
chain is reading 1, the second reader's 2. A comment is beside the chains.

While no answer leads among the standing words (all are unsure, or as many say one thing as another) the study asks for
another reader, and is not reviewed.

A `ReviewState` carries a tag that changes with every verdict and with every new report. Who hands in the tag that was
read is refused when it changed since (`ReviewConflict`), so that nobody answers to what was never seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, exists, insert, select, update

from db import audit
from db.audit import Action
from db.engine import NoSuchRecord, Session
from db.facts.arrival import clean
from db.tables import NOT_REVIEWED, Report, Review, Study, Verdict, new_id, rows_of

STANDING = (Verdict.AGREE, Verdict.DISAGREE, Verdict.UNSURE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A rectangle of one image, in whole pixels of the stored image from its top left corner (PS3.3 C.18.6 counts so).

    The right and the bottom edge lie outside: width is ``right - left``.
    """

    instance_id: UUID
    left: int
    top: int
    right: int
    bottom: int


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
    predecessor_id: UUID | None = None
    """The same reader's review that this one takes the place of."""
    reading: int = 1
    """1 = the first reader's word, 2 = the second reader's, ..."""
    corrected_finding: str | None = None
    """What the reader sees instead; `normal` = nothing."""
    region: Region | None = None
    is_blind: bool = False
    """Given before the reader saw the model's answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewState:
    """Where the reading of a study's current report stands."""

    tag: str
    """Changes with every verdict and with every new report."""
    report_id: UUID | None
    standing: tuple[ReviewFacts, ...]
    """The last verdict of each reader who did not withdraw, the first reader's first."""
    newest: ReviewFacts | None
    """The verdict or withdrawal that came last."""


class ReviewConflict(Exception):
    """Somebody else, or a new report, came first; `state` says what stands now."""

    def __init__(self, state: ReviewState) -> None:
        super().__init__("the reviews of this study have changed")
        self.state = state


_REVIEWS, _REPORTS, _STUDIES = rows_of(Review), rows_of(Report), rows_of(Study)
_COLUMNS = (
    _REVIEWS.c.id.label("review_id"),
    *(_REVIEWS.c[name] for name in list(ReviewFacts.__dataclass_fields__)[1:]),
)


def add_review(
    session: Session,
    study_id: UUID,
    *,
    verdict: Verdict,
    comment: str,
    reviewer: str,
    now: datetime,
    corrected_finding: str | None = None,
    region: Region | None = None,
    is_blind: bool = False,
    predecessor_id: UUID | None = None,
    tag: str | None = None,
    actor: str | None = None,
) -> ReviewFacts:
    """Record a reader's word on the study's current report; a reader's second verdict takes the place of the first.

    Parameters
    ----------
    is_blind
        The reader has not seen the model's answer; not believed of one who has answered before, and was shown it then.
    predecessor_id
        The review that the reader changes or withdraws; None = the reader's standing one, if there is one.
    tag
        What the reader saw (`ReviewState.tag`); None = not compared.
    actor
        Of the audit event; None = the reviewer.

    Raises
    ------
    NoSuchRecord
        There is no such study, or nothing of this reader to withdraw.
    ReviewConflict
        `tag` is not the present one, or `predecessor_id` is not a standing review of this reader.
    """
    locked = select(_STUDIES.c.id).where(_STUDIES.c.id == study_id).with_for_update(key_share=True)
    if session.execute(locked).first() is None:
        raise NoSuchRecord(f"no study {study_id}")
    state = review_state(session, study_id)
    reviewer = clean(reviewer)[:64]
    own = next((review for review in state.standing if review.reviewer == reviewer), None)
    if verdict is not Verdict.COMMENT:
        _refuse_conflict(state, own, predecessor_id, tag)
        if verdict is Verdict.WITHDRAW and own is None:
            raise NoSuchRecord("no standing review of this reader")
    review = ReviewFacts(
        review_id=new_id(),
        study_id=study_id,
        report_id=state.report_id,
        verdict=verdict,
        comment=clean(comment),
        reviewer=reviewer,
        created_at=now,
        predecessor_id=own.review_id if own and verdict is not Verdict.COMMENT else None,
        reading=own.reading if own else 1 + max((review.reading for review in state.standing), default=0),
        corrected_finding=corrected_finding,
        region=region,
        is_blind=is_blind and not _has_spoken(session, state.report_id, reviewer),
    )
    _insert(session, review, actor or review.reviewer)
    if verdict is not Verdict.COMMENT:
        _mark(session, study_id)
    return review


def review_state(session: Session, study_id: UUID) -> ReviewState:
    """Return what stands about the study's current report; a study without a report has an empty state."""
    report_id = _report_under_review(session, study_id)
    about = _REVIEWS.c.report_id == report_id if report_id else _REVIEWS.c.report_id.is_(None)
    said = _where(session, _REVIEWS.c.study_id == study_id, about, _REVIEWS.c.verdict != Verdict.COMMENT)
    replaced = {review.predecessor_id for review in said}
    standing = [review for review in said if review.verdict in STANDING and review.review_id not in replaced]
    newest = said[-1] if said else None
    return ReviewState(
        tag=f"{report_id or 0}.{newest.review_id if newest else 0}",
        report_id=report_id,
        standing=tuple(sorted(standing, key=lambda review: review.reading)),
        newest=newest,
    )


def asks_another(standing: Iterable[ReviewFacts]) -> bool:
    """Tell whether readers have answered and none of their answers leads; who is unsure gives none."""
    verdicts = [(review.verdict, review.corrected_finding) for review in standing]
    counts = [n for _, n in Counter(said for said in verdicts if said[0] is not Verdict.UNSURE).most_common(2)]
    return bool(verdicts) and (not counts or counts[:1] == counts[1:])


def standing_about(session: Session, reports: Mapping[UUID, UUID | None]) -> dict[UUID, tuple[ReviewFacts, ...]]:
    """Return the standing verdicts of several studies, the first reader's first.

    Parameters
    ----------
    reports
        By study, the report that they are about; None = the study has none yet.
    """
    later = _REVIEWS.alias("later")
    stands = (_REVIEWS.c.verdict.in_(STANDING), ~exists().where(later.c.predecessor_id == _REVIEWS.c.id))
    found: dict[UUID, tuple[ReviewFacts, ...]] = {}
    for review in sorted(_where(session, _REVIEWS.c.study_id.in_(reports), *stands), key=lambda said: said.reading):
        if review.report_id == reports[review.study_id]:
            found[review.study_id] = (*found.get(review.study_id, ()), review)
    return found


def reviews_of_study(session: Session, study_id: UUID) -> tuple[ReviewFacts, ...]:
    """Return the reviews of a study, the first one first."""
    return _where(session, _REVIEWS.c.study_id == study_id)


def review_facts(session: Session, review_id: UUID) -> ReviewFacts:
    """Return one review.

    Raises
    ------
    NoSuchRecord
        There is no such review.
    """
    found = _where(session, _REVIEWS.c.id == review_id)
    if not found:
        raise NoSuchRecord(f"no review {review_id}")
    return found[0]


def review_from(*, region: dict[str, Any] | None, **columns: Any) -> ReviewFacts:
    """Return the value of one row of `reviews`."""
    drawn = Region(**{**region, "instance_id": UUID(region["instance_id"])}) if region else None
    return ReviewFacts(region=drawn, **columns)


def _refuse_conflict(state: ReviewState, own: ReviewFacts | None, predecessor_id: UUID | None, tag: str | None) -> None:
    is_stale = tag is not None and tag != state.tag
    is_not_own = predecessor_id is not None and (own is None or own.review_id != predecessor_id)
    if is_stale or is_not_own:
        raise ReviewConflict(state)


def _insert(session: Session, review: ReviewFacts, actor: str) -> None:
    row: dict[str, Any] = {name: getattr(review, name) for name in list(ReviewFacts.__dataclass_fields__)[1:]}
    if review.region is not None:
        row["region"] = asdict(review.region) | {"instance_id": str(review.region.instance_id)}
    session.execute(insert(_REVIEWS), row | {"id": review.review_id})
    details: dict[str, Any] = {"study_id": str(review.study_id), "verdict": review.verdict.value}
    details["reading"] = review.reading
    if review.is_blind:
        details["is_blind"] = True
    if review.predecessor_id is not None:
        details["predecessor_id"] = str(review.predecessor_id)
    if review.corrected_finding is not None:
        details["corrected_finding"] = review.corrected_finding
    audit.append(
        session, Action.REVIEW_ADDED, actor=actor, subject_id=review.review_id, details=details, now=review.created_at
    )


def _has_spoken(session: Session, report_id: UUID | None, reviewer: str) -> bool:
    said = (_REVIEWS.c.report_id == report_id, _REVIEWS.c.reviewer == reviewer, _REVIEWS.c.verdict != Verdict.COMMENT)
    return session.execute(select(_REVIEWS.c.id).where(*said).limit(1)).first() is not None


def answered_by(session: Session, study_ids: Collection[UUID], reviewer: str) -> frozenset[UUID]:
    """Return those of the studies on whose current report a verdict of this reader stands."""
    later, newer = _REVIEWS.alias("later"), _REPORTS.alias("newer")
    is_newer = (newer.c.study_id == _REPORTS.c.study_id) & (newer.c.revision > _REPORTS.c.revision)
    query = (
        select(_REVIEWS.c.study_id)
        .join(_REPORTS, _REPORTS.c.id == _REVIEWS.c.report_id)
        .where(_REVIEWS.c.study_id.in_(study_ids), _REVIEWS.c.reviewer == reviewer, _REVIEWS.c.verdict.in_(STANDING))
        .where(~exists().where(later.c.predecessor_id == _REVIEWS.c.id))
        .where(~exists().where(is_newer, newer.c.review_id.is_(None)))  # a verified report says the same again
    )
    return frozenset(session.execute(query).scalars())


def _mark(session: Session, study_id: UUID) -> None:
    """Note on the study whether its current report is reviewed, or asks for another reader, for worklists."""
    standing = review_state(session, study_id).standing
    is_asked = asks_another(standing)
    marks = {"reviewed_revision": bool(standing) and not is_asked, "asked_revision": is_asked}
    values = {name: _STUDIES.c.revision if is_so else NOT_REVIEWED for name, is_so in marks.items()}
    session.execute(update(_STUDIES).where(_STUDIES.c.id == study_id).values(values))


def _report_under_review(session: Session, study_id: UUID) -> UUID | None:
    """Return the newest report in which the model speaks: one that a reader verified only says it again."""
    by_model = (_REPORTS.c.study_id == study_id) & _REPORTS.c.review_id.is_(None)
    newest = select(_REPORTS.c.id).where(by_model).order_by(_REPORTS.c.revision.desc()).limit(1)
    return session.execute(newest).scalar_one_or_none()


def _where(session: Session, *conditions: ColumnElement[bool]) -> tuple[ReviewFacts, ...]:
    query = select(*_COLUMNS).where(*conditions).order_by(_REVIEWS.c.created_at, _REVIEWS.c.id)
    return tuple(review_from(**row) for row in session.execute(query).mappings())
