"""The hospital's login against a real OpenID Connect provider on loopback."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import oidc_provider_mock
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from db.audit import Action
from db.engine import read_scope
from db.facts import accounts
from pacs_node.settings import NodeSettings, Settings
from pacs_node.settings.web import GroupSettings, OidcSettings, WebSettings
from tests.web_world import World, make_world

USERS: Mapping[str, dict[str, object]] = {
    "s-1": {"preferred_username": "Anna Reader", "groups": ["radiology", "ward_a"]},
    "s-2": {"preferred_username": "ada", "groups": ["pacs-admins", "radiology"]},
    "s-3": {"preferred_username": "eve", "groups": ["kitchen"]},
}


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    """A provider with three people."""
    with oidc_provider_mock.run_server_in_thread() as server:
        url = f"http://localhost:{server.server_port}"
        for subject, claims in USERS.items():
            httpx.put(f"{url}/users/{subject}", json=claims).raise_for_status()
        yield url


@pytest.fixture
def node(issuer: str, sqlite_engine: Engine, tmp_path: Path, models_folder: Path) -> World:
    """A node that lets people of the hospital in."""
    root = tmp_path / "var"
    secrets = root / "secrets"
    secrets.mkdir(parents=True)
    (secrets / "oidc.secret").write_text("client secret\n", encoding="utf-8")
    oidc = OidcSettings(issuer=issuer, client_id="node", radiologists=("radiology",), admins=("pacs-admins",))
    groups = (GroupSettings(name="ward_a", senders=("CR_ROOM_1",)),)
    web = WebSettings(oidc=oidc, groups=groups)
    settings = Settings(node=NodeSettings(data_dir=root, secrets_dir=secrets), web=web)
    return make_world(sqlite_engine, root, models_folder, settings=settings)


def go_there(client: TestClient) -> str:
    """Begin; return the address of the hospital's page."""
    answer = client.get("/login/hospital?next=/studies/x", follow_redirects=False)
    assert answer.status_code == 303, answer.text
    return str(answer.headers["location"])


def say_who(address: str, subject: str) -> str:
    """Fill in the hospital's form; return the path and query that the browser is sent back to."""
    answer = httpx.post(address, data={"sub": subject}, follow_redirects=False)
    assert answer.status_code in (302, 303), answer.text
    back = urlsplit(answer.headers["location"])
    assert back.path == "/login/hospital/back"
    return f"{back.path}?{back.query}"


def test_people_of_the_hospital_come_in_with_their_roles_and_groups(node: World) -> None:
    client = node.client_at("192.0.2.9")
    assert "hospital account" in client.get("/login").text
    there = go_there(client)
    asked = parse_qs(urlsplit(there).query)
    assert asked["code_challenge_method"] == ["S256"]
    assert asked["nonce"]
    answer = client.get(say_who(there, "s-1"), follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/studies/x")
    assert client.get("/api/v1/me").json() == {"name": "anna-reader", "roles": ["radiologist"], "groups": ["ward_a"]}
    assert client.get("/api/v1/jobs").status_code == 403
    (event,) = node.audited(Action.LOGGED_IN)
    assert (event.actor, event.details["how"]) == ("user:anna-reader", "hospital")


def test_roles_follow_the_hospital_at_the_next_login(node: World, issuer: str) -> None:
    for groups, roles in ((["pacs-admins", "radiology"], ["admin", "radiologist"]), (["radiology"], ["radiologist"])):
        httpx.put(f"{issuer}/users/s-2", json={"preferred_username": "ada", "groups": groups}).raise_for_status()
        client = node.client_at("192.0.2.9")
        client.get(say_who(go_there(client), "s-2"), follow_redirects=False)
        assert client.get("/api/v1/me").json()["roles"] == roles
    with read_scope(node.engine) as session:
        assert [account.name for account in accounts.list_accounts(session)] == ["ada"]


def test_who_is_in_no_group_is_not_let_in(node: World) -> None:
    client = node.client_at("192.0.2.9")
    answer = client.get(say_who(go_there(client), "s-3"), follow_redirects=False)
    assert answer.status_code == 401
    assert "no group that may log in" in answer.text
    assert client.get("/api/v1/me").status_code == 401
    assert len(node.audited(Action.LOGIN_FAILED)) == 1


def test_an_answer_counts_once_and_in_the_browser_that_asked(node: World) -> None:
    client, thief = node.client_at("192.0.2.9"), node.client_at("192.0.2.66")
    back = say_who(go_there(client), "s-1")
    assert thief.get(back).status_code == 401, "the thief's browser did not begin this login"
    go_there(thief)
    assert thief.get(back).status_code == 401, "nor with a login of its own"
    assert client.get(re.sub("state=[^&]*", "state=x", back)).status_code == 401
    again = node.client_at("192.0.2.9")
    there = go_there(again)
    back = say_who(there, "s-1")
    assert again.get(back, follow_redirects=False).status_code == 303
    again.cookies.clear()
    assert again.get(back).status_code == 401, "a code that was used is worth nothing"


def test_another_logins_token_is_refused(node: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token for another nonce, or another client, is genuine and still not the one that was asked for."""
    client = node.client_at("192.0.2.9")
    there = go_there(client)
    other_nonce = re.sub("nonce=[^&]*", "nonce=other", there)
    assert client.get(say_who(other_nonce, "s-1"), follow_redirects=False).status_code == 401
    assert client.get("/api/v1/me").status_code == 401


def test_a_silent_provider_is_said_and_local_accounts_go_on(
    sqlite_engine: Engine, tmp_path: Path, models_folder: Path
) -> None:
    (tmp_path / "oidc.secret").write_text("x", encoding="utf-8")
    oidc = OidcSettings(issuer="http://127.0.0.1:9", client_id="node", admins=("a",))
    settings = Settings(node=NodeSettings(data_dir=tmp_path / "var", secrets_dir=tmp_path), web=WebSettings(oidc=oidc))
    world = make_world(sqlite_engine, tmp_path / "var", models_folder, settings=settings)
    answer = world.client().get("/login/hospital", follow_redirects=False)
    assert answer.status_code == 401
    assert "does not answer" in answer.text
    assert 'name="password"' in answer.text
