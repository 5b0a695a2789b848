"""From the first start to the first answer, as a person does it: the printed link, a password, a study comes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pacs_node.phantom import make_radiograph
from tests.acceptance.node import Node
from tests.acceptance.peers import storescu
from tests.browser import is_shown, reader_at, running_browser, unexpected, until
from tests.builders import save

pytestmark = pytest.mark.acceptance

PASSWORD = "a short sentence is a good one"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with Node(tmp_path / "node", web={"authentication": "required"}) as node:
        yield node


def test_first_administrator_logs_in_and_reads_what_a_modality_sends(node: Node, tmp_path: Path) -> None:
    link = re.search(r"/setup\?link=[\w-]+", node.said())
    assert link is not None, "the start prints a one-time link"
    with running_browser() as browser, reader_at(browser, node.url) as (page, complaints):
        page.goto("/")
        assert page.url.startswith(f"{node.url}/login")
        page.goto(link[0])
        page.get_by_label("User name").fill("ada")
        page.get_by_label("Password", exact=True).fill(PASSWORD)
        page.get_by_label("The same again").fill(PASSWORD)
        page.get_by_role("button", name="Keep the password and log in").click()
        until(page, "document.querySelector('#live')?.textContent.startsWith('Live, ')")

        sent = save(make_radiograph(seed=71), tmp_path / "sent.dcm")
        assert storescu(node, [sent]).returncode == 0
        page.locator("tr.study").wait_for()  # it comes by itself
        node.wait_quiet()
        page.locator("tr.study a.open").click()
        is_shown(page)
        page.keyboard.press("a")
        page.get_by_text("ada").first.wait_for()
        until(page, "document.body.innerText.includes('Undo')")
        assert [tuple(row) for row in node.rows("SELECT verdict, reviewer FROM reviews")] == [("agree", "ada")]

        page.goto("/")
        page.get_by_role("button", name="Log out").click()
        page.goto("/")
        assert page.url.startswith(f"{node.url}/login")
        page.goto(link[0])
        assert "not valid" in page.locator("h1").inner_text(), "a set-up link works once"
    assert unexpected(complaints) == []
