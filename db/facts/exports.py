"""What leaves the node for training: studies that readers have judged, and the record that they left."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import select

from db import audit
from db.audit import Action
from db.engine import NoSuchRecord, Session
from db.facts.images import ImageFacts
from db.facts.reports import frozen_images
from db.facts.reviews import STANDING, ReviewFacts, reviews_of_study
from db.tables import Answer, Hold, RejectedObject, Report, Review, Study, Verdict, rows_of


@dataclass(frozen=True, slots=True, kw_only=True)
class StandingVerdict:
    """The last word of one reader, and the answer that it is about."""

    review: ReviewFacts
    answer: Answer | None
    """Of the report under review; None = there was none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewedStudy:
    """A study that somebody has judged; the patient attributes are for making pseudonyms and go nowhere else."""

    study_id: UUID
    study_instance_uid: str
    patient_id: str
    issuer_of_patient_id: str
    hold: Hold | None
    is_purged: bool
    verdicts: tuple[StandingVerdict, ...]
    """One per reader whose last word is a verdict, the newest last."""
    images: tuple[ImageFacts, ...]
    """As they stood when the newest of these was given."""
    rejected: frozenset[str]
    """SOP Instance UIDs that their sender has rejected since (IHE IOCM)."""


_STUDIES, _REVIEWS, _REPORTS = rows_of(Study), rows_of(Review), rows_of(Report)
_REJECTED = rows_of(RejectedObject)


def reviewed_studies(session: Session, since: datetime | None) -> list[UUID]:
    """Return the studies that a reader judged or withdrew a verdict on at or after `since`, in order of id."""
    query = select(_REVIEWS.c.study_id).where(_REVIEWS.c.verdict != Verdict.COMMENT)
    if since is not None:
        query = query.where(_REVIEWS.c.created_at >= since)
    return list(session.execute(query.distinct().order_by(_REVIEWS.c.study_id)).scalars())


def reviewed_study(session: Session, study_id: UUID) -> ReviewedStudy:
    """Return what all readers say about a study now.

    Raises
    ------
    NoSuchRecord
        There is no such study.
    """
    names = ("study_instance_uid", "patient_id", "issuer_of_patient_id", "hold", "purged_at")
    study = session.execute(select(*(_STUDIES.c[n] for n in names)).where(_STUDIES.c.id == study_id)).one_or_none()
    if study is None:
        raise NoSuchRecord(f"no study {study_id}")
    last = {r.reviewer: r for r in reviews_of_study(session, study_id) if r.verdict is not Verdict.COMMENT}
    standing = sorted((r for r in last.values() if r.verdict in STANDING), key=lambda r: (r.created_at, r.review_id))
    report_id = standing[-1].report_id if standing else None
    of_study = _REJECTED.c.study_instance_uid == study.study_instance_uid
    rejected = select(_REJECTED.c.sop_instance_uid).where(of_study)
    return ReviewedStudy(
        study_id=study_id,
        study_instance_uid=study.study_instance_uid,
        patient_id=study.patient_id,
        issuer_of_patient_id=study.issuer_of_patient_id,
        hold=study.hold,
        is_purged=study.purged_at is not None,
        verdicts=tuple(StandingVerdict(review=r, answer=_answer(session, r.report_id)) for r in standing),
        images=frozen_images(session, report_id) if report_id else (),
        rejected=frozenset(session.execute(rejected).scalars()),
    )


def record_export(
    session: Session,
    *,
    images: int,
    excluded: int,
    manifest_sha256: str,
    since: datetime | None,
    actor: str,
    now: datetime,
) -> None:
    """Record that images leave the node.

    Parameters
    ----------
    excluded
        Lines of the list of what was not exported.
    manifest_sha256
        Of the manifest's bytes, so that a data set in use can be traced to this event.
    """
    details = {
        "images": images,
        "excluded": excluded,
        "manifest_sha256": manifest_sha256,
        "since": since.isoformat() if since else None,
    }
    audit.append(session, Action.REVIEWS_EXPORTED, actor=actor, details=details, now=now)


def _answer(session: Session, report_id: UUID | None) -> Answer | None:
    if report_id is None:
        return None
    answer: Answer = session.execute(select(_REPORTS.c.answer).where(_REPORTS.c.id == report_id)).scalar_one()
    return answer
