"""A stranger, and a colleague who wants more than is theirs, try the API; what they tried stays here."""

from __future__ import annotations

import base64
import time
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any
from uuid import UUID, uuid4

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, select, update

from db.audit import Action
from db.engine import db_now, read_scope, session_scope
from db.facts import credentials
from db.tables import ApiToken, Role, rows_of
from pacs_node.passwords import new_secret
from pacs_node.settings.web import GroupSettings, WebSettings
from tests.web_world import FORM, World, make_world

PASSWORD = "a quiet harbour at dawn"
WARDS = (GroupSettings(name="ward_a", senders=("CR_ROOM_1",)), GroupSettings(name="ward_b", senders=("CR_ROOM_2",)))
LISTS = ("studies", "instances", "results", "warnings", "reports", "deliveries", "reviews")


@pytest.fixture
def node(sqlite_engine: Engine, tmp_path: Path, models_folder: Path) -> World:
    """A node with two groups that asks for a login."""
    return make_world(sqlite_engine, tmp_path / "var", models_folder, WebSettings(groups=WARDS))


# Roles: who may read wants to change, who may change wants to rule


@pytest.mark.parametrize("role", [Role.RADIOLOGIST, Role.SERVICE])
def test_nobody_but_an_administrator_changes_the_node(node: World, role: Role) -> None:
    study_id = node.suspected(1)
    admin = node.logged_in("ada", Role.ADMIN)
    instance = admin.get("/api/v1/instances").json()["items"][0]["instance_id"]
    delivery = admin.get("/api/v1/deliveries").json()["items"][0]["delivery_id"]
    account = admin.get("/api/v1/accounts").json()[0]["account_id"]
    callers = [node.with_token("his", role, groups=["ward_a"])]
    if role is Role.RADIOLOGIST:
        callers.append(node.logged_in("anna", role, groups=["ward_a"]))
    wanted: list[tuple[str, str, Any]] = [
        ("POST", f"/api/v1/instances/{instance}/rerun", None),
        ("POST", f"/api/v1/deliveries/{delivery}/resend", None),
        ("POST", f"/api/v1/jobs/{uuid4()}/retry", None),
        ("POST", f"/api/v1/jobs/{uuid4()}/close", {"reason": "not_wanted"}),
        ("POST", "/api/v1/accounts", {"name": "eve", "roles": ["admin"]}),
        ("PATCH", f"/api/v1/accounts/{account}", {"roles": ["service"]}),
        ("POST", f"/api/v1/accounts/{account}/link", None),
        ("POST", "/api/v1/tokens", {"name": "eve", "roles": ["admin"]}),
        ("DELETE", f"/api/v1/tokens/{uuid4()}", None),
        *(("GET", f"/api/v1/exports/{name}", None) for name in (*LISTS, "audit")),
        *(("GET", f"/api/v1/{name}", None) for name in ("audit", "jobs", "quarantine", "accounts", "tokens")),
        ("GET", "/admin", None),
    ]
    for caller in callers:
        for method, address, body in wanted:
            for headers in ({}, {"X-HTTP-Method-Override": "GET"}, {"X-Original-URL": "/health"}, {"X-User": "ada"}):
                answer = caller.request(method, address, json=body, headers=headers)
                assert answer.status_code == 403, (method, address, answer.text)
    assert not {Action.INSTANCE_RERUN, Action.DELIVERY_RESENT, Action.LIST_EXPORTED} & set(node.actions())
    if role is Role.SERVICE:
        review = {"study_id": str(study_id), "verdict": "agree"}
        assert callers[0].post("/api/v1/reviews", json=review).status_code == 403


@pytest.mark.parametrize(
    "more", [{"is_locked": False}, {"password_hash": "x"}, {"account_id": str(uuid4())}, {"is": 1}]
)
def test_no_body_sets_what_it_does_not_name(node: World, more: dict[str, Any]) -> None:
    admin = node.logged_in("ada", Role.ADMIN)
    answer = admin.post("/api/v1/accounts", json={"name": "eve", "roles": ["radiologist"]} | more)
    assert answer.status_code == 422


def test_a_token_that_expired_or_was_revoked_opens_nothing(node: World) -> None:
    secret = new_secret()
    with session_scope(node.engine) as session:
        now = db_now(session)
        made = credentials.create_token(
            session, secret, "his", roles=[Role.ADMIN], expires_at=now + timedelta(hours=1), actor="test", now=now
        )
    program = node.client_at("192.0.2.8", Authorization=f"Bearer {secret}")
    assert program.get("/api/v1/me").status_code == 200
    with session_scope(node.engine) as session:
        past = db_now(session) - timedelta(seconds=1)
        session.execute(update(rows_of(ApiToken)).values(expires_at=past))
    assert program.get("/api/v1/me").status_code == 401
    with session_scope(node.engine) as session:
        session.execute(update(rows_of(ApiToken)).values(expires_at=None))
        credentials.revoke_token(session, made.token_id, actor="test", now=db_now(session))
    assert program.get("/api/v1/me").status_code == 401
    assert program.get("/health").status_code == 200


