"""Device models: which image was the first of its kind, right under many workers at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from uuid import UUID

from sqlalchemy import select, tuple_

from db.engine import Session, add_if_new
from db.facts.arrival import clean
from db.tables import Device, rows_of


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class SeenDevice:
    """A device model; at most 64 characters each."""

    manufacturer: str
    model_name: str
    detector_type: str

    @property
    def name(self) -> str:
        """Return what people call it; the maker is not said twice."""
        is_said = self.model_name.startswith(self.manufacturer)
        return clean(self.model_name if is_said else f"{self.manufacturer} {self.model_name}".strip())


_DEVICES = rows_of(Device)
_NAMES = tuple(field.name for field in fields(SeenDevice))
_KEY = tuple_(*(_DEVICES.c[name] for name in _NAMES))


def note_devices(session: Session, devices: Mapping[UUID, SeenDevice], *, now: datetime) -> frozenset[UUID]:
    """Write down device models that are new, and return the images that are the first of theirs.

    Asked again about a first image, it is the first again. Call it before any other row of the transaction is locked:
    new models go in by name, so that two workers with the same ones wait for each other in one order and never in a
    circle.

    Parameters
    ----------
    devices
        By instance id; in the order of reception where one model comes with several images.
    """
    if not devices:
        return frozenset()
    cleaned = {instance_id: _cleaned(device) for instance_id, device in devices.items()}
    first = _first_of(session, cleaned)
    missing = sorted(set(cleaned.values()) - first.keys())
    if missing:
        bearer = {device: instance_id for instance_id, device in reversed(cleaned.items())}
        for device in missing:
            row = {name: getattr(device, name) for name in _NAMES}
            add_if_new(session, _DEVICES, _NAMES, row | {"first_instance_id": bearer[device], "first_seen_at": now})
        first = _first_of(session, cleaned)
    return frozenset(instance_id for instance_id, device in cleaned.items() if first[device] == instance_id)


def _first_of(session: Session, devices: Mapping[UUID, SeenDevice]) -> dict[SeenDevice, UUID]:
    wanted = [tuple(getattr(device, name) for name in _NAMES) for device in set(devices.values())]
    rows = session.execute(select(_DEVICES).where(_KEY.in_(wanted))).mappings()
    return {SeenDevice(**{name: row[name] for name in _NAMES}): row["first_instance_id"] for row in rows}


def _cleaned(device: SeenDevice) -> SeenDevice:
    return SeenDevice(**{name: clean(getattr(device, name)) for name in _NAMES})
