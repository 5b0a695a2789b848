"""Which studies a worklist shows and in which order: ids first, found in one index, however many studies.

What stands on the study's own row is filtered while the index of worklists is walked. What stands elsewhere (an image's
warning, a job) is walked too while many studies have it; where few have it, those few are looked up first, for a walk
would pass all the others in search of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypedDict
from uuid import UUID

from sqlalchemy import ColumnElement, Select, and_, case, exists, func, select, union_all

from db.engine import Session
from db.facts.groups import GROUPS, IS_REVIEWED, PLACE, SAYINGS, SAYS, SAYS_VEILED, STUDIES
from db.facts.paging import turn_to
from db.facts.studies import is_being_judged, is_sent_to
from db.facts.visibility import Visible, may_see
from db.tables import (
    Answer,
    Delivery,
    DeliveryState,
    Instance,
    InstanceState,
    Job,
    JobKind,
    JobState,
    Prediction,
    Report,
    Warning,
    rows_of,
)

STUDY_STATES = ("receiving", "judging", "reporting", "answered", "held", "failed")
"""FAILED: its report could not be built; `failed_job_id` builds it when it is run again."""
FEW = 1000
"""So many studies are looked up one by one; more are walked."""


class StudyFilters(TypedDict, total=False):
    """What may be asked of a list of studies; None asks nothing."""

    state: str | None
    """One of `STUDY_STATES`."""
    answer: Answer | None
    finding: str | None
    """Some image was judged for it; the probability is then that image's."""
    probability_from: float | None
    probability_to: float | None
    """Both ends included."""
    warning: str | None
    """The code of a warning that some image of the study has."""
    calling_ae_title: str | None
    model_version: str | None
    is_reviewed: bool | None
    """Readers have answered the current report, and what they said asks for no other reader."""
    group: str | None
    """One of `groups.GROUPS`."""
    says: str | None
    """One of `groups.SAYINGS`."""
    end: str | None
    """One of `STUDY_ENDS`."""
    is_undelivered: bool | None
    """True = the current report was not built, or some destination did not take it."""
    priority: int | None
    """At least this."""
    received_from: datetime | None
    received_before: datetime | None
    visible: Visible | None
    """What the caller may see; None = all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sorting:
    """An order of studies: by these columns, then by id."""

    columns: tuple[str, ...]
    is_descending: bool = True


STUDY_SORTS = {
    "-received_at": Sorting(columns=("first_received_at",)),
    "received_at": Sorting(columns=("first_received_at",), is_descending=False),
    "-probability": Sorting(columns=("probability",)),
    "-priority": Sorting(columns=("priority", "first_received_at")),
}
"""`-` = falling. Studies without a probability are no part of the order by probability."""

REPORTS, JOBS, _DELIVERIES = rows_of(Report), rows_of(Job), rows_of(Delivery)
_INSTANCES, _PREDICTIONS, _WARNINGS = rows_of(Instance), rows_of(Prediction), rows_of(Warning)
CURRENT = and_(REPORTS.c.study_id == STUDIES.c.id, REPORTS.c.revision == STUDIES.c.revision)
BUILDING = JOBS.alias("building")
HAS_FAILED = and_(
    BUILDING.c.kind == JobKind.REPORT, BUILDING.c.subject_id == REPORTS.c.id, BUILDING.c.state == JobState.FAILED
)
_IS_DUE = STUDIES.c.unreported_since.is_not(None)
_IS_UNBUILT = and_(REPORTS.c.id.is_not(None), REPORTS.c.built_at.is_(None))
STATE = case(
    (STUDIES.c.hold.is_not(None), "held"),
    (and_(_IS_DUE, is_sent_to()), "receiving"),
    (is_being_judged(), "judging"),
    (_IS_DUE, "reporting"),
    (BUILDING.c.id.is_not(None), "failed"),
    (_IS_UNBUILT, "reporting"),
    else_="answered",
)
_IS_FAILED_IMAGE = (_INSTANCES.c.study_id == STUDIES.c.id, _INSTANCES.c.state == InstanceState.FAILED)
HAS_FAILED_IMAGE = exists().where(*_IS_FAILED_IMAGE).correlate(STUDIES)
_IS_NOT_ANALYSED = STUDIES.c.answer == Answer.NOT_ANALYSED
STUDY_ENDS = {
    "analysed": STUDIES.c.answer != Answer.NOT_ANALYSED,
    "not_analysed": and_(_IS_NOT_ANALYSED, ~HAS_FAILED_IMAGE),
    "failed": and_(_IS_NOT_ANALYSED, HAS_FAILED_IMAGE),
    "waiting": STUDIES.c.answer.is_(None),
}
"""Every study stands in exactly one of these, as `quality.count_studies` counts them."""
_DUE = select(STUDIES.c.id).where(_IS_DUE)
_UNBUILT = select(REPORTS.c.study_id).where(REPORTS.c.built_at.is_(None))
_JUDGED = select(JOBS.c.study_id).where(
    JOBS.c.kind == JobKind.INFER, JOBS.c.state.in_([JobState.READY, JobState.RUNNING])
)
_NOT_BUILT = select(JOBS.c.study_id).where(JOBS.c.kind == JobKind.REPORT, JOBS.c.state == JobState.FAILED)
_ITS = STUDIES.alias("its")
_ITS_CURRENT = and_(REPORTS.c.study_id == _ITS.c.id, REPORTS.c.revision == _ITS.c.revision)
_UNDELIVERED = union_all(
    select(_ITS.c.id)
    .join(REPORTS, _ITS_CURRENT)
    .join(_DELIVERIES, _DELIVERIES.c.report_id == REPORTS.c.id)
    .where(_DELIVERIES.c.state == DeliveryState.FAILED)
    .correlate(None),
    select(_ITS.c.id).join(REPORTS, _ITS_CURRENT).join(BUILDING, HAS_FAILED).correlate(None),
)
"""The studies of which some destination did not take the current report, or it was not built."""
_CANDIDATES = {"receiving": _DUE, "judging": _JUDGED, "reporting": union_all(_DUE, _UNBUILT), "failed": _NOT_BUILT}
"""By state: the studies among which all of that state are."""
_UNDER_WAY = union_all(_JUDGED, _UNBUILT, _NOT_BUILT)
"""The studies with a report among which all that are not answered are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupCount:
    """How many studies stand in a group and say the same."""

    group: str
    """One of `groups.GROUPS`."""
    says: str
    """One of `groups.SAYINGS`."""
    studies: int
    waiting_since: datetime
    """When the last image came of the one that waits longest."""


