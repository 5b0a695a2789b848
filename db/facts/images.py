"""An image as the study's answer sees it, current or frozen in a report by value."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, select

from db.engine import Session
from db.tables import Instance, InstanceState, Prediction, Series, Warning, rows_of


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPrediction:
    """What the model says about one finding in one image."""

    finding: str
    probability: float
    """In [0, 1]."""
    confidence: float
    """100 max(p, 1 - p), percent."""
    threshold: float
    abstain_low: float
    abstain_high: float
    model_name: str
    model_version: str
    processing_time_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionFacts(NewPrediction):
    """What the model said, as it is recorded."""

    prediction_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class WarningFacts:
    """A coded remark about one image; severity `forbids` = the reason why there is no answer."""

    code: str
    severity: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """One instance of a study with its newest judgement."""

    instance_id: UUID
    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    path: str
    state: InstanceState
    is_judged: bool
    predictions: tuple[PredictionFacts, ...]
    warnings: tuple[WarningFacts, ...]


_INSTANCES, _SERIES = rows_of(Instance), rows_of(Series)
_PREDICTIONS, _WARNINGS = rows_of(Prediction), rows_of(Warning)
_RECEIVED = (
    _INSTANCES.c.id.label("instance_id"),
    *(_INSTANCES.c[name] for name in ("sop_instance_uid", "sop_class_uid", "path", "state", "is_judged")),
    _SERIES.c.series_instance_uid,
)


def images_of_study(session: Session, study_id: UUID) -> tuple[ImageFacts, ...]:
    """Return the images of a study in order of reception, each with its newest judgement."""
    return _images_where(session, _INSTANCES.c.study_id == study_id)


def image_of(session: Session, instance_id: UUID) -> ImageFacts | None:
    """Return one image with its newest judgement."""
    return next(iter(_images_where(session, _INSTANCES.c.id == instance_id)), None)


def _images_where(session: Session, condition: ColumnElement[bool]) -> tuple[ImageFacts, ...]:
    predictions, warnings = predictions_where(session, condition), warnings_where(session, condition)
    query = select(*_RECEIVED).join(_SERIES, _SERIES.c.id == _INSTANCES.c.series_id).where(condition)
    return tuple(
        ImageFacts(
            **row,
            predictions=predictions.get(row["instance_id"], ()) if row["state"] is InstanceState.ANALYSED else (),
            warnings=warnings.get(row["instance_id"], ()),
        )
        for row in session.execute(query.order_by(_INSTANCES.c.received_at, _INSTANCES.c.id)).mappings()
    )


def predictions_where(session: Session, condition: ColumnElement[bool]) -> dict[UUID, tuple[PredictionFacts, ...]]:
    """Return the newest predictions of the instances that `condition` chooses, in order of finding."""
    query = (
        select(*(_PREDICTIONS.c[name] for name in ("instance_id", *NewPrediction.__dataclass_fields__)))
        .add_columns(_PREDICTIONS.c.id.label("prediction_id"))
        .join(_INSTANCES, _INSTANCES.c.id == _PREDICTIONS.c.instance_id)
        .where(condition, _PREDICTIONS.c.superseded_at.is_(None))
        .order_by(_PREDICTIONS.c.finding)
    )
    found: dict[UUID, tuple[PredictionFacts, ...]] = {}
    for instance_id, *values in session.execute(query):
        fact = PredictionFacts(**dict(zip(PredictionFacts.__dataclass_fields__, values, strict=True)))
        found[instance_id] = (*found.get(instance_id, ()), fact)
    return found


def warnings_where(session: Session, condition: ColumnElement[bool]) -> dict[UUID, tuple[WarningFacts, ...]]:
    """Return the warnings of the newest judgement of the instances that `condition` chooses, in order of code."""
    query = (
        select(*(_WARNINGS.c[name] for name in ("instance_id", *WarningFacts.__dataclass_fields__)))
        .join(_INSTANCES, _INSTANCES.c.id == _WARNINGS.c.instance_id)
        .where(condition, _WARNINGS.c.superseded_at.is_(None))
        .order_by(_WARNINGS.c.code)
    )
    found: dict[UUID, tuple[WarningFacts, ...]] = {}
    for instance_id, *values in session.execute(query):
        fact = WarningFacts(**dict(zip(WarningFacts.__dataclass_fields__, values, strict=True)))
        found[instance_id] = (*found.get(instance_id, ()), fact)
    return found


def freeze(image: ImageFacts) -> dict[str, Any]:
    """Return an image as JSON can hold it; `thaw` gives exactly it back."""
    frozen = asdict(image)
    frozen["instance_id"] = str(image.instance_id)
    for prediction in frozen["predictions"]:
        prediction["prediction_id"] = str(prediction["prediction_id"])
    return frozen


def thaw(frozen: dict[str, Any]) -> ImageFacts:
    """Return the image that `freeze` was given."""
    return ImageFacts(
        **{
            **frozen,
            "instance_id": UUID(frozen["instance_id"]),
            "state": InstanceState(frozen["state"]),
            "predictions": tuple(_thaw_prediction(prediction) for prediction in frozen["predictions"]),
            "warnings": tuple(WarningFacts(**warning) for warning in frozen["warnings"]),
        }
    )


def _thaw_prediction(frozen: dict[str, Any]) -> PredictionFacts:
    return PredictionFacts(**{**frozen, "prediction_id": UUID(frozen["prediction_id"])})
