"""Rows of the API as a file that streams: NDJSON, or CSV that a spreadsheet may open without running what is in it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any, Literal

from pacs_node.web.schemas import Schema

FileKind = Literal["csv", "ndjson"]
MEDIA_TYPES: dict[str, str] = {"csv": "text/csv; charset=utf-8", "ndjson": "application/x-ndjson"}
ROWS = 200
"""Read from the database at once."""
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""A cell that begins so is run by spreadsheets (CWE-1236); the last four are their full-width forms."""

Read = Callable[[str | None], tuple[Iterable[Schema], str | None]]
"""Takes a cursor; gives a page's rows and the cursor of the next page."""


def lines_of(kind: FileKind, schema: type[Schema], read: Read, *, without: frozenset[str]) -> Iterator[str]:
    """Give the file piece by piece, reading page after page; each page is one moment of the database.

    Parameters
    ----------
    without
        Fields that are left out.
    """
    names = [name for name in schema.model_fields if name not in without]
    if kind == "csv":
        yield _row(names)
    cursor: str | None = None
    while True:
        rows, cursor = read(cursor)
        found = [row.model_dump(mode="json", exclude=set(without)) for row in rows]
        if kind == "csv":
            yield "".join(_row([_cell(row[name]) for name in names]) for row in found)
        else:
            yield "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
        if cursor is None:
            return


def file_name(subject: str, kind: FileKind, at: datetime) -> str:
    """Return the name under which a browser saves the file."""
    return f"{subject}-{at:%Y%m%d-%H%M%S}.{kind}"


def _row(cells: Iterable[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(cells)
    return line.getvalue()


def _cell(value: Any) -> str:
    """Return a cell: plain for a person, harmless for a spreadsheet."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case list():
            text = " ".join(_named(one) for one in value)
        case dict():
            text = json.dumps(value, ensure_ascii=False)
        case _:
            text = str(value)
    text = text.replace("\x00", "")
    return f"'{text}" if text.startswith(FORMULA) else text


def _named(one: Any) -> str:
    """Return what tells one of several: a warning's code, a destination with its state."""
    if isinstance(one, dict) and "code" in one:
        return str(one["code"])
    if isinstance(one, dict) and "destination" in one:
        return f"{one['destination']}:{one['state']}"
    return json.dumps(one, ensure_ascii=False)