def count_groups(session: Session, wanted: StudyFilters, *, is_veiled: bool = False) -> list[GroupCount]:
    """Count the studies by where a reader finds them and what the model says.

    Parameters
    ----------
    is_veiled
        For who may not know yet what the model says.
    """
    says = SAYS_VEILED if is_veiled else SAYS
    columns = (PLACE.label("place"), says.label("says"), STUDIES.c.last_received_at)
    chosen = _filtered(session, select(*columns), wanted).subquery()
    place, said, waits = chosen.c
    query = select(place, said, func.count(), func.min(waits)).group_by(place, said)
    return [
        GroupCount(group=place or said, says=said, studies=n, waiting_since=since)
        for place, said, n, since in session.execute(query)
    ]


def count_studies(session: Session, wanted: StudyFilters, *, limit: int) -> int:
    """Count the studies, and no further than to `limit`."""
    chosen = _filtered(session, select(STUDIES.c.id), wanted).limit(limit).subquery()
    return session.execute(select(func.count()).select_from(chosen)).scalar_one()


def ids_of_page(
    session: Session, wanted: StudyFilters, *, sort: str = "-received_at", limit: int, cursor: str | None
) -> list[UUID]:
    """Return the ids of one page and of the row behind it, in order.

    Parameters
    ----------
    sort
        A key of `STUDY_SORTS`.

    Raises
    ------
    ForeignCursor
        `cursor` is none of this list and order.
    """
    sorting = STUDY_SORTS[sort]
    keys = [STUDIES.c[name] for name in sorting.columns]
    query = select(STUDIES.c.id).where(*(key.is_not(None) for key in keys if key.nullable))
    query = _filtered(session, query, wanted)
    query = turn_to(query, keys, STUDIES.c.id, cursor=cursor, limit=limit, is_descending=sorting.is_descending)
    return list(session.execute(query).scalars())


def _filtered(session: Session, query: Select[Any], wanted: StudyFilters) -> Select[Any]:
    query = query.where(*_on_the_row(wanted))
    finding, state, warning = wanted.get("finding"), wanted.get("state"), wanted.get("warning")
    if finding is not None:
        query = query.where(_narrowed(session, *_predicted(finding, wanted)))
    if warning is not None:
        query = query.where(_narrowed(session, *_warned(warning)))
    if wanted.get("is_undelivered"):
        query = query.where(STUDIES.c.id.in_(_UNDELIVERED))
    if state == "held":
        query = query.where(STUDIES.c.hold.is_not(None))
    elif state == "answered":
        query = _but_answered(session, query)
    elif state is not None:
        query = query.outerjoin(REPORTS, CURRENT).outerjoin(BUILDING, HAS_FAILED)
        query = query.where(STUDIES.c.hold.is_(None), STATE.in_([state]), _narrowed(session, _CANDIDATES[state]))
    return query


