"""Model versions in the books: which answers, and which answered before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import delete, exists, select, update

from db import audit
from db.audit import Action
from db.engine import NoSuchRecord, Session, add_if_new
from db.tables import ModelState, ModelVersion, RecalledModel, rows_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersionFacts:
    """One version of a model."""

    model_version_id: UUID
    name: str
    version: str
    weights_sha256: str
    state: ModelState
    added_at: datetime
    activated_at: datetime | None
    """When it last became the one that answers."""


_TABLE, _RECALLED = rows_of(ModelVersion), rows_of(RecalledModel)
_COLUMNS = (
    _TABLE.c.id.label("model_version_id"),
    *(_TABLE.c[name] for name in list(ModelVersionFacts.__dataclass_fields__)[1:]),
)


def add_model_version(
    session: Session, name: str, version: str, weights_sha256: str, *, actor: str, now: datetime
) -> None:
    """Enter a version; does nothing when it is known.

    Raises
    ------
    ValueError
        The version is known with other weights.
    """
    row = {
        "name": name,
        "version": version,
        "weights_sha256": weights_sha256,
        "state": ModelState.AVAILABLE,
        "added_at": now,
    }
    added = add_if_new(session, _TABLE, ("name", "version"), row)
    if added is None:
        known = select(_TABLE.c.weights_sha256).where(_TABLE.c.name == name, _TABLE.c.version == version)
        if session.execute(known).scalar_one() != weights_sha256:
            raise ValueError(f"model {name} {version} is known with other weights: give the new ones a new version")
        return
    details = {"name": name, "version": version, "weights_sha256": weights_sha256}
    audit.append(session, Action.MODEL_ADDED, actor=actor, subject_id=added, details=details, now=now)


def activate_model(
    session: Session, name: str, version: str, *, actor: str, now: datetime, action: Action = Action.MODEL_ACTIVATED
) -> None:
    """Let a version answer from now on, and no other; a recall of it is lifted. Activating twice changes nothing.

    Raises
    ------
    NoSuchRecord
        The version was never added.
    """
    wanted = next((row for row in _locked(session) if (row.name, row.version) == (name, version)), None)
    if wanted is None:
        raise NoSuchRecord(f"no model {name} {version}: add it first")
    if wanted.state is ModelState.ACTIVE:
        return
    session.execute(delete(_RECALLED).where(_RECALLED.c.name == name, _RECALLED.c.version == version))
    session.execute(update(_TABLE).where(_TABLE.c.state == ModelState.ACTIVE).values(state=ModelState.AVAILABLE))
    session.execute(update(_TABLE).where(_TABLE.c.id == wanted.id).values(state=ModelState.ACTIVE, activated_at=now))
    details = {"name": name, "version": version}
    audit.append(session, action, actor=actor, subject_id=wanted.id, details=details, now=now)


def recall_model(session: Session, name: str, version: str, *, actor: str, now: datetime) -> bool:
    """Let nothing that a version says be recorded any more; False, and no mark, where it is the one that answers.

    Recalling twice changes nothing; activating the version lifts it.
    """
    if any((row.name, row.version) == (name, version) and row.state is ModelState.ACTIVE for row in _locked(session)):
        return False
    row = {"name": name, "version": version, "actor": actor, "recalled_at": now}
    if add_if_new(session, _RECALLED, ("name", "version"), row) is not None:
        details = {"name": name, "version": version}
        audit.append(session, Action.MODEL_RECALLED, actor=actor, details=details, now=now)
    return True


def recalled_models(session: Session) -> frozenset[tuple[str, str]]:
    """Return name and version of every model that was recalled and not activated since."""
    return frozenset((row.name, row.version) for row in session.execute(select(_RECALLED.c.name, _RECALLED.c.version)))


def _locked(session: Session) -> Sequence[Any]:
    """Return all versions, under a lock: who changes which one answers waits for who does too."""
    query = select(_TABLE.c.id, _TABLE.c.name, _TABLE.c.version, _TABLE.c.state)
    return session.execute(query.order_by(_TABLE.c.id).with_for_update()).all()


def active_model(session: Session) -> tuple[str, str] | None:
    """Return name and version of the model that answers; None when none was activated."""
    row = session.execute(
        select(_TABLE.c.name, _TABLE.c.version).where(_TABLE.c.state == ModelState.ACTIVE)
    ).one_or_none()
    return None if row is None else (row.name, row.version)


def previous_active(session: Session) -> tuple[str, str] | None:
    """Return name and version of the model that answered before the active one, recalled ones passed over, or None."""
    is_recalled = exists().where(_RECALLED.c.name == _TABLE.c.name, _RECALLED.c.version == _TABLE.c.version)
    before = (_TABLE.c.state == ModelState.AVAILABLE) & _TABLE.c.activated_at.is_not(None) & ~is_recalled
    query = (
        select(_TABLE.c.name, _TABLE.c.version).where(before).order_by(_TABLE.c.activated_at.desc(), _TABLE.c.id.desc())
    )
    row = session.execute(query.limit(1)).one_or_none()
    return None if row is None else (row.name, row.version)


def list_model_versions(session: Session) -> list[ModelVersionFacts]:
    """Return every version, in order of its adding."""
    rows = session.execute(select(*_COLUMNS).order_by(_TABLE.c.added_at, _TABLE.c.id)).mappings()
    return [ModelVersionFacts(**row) for row in rows]
