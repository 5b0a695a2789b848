"""Pages of rows, the newest first, that stay right while rows are added."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement, Select, and_, or_

Found = TypeVar("Found")


def older_than(
    query: Select[Any], at: ColumnElement[datetime], row_id: ColumnElement[UUID], cursor: str | None, limit: int
) -> Select[Any]:
    """Order `query` newest first, begin after `cursor`, and ask for one row more than the page holds.

    Raises
    ------
    ValueError
        `cursor` is none that `page` gave.
    """
    if cursor is not None:
        instant, last_id = _read(cursor)
        query = query.where(or_(at < instant, and_(at == instant, row_id < last_id)))
    return query.order_by(at.desc(), row_id.desc()).limit(limit + 1)


def page(
    rows: list[Found], limit: int, place: Callable[[Found], tuple[datetime, UUID]]
) -> tuple[list[Found], str | None]:
    """Return the page and the cursor of the next one; None on the last page."""
    if len(rows) <= limit:
        return rows, None
    at, row_id = place(rows[limit - 1])
    return rows[:limit], f"{at.isoformat()}_{row_id}"


def _read(cursor: str) -> tuple[datetime, UUID]:
    at, _, row_id = cursor.partition("_")
    instant = datetime.fromisoformat(at)
    if instant.tzinfo is None:
        raise ValueError(f"not a cursor: {cursor}")
    return instant, UUID(row_id)