def _but_answered(session: Session, query: Select[Any]) -> Select[Any]:
    """Leave out the few studies that are in another state.

    A database that has to ask every study for its state takes the answered ones for few, and sorts them all.
    """
    query = query.where(STUDIES.c.hold.is_(None), ~_IS_DUE, STUDIES.c.revision > 0)
    others = few_studies(session, _UNDER_WAY)
    if others is None:
        return query.outerjoin(REPORTS, CURRENT).outerjoin(BUILDING, HAS_FAILED).where(STATE.in_(["answered"]))
    of_state = select(STUDIES.c.id).outerjoin(REPORTS, CURRENT).outerjoin(BUILDING, HAS_FAILED)
    answered = session.execute(of_state.where(STUDIES.c.id.in_(others), STATE.in_(["answered"]))).scalars()
    return query.where(STUDIES.c.id.not_in(others.difference(answered)))


def _on_the_row(wanted: StudyFilters) -> list[ColumnElement[bool]]:
    low, high = wanted.get("probability_from"), wanted.get("probability_to")
    if wanted.get("finding") is not None:
        low = high = None
    is_reviewed, visible = wanted.get("is_reviewed"), wanted.get("visible")
    row = STUDIES.c
    asked: list[tuple[Any, Any]] = [
        (wanted.get("answer"), lambda answer: row.answer == answer),
        (low, lambda bound: row.probability >= bound),
        (high, lambda bound: row.probability <= bound),
        (wanted.get("calling_ae_title"), lambda title: row.calling_ae_title == title),
        (wanted.get("model_version"), lambda version: row.model_version == version),
        (wanted.get("priority"), lambda priority: row.priority >= priority),
        (wanted.get("received_from"), lambda instant: row.first_received_at >= instant),
        (wanted.get("received_before"), lambda instant: row.first_received_at < instant),
        (wanted.get("group"), lambda group: GROUPS[group]),
        (wanted.get("end"), lambda end: STUDY_ENDS[end]),
        (wanted.get("says"), lambda says: SAYINGS[says]),
        (is_reviewed, lambda is_wanted: IS_REVIEWED if is_wanted else ~IS_REVIEWED),
        (visible, may_see),
    ]
    return [condition(value) for value, condition in asked if value is not None]


def _narrowed(session: Session, candidates: Any, is_member: ColumnElement[bool] | None = None) -> ColumnElement[bool]:
    """Name the studies where they are few; else say what makes one of them (None = the caller does)."""
    found = few_studies(session, candidates)
    few = STUDIES.c.id.in_(found) if found is not None else None
    parts = [part for part in (few, is_member) if part is not None]
    return and_(True, *parts)


def few_studies(session: Session, candidates: Any) -> set[UUID] | None:
    """Return the ids that a query gives; None where they are more than `FEW`."""
    found = set(session.execute(candidates.limit(FEW + 1)).scalars())
    return found if len(found) <= FEW else None


def _warned(code: str) -> tuple[Any, ColumnElement[bool]]:
    is_meant = and_(_WARNINGS.c.code == code, _WARNINGS.c.superseded_at.is_(None))
    return _of_some_image(_WARNINGS, is_meant)


def _predicted(finding: str, wanted: StudyFilters) -> tuple[Any, ColumnElement[bool]]:
    low, high = wanted.get("probability_from"), wanted.get("probability_to")
    parts = [_PREDICTIONS.c.finding == finding, _PREDICTIONS.c.superseded_at.is_(None)]
    if low is not None:
        parts.append(_PREDICTIONS.c.probability >= low)
    if high is not None:
        parts.append(_PREDICTIONS.c.probability <= high)
    return _of_some_image(_PREDICTIONS, and_(*parts))


def _of_some_image(table: Any, is_meant: ColumnElement[bool]) -> tuple[Any, ColumnElement[bool]]:
    """Return the studies of which some image has such a row, and what makes one of them.

    Two steps inside one another: in a join, a database without statistics may begin at the wrong end for every study.
    """
    its_image = table.c.instance_id == _INSTANCES.c.id
    candidates = select(_INSTANCES.c.study_id).join(table, its_image).where(is_meant)
    has_row = exists().where(its_image, is_meant).correlate(_INSTANCES)
    of_study = _INSTANCES.c.study_id == STUDIES.c.id
    return candidates, exists(select(_INSTANCES.c.id).where(of_study, has_row).correlate(STUDIES))
