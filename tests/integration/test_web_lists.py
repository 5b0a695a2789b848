"""Lists, exports and the actions of administrators over HTTP."""

from __future__ import annotations

import csv
import io
import json
from uuid import UUID, uuid4

import pytest

from db import audit, queue
from db.audit import Action
from db.engine import db_now, read_scope, session_scope
from db.queue import JobKind
from tests.records import POLICY, end_jobs
from tests.web_world import PROBLEM, World


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("studies?finding=pneumonia&probability_from=0.9", 1),
        ("studies?finding=pneumonia&probability_from=0.95", 0),
        ("studies?probability_from=0.9&probability_to=0.95", 1),
        ("studies?priority=1", 0),
        ("studies?model_version=1.0.0", 1),
        ("studies?model_version=2.0.0", 0),
        ("studies?since=2020-01-01T00:00:00Z", 2),
        ("studies?until=2020-01-01T00:00:00Z", 0),
        ("studies?state=answered&answer=present&calling_ae_title=CR_ROOM_1", 1),
        ("reviews?verdict=agree", 0),
        ("studies?sort=-probability", 1),
        ("studies?sort=-priority", 2),
        ("studies?reviewed=false", 2),
        ("instances", 3),
        ("instances?state=waiting", 1),
        ("instances?calling_ae_title=NOBODY", 0),
        ("results?probability_from=0.9&model_version=1.0.0", 1),
        ("results?probability_to=0.5", 0),
        ("warnings", 2),
        ("warnings?code=view_unknown", 1),
        ("warnings?severity=forbids", 1),
        ("warnings?severity=note", 0),
        ("reports?answer=present&model_version=1.0.0", 1),
        ("reports?answer=absent", 0),
        ("deliveries?state=sent&destination=main", 1),
        ("deliveries?state=failed", 0),
        ("deliveries?until=2020-01-01T00:00:00Z", 0),
        ("models", 1),
        ("audit?action=report_frozen", 1),
        ("audit?actor=nobody", 0),
    ],
)
def test_lists_are_filtered(small_world: World, query: str, count: int) -> None:
    small_world.suspected()
    small_world.receive(7)
    answer = small_world.client().get(f"/api/v1/{query}")
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["items"]) == count


@pytest.mark.parametrize("name", ["instances", "results", "warnings", "reports", "deliveries", "audit"])
def test_pages_of_every_list_follow_each_other(world: World, name: str) -> None:
    for number in range(1, 4):
        world.suspected(number)
    client, seen, cursor = world.client(), [], None
    whole = client.get(f"/api/v1/{name}", params={"limit": 200}).json()["items"]
    while True:
        page = client.get(f"/api/v1/{name}", params={"limit": 2} | ({"cursor": cursor} if cursor else {})).json()
        seen += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == whole
    assert len(seen) >= 3


@pytest.mark.parametrize("sort", ["received_at", "-probability", "-priority"])
def test_pages_follow_in_every_order(world: World, sort: str) -> None:
    for number in range(1, 5):
        world.suspected(number, priority=number % 2)
    client = world.client()
    whole = client.get("/api/v1/studies", params={"sort": sort}).json()["items"]
    first = client.get("/api/v1/studies", params={"sort": sort, "limit": 3}).json()
    rest = client.get("/api/v1/studies", params={"sort": sort, "cursor": first["next_cursor"]}).json()
    assert [*first["items"], *rest["items"]] == whole
    assert len(whole) == 4


def test_cursor_of_another_order_is_a_problem(small_world: World) -> None:
    for number in (1, 2):
        small_world.receive(number)
    client = small_world.client()
    cursor = client.get("/api/v1/studies?limit=1").json()["next_cursor"]
    answer = client.get("/api/v1/studies", params={"sort": "-priority", "cursor": cursor})
    assert (answer.status_code, answer.headers["content-type"]) == (422, PROBLEM)


