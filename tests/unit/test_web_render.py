"""Drawing a stored file, in this process; how a process is killed is tested with the pool (`test_decoding`)."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pacs_node.web.render import REFUSAL_S, Drawing, _Memory, draw_png
from tests.builders import make_radiograph, save


def opened(png: bytes | str) -> Image.Image:
    assert isinstance(png, bytes), png
    return Image.open(io.BytesIO(png))


def test_both_polarities_are_drawn_alike(tmp_path: Path) -> None:
    drawn = [
        np.asarray(opened(draw_png(str(save(make_radiograph(photometric=p, seed=3), tmp_path / p)), 256, None)), int)
        for p in ("MONOCHROME1", "MONOCHROME2")
    ]
    assert np.abs(drawn[0] - drawn[1]).max() <= 1
    assert drawn[0].mean() < 200, "lung dark"


def test_size_bounds_the_longest_side_and_never_enlarges(tmp_path: Path) -> None:
    path = str(save(make_radiograph(rows=200, columns=100), tmp_path / "a.dcm"))
    assert opened(draw_png(path, 50, None)).size == (25, 50)
    assert opened(draw_png(path, 4096, None)).size == (100, 200)


def test_png_carries_no_text_of_the_data_set(tmp_path: Path) -> None:
    png = draw_png(str(save(make_radiograph(patient_name="SECRET^NAME"), tmp_path / "a.dcm")), 64, None)
    assert isinstance(png, bytes)
    assert b"SECRET" not in png
    assert opened(png).info == {}


@pytest.mark.parametrize("content", [b"", b"\x00" * 200, b"DICM", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_refused_with_a_clause(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.dcm"
    path.write_bytes(content)
    reason = draw_png(str(path), 64, None)
    assert isinstance(reason, str)
    assert reason[0].islower()


def test_missing_file_is_said_to_be_purged(tmp_path: Path) -> None:
    assert draw_png(str(tmp_path / "gone.dcm"), 64, None) == "its file was purged after the retention time"


def test_etag_depends_on_everything_that_changes_pixels() -> None:
    drawings = [
        Drawing(digest=digest, size=size, window=window)
        for digest in ("a", "b")
        for size in (64, 128)
        for window in (None, (1.0, 2.0))
    ]
    assert len({drawing.etag for drawing in drawings}) == 8


def test_memory_is_bounded_and_forgets_refusals() -> None:
    memory = _Memory(max_bytes=10)
    memory.put("a", b"12345", now=0)
    memory.put("b", "no", now=0)
    assert memory.get("a", now=1) == b"12345"
    assert memory.get("b", now=1) == "no"
    assert memory.get("b", now=REFUSAL_S + 1) is None
    memory.put("c", b"1234567", now=0)
    assert memory.get("a", now=1) is None, "the one used longest ago goes first"
    memory.put("huge", b"x" * 11, now=0)
    assert memory.get("huge", now=1) is None
