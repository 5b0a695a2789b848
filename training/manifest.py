"""Readers of tables: the manifest, and labels.csv of the NIH subset. Take a CSV file; give Items.

The manifest
------------
UTF-8, comma separated (RFC 4180), one header line, one row per image. Column names in any order and case; columns
that are not listed here are ignored, with one warning that names them. An empty cell says nothing.

========  ========  =================================================================================================
column    needed    value
========  ========  =================================================================================================
path      yes       the image, relative to the CSV file (or absolute)
label     yes       one of the recipe's outputs, in any case
patient   yes       any name, unique within the source; the same patient never stands on both sides of a split
split     -         train, val or test; test is held out, all others are split again by patient
age       -         whole or decimal years, 0 to 120
sex       -         F, M or O
view      -         PA or AP
source    -         where the image comes from; without it, the name of the CSV file's folder
subgroup  -         a finer label, for judging it apart (bacterial, viral, ...)
========  ========  =================================================================================================
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from training.items import SPLITS, DataError, Item, group_of, label_of, sha256_of

logger = logging.getLogger("training")

_NEEDED = ("path", "label", "patient")
_OPTIONAL = ("split", "age", "sex", "view", "source", "subgroup")
MANIFEST = {name: name for name in (*_NEEDED, *_OPTIONAL)}
NIH = {"path": "file", "label": "folder_label", "patient": "patient_id", "age": "age", "sex": "sex", "view": "view"}
_AGE_MAX = 120  # years


def read_table(path: Path, source: str, outputs: tuple[str, ...], columns: Mapping[str, str]) -> list[Item]:
    """Return one item per row; `columns` names this table's column for each column of the manifest."""
    items: list[Item] = []
    line = 0
    try:
        for line, row in _rows(path, columns):
            try:
                items.append(_item_of_row(path.parent, source, outputs, row))
            except DataError as error:
                raise DataError(f"{path}, line {line}: {error}") from error
    except csv.Error as error:
        raise DataError(f"{path}, line {line + 1} or later: {error}; most likely a stray quotation mark") from error
    if not items:
        raise DataError(f"{path}: no image: the table has no rows")
    return items


def _rows(path: Path, columns: Mapping[str, str]) -> Iterable[tuple[int, dict[str, str]]]:
    """Yield line number and cells by the manifest's column names, stripped."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f'{path}: not UTF-8 ({error}); a spreadsheet saves it as "CSV UTF-8"') from error
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)  # or an open quotation mark swallows rows
    header = {(name or "").strip().lower(): name for name in reader.fieldnames or []}
    if missing := [columns[name] for name in _NEEDED if columns[name] not in header]:
        hint = "; cells are parted by commas, not by semicolons" if any(";" in name for name in header) else ""
        found = ", ".join(header) or "nothing"
        raise DataError(f"{path}: no column {', '.join(missing)}; the header has {found}{hint}")
    if columns is MANIFEST and (unknown := sorted(set(header) - set(columns))):
        logger.warning("%s: columns ignored: %s; known: %s", path, ", ".join(unknown), ", ".join(columns))
    for row in reader:
        if None in row:
            raise DataError(f"{path}, line {reader.line_num}: more cells than the header has columns")
        cells = {name: row.get(header.get(column, "")) or "" for name, column in columns.items()}
        yield reader.line_num, {name: cell.strip() for name, cell in cells.items()}


def _item_of_row(folder: Path, source: str, outputs: tuple[str, ...], row: Mapping[str, str]) -> Item:
    """Return the item of one row; the caller adds file and line to what is raised."""
    for name in _NEEDED:
        if not row[name]:
            raise DataError(f"{name} is empty")
    path = folder / row["path"]
    source = row.get("source") or source
    subgroup = row.get("subgroup", "").lower()
    return Item(
        path=path,
        label=label_of(row["label"], subgroup, outputs, row["path"]),
        sha256=sha256_of(path),
        group=group_of(source, row["patient"]),
        source=source,
        split=_one_of("split", row.get("split", "").lower(), SPLITS),
        subgroup=subgroup,
        age_years=_age_years(row.get("age", "")),
        sex=_one_of("sex", row.get("sex", "").upper(), ("F", "M", "O")),
        view=_one_of("view", row.get("view", "").upper(), ("PA", "AP")),
    )


def _one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    if value and value not in known:
        raise DataError(f"{name} is {value!r}; known: {', '.join(known)}, or empty")
    return value


def _age_years(text: str) -> int | None:
    if not text:
        return None
    try:
        years = float(text)
    except ValueError:
        years = -1.0
    if not 0 <= years <= _AGE_MAX:
        raise DataError(f"age is {text!r}; years from 0 to {_AGE_MAX} are needed, or an empty cell")
    return int(years)
