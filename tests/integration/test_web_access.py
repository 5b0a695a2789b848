"""Who may do what: the door, the roles of every route, groups, tokens, limits, and what the trail tells of it."""

from __future__ import annotations

import asyncio
import re
import ssl
import threading
import time
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fastapi.testclient import TestClient
from sqlalchemy import Engine, select, update
from starlette.exceptions import HTTPException

from db import audit, queue
from db.audit import Action
from db.engine import db_now, read_scope, session_scope
from db.facts import accounts, credentials
from db.tables import AccountRow, ApiToken, Role, WebSession, rows_of
from pacs_node.invitations import first_link
from pacs_node.settings import DatabaseSettings, NodeSettings, Settings
from pacs_node.settings.web import WebSettings
from pacs_node.web.access import declarations, undeclared
from pacs_node.web.app import run_web
from pacs_node.web.identify import csrf_of
from pacs_node.web.security import BoundedBody
from tests.records import end_jobs
from tests.web_world import BASE_URL, FORM, PROBLEM, World, free_port, make_world

PASSWORD = "a quiet harbour at dawn"
PAGE = {"Accept": "text/html"}
MAY = {
    "GET /api/v1/studies": {Role.RADIOLOGIST, Role.ADMIN, Role.SERVICE},
    "GET /": {Role.RADIOLOGIST, Role.ADMIN},
    "GET /api/v1/jobs": {Role.ADMIN},
    "GET /api/v1/accounts": {Role.ADMIN},
    "GET /api/v1/tokens": {Role.ADMIN},
    "GET /api/v1/me": {Role.RADIOLOGIST, Role.ADMIN, Role.SERVICE},
    "GET /metrics": {Role.ADMIN, Role.SERVICE},
    "GET /model/info": {Role.RADIOLOGIST, Role.ADMIN, Role.SERVICE},
    "GET /health": {Role.PUBLIC, Role.RADIOLOGIST, Role.ADMIN, Role.SERVICE},
}


@pytest.fixture
def node(sqlite_engine: Engine, tmp_path: Path, models_folder: Path) -> World:
    """A node that asks for a login; nobody has an account yet."""
    return make_world(sqlite_engine, tmp_path / "var", models_folder, WebSettings())


def log_in(client: TestClient, user: str, password: str, **more: str) -> int:
    """Fill in the form as a browser does; return the status, redirects not followed."""
    fields = {"user": user, "password": password} | more
    return client.post("/login", data=fields, follow_redirects=False).status_code


# Roles


def test_every_route_declares_its_roles(node: World) -> None:
    assert undeclared(node.app) == []
    assert len(declarations(node.app)) > 20, "the walk finds the routes at all"


def test_a_route_that_declares_nothing_is_found(node: World) -> None:
    @node.app.get("/forgotten")
    def forgotten() -> None: ...

    assert undeclared(node.app) == ["GET /forgotten"]


@pytest.mark.parametrize("role", [Role.PUBLIC, Role.RADIOLOGIST, Role.ADMIN, Role.SERVICE])
def test_roles_open_what_is_theirs_and_nothing_else(node: World, role: Role) -> None:
    stranger = node.client_at("192.0.2.9")
    client = stranger if role is Role.PUBLIC else node.with_token("one", role)
    for address, roles in MAY.items():
        status = client.get(address.removeprefix("GET ")).status_code
        refused = 401 if role is Role.PUBLIC else 403
        assert (status != refused) == (role in roles), (address, status)


def test_every_route_of_the_api_is_closed_to_strangers(node: World) -> None:
    """Walk all routes as nobody, from elsewhere: none but those declared public answers with anything."""
    stranger = node.client_at("192.0.2.9")
    for name, declared in declarations(node.app).items():
        methods, _, path = name.rpartition(" ")
        address = re.sub(r"{[^}]*}", str(uuid4()), path)
        is_public = all(Role.PUBLIC in one.roles for one in declared)
        for method in methods.split():
            status = stranger.request(method, address, json={}).status_code
            assert is_public or status == 401, (method, address, status)


