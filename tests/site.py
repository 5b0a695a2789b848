"""A node's pages under their address, for the tests that drive them in a browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from db import facts
from db.engine import make_engine, read_scope
from pacs_node.settings import NodeSettings, ReviewSettings, Settings
from pacs_node.settings.web import WebSettings
from tests.browser import is_shown, running_browser, until
from tests.builders import as_bytes, make_bundle, make_radiograph
from tests.web_world import World, free_port, make_world, serving

if TYPE_CHECKING:
    from playwright.sync_api import Page

SERIOUS = ("serious", "critical")
NO_LOGIN = {"authentication": "off"}


@dataclass(frozen=True, kw_only=True)
class Site:
    """A node's pages under their address, and the data behind them."""

    world: World
    url: str
    browser: Any

    def study(self, number: int, **changes: Any) -> UUID:
        """Add a suspicious study with a picture of its own."""
        drawn = as_bytes(make_radiograph(seed=number, rows=512, columns=420))
        return self.world.suspected(number, **{"data": drawn} | changes)

    def turn(self, study_id: UUID) -> None:
        """Have a newer model say the opposite of a suspicious study, in a new report."""
        with read_scope(self.world.engine) as session:
            image = facts.study_detail(session, study_id).images[0]
        self.world.judge(image.instance_id, 0.05, model_version="1.0.1")
        self.world.report(study_id)

    def reviews_of(self, study_id: UUID) -> list[facts.ReviewFacts]:
        with read_scope(self.world.engine) as session:
            return list(facts.study_detail(session, study_id).reviews)


@contextmanager
def running_site(root: Path, database: Path, **reviews: Any) -> Iterator[Site]:
    """Serve a node whose database is a copy of `database`, with a browser; nobody logs in."""
    with running_browser() as browser, served_site(browser, root, database, **reviews) as site:
        yield site


@contextmanager
def served_site(
    browser: Any, root: Path, database: Path, *, web: Mapping[str, Any] = NO_LOGIN, **reviews: Any
) -> Iterator[Site]:
    """Serve a node to a browser that runs already: there is one at a time."""
    shutil.copyfile(database, root / "node.sqlite")
    make_bundle(root / "models", name="drawn", version="0.0.1")
    settings = Settings(
        node=NodeSettings(data_dir=root),
        web=WebSettings(port=free_port(), **web),
        reviews=ReviewSettings(**reviews),
    )
    engine = make_engine(settings.database_url)
    world = make_world(engine, root, root / "models", settings=settings)
    with serving(settings) as url:
        yield Site(world=world, url=url, browser=browser)
    engine.dispose()


def open_study(page: Page, study_id: UUID) -> None:
    page.goto(f"/studies/{study_id}", wait_until="domcontentloaded")
    is_shown(page)


def in_order(page: Page, *studies: UUID) -> None:
    """Open the first of these studies, with the others behind it in the list."""
    page.goto("/?view=all")
    page.evaluate(f"sessionStorage.order = JSON.stringify({[str(study) for study in studies]})")
    open_study(page, studies[0])


def is_at(page: Page, study_id: UUID) -> None:
    """Wait until this study is on the screen."""
    until(page, f"document.querySelector('main').dataset.study === '{study_id}'")


def faults(page: Page) -> list[str]:
    """Return the serious faults that axe finds, as rule and place."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{v['id']}: {v['nodes'][0]['html'][:120]}" for v in found if v["impact"] in SERIOUS]


def assert_fits(page: Page) -> None:
    """Fail where the page is wider than its window."""
    width = page.evaluate("innerWidth")
    assert page.evaluate("document.documentElement.scrollWidth") <= width, (page.url, width)
