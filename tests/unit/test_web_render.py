"""Drawing a stored file, in this process; how a process is killed is tested with the pool (`test_decoding`)."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from pacs_node.web.dicom_views import as_json, as_page
from pacs_node.web.render import (
    REFUSAL_S,
    THUMBNAIL,
    THUMBNAILS_MAX,
    Drawing,
    Form,
    Picture,
    RenderBusy,
    Renderer,
    _Memory,
    draw_picture,
    size_of,
)
from tests.builders import make_radiograph, save

FORMS: tuple[Form, ...] = ("png", "webp")


def opened(drawn: Picture | str) -> Image.Image:
    assert isinstance(drawn, Picture), drawn
    return Image.open(io.BytesIO(drawn.content))


def draw_png(path: str, size: int, window: tuple[float, float] | None, **options: Any) -> Picture | str:
    return draw_picture(path, Drawing(digest="", size=size, window=window, **options))


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
    assert isinstance(png, Picture)
    assert b"SECRET" not in png.content
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
        Drawing(digest=digest, size=size, window=window, form=form, heatmap=heatmap, is_layer=is_layer)
        for digest in ("a", "b")
        for size in (64, 128)
        for window in (None, (1.0, 2.0))
        for form in FORMS
        for heatmap in (None, "h.png")
        for is_layer in (False, True)
    ]
    assert len({drawing.etag for drawing in drawings}) == 64


def test_memory_is_bounded_and_forgets_refusals() -> None:
    memory = _Memory(max_bytes=10)
    memory.put("a", kept(5), now=0)
    memory.put("b", "no", now=0)
    assert memory.get("a", now=1) == kept(5)
    assert memory.get("b", now=1) == "no"
    assert memory.get("b", now=REFUSAL_S + 1) is None
    memory.put("c", kept(7), now=0)
    assert memory.get("a", now=1) is None, "the one used longest ago goes first"
    memory.put("huge", kept(11), now=0)
    assert memory.get("huge", now=1) is None


def kept(size: int) -> Picture:
    return Picture(content=b"x" * size, rows=1, columns=1, center=1, width=1, voi="window", is_inverse=False, unit="")


def window_of(dataset: Dataset, path: Path, window: tuple[float, float] | None = None) -> tuple[str, float, float]:
    drawn = draw_png(str(save(dataset, path)), 256, window)
    assert isinstance(drawn, Picture), drawn
    return drawn.voi, drawn.center, drawn.width


def test_picture_tells_its_window_in_the_images_own_units(tmp_path: Path) -> None:
    own = make_radiograph(RescaleSlope="2", RescaleIntercept="-1000", RescaleType="hu")
    own.WindowCenter, own.WindowWidth = "3000", "5000"
    assert window_of(own, tmp_path / "own.dcm") == ("window", 3000, 5000)
    assert window_of(own, tmp_path / "own.dcm", (100, 50)) == ("given", 100, 50)
    drawn = draw_png(str(tmp_path / "own.dcm"), 64, None)
    assert isinstance(drawn, Picture)
    assert drawn.header == (
        f'center=3000.000, width=5000.000, voi=window, unit="HU", inverse=?0, rows={own.Rows}, columns={own.Columns}'
    )


def test_picture_without_a_window_tells_the_one_it_was_given(tmp_path: Path) -> None:
    bare = make_radiograph()
    for keyword in ("WindowCenter", "WindowWidth"):
        if keyword in bare:
            delattr(bare, keyword)
    voi, center, width = window_of(bare, tmp_path / "bare.dcm")
    assert voi == "percentile"
    first = np.asarray(opened(draw_png(str(tmp_path / "bare.dcm"), 256, None)), int)
    again = np.asarray(opened(draw_png(str(tmp_path / "bare.dcm"), 256, (center, width))), int)
    assert np.abs(first - again).max() <= 1, "the same window asked for draws the same picture"


def test_picture_by_a_table_tells_where_it_rises_and_inverse_is_said(tmp_path: Path) -> None:
    dataset = make_radiograph(photometric="MONOCHROME1")
    item = Dataset()
    item.LUTDescriptor, item.LUTExplanation = [1024, 512, 8], "steep"
    item.LUTData = np.clip(np.arange(1024) - 256, 0, 255).astype("<u2").tobytes()
    dataset.VOILUTSequence = [item]
    voi, center, width = window_of(dataset, tmp_path / "lut.dcm")
    assert voi == "lut"
    assert (center, width) == pytest.approx((512 + 256 + 127.5, 250), abs=4)
    drawn = draw_png(str(tmp_path / "lut.dcm"), 64, None)
    assert isinstance(drawn, Picture)
    assert "inverse=?1" in drawn.header


@pytest.mark.parametrize("written", ["US", "DOE^JANE 1970", 'HU", x="', "", "\u00b5m"])
def test_unit_that_is_none_does_not_reach_the_header(tmp_path: Path, written: str) -> None:
    drawn = draw_png(str(save(make_radiograph(RescaleType=written), tmp_path / "a.dcm")), 64, None)
    assert isinstance(drawn, Picture)
    assert 'unit=""' in drawn.header


def test_webp_is_drawn_where_it_is_asked_for(tmp_path: Path) -> None:
    path = str(save(make_radiograph(rows=96, columns=80), tmp_path / "a.dcm"))
    assert opened(draw_png(path, 48, None, form="webp")).format == "WEBP"


def heat_at_the_right(folder: Path) -> str:
    heat_HW = np.zeros((16, 16), np.uint8)
    heat_HW[:, 12:] = 255
    Image.fromarray(heat_HW).save(folder / "heat.png")
    return str(folder / "heat.png")


def test_heat_map_alone_lets_the_film_through_where_it_is_cold(tmp_path: Path) -> None:
    path = str(save(make_radiograph(rows=96, columns=80), tmp_path / "a.dcm"))
    layer = opened(draw_png(path, 96, None, heatmap=heat_at_the_right(tmp_path), is_layer=True))
    assert (layer.mode, layer.size) == ("RGBA", (80, 96))
    layer_HW4 = np.asarray(layer)
    assert not layer_HW4[:, :50, 3].any()
    assert (layer_HW4[:, 70:, 3] > 200).all()
    assert len(np.unique(layer_HW4[..., :3].reshape(-1, 3), axis=0)) == 1, "one hue: nothing of the radiograph"


def test_heat_map_colours_where_it_is_warm_alone(tmp_path: Path) -> None:
    path = str(save(make_radiograph(rows=96, columns=80), tmp_path / "a.dcm"))
    heated_HW3 = np.asarray(opened(draw_png(path, 96, None, heatmap=heat_at_the_right(tmp_path))), int)
    colourful_HW = np.ptp(heated_HW3, axis=2) > 0
    assert heated_HW3.shape == (96, 80, 3)
    assert not colourful_HW[:, :50].any()
    assert colourful_HW[:, 70:].all()


def test_size_is_told_and_what_is_no_image_has_none(tmp_path: Path) -> None:
    assert size_of(str(save(make_radiograph(rows=96, columns=80), tmp_path / "a.dcm"))) == (96, 80)
    (tmp_path / "b.dcm").write_bytes(b"no DICOM")
    assert size_of(str(tmp_path / "b.dcm")) == "it has no rows and columns"


def test_dicom_json_names_the_file_in_place_of_its_pixels(tmp_path: Path) -> None:
    path = str(save(make_radiograph(rows=96, columns=80), tmp_path / "a.dcm"))
    found = as_json(path, "/api/v1/instances/x/dicom")
    assert isinstance(found, bytes)
    (dataset,) = json.loads(found)
    assert dataset["00280010"] == {"vr": "US", "Value": [96]}
    assert dataset["7FE00010"]["BulkDataURI"] == "/api/v1/instances/x/dicom"


def test_page_of_a_hostile_object_holds_no_mark_up_of_its_own(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>^\"'&"
    page = as_page(str(save(make_radiograph(patient_name=evil, StudyDescription=evil), tmp_path / "a.dcm")))
    assert isinstance(page, bytes)
    assert b"<script" not in page
    assert b"&lt;script&gt;" in page


def test_page_of_a_report_tells_its_content_tree(tmp_path: Path) -> None:
    report = make_radiograph()
    report.ContentSequence = [content("TEXT", "Finding", TextValue="Nothing <b>seen</b>")]
    report.ContentSequence[0].ContentSequence = [content("UIDREF", "Source", UID="1.2.3")]
    page = as_page(str(save(report, tmp_path / "a.dcm")))
    assert isinstance(page, bytes)
    assert b'data-depth="1"><strong>' not in page.split(b"Finding")[0]
    assert b"Nothing &lt;b&gt;seen&lt;/b&gt;" in page
    assert b"1.2.3" in page


def content(kind: str, name: str, **values: str) -> Dataset:
    item, concept = Dataset(), Dataset()
    concept.CodeValue, concept.CodingSchemeDesignator, concept.CodeMeaning = "1", "99TEST", name
    item.ValueType, item.ConceptNameCodeSequence = kind, [concept]
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


class SlowPool:
    """Draws what it is asked for when the test says so."""

    def __init__(self) -> None:
        self.asked: Queue[tuple[int, Future[str]]] = Queue()

    def submit(self, _function: Callable[..., object], _path: str, drawing: Drawing) -> Future[str]:
        future: Future[str] = Future()
        self.asked.put((drawing.size, future))
        return future

    def draw_next(self) -> None:
        self.asked.get(timeout=10)[1].set_result("drawn")


def test_film_waits_for_one_thumbnail_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renderer, pool = Renderer(), SlowPool()
    monkeypatch.setattr(renderer, "_pool", pool)

    def ask(name: str, size: int) -> str:
        return str(renderer._draw(tmp_path, Drawing(digest=name, size=size, window=None)))

    with ThreadPoolExecutor(THUMBNAILS_MAX + 2) as threads:
        thumbnails = [threads.submit(ask, f"{number}", THUMBNAIL) for number in range(THUMBNAILS_MAX + 1)]
        refused = next(as_completed(thumbnails, timeout=10))
        assert isinstance(refused.exception(), RenderBusy), "the list may come again; a film may not wait for it"
        first = pool.asked.get(timeout=10)
        film = threads.submit(ask, "film", 2048)
        size, drawn = pool.asked.get(timeout=10)
        assert (first[0], size) == (THUMBNAIL, 2048)
        drawn.set_result("drawn")
        assert film.result(timeout=10) == "drawn"
        first[1].set_result("drawn")
        for _ in range(THUMBNAILS_MAX - 1):
            pool.draw_next()
