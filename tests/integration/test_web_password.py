"""What reaches far wants a person's password anew: a desk that was left does not switch the model that answers."""

from __future__ import annotations

import logging
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, update

from db.audit import Action
from db.engine import db_now, session_scope
from db.tables import AccountRow, Role, WebSession, rows_of
from pacs_node.settings.web import WebSettings
from pacs_node.web.access import PasswordWanted, declarations
from tests.web_world import PROBLEM, World, make_world

PASSWORD = "a quiet harbour at dawn"
ADDRESS = "/api/v1/session/password"
LISTS = ("studies", "instances", "results", "warnings", "reports", "deliveries", "reviews", "audit")
FAR = {
    "POST /api/v1/models/{name}/{version}/activate",
    "POST /api/v1/models/rollback",
    "POST /api/v1/jobs/{job_id}/close",
    "POST /api/v1/exports/training",
    "GET /api/v1/exports/training/file",
    *(f"GET /api/v1/exports/{name}" for name in LISTS),
    "POST /api/v1/accounts",
    "PATCH /api/v1/accounts/{account_id}",
    "POST /api/v1/accounts/{account_id}/link",
    "POST /api/v1/tokens",
}


@pytest.fixture
def node(engine: Engine, tmp_path: Path, models_folder: Path) -> World:
    """A node that asks for a login, on each kind of database."""
    return make_world(engine, tmp_path / "var", models_folder, WebSettings())


def is_refused(client: TestClient) -> bool:
    """Try to take a list out; tell whether the password is wanted first."""
    answer = client.get("/api/v1/exports/studies")
    if answer.status_code == 200:
        return False
    assert (answer.status_code, answer.headers["content-type"]) == (403, PROBLEM)
    return bool(answer.json()["type"] == PasswordWanted.problem_type)


def show(client: TestClient, password: str = PASSWORD) -> int:
    return client.post(ADDRESS, json={"password": password}).status_code


def test_what_reaches_far_is_declared(node: World) -> None:
    declared = declarations(node.app)
    assert {name for name, all_of in declared.items() if any(one.wants_password for one in all_of)} == FAR


def test_nothing_that_reaches_far_is_done_before_the_password_is_shown(node: World) -> None:
    job_id = node.break_delivery(node.suspected(1))
    ada = node.logged_in("ada", Role.ADMIN, password=PASSWORD)
    closing = f"/api/v1/jobs/{job_id}/close"
    tries = [
        ("POST", "/api/v1/models/drawn/0.0.1/activate", None),
        ("POST", "/api/v1/models/rollback", {}),
        ("POST", "/api/v1/models/drawn/0.0.9/recall", {"dry_run": False}),
        ("POST", closing, {"reason": "not_wanted"}),
        ("POST", "/api/v1/exports/training", {}),
        ("GET", "/api/v1/exports/training/file", None),
        ("GET", "/api/v1/exports/studies?with_patient=true", None),
        ("POST", "/api/v1/accounts", {"name": "eve", "roles": ["admin"]}),
        ("POST", "/api/v1/tokens", {"name": "eve", "roles": ["admin"]}),
        ("POST", f"/api/v1/accounts/{uuid4()}/link", None),
        ("PATCH", f"/api/v1/accounts/{uuid4()}", {"roles": ["admin"]}),
    ]
    for method, address, body in tries:
        answer = ada.request(method, address, json=body)
        assert (answer.status_code, answer.json()["type"]) == (403, PasswordWanted.problem_type), address
    assert {event.actor for event in node.audited(Action.ACCESS_REFUSED)} == {"user:ada"}
    assert ada.get("/api/v1/jobs").status_code == 200, "looking wants none"
    assert ada.post("/api/v1/models/drawn/0.0.9/recall", json={}).status_code == 404, "nor does counting"
    assert ada.get(ADDRESS).json() == {"is_wanted": True}
    assert ada.post(ADDRESS, json={"password": PASSWORD}).json() == ada.get(ADDRESS).json() == {"is_wanted": False}
    assert ada.post(closing, json={"reason": "not_wanted"}).status_code == 200
    assert not is_refused(ada)
    (event,) = node.audited(Action.PASSWORD_SHOWN)
    assert (event.actor, event.details) == ("user:ada", {"from": "192.0.2.7"})