def test_machine_routes_are_open_on_this_machine_only(node: World) -> None:
    assert node.client_at("127.0.0.1").get("/ready").status_code in (200, 503)
    assert node.client_at("127.0.0.1").get("/metrics").status_code == 200
    assert node.client_at("192.0.2.9").get("/metrics").status_code == 401
    behind_a_proxy = node.client_at("127.0.0.1", **{"X-Forwarded-For": "192.0.2.9"})
    assert behind_a_proxy.get("/metrics").status_code == 401, "a proxy's caller is not on this machine"


def test_a_page_leads_to_the_door_and_back(node: World) -> None:
    client = node.client_at("192.0.2.9")
    answer = client.get("/?view=all", headers=PAGE, follow_redirects=False)
    assert answer.status_code == 303
    way = urlsplit(answer.headers["location"])
    assert (way.path, parse_qs(way.query)["next"]) == ("/login", ["/?view=all"])
    assert 'value="/?view=all"' in client.get(answer.headers["location"]).text


def test_without_authentication_everything_is_open_here(small_world: World) -> None:
    client = small_world.client_at("127.0.0.1")
    assert client.get("/api/v1/accounts").status_code == 200
    assert client.get("/login", follow_redirects=False).status_code == 303


# The door


def test_first_link_makes_the_administrator_once(node: World) -> None:
    with session_scope(node.engine) as session:
        link = first_link(session, node.settings.web)
    assert link is not None
    assert link.startswith(f"{BASE_URL}/setup?link=")
    secret = link.partition("link=")[2]
    client, fields = node.client_at("192.0.2.9"), {"link": secret, "user": "Ada", "again": PASSWORD}
    assert "Make the first administrator" in client.get(f"/setup?link={secret}").text
    assert "at least 12" in client.post("/setup", data=fields | {"password": "short", "again": "short"}).text
    assert "differ" in client.post("/setup", data=fields | {"password": "another one here"}).text
    done = client.post("/setup", data=fields | {"password": PASSWORD}, follow_redirects=False)
    assert (done.status_code, done.headers["location"]) == (303, "/")
    assert client.get("/api/v1/me").json() == {"name": "ada", "roles": ["admin", "radiologist"], "groups": []}
    again = node.client_at("192.0.2.9").post("/setup", data=fields | {"password": PASSWORD})
    assert again.status_code == 404
    with session_scope(node.engine) as session:
        assert first_link(session, node.settings.web) is None


def test_first_link_ends_when_an_administrator_was_made_otherwise(node: World) -> None:
    with session_scope(node.engine) as session:
        link = first_link(session, node.settings.web)
    assert link is not None
    node.add_account("ada", Role.ADMIN)
    secret = link.partition("link=")[2]
    fields = {"link": secret, "user": "eve", "password": PASSWORD, "again": PASSWORD}
    client = node.client_at("192.0.2.9")
    assert (client.get(f"/setup?link={secret}").status_code, client.post("/setup", data=fields).status_code) == (
        404,
        404,
    )


def test_locking_an_account_ends_its_open_links(node: World) -> None:
    account_id = node.add_account("anna", Role.RADIOLOGIST)
    with session_scope(node.engine) as session:
        now = db_now(session)
        credentials.add_link(session, "leaked", account_id, expires_at=now + timedelta(hours=1))
        accounts.change_account(session, account_id, is_locked=True, actor="ada", now=now)
    assert node.client().get("/setup?link=leaked").status_code == 404


def test_a_program_speaks_for_no_reader(node: World) -> None:
    study_id = node.suspected(1)
    forged = {"study_id": str(study_id), "verdict": "agree", "reviewer": "anna"}
    assert node.with_token("his", Role.SERVICE).post("/api/v1/reviews", json=forged).status_code == 403
    assert node.with_token("ops", Role.ADMIN).post("/api/v1/reviews", json=forged).status_code == 403
    said = node.with_token("script", Role.RADIOLOGIST).post("/api/v1/reviews", json=forged, headers={"If-Match": "*"})
    assert (said.status_code, said.json()["reviewer"]) == (201, "token:script")


