"""The pages in a real browser: drawn as designed, alive, usable by keys, within their own security policy."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from db.engine import make_engine
from pacs_node.errors import ConfigError
from pacs_node.settings import NodeSettings, Settings, WebSettings
from pacs_node.web.app import run_web
from tests.browser import Browser, running_browser
from tests.builders import as_bytes, make_bundle, make_radiograph
from tests.web_world import World, free_port, make_world, serving

pytestmark = pytest.mark.acceptance

GROUND, PANEL = (12, 14, 16), (20, 23, 26)
"""The dark theme's tokens in `page.css`."""


class Site:
    """A node's pages under their address, and the data behind them."""

    def __init__(self, world: World, url: str) -> None:
        self.world, self.url = world, url
        self.study_id = world.suspected(1, data=as_bytes(make_radiograph(seed=1, rows=512, columns=420)))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("site")
    shutil.copyfile(migrated_sqlite, root / "node.sqlite")
    make_bundle(root / "models", name="drawn", version="0.0.1")
    settings = Settings(node=NodeSettings(data_dir=root), web=WebSettings(port=free_port()))
    engine = make_engine(settings.database_url)
    world = make_world(engine, root, root / "models")
    with serving(settings) as url:
        yield Site(world, url)
    engine.dispose()


@pytest.fixture(scope="module")
def shared_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with running_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(shared_browser: Browser) -> Iterator[Browser]:
    """The browser; a page that breaks its policy, throws or misses a file fails its test."""
    shared_browser.complaints.clear()
    yield shared_browser
    assert shared_browser.complaints == []


def open_study(browser: Browser, site: Site) -> None:
    browser.open(f"{site.url}/studies/{site.study_id}")
    browser.wait_for("document.querySelector('[data-values]').textContent.startsWith('centre 128')")


def test_worklist_is_dark_and_shows_its_pictures(site: Site, browser: Browser) -> None:
    browser.open(site.url)
    browser.wait_for("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
    seen = browser.screenshot()
    assert tuple(seen[20, 800]) == PANEL
    assert tuple(seen[890, 5]) in (GROUND, PANEL)
    assert browser.evaluate("document.querySelector('#live').textContent").startswith("Live, ")


def test_worklist_announces_new_studies_and_moves_no_row(site: Site, browser: Browser) -> None:
    browser.open(site.url)
    before = browser.evaluate("document.querySelectorAll('tr.study').length")
    site.world.suspected(2, priority=1)
    browser.wait_for("!document.querySelector('#fresh').hidden")
    assert "1 new study, 1 of them urgent," in browser.evaluate("document.querySelector('#fresh').textContent")
    assert browser.evaluate("document.querySelectorAll('tr.study').length") == before
    browser.press(".")
    browser.wait_for(f"document.querySelectorAll('tr.study').length === {before + 1}")


def test_study_shows_the_radiograph_and_windows_it(site: Site, browser: Browser) -> None:
    open_study(browser, site)
    film = browser.screenshot()[200:800, 400:900]
    assert film.std() > 20, "a radiograph, not a black box"
    browser.press("i")
    browser.wait_for("document.querySelector('[data-values]').textContent.includes('inverted')")
    inverted = browser.screenshot()[200:800, 400:900]
    assert np.abs(inverted.astype(int) - film).mean() > 20
    browser.press("0")
    browser.press("2")
    browser.wait_for("document.querySelector('[data-values]').textContent.startsWith('centre 96, width 150')")


def test_study_is_answered_by_one_key_with_a_name(site: Site, browser: Browser) -> None:
    open_study(browser, site)
    browser.evaluate("document.querySelector('[name=reviewer]').value = 'Dr R. Reader'")
    time.sleep(0.7)  # the page refuses an answer to a radiograph that was not on the screen
    browser.press("a")
    browser.wait_for("location.search.startsWith('?saved=')")
    browser.wait_for("document.querySelector('#saved')?.textContent.includes('Agree saved for DEMO1 Drawn')")
    browser.wait_for("document.querySelector('[name=reviewer]').value === 'Dr R. Reader'")


def test_keys_are_listed_and_can_be_switched_off(site: Site, browser: Browser) -> None:
    open_study(browser, site)
    browser.press("?")
    browser.wait_for("document.querySelector('#keys').open")
    assert browser.evaluate("document.querySelectorAll('#keys li').length") > 10
    browser.evaluate("document.querySelector('#keys-on').click(); document.querySelector('#keys').close()")
    browser.press("i")
    assert "inverted" not in browser.evaluate("document.querySelector('[data-values]').textContent")
    browser.evaluate("document.querySelector('#keys-on').click()")


@pytest.mark.parametrize("width", [1440, 1024, 768])
def test_pages_fit_their_window(site: Site, browser: Browser, width: int) -> None:
    for address in ("/", f"/studies/{site.study_id}"):
        browser.open(f"{site.url}{address}", width=width, height=1000)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width, address


@pytest.mark.parametrize("address", ["/docs", "/redoc"])
def test_reference_is_drawn_by_files_served_here(site: Site, browser: Browser, address: str) -> None:
    browser.open(f"{site.url}{address}")
    browser.wait_for("document.body.textContent.includes('/api/v1/studies')")
    # Redoc asks another machine for its maker's logo; our policy refuses.
    browser.complaints[:] = [said for said in browser.complaints if "logo-mini.svg" not in said]


def test_port_in_use_is_one_clear_line(site: Site, tmp_path: Path, migrated_sqlite: Path) -> None:
    shutil.copyfile(migrated_sqlite, tmp_path / "node.sqlite")
    port = int(site.url.rsplit(":", 1)[1])
    settings = Settings(node=NodeSettings(data_dir=tmp_path), web=WebSettings(port=port))
    with pytest.raises(ConfigError, match=rf"web: cannot listen on 127.0.0.1:{port} .*: change web.port"):
        run_web(settings, threading.Event())
