"""The way back to training from the page: what `pacs-node export-reviews` writes, as one zip file.

Made in a killable process, for it decodes what strangers sent; one at a time, in a folder that goes when it was sent.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from db.engine import make_engine
from pacs_node.decoding import Collapsed, DecodingPool, PoolDown, TookTooLong, result_of
from pacs_node.export.reviews import export_reviews
from pacs_node.settings import Settings

LONGEST_S = 3600.0
NAME = "reviewed"

_one_at_a_time = threading.Lock()


class NoExport(Exception):
    """Another one is being made, or its process was ended: come again later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is exported, and for whom."""

    since: datetime | None
    accept_unstated: bool
    actor: str


@contextmanager
def zipped_reviews(settings: Settings, wanted: Wanted) -> Iterator[Path]:
    """Give the zip file; it is deleted in the end.

    Raises
    ------
    NoExport
        It cannot be made now.
    """
    with tempfile.TemporaryDirectory(prefix="export-", dir=settings.node.data_dir) as folder:
        if not _one_at_a_time.acquire(blocking=False):
            raise NoExport("Another export for training is being made.")
        pool = DecodingPool(processes=1, timeout_s=LONGEST_S, memory_mb=settings.worker.decode_memory_mb)
        try:
            made = result_of(pool.submit(_make, settings, wanted, folder))
        except (TookTooLong, Collapsed, PoolDown) as error:
            raise NoExport(f"The export was not made: {error}.") from error
        finally:
            pool.close()
            _one_at_a_time.release()
        yield Path(made)


def _make(settings: Settings, wanted: Wanted, folder: str) -> str:
    """Run in the process."""
    engine, whole = make_engine(settings.database_url), Path(folder) / NAME
    export_reviews(
        settings,
        engine,
        whole,
        since=wanted.since,
        actor=wanted.actor,
        accept_unstated=wanted.accept_unstated,
    )
    engine.dispose()
    return shutil.make_archive(str(whole), "zip", root_dir=folder, base_dir=NAME)
