"""Who may see which studies: groups are given senders and institutions; a study belongs to those of its first image.

An institution is kept and compared in one spelling; what a sender wrote otherwise goes no further than this room.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, false, or_, select

from db.engine import Session
from db.tables import INSTITUTION_LENGTH, Delivery, Instance, Job, Prediction, Report, Review, Study, Warning, rows_of

_STUDIES, _REPORTS, _DELIVERIES = rows_of(Study), rows_of(Report), rows_of(Delivery)
_INSTANCES, _REVIEWS, _JOBS = rows_of(Instance), rows_of(Review), rows_of(Job)
_PREDICTIONS, _WARNINGS = rows_of(Prediction), rows_of(Warning)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a study came from."""

    calling_ae_title: str
    institution: str = field(repr=False)
    """In one spelling; empty = its first image names none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Visible:
    """The studies that a caller may see: of any of these senders, or of any of these institutions."""

    senders: frozenset[str] = frozenset()
    """Calling AE titles."""
    institutions: frozenset[str] = field(default=frozenset(), repr=False)
    """As `one_spelling` writes them."""

    def covers(self, origin: Origin) -> bool:
        """Tell whether a study from there may be seen."""
        return origin.calling_ae_title in self.senders or origin.institution in self.institutions


def one_spelling(institution: str) -> str:
    """Return an Institution Name (0008,0080) as it is compared: case, width, form and number of blanks do not count."""
    return " ".join(unicodedata.normalize("NFKC", institution).casefold().split())[:INSTITUTION_LENGTH]


def may_see(visible: Visible, sender: ColumnElement[Any] = _STUDIES.c.calling_ae_title) -> ColumnElement[bool]:
    """Match the studies that may be seen.

    Parameters
    ----------
    sender
        Where the calling AE title stands for what may have no study.
    """
    asked = ((sender, visible.senders), (_STUDIES.c.institution, visible.institutions))
    return or_(false(), *(column.in_(sorted(wanted)) for column, wanted in asked if wanted))


def origin_of(session: Session, name: str, subject_id: UUID) -> Origin | None:
    """Return where the study came from that a subject belongs to; None where there is no such subject.

    Parameters
    ----------
    name
        What the id is of: `study_id`, `instance_id`, `prediction_id`, `warning_id`, `report_id`, `delivery_id`,
        `review_id` or `job_id`.
    """
    reports, images = select(_REPORTS.c.study_id), select(_INSTANCES.c.study_id)
    of_study: dict[str, Any] = {
        "study_id": [subject_id],
        "instance_id": images.where(_INSTANCES.c.id == subject_id),
        "prediction_id": images.join(_PREDICTIONS, _PREDICTIONS.c.instance_id == _INSTANCES.c.id).where(
            _PREDICTIONS.c.id == subject_id
        ),
        "warning_id": images.join(_WARNINGS, _WARNINGS.c.instance_id == _INSTANCES.c.id).where(
            _WARNINGS.c.id == subject_id
        ),
        "report_id": reports.where(_REPORTS.c.id == subject_id),
        "delivery_id": reports.join(_DELIVERIES, _DELIVERIES.c.report_id == _REPORTS.c.id).where(
            _DELIVERIES.c.id == subject_id
        ),
        "review_id": select(_REVIEWS.c.study_id).where(_REVIEWS.c.id == subject_id),
        "job_id": select(_JOBS.c.study_id).where(_JOBS.c.id == subject_id),
    }
    query = select(_STUDIES.c.calling_ae_title, _STUDIES.c.institution).where(_STUDIES.c.id.in_(of_study[name]))
    row = session.execute(query).mappings().one_or_none()
    return None if row is None else Origin(**row)
