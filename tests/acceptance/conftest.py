"""Pages in a browser: one site for each module, one reader's page for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser import reader_at, unexpected
from tests.site import Site, running_site

if TYPE_CHECKING:
    from playwright.sync_api import Page


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Site]:
    with running_site(tmp_path_factory.mktemp("site"), migrated_sqlite) as site:
        yield site


@pytest.fixture
def page(site: Site) -> Iterator[Page]:
    """One reader's page; one that breaks its policy, throws or misses a file fails its test."""
    with reader_at(site.browser, site.url) as (page, complaints):
        page.add_init_script("localStorage.reader ??= 'Dr R. Reader'")
        yield page
    assert unexpected(complaints) == []
