"""Debian's Chromium without a window, driven by Playwright; nothing is downloaded."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
"""The tests may run as root; only our own pages are opened."""
PATIENCE_MS = 90_000
"""For machines that do much else beside."""
SEEN_MS = 700
"""The reading page refuses an answer to a radiograph that was not on the screen for 600 ms."""
EXPECTED = (
    "status of 412",
    "status of 404",
    "status of 503",
    "ERR_FAILED",
    "ERR_INTERNET_DISCONNECTED",
    "ERR_INCOMPLETE_CHUNKED_ENCODING",
    "ERR_ABORTED",
)
"""A conflict, a heat map that is not drawn and a busy node are answers; a stream ends with its server."""


@contextmanager
def running_browser() -> Iterator[Any]:
    """Start a browser of its own; skip where there is none, unless CI is set."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        assert not os.environ.get("CI"), "CI needs Chromium"
        pytest.skip("needs Chromium (apt install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def reader_at(
    browser: Any, url: str, *, width: int = 1440, height: int = 900, cookie: str = "", touch: bool = False
) -> Iterator[tuple[Page, list[str]]]:
    """Give a page of a browser of one person, and what its console complained about until now."""
    viewport = {"width": width, "height": height}
    context: BrowserContext = browser.new_context(base_url=url, viewport=viewport, has_touch=touch)
    context.set_default_timeout(PATIENCE_MS)
    if cookie:
        context.add_cookies([{"name": "pacs_node_session", "value": cookie, "url": url}])
    page, complaints = context.new_page(), []
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("warning", "error") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    try:
        yield page, complaints
    finally:
        context.close()


def unexpected(complaints: list[str]) -> list[str]:
    """Return the complaints that no test asks for."""
    return [said for said in complaints if not any(words in said for words in EXPECTED)]


def until(page: Page, condition: str) -> None:
    """Wait until a JavaScript expression is true; asked from outside, for the pages' policy forbids evaluating."""
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, f"never true: {condition}"
        page.wait_for_timeout(50)


def is_shown(page: Page) -> None:
    """Wait until the radiograph hangs and may be answered."""
    until(page, "document.querySelector('#film + p [data-values]')?.textContent.startsWith('centre')")
    page.wait_for_timeout(SEEN_MS)


def folder_of_pictures() -> Path:
    """Return where the README's pictures are."""
    return Path(__file__).parents[1] / "docs"