def test_export_names_no_patient_unless_asked_and_is_audited(small_world: World) -> None:
    small_world.suspected(1, calling_ae_title="=EVIL()")
    client = small_world.client()
    answer = client.get("/api/v1/exports/studies?format=csv&answer=present")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert (rows[0]["answer"], rows[0]["deliveries"], rows[0]["calling_ae_title"]) == (
        "present",
        "main:sent",
        "'=EVIL()",
    )
    assert "DEMO1" not in answer.text
    named = client.get("/api/v1/exports/studies?format=ndjson&with_patient=true").text
    assert json.loads(named)["patient_name"] == "DEMO1^Drawn"
    with read_scope(small_world.engine) as session:
        told = [one.details for one in audit.tail(session, 200) if one.action == Action.LIST_EXPORTED]
    assert [(one["list"], one["with_names"]) for one in told] == [("studies", False), ("studies", True)]
    assert told[0]["filters"] == {"answer": "present"}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        *(("results", "prediction_id"), ("warnings", "warning_id"), ("reports", "report_id")),
        *(("deliveries", "delivery_id"), ("reviews", "review_id"), ("audit", "id")),
    ],
)
def test_each_row_of_a_list_can_be_asked_for_alone(small_world: World, name: str, key: str) -> None:
    study_id, client = small_world.suspected(1), small_world.client()
    said = {"study_id": str(study_id), "verdict": "agree", "reviewer": "R"}
    assert client.post("/api/v1/reviews", json=said, headers={"If-Match": "*"}).status_code == 201
    row = client.get(f"/api/v1/{name}").json()["items"][-1]
    assert client.get(f"/api/v1/{name}/{row[key]}").json() == row
    nothing = client.get(f"/api/v1/{name}/{uuid4()}")
    assert (nothing.status_code, nothing.headers["content-type"]) == (404, PROBLEM)


def test_a_model_version_can_be_asked_for_alone(small_world: World) -> None:
    client = small_world.client()
    (row,) = client.get("/api/v1/models").json()["items"]
    assert client.get(f"/api/v1/models/{row['name']}/{row['version']}").json() == row
    assert client.get("/api/v1/models/drawn/9.9.9").status_code == 404


def test_search_is_paged(small_world: World) -> None:
    for number in (1, 2, 3):
        small_world.receive(number)
    client = small_world.client()
    first = client.post("/api/v1/studies/search", json={"patient_name": "drawn", "limit": 2}).json()
    rest = client.post("/api/v1/studies/search", json={"patient_name": "drawn", "cursor": first["next_cursor"]}).json()
    assert (len(first["items"]), len(rest["items"]), rest["next_cursor"]) == (2, 1, None)
    refused = client.post("/api/v1/studies/search", json={"patient_name": "drawn", "cursor": "nonsense"})
    assert refused.status_code == 422


@pytest.mark.parametrize("name", ["instances", "results", "warnings", "reports", "deliveries", "reviews", "audit"])
def test_every_list_is_exported_as_it_is_listed(small_world: World, name: str) -> None:
    study_id = small_world.suspected()
    client = small_world.client()
    client.post(
        "/api/v1/reviews",
        json={"study_id": str(study_id), "verdict": "agree", "reviewer": "R"},
        headers={"If-Match": "*"},
    )
    listed = client.get(f"/api/v1/{name}").json()["items"]
    lines = client.get(f"/api/v1/exports/{name}?format=ndjson").text.splitlines()
    assert [json.loads(line) for line in lines][-len(listed) :] == listed, "the export itself is the trail's newest"
    assert len(list(csv.DictReader(io.StringIO(client.get(f"/api/v1/exports/{name}").text)))) >= len(listed)
    if name != "audit":
        none = client.get(f"/api/v1/exports/{name}?format=ndjson&until=2020-01-01T00:00:00Z").text
        assert none == "", "the filters of the list are the export's"


@pytest.mark.parametrize("name", ["instances", "results", "warnings", "reports", "deliveries"])
def test_lists_begin_where_they_are_asked_to(small_world: World, name: str) -> None:
    for number in (1, 2):
        small_world.suspected(number)
    client = small_world.client()
    newest, oldest = (client.get(f"/api/v1/{name}?order={order}").json()["items"] for order in ("newest", "oldest"))
    assert newest == oldest[::-1]
    first = client.get(f"/api/v1/{name}?order=oldest&limit=1").json()
    rest = client.get(f"/api/v1/{name}?order=oldest&cursor={first['next_cursor']}").json()
    assert first["items"] + rest["items"] == oldest