def test_a_cookie_beside_a_bad_token_does_not_help(node: World) -> None:
    """One identity for each request: what a page of another site could add to it is not tried as well."""
    reader = node.logged_in("anna", Role.RADIOLOGIST, groups=["ward_a"])
    assert reader.get("/api/v1/me").status_code == 200
    assert reader.get("/api/v1/me", headers={"Authorization": "Bearer none"}).status_code == 401


# Groups: through what a list takes


def tampered(cursor: str) -> list[str]:
    """Return what an intruder makes of a cursor."""
    inner = base64.urlsafe_b64decode(cursor).decode()
    keys, _, row_id = inner.rpartition("_")
    made = [
        f"{keys}_{uuid4()}",
        f"9999-12-31T23:59:59+00:00_{row_id}",
        f"0001-01-01T00:00:00+00:00_{row_id}",
        f"{keys}~{keys}_{row_id}",
        f"n1_{row_id}",
        f"nnan_{row_id}",
        f"n1e999_{row_id}",
        f"{keys}' OR 1=1 --_{row_id}",
        f"{keys}_{row_id}' OR '1'='1",
        f"{'9' * 90}_{row_id}",
        "_",
        "",
    ]
    return [base64.urlsafe_b64encode(one.encode()).decode() for one in made] + [
        cursor[:-3],
        cursor + "=",
        "%00",
        "A" * 300,
    ]


@pytest.mark.parametrize("name", LISTS)
def test_no_cursor_shows_another_groups_rows(node: World, name: str) -> None:
    own = [node.suspected(number, calling_ae_title="CR_ROOM_1") for number in (1, 2, 3)]
    other = [node.suspected(number, calling_ae_title="CR_ROOM_2") for number in (4, 5, 6)]
    admin = node.logged_in("ada", Role.ADMIN, Role.RADIOLOGIST)
    for study_id in (*own, *other):
        admin.post("/api/v1/reviews", json={"study_id": str(study_id), "verdict": "unsure"})
    reader = node.logged_in("anna", Role.RADIOLOGIST, groups=["ward_a"])
    cursors = [caller.get(f"/api/v1/{name}?limit=1").json()["next_cursor"] for caller in (admin, reader)]
    for cursor in [*cursors, *tampered(cursors[0])]:
        answer = reader.get(f"/api/v1/{name}", params={"cursor": cursor, "limit": 200})
        assert answer.status_code in (200, 422), (cursor, answer.text)
        assert not [study_id for study_id in other if str(study_id) in answer.text], cursor


def test_a_review_tells_nothing_of_another_groups_study(node: World) -> None:
    own, other = node.suspected(1, calling_ae_title="CR_ROOM_1"), node.suspected(2, calling_ae_title="CR_ROOM_2")
    reader = node.logged_in("anna", Role.RADIOLOGIST, groups=["ward_a"])
    admin = node.logged_in("ada", Role.ADMIN)
    image = next(one for one in admin.get("/api/v1/instances").json()["items"] if one["study_id"] == str(other))
    assert say(reader, other).status_code == 404
    box = {"left": 0, "top": 0, "right": 9, "bottom": 9}
    answers = [say(reader, own, region=box | {"instance_id": str(one)}) for one in (image["instance_id"], uuid4())]
    assert [answer.status_code for answer in answers] == [422, 422]
    assert answers[0].json()["errors"] == answers[1].json()["errors"], "an image that is there looks as one that is not"
    assert Action.REVIEW_ADDED not in node.actions()


def say(client: TestClient, study_id: UUID, **more: Any) -> Any:
    return client.post(
        "/api/v1/reviews", json={"study_id": str(study_id), "verdict": "agree"} | more, headers={"If-Match": "*"}
    )


# Headers and forms that are none


