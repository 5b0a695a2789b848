"""Migration, backup and restore of what the node keeps."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from db import audit
from db.audit import Action
from db.engine import current_revision, db_now, head_revision, make_engine, migrate, session_scope
from db.locks import task_lock
from pacs_node.errors import ConfigError
from pacs_node.settings import Settings
from pacs_node.supervisor import only_node
from pacs_node.wiring import worker_name

DATABASE_NAME = "node.sqlite"
STORE_NAME = "store"
MODELS_NAME = "models"
SECRETS_NAME = "secrets"
BACKUP_LOCK_S = 6 * 3600.0


def migrate_database(settings: Settings, *, actor: str) -> str:
    """Bring the database to this version's revision; copy an SQLite database that will change first."""
    settings.node.data_dir.mkdir(parents=True, exist_ok=True)
    engine = make_engine(settings.database_url)
    before, wanted = current_revision(engine), head_revision()
    if before == wanted:
        return f"The database is at the newest revision ({wanted})."
    copy = ""
    path = _sqlite_path(settings)
    if path and before is not None:
        target = path.with_name(f"{path.name}.{before}.{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
        _copy_sqlite(path, target)
        copy = f" The former database was copied to {target}."
    migrate(settings.database_url)
    with session_scope(engine) as session:
        details = {"from": before, "to": wanted}
        audit.append(session, Action.DATABASE_MIGRATED, actor=actor, details=details, now=db_now(session))
    return f"The database is migrated to revision {wanted}.{copy}"


def make_backup(settings: Settings, folder: Path, *, actor: str) -> str:
    """Copy secrets, added models and the database, then the store: every file a copied row names is in the copy.

    The purge waits meanwhile.

    Raises
    ------
    ConfigError
        `folder` is not empty, or the database is not SQLite.
    """
    path = _sqlite_path(settings)
    if path is None:
        raise ConfigError(f"the database is PostgreSQL: back it up with pg_dump first, then copy {_folders(settings)}")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: not empty; name a new folder for each backup")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    engine = make_engine(settings.database_url)
    with task_lock(engine, "purge", holder=worker_name(), for_s=BACKUP_LOCK_S) as is_ours:
        if not is_ours:
            raise ConfigError("the node is purging old images at this moment: try again in a minute")
        for source, name in ((settings.node.secrets_dir, SECRETS_NAME), (settings.model_dir, MODELS_NAME)):
            if source.exists():
                shutil.copytree(source, folder / name)
        _copy_sqlite(path, folder / DATABASE_NAME)
        if settings.store_dir.exists():
            shutil.copytree(
                settings.store_dir,
                folder / STORE_NAME,
                ignore=shutil.ignore_patterns("incoming"),
                copy_function=_copy_if_there,
            )
        with session_scope(engine) as session:
            audit.append(session, Action.BACKUP_MADE, actor=actor, now=db_now(session))
    files = sum(1 for file in (folder / STORE_NAME).rglob("*") if file.is_file())
    return (
        f"Backed up to {folder}: database, {files} stored objects, added models, secrets. Keep this folder as safe as "
        "the node; its configuration file is not in it."
    )


def restore_backup(settings: Settings, folder: Path) -> str:
    """Put a backup into this node's data folder, which must hold no database yet.

    Raises
    ------
    ConfigError
        The node runs, a database is there already, or `folder` is no backup.
    """
    path = _sqlite_path(settings)
    if path is None:
        raise ConfigError(f"the database is PostgreSQL: restore it by pg_restore, then copy back {_folders(settings)}")
    if not (folder / DATABASE_NAME).is_file():
        raise ConfigError(f"{folder}: no {DATABASE_NAME} in it; not a backup made by `pacs-node backup`")
    with only_node(settings.node.data_dir):
        if path.exists():
            raise ConfigError(f"{path}: a database is there already; move it away first, nothing is overwritten")
        targets = {
            STORE_NAME: settings.store_dir,
            MODELS_NAME: settings.model_dir,
            SECRETS_NAME: settings.node.secrets_dir,
        }
        for name, target in targets.items():
            if (folder / name).exists():
                shutil.copytree(folder / name, target, dirs_exist_ok=True)
        _copy_sqlite(folder / DATABASE_NAME, path)
    return f"Restored from {folder}. Run `pacs-node check`, then `pacs-node run`."


def _folders(settings: Settings) -> str:
    return f"{settings.store_dir}, {settings.model_dir} (if there) and {settings.node.secrets_dir}"


def _sqlite_path(settings: Settings) -> Path | None:
    url = settings.database_url
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None


def _copy_if_there(source: str, target: str) -> str:
    """Copy a file; one that vanishes meanwhile was a duplicate's or an orphan: no row names it."""
    with contextlib.suppress(FileNotFoundError):
        shutil.copy2(source, target)
    return target


def _copy_sqlite(source: Path, target: Path) -> None:
    """Use SQLite's online backup: consistent while the node writes."""
    with closing(sqlite3.connect(source)) as live, closing(sqlite3.connect(target)) as copy:
        live.backup(copy)
