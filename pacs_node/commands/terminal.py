"""What the commands say on a terminal and read from it: a table, an instant in local time, and who is typing."""

from __future__ import annotations

import getpass
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime
from uuid import UUID

from pacs_node.errors import ConfigError

Add = Callable[..., ArgumentParser]
"""Of `cli`: makes the parser of one command."""


def person() -> str:
    return f"admin:{getpass.getuser()}"[:64]


def time_text(at: datetime | None) -> str:
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S") if at else "-"


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    lines = [[str(cell) for cell in row] for row in rows]
    widths = [max([len(head), *(len(line[i]) for line in lines)]) for i, head in enumerate(heads)]
    for line in [list(heads), *lines]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def day_of(text: str) -> date:
    """Read an argument that is a local day."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no date: write 2026-11-01") from None


def instant_of(text: str) -> datetime:
    """Read an argument that is an ISO 8601 date or time; local where it does not say otherwise."""
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no date: write 2026-11-01, or 2026-11-01T12:00") from None


def needed_id(options: Namespace) -> UUID:
    """Return the id that an action needs.

    Raises
    ------
    ConfigError
        None was given.
    """
    if options.id is None:
        raise ConfigError(f"`{options.action}` needs an id; `list` shows them")
    return UUID(str(options.id))