def test_a_list_of_patients_is_audited_once_and_names_none_to_a_program(node: World) -> None:
    node.suspected(1)
    reader, program = node.logged_in("anna", Role.RADIOLOGIST), node.with_token("his", Role.SERVICE)
    for _ in range(2):
        assert "DEMO1 Drawn" in reader.get("/").text
        (named,) = reader.get("/api/v1/studies").json()["items"]
        (unnamed,) = program.get("/api/v1/studies").json()["items"]
    naming = ("patient_name", "patient_id", "accession_number")
    assert [named[name] for name in naming] == ["DEMO1^Drawn", "SYN-1", "A-1"]
    assert [unnamed[name] for name in naming] == [None, None, None]
    listed = [(event.actor, event.details["what"]) for event in node.audited(Action.STUDIES_LISTED)]
    assert listed == [("user:anna", "page"), ("user:anna", "api"), ("token:his", "api")]


def test_a_request_that_trickles_in_is_ended_in_time() -> None:
    async def trickle() -> int:
        async def receive() -> dict[str, object]:
            await asyncio.sleep(0.05)
            return {"type": "http.request", "body": b"x", "more_body": True}

        body = BoundedBody(receive, 0.3)
        with pytest.raises(HTTPException) as refused:
            await body.whole()
        return refused.value.status_code

    assert asyncio.run(trickle()) == 408


def test_a_form_in_chunks_that_is_too_long_is_refused_where_its_token_is_looked_for(node: World) -> None:
    client = node.logged_in("anna", Role.RADIOLOGIST)
    del client.headers["X-CSRF-Token"]
    answer = client.post("/", content=(b"q=" + b"x" * 10_000 for _ in range(8)), headers=FORM)
    assert (answer.status_code, answer.headers["content-type"]) == (413, PROBLEM), answer.text


def test_node_answers_by_the_name_that_people_know() -> None:
    web = WebSettings(host="0.0.0.0", allow_plain_http=True, public_url="https://node.example.org")
    assert "node.example.org" in web.own_names


def test_a_link_is_too_old_after_its_time(node: World) -> None:
    account_id = node.add_account("ada", Role.ADMIN)
    with session_scope(node.engine) as session:
        credentials.add_link(session, "old", account_id, expires_at=db_now(session) - timedelta(seconds=1))
    assert node.client().get("/setup?link=old").status_code == 404


