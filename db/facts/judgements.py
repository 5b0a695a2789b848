"""What the worker found out about an image: predictions and warnings, or that it failed.

Whoever records several judgements in one transaction does so in order of `study_id`: each takes its study's row first,
and two transactions that took them in different orders would wait for each other (`DatabaseAway` on PostgreSQL).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, insert, select, update

from db import audit
from db.audit import Action
from db.engine import NoSuchRecord, Session
from db.facts.arrival import clean
from db.facts.devices import SeenDevice
from db.facts.images import ImageFacts, NewPrediction, WarningFacts, image_of
from db.tables import Instance, InstanceState, Prediction, Study, Warning, rows_of

ERROR_CHARACTERS = 500
"""Of an error that a warning quotes; the job keeps more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceFile:
    """Where an instance's bytes are, for the worker."""

    instance_id: UUID
    study_id: UUID
    path: str
    sop_class_uid: str
    sop_instance_uid: str
    received_at: datetime


_INSTANCES, _STUDIES = rows_of(Instance), rows_of(Study)
_PREDICTIONS, _WARNINGS = rows_of(Prediction), rows_of(Warning)
_FILE = (
    _INSTANCES.c.id.label("instance_id"),
    *(_INSTANCES.c[name] for name in list(InstanceFile.__dataclass_fields__)[1:]),
)


def instance_files(session: Session, instance_ids: Sequence[UUID]) -> dict[UUID, InstanceFile]:
    """Return where the bytes of these instances are; unknown ids are left out."""
    rows = session.execute(select(*_FILE).where(_INSTANCES.c.id.in_(instance_ids))).mappings()
    return {row["instance_id"]: InstanceFile(**row) for row in rows}


def record_judgement(
    session: Session,
    instance_id: UUID,
    *,
    predictions: Sequence[NewPrediction],
    warnings: Sequence[WarningFacts],
    voi: str | None,
    device: SeenDevice | None = None,
    view: str = "",
    now: datetime,
) -> None:
    """Record what judging an image found: *analysed* with its predictions, or *not analysed* with its reason.

    An earlier judgement is superseded, not deleted; recording the same again changes nothing.

    Parameters
    ----------
    voi
        Which VOI path the preprocessing took; None if it did not come so far.
    device, view
        What took the image, and whether it is a "PA" or an "AP" view, where it says so.

    Raises
    ------
    NoSuchRecord
        There is no such instance.
    """
    state = InstanceState.ANALYSED if predictions else InstanceState.NOT_ANALYSED
    if not _take_turn(session, instance_id, state, predictions, warnings, now):
        return
    told = {"state": state, "voi": voi, "device": device.name if device else "", "view": view}
    session.execute(update(_INSTANCES).where(_INSTANCES.c.id == instance_id).values(told))
    action = Action.INSTANCE_JUDGED if predictions else Action.INSTANCE_NOT_ANALYSED
    details: dict[str, Any] = {"codes": sorted(warning.code for warning in warnings)}
    if predictions:
        details["model"] = f"{predictions[0].model_name} {predictions[0].model_version}"
    audit.append(session, action, actor="worker", subject_id=instance_id, details=details, now=now)


def record_failure(
    session: Session, instance_id: UUID, *, error_text: str, is_gone: bool = False, now: datetime
) -> None:
    """Record that an image could not be processed: kept, listed, and run again by an operator.

    Parameters
    ----------
    is_gone
        Its bytes are not there any more: it runs again when they come again.

    Raises
    ------
    NoSuchRecord
        There is no such instance.
    """
    warning = WarningFacts(code="processing_failed", severity="forbids", text=clean(error_text)[:ERROR_CHARACTERS])
    if not _take_turn(session, instance_id, InstanceState.FAILED, [], [warning], now):
        return
    told = {"state": InstanceState.FAILED} | ({"gone_at": func.coalesce(_INSTANCES.c.gone_at, now)} if is_gone else {})
    session.execute(update(_INSTANCES).where(_INSTANCES.c.id == instance_id).values(told))
    audit.append(session, Action.INSTANCE_FAILED, actor="worker", subject_id=instance_id, now=now)


def take_back_judgement(session: Session, instance_id: UUID, *, actor: str, now: datetime) -> None:
    """Let an image wait as if nobody had judged it; what was said is kept as superseded. Who calls queues it."""
    _supersede(session, instance_id, now)
    waiting = update(_INSTANCES).where(_INSTANCES.c.id == instance_id).values(state=InstanceState.WAITING)
    session.execute(waiting)
    audit.append(session, Action.JUDGEMENT_RECALLED, actor=actor, subject_id=instance_id, now=now)


def _take_turn(
    session: Session,
    instance_id: UUID,
    state: InstanceState,
    predictions: Sequence[NewPrediction],
    warnings: Sequence[WarningFacts],
    now: datetime,
) -> bool:
    """Write a judgement's rows and open the study's next report; False when exactly this is recorded already."""
    _open_report(session, instance_id, now)
    before = session.execute(select(_INSTANCES.c.state).where(_INSTANCES.c.id == instance_id)).scalar_one()
    if before is not InstanceState.WAITING:
        image = image_of(session, instance_id)
        if image is not None and before is state and _says(image, predictions, warnings):
            return False
        _supersede(session, instance_id, now)
    judged = {"instance_id": instance_id, "created_at": now}
    if predictions:
        session.execute(insert(_PREDICTIONS), [asdict(prediction) | judged for prediction in predictions])
    if warnings:
        session.execute(insert(_WARNINGS), [asdict(w) | judged | {"text": clean(w.text)} for w in warnings])
    return True


def _open_report(session: Session, instance_id: UUID, now: datetime) -> None:
    study_id = select(_INSTANCES.c.study_id).where(_INSTANCES.c.id == instance_id).scalar_subquery()
    unreported = func.coalesce(_STUDIES.c.unreported_since, now)
    opened = (
        update(_STUDIES).where(_STUDIES.c.id == study_id).values(unreported_since=unreported).returning(_STUDIES.c.id)
    )
    if session.execute(opened).first() is None:
        raise NoSuchRecord(f"no instance {instance_id}")


def _supersede(session: Session, instance_id: UUID, now: datetime) -> None:
    for table in (_PREDICTIONS, _WARNINGS):
        current = (table.c.instance_id == instance_id) & table.c.superseded_at.is_(None)
        session.execute(update(table).where(current).values(superseded_at=now))


def _says(image: ImageFacts, predictions: Sequence[NewPrediction], warnings: Sequence[WarningFacts]) -> bool:
    """Tell whether the image's newest judgement is this one, however long it took."""
    told = {WarningFacts(code=w.code, severity=w.severity, text=clean(w.text)) for w in warnings}
    names = NewPrediction.__dataclass_fields__.keys() - {"processing_time_ms"}
    is_said = {tuple(getattr(p, name) for name in names) for p in image.predictions}
    return is_said == {tuple(getattr(p, name) for name in names) for p in predictions} and set(image.warnings) == told
