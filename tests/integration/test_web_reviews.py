"""Reviews over HTTP: an immutable history, two readers who cannot overwrite each other, regions, verified reports."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from fastapi.testclient import TestClient
from httpx import Response
from sqlalchemy import Engine

from db import facts
from db.audit import Action
from db.engine import db_now, read_scope, session_scope
from db.facts import BuiltObject, ReportFacts
from db.tables import Answer, DeliveryState, Role
from pacs_node.settings import Settings
from tests.records import end_jobs
from tests.web_world import PROBLEM, SR_CLASS, World, make_world


def say(
    client: TestClient, study_id: UUID, verdict: str, reviewer: str, tag: str | None = "*", **more: Any
) -> Response:
    body = {"study_id": str(study_id), "verdict": verdict, "reviewer": reviewer, **more}
    return client.post("/api/v1/reviews", json=body, headers={} if tag is None else {"If-Match": tag})


def standing(client: TestClient, study_id: UUID) -> list[tuple[str, str, int]]:
    state = client.get(f"/api/v1/studies/{study_id}/reviews").json()
    return [(review["reviewer"], review["verdict"], review["reading"]) for review in state["standing"]]


def is_reviewed(client: TestClient) -> bool:
    found = client.get("/api/v1/studies?reviewed=true").json()["items"]
    assert len(client.get("/api/v1/studies?reviewed=false").json()["items"]) == 1 - len(found)
    return bool(found)


def test_change_names_its_predecessor_and_withdrawal_leaves_nothing_standing(world: World) -> None:
    study_id, client = world.suspected(), world.client()
    first = say(client, study_id, "agree", "A").json()
    second = say(client, study_id, "disagree", "A").json()
    assert (second["predecessor_id"], second["corrected_finding"]) == (first["review_id"], "normal")
    assert standing(client, study_id) == [("A", "disagree", 1)]
    assert is_reviewed(client)
    assert say(client, study_id, "withdraw", "A", predecessor_id=second["review_id"]).status_code == 201
    assert standing(client, study_id) == []
    assert not is_reviewed(client)
    history = client.get(f"/api/v1/studies/{study_id}/reviews").json()["history"]
    assert [review["verdict"] for review in history] == ["agree", "disagree", "withdraw"]
    assert client.get(f"/api/v1/reviews/{first['review_id']}").json() == first
    assert world.actions().count(Action.REVIEW_ADDED) == 3


def test_two_readers_do_not_overwrite_each_other(world: World) -> None:
    study_id, client = world.suspected(), world.client()
    seen = client.get(f"/api/v1/studies/{study_id}/reviews").headers["etag"]
    first = say(client, study_id, "agree", "A", seen)
    assert first.status_code == 201
    late = say(client, study_id, "disagree", "B", seen)
    assert (late.status_code, late.headers["content-type"]) == (412, PROBLEM)
    assert first.json()["review_id"] in late.json()["detail"]
    assert late.headers["etag"] == first.headers["etag"]
    for verdict in ("disagree", "unsure"):
        assert say(client, study_id, verdict, "B", None).status_code == 428
    assert say(client, study_id, "unsure", "B", late.headers["etag"]).status_code == 201
    assert standing(client, study_id) == [("A", "agree", 1), ("B", "unsure", 2)]
    assert say(client, study_id, "withdraw", "B", "*", predecessor_id=first.json()["review_id"]).status_code == 412


@pytest.mark.parametrize(("verdict", "status"), [("agree", 428), ("disagree", 428), ("unsure", 201)])
def test_who_agrees_or_disagrees_says_what_was_seen(small_world: World, verdict: str, status: int) -> None:
    study_id, client = small_world.suspected(), small_world.client()
    said = say(client, study_id, verdict, "A", None)
    assert said.status_code == status
    if status == 428:
        assert said.headers["content-type"] == PROBLEM
        assert "Send as If-Match the ETag" in said.json()["detail"]
        assert standing(client, study_id) == []


@pytest.mark.parametrize(("verdict", "finding", "status"), [("agree", None, 409), ("disagree", "pneumonia", 201)])
def test_withdrawn_answer_is_none_to_agree_with(
    small_world: World, verdict: str, finding: str | None, status: int
) -> None:
    study_id, client = small_world.suspected(), small_world.client()
    with session_scope(small_world.engine) as session:
        (report,) = facts.study_detail(session, study_id).reports
        facts.withdraw_report(session, report.report_id, code="113001", actor="admin", now=db_now(session))
    assert re.findall(r'data-say="(.)"', client.get(f"/studies/{study_id}").text) == ["P", "N", "U"]
    said = say(client, study_id, verdict, "A", **({"corrected_finding": finding} if finding else {}))
    assert said.status_code == status
    assert status != 201 or said.json()["verdict"] == "disagree", "no word on an answer that counts no more"


def test_new_report_makes_an_older_look_stale(small_world: World) -> None:
    study_id, client = small_world.suspected(), small_world.client()
    seen = client.get(f"/api/v1/studies/{study_id}/reviews").headers["etag"]
    another = small_world.receive(
        500, study="1.2.1", patient_id="SYN-1", patient_name="DEMO1^Drawn", accession_number="A-1"
    )
    small_world.judge(another.instance_id, 0.1)
    small_world.report(study_id)
    assert say(client, study_id, "agree", "A", seen).status_code == 412


@pytest.mark.parametrize(
    ("verdict", "more", "status"),
    [
        ("agree", {"corrected_finding": "normal"}, 422),
        ("disagree", {"corrected_finding": "other"}, 201),
        ("disagree", {"corrected_finding": "broken arm"}, 422),
        ("comment", {}, 422),
        ("comment", {"comment": "Look again."}, 201),
        ("withdraw", {}, 404),
        ("unsure", {"predecessor_id": str(uuid4())}, 412),
        ("agree", {"region": {"instance_id": str(uuid4()), "left": 1, "top": 1, "right": 2, "bottom": 2}}, 422),
        ("agree", {"region": {"instance_id": str(uuid4()), "left": 2, "top": 1, "right": 2, "bottom": 2}}, 422),
    ],
)
def test_what_can_be_said(small_world: World, verdict: str, more: dict[str, Any], status: int) -> None:
    study_id = small_world.suspected()
    answer = say(small_world.client(), study_id, verdict, "A", **more)
    assert answer.status_code == status, answer.text


def test_study_without_an_answer_can_be_corrected_but_not_agreed_with(small_world: World) -> None:
    waiting, client = small_world.receive(9).study_id, small_world.client()
    assert say(client, waiting, "agree", "A").status_code == 409
    assert say(client, waiting, "disagree", "A").status_code == 409
    assert say(client, waiting, "disagree", "A", corrected_finding="pneumonia").status_code == 201


def test_region_lies_in_an_image_of_the_study(drawn_world: tuple[World, TestClient, UUID]) -> None:
    world, client, instance_id = drawn_world
    study_id = UUID(client.get(f"/api/v1/instances/{instance_id}").json()["study_id"])
    box = {"instance_id": str(instance_id), "left": 10, "top": 20, "right": 80, "bottom": 96}
    kept = say(client, study_id, "disagree", "A", corrected_finding="other", region=box)
    assert (kept.status_code, kept.json().get("region")) == (201, box), kept.text
    assert say(client, study_id, "unsure", "A", region=box | {"right": 81}).status_code == 422
    other = world.receive(77).study_id
    assert say(client, other, "unsure", "A", region=box).status_code == 422


# Readers' reports


def _reports(world: World, study_id: UUID) -> list[ReportFacts]:
    with read_scope(world.engine) as session:
        return [one for one in facts.study_detail(session, study_id).reports if one.review_id is not None]


def _store(world: World, report: ReportFacts) -> None:
    """Build a reader's report and let `main` have it."""
    built = BuiltObject(
        sop_instance_uid=f"2.25.{report.report_id.int}",
        sop_class_uid=SR_CLASS,
        path=f"own/{report.revision}",
        digest="",
    )
    with session_scope(world.engine) as session:
        planned = [("main", DeliveryState.WAITING, "")]
        facts.record_report_built(session, report.report_id, [built], planned, now=db_now(session))
        end_jobs(session, report.report_id)
        (delivery,) = facts.deliveries_of(session, report.report_id)
        uids = {"sop_class_uid": SR_CLASS, "sop_instance_uid": built.sop_instance_uid}
        facts.record_choice(session, delivery.delivery_id, **uids)
        facts.record_sent(session, delivery.delivery_id, now=db_now(session))


