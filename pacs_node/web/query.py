"""What a query may hold: bounded pages, opaque cursors, instants that exist. Anything else is a 422, never a 500."""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Query
from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, AwareDatetime

from db.facts import read_cursor

PAGE_MAX = 200


def _to_utc(instant: datetime) -> datetime:
    try:
        return instant.astimezone(UTC)
    except OverflowError:
        raise ValueError("no such instant") from None


def _read_cursor(cursor: str) -> str:
    """Return what the database room gave; the outer form only keeps `+` and `:` out of an address."""
    try:
        inner = base64.b64decode(cursor, altchars=b"-_", validate=True).decode("ascii")
        for key in read_cursor(inner):
            if isinstance(key, datetime):
                _to_utc(key)
    except (binascii.Error, UnicodeDecodeError, ValueError):
        raise ValueError("not a cursor that this API gave") from None
    return inner


def cursor_out(inner: str | None) -> str | None:
    """Return the cursor as callers see it."""
    return base64.urlsafe_b64encode(inner.encode("ascii")).decode("ascii") if inner is not None else None


def refuse(where: str, rule: str) -> RequestValidationError:
    """Return the error for a rule that types cannot say."""
    return RequestValidationError([{"loc": ("query", where), "msg": rule, "type": "value_error"}])


def refuse_body(where: str, rule: str) -> RequestValidationError:
    """Return the error for a rule about a body that types cannot say."""
    return RequestValidationError([{"loc": ("body", where), "msg": rule, "type": "value_error"}])


SentCursor = Annotated[str | None, AfterValidator(lambda c: c and _read_cursor(c))]
"""Of a body."""
Limit = Annotated[int, Query(ge=1, le=PAGE_MAX, description="Rows on a page.")]
Cursor = Annotated[
    SentCursor, Query(min_length=1, max_length=200, description="From `next_cursor` of the page before.")
]
Instant = Annotated[AwareDatetime, AfterValidator(_to_utc)]
AeTitle = Annotated[str, Query(min_length=1, max_length=16, pattern=r"^[\x20-\x5b\x5d-\x7e]+$", examples=["CR_ROOM_1"])]
Code = Annotated[str, Query(max_length=64, pattern=r"^[a-z0-9_]+$", examples=["low_confidence"])]
Probability = Annotated[float, Query(ge=0, le=1, allow_inf_nan=False, examples=[0.5], description="Included.")]
Version = Annotated[str, Query(max_length=32, pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$", examples=["1.0.0"])]
