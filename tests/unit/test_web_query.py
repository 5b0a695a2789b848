"""What a query may hold, and which requests are turned away before they reach a route."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError
from starlette.datastructures import Headers

from pacs_node.settings.web import WebSettings
from pacs_node.web.query import Cursor, Instant, cursor_out
from pacs_node.web.security import refusal_of

HERE = "127.0.0.1:8000"


def test_cursor_comes_back_as_it_was() -> None:
    inner = "2026-11-20T12:00:00+00:00_0193a1c2-6b5e-7c3a-9d2f-3b1c5a7e9f10"
    outer = cursor_out(inner)
    assert outer is not None
    assert not set(outer) & set("+/:?&")
    assert TypeAdapter(Cursor).validate_python(outer) == inner
    assert cursor_out(None) is None


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "MTcwMDAwMDAwMF8wMTkzYTFjMi02YjVlLTdjM2EtOWQyZi0zYjFjNWE3ZTlmMTA=",
        "MjAyNg",
        "MjAyNi0xMS0yMA==\n",
        "é",
        "////",
        "OTk5OTk5",
        "MjAyNi0xMS0yMF94",
    ],
)
def test_foreign_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Cursor).validate_python(cursor)


def test_instants_that_do_not_exist_in_utc_are_refused() -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Instant).validate_python("0001-01-01T00:00:00+23:59")


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {"host": HERE}, None),
        ("GET", {"host": "localhost"}, None),
        ("GET", {"host": "[::1]:8000"}, None),
        ("GET", {}, 421),
        ("GET", {"host": "node.hospital.example"}, 421),
        ("GET", {"host": "127.0.0.1@attacker.example"}, 421),
        ("GET", {"host": "192.0.2.1"}, 421),
        ("GET", {"host": HERE, "origin": "https://attacker.example"}, None),
        ("POST", {"host": HERE}, None),
        ("POST", {"host": HERE, "origin": f"http://{HERE}"}, None),
        ("POST", {"host": HERE, "origin": "http://localhost:8000"}, 403),
        ("POST", {"host": HERE, "sec-fetch-site": "none"}, None),
        ("POST", {"host": HERE, "sec-fetch-site": "cross-site", "origin": f"http://{HERE}"}, 403),
        ("DELETE", {"host": HERE, "origin": "null"}, 403),
    ],
)
def test_gate_lets_only_our_own_callers_through(method: str, headers: dict[str, str], status: int | None) -> None:
    refusal = refusal_of(method, Headers(headers), WebSettings())
    assert (refusal[0] if refusal else None) == status
