"""Pages in a real browser stay true: live again after a busy node, nothing hidden shown, no endless wait for a film."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from db.audit import Action
from tests.browser import is_shown, until
from tests.builders import as_bytes, make_radiograph
from tests.site import Site, in_order, is_at, open_study
from tests.web_world import LATERAL

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

pytestmark = pytest.mark.acceptance

FILM = "**/image?size=2048"
LIVE = "document.querySelector('#live').textContent.startsWith('Live, ')"


def test_page_that_was_refused_the_news_asks_for_them_and_is_live_again(site: Site, page: Page) -> None:
    study_id = site.study(1)
    page.route("**/api/v1/events", lambda route: route.fulfill(status=503))
    open_study(page, study_id)
    assert page.locator("#live").inner_text().startswith("Asked, "), "what is not live does not say so"
    site.turn(study_id)
    page.locator("[data-say=A]", has_text="no pneumonia").wait_for()
    page.unroute("**/api/v1/events")
    until(page, LIVE)


def test_answer_that_a_reader_hides_is_nowhere_on_the_page(site: Site, page: Page) -> None:
    page.add_init_script("localStorage.blind = 'on'")
    page.route("**/study.js", lambda route: route.abort())
    study_id = site.study(2)
    page.goto(f"/studies/{study_id}")
    for word in ("suspected", "0.94", "Agree"):
        assert word not in page.locator("main").inner_text(), "nothing is glimpsed before the modules run"
    page.unroute("**/study.js")
    open_study(page, study_id)
    assert "Received" in page.locator(".facts").inner_text()
    for word in ("suspected", "0.94", "Agree"):
        assert word not in page.locator("main").inner_text()


def test_new_answer_hangs_the_image_that_it_is_of_under_the_readers_hands(site: Site, page: Page) -> None:
    data = [as_bytes(make_radiograph(seed=seed, rows=512, columns=420)) for seed in (20, 21)]
    frontal = site.world.receive(20, data=data[0])
    lateral = site.world.receive(1020, data=data[1], study="1.2.20", patient_id="SYN-20", patient_name="DEMO20^Drawn")
    page.goto(f"/studies/{frontal.study_id}?image={lateral.instance_id}", wait_until="domcontentloaded")
    is_shown(page)
    page.locator("#comment").fill("typed meanwhile")
    site.world.judge(frontal.instance_id, 0.94)
    site.world.judge(lateral.instance_id, None, [LATERAL])
    site.world.report(frontal.study_id)
    page.locator(".toast", has_text="shown is the image that it is of").wait_for()
    assert page.locator("#film").get_attribute("data-instance") == str(frontal.instance_id)
    assert str(frontal.instance_id) in (page.locator("#film").get_attribute("data-heat") or "")
    assert page.locator("#comment").input_value() == "typed meanwhile"
    assert page.evaluate("document.activeElement.id") == "comment", "what is typed on answers nothing"


def test_page_of_an_image_that_is_looked_at_stays_with_it(site: Site, page: Page) -> None:
    study_id = site.study(22)
    open_study(page, study_id)
    page.keyboard.press("]")
    until(page, "!document.querySelector('#film').dataset.heat")
    lateral = page.locator("#film").get_attribute("data-instance")
    with page.expect_response(f"**/studies/{study_id}?image={lateral}"):
        page.evaluate("dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_timeout(300)
    assert page.locator("#film").get_attribute("data-heat") is None, "no other image's heat map lies over it"
    assert page.locator(".shelf [aria-current]").get_attribute("href") == f"?image={lateral}"


def test_page_that_comes_late_puts_nothing_back(site: Site, page: Page) -> None:
    before, first, second = (site.study(number) for number in (23, 24, 25))
    held: list[Route] = []
    page.route(f"**/studies/{second}*", lambda route: held.append(route))
    page.goto("/?view=all")
    page.evaluate(f"sessionStorage.order = JSON.stringify({[str(study) for study in (before, first, second)]})")
    open_study(page, first)
    page.keyboard.press("j")
    page.keyboard.press("k")
    is_at(page, before)
    for route in held:
        route.continue_()
    page.wait_for_timeout(500)
    is_at(page, before)
    assert str(before) in page.url


def test_reader_stays_at_a_study_when_the_node_does_not_answer(site: Site, page: Page) -> None:
    before, first = site.study(26), site.study(27)
    in_order(page, before, first)
    page.keyboard.press("j")
    is_at(page, first)
    page.route(f"**/studies/{before}*", lambda route: route.abort())
    page.go_back()
    page.locator(".toast", has_text="The node did not answer").wait_for()
    is_at(page, first)
    assert str(first) in page.url, "the address is of what is on the screen"


def test_film_that_is_late_is_said_to_be_and_asked_for_again(site: Site, page: Page) -> None:
    held = hold_films(page)
    page.goto(f"/studies/{site.study(3)}", wait_until="domcontentloaded")
    page.locator(".light .message", has_text="The node has not answered for 5 seconds.").wait_for()
    with page.expect_request(FILM):
        page.get_by_role("button", name="Try again").click()
    held.pop().continue_()
    is_shown(page)
    assert page.evaluate("document.activeElement.id") == "film"


def test_film_that_comes_late_is_shown_without_being_asked_for(site: Site, page: Page) -> None:
    held = hold_films(page)
    page.goto(f"/studies/{site.study(11)}", wait_until="domcontentloaded")
    page.locator(".light .message", has_text="The node has not answered for 5 seconds.").wait_for()
    for route in held:
        route.continue_()
    is_shown(page)
    assert not page.locator(".light .message").is_visible()


def hold_films(page: Page) -> list[Route]:
    held: list[Route] = []
    page.route(FILM, lambda route: held.append(route))
    return held


def test_film_of_a_busy_node_is_asked_for_once_more(site: Site, page: Page) -> None:
    page.route(FILM, lambda route: route.fulfill(status=503), times=2)  # the picture without modules, and the film
    open_study(page, site.study(4))
    assert page.locator("#film canvas").is_visible()


def test_film_is_shown_by_browsers_of_early_2023_too(site: Site, page: Page) -> None:
    page.add_init_script("delete AbortSignal.any")
    open_study(page, site.study(44))
    assert page.locator("#film canvas").is_visible()


def test_next_study_is_viewed_when_it_is_shown_and_not_when_it_is_fetched_ahead(site: Site, page: Page) -> None:
    first, second = site.study(5), site.study(6)
    in_order(page, first, second)
    until(page, "performance.getEntriesByType('resource').filter((one) => one.name.includes('size=2048')).length >= 2")
    assert {what for what in views_of(site, second) if "background" not in what} == set()
    with page.expect_response(f"**/studies/{second}*") as shown:
        page.keyboard.press("j")
    is_at(page, second)
    assert "x-background" not in shown.value.request.headers
    assert "page" in views_of(site, second)


def views_of(site: Site, study_id: UUID) -> list[str]:
    return [seen.details["what"] for seen in site.world.audited(Action.STUDY_VIEWED) if seen.subject_id == study_id]


def test_keyboard_stays_where_the_reader_is_from_study_to_study(site: Site, page: Page) -> None:
    first, second, third = (site.study(number) for number in (7, 8, 9))
    in_order(page, first, second, third)
    page.locator("#film").focus()
    page.keyboard.press("j")
    is_at(page, second)
    assert page.evaluate("document.activeElement.id") == "film"
    page.locator("[data-say=D]").focus()
    page.keyboard.press("j")
    is_at(page, third)
    assert page.evaluate("document.activeElement.id") == "main"
    assert page.get_by_role("main", name="DEMO9 Drawn").is_visible()


def test_quality_counts_when_its_button_is_pressed(site: Site, page: Page) -> None:
    site.study(10)
    page.goto("/quality")
    with page.expect_request("**/quality?*") as asked:
        page.get_by_label("Period").select_option(index=1)
        page.get_by_label("Period").select_option(index=2)
        page.get_by_role("button", name="Count").click()
    assert page.get_by_label("Period").input_value() in asked.value.url