@pytest.mark.parametrize(
    "headers",
    [
        {"Last-Event-ID": "x\tSet-Cookie: a=b"},
        {"Last-Event-ID": "2026-11-20T12:00:00+00:00_" + "9" * 150},
        {"Last-Event-ID": "y" * 5000},
        {"If-Match": '"' + "x" * 5000},
        {"If-None-Match": "*," * 2000},
        {"X-Request-ID": "mine"},
        {"Accept": "text/html;q=\x00"},
        {"Cookie": "; ;=;pacs_node_session=;" + "a=b;" * 2000},
        {"Content-Length": "-1"},
        {"Content-Length": "1e9"},
        {"Range": "bytes=0-,0-,0-,0-" * 50},
        {"Forwarded": "for=127.0.0.1"},
        {"X-Forwarded-For": "127.0.0.1"},
    ],
)
def test_no_header_breaks_or_opens_anything(node: World, headers: dict[str, str]) -> None:
    stranger = node.client_at("192.0.2.66", **headers)
    for address in ("/api/v1/studies", "/api/v1/events", "/metrics", "/api/v1/accounts"):
        answer = stranger.get(address, follow_redirects=False)
        assert answer.status_code in (400, 401) or answer.headers["location"].startswith("/login?"), address
        assert "set-cookie" not in answer.headers
        assert answer.headers["x-request-id"] != "mine"


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=", b"x"),
        ("multipart/form-data; boundary=b", b""),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\nx"),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--"),
        ("multipart/form-data; boundary=b", b"--b\r\n" + b"A: b\r\n" * 4000),
        ("multipart/form-data; boundary=" + "b" * 3000, b"x"),
        (
            "multipart/form-data; boundary=b",
            b"".join(
                b'--b\r\nContent-Disposition: form-data; name="n%d"\r\n\r\nx\r\n' % number for number in range(200)
            )
            + b"--b--",
        ),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="../../x\\0"\r\n\r\nnothing\r\n--b--',
        ),
        ("application/json", b'{"file": "x"}'),
        ("text/plain\x0b", b"x"),
        ("", b""),
    ],
)
@pytest.mark.parametrize("address", ["/predict", "/predict/batch"])
def test_no_upload_that_is_none_breaks_the_node(node: World, address: str, content_type: str, body: bytes) -> None:
    program = node.with_token("his", Role.SERVICE)
    answer = program.post(address, content=body, headers={"Content-Type": content_type})
    told = answer.json()
    if answer.status_code == 200:  # a batch tells of each file by itself
        assert [one["status"] for one in told["results"]] == ["error"]
    else:
        assert answer.status_code in (400, 413, 415, 422), answer.text
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    "address",
    [
        "/login?next=%0d%0aSet-Cookie:%20a=b",
        "/login?next=//attacker.example/%0d%0aX:%20y",
        "/setup?link=%0d%0aX:%20y",
        "/login?why=%3Cscript%3Ealert(1)%3C/script%3E",
        "/?view=all&sender=%3Cscript%3E",
    ],
)
def test_no_address_writes_a_header_or_a_script(node: World, address: str) -> None:
    answer = node.client_at("192.0.2.66").get(address, headers={"Accept": "text/html"}, follow_redirects=False)
    assert answer.status_code in (200, 303, 404, 422)
    assert "x" not in answer.headers
    assert "set-cookie" not in answer.headers
    assert "\n" not in answer.headers.get("location", "")
    assert "<script>alert" not in answer.text


# The door


def test_an_unknown_name_takes_as_long_as_a_wrong_password(
    sqlite_engine: Engine, tmp_path: Path, models_folder: Path
) -> None:
    web = WebSettings(logins_per_minute=1000, login_tries=100)
    node = make_world(sqlite_engine, tmp_path / "var", models_folder, web)
    node.add_account("anna", Role.RADIOLOGIST, password=PASSWORD)
    node.add_account("new", Role.RADIOLOGIST)
    client, took = node.client_at("192.0.2.9"), {}
    for _ in range(8):
        for name in ("anna", "nobody", "new"):
            started = time.perf_counter()
            assert client.post("/login", data={"user": name, "password": "x" * 20}).status_code == 401
            took.setdefault(name, []).append(time.perf_counter() - started)
    typical = {name: median(times) for name, times in took.items()}
    assert max(typical.values()) < 2 * min(typical.values()), typical


def test_a_login_leaves_no_secret_behind(node: World, caplog: pytest.LogCaptureFixture) -> None:
    node.add_account("anna", Role.RADIOLOGIST, password=PASSWORD)
    client = node.client_at("192.0.2.9")
    with caplog.at_level("DEBUG"):
        body = f"user=anna&password={PASSWORD.replace(' ', '+')}"
        answer = client.post("/login", content=body, headers=FORM, follow_redirects=False)
    cookie = client.cookies["pacs_node_session"]
    assert answer.status_code == 303
    with read_scope(node.engine) as session:
        kept = str([session.execute(select(table)).all() for table in tables_of_logins()])
    told = "".join(str(vars(record)) for record in caplog.records) + kept + answer.text + answer.headers["location"]
    assert PASSWORD not in told
    assert cookie not in told


def tables_of_logins() -> list[Any]:
    from db.tables import AccountRow, AuditEvent, WebSession

    return [rows_of(AccountRow), rows_of(WebSession), rows_of(AuditEvent)]
