"""What a bench gives back, and how it is printed: rows side by side, each with its ratio and its bar."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """What must hold; `is_met` is decided by the bench that measured."""

    text: str
    is_met: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One bench's result."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    bars: tuple[Bar, ...] = ()

    def __str__(self) -> str:
        lines = [self.title, "", *_aligned([self.head, *self.rows])]
        lines += [f"  {note}" for note in self.notes]
        lines += [f"  {'met   ' if bar.is_met else 'MISSED'}  {bar.text}" for bar in self.bars]
        return "\n".join(lines)


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def note(text: str) -> None:
    """Say on the terminal how a long bench goes on; the table is standard output's."""
    print(f"    {text}", file=sys.stderr, flush=True)


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Return `median (min-max)`."""
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return f"{median(values):.{digits}f} ({low}-{high})"


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that `percent` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * int(percent) // 100) - 1))]
