"""What callers must not be able to do: crash the server, write for others, leave names in logs."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from sqlalchemy import Engine, select

from db.audit import Action
from db.engine import read_scope
from db.tables import ApiToken, Role, WebSession, rows_of
from pacs_node.settings.web import WebSettings
from pacs_node.web.identify import csrf_of
from tests.web_world import BASE_URL, FORM, PROBLEM, World, make_world

ZERO = "00000000-0000-0000-0000-000000000000"
MISUSES = [
    ("/api/v1/studies?limit=0", 422),
    ("/api/v1/studies?limit=100000", 422),
    ("/api/v1/studies?limit=x", 422),
    ("/api/v1/studies?cursor=", 422),
    ("/api/v1/studies?cursor=%00", 422),
    ("/api/v1/studies?cursor=MjAyNg==", 422),
    ("/api/v1/studies?cursor=MDAwMS0wMS0wMVQwMDowMDowMCsyMzo1OV8w", 422),
    ("/api/v1/studies?since=0001-01-01T00:00:00%2B23:59", 422),
    ("/api/v1/studies?since=2026-01-01T00:00:00", 422),
    ("/api/v1/studies?state=lost", 422),
    ("/api/v1/studies?calling_ae_title=%00", 422),
    ("/api/v1/studies?warning=%27%3B--", 422),
    ("/api/v1/studies/1.2.840.10008", 422),
    (f"/api/v1/studies/{ZERO}", 404),
    (f"/api/v1/studies/{ZERO}/thumbnail", 404),
    (f"/api/v1/studies/{ZERO}/report?revision=99999999999999999999", 422),
    (f"/api/v1/instances/{ZERO}/image", 404),
    (f"/api/v1/instances/{ZERO}/image?size=1000000", 422),
    (f"/api/v1/instances/{ZERO}/image?center=nan&width=1", 422),
    (f"/api/v1/instances/{ZERO}/image?center=1", 422),
    (f"/api/v1/instances/{ZERO}/image?center=1&width=0", 422),
    ("/api/v1/instances/..%2f..%2fetc%2fpasswd/image", 404),
    ("/api/v1/jobs?offset=-1", 422),
    ("/api/v1/jobs?offset=9999999999999999999999", 422),
    ("/api/v1/nothing", 404),
    ("/static/..%2fapp.py", 404),
    ("/static/%2e%2e/%2e%2e/app.py", 404),
    ("/reference/../../../etc/passwd", 404),
    ("/?view=everything", 422),
    ("/?cursor=%ff", 422),
    ("/studies/not-a-uuid", 422),
    (f"/studies/{ZERO}", 404),
]


@pytest.mark.parametrize(("address", "status"), MISUSES)
def test_misuse_is_a_problem_never_a_crash(small_world: World, address: str, status: int) -> None:
    answer = small_world.client().get(address)
    assert (answer.status_code, answer.headers["content-type"]) == (status, PROBLEM), answer.text
    assert answer.json()["instance"] == f"urn:uuid:{answer.headers['x-request-id']}"


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"null",
        b'{"patient_name": "\\u0000"}',
        b'{"patient_name": "\\ud800"}',
        b'{"patient_name": ""}',
        b'{"patient": "Doe"}',
        b'{"limit": 1e300, "patient_id": "x"}',
        b'{"patient_id": "' + b"x" * 65 + b'"}',
        b"[" * 5000,
    ],
)
def test_bad_search_is_a_problem_that_does_not_quote_it(world: World, body: bytes) -> None:
    answer = world.client().post("/api/v1/studies/search", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.headers["content-type"] == PROBLEM
    assert "Doe" not in answer.text
    assert "xxxx" not in answer.text


def test_search_takes_odd_but_honest_names(world: World) -> None:
    client = world.client()
    for name in ("%", "_", "O'Neil", "\\", "山田", "a" * 64):
        answer = client.post("/api/v1/studies/search", json={"patient_name": name})
        assert (answer.status_code, answer.json()["items"]) == (200, []), name


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "attacker.example"}, 421),
        ({"Host": "127.0.0.1.nip.io:8000"}, 421),
        ({"Host": ""}, 421),
        ({"Host": "[::1"}, 421),
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
    ],
)
def test_only_loopback_names_are_served(small_world: World, headers: dict[str, str], status: int) -> None:
    assert small_world.client().get("/health", headers=headers).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://attacker.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": BASE_URL}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": BASE_URL}, 200),
        ({}, 200),
    ],
)
def test_writes_of_other_sites_are_refused(small_world: World, headers: dict[str, str], status: int) -> None:
    study_id = small_world.suspected()
    answer = small_world.client().post(
        f"/studies/{study_id}/reviews", content="answer=agree&reviewer=R", headers=FORM | headers
    )
    assert answer.status_code == status
    assert (Action.REVIEW_ADDED in small_world.actions()) == (status == 200)


def test_oversized_bodies_are_refused_counted_or_declared(small_world: World) -> None:
    client = small_world.client()
    json_type = {"Content-Type": "application/json"}
    declared = client.post("/api/v1/reviews", content=b"x" * 70_000, headers=json_type)
    chunked = client.post("/api/v1/reviews", content=(b"x" * 10_000 for _ in range(8)), headers=json_type)
    assert (declared.status_code, chunked.status_code) == (413, 413)
    assert client.post("/", content="q=1", headers={"Content-Type": "text/plain"}).status_code == 415


def test_access_log_names_routes_not_addresses(small_world: World, caplog: pytest.LogCaptureFixture) -> None:
    study_id = small_world.suspected()
    client = small_world.client()
    with caplog.at_level(logging.INFO, logger="pacs_node.web.access_log"):
        client.get(f"/api/v1/studies/{study_id}?secret=1")
        client.get("/static/page.css")
        client.get("/elsewhere")
        client.get("/health", headers={"Host": "attacker.example"})
    seen = [(vars(record)["route"], vars(record)["status"]) for record in caplog.records]
    assert seen == [("/api/v1/studies/{study_id}", 200), ("/static", 200), ("unmatched", 404), ("unmatched", 421)]
    assert str(study_id) not in "".join(str(vars(record)) for record in caplog.records)


def test_a_bug_is_a_problem_with_a_number(small_world: World) -> None:
    @small_world.app.get("/broken")
    def broken() -> None:
        raise ZeroDivisionError("a secret")

    answer = small_world.client().get("/broken")
    assert (answer.status_code, answer.headers["content-type"]) == (500, PROBLEM)
    assert "secret" not in answer.text
    assert "content-security-policy" in answer.headers


def test_openapi_document_gives_examples_and_problems(small_world: World) -> None:
    document = small_world.client().get("/openapi.json").json()
    assert "/api/v1/studies/{study_id}" in document["paths"]
    assert "/" not in document["paths"], "pages are not part of the API"
    missing = document["paths"]["/api/v1/studies/{study_id}"]["get"]["responses"]["404"]["content"]
    assert list(missing) == [PROBLEM]
    assert document["components"]["schemas"]["StudyLine"]["properties"]["patient_id"]["examples"]


# Intruders, where people log in


@pytest.fixture
def guarded(sqlite_engine: Engine, tmp_path: Path, models_folder: Path) -> World:
    """A node that asks for a login."""
    return make_world(sqlite_engine, tmp_path / "var", models_folder, WebSettings())


@pytest.mark.parametrize(
    "cookie",
    ["", "x", "0" * 64, "' OR 1=1 --", "%00", "admin", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9.", "ä".encode().hex()],
)
def test_a_forged_cookie_opens_nothing(guarded: World, cookie: str) -> None:
    guarded.logged_in("ada", Role.ADMIN)
    thief = guarded.client_at("192.0.2.66", Cookie=f"pacs_node_session={cookie}")
    assert thief.get("/api/v1/accounts").status_code == 401


def test_what_the_database_keeps_opens_nothing(guarded: World) -> None:
    guarded.logged_in("ada", Role.ADMIN)
    guarded.with_token("his", Role.ADMIN)
    with read_scope(guarded.engine) as session:
        digests = [
            session.execute(select(table.c.token_sha256)).scalar_one()
            for table in (rows_of(WebSession), rows_of(ApiToken))
        ]
    for digest in digests:
        for headers in ({"Cookie": f"pacs_node_session={digest}"}, {"Authorization": f"Bearer {digest}"}):
            assert guarded.client_at("192.0.2.66", **headers).get("/api/v1/accounts").status_code == 401


@pytest.mark.parametrize(
    "value", ["Bearer", "Bearer ", "Bearer null", "Basic YWRtaW46YWRtaW4=", "bearer " + "x" * 5000, "Bearer a b"]
)
def test_a_forged_token_opens_nothing(guarded: World, value: str) -> None:
    client = guarded.client_at("192.0.2.66", Authorization=value)
    assert client.get("/api/v1/accounts").status_code == 401


def test_a_session_cannot_write_without_its_pages_token(guarded: World) -> None:
    admin = guarded.logged_in("ada", Role.ADMIN)
    token, wanted = admin.headers.pop("X-CSRF-Token"), {"name": "eve", "roles": ["admin"]}
    other = csrf_of("another session")
    for headers in ({}, {"X-CSRF-Token": ""}, {"X-CSRF-Token": other}, {"X-CSRF-Token": token[:-1]}):
        assert admin.post("/api/v1/accounts", json=wanted, headers=headers).status_code == 403
    assert admin.post("/logout", content="csrf_token=wrong", headers=FORM).status_code == 403
    assert admin.post("/logout", content=f"csrf_token={other}", headers=FORM).status_code == 403
    assert Action.LOGGED_OUT not in guarded.actions()
    assert Action.ACCESS_REFUSED in guarded.actions()
    assert admin.post("/api/v1/accounts", json=wanted, headers={"X-CSRF-Token": token}).status_code == 201
    answer = admin.post("/logout", content=f"csrf_token={token}", headers=FORM, follow_redirects=False)
    assert answer.status_code == 303, "a form carries the token as a field, and is handed on whole"


def test_another_sites_page_cannot_log_anybody_in(guarded: World) -> None:
    guarded.add_account("eve", Role.RADIOLOGIST, password="a quiet harbour at dawn")
    fields = {"user": "eve", "password": "a quiet harbour at dawn"}
    foreign = {"Origin": "https://attacker.example"}
    answer = guarded.client_at("192.0.2.9").post("/login", data=fields, headers=foreign, follow_redirects=False)
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


def test_a_cookie_that_was_planted_is_worth_nothing_after_the_login(guarded: World) -> None:
    guarded.add_account("anna", Role.RADIOLOGIST, password="a quiet harbour at dawn")
    victim = guarded.client_at("192.0.2.9")
    victim.cookies.set("pacs_node_session", "planted", domain="127.0.0.1", path="/")
    fields = {"user": "anna", "password": "a quiet harbour at dawn"}
    answer = victim.post("/login", data=fields, follow_redirects=False)
    assert answer.status_code == 303
    assert "pacs_node_session=planted" not in answer.headers["set-cookie"]
    thief = guarded.client_at("192.0.2.66", Cookie="pacs_node_session=planted")
    assert thief.get("/api/v1/me").status_code == 401


@pytest.mark.parametrize(
    "wanted",
    [
        "https://attacker.example/",
        "//attacker.example",
        "/\\attacker.example",
        "\\\\attacker.example",
        "javascript:alert(1)",
        "/\n/attacker.example",
        "http:attacker.example",
        "attacker.example",
        "",
        "//[",
    ],
)
def test_the_door_leads_nowhere_else(guarded: World, wanted: str) -> None:
    guarded.add_account("anna", Role.RADIOLOGIST, password="a quiet harbour at dawn")
    fields = {"user": "anna", "password": "a quiet harbour at dawn", "next": wanted}
    answer = guarded.client_at("192.0.2.9").post("/login", data=fields, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")


@pytest.mark.parametrize(
    "address",
    [
        "//api/v1/accounts",
        "/api/v1/accounts/",
        "/api/v1//accounts",
        "/API/v1/accounts",
        "/static/..%2fapi/v1/accounts",
        "/static/../api/v1/accounts",
        "/openapi.json/../api/v1/accounts",
        "/static%2f../api/v1/accounts",
        "/api/v1/accounts%00",
        "/api/v1/accounts;x=/static/",
    ],
)
def test_no_other_spelling_of_an_address_gets_past_the_gate(guarded: World, address: str) -> None:
    guarded.add_account("grace", Role.ADMIN)
    answer = guarded.client_at("192.0.2.66").get(address)
    assert answer.status_code in (401, 404)
    assert "grace" not in answer.text


def test_a_stranger_cannot_send_large_bodies_anywhere(guarded: World) -> None:
    stranger = guarded.client_at("192.0.2.66")
    assert stranger.post("/predict", content=b"x" * 70_000).status_code == 413
    assert stranger.post("/login", content=b"user=" + b"x" * 70_000, headers=FORM).status_code == 413


def test_foreign_pages_call_by_token_where_the_settings_name_them(
    sqlite_engine: Engine, tmp_path: Path, models_folder: Path
) -> None:
    web = WebSettings(cors_origins=("https://viewer.example.org",))
    world = make_world(sqlite_engine, tmp_path / "var", models_folder, web)
    program, named = world.with_token("viewer", Role.SERVICE), {"Origin": "https://viewer.example.org"}
    body = {"patient_id": "SYN-1"}
    answer = program.post("/api/v1/studies/search", json=body, headers=named | {"Sec-Fetch-Site": "cross-site"})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://viewer.example.org")
    assert "access-control-allow-credentials" not in answer.headers
    foreign = {"Origin": "https://attacker.example"}
    assert program.post("/api/v1/studies/search", json=body, headers=foreign).status_code == 403
    reader = world.logged_in("anna", Role.RADIOLOGIST)
    assert reader.post("/api/v1/studies/search", json=body, headers=named).status_code == 403, "a cookie does not count"
