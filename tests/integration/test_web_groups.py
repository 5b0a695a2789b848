"""Who belongs to a group sees the studies of its senders and institutions, and nothing of any other, on any way."""

from __future__ import annotations

import logging
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine

from db.audit import Action
from db.engine import db_now, read_scope, session_scope
from db.facts import accounts
from db.tables import DeliveryState, Role
from pacs_node.settings.web import GroupSettings, WebSettings
from pacs_node.web.access import declarations
from pacs_node.web.identify import identify
from pacs_node.web.routes.events import _told
from tests.web_world import World, make_world

PAGE = {"Accept": "text/html"}
GROUPS = (
    GroupSettings(name="ward_a", senders=("CR_ROOM_1",)),
    GroupSettings(name="ward_b", senders=("CR_ROOM_2",)),
    GroupSettings(name="child", institutions=("Straße  children's \uff28OSPITAL",)),
    GroupSettings(name="both", senders=("CR_ROOM_9",), institutions=("STRASSE CHILDREN'S HOSPITAL",)),
)
CHILDREN = "strasse CHILDREN'S hospital "
"""As another modality of that institution writes it."""
OWN: dict[str, dict[str, Any]] = {
    "ward_a": {"calling_ae_title": "CR_ROOM_1", "institution_name": "City"},
    "child": {"calling_ae_title": "CR_ROOM_1", "institution_name": CHILDREN},
    "both": {"calling_ae_title": "CR_ROOM_1", "institution_name": CHILDREN},
}
"""By group: a study that its members see."""
QUERIES = ("", "?study_id={}", "?calling_ae_title=CR_ROOM_2", "?sender=CR_ROOM_2", "?view=all&order=oldest")
OTHER: dict[str, Any] = {"calling_ae_title": "CR_ROOM_2", "institution_name": "Zamonia Clinic"}


@pytest.fixture
def grouped(engine: Engine, tmp_path: Path, models_folder: Path) -> World:
    """A node with two groups, on each kind of database."""
    return make_world(engine, tmp_path / "var", models_folder, WebSettings(groups=GROUPS))


@pytest.mark.parametrize("group", OWN)
def test_a_group_sees_its_own_studies_alone(grouped: World, group: str) -> None:
    own = grouped.receive(1, **OWN[group]).study_id
    other = grouped.receive(2, **OTHER)
    for client in (
        grouped.logged_in("anna", Role.RADIOLOGIST, groups=[group]),
        grouped.with_token("his", Role.SERVICE, groups=[group]),
    ):
        assert client.get(f"/api/v1/studies/{own}").status_code == 200
        for address in (
            f"/api/v1/studies/{other.study_id}",
            f"/api/v1/studies/{other.study_id}/report",
            f"/api/v1/studies/{other.study_id}/reviews",
            f"/api/v1/studies/{other.study_id}/thumbnail",
            f"/api/v1/instances/{other.instance_id}",
            f"/api/v1/instances/{other.instance_id}/image",
            f"/api/v1/instances/{other.instance_id}/dicom",
            f"/studies/{other.study_id}",
        ):
            assert client.get(address).status_code in (403, 404), address
    judged = grouped.suspected(3, **OTHER)
    reader, keeper = (grouped.logged_in("ben", Role.RADIOLOGIST, groups=[group]), grouped.logged_in("bea", Role.ADMIN))
    for name, key in (
        *(("results", "prediction_id"), ("warnings", "warning_id")),
        *(("reports", "report_id"), ("deliveries", "delivery_id")),
    ):
        one = keeper.get(f"/api/v1/{name}?study_id={judged}").json()["items"][0]
        address = f"/api/v1/{name}/{one[key]}"
        assert (keeper.get(address).json(), reader.get(address).status_code) == (one, 404), address
    admin = grouped.logged_in("ada", Role.ADMIN)
    assert admin.get(f"/api/v1/studies/{other.study_id}").status_code == 200
    nobodys = grouped.logged_in("eve", Role.RADIOLOGIST)
    assert nobodys.get(f"/api/v1/studies/{own}").status_code == 404, "a person of no group sees none"


def test_no_institution_is_no_institution(grouped: World) -> None:
    """Studies whose images name none belong to nobody's institution, whatever a group is called."""
    nameless = grouped.receive(1, calling_ae_title="CR_ROOM_1", institution_name=" ").study_id
    assert (
        grouped.logged_in("anna", Role.RADIOLOGIST, groups=["child"]).get(f"/api/v1/studies/{nameless}").status_code
        == 404
    )


