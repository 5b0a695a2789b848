"""Studies as people see them: pages of a worklist, a search, one study in full."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, NamedTuple, Unpack
from uuid import UUID

from sqlalchemy import func, select

from db.engine import NoSuchRecord, Session
from db.facts.groups import GROUP_SORTS, IS_REVIEWED, NEEDS_READER, STUDIES
from db.facts.images import ImageFacts, WarningFacts, images_of_study
from db.facts.paging import older_than, page
from db.facts.reports import ReportFacts, reports_of_study
from db.facts.reviews import ReviewFacts, reviews_of_study, standing_about
from db.facts.study_filters import (
    BUILDING,
    CURRENT,
    HAS_FAILED,
    REPORTS,
    STATE,
    STUDY_SORTS,
    StudyFilters,
    ids_of_page,
)
from db.facts.visibility import Visible, may_see
from db.tables import Answer, Delivery, DeliveryState, Hold, Instance, Warning, rows_of


class DeliveryLine(NamedTuple):
    """Where the current report stands at one destination."""

    destination: str
    state: DeliveryState
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySummary:
    """One line of a worklist. Patient attributes are for pages that are asked for them, and never printed by `repr`."""

    study_id: UUID
    received_at: datetime
    last_received_at: datetime
    calling_ae_title: str
    state: str
    """One of `study_filters.STUDY_STATES`."""
    failed_job_id: UUID | None
    """Of the current report: it could not be built, and is built when this job is run again."""
    answer: Answer | None
    probability: float | None
    threshold: float | None
    """Of the prediction that gave the probability; so are the next three."""
    abstain_low: float | None
    abstain_high: float | None
    model_version: str | None
    withdrawn_at: datetime | None
    """Since then the answer counts no more; it is shown until it is replaced."""
    warnings: tuple[WarningFacts, ...]
    """Of all its images, each once."""
    images: int
    deliveries: tuple[DeliveryLine, ...]
    """Of the current report."""
    revision: int
    hold: Hold | None
    priority: int
    is_reviewed: bool
    """Readers have answered the current report, and what they said asks for no other reader."""
    needs_reader: bool
    """What readers said of the current report asks for another one."""
    standing: tuple[ReviewFacts, ...] = field(repr=False)
    """The last verdict of each reader on the current report, the first reader's first."""
    patient_name: str = field(repr=False)
    patient_id: str = field(repr=False)
    patient_birth_date: str = field(repr=False)
    patient_sex: str = field(repr=False)
    accession_number: str = field(repr=False)
    study_date: date | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyDetail:
    """One study in full."""

    summary: StudySummary
    study_instance_uid: str
    issuer_of_patient_id: str = field(repr=False)
    study_description: str = field(repr=False)
    purged_at: datetime | None
    images: tuple[ImageFacts, ...]
    views: Mapping[UUID, str]
    """PA or AP by image, where it is stated."""
    gone: frozenset[UUID]
    """Images whose bytes are no longer here."""
    reports: tuple[ReportFacts, ...]
    """Every revision, the first one first."""
    reviews: tuple[ReviewFacts, ...]

    @property
    def patient_birth_date(self) -> str:
        return self.summary.patient_birth_date

    @property
    def patient_sex(self) -> str:
        return self.summary.patient_sex


_STUDIES, _INSTANCES, _WARNINGS, _DELIVERIES = STUDIES, rows_of(Instance), rows_of(Warning), rows_of(Delivery)
_REPORTS, _BUILDING = REPORTS, BUILDING
_LINE = (
    select(
        _STUDIES.c.id.label("study_id"),
        _STUDIES.c.first_received_at.label("received_at"),
        *(
            _STUDIES.c[n]
            for n in ("last_received_at", "calling_ae_title", "revision", "hold", "priority", "study_date")
        ),
        *(
            _STUDIES.c[n]
            for n in ("patient_name", "patient_id", "patient_birth_date", "patient_sex", "accession_number")
        ),
        STATE.label("state"),
        _BUILDING.c.id.label("failed_job_id"),
        _REPORTS.c.id.label("report_id"),
        _STUDIES.c.answer,
        _STUDIES.c.probability,
        select(func.count()).where(_INSTANCES.c.study_id == _STUDIES.c.id).scalar_subquery().label("images"),
        _REPORTS.c.images.label("frozen"),
        _REPORTS.c.withdrawn_at,
        IS_REVIEWED.label("is_reviewed"),
        NEEDS_READER.label("needs_reader"),
    )
    .select_from(_STUDIES)
    .outerjoin(_REPORTS, CURRENT)
    .outerjoin(_BUILDING, HAS_FAILED)
)


