"""An answer in a real browser is never kept for a study, or for an answer of the model, that its reader did not see."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest

from tests.browser import SEEN_MS, is_shown, reader_at, unexpected
from tests.site import Site, in_order, is_at, open_study

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

pytestmark = pytest.mark.acceptance

SAVES = "**/api/v1/reviews"
COVERED = """[...document.querySelectorAll('.toast')].flatMap((toast) => {
  const t = toast.getBoundingClientRect(), rail = document.querySelector('.rail').getBoundingClientRect();
  const within = t.left >= rail.left && t.right <= rail.right && t.top >= rail.top;
  const over = [...document.querySelectorAll('.box, [data-say]')].filter((e) => {
    const r = e.getBoundingClientRect();
    return r.width && t.left < r.right && r.left < t.right && t.top < r.bottom && r.top < t.bottom;
  });
  return [...over.map((e) => e.id || e.dataset.say), ...(within ? [] : ['outside'])];
})"""
"""What the words at the foot lie on."""


def hold_answer(page: Page) -> Callable[[], None]:
    """Answer by a key; the node gets it when the returned function is called."""
    held: list[Route] = []
    page.route(SAVES, lambda route: held.append(route))
    with page.expect_request(SAVES):
        page.keyboard.press("a")

    def release() -> None:
        held[0].continue_()
        page.unroute(SAVES)

    return release


def test_answer_to_a_report_that_was_replaced_meanwhile_is_not_kept(site: Site, page: Page) -> None:
    study_id = site.study(1)
    open_study(page, study_id)
    release = hold_answer(page)
    site.turn(study_id)
    release()
    page.locator(".toast", has_text="Not saved for DEMO1 Drawn, A-1: the model's answer is new.").wait_for()
    assert not page.locator("#conflict").is_visible(), "nobody was first: there is no second reading to save"
    assert "not suspected" in page.locator(".verdict.clear").inner_text()
    assert "no pneumonia" in page.locator("[data-say=A]").inner_text().lower()
    assert site.reviews_of(study_id) == []
    page.wait_for_timeout(SEEN_MS)
    page.keyboard.press("a")
    page.locator(".toast", has_text="Agree: no pneumonia, saved").wait_for()


@pytest.mark.parametrize("held", [".told", "[data-say=D]"])
def test_new_report_is_shown_whatever_the_reader_holds(site: Site, page: Page, held: str) -> None:
    study_id = site.study(2 if held == ".told" else 3)
    open_study(page, study_id)
    page.locator(held).focus()
    site.turn(study_id)
    page.locator("[data-say=A]", has_text="no pneumonia").wait_for()
    assert "not suspected" in page.locator(".verdict.clear").inner_text()
    assert page.evaluate("document.activeElement.className") == "told", "the keyboard is at what is new"


def test_late_reply_touches_nothing_of_the_study_on_the_screen_now(site: Site, page: Page) -> None:
    first, second, third = (site.study(number) for number in (4, 5, 6))
    in_order(page, first, second, third)
    release = hold_answer(page)
    page.keyboard.press("j")
    is_at(page, second)
    is_shown(page)
    page.keyboard.press("m")
    page.locator("#film").press("Enter")
    page.keyboard.press("a")
    page.locator(".toast", has_text="Not saved: your answer for DEMO4 Drawn, A-4 is still on its way.").wait_for()
    release()
    page.locator(".toast", has_text="Agree: pneumonia, saved for DEMO4 Drawn, A-4.").wait_for()
    with page.expect_response("**/health"):  # whatever follows from the reply has followed
        page.evaluate("fetch('/health')")
    is_at(page, second)
    assert page.locator(".marks .mine").count() == 1
    assert site.reviews_of(second) == []


def test_late_conflict_opens_on_no_other_study(site: Site, page: Page) -> None:
    first, second = site.study(7), site.study(8)
    in_order(page, first, second)
    answer_as_another(site, first)
    release = hold_answer(page)
    page.keyboard.press("j")
    is_at(page, second)
    release()
    page.locator(".toast", has_text="Not saved for DEMO7 Drawn, A-7: Dr S. Second answered").wait_for()
    assert not page.locator("#conflict").is_visible()


def answer_as_another(site: Site, study_id: UUID) -> None:
    with reader_at(site.browser, site.url) as (other, complaints):
        other.add_init_script("localStorage.reader = 'Dr S. Second'")
        open_study(other, study_id)
        other.keyboard.press("d")
        other.locator(".toast").wait_for()
    assert unexpected(complaints) == []


def test_reader_who_is_logged_in_takes_back_under_no_other_name(site: Site, page: Page) -> None:
    open_study(page, site.study(11))
    page.evaluate(
        "document.querySelector('[name=reviewer]').remove()"
    )  # as for who is logged in; a trial's name is kept
    sent: list[Any] = []

    def answer(route: Route) -> None:
        sent.append(route.request.post_data_json)
        route.fulfill(status=201, json={"review_id": str(uuid4())}, headers={"ETag": '"0.0"'})

    page.route(SAVES, answer)
    page.keyboard.press("a")
    page.locator(".toast", has_text="Agree: pneumonia, saved").wait_for()
    page.keyboard.press("z")
    page.locator(".toast", has_text="Your answer is taken back.").wait_for()
    assert [said["verdict"] for said in sent] == ["agree", "withdraw"]
    assert not any("reviewer" in said for said in sent)


@pytest.mark.parametrize(("width", "height"), [(1180, 820), (820, 1180)])
def test_words_at_the_foot_cover_neither_film_nor_answers(site: Site, width: int, height: int) -> None:
    study_id = site.study(12 if width > height else 13)
    with reader_at(site.browser, site.url, width=width, height=height, touch=True) as (page, complaints):
        page.add_init_script("localStorage.reader = 'Dr R. Reader'")
        open_study(page, study_id)
        film = page.locator("#film").bounding_box()
        page.keyboard.press("d")
        page.locator(".toast [data-undo]").wait_for()
        is_shown(page)
        page.keyboard.press("j")
        page.locator(".toast.plain").wait_for()
        assert page.evaluate(COVERED) == []
        assert page.locator(".toast").count() == 2
        assert page.locator("#film").bounding_box() == film, "nothing moves under the hand"
    assert unexpected(complaints) == []


def test_conflict_that_is_left_by_a_key_holds_no_news_back(site: Site, page: Page) -> None:
    first, second = site.study(9), site.study(10)
    in_order(page, first, second)
    answer_as_another(site, first)
    page.keyboard.press("a")
    page.locator("#conflict").wait_for(state="visible")
    page.keyboard.press("j")
    is_at(page, second)
    is_shown(page)
    site.turn(second)
    page.locator("[data-say=A]", has_text="no pneumonia").wait_for()
