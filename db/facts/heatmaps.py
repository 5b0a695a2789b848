"""Heat maps: where each model version saw its finding in an image, kept as a file for the page and the reports."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import select

from db.engine import Session, add_if_new
from db.tables import Heatmap, rows_of

_HEATMAPS = rows_of(Heatmap)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewHeatmap:
    """A map that was drawn; `path` is its key in the object store."""

    instance_id: UUID
    model_name: str
    model_version: str
    path: str


def heatmap_of(session: Session, instance_id: UUID) -> str | None:
    """Return the store path of an image's newest heat map, an 8-bit grey PNG; None if none was drawn."""
    of_image = select(_HEATMAPS.c.path).where(_HEATMAPS.c.instance_id == instance_id)
    newest = of_image.order_by(_HEATMAPS.c.created_at.desc()).limit(1)
    return session.execute(newest).scalar_one_or_none()


def heatmap_by(session: Session, instance_id: UUID, model_name: str, model_version: str) -> str | None:
    """Return the store path of the map that this model version drew; None if it drew none."""
    drawn = select(_HEATMAPS.c.path).where(
        _HEATMAPS.c.instance_id == instance_id,
        _HEATMAPS.c.model_name == model_name,
        _HEATMAPS.c.model_version == model_version,
    )
    return session.execute(drawn).scalar_one_or_none()


def record_heatmap(session: Session, heatmap: NewHeatmap, *, now: datetime) -> None:
    """Record a map; the first one of a model version stays. Recording twice changes nothing."""
    key = ("instance_id", "model_name", "model_version")
    add_if_new(session, _HEATMAPS, key, asdict(heatmap) | {"created_at": now})
