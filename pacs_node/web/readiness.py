"""Can this node do its work now? Each check gives a line for a person and takes at most a moment."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from db import facts, queue
from db.engine import DatabaseAway, SchemaMismatch, check_revision, db_now, read_scope
from db.tables import JobKind
from models.errors import ModelError
from pacs_node.web.context import Web


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One part of the node."""

    name: str
    is_ready: bool
    detail: str


def check_all(web: Web) -> list[Check]:
    """Return every check, in the order in which an image meets the parts."""
    database = _database(web)
    needs_database = (_model, _queue) if database.is_ready else ()
    return [database, _store(web), *(check(web) for check in needs_database)]


def _database(web: Web) -> Check:
    try:
        check_revision(web.engine)
    except (DatabaseAway, SchemaMismatch) as error:
        return Check(name="database", is_ready=False, detail=str(error))
    return Check(name="database", is_ready=True, detail="reachable, at this program's revision")


def _store(web: Web) -> Check:
    free_bytes, floor_bytes = 0, web.settings.store.min_free_gb * 1e9
    try:
        with tempfile.TemporaryFile(dir=web.settings.store_dir) as probe:
            probe.write(b"0")
        free_bytes = web.store.free_bytes()
    except OSError as error:
        return Check(name="store", is_ready=False, detail=f"cannot be written: {error.strerror}")
    if free_bytes < floor_bytes:
        return Check(
            name="store",
            is_ready=False,
            detail=f"{free_bytes / 1e9:.1f} GB free, below store.min_free_gb: senders are put off",
        )
    return Check(name="store", is_ready=True, detail=f"writable, {free_bytes / 1e9:.1f} GB free")


def _model(web: Web) -> Check:
    try:
        card = web.card()
        weights = card.weights_path.stat()
        digest = _digest(card.weights_path, weights.st_mtime_ns, weights.st_size)
    except ModelError as error:
        return Check(name="model", is_ready=False, detail=str(error))
    except OSError as error:
        return Check(name="model", is_ready=False, detail=f"the weights cannot be read: {error.strerror}")
    if digest != card.weights_sha256:
        return Check(
            name="model", is_ready=False, detail=f"the weights of {card.name} {card.version} are not those of its card"
        )
    return Check(name="model", is_ready=True, detail=f"{card.name} {card.version}, weights verified")


@lru_cache(maxsize=8)
def _digest(path: Path, modified_ns: int, size_bytes: int) -> str:
    """Hash the weights again only when the file has changed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _queue(web: Web) -> Check:
    with read_scope(web.engine) as session:
        waiting = queue.waiting(session, JobKind.INFER)
        oldest = facts.oldest_waiting(session).get(JobKind.INFER)
        now = db_now(session)
    images = {0: "no image waits", 1: "1 image"}.get(waiting, f"{waiting} images")
    age = f", {'the oldest ' if waiting > 1 else ''}{age_s(oldest, now):.0f} s old" if oldest else ""
    detail = f"{images}{age}"
    if waiting >= web.settings.queue.max_waiting:
        return Check(
            name="queue", is_ready=False, detail=f"{detail}: queue.max_waiting is reached and senders are put off"
        )
    return Check(name="queue", is_ready=True, detail=detail)


def age_s(then: datetime, now: datetime) -> float:
    """Return the seconds since `then`, never negative."""
    return max((now - then).total_seconds(), 0.0)