def test_login_sets_a_cookie_that_script_cannot_read(node: World) -> None:
    node.add_account("anna", Role.RADIOLOGIST, password=PASSWORD)
    client = node.client_at("192.0.2.9")
    fields = {"user": " Anna", "password": PASSWORD, "next": "/studies/1"}
    answer = client.post("/login", data=fields, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/studies/1")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert "expires" not in cookie
    assert "max-age" not in cookie
    assert client.get("/api/v1/studies").status_code == 200
    (event,) = node.audited(Action.LOGGED_IN)
    assert (event.actor, event.details) == ("user:anna", {"how": "password", "from": "192.0.2.9"})


def test_over_tls_the_cookie_is_bound_to_the_host(node: World) -> None:
    node.add_account("anna", Role.RADIOLOGIST, password=PASSWORD)
    client = TestClient(node.app, base_url="https://127.0.0.1:8000", client=("192.0.2.9", 1))
    answer = client.post("/login", data={"user": "anna", "password": PASSWORD}, follow_redirects=False)
    assert answer.headers["set-cookie"].startswith("__Host-pacs_node_session=")
    assert "secure" in answer.headers["set-cookie"].lower()
    assert answer.headers["strict-transport-security"].startswith("max-age=31536000")
    assert client.get("/api/v1/me").status_code == 200
    assert "strict-transport-security" not in node.client().get("/health").headers


def test_wrong_password_and_unknown_name_look_alike(node: World) -> None:
    node.add_account("anna", Role.RADIOLOGIST, password=PASSWORD)
    node.add_account("new", Role.RADIOLOGIST)
    pages = []
    for user in ("anna", "nobody", "new"):
        answer = node.client_at("192.0.2.9").post("/login", data={"user": user, "password": "not this one"})
        assert answer.status_code == 401
        pages.append(answer.text)
    assert pages[0] == pages[1] == pages[2]
    assert "do not match" in pages[0]


@pytest.mark.parametrize("user", ["anna", "nobody"])
def test_after_some_wrong_tries_an_account_rests(node: World, user: str) -> None:
    node.add_account("anna", Role.RADIOLOGIST, password=PASSWORD)
    client = node.client_at("192.0.2.9")
    assert [log_in(client, user, "wrong wrong wrong") for _ in range(5)] == [401] * 5
    page = client.post("/login", data={"user": user, "password": PASSWORD})
    assert page.status_code == 401
    assert "This account rests until" in page.text, "unknown names rest as real ones do"
    if user == "anna":
        with session_scope(node.engine) as session:
            values = {"rests_until": db_now(session) - timedelta(seconds=1)}
            session.execute(update(rows_of(AccountRow)).values(**values))
        assert log_in(client, "anna", PASSWORD) == 303


def test_locking_an_account_ends_its_sessions(node: World) -> None:
    client = node.logged_in("anna", Role.RADIOLOGIST)
    admin = node.logged_in("ada", Role.ADMIN)
    assert client.get("/api/v1/me").status_code == 200
    listed = {one["name"]: one["account_id"] for one in admin.get("/api/v1/accounts").json()}
    assert admin.patch(f"/api/v1/accounts/{listed['anna']}", json={"locked": True}).status_code == 200
    assert client.get("/api/v1/me").status_code == 401
    assert admin.patch(f"/api/v1/accounts/{listed['ada']}", json={"locked": True}).status_code == 409


@pytest.mark.parametrize(("column", "minutes"), [("seen_at", 16), ("created_at", 12 * 60 + 1)])
def test_a_session_ends_when_idle_and_after_a_day_of_work(node: World, column: str, minutes: int) -> None:
    client = node.logged_in("anna", Role.RADIOLOGIST)
    assert client.get("/api/v1/me").status_code == 200
    with session_scope(node.engine) as session:
        session.execute(update(rows_of(WebSession)).values({column: db_now(session) - timedelta(minutes=minutes)}))
    assert client.get("/api/v1/me").status_code == 401
    over = client.get("/", headers=PAGE)
    assert "You were logged out" in over.text


def test_only_a_person_keeps_a_session_alive(node: World) -> None:
    client = node.logged_in("anna", Role.RADIOLOGIST)
    sessions = rows_of(WebSession)

    def seen_again(**headers: str) -> bool:
        with session_scope(node.engine) as session:
            before = db_now(session) - timedelta(minutes=5)
            session.execute(update(sessions).values(seen_at=before))
        client.get("/api/v1/me", headers=headers)
        with read_scope(node.engine) as session:
            seen_at = session.execute(select(sessions.c.seen_at)).scalar_one()
        return bool(seen_at > before)

    assert seen_again()
    assert not seen_again(**{"X-Background": "1"})
    assert not seen_again(Accept="text/event-stream")


def test_logout_ends_the_session_on_the_server(node: World) -> None:
    client = node.logged_in("anna", Role.RADIOLOGIST)
    secret = client.cookies["pacs_node_session"]
    assert client.post("/logout", follow_redirects=False).headers["location"] == "/login"
    thief = node.client_at("192.0.2.66")
    thief.cookies.set("pacs_node_session", secret)
    assert thief.get("/api/v1/me").status_code == 401
    assert [event.actor for event in node.audited(Action.LOGGED_OUT)] == ["user:anna"]


# Tokens


def test_a_token_is_shown_once_kept_as_digest_and_can_be_revoked(node: World) -> None:
    admin = node.logged_in("ada", Role.ADMIN)
    made = admin.post("/api/v1/tokens", json={"name": "his", "roles": ["service"]}).json()
    program = node.client_at("192.0.2.8", Authorization=f"Bearer {made['secret']}")
    assert program.get("/api/v1/studies").status_code == 200
    assert program.get("/api/v1/accounts").status_code == 403
    (listed,) = admin.get("/api/v1/tokens").json()
    assert listed["last_used_at"] is not None
    assert "secret" not in listed
    with read_scope(node.engine) as session:
        assert made["secret"] not in str(session.execute(select(rows_of(ApiToken))).all())
    assert admin.delete(f"/api/v1/tokens/{listed['token_id']}").status_code == 200
    assert program.get("/api/v1/studies").status_code == 401
    assert [event.actor for event in node.audited(Action.TOKEN_CREATED)] == ["user:ada"]
    assert admin.post("/api/v1/tokens", json={"name": "his", "roles": ["service"]}).status_code == 409


@pytest.mark.parametrize("roles", [[], ["public"], ["root"]])
def test_no_token_has_a_role_that_is_none(node: World, roles: list[str]) -> None:
    admin = node.logged_in("ada", Role.ADMIN)
    assert admin.post("/api/v1/tokens", json={"name": "x", "roles": roles}).status_code == 422


def test_over_tls_by_the_settings(sqlite_url: str, tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    """The real server: TLS alone on its port, and the door behind it."""
    web = WebSettings(port=free_port(), tls_certificate=certificate[0], tls_private_key=certificate[1])
    settings = Settings(node=NodeSettings(data_dir=tmp_path), database=DatabaseSettings(url=sqlite_url), web=web)
    stop = threading.Event()
    server = threading.Thread(target=run_web, args=(settings, stop))
    server.start()
    try:
        with httpx.Client(verify=ssl.create_default_context(cafile=str(certificate[0])), timeout=30) as client:
            answer = _when_up(client, f"{web.address}/login")
        assert answer.status_code == 200
        assert "strict-transport-security" in answer.headers
        with pytest.raises(httpx.HTTPError):
            httpx.get(web.address.replace("https", "http") + "/health")
    finally:
        stop.set()
        server.join(timeout=60)


def _when_up(client: httpx.Client, address: str) -> httpx.Response:
    for _ in range(300):
        try:
            return client.get(address)
        except httpx.ConnectError:
            time.sleep(0.2)
    raise AssertionError("the server did not start")


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate of this machine's own, for a day."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    address = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = tmp_path / "web.crt", tmp_path / "web.key"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = serialization.PrivateFormat.PKCS8
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, private, serialization.NoEncryption()))
    return paths


