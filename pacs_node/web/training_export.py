"""The reviewed studies as training data, made for a person who asks on the page: one export at a time, the newest kept.

It runs in a process of its own, so that neither its hours nor a hostile file are the page's. Takes what is asked; gives
where it stands, and the finished folder as a ZIP that streams. What is in it, and that it is audited before it can be
taken, is `pacs_node.export.reviews`.
"""

from __future__ import annotations

import io
import logging
import shutil
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from db.engine import DatabaseAway, check_revision, make_engine
from pacs_node.decoding import DecodingPool
from pacs_node.errors import ConfigError
from pacs_node.settings import Settings

logger = logging.getLogger(__name__)

TIMEOUT_S = 6 * 3600.0
MEMORY_MB = 4096
BLOCK_BYTES = 1 << 20
ZIP_DATE = (1980, 1, 1, 0, 0, 0)
"""Of every file in it: the same export gives the same bytes."""
PREFIX = "training-"


class ExportRuns(Exception):
    """Another export is being made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a person asks for."""

    since: datetime | None
    accept_unstated: bool
    actor: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where the newest export stands."""

    state: Literal["none", "running", "ready", "failed"]
    name: str = ""
    said: tuple[str, ...] = ()
    """What is in it and what stayed behind, or why there is none."""


class TrainingExports:
    """Makes one export at a time below `data_dir/exports`; the next one takes the place of the last."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._folder = settings, settings.node.data_dir / "exports"
        self._lock = threading.Lock()
        self._pool: DecodingPool | None = None
        self._running: Any = None
        self._name = ""
        self._done: Standing | None = None

    def start(self, wanted: Wanted, *, now: datetime) -> Standing:
        """Begin an export.

        Raises
        ------
        ExportRuns
            One is being made.
        """
        with self._lock:
            if self._look().state == "running":
                raise ExportRuns
            self._pool = self._pool or DecodingPool(processes=1, timeout_s=TIMEOUT_S, memory_mb=MEMORY_MB)
            self._name, self._done = f"{PREFIX}{now:%Y%m%d-%H%M%S}", None
            self._running = self._pool.submit(make_export, self._settings, self._folder / self._name, wanted)
            return self._look()

    def standing(self) -> Standing:
        with self._lock:
            return self._look()

    def folder(self) -> Path | None:
        """Return the folder of the newest export that is whole."""
        made = sorted(path for path in self._folder.glob(f"{PREFIX}*") if path.is_dir())
        return made[-1] if made else None

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()

    def _look(self) -> Standing:
        if self._running is not None and not self._running.done():
            return Standing(state="running", name=self._name)
        if self._running is not None:
            self._done, self._running = self._ended(self._running), None
        if self._done is not None:
            return self._done
        kept = self.folder()  # made before this process started
        return Standing(state="ready", name=kept.name) if kept else Standing(state="none")

    def _ended(self, future: Any) -> Standing:
        error = future.exception()
        if error is None:
            return Standing(state="ready", name=self._name, said=future.result())
        logger.error("A training export failed", exc_info=error, extra={"action": "training_export_failed"})
        return Standing(state="failed", name=self._name, said=(_why(error),))


def _why(error: BaseException) -> str:
    if isinstance(error, ConfigError):
        return f"{error}."
    if isinstance(error, TimeoutError):
        return f"It took longer than {TIMEOUT_S / 3600:g} hours and was stopped."
    if isinstance(error, DatabaseAway):
        return "The database did not answer. Nothing was given out; try again."
    if isinstance(error, OSError):
        return f"The disk refused: {error.strerror or 'no reason given'}. Nothing was given out."
    return "A fault of the program stopped it; its log says more. Nothing was given out."


def make_export(settings: Settings, folder: Path, wanted: Wanted) -> tuple[str, ...]:
    """Make the export and say what is in it; those before it, and what interrupted ones left, are deleted then."""
    from pacs_node.export.reviews import export_reviews  # here, in its process: it brings the tables of PS3.15

    engine = make_engine(settings.database_url)
    check_revision(engine)
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    made = export_reviews(
        settings,
        engine,
        folder,
        since=wanted.since,
        actor=wanted.actor,
        address=wanted.address,
        accept_unstated=wanted.accept_unstated,
    )
    engine.dispose()
    for path in folder.parent.iterdir():
        if path != folder:
            shutil.rmtree(path)
    return made.summary


def zipped(folder: Path) -> Iterator[bytes]:
    """Give a folder as a ZIP, block by block; nothing is compressed, for pixels hardly shrink."""
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w") as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(f"{folder.name}/{path.relative_to(folder).as_posix()}", ZIP_DATE)
            with path.open("rb") as source, archive.open(entry, "w", force_zip64=True) as target:
                while block := source.read(BLOCK_BYTES):
                    target.write(block)
                    yield pipe.taken()
    yield pipe.taken()


class _Pipe(io.RawIOBase):
    """Takes what is written and hands it on; it cannot be sought in, so the ZIP is written in one go."""

    def __init__(self) -> None:
        self._blocks: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, block: Any) -> int:
        self._blocks.append(bytes(block))
        return len(block)

    def taken(self) -> bytes:
        content, self._blocks = b"".join(self._blocks), []
        return content