def list_studies(
    session: Session,
    *,
    sort: str = "-received_at",
    limit: int = 50,
    cursor: str | None = None,
    **wanted: Unpack[StudyFilters],
) -> tuple[list[StudySummary], str | None]:
    """Return one page of studies, the newest first unless `sort` says otherwise, and the cursor of the next page.

    Parameters
    ----------
    sort
        A key of `STUDY_SORTS`.

    Raises
    ------
    ForeignCursor
        `cursor` is none that this function gave for this order.
    """
    ids = ids_of_page(session, wanted, sort=sort, limit=limit, cursor=cursor)
    found = {study.study_id: study for study in _summaries(session, _LINE.where(_STUDIES.c.id.in_(ids)))}
    keys = ["received_at" if name == "first_received_at" else name for name in STUDY_SORTS[sort].columns]
    studies = [found[study_id] for study_id in ids]
    return page(studies, limit, lambda study: (*(getattr(study, key) for key in keys), study.study_id))


def list_groups(
    session: Session, groups: Collection[str], *, limit: int, **wanted: Unpack[StudyFilters]
) -> list[StudySummary]:
    """Return the studies of each of these groups, at most `limit` of each; of `groups.GROUPS`.

    Of a longer group half are those with which it begins and half its newest: neither what waits longest nor what came
    just now is pushed off the list by the other.
    """
    ids: list[UUID] = []
    for group in groups:
        of_group = wanted | {"group": group}
        sort = GROUP_SORTS.get(group, "received_at")
        first = ids_of_page(session, of_group, sort=sort, limit=limit, cursor=None)
        if len(first) > limit and sort != "-received_at":
            newest = ids_of_page(session, of_group, sort="-received_at", limit=limit // 2, cursor=None)[: limit // 2]
            first = list(dict.fromkeys([*first[: limit - limit // 2], *newest]))
        ids += first[:limit]
    found = {study.study_id: study for study in _summaries(session, _LINE.where(_STUDIES.c.id.in_(ids)))}
    return [found[study_id] for study_id in ids]


def search_studies(
    session: Session,
    *,
    patient_id: str | None = None,
    patient_name: str | None = None,
    accession_number: str | None = None,
    visible: Visible | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> tuple[list[StudySummary], str | None]:
    """Return one page of the studies of a patient or an order, the newest first, and the cursor of the next page.

    Parameters
    ----------
    patient_id, accession_number
        The whole value.
    patient_name
        Any part of the name, in upper or lower case.
    visible
        What the caller may see; None = all.

    Raises
    ------
    ValueError
        Nothing to search for was given.
    ForeignCursor
        `cursor` is none that this function gave.
    """
    if not (patient_id or patient_name or accession_number):
        raise ValueError("a search needs a patient id, a patient name or an accession number")
    query = _LINE
    if patient_id:
        query = query.where(_STUDIES.c.patient_id == patient_id)
    if accession_number:
        query = query.where(_STUDIES.c.accession_number == accession_number)
    if visible is not None:
        query = query.where(may_see(visible))
    if patient_name:
        query = query.where(_STUDIES.c.patient_name.icontains(patient_name, autoescape=True))
    query = older_than(query, _STUDIES.c.first_received_at, _STUDIES.c.id, cursor, limit)
    return page(_summaries(session, query), limit, lambda study: (study.received_at, study.study_id))


def study_detail(session: Session, study_id: UUID) -> StudyDetail:
    """Return one study in full.

    Raises
    ------
    NoSuchRecord
        There is no such study.
    """
    summaries = _summaries(session, _LINE.where(_STUDIES.c.id == study_id))
    if not summaries:
        raise NoSuchRecord(f"no study {study_id}")
    names = (
        "study_instance_uid",
        "issuer_of_patient_id",
        "study_description",
        "purged_at",
    )
    row = (
        session.execute(select(*(_STUDIES.c[name] for name in names)).where(_STUDIES.c.id == study_id)).mappings().one()
    )
    of_image = select(_INSTANCES.c.id, _INSTANCES.c.view, _INSTANCES.c.gone_at).where(_INSTANCES.c.study_id == study_id)
    images = session.execute(of_image).all()
    return StudyDetail(
        **row,
        views={instance_id: view for instance_id, view, _ in images if view},
        gone=frozenset(instance_id for instance_id, _, gone_at in images if gone_at),
        summary=summaries[0],
        images=images_of_study(session, study_id),
        reports=reports_of_study(session, study_id),
        reviews=reviews_of_study(session, study_id),
    )


def count_stuck_studies(session: Session) -> dict[str, int]:
    """Return how many studies wait for a person: "held", but for withdrawn ones, and "failed"."""
    held = select(func.count()).select_from(_STUDIES).where(_STUDIES.c.hold != Hold.WITHDRAWN)
    failed = (
        select(func.count())
        .select_from(_BUILDING)
        .join(_REPORTS, HAS_FAILED)
        .join(_STUDIES, CURRENT)
        .where(_STUDIES.c.hold.is_(None))
    )
    return {"held": session.execute(held).scalar_one(), "failed": session.execute(failed).scalar_one()}


def _summaries(session: Session, query: Any) -> list[StudySummary]:
    rows = session.execute(query).mappings().all()
    studies = [row["study_id"] for row in rows]
    warnings = _warnings(session, studies)
    deliveries = _deliveries(session, [row["report_id"] for row in rows if row["report_id"]])
    standing = standing_about(session, {row["study_id"]: row["report_id"] for row in rows})
    return [
        StudySummary(
            **{name: value for name, value in row.items() if name not in ("report_id", "frozen")},
            **_decisive(row["frozen"] or [], row["probability"]),
            warnings=warnings.get(row["study_id"], ()),
            deliveries=deliveries.get(row["report_id"], ()),
            standing=standing.get(row["study_id"], ()),
        )
        for row in rows
    ]


def _decisive(frozen: Sequence[dict[str, Any]], probability: float | None) -> dict[str, Any]:
    """Return the operating point and the model of the prediction that gave the report's probability."""
    predictions = [prediction for image in frozen for prediction in image["predictions"]]
    decisive: dict[str, Any] = next((p for p in predictions if p["probability"] == probability), {})
    return {name: decisive.get(name) for name in ("threshold", "abstain_low", "abstain_high", "model_version")}


def _warnings(session: Session, studies: Sequence[UUID]) -> dict[UUID, tuple[WarningFacts, ...]]:
    columns = (_INSTANCES.c.study_id, _WARNINGS.c.code, _WARNINGS.c.severity, _WARNINGS.c.text)
    query = (
        select(*columns)
        .join(_INSTANCES, _INSTANCES.c.id == _WARNINGS.c.instance_id)
        .where(_INSTANCES.c.study_id.in_(studies), _WARNINGS.c.superseded_at.is_(None))
        .distinct()
        .order_by(*columns)
    )
    found: dict[UUID, tuple[WarningFacts, ...]] = {}
    for study_id, code, severity, text in session.execute(query):
        found[study_id] = (*found.get(study_id, ()), WarningFacts(code=code, severity=severity, text=text))
    return found


def _deliveries(session: Session, reports: Sequence[UUID]) -> dict[UUID, tuple[DeliveryLine, ...]]:
    columns = (_DELIVERIES.c.report_id, _DELIVERIES.c.destination, _DELIVERIES.c.state, _DELIVERIES.c.reason)
    query = select(*columns).where(_DELIVERIES.c.report_id.in_(reports)).order_by(_DELIVERIES.c.destination)
    found: dict[UUID, tuple[DeliveryLine, ...]] = {}
    for report_id, destination, state, reason in session.execute(query):
        found[report_id] = (*found.get(report_id, ()), DeliveryLine(destination, state, reason))
    return found