def test_it_holds_for_some_minutes_in_this_session_alone(node: World) -> None:
    ada = node.logged_in("ada", Role.ADMIN, password=PASSWORD)
    assert show(ada) == 200
    again = node.client_at("192.0.2.7")
    again.post("/login", data={"user": "ada", "password": PASSWORD}, follow_redirects=False)
    assert is_refused(again), "a login is no showing anew, and another desk is another desk"
    for minutes, is_over in ((4, False), (5, True)):
        with session_scope(node.engine) as session:
            values = {"confirmed_at": db_now(session) - timedelta(minutes=minutes)}
            session.execute(update(rows_of(WebSession)).values(**values))
        assert is_refused(ada) == is_over


def test_wrong_tries_count_to_the_rest_of_the_account(node: World, caplog: pytest.LogCaptureFixture) -> None:
    ada = node.logged_in("ada", Role.ADMIN, password=PASSWORD)
    caplog.set_level(logging.DEBUG)
    door = {"user": "ada", "password": "wrong at the door"}
    assert node.client_at("192.0.2.9").post("/login", data=door).status_code == 401
    answers = [ada.post(ADDRESS, json={"password": "wrong at the desk"}) for _ in range(4)]
    assert {answer.status_code for answer in answers} == {403}
    assert "is not your password" in answers[0].json()["detail"]
    resting = ada.post(ADDRESS, json={"password": PASSWORD})
    assert (resting.status_code, "rests until" in resting.json()["detail"]) == (403, True)
    assert is_refused(ada)
    right = {"user": "ada", "password": PASSWORD}
    assert "rests until" in node.client_at("192.0.2.9").post("/login", data=right).text
    told = [(event.actor, event.details["why"]) for event in node.audited(Action.LOGIN_FAILED)]
    assert told == [("anyone", "password"), *[("user:ada", "password")] * 4, ("user:ada", "rests"), ("anyone", "rests")]
    said = caplog.text + "".join(answer.text for answer in answers) + str(node.audited(Action.LOGIN_FAILED))
    assert "wrong at" not in said
    with session_scope(node.engine) as session:
        session.execute(update(rows_of(AccountRow)).values(rests_until=db_now(session) - timedelta(seconds=1)))
    assert [show(ada, "wrong once"), show(ada), show(ada, "wrong again")] == [403, 200, 403]
    with session_scope(node.engine) as session:
        assert session.execute(rows_of(AccountRow).select()).one().failed_logins == 1, "a right one forgets"


def test_tries_of_one_address_are_limited_and_malformed_ones_are_not_quoted(
    sqlite_engine: Engine, tmp_path: Path, models_folder: Path
) -> None:
    web = WebSettings(logins_per_minute=2, login_tries=50)
    ada = make_world(sqlite_engine, tmp_path, models_folder, web).logged_in("ada", Role.ADMIN, password=PASSWORD)
    malformed = ada.post(ADDRESS, json={"password": "mistyped " * 200})
    assert (malformed.status_code, "mistyped" in malformed.text) == (422, False)
    assert [show(ada, "x") for _ in range(3)] == [403, 403, 429]


def test_a_page_of_another_site_shows_no_password(node: World) -> None:
    ada = node.logged_in("ada", Role.ADMIN, password=PASSWORD)
    del ada.headers["X-CSRF-Token"]
    assert show(ada) == 403
    assert ada.get(ADDRESS).json() == {"is_wanted": True}


def test_who_has_no_password_here_is_not_asked(node: World, small_world: World) -> None:
    program, of_hospital = node.with_token("ops", Role.ADMIN), node.logged_in("ada", Role.ADMIN)
    for client in (program, of_hospital, small_world.client_at("127.0.0.1")):
        assert client.get(ADDRESS).json() == {"is_wanted": False}
        assert not is_refused(client)
        assert show(client) == 409
    assert node.client_at("192.0.2.9").get(ADDRESS).status_code == 401