# The trail


NAMES_NO_STUDY = {
    *("/api/v1/accounts", "/api/v1/tokens", "/api/v1/me", "/api/v1/models", "/api/v1/quarantine", "/api/v1/jobs"),
    *("/api/v1/models/{name}/{version}", "/api/v1/audit/{event_id}"),
    *("/api/v1/audit", "/api/v1/exports/training", "/health", "/ready", "/metrics", "/model/info", "/admin"),
    *(
        "/login",
        "/login/hospital",
        "/login/hospital/back",
        "/api/v1/session/password",
        "/setup",
        "/docs",
        "/redoc",
        "/quality",
    ),
    "/api/v1/events",  # that something changed, by our own id: what changed is asked for, and audited, then
}


def test_no_study_is_read_without_an_event(node: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Walk every GET route but those that tell of no study: each that answers is in the trail."""
    study_id = node.suspected(1)
    client, kept = node.logged_in("anna", Role.RADIOLOGIST, Role.ADMIN), node.app.state.web._kept
    review = {"study_id": str(study_id), "verdict": "agree"}
    said = client.post("/api/v1/reviews", json=review, headers={"If-Match": "*"}).json()
    ids = {"study_id": study_id, "review_id": said["review_id"], "report_id": said["report_id"]}
    ids["instance_id"] = client.get(f"/api/v1/studies/{study_id}").json()["images"][0]["instance_id"]
    for name, key in (("results", "prediction_id"), ("warnings", "warning_id"), ("deliveries", "delivery_id")):
        ids[key] = client.get(f"/api/v1/{name}").json()["items"][0][key]
    walked = []
    for name in declarations(node.app):
        methods, _, path = name.rpartition(" ")
        if "GET" not in methods or path in NAMES_NO_STUDY:
            continue
        kept.noted.clear()
        before = len(node.actions())
        answer = client.get(path.format(**ids) + ("?size=96" if path.endswith("/image") else ""))
        if answer.status_code == 200:
            walked.append(path)
            assert len(node.actions()) > before, f"{path} tells of a study and notes nothing"
    assert len(walked) > 25, walked


def test_a_refusal_of_what_was_sent_is_audited_once_a_minute(node: World) -> None:
    client = node.logged_in("anna", Role.RADIOLOGIST)
    for _ in range(3):
        client.post("/api/v1/studies/search", content=b"x" * 3_000_000)
        client.post("/", content=b"{}", headers={"Content-Type": "application/json"})
    told = [(event.details["route"], event.details["status"]) for event in node.audited(Action.ACCESS_REFUSED)]
    assert told == [("unmatched", 413), ("/", 415)]


def test_refusals_are_audited_with_who_where_and_what(node: World) -> None:
    node.client_at("192.0.2.9").get("/api/v1/studies")
    node.client_at("192.0.2.9").get("/api/v1/studies")
    node.with_token("his", Role.SERVICE).get("/api/v1/jobs")
    told = [(event.actor, event.details) for event in node.audited(Action.ACCESS_REFUSED)]
    assert told == [
        ("anyone", {"route": "/api/v1/studies", "method": "GET", "status": 401, "from": "192.0.2.9"}),
        ("token:his", {"route": "/api/v1/jobs", "method": "GET", "status": 403, "from": "192.0.2.8"}),
    ], "the same refusal again within a minute is told once"


def test_every_change_is_audited_with_who_and_from_where(node: World) -> None:
    """Let one person do all that the API lets people change, and read the trail."""
    study_id = node.suspected(1)
    with session_scope(node.engine) as session:
        for job in queue.list_jobs(session, limit=50):
            end_jobs(session, job.subject_id)
    node.add_account("anna", Role.RADIOLOGIST, Role.ADMIN, password=PASSWORD)
    client = node.client_at("192.0.2.7")
    assert log_in(client, "anna", PASSWORD) == 303
    client.headers["X-CSRF-Token"] = csrf_of(client.cookies["pacs_node_session"])
    assert client.post("/api/v1/session/password", json={"password": PASSWORD}).status_code == 200
    (image,) = client.get("/api/v1/results").json()["items"]
    (delivery,) = client.get("/api/v1/deliveries").json()["items"]
    bert = client.post("/api/v1/accounts", json={"name": "bert", "roles": ["radiologist"]}).json()["account"]
    token = client.post("/api/v1/tokens", json={"name": "his", "roles": ["service"]}).json()["token"]
    done = [
        client.get(f"/api/v1/studies/{study_id}"),
        client.get("/api/v1/exports/studies"),
        client.post("/api/v1/studies/search", json={"patient_id": "SYN-1"}),
        client.post("/api/v1/reviews", json={"study_id": str(study_id), "verdict": "agree"}, headers={"If-Match": "*"}),
        client.post(f"/api/v1/instances/{image['instance_id']}/rerun"),
        client.post(f"/api/v1/deliveries/{delivery['delivery_id']}/resend"),
        client.patch(f"/api/v1/accounts/{bert['account_id']}", json={"groups": [], "locked": True}),
        client.delete(f"/api/v1/tokens/{token['token_id']}"),
        client.post("/logout", follow_redirects=False),
    ]
    assert all(answer.status_code < 400 for answer in done), [answer.text for answer in done]
    with read_scope(node.engine) as session:
        told = [event for event in audit.tail(session, 200) if event.actor == "user:anna"]
    assert {event.action for event in told if event.details.get("from") == "192.0.2.7"} == {
        *(
            Action.LOGGED_IN,
            Action.LOGGED_OUT,
            Action.PASSWORD_SHOWN,
            Action.STUDY_VIEWED,
            Action.STUDY_SEARCHED,
            Action.STUDIES_LISTED,
            Action.LIST_EXPORTED,
        ),
        *(Action.REVIEW_ADDED, Action.INSTANCE_RERUN, Action.DELIVERY_RESENT),
        *(Action.ACCOUNT_CHANGED, Action.TOKEN_CREATED, Action.TOKEN_REVOKED),
    }
    assert not [event for event in told if "from" not in event.details]


def test_a_password_link_for_somebody_else_is_audited(node: World) -> None:
    anna = node.add_account("anna", Role.RADIOLOGIST)
    assert node.logged_in("ada", Role.ADMIN).post(f"/api/v1/accounts/{anna}/link").status_code == 200
    event = node.audited(Action.ACCOUNT_CHANGED)[-1]
    assert (event.actor, event.subject_id) == ("user:ada", anna)
    assert event.details == {"what": "link made", "account": "anna", "from": "192.0.2.7"}


def test_failed_logins_are_audited_without_what_was_typed(node: World) -> None:
    account_id = node.add_account("anna", Role.RADIOLOGIST, password=PASSWORD)
    log_in(node.client_at("192.0.2.9"), "anna", "a secret that was mistyped")
    log_in(node.client_at("192.0.2.9"), "my password by mistake", "x")
    events = node.audited(Action.LOGIN_FAILED)
    assert [(event.subject_id, event.details["why"]) for event in events] == [
        (account_id, "password"),
        (None, "unknown name"),
    ]
    assert "mistake" not in str(events)
    assert "mistyped" not in str(events)


def test_a_view_names_the_reader(node: World) -> None:
    study_id = node.receive(1).study_id
    node.logged_in("anna", Role.RADIOLOGIST).get(f"/api/v1/studies/{study_id}")
    node.logged_in("bert", Role.RADIOLOGIST).get(f"/api/v1/studies/{study_id}")
    assert [event.actor for event in node.audited(Action.STUDY_VIEWED)] == ["user:anna", "user:bert"]


# Limits


def test_logins_of_one_address_are_limited(sqlite_engine: Engine, tmp_path: Path, models_folder: Path) -> None:
    web = WebSettings(logins_per_minute=3, login_tries=50)
    node = make_world(sqlite_engine, tmp_path / "var", models_folder, web)
    client = node.client_at("192.0.2.9")
    assert [log_in(client, f"user{i}", "x") for i in range(4)] == [401, 401, 401, 429]
    answer = client.post("/login", data={"user": "x", "password": "y"})
    assert 0 < int(answer.headers["retry-after"]) <= 60
    assert log_in(node.client_at("192.0.2.10"), "user", "x") == 401, "another address may"


def test_predictions_without_login_are_limited(node: World) -> None:
    limits, stranger = node.app.state.web.limits, node.app.state.web.caller
    for _ in range(10):
        limits.take_predictions(stranger)
    with pytest.raises(Exception, match="Too many predictions"):
        limits.take_predictions(stranger)
    with pytest.raises(Exception, match="asks for 11"):
        limits.take_predictions(stranger, 11)


def test_accounts_can_be_found_by_any_spelling(node: World) -> None:
    node.add_account("Anna", Role.RADIOLOGIST)
    with read_scope(node.engine) as session:
        assert accounts.find_account(session, " ANNA ") is not None
    admin = node.logged_in("ada", Role.ADMIN)
    assert admin.post("/api/v1/accounts", json={"name": "ANNA", "roles": ["admin"]}).status_code == 409
    made = admin.post("/api/v1/accounts", json={"name": "bert", "roles": ["radiologist"]}).json()
    assert made["link"].startswith(f"{BASE_URL}/setup?link=")
    assert node.client().get(made["link"].removeprefix(BASE_URL)).status_code == 200


def test_door_takes_forms_only(node: World) -> None:
    assert node.client().post("/login", content="{}", headers={"Content-Type": "application/json"}).status_code in (
        401,
        422,
    )
    assert node.client().post("/login", content=b"user=%ff&password=%00", headers=FORM).status_code in (401, 422)