def test_a_later_image_gives_a_study_to_nobody_else(grouped: World) -> None:
    study_id = grouped.receive(1, calling_ae_title="CR_ROOM_2", institution_name="City", study="1.2.1").study_id
    later = grouped.receive(
        3, calling_ae_title="CR_ROOM_9", institution_name=CHILDREN, study="1.2.1", patient_id="SYN-1"
    )
    assert later.study_id == study_id
    assert (
        grouped.logged_in("anna", Role.RADIOLOGIST, groups=["both"]).get(f"/api/v1/studies/{study_id}").status_code
        == 404
    )


def test_looking_at_another_groups_study_is_audited(grouped: World) -> None:
    other = grouped.receive(2, calling_ae_title="CR_ROOM_2").study_id
    grouped.logged_in("anna", Role.RADIOLOGIST, groups=["ward_a"]).get(f"/api/v1/studies/{other}")
    (event,) = grouped.audited(Action.ACCESS_REFUSED)
    assert (event.actor, event.subject_id) == ("user:anna", other)
    assert event.details == {"what": "of another group", "from": "192.0.2.7"}


@pytest.mark.parametrize("group", OWN)
def test_no_list_names_another_groups_study(grouped: World, group: str) -> None:
    """Walk every address that can be asked for without an id: what another group sees is in none of the answers."""
    own, other = grouped.receive(1, **OWN[group]), grouped.receive(2, **OTHER)
    for accepted in (own, other):
        grouped.judge(accepted.instance_id, 0.94)
        grouped.report(accepted.study_id, DeliveryState.FAILED, reason="refused")
    clients = [
        grouped.logged_in("anna", Role.RADIOLOGIST, groups=[group]),
        grouped.with_token("his", Role.SERVICE, groups=[group]),
    ]
    admin = grouped.logged_in("ada", Role.ADMIN, Role.RADIOLOGIST)
    for accepted in (own, other):
        said = admin.post(
            "/api/v1/reviews", json={"study_id": str(accepted.study_id), "verdict": "agree"}, headers={"If-Match": "*"}
        )
        assert said.status_code == 201
    secrets = [str(other.study_id), str(other.instance_id), "SYN-2", "DEMO2", "CR_ROOM_2", "Zamonia", "zamonia"]
    seen_own = []
    for name in declarations(grouped.app):
        methods, _, path = name.rpartition(" ")
        if "GET" not in methods or "{" in path or path.endswith("/events"):
            continue
        for client in clients:
            for query in QUERIES:
                text = client.get(path + query.format(other.study_id), headers=PAGE).text
                seen_own += [path] if str(own.study_id) in text else []
                answered = text.replace("CR_ROOM_2", "").replace(str(other.study_id), "") if query else text
                assert not [secret for secret in secrets if secret in answered], path
    for sought in ({"patient_id": "SYN-2"}, {"accession_number": "A-2"}, {"patient_name": "DEMO"}):
        found = clients[0].post("/api/v1/studies/search", json=sought).json()["items"]
        assert [study["study_id"] for study in found] in ([], [str(own.study_id)])
    listed = {"/", *(f"/api/v1/{name}" for name in ("studies", "instances", "results", "reports", "deliveries"))}
    assert set(seen_own) >= listed | {"/api/v1/reviews"}, "the walk sees its own studies"


@pytest.mark.parametrize("group", OWN)
def test_the_quality_page_counts_the_groups_studies_alone(grouped: World, group: str) -> None:
    own, other = grouped.receive(1, **OWN[group]), grouped.receive(2, **OTHER)
    third = grouped.receive(3, **OTHER)
    for accepted in (own, other, third):
        grouped.judge(accepted.instance_id, 0.94)
        grouped.report(accepted.study_id, DeliveryState.FAILED, reason="refused")
    pages = []
    for client in (
        grouped.logged_in("anna", Role.RADIOLOGIST, groups=[group]),
        grouped.logged_in("ada", Role.ADMIN),
        grouped.logged_in("eve", Role.RADIOLOGIST),
    ):
        page = client.get("/quality", headers=PAGE).text
        pages.append(re.findall(r'<b>(\d+)</b><span class="soft">received', page))
    assert pages == [["1", "1"], ["3", "3"], []], "objects and studies"


def test_sums_of_the_whole_node_are_no_groups(grouped: World) -> None:
    """A program of one group gets no numbers that other groups' studies are part of; one of the node does."""
    assert grouped.with_token("ward", Role.SERVICE, groups=["ward_a"]).get("/metrics").status_code == 403
    assert grouped.with_token("prometheus", Role.SERVICE).get("/metrics").status_code == 200


