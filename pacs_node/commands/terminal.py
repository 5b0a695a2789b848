"""What the commands say on a terminal: a table, an instant in local time, and who is typing."""

from __future__ import annotations

import getpass
from collections.abc import Iterable, Sequence
from datetime import datetime


def person() -> str:
    return f"admin:{getpass.getuser()}"[:64]


def time_text(at: datetime | None) -> str:
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S") if at else "-"


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    lines = [[str(cell) for cell in row] for row in rows]
    widths = [max([len(head), *(len(line[i]) for line in lines)]) for i, head in enumerate(heads)]
    for line in [list(heads), *lines]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