def test_readers_reports_follow_what_the_reader_says(
    sqlite_engine: Engine, tmp_path: Path, models_folder: Path
) -> None:
    tree = {"node": {"data_dir": tmp_path}, "reviews": {"send_verified": True, "organization": "A hospital"}}
    world = make_world(sqlite_engine, tmp_path, models_folder, settings=Settings.model_validate(tree))
    study_id, anna = world.suspected(), world.logged_in("anna", Role.RADIOLOGIST)
    for verdict in ("agree", "disagree"):
        assert (
            anna.post(
                "/api/v1/reviews", json={"study_id": str(study_id), "verdict": verdict}, headers={"If-Match": "*"}
            ).status_code
            == 201
        )
        _store(world, _reports(world, study_id)[-1])
    first, second = _reports(world, study_id)
    assert second.replaced is not None
    assert (second.replaced.report_id, second.answer) == (first.report_id, Answer.ABSENT)
    withdrawn = anna.post("/api/v1/reviews", json={"study_id": str(study_id), "verdict": "withdraw"})
    assert withdrawn.status_code == 201
    assert all(one.withdrawn_at is not None for one in _reports(world, study_id))
    assert anna.get(f"/studies/{study_id}").text.count(", withdrawn<") == 2
    assert [str(one.actor) for one in world.audited(Action.REPORT_WITHDRAWN)] == ["anna"] * 2
