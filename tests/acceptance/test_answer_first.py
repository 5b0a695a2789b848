"""Readers who answer before they see the model's answer, in a real browser: by the site's rule, or by their own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser import is_shown, reader_at, until
from tests.site import Site, assert_fits, faults, open_study, running_site

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.acceptance


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Site]:
    with running_site(tmp_path_factory.mktemp("site"), migrated_sqlite, answer_first=True) as site:
        yield site


def test_answer_first_shows_the_models_answer_after_the_readers(site: Site, page: Page) -> None:
    study_id, other = site.study(1, priority=1), site.study(2, priority=1)
    page.goto("/")
    assert "uspected" not in page.locator("#list").inner_text()
    assert "Analysed" in page.locator("#list").inner_text()
    assert faults(page) == []
    page.evaluate(f"sessionStorage.order = JSON.stringify(['{study_id}', '{other}'])")
    open_study(page, study_id)
    assert page.locator(".verdict.hidden").is_visible()
    assert "suspected" not in page.locator(".rail").inner_text()
    assert faults(page) == []
    assert_fits(page)
    page.keyboard.press("a")
    page.keyboard.press("h")
    page.locator(".toast", has_text="There is no heat map for this image.").wait_for()
    assert site.reviews_of(study_id) == []
    page.keyboard.press("p")
    page.locator(".verdict.positive").wait_for()
    assert str(study_id) in page.url, "the model's answer is shown before the next study"
    (review,) = site.reviews_of(study_id)
    assert (review.verdict, review.corrected_finding, review.is_blind) == ("agree", None, True)
    assert "Agree, before the model's answer" in page.locator(".told").inner_text()
    page.keyboard.press("j")
    page.wait_for_url(f"**/studies/{other}*")
    page.locator(".verdict.hidden").wait_for()


def test_undo_hides_the_answer_again_and_the_next_word_is_not_called_blind(site: Site, page: Page) -> None:
    study_id = site.study(3)
    open_study(page, study_id)
    page.keyboard.press("n")
    page.locator(".verdict.positive").wait_for()
    page.keyboard.press("z")
    page.locator(".verdict.hidden").wait_for()
    knows_all_reviews(page)
    is_shown(page)
    page.keyboard.press("p")
    page.locator(".verdict.positive").wait_for()
    assert [(r.verdict, r.is_blind) for r in site.reviews_of(study_id)] == [
        ("disagree", True),
        ("withdraw", False),
        ("agree", False),
    ]


def knows_all_reviews(page: Page) -> None:
    """Wait until the page stands as the node would send it: an answer to an older state is refused."""
    found = re.search(r'data-tag="([^"]*)"', page.request.get(page.url).text())
    assert found
    until(page, f"document.querySelector('main').dataset.tag === '{found[1]}'")


def test_second_reader_learns_who_was_first_and_not_what_was_said(site: Site, page: Page) -> None:
    study_id = site.study(4)
    open_study(page, study_id)
    with reader_at(site.browser, site.url) as (other, _):
        other.add_init_script("localStorage.reader = 'Dr S. Second'")
        open_study(other, study_id)
        other.keyboard.press("n")
        other.locator(".verdict.positive").wait_for()
    page.keyboard.press("p")
    page.locator("#conflict").wait_for(state="visible")
    with page.expect_response(lambda answer: answer.request.method == "POST" and answer.ok):
        page.get_by_role("button", name="Save mine as a second reading").click()
    page.locator(".verdict.positive").wait_for()
    assert [(r.reviewer, r.verdict) for r in site.reviews_of(study_id)] == [
        ("Dr S. Second", "disagree"),
        ("Dr R. Reader", "agree"),
    ]


def test_reader_who_hides_the_answer_says_what_is_seen(site: Site, page: Page) -> None:
    study_id = site.study(5)
    open_study(page, study_id)
    page.keyboard.press("u")
    page.locator(".verdict.positive").wait_for()
    page.keyboard.press("b")
    until(page, "document.documentElement.classList.contains('blind')")
    keys = page.locator("[data-say]:visible").evaluate_all("(all) => all.map((b) => b.dataset.say)")
    assert keys == ["P", "N", "U"], "no key names the model's answer"
    page.evaluate("localStorage.blind = 'off'")
