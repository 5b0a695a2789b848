"""Pages of rows that stay right while rows are added: each begins behind the last row of the page before.

A cursor names that row by what the page is sorted by, then its id: ``2026-11-20T12:00:00+00:00_0193a1c2-...``, a number
as ``n0.5``, several with ``~`` between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement, Select, literal, tuple_

from db.tables import UtcDateTime

Found = TypeVar("Found")
Key = datetime | float | int
"""What a page can be sorted by."""


class ForeignCursor(ValueError):
    """This cursor was not given by the list that it is shown to."""


def turn_to(
    query: Select[Any],
    keys: Sequence[ColumnElement[Any]],
    row_id: ColumnElement[UUID],
    *,
    cursor: str | None,
    limit: int,
    is_descending: bool = True,
) -> Select[Any]:
    """Sort `query` by `keys`, then id; begin behind `cursor`, and ask for one row more than the page holds.

    Raises
    ------
    ForeignCursor
        `cursor` is none that `page` gave for these keys.
    """
    columns = (*keys, row_id)
    if cursor is not None:
        place = tuple_(*_placed(columns, read_cursor(cursor)))
        query = query.where(tuple_(*columns) < place if is_descending else tuple_(*columns) > place)
    return query.order_by(*(c.desc() if is_descending else c.asc() for c in columns)).limit(limit + 1)


def older_than(
    query: Select[Any], at: ColumnElement[datetime], row_id: ColumnElement[UUID], cursor: str | None, limit: int
) -> Select[Any]:
    """Sort `query` newest first, begin behind `cursor`, and ask for one row more than the page holds.

    Raises
    ------
    ForeignCursor
        `cursor` is none that `page` gave.
    """
    return turn_to(query, (at,), row_id, cursor=cursor, limit=limit)


def page(rows: list[Found], limit: int, place: Callable[[Found], tuple[Any, ...]]) -> tuple[list[Found], str | None]:
    """Return the page and the cursor of the next one; None on the last page. `place` gives keys and id of a row."""
    if len(rows) <= limit:
        return rows, None
    *keys, row_id = place(rows[limit - 1])
    return rows[:limit], "~".join(_write(key) for key in keys) + f"_{row_id}"


def read_cursor(cursor: str) -> tuple[Any, ...]:
    """Return the keys and the id that a cursor names.

    Raises
    ------
    ForeignCursor
        It names none.
    """
    keys, _, row_id = cursor.partition("_")
    try:
        return (*(_read(key) for key in keys.split("~")), UUID(row_id))
    except (ValueError, OverflowError):
        raise ForeignCursor("not a cursor that this list gave") from None


def _placed(columns: Sequence[ColumnElement[Any]], values: Sequence[Any]) -> list[ColumnElement[Any]]:
    kinds = [_is_instant(column) for column in columns]
    if kinds != [isinstance(value, datetime) for value in values]:
        raise ForeignCursor("this cursor belongs to another list or order")
    return [literal(value, column.type) for value, column in zip(values, columns, strict=True)]


def _is_instant(column: ColumnElement[Any]) -> bool:
    return isinstance(column.type, UtcDateTime)


def _write(key: Key) -> str:
    return key.isoformat() if isinstance(key, datetime) else f"n{key!r}"


def _read(key: str) -> Key:
    if key.startswith("n"):
        number = float(key[1:])
        if not math.isfinite(number):
            raise ValueError
        return int(number) if number.is_integer() else number
    instant = datetime.fromisoformat(key)
    if instant.tzinfo is None:
        raise ValueError
    return instant
