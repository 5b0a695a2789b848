"""What the quality page counts: where everything received ended, and how long each step took.

Nothing here names a patient. A period is a half-open interval of instants; `sender` and `visible` choose among
studies. What readers said is in `db.facts.readings`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, Text, and_, func, select

from db.engine import Session
from db.facts.results import Conservation
from db.facts.study_filters import CURRENT, HAS_FAILED_IMAGE
from db.facts.visibility import Visible, may_see
from db.tables import (
    Answer,
    Association,
    Delivery,
    DeliveryState,
    Instance,
    InstanceState,
    Job,
    JobKind,
    JobState,
    Outcome,
    Prediction,
    Receipt,
    Report,
    Study,
    Warning,
    rows_of,
)

NO_REASON = "no_reason"
SAMPLES_MAX = 5000
"""Newest steps whose times are read: enough for a 95th percentile, few enough for a page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Which part of the node's work is counted."""

    since: datetime
    until: datetime
    sender: str = ""
    """A calling AE title; empty = all."""
    visible: Visible | None = None
    """What the caller may see; None = all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyEnds:
    """The studies whose first image arrived in the period, each in exactly one place."""

    received: int
    above: int
    undetermined: int
    """In the abstain band, or not every image could be judged."""
    below: int
    not_analysed: int
    failed: int
    waiting: int

    @property
    def analysed(self) -> int:
        return self.above + self.undetermined + self.below

    @property
    def adds_up(self) -> bool:
        """Tell whether every study stands somewhere."""
        return self.received == self.analysed + self.not_analysed + self.failed + self.waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """How long one step took, in seconds, for the newest times it was done."""

    step: str
    times_s: tuple[float, ...]


_STUDIES, _INSTANCES, _RECEIPTS, _REPORTS = (rows_of(table) for table in (Study, Instance, Receipt, Report))
_PREDICTIONS, _WARNINGS, _DELIVERIES, _JOBS = (rows_of(table) for table in (Prediction, Warning, Delivery, Job))
_ASSOCIATIONS = rows_of(Association)


def in_scope(scope: Scope, sender: ColumnElement[Any] = _STUDIES.c.calling_ae_title) -> list[ColumnElement[bool]]:
    """Return the conditions that `sender` and `visible` put on studies, or on what `sender` names the sender of."""
    chosen = [sender == scope.sender] if scope.sender else []
    return chosen + ([may_see(scope.visible, sender)] if scope.visible is not None else [])


def _during(scope: Scope, at: ColumnElement[Any]) -> ColumnElement[bool]:
    return and_(at >= scope.since, at < scope.until)


def count_objects(session: Session, scope: Scope) -> Conservation:
    """Count every object received in the period by where it ended; `received` is counted from the receipts alone."""
    title = func.coalesce(_ASSOCIATIONS.c.calling_ae_title, _STUDIES.c.calling_ae_title)
    query = (
        select(_RECEIPTS.c.outcome.cast(Text), _INSTANCES.c.state.cast(Text), func.count())
        .select_from(_RECEIPTS)
        .outerjoin(_INSTANCES, _INSTANCES.c.id == _RECEIPTS.c.instance_id)
        .outerjoin(_STUDIES, _STUDIES.c.id == _INSTANCES.c.study_id)
        .outerjoin(_ASSOCIATIONS, _ASSOCIATIONS.c.id == _RECEIPTS.c.association_id)
        .where(_during(scope, _RECEIPTS.c.received_at), *in_scope(scope, title))
        .group_by(_RECEIPTS.c.outcome, _INSTANCES.c.state)
    )
    rows = session.execute(query).all()
    ends = dict.fromkeys((*InstanceState, Outcome.DUPLICATE, Outcome.QUARANTINED), 0)
    for outcome, state, count in rows:
        end = state if outcome == Outcome.NEW else outcome
        if end is not None:  # a receipt whose image is gone is received and nowhere: the sum then does not add up
            ends[end] += count
    return Conservation(received=sum(count for _, _, count in rows), **{str(end): n for end, n in ends.items()})


def count_studies(session: Session, scope: Scope) -> StudyEnds:
    """Count the studies whose first image arrived in the period by where they stand now."""
    chosen = (
        select(_REPORTS.c.answer.cast(Text).label("answer"), HAS_FAILED_IMAGE.label("has_failed"))
        .select_from(_STUDIES)
        .outerjoin(_REPORTS, CURRENT)
        .where(_during(scope, _STUDIES.c.first_received_at), *in_scope(scope))
        .subquery()
    )
    query = select(chosen.c.answer, chosen.c.has_failed, func.count()).group_by(chosen.c.answer, chosen.c.has_failed)
    found: dict[str, int] = {}
    for said, has_failed, count in session.execute(query):
        place = "failed" if said == Answer.NOT_ANALYSED and has_failed else said or "waiting"
        found[place] = found.get(place, 0) + count
    return StudyEnds(
        received=_count(session, scope),
        above=found.get(Answer.PRESENT, 0),
        undetermined=found.get(Answer.UNDETERMINED, 0) + found.get(Answer.INCOMPLETE, 0),
        below=found.get(Answer.ABSENT, 0),
        not_analysed=found.get(Answer.NOT_ANALYSED, 0),
        failed=found.get("failed", 0),
        waiting=found.get("waiting", 0),
    )


def _count(session: Session, scope: Scope) -> int:
    chosen = (_during(scope, _STUDIES.c.first_received_at), *in_scope(scope))
    return session.execute(select(func.count()).select_from(_STUDIES).where(*chosen)).scalar_one()


def count_reasons(session: Session, scope: Scope) -> list[tuple[str, int]]:
    """Count the images not analysed by their reason, the most frequent first; of several reasons the first code."""
    first = (
        select(_WARNINGS.c.instance_id, func.min(_WARNINGS.c.code).label("code"))
        .where(_WARNINGS.c.superseded_at.is_(None), _WARNINGS.c.severity == "forbids")
        .group_by(_WARNINGS.c.instance_id)
        .subquery()
    )
    query = (
        select(first.c.code, func.count())
        .select_from(_INSTANCES)
        .join(_STUDIES, _STUDIES.c.id == _INSTANCES.c.study_id)
        .outerjoin(first, first.c.instance_id == _INSTANCES.c.id)
        .where(_INSTANCES.c.state == InstanceState.NOT_ANALYSED, _during(scope, _INSTANCES.c.received_at))
        .where(*in_scope(scope))
        .group_by(first.c.code)
    )
    counted = [(code or NO_REASON, n) for code, n in session.execute(query)]
    return sorted(counted, key=lambda row: (-row[1], row[0]))


def count_failures(session: Session, scope: Scope) -> dict[JobKind, int]:
    """Count the jobs of the period that failed and wait for a person, by kind."""
    query = (
        select(_JOBS.c.kind, func.count())
        .join(_STUDIES, _STUDIES.c.id == _JOBS.c.study_id)
        .where(_JOBS.c.state == JobState.FAILED, _during(scope, _JOBS.c.created_at))
        .where(*in_scope(scope))
        .group_by(_JOBS.c.kind)
    )
    return dict(session.execute(query).all())


def count_deliveries_of(session: Session, scope: Scope) -> dict[str, dict[DeliveryState, int]]:
    """Count the deliveries that were planned in the period, by destination and state."""
    query = (
        select(_DELIVERIES.c.destination, _DELIVERIES.c.state, func.count())
        .join(_REPORTS, _REPORTS.c.id == _DELIVERIES.c.report_id)
        .join(_STUDIES, _STUDIES.c.id == _REPORTS.c.study_id)
        .where(_during(scope, _DELIVERIES.c.created_at), *in_scope(scope))
        .group_by(_DELIVERIES.c.destination, _DELIVERIES.c.state)
        .order_by(_DELIVERIES.c.destination)
    )
    found: dict[str, dict[DeliveryState, int]] = {}
    for destination, state, count in session.execute(query):
        found.setdefault(destination, {})[state] = count
    return found


def step_times(session: Session, scope: Scope) -> list[StepTimes]:
    """Return how long the steps took that began in the period; each is measured by itself."""
    chosen = in_scope(scope)
    images = (
        select(_INSTANCES.c.received_at, func.min(_PREDICTIONS.c.created_at))
        .join(_PREDICTIONS, _PREDICTIONS.c.instance_id == _INSTANCES.c.id)
        .join(_STUDIES, _STUDIES.c.id == _INSTANCES.c.study_id)
        .where(_during(scope, _INSTANCES.c.received_at), *chosen)
        .group_by(_INSTANCES.c.id, _INSTANCES.c.received_at)
        .order_by(_INSTANCES.c.received_at.desc())
    )
    reports = (
        select(_REPORTS.c.content_at, _REPORTS.c.built_at)
        .join(_STUDIES, _STUDIES.c.id == _REPORTS.c.study_id)
        .where(_REPORTS.c.built_at.is_not(None), _during(scope, _REPORTS.c.content_at), *chosen)
        .order_by(_REPORTS.c.content_at.desc())
    )
    sent = (
        select(_DELIVERIES.c.created_at, _DELIVERIES.c.sent_at)
        .join(_REPORTS, _REPORTS.c.id == _DELIVERIES.c.report_id)
        .join(_STUDIES, _STUDIES.c.id == _REPORTS.c.study_id)
        .where(_DELIVERIES.c.sent_at.is_not(None), _during(scope, _DELIVERIES.c.created_at), *chosen)
        .order_by(_DELIVERIES.c.created_at.desc())
    )
    whole = (
        select(_STUDIES.c.first_received_at, func.min(_DELIVERIES.c.sent_at))
        .join(_REPORTS, _REPORTS.c.study_id == _STUDIES.c.id)
        .join(_DELIVERIES, _DELIVERIES.c.report_id == _REPORTS.c.id)
        .where(_DELIVERIES.c.sent_at.is_not(None), _during(scope, _STUDIES.c.first_received_at), *chosen)
        .group_by(_STUDIES.c.id, _STUDIES.c.first_received_at)
        .order_by(_STUDIES.c.first_received_at.desc())
    )
    return [
        StepTimes(step="an image received, until it is judged", times_s=_gaps(session, images)),
        StepTimes(step="an answer frozen, until its report is built", times_s=_gaps(session, reports)),
        StepTimes(step="a report planned, until it is stored", times_s=_gaps(session, sent)),
        StepTimes(step="a study's first image, until its report is stored", times_s=_gaps(session, whole)),
    ]


def _gaps(session: Session, query: Select[Any]) -> tuple[float, ...]:
    pairs: Sequence[Any] = session.execute(query.limit(SAMPLES_MAX)).all()
    return tuple(sorted(max((then - begun).total_seconds(), 0.0) for begun, then in pairs))