def test_administrator_starts_work_once_more(world: World) -> None:
    study_id = world.suspected()
    client = world.client()
    instance = client.get("/api/v1/results").json()["items"][0]["instance_id"]
    delivery = client.get("/api/v1/deliveries").json()["items"][0]["delivery_id"]
    with session_scope(world.engine) as session:
        for job in queue.list_jobs(session, limit=50):
            end_jobs(session, job.subject_id)
    again = client.post(f"/api/v1/instances/{instance}/rerun")
    assert (again.status_code, again.json()["study_id"]) == (202, str(study_id))
    assert client.post(f"/api/v1/instances/{instance}/rerun").status_code == 409
    assert client.post(f"/api/v1/deliveries/{delivery}/resend").status_code == 202
    assert client.post(f"/api/v1/deliveries/{delivery}/resend").status_code == 409
    assert client.get("/api/v1/deliveries").json()["items"][0]["state"] == "waiting"
    assert {Action.INSTANCE_RERUN, Action.DELIVERY_RESENT} <= set(world.actions())
    world.judge(UUID(instance), 0.2)
    assert client.get("/api/v1/results").json()["items"][0]["probability"] == 0.2


def test_failed_job_is_run_again(small_world: World) -> None:
    accepted = small_world.receive(1)
    with session_scope(small_world.engine) as session:
        now = db_now(session)
        (job,) = queue.claim(session, JobKind.INFER, owner="test", limit=1, policy=POLICY, now=now)
        queue.fail(session, job, error="broken", now=now, policy=POLICY, permanent=True)
    client = small_world.client()
    again = client.post(f"/api/v1/jobs/{job.id}/retry")
    assert (again.status_code, again.json()["subject_id"]) == (202, str(accepted.instance_id))
    assert client.post(f"/api/v1/jobs/{job.id}/retry").status_code == 404


def test_failed_job_is_closed_with_a_reason(small_world: World) -> None:
    small_world.receive(1)
    client = small_world.client()
    with session_scope(small_world.engine) as session:
        now = db_now(session)
        (job,) = queue.claim(session, JobKind.INFER, owner="test", limit=1, policy=POLICY, now=now)
        queue.fail(session, job, error="broken", now=now, policy=POLICY, permanent=True)
    assert client.post(f"/api/v1/jobs/{job.id}/close", json={"reason": "Doe^Jane"}).status_code == 422
    assert client.post(f"/api/v1/jobs/{job.id}/close", json={"reason": "not_wanted"}).status_code == 200
    assert [one["id"] for one in client.get("/api/v1/jobs?state=closed").json()] == [str(job.id)]
    assert client.get("/api/v1/jobs?state=failed").json() == []
    told = client.get("/api/v1/audit?action=job_closed").json()["items"][0]["details"]
    assert told["reason"] == "not_wanted"
    assert client.post(f"/api/v1/jobs/{job.id}/close", json={"reason": "not_wanted"}).status_code == 404


def test_administrator_recalls_what_a_version_said(small_world: World) -> None:
    small_world.suspected()
    client = small_world.client_at("192.0.2.7")
    foretold = client.post("/api/v1/models/resnet50/1.0.0/recall", json={}).json()
    assert (foretold["dry_run"], foretold["reports"], foretold["recalled"], foretold["judged_anew"]) == (True, 1, 1, 1)
    assert not small_world.audited(Action.MODEL_RECALLED), "a dry run does nothing"
    answer = client.post("/api/v1/models/resnet50/1.0.0/recall", json={"dry_run": False})
    assert answer.status_code == 200, answer.text
    done = answer.json()
    assert (done["dry_run"], done["recalled"], done["replaced"]) == (False, 1, 1)
    assert client.post("/api/v1/models/resnet50/1.0.0/recall", json={"dry_run": False}).json()["recalled"] == 0
    (marked,) = small_world.audited(Action.MODEL_RECALLED)
    assert marked.details["from"] == "192.0.2.7"
    assert client.post("/api/v1/models/resnet50/9.9.9/recall", json={}).status_code == 404
    refused = client.post("/api/v1/models/drawn/0.0.1/recall", json={"dry_run": False})
    assert (refused.status_code, refused.headers["content-type"]) == (409, PROBLEM)
    assert "Activate another model first" in refused.json()["detail"] or "models add" in refused.json()["detail"]
