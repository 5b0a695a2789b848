"""Files of rows: harmless to a spreadsheet, whole over many pages, and without what is left out."""

from __future__ import annotations

import csv
import io
import json

import pytest

from pacs_node.web.exporting import FileKind, lines_of
from pacs_node.web.schemas import Schema


class Line(Schema):
    name: str
    number: float | None
    tags: list[dict[str, str]]


PAGES = {
    None: ([Line(name="a", number=-1.5, tags=[{"code": "low"}])], "2"),
    "2": ([Line(name="b", number=None, tags=[{"destination": "main", "state": "sent"}])], None),
}


def written(kind: FileKind, without: frozenset[str] = frozenset()) -> str:
    return "".join(lines_of(kind, Line, PAGES.__getitem__, without=without))


def test_csv_has_a_head_and_every_page() -> None:
    assert list(csv.reader(io.StringIO(written("csv")))) == [
        ["name", "number", "tags"],
        ["a", "-1.5", "low"],
        ["b", "", "main:sent"],
    ]


def test_ndjson_is_one_object_a_line() -> None:
    assert [json.loads(line)["name"] for line in written("ndjson").splitlines()] == ["a", "b"]


def test_what_is_left_out_is_in_neither() -> None:
    for kind in ("csv", "ndjson"):
        assert "name" not in written(kind, frozenset({"name"}))


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1"])
def test_cell_that_a_spreadsheet_would_run_is_quoted(text: str) -> None:
    pages = {None: ([Line(name=text, number=None, tags=[])], None)}
    file = "".join(lines_of("csv", Line, pages.__getitem__, without=frozenset()))
    assert list(csv.reader(io.StringIO(file, newline="")))[1][0] == f"'{text}"
