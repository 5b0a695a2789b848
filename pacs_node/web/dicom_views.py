"""A stored DICOM file for other eyes: as DICOM JSON (PS3.18 F), or as a page that a person can read.

Both are made in one of the drawing processes, because the file may be hostile, and take nothing from it unescaped.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID

from models.preprocess import UNREADABLE
from pacs_node.web.render import PURGED

BULK_BYTES = 1024
"""Longer values are named by the address of the file instead (PS3.18 F.2.2)."""
DEPTH_MAX = 30
LINES_MAX = 5000
VALUE_CHARACTERS = 2000
CUT = "The rest is left out here; the DICOM file has it."


def as_json(path: str, address: str) -> bytes | str:
    """Return the file as DICOM JSON: an array of one data set, without its pixels; or the reason why not.

    Parameters
    ----------
    address
        Where the whole file is, for values that are left out.
    """
    try:
        dataset = pydicom.dcmread(path, defer_size=BULK_BYTES)
        found = dataset.to_json_dict(
            bulk_data_threshold=BULK_BYTES, bulk_data_element_handler=lambda _: address, suppress_invalid_tags=True
        )
        return json.dumps([found], ensure_ascii=True, allow_nan=False).encode("ascii")
    except FileNotFoundError:
        return PURGED
    except UNREADABLE:
        return "it cannot be read as DICOM"


def as_page(path: str) -> bytes | str:
    """Return the file as HTML: a report as its sentences, anything else as its elements; or the reason why not."""
    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        lines = list(_report(dataset) if "ContentSequence" in dataset else _elements(dataset))
        title = UID(str(dataset.get("SOPClassUID", ""))).name or "DICOM object"
    except FileNotFoundError:
        return PURGED
    except UNREADABLE:
        return "it cannot be read as DICOM"
    if len(lines) > LINES_MAX:
        lines = [*lines[:LINES_MAX], (0, "", CUT)]
    return _page(title, lines).encode("utf-8", "replace")


Line = tuple[int, str, str]
"""Depth, name, value."""


def _report(dataset: Dataset) -> Iterator[Line]:
    for name in ("PatientName", "PatientID", "AccessionNumber", "StudyDate", "CompletionFlag", "VerificationFlag"):
        if dataset.get(name):
            yield 0, pydicom.datadict.dictionary_description(name), str(dataset[name].value)
    yield from _items(dataset, 0)


def _items(item: Dataset, depth: int) -> Iterator[Line]:
    """Walk the content tree (PS3.3 C.17.3)."""
    name, value = _concept(item.get("ConceptNameCodeSequence")), _value(item)
    if name or value:
        yield depth, name, value
    for child in item.get("ContentSequence") or []:
        if depth >= DEPTH_MAX:
            yield depth, "", CUT
            return
        yield from _items(child, depth + 1)


def _value(item: Dataset) -> str:
    kind = item.get("ValueType", "")
    if kind == "NUM":
        measured = next(iter(item.get("MeasuredValueSequence") or []), Dataset())
        unit = next(iter(measured.get("MeasurementUnitsCodeSequence") or []), Dataset())
        return f"{measured.get('NumericValue', '')} {_unit(unit)}".strip()
    if kind == "CODE":
        return _concept(item.get("ConceptCodeSequence"))
    if kind in ("IMAGE", "COMPOSITE", "WAVEFORM"):
        named = [str(one.get("ReferencedSOPInstanceUID", "")) for one in item.get("ReferencedSOPSequence") or []]
        return ", ".join(named)
    simple = {"TEXT": "TextValue", "PNAME": "PersonName", "UIDREF": "UID"}
    simple |= {"DATE": "Date", "TIME": "Time", "DATETIME": "DateTime", "SCOORD": "GraphicType"}
    return str(item.get(simple[kind], "")) if kind in simple else ""


def _concept(codes: Any) -> str:
    code = next(iter(codes or []), None)
    return str(code.get("CodeMeaning") or code.get("CodeValue", "")) if code is not None else ""


def _unit(code: Dataset) -> str:
    value = str(code.get("CodeValue", ""))
    return "" if value == "1" else value  # UCUM: 1 = no unit


def _elements(dataset: Dataset, depth: int = 0) -> Iterator[Line]:
    for element in dataset:
        if element.VR == "SQ":
            yield depth, element.name, f"{len(element.value)} item(s)"
            for item in element.value if depth < DEPTH_MAX else []:
                yield from _elements(item, depth + 1)
        elif isinstance(element.value, bytes):
            yield depth, element.name, f"{len(element.value)} bytes"
        else:
            yield depth, element.name, str(element.value)


def _page(title: str, lines: list[Line]) -> str:
    rows = "\n".join(
        f'<li data-depth="{depth}">{"&emsp;" * depth}<strong>{_safe(name)}</strong>{": " if name and value else ""}'
        f"{_safe(value)}</li>"
        for depth, name, value in lines
    )
    head = f'<meta charset="utf-8"><title>{_safe(title)}</title>'
    note = "<p>Research use only; not a medical device.</p>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body><h1>{_safe(title)}</h1>{note}<ul>\n{rows}\n</ul>'


def _safe(text: str) -> str:
    """Return text that holds no mark-up and no control character."""
    shown = "".join(c if c.isprintable() or c == " " else " " for c in text[:VALUE_CHARACTERS])
    return html.escape(shown, quote=True)
