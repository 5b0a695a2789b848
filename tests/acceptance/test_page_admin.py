"""What administrators do on the pages, in a real browser: failed deliveries sent again, lists and training data."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from db import audit
from db.audit import Action
from db.engine import db_now, session_scope
from db.tables import DeliveryState
from models.registry import Registry
from pacs_node.wiring import BUNDLED_MODELS
from tests.browser import until
from tests.site import Site, assert_fits, faults, open_study

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

pytestmark = pytest.mark.acceptance


def test_failed_delivery_is_sent_again_from_the_worklist(site: Site, page: Page) -> None:
    study_id = site.study(1)
    site.world.break_delivery(study_id)
    page.goto("/?view=undelivered")
    row = page.locator(f"tr[data-id='{study_id}']")
    assert "Not delivered" in row.inner_text()
    assert "did not accept the report" in row.inner_text()
    row.locator("input").check()
    page.get_by_role("button", name="Send the reports again").click()
    page.locator(".toast", has_text="1 study: its report is on its way again.").wait_for()
    until(page, "document.querySelector('tr.study').textContent.includes('no longer in this list')")
    assert site.world.delivery_of(study_id) is DeliveryState.WAITING


def test_failed_deliveries_of_the_answer_are_sent_again_and_each_refusal_is_said(site: Site, page: Page) -> None:
    study_id, asked = site.study(21), []
    standing = [("a", "failed", 1, None), ("b", "failed", 2, None), ("c", "failed", 2, None), ("d", "sent", 2, None)]
    keys = ("delivery_id", "state", "revision", "review_id")
    items = [dict(zip(keys, one, strict=True)) for one in [*standing, ("e", "sent", 3, "a reader's")]]

    def refuse(route: Route) -> None:
        asked.append(route.request.url.split("/")[-2])
        route.fulfill(status=404, json={"detail": f"Not {asked[-1]}."})

    page.route("**/api/v1/deliveries?**", lambda route: route.fulfill(json={"items": items}))
    page.route("**/resend", refuse)
    page.goto("/?view=all")
    page.locator(f"tr[data-id='{study_id}'] input").check()
    page.get_by_role("button", name="Send the reports again").click()
    toast = page.locator(".toast", has_text="0 of 1").inner_text()
    assert (sorted(asked), "Not b." in toast, "Not c." in toast) == (["b", "c"], True, True)
    assert page.locator("#batch").is_visible(), "what was not done stays chosen"


def test_failed_delivery_is_tried_again_from_the_admin_page(site: Site, page: Page) -> None:
    study_id = site.study(2)
    job_id = site.world.break_delivery(study_id)
    page.goto("/admin")
    page.locator(f"[data-retry='{job_id}']").click()
    page.locator("#jobs", has_text="ready again").wait_for()
    assert site.world.delivery_of(study_id) is DeliveryState.WAITING
    assert Action.JOB_RETRIED in site.world.actions()


def test_failed_job_is_closed_with_a_reason(site: Site, page: Page) -> None:
    study_id = site.study(9)
    job_id = site.world.break_delivery(study_id)
    page.goto("/admin")
    page.locator(f"[data-close='{job_id}']").click()
    page.get_by_label("Reason").select_option("done_elsewhere")
    page.get_by_role("button", name="Close it").click()
    page.locator(".toast", has_text="The job is closed.").wait_for()
    assert site.world.delivery_of(study_id) is DeliveryState.FAILED
    assert Action.JOB_CLOSED in site.world.actions()
    page.reload()
    assert page.locator(f"[data-close='{job_id}']").count() == 0


def test_lists_are_downloaded_from_the_pages(site: Site, page: Page) -> None:
    site.study(3)
    page.goto("/?view=all&sender=CR_ROOM_1")
    page.get_by_role("button", name="More filters").click()
    with page.expect_download() as got:
        page.get_by_role("link", name="Export as CSV").click()
    lines = Path(got.value.path()).read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("study_id,state")
    assert "DEMO3" not in "".join(lines)
    page.goto("/admin")
    for name in ("Studies", "Results", "Reviews", "Deliveries"):
        with page.expect_download() as got:
            page.locator("#exports").get_by_role("link", name=name).click()
        assert got.value.suggested_filename.startswith(name.lower())


def test_training_export_is_made_and_downloaded(site: Site, page: Page) -> None:
    study_id = site.study(4)
    page.goto("/admin")
    assert page.locator("[data-training]").is_disabled(), "nothing is reviewed yet"
    open_study(page, study_id)
    page.keyboard.press("a")
    page.locator(".toast").first.wait_for()
    page.goto("/admin")
    page.locator("[data-training]").click()
    page.locator("#ask").wait_for(state="visible")
    assert "De-identified by PS3.15" in page.locator("#ask").inner_text()
    assert faults(page) == []
    page.locator("#ask [name=unstated]").check()
    page.locator("#ask-yes").click()
    page.locator("#training[data-state=ready]").wait_for()
    assert "images of" in page.locator("#training").inner_text()
    assert_fits(page)
    with page.expect_download() as got:
        page.locator("#training-file").click()
    with zipfile.ZipFile(got.value.path()) as archive:
        assert any(name.endswith("/manifest.csv") for name in archive.namelist())
    assert len(site.world.audited(Action.REVIEWS_EXPORTED)) == 2


def test_another_model_answers_by_the_page_and_what_it_said_is_taken_back(site: Site, page: Page) -> None:
    card = Registry([BUNDLED_MODELS]).newest()
    said = site.world.receive(5)
    site.world.judge(said.instance_id, 0.94, model_name=card.name, model_version=card.version)
    site.world.report(said.study_id)
    page.goto("/admin")
    page.locator(f"[data-activate='{card.name}/{card.version}']").click()
    assert "You are recorded" in page.locator("#ask").inner_text()
    assert faults(page) == []
    page.locator("#ask-yes").click()
    page.locator("#models tr", has_text=card.version).filter(has_text="active: answers").wait_for()
    assert f"Model {card.name} {card.version}" in page.locator("footer").inner_text()
    page.locator("[data-rollback='drawn/0.0.1']").click()
    page.locator("#ask-yes").click()
    page.locator(f"[data-recall='{card.name}/{card.version}']").click()
    page.locator("#ask-text", has_text="1 report would be recalled, 1 of them judged anew and replaced").wait_for()
    assert not site.world.audited(Action.MODEL_RECALLED)
    page.locator("#ask-yes").click()
    page.locator(".toast", has_text="1 report recalled").wait_for()
    assert len(site.world.audited(Action.MODEL_RECALLED)) == 1


def test_audit_trail_is_searched_page_by_page(site: Site, page: Page) -> None:
    with session_scope(site.world.engine) as session:
        now = db_now(session)
        for _ in range(45):
            audit.append(session, Action.LOGGED_OUT, actor="user:zed", now=now)
    page.goto("/admin")
    page.locator("#audit-search [name=actor]").fill("user:zed")
    page.keyboard.press("Enter")
    page.locator("#found", has_text="40 events, the newest first.").wait_for()
    page.locator("[data-older]").click()
    page.locator("#found", has_text="45 events, the newest first. There are no older ones.").wait_for()
    assert page.locator("[data-older]").is_hidden()
    with page.expect_download() as got:
        page.locator("#audit-export").click()
    assert len(Path(got.value.path()).read_text(encoding="utf-8").splitlines()) == 1 + 45
    page.locator("#audit-search [name=until]").fill("2020-01-01")
    page.locator("#audit-search button").click()
    page.locator("#found", has_text="No event is like this.").wait_for()
    page.locator("#audit-search [name=subject_id]").fill("DEMO1")
    page.locator("#audit-search button").click()
    assert not page.evaluate("document.querySelector('#audit-search').checkValidity()"), (
        "no patient gets into an address"
    )
    assert page.url.endswith("/admin")
    assert faults(page) == []
    assert_fits(page)
