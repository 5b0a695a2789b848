"""The pages in a real browser: drawn as designed, alive, usable by keys, within their own security policy."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from db import facts
from db.engine import db_now, read_scope, session_scope
from db.facts import NewHeatmap, record_heatmap
from db.tables import DeliveryState
from tests.browser import reader_at, unexpected, until
from tests.builders import as_bytes, make_radiograph
from tests.site import Site, assert_fits, faults, open_study
from tests.web_world import LATERAL

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.acceptance

FILMS_FETCHED = """new Set(performance.getEntriesByType('resource').map((one) => one.name)
  .filter((name) => name.includes('size=2048'))).size"""

CLEAR = """(() => {
  const image = document.querySelector('#film .layer img'), { naturalWidth: width, naturalHeight: height } = image;
  const pen = new OffscreenCanvas(width, height).getContext('2d', { willReadFrequently: true });
  pen.drawImage(image, 0, 0);
  const opacity = (x) => pen.getImageData(x, height / 2, 1, 1).data[3];
  return (opacity(10) === 0) + (opacity(width - 10) === 255);
})()"""
"""Of the heat map, clear at the left and full at the right: how many of the two are so."""


def values(page: Page) -> str:
    return str(page.locator("#film + p [data-values]").inner_text())


def test_worklist_announces_new_studies_and_moves_no_row(site: Site, page: Page) -> None:
    site.study(1)
    page.goto("/")
    until(page, "document.querySelector('#live').textContent.startsWith('Live, ')")
    before = page.locator("tr.study").count()
    site.study(2, priority=1)
    page.locator("#fresh").wait_for(state="visible")
    assert "1 new study, 1 of them urgent," in page.locator("#fresh").inner_text()
    assert page.locator("tr.study").count() == before
    page.keyboard.press(".")
    until(page, f"document.querySelectorAll('tr.study').length === {before + 1}")
    assert page.locator("tbody.group th").first.inner_text().startswith("Urgent")


def test_worklist_keeps_counts_head_and_pictures(site: Site, page: Page) -> None:
    for number in range(50, 56):
        site.study(number)
    page.route("**/thumbnail", lambda route: route.fulfill(status=503), times=1)
    page.set_viewport_size({"width": 1280, "height": 300})
    page.goto("/")
    until(page, "document.querySelector('#live').textContent.startsWith('Live, ')")
    count = "Number(document.querySelector('[data-group=positive] .num').textContent)"
    before = page.evaluate(count)
    site.study(56)
    until(page, f"{count} === {before + 1}")
    until(page, "[...document.querySelectorAll('img.thumb')].slice(0, 3).every((image) => image.naturalWidth)")
    page.evaluate("scrollTo(0, 300)")
    assert page.evaluate("document.querySelector('.work thead th').getBoundingClientRect().top") == 0
    assert_fits(page)


def test_worklist_takes_the_focus_from_nothing_and_filters_when_it_is_told_to(site: Site, page: Page) -> None:
    site.study(40)
    page.goto("/")
    until(page, "document.querySelector('#live').textContent.startsWith('Live, ')")
    page.locator("#views a").first.focus()
    site.study(41)
    page.locator("#fresh").wait_for(state="visible")
    assert page.evaluate("document.activeElement.closest('#views') !== null")
    page.locator("[name=period]").select_option("7")
    page.wait_for_timeout(500)
    assert "period" not in page.url
    page.locator("#filters button", has_text="Show").click()
    page.wait_for_url("**period=7*")


def test_reading_windows_by_drag_keys_and_presets(site: Site, page: Page) -> None:
    open_study(page, site.study(3))
    assert values(page).startswith("centre 2048, width 4096, as sent")
    box = page.locator("#film").bounding_box()
    assert box is not None
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] - 100, middle[1] - 50, steps=4)
    page.mouse.up()
    until(page, "document.querySelector('[data-values]').textContent.startsWith('centre 1728, width 3136')")
    page.keyboard.press("2")
    until(page, "document.querySelector('[data-values]').textContent.startsWith('centre 1536, width 2400')")
    page.keyboard.press("i")
    until(page, "document.querySelector('[data-values]').textContent.includes('inverted')")
    page.keyboard.press("r")
    until(page, "document.querySelector('[data-values]').textContent.includes('turned 90°')")
    page.keyboard.press("0")
    until(page, "document.querySelector('[data-values]').textContent.startsWith('centre 2048, width 4096, as sent')")


def test_answer_by_one_key_opens_the_next_study_at_once_and_can_be_undone(site: Site, page: Page) -> None:
    first, second = site.study(4, priority=1), site.study(5, priority=1)
    page.goto("/?view=all")
    page.evaluate(f"sessionStorage.order = JSON.stringify(['{first}', '{second}'])")
    open_study(page, first)
    page.wait_for_timeout(1500)  # what the node tells of both studies has come
    until(page, f"{FILMS_FETCHED} === 2")
    for late in ("**/image?*", f"**/studies/{second}"):  # the next study lies ready: it needs nothing of the node now
        page.route(late, lambda route: route.abort())
    page.keyboard.press("a")
    page.wait_for_url(f"**/studies/{second}*")
    until(page, "Number(document.querySelector('#main').dataset.shownMs) >= 0")
    assert page.locator("#film canvas").is_visible()
    page.unroute_all()
    assert "Agree: pneumonia, saved for DEMO4 Drawn, A-4." in page.locator(".toast").first.inner_text()
    page.keyboard.press("z")
    page.wait_for_url(f"**/studies/{first}*")
    page.locator(".told li", has_text="Taken back").wait_for()
    assert [r.verdict for r in site.reviews_of(first)] == ["agree", "withdraw"]


def test_answer_is_refused_until_the_radiograph_was_seen(site: Site, page: Page) -> None:
    study_id = site.study(6)
    held: list[Any] = []
    page.route("**/image?size=2048", lambda route: held.append(route))
    page.goto(f"/studies/{study_id}", wait_until="domcontentloaded")
    until(page, "!document.querySelector('#bench').hidden")
    page.keyboard.press("a")
    page.locator(".toast", has_text="was not on the screen yet").wait_for()
    assert site.reviews_of(study_id) == []
    page.unroute("**/image?size=2048")


def test_heat_map_is_off_until_asked_for_and_lies_over_the_film(site: Site, page: Page) -> None:
    study_id = site.study(17)
    with read_scope(site.world.engine) as session:
        image = facts.study_detail(session, study_id).images[0]
    drawn = io.BytesIO()
    heat = Image.new("L", (64, 64), 255)
    heat.paste(0, (0, 0, 32, 64))
    heat.save(drawn, "PNG")
    kept = site.world.store.place([drawn.getvalue()])
    with session_scope(site.world.engine) as session:
        made = NewHeatmap(instance_id=image.instance_id, model_name="drawn", model_version="0.0.1", path=kept.path)
        record_heatmap(session, made, now=db_now(session))
    open_study(page, study_id)
    layer, shown = page.locator("#film .layer img"), page.locator("#film").get_attribute("data-heat")
    assert not layer.is_visible()
    page.keyboard.press("h")
    layer.wait_for(state="visible")
    assert layer.evaluate("(image) => image.naturalWidth") > 0
    assert page.evaluate(CLEAR) == 2, "cold places let the film through, with its window and its inversion"
    assert "not an outline" in page.locator("[data-heatkey]").inner_text()
    strong = float(layer.evaluate("(image) => image.style.opacity"))
    page.keyboard.press(",")
    assert float(layer.evaluate("(image) => image.style.opacity")) < strong
    page.keyboard.press("h")
    layer.wait_for(state="hidden")
    page.keyboard.press("h")
    layer.wait_for(state="visible")
    site.turn(study_id)
    layer.wait_for(state="hidden")
    assert page.locator("#film").get_attribute("data-heat") != shown, "a new answer's heat map is another picture"


def test_two_readers_do_not_overwrite_each_other(site: Site, page: Page) -> None:
    study_id = site.study(7)
    open_study(page, study_id)
    with reader_at(site.browser, site.url) as (other, complaints):
        other.add_init_script("localStorage.reader = 'Dr S. Second'")
        open_study(other, study_id)
        other.keyboard.press("d")
        other.locator(".toast").wait_for()
        page.keyboard.press("a")
        page.locator("#conflict").wait_for(state="visible")
        said = page.locator("#conflict-words").inner_text()
        assert "Dr S. Second answered this study" in said
        assert "Disagree, no pneumonia. Yours (Agree: pneumonia) is not saved." in said
        assert [r.reviewer for r in site.reviews_of(study_id)] == ["Dr S. Second"]
        page.get_by_role("button", name="Save mine as a second reading").click()
        page.locator(".toast", has_text="as a second reading").wait_for()
    assert unexpected(complaints) == []
    assert [(r.reviewer, r.reading) for r in site.reviews_of(study_id)] == [("Dr S. Second", 1), ("Dr R. Reader", 2)]


def test_study_without_an_answer_asks_what_the_reader_sees(site: Site, page: Page) -> None:
    received = site.world.receive(8, data=as_bytes(make_radiograph(seed=8, rows=256, columns=256)))
    site.world.judge(received.instance_id, None, [LATERAL])
    site.world.report(received.study_id)
    open_study(page, received.study_id)
    page.keyboard.press("p")
    page.locator(".told li", has_text="Disagree, pneumonia").wait_for()


def test_disagreement_may_name_another_finding(site: Site, page: Page) -> None:
    study_id = site.study(18)
    open_study(page, study_id)
    page.locator("#finding").select_option("other")
    page.locator("#comment").fill("Cardiomegaly.")
    assert page.locator("[data-say=D]").inner_text().endswith("no pneumonia, another finding")
    page.locator("[data-say=D]").click()
    page.locator(".told li", has_text="Disagree, another finding").wait_for()
    (review,) = site.reviews_of(study_id)
    assert (review.corrected_finding, review.comment) == ("other", "Cardiomegaly.")


def test_earlier_study_hangs_beside_and_hidden_answer_shows_on_demand(site: Site, page: Page) -> None:
    early = site.study(9, minutes_ago=600, patient_id="SYN-PAST")
    study_id = site.study(10, patient_id="SYN-PAST")
    open_study(page, study_id)
    page.keyboard.press("e")
    page.locator(".light.earlier").wait_for()
    page.wait_for_url(f"**beside={early}")
    page.keyboard.press("b")
    assert not page.locator(".verdict.clear").is_visible()
    assert page.locator(".verdict.veil").is_visible()
    page.keyboard.press("b")
    assert page.locator(".verdict.clear").is_visible()
    page.evaluate("localStorage.blind = 'off'")


def test_waiting_study_fills_in_by_itself(site: Site, page: Page) -> None:
    received = site.world.receive(11, data=as_bytes(make_radiograph(seed=11, rows=256, columns=256)))
    open_study(page, received.study_id)
    assert "Waiting" in page.locator(".verdict").inner_text()
    site.world.judge(received.instance_id, 0.94)
    site.world.report(received.study_id, DeliveryState.SENT)
    page.locator(".verdict.positive").wait_for()
    assert page.locator("[data-say]").first.get_attribute("data-say") == "A"


def test_node_that_is_gone_is_said_and_takes_no_answer(site: Site, page: Page) -> None:
    study_id = site.study(13)
    open_study(page, study_id)
    page.context.set_offline(True)
    page.evaluate("dispatchEvent(new Event('visibilitychange'))")
    page.locator("#offline").wait_for(state="visible")
    page.locator("[data-say=A][aria-disabled=true]").wait_for()
    page.keyboard.press("a")
    page.locator(".toast", has_text="the node does not answer").wait_for()
    page.context.set_offline(False)
    page.locator("#offline").wait_for(state="hidden")
    page.locator("[data-say=A][aria-disabled=false]").wait_for()
    assert site.reviews_of(study_id) == []


def test_tablet_shows_every_column_of_the_worklist_and_a_scale_to_read(site: Site) -> None:
    urgent = site.study(60, priority=1, patient_name="EXTRAORDINARILY^Long")
    warned = site.world.receive(61, minutes_ago=5000)
    site.world.judge(warned.instance_id, 0.55)
    site.world.report(warned.study_id)
    with reader_at(site.browser, site.url, width=820, height=1180, touch=True) as (page, complaints):
        page.goto("/?view=all")
        list_ = page.locator(".scroll").first
        assert list_.evaluate("list => list.scrollWidth <= list.clientWidth")
        for study_id in (urgent, warned.study_id):
            assert page.locator(f"tr[data-id='{study_id}'] .scale").bounding_box()["width"] > 60
    assert unexpected(complaints) == []


def test_tablet_has_the_tools_in_one_row(site: Site) -> None:
    study_id = site.study(62)
    with reader_at(site.browser, site.url, width=820, height=1180, touch=True) as (page, complaints):
        open_study(page, study_id)
        rows = page.locator("#bench button").evaluate_all("(all) => new Set(all.map((one) => one.offsetTop)).size")
        assert rows == 1
    assert unexpected(complaints) == []


def test_keys_are_listed_and_can_be_switched_off(site: Site, page: Page) -> None:
    open_study(page, site.study(14))
    page.keyboard.press("?")
    page.locator("#keys").wait_for(state="visible")
    assert page.locator("#keys li").count() > 10
    page.locator("#keys-on").uncheck()
    page.locator("#keys .main").click()
    page.keyboard.press("i")
    assert "inverted" not in values(page)


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_pages_have_no_serious_accessibility_fault_and_fit(site: Site, page: Page, theme: str) -> None:
    study_id = site.study(15 if theme == "dark" else 16)
    found = {}
    for address in ("/?view=all", f"/studies/{study_id}", "/quality", "/admin"):
        page.goto(address)
        page.evaluate(f"localStorage.theme = document.documentElement.dataset.theme = '{theme}'")
        for width in (1280, 820):
            page.set_viewport_size({"width": width, "height": 1000})
            assert_fits(page)
            found[address, width] = faults(page)
    assert {where: what for where, what in found.items() if what} == {}


@pytest.mark.parametrize("address", ["/docs", "/redoc"])
def test_reference_is_drawn_by_files_served_here(site: Site, address: str) -> None:
    with reader_at(site.browser, site.url) as (page, complaints):
        page.goto(address)
        until(page, "document.body.textContent.includes('/api/v1/studies')")
    # Redoc asks another machine for its maker's logo; our policy refuses.
    assert [said for said in complaints if "logo-mini.svg" not in said] == []
