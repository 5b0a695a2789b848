"""JSON logs, one file per role, rotated by size and count; nothing a data set says about a patient gets in.

A line is a constant sentence plus `extra={"action": ..., "instance_id": ...}`. Third-party messages may quote
a data set or a row, so an exception shows its message only where the class is ours or the operating system's.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path

from pacs_node.settings import LogSettings

OUR_PACKAGES = ("pacs_node", "models", "db", "training")
QUIET = (
    "pydicom",
    "pynetdicom",
    "highdicom",
    "PIL",
    "apscheduler",
    "sqlalchemy",
    "alembic",
    "monai",
    "uvicorn",
    "httpx",
)
"""Libraries whose messages may quote element values or repeat every request: errors only."""
QUOTING = ("pynetdicom.utils", "pynetdicom.dul")
"""Their errors print the bytes of a PDU or an element that could not be decoded: nothing of theirs is told."""
PATIENT_KEYS = ("patient", "accession", "birth", "referring", "physician", "study_description", "name_of")
SELDOM_S = 60.0
"""An outage is told once a minute in each sentence: a night of it must not push everything else out of the log."""
STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def describe(error: BaseException) -> str:
    """Name `error`, its cause and where it was raised, without quoting what a library may have read from a data set."""
    is_quotable = isinstance(error, OSError | MemoryError) or type(error).__module__.split(".")[0] in OUR_PACKAGES
    head = f"{type(error).__name__}: {error}" if is_quotable else type(error).__name__
    frames = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)]
    cause = error.__cause__ or error.__context__
    return " < ".join([head, *reversed(frames[-8:])]) + (f" | caused by {describe(cause)}" if cause else "")


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (UTC), level, role, logger, sentence, extras, error."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self.role = role

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "role": self.role,
            "logger": record.name,
            "message": _sentence(record),
        }
        line |= _extras(record)
        if record.exc_info and record.exc_info[1]:
            line["error"] = describe(record.exc_info[1])
        return json.dumps(line, default=str)


def _sentence(record: logging.LogRecord) -> str:
    """Return the message; a library that logs an error in place of one (`exception(error)`) would quote by it."""
    return describe(record.msg) if isinstance(record.msg, BaseException) else record.getMessage()


def _extras(record: logging.LogRecord) -> dict[str, object]:
    """Return what stands in `extra`, but what may name a patient."""
    return {
        key: value
        for key, value in vars(record).items()
        if key not in STANDARD and not any(word in key.lower() for word in PATIENT_KEYS)
    }


class Seldom(logging.Filter):
    """Lets each `database_away` sentence through once in `SELDOM_S`."""

    def __init__(self) -> None:
        super().__init__()
        self._told_at: dict[tuple[str, ...], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if getattr(record, "action", "") != "database_away":
            return True
        what = (record.name, record.getMessage(), str(getattr(record, "task", "")))
        if record.created - self._told_at.get(what, -SELDOM_S) < SELDOM_S:
            return False
        self._told_at[what] = record.created
        return True


def to_terminal(role: str) -> logging.Handler:
    """Show warnings on the terminal as plain sentences; return the handler."""
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setLevel(logging.WARNING)
    terminal.setFormatter(PlainFormatter(role))
    terminal.addFilter(Seldom())
    logging.getLogger().handlers[:] = [terminal]
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in QUOTING:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").setLevel(logging.ERROR)  # pydicom warns with the offending value
    return terminal


def configure(settings: LogSettings, role: str, log_dir: Path) -> None:
    """Send this process's logs to `log_dir/<role>.log`, and warnings to the terminal as well."""
    log_dir.mkdir(parents=True, exist_ok=True)
    file = logging.handlers.RotatingFileHandler(
        log_dir / f"{role}.log", maxBytes=int(settings.max_mb * 1e6), backupCount=settings.files - 1, encoding="utf-8"
    )
    file.setFormatter(JsonFormatter(role))
    file.addFilter(Seldom())
    logging.raiseExceptions = False  # a full disk is said once, by who met it, and not by a trace for each line lost
    root = logging.getLogger()
    root.handlers[:] = [file, to_terminal(role)]
    root.setLevel(settings.level)


class PlainFormatter(logging.Formatter):
    """`role: sentence (key value, ...)` for a person at the terminal."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self.role = role

    def format(self, record: logging.LogRecord) -> str:
        error = f": {describe(record.exc_info[1])}" if record.exc_info and record.exc_info[1] else ""
        said = ", ".join(f"{key} {value}" for key, value in _extras(record).items() if key != "action")
        return f"{self.role}: {_sentence(record)}{f' ({said})' if said else ''}{error}"
