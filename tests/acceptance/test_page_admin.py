"""What administrators do on the pages, in a real browser: failed deliveries sent again, lists and training data."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import update

from db import audit
from db.audit import Action
from db.engine import db_now, session_scope
from db.tables import DeliveryState, Role, WebSession, rows_of
from models.registry import Registry
from pacs_node.settings.web import GroupSettings
from pacs_node.wiring import BUNDLED_MODELS
from tests.browser import reader_at, unexpected, until
from tests.site import Site, assert_fits, faults, open_study, served_site

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

pytestmark = pytest.mark.acceptance

PASSWORD = "a quiet harbour at dawn"


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
    page.get_by_role("button", name="Check the chain now").click()
    page.locator("#chain", has_text="The chain is unbroken").wait_for()


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
    page.locator("#ask-text", has_text="You are recorded").wait_for()
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


@pytest.fixture(scope="module")
def guarded(site: Site, tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Site]:
    """A node with logins and two groups."""
    groups = [GroupSettings(name=name, senders=(title,)) for name, title in (("ward_a", "CR_1"), ("ward_b", "CR_2"))]
    with served_site(site.browser, tmp_path_factory.mktemp("guarded"), migrated_sqlite, web={"groups": groups}) as site:
        yield site


def test_password_is_asked_before_what_reaches_far(guarded: Site) -> None:
    site = guarded
    with reader_at(site.browser, site.url) as (page, complaints):
        site.world.add_account("ada", Role.ADMIN, password=PASSWORD)
        jobs = [site.world.break_delivery(site.study(number)) for number in (1, 2)]
        page.goto("/login?next=/admin")
        page.get_by_label("User name").fill("ada")
        page.get_by_label("Password", exact=True).fill(PASSWORD)
        page.get_by_role("button", name="Log in").click()
        page.wait_for_url("**/admin")
        password = page.get_by_label("Your password")

        page.locator(f"[data-close='{jobs[0]}']").click()
        page.get_by_label("Reason").select_option("done_elsewhere")
        page.get_by_role("button", name="Close it").click()
        assert page.locator("#ask").is_visible(), "an empty field is no try"
        password.fill("something else")
        password.press("Enter")
        page.locator("#ask-fault", has_text="is not your password").wait_for()
        assert faults(page) == []
        password.fill(PASSWORD)
        password.press("Enter")
        page.locator(".toast", has_text="The job is closed.").wait_for()
        assert site.world.audited(Action.JOB_CLOSED)[-1].details["reason"] == "done_elsewhere"

        with page.expect_download():
            page.locator("#exports").get_by_role("link", name="Studies").click()
        page.locator(f"[data-close='{jobs[1]}']").click()
        page.get_by_label("Reason").select_option("not_wanted")
        assert password.is_hidden(), "it was shown just now"
        with session_scope(site.world.engine) as session:
            session.execute(update(rows_of(WebSession)).values(confirmed_at=None))
        page.get_by_role("button", name="Close it").click()
        password.fill(PASSWORD)
        page.get_by_role("button", name="Close it").click()
        page.locator("#jobs td", has_text="closed").nth(1).wait_for()
        assert site.world.audited(Action.JOB_CLOSED)[-1].details["reason"] == "not_wanted"

        with session_scope(site.world.engine) as session:
            session.execute(update(rows_of(WebSession)).values(confirmed_at=None))
        page.goto("/?view=all&sender=CR_ROOM_1")
        page.get_by_role("button", name="More filters").click()
        page.get_by_role("link", name="Export as CSV").click()
        password.fill(PASSWORD)
        with page.expect_download():
            page.get_by_role("button", name="Export", exact=True).click()
        assert len(site.world.audited(Action.PASSWORD_SHOWN)) == 3
        assert len(site.world.audited(Action.LIST_EXPORTED)) == 2
    refused = "status of 403"
    assert [said for said in unexpected(complaints) if refused not in said] == []


def test_roles_and_groups_are_changed_on_the_admin_page(guarded: Site) -> None:
    bea, _ = guarded.world.logged_in("bea", Role.ADMIN), guarded.world.add_account("carl", Role.RADIOLOGIST)
    cookie = bea.cookies["pacs_node_session"]
    with reader_at(guarded.browser, guarded.url, cookie=cookie) as (page, complaints):
        page.goto("/admin")
        assert "sections [[web.groups]]" in page.locator("#people").inner_text()
        row = page.locator("#people tr", has_text="carl")
        row.get_by_role("button", name="Change what carl may do").click()
        ticked = page.locator("#ask input:checked")
        ticked.wait_for()
        assert ticked.evaluate_all("boxes => boxes.map((box) => box.value)") == ["radiologist"]
        assert faults(page) == []
        page.get_by_label("radiologist").uncheck()
        page.locator("#ask-yes").click()
        assert page.locator("#ask").is_visible(), "one role at least"
        page.get_by_label("service").check()
        page.get_by_label("ward_b").check()
        with page.expect_navigation():
            page.locator("#ask-yes").click()
        assert "service" in row.inner_text()
        assert "ward_b" in row.inner_text()
        assert_fits(page)
    assert guarded.world.audited(Action.ACCOUNT_CHANGED)[-1].actor == "user:bea"
    assert unexpected(complaints) == []
