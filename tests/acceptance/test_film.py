"""The radiograph in a real browser: shown is what the node draws from the stored pixels; regions by any hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from tests.browser import is_shown, reader_at, unexpected, until
from tests.builders import as_bytes, make_radiograph
from tests.site import Site, assert_fits, faults, open_study

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.acceptance

IS_EXACT = "document.querySelector('#film + p [data-values]').dataset.exact === 'yes'"
WORDS = "document.querySelector('#film + p [data-values]').textContent"
READ = """const read = (picture) => {
    const pen = new OffscreenCanvas(picture.width, picture.height).getContext('2d', { willReadFrequently: true });
    pen.drawImage(picture, 0, 0);
    return pen.getImageData(0, 0, picture.width, picture.height).data;
  }; const film = read(document.querySelector('#film canvas'));"""
APART = f"""async () => {{
  {READ}
  const asked = performance.getEntriesByType('resource').map((one) => one.name);
  const url = asked.filter((name) => name.includes('/image?') && name.includes('size=2048')).pop();
  const drawn = read(await createImageBitmap(await (await fetch(url)).blob(), {{ colorSpaceConversion: 'none' }}));
  const greys = new Set();
  let most = film.length === drawn.length ? 0 : 255;
  for (let i = 0; i < film.length; i += 4) {{
    most = Math.max(most, Math.abs(film[i] - drawn[i]));
    greys.add(film[i]);
  }}
  return {{ url, most, greys: greys.size }};
}}"""
"""Of the canvas and the picture that the node drew last: the address, the largest difference, how many greys."""


def drag(page: Page, right: float, down: float, *, release: bool = True) -> None:
    """Drag from the middle of the film."""
    box = page.locator("#film").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + right, y + down, steps=5)
    if release:
        page.mouse.up()


def table() -> Dataset:
    """Return a VOI LUT that is no line: half of the values share a tenth of the greys."""
    item = Dataset()
    item.LUTDescriptor, item.LUTExplanation = [4096, 0, 12], "bent"
    bent = np.interp(np.arange(4096), [0, 2048, 4095], [0, 400, 4095])
    item.LUTData = np.rint(bent).astype("<u2").tobytes()
    return item


OWN = {
    "window": {"WindowCenter": 900, "WindowWidth": 700},
    "inverse": {"photometric": "MONOCHROME1"},
    "lut": {"VOILUTSequence": [table()], "WindowCenter": None, "WindowWidth": None},
    "none": {"WindowCenter": None, "WindowWidth": None},
    "modality units": {"RescaleSlope": "2", "RescaleIntercept": "-1024", "RescaleType": "HU", "WindowCenter": 1000},
}
SAID = {
    "window": "centre 900, width 700, as sent",
    "inverse": "centre 2048, width 4096, as sent",
    "lut": "as sent, by its LUT",
    "none": "the image states no window",
    "modality units": "centre 1000, width 4096 HU, as sent",
}


@pytest.mark.parametrize("kind", OWN)
def test_window_after_a_drag_is_the_one_of_the_stored_pixels(site: Site, page: Page, kind: str) -> None:
    number = 30 + list(OWN).index(kind)
    changes: dict[str, Any] = OWN[kind]
    study_id = site.study(number, data=as_bytes(make_radiograph(seed=number, rows=512, columns=420, **changes)))
    open_study(page, study_id)
    assert SAID[kind] in page.evaluate(WORDS)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "center=" in request.url else None)
    drag(page, 200, 60, release=False)
    until(page, f"!({IS_EXACT})")
    assert "approximate" in page.evaluate(WORDS)
    assert asked == [], "nothing is asked of the node while a finger moves"
    page.mouse.up()
    until(page, IS_EXACT)
    found = page.evaluate(APART)
    assert "center=" in found["url"]
    assert found["most"] == 0
    assert found["greys"] > 100, "what lay outside the image's own window has its greys too"
    assert "approximate" not in page.evaluate(WORDS)
    dragged = page.evaluate(WORDS)
    page.keyboard.press("2")
    until(page, f"{IS_EXACT} && {WORDS} !== {dragged!r}")
    assert page.evaluate(APART)["most"] == 0
    page.keyboard.press("1")
    until(page, f"{IS_EXACT} && {WORDS}.includes({SAID[kind].rpartition(', ')[2]!r})")


def test_preview_while_dragging_brightens_upwards_in_both_polarities(site: Site, page: Page) -> None:
    mean = f"() => {{ {READ} return film.reduce((sum, value) => sum + value) / film.length; }}"
    for number, photometric in ((40, "MONOCHROME1"), (41, "MONOCHROME2")):
        data = as_bytes(make_radiograph(seed=number, rows=512, columns=420, photometric=photometric))
        open_study(page, site.study(number, data=data))
        before = page.evaluate(mean)
        drag(page, 0, -120, release=False)
        until(page, f"!({IS_EXACT})")
        assert page.evaluate(mean) > before + 10
        page.mouse.up()
        until(page, IS_EXACT)
        assert page.evaluate(mean) > before + 10


def test_window_that_the_node_cannot_draw_stays_and_says_so(site: Site, page: Page) -> None:
    open_study(page, site.study(42))
    page.route("**/image?*center=*", lambda route: route.abort())
    drag(page, 100, 0)
    until(page, f"{WORDS}.includes('approximate: The node did not answer')")
    page.unroute("**/image?*center=*")
    page.locator("#film").focus()
    page.keyboard.press("ArrowRight")
    until(page, IS_EXACT)


def test_looking_closer_asks_for_every_pixel(site: Site, page: Page) -> None:
    wide = make_radiograph(seed=43, rows=2400, columns=2000)
    open_study(page, site.study(43, data=as_bytes(wide)))
    assert page.evaluate("document.querySelector('#film canvas').height") == 2048
    page.keyboard.press("o")
    until(page, "document.querySelector('#film canvas').height === 2400")
    assert "100 %" in page.evaluate(WORDS), "1:1 is one stored pixel on one pixel of the screen"


def region_of(site: Site, study_id: Any) -> tuple[int, int, int, int] | None:
    region = site.reviews_of(study_id)[-1].region
    return region and (region.left, region.top, region.right, region.bottom)


def test_region_goes_with_the_answer_and_the_next_reader_sees_it(site: Site, page: Page) -> None:
    study_id = site.study(50)
    open_study(page, study_id)
    drag(page, 80, 80)
    assert page.locator(".marks .mine").count() == 0, "the window's tool draws nothing"
    page.keyboard.press("0")
    page.keyboard.press("m")
    drag(page, 100, 80)
    assert page.locator(".marks .mine").count() == 1
    assert "A region on Image 1 goes with your answer." in page.locator("#region-note").inner_text()
    zoom = page.evaluate("new DOMMatrix(getComputedStyle(document.querySelector('.layer')).transform).a")
    page.keyboard.press("a")
    page.locator(".toast").first.wait_for()
    found = region_of(site, study_id)
    assert found is not None
    page.wait_for_timeout(1500)  # the page hears of the review and fetches itself anew
    assert page.get_by_role("button", name="Region of Dr R. Reader on Image 1").is_visible()
    assert found[:2] == pytest.approx((210, 256), abs=2)
    assert found[2:] == pytest.approx((210 + 100 / zoom, 256 + 80 / zoom), abs=3)
    with reader_at(site.browser, site.url) as (other, complaints):
        other.add_init_script("localStorage.reader = 'Dr S. Second'")
        open_study(other, study_id)
        assert other.locator(".marks rect").count() == 0, "nothing is drawn over the pixels unless it is asked for"
        shows = other.get_by_role("button", name="Region of Dr R. Reader on Image 1")
        shows.click()
        assert other.locator(".marks .theirs").get_attribute("x") == str(found[0])
        assert shows.get_attribute("aria-pressed") == "true"
        assert faults(other) == []
        shows.click()
        assert other.locator(".marks rect").count() == 0
    assert unexpected(complaints) == []


def test_region_needs_no_mouse_and_can_be_removed(site: Site, page: Page) -> None:
    study_id = site.study(51)
    open_study(page, study_id)
    for key in ("m", "Enter", "ArrowRight", "Shift+ArrowDown"):
        page.keyboard.press(key)
    box = page.evaluate("['x', 'y', 'width', 'height'].map((n) => +document.querySelector('.mine').getAttribute(n))")
    assert box == [158 + 8, 192, 105, 128 + 10]
    page.keyboard.press("Delete")
    assert page.locator(".marks rect").count() == 0
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Remove the region").click()
    assert not page.locator("#region-note").is_visible()
    page.keyboard.press("a")
    page.locator(".toast").first.wait_for()
    assert region_of(site, study_id) is None


def test_tablet_windows_pinches_and_marks_by_touch(site: Site) -> None:
    study_id = site.study(52)
    with reader_at(site.browser, site.url, width=820, height=1180, touch=True) as (page, complaints):
        page.add_init_script("localStorage.reader = 'Dr T. Touch'")
        page.goto(f"/studies/{study_id}", wait_until="domcontentloaded")
        is_shown(page)
        assert_fits(page)
        touch = Fingers(page)
        touch.move([(0, 0)], [(60, -30)])
        until(page, f"{IS_EXACT} && !{WORDS}.includes('as sent')")
        before = float(page.evaluate(WORDS).partition(" %")[0].rpartition(", ")[2])
        touch.move([(-40, 0), (40, 0)], [(-80, 0), (80, 0)])
        page.wait_for_timeout(200)
        assert float(page.evaluate(WORDS).partition(" %")[0].rpartition(", ")[2]) == pytest.approx(2 * before, rel=0.1)
        page.locator("[data-tool=region]").tap()
        touch.move([(0, 0)], [(90, 60)])
        assert page.locator(".marks .mine").count() == 1
        tap_until(page, "[data-say=A]", ".toast")
    assert unexpected(complaints) == []
    assert region_of(site, study_id) is not None


def tap_until(page: Page, button: str, shown: str) -> None:
    """Tap as a person does who sees nothing happen: a busy machine takes a tap for a long press."""
    for _ in range(6):
        page.locator(button).first.tap()
        page.wait_for_timeout(3000)
        if page.locator(shown).first.is_visible():
            return
    pytest.fail(f"six taps on {button} show no {shown}")


class Fingers:
    """One or two fingers on the film, as a touch screen reports them."""

    def __init__(self, page: Page) -> None:
        box = page.locator("#film").bounding_box()
        assert box is not None
        self._middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        self._session = page.context.new_cdp_session(page)

    def move(self, begin: list[tuple[float, float]], end: list[tuple[float, float]], steps: int = 6) -> None:
        """Put fingers down, move them in a line, and lift them; places are from the middle of the film."""
        self._send("touchStart", begin)
        for step in range(1, steps + 1):
            share = step / steps
            places = [(a + share * (c - a), b + share * (d - b)) for (a, b), (c, d) in zip(begin, end, strict=True)]
            self._send("touchMove", places)
        self._send("touchEnd", [])

    def _send(self, kind: str, places: list[tuple[float, float]]) -> None:
        points = [{"x": self._middle[0] + x, "y": self._middle[1] + y, "id": i} for i, (x, y) in enumerate(places)]
        self._session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