@pytest.mark.parametrize("group", OWN)
def test_a_group_hears_of_its_own_studies_alone(grouped: World, group: str) -> None:
    own, other = grouped.receive(1, **OWN[group]), grouped.receive(2, **OTHER)
    client = grouped.logged_in("anna", Role.RADIOLOGIST, groups=[group])
    secret = client.cookies["pacs_node_session"]
    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/", "scheme": "http", "client": ("192.0.2.7", 1)}
    scope |= {"headers": [(b"cookie", f"pacs_node_session={secret}".encode())], "state": {}}
    web = grouped.app.state.web
    with read_scope(grouped.engine) as session:
        missed = grouped.app.state.feed.missed(f"{(db_now(session) - timedelta(minutes=6)).isoformat()}_{uuid4()}")
    told = "".join(_told(web.of(identify(web, scope)), missed))
    assert str(own.study_id) in told
    assert str(other.study_id) not in told


def test_an_institution_is_on_no_page_and_in_no_log(grouped: World, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        accepted = grouped.receive(1, **OTHER)
        grouped.judge(accepted.instance_id, 0.94)
        grouped.report(accepted.study_id)
        client = grouped.logged_in("ada", Role.ADMIN, Role.RADIOLOGIST)
        for address in ("/", "/quality", "/admin", f"/studies/{accepted.study_id}", "/api/v1/studies", "/api/v1/audit"):
            answer = client.get(address, headers=PAGE)
            assert answer.status_code == 200
            assert "amonia" not in answer.text
    assert "amonia" not in "".join(f"{record.getMessage()}{vars(record)}" for record in caplog.records)


def test_administrator_changes_what_an_account_may_do(grouped: World) -> None:
    own = f"/api/v1/studies/{grouped.receive(1, **OWN['ward_a']).study_id}"
    anna, ada = grouped.logged_in("anna", Role.RADIOLOGIST), grouped.logged_in("ada", Role.ADMIN)
    ids = {one["name"]: f"/api/v1/accounts/{one['account_id']}" for one in ada.get("/api/v1/accounts").json()}
    assert anna.get(own).status_code == 404
    changed = ada.patch(ids["anna"], json={"roles": ["radiologist", "service"], "groups": ["ward_a"]})
    assert (changed.json()["roles"], changed.json()["groups"]) == (["radiologist", "service"], ["ward_a"])
    assert anna.get(own).status_code == 200, "it counts at once"
    told = grouped.audited(Action.ACCOUNT_CHANGED)[-1]
    assert (told.actor, told.details["from"]) == ("user:ada", "192.0.2.7")
    assert told.details | {"roles": "radiologist service", "groups": "ward_a", "account": "anna"} == told.details
    unknown = {"name": "eve", "roles": ["service"], "groups": ["ward_a", "ward_z"]}
    for answer in (
        ada.patch(ids["anna"], json={"groups": ["ward_z"]}),
        ada.post("/api/v1/accounts", json=unknown),
        ada.post("/api/v1/tokens", json=unknown),
    ):
        assert (answer.status_code, "no [[web.groups]] named ward_z." in answer.text) == (422, True)
    assert ada.patch(ids["ada"], json={"roles": ["radiologist"]}).status_code == 409, "the last administrator stays one"
    assert ada.patch(ids["anna"], json={"roles": ["admin"]}).status_code == 200
    assert ada.patch(ids["ada"], json={"roles": ["radiologist"]}).status_code == 200
    assert ada.get("/api/v1/accounts").status_code == 403


def test_two_administrators_who_leave_at_once_do_not_both(grouped: World) -> None:
    both = [grouped.logged_in(name, Role.ADMIN) for name in ("ada", "bea")]
    ids = [one["account_id"] for one in both[0].get("/api/v1/accounts").json()]
    start = threading.Barrier(2)

    def leave(number: int) -> int:
        start.wait()
        return both[number].patch(f"/api/v1/accounts/{ids[number]}", json={"roles": ["radiologist"]}).status_code

    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(leave, (0, 1))) == [200, 409]


def test_what_the_hospital_says_of_its_people_is_not_changed_here(grouped: World) -> None:
    ada = grouped.logged_in("ada", Role.ADMIN)
    with session_scope(grouped.engine) as session:
        now = db_now(session)
        anna = accounts.hospital_account(session, "s-1", "anna", roles={Role.RADIOLOGIST}, groups=(), now=now)
    address = f"/api/v1/accounts/{anna.account_id}"
    assert ada.patch(address, json={"roles": ["admin"]}).status_code == 409
    assert ada.patch(address, json={"groups": ["ward_a"]}).status_code == 409
    assert ada.patch(address, json={"locked": True}).json()["is_locked"] is True
    row = re.search(r"<tr><td>anna.*?</tr>", ada.get("/admin").text)
    assert row is not None
    assert "data-grant" not in row[0]
