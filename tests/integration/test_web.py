"""The API over a real database and real files."""

from __future__ import annotations

import io
import json
from pathlib import Path
from uuid import UUID, uuid4

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from sqlalchemy import Engine

from db import audit, facts
from db.audit import Action
from db.engine import db_now, make_engine, read_scope, session_scope
from tests.builders import as_bytes, make_radiograph
from tests.records import NOON
from tests.web_world import PROBLEM, World, make_world


def test_study_list_tells_answer_warnings_and_delivery(world: World) -> None:
    study_id = world.suspected()
    (study,) = world.client().get("/api/v1/studies").json()["items"]
    assert study["study_id"] == str(study_id)
    assert (study["state"], study["answer"], study["probability"], study["threshold"]) == (
        "answered",
        "present",
        0.94,
        0.5,
    )
    assert {warning["code"] for warning in study["warnings"]} == {"not_frontal", "view_unknown"}
    assert study["deliveries"] == [{"destination": "main", "state": "sent", "reason": ""}]


def test_pages_of_studies_follow_each_other_without_gap_or_repeat(world: World) -> None:
    ids = [str(world.receive(number, minutes_ago=number).study_id) for number in range(1, 8)]
    client, seen, cursor = world.client(), [], None
    while True:
        page = client.get("/api/v1/studies", params={"limit": 3} | ({"cursor": cursor} if cursor else {})).json()
        seen += [study["study_id"] for study in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == ids


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("answer=present", 1),
        ("answer=absent", 0),
        ("state=judging", 1),
        ("state=answered", 1),
        ("warning=view_unknown", 1),
        ("model_version=1.0.0", 1),
        ("model_version=9.0.0", 0),
        ("calling_ae_title=CR_ROOM_1", 2),
        ("calling_ae_title=NOBODY", 0),
        ("reviewed=true", 0),
        ("since=2020-01-01T00:00:00Z", 2),
        ("until=2020-01-01T00:00:00%2B02:00", 0),
    ],
)
def test_study_list_filters(small_world: World, query: str, count: int) -> None:
    small_world.suspected()
    small_world.receive(7)
    assert len(small_world.client().get(f"/api/v1/studies?{query}").json()["items"]) == count


def test_search_finds_by_body_alone(world: World) -> None:
    study_id = world.suspected(number=42)
    client = world.client()
    for wanted in ({"patient_id": "SYN-42"}, {"patient_name": "demo42"}, {"accession_number": "A-42"}):
        found = client.post("/api/v1/studies/search", json=wanted).json()["items"]
        assert [study["study_id"] for study in found] == [str(study_id)], wanted
    assert client.post("/api/v1/studies/search", json={"patient_id": "SYN-4"}).json()["items"] == []
    assert client.get("/api/v1/studies?patient_id=SYN-4").json()["items"] != [], "an unknown query key is no filter"


def test_search_is_audited_without_its_terms(world: World) -> None:
    world.suspected(number=42)
    world.client().post("/api/v1/studies/search", json={"patient_id": "SYN-42"})
    with read_scope(world.engine) as session:
        (searched,) = [one for one in audit.tail(session, 50) if one.action == Action.STUDY_SEARCHED]
    assert {name: value for name, value in searched.details.items() if name != "from"} == {"found": 1}


def test_study_detail_is_full_and_its_view_is_audited_once_a_minute(world: World) -> None:
    study_id = world.suspected()
    client = world.client()
    study = client.get(f"/api/v1/studies/{study_id}").json()
    assert [image["state"] for image in study["images"]] == ["analysed", "not_analysed"]
    assert study["images"][0]["predictions"][0]["probability"] == 0.94
    assert [report["revision"] for report in study["reports"]] == [1]
    assert "path" not in json.dumps(study), "store keys stay inside"
    client.get(f"/api/v1/studies/{study_id}")
    assert world.actions().count(Action.STUDY_VIEWED) == 1


def test_report_is_served_as_dicom_once_it_is_built(small_world: World) -> None:
    study_id = small_world.suspected()
    client = small_world.client()
    answer = client.get(f"/api/v1/studies/{study_id}/report")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/dicom")
    assert answer.content.startswith(b"DICM of ")
    assert client.get(f"/api/v1/studies/{study_id}/report?revision=2").status_code == 404
    waiting = small_world.receive(9).study_id
    assert client.get(f"/api/v1/studies/{waiting}/report").status_code == 404


def test_image_is_drawn_as_png_and_kept_by_etag(drawn_world: tuple[World, TestClient, UUID]) -> None:
    _, client, instance_id = drawn_world
    address = f"/api/v1/instances/{instance_id}/image"
    answer = client.get(address)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    image = Image.open(io.BytesIO(answer.content))
    assert (image.mode, image.size) == ("L", (80, 96)), "never enlarged"
    again = client.get(address, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    small = client.get(f"{address}?size=48")
    assert Image.open(io.BytesIO(small.content)).size == (40, 48)
    assert small.headers["etag"] != answer.headers["etag"]


def test_image_window_changes_pixels(drawn_world: tuple[World, TestClient, UUID]) -> None:
    _, client, instance_id = drawn_world
    address = f"/api/v1/instances/{instance_id}/image"
    narrow = client.get(f"{address}?center=2048&width=10").content
    assert {0, 255} <= set(np.unique(np.asarray(Image.open(io.BytesIO(narrow)))))
    assert narrow != client.get(address).content


def test_hostile_image_is_refused_and_the_next_one_is_drawn(drawn_world: tuple[World, TestClient, UUID]) -> None:
    world, client, instance_id = drawn_world
    bomb = as_bytes(make_radiograph(seed=5, rows=64, columns=64, Rows=65535, Columns=65535))
    hostile = [world.receive(50, data=bomb), world.receive(51, data=b"not DICOM at all")]
    for accepted in hostile:
        answer = client.get(f"/api/v1/instances/{accepted.instance_id}/image")
        assert (answer.status_code, answer.headers["content-type"]) == (422, PROBLEM)
    assert client.get(f"/api/v1/instances/{instance_id}/image?size=64").status_code == 200


def test_drawing_prints_nothing_of_a_patient(
    drawn_world: tuple[World, TestClient, UUID], capfd: pytest.CaptureFixture[str]
) -> None:
    world, client, _ = drawn_world
    data = as_bytes(make_radiograph(seed=6, rows=64, columns=64))
    broken = data.replace(b"1.2.840.10008.1.2.1\x00", b"SECRET^NAME.1.2.3.4\x00")  # pydicom warns with the value
    client.get(f"/api/v1/instances/{world.receive(70, data=broken).instance_id}/image")
    assert "SECRET" not in "".join(capfd.readouterr())


def test_thumbnail_of_study_is_not_audited_and_a_view_is(drawn_world: tuple[World, TestClient, UUID]) -> None:
    world, client, _ = drawn_world
    accepted = world.receive(60)
    assert client.get(f"/api/v1/studies/{accepted.study_id}/thumbnail").status_code == 200
    assert Action.STUDY_VIEWED not in viewed(world, accepted.study_id)
    client.get(f"/api/v1/instances/{accepted.instance_id}/image?size=512")
    assert Action.STUDY_VIEWED in viewed(world, accepted.study_id)


def viewed(world: World, study_id: UUID) -> set[str]:
    with read_scope(world.engine) as session:
        return {str(record.action) for record in audit.tail(session, 200) if record.subject_id == study_id}


def test_purged_image_is_gone_and_its_results_stay(small_world: World) -> None:
    study_id = small_world.suspected()
    client = small_world.client()
    instance = client.get(f"/api/v1/studies/{study_id}").json()["images"][0]["instance_id"]
    with session_scope(small_world.engine) as session:
        facts.mark_purged(session, study_id, NOON)
    assert client.get(f"/api/v1/instances/{instance}/image").status_code == 404
    assert client.get(f"/api/v1/instances/{instance}").json()["is_purged"] is True
    assert "purged after the retention time" in client.get(f"/studies/{study_id}").text


def test_review_is_kept_listed_and_audited(world: World) -> None:
    study_id = world.suspected()
    client = world.client()
    said = {"study_id": str(study_id), "verdict": "disagree", "comment": "rib, not lung", "reviewer": "Dr R. Reader"}
    answer = client.post("/api/v1/reviews", json=said, headers={"If-Match": "*"})
    assert answer.status_code == 201
    (kept,) = client.get(f"/api/v1/reviews?study_id={study_id}").json()["items"]
    assert {key: kept[key] for key in said} == said
    assert client.get("/api/v1/studies?reviewed=true").json()["items"][0]["study_id"] == str(study_id)
    assert Action.REVIEW_ADDED in world.actions()


def test_review_needs_an_answer_to_agree_with(small_world: World) -> None:
    study_id = small_world.receive(1).study_id
    client = small_world.client()
    said = {"study_id": str(study_id), "verdict": "agree", "reviewer": "R"}
    assert client.post("/api/v1/reviews", json=said, headers={"If-Match": "*"}).status_code == 409
    assert client.post("/api/v1/reviews", json=said | {"verdict": "comment"}).status_code == 422
    noted = client.post("/api/v1/reviews", json=said | {"verdict": "comment", "comment": "rotated"})
    assert noted.status_code == 201
    assert (
        client.post("/api/v1/reviews", json=said | {"study_id": str(uuid4())}, headers={"If-Match": "*"}).status_code
        == 404
    )


def test_ready_names_every_part(world: World) -> None:
    answer = world.client().get("/ready")
    assert answer.status_code == 200
    assert [check["name"] for check in answer.json()["checks"]] == ["database", "store", "model", "queue"]


def test_ready_says_which_part_fails(sqlite_engine: Engine, tmp_path: Path) -> None:
    world = make_world(sqlite_engine, tmp_path / "var", tmp_path / "no-models")
    with session_scope(world.engine) as session:
        facts.add_model_version(session, "lost", "1.0.0", "0" * 64, actor="test", now=NOON)
        facts.activate_model(session, "lost", "1.0.0", actor="test", now=NOON)
    answer = world.client().get("/ready")
    assert answer.status_code == 503
    assert [check["name"] for check in answer.json()["checks"] if not check["ready"]] == ["model"]


def test_node_without_database_is_alive_not_ready_and_says_so(tmp_path: Path, models_folder: Path) -> None:
    world = make_world(make_engine(f"sqlite:///{tmp_path}/nowhere/node.sqlite"), tmp_path / "var", models_folder)
    client = world.client()
    assert client.get("/health").json()["status"] == "ok"
    assert client.get("/ready").status_code == 503
    assert "pacs_node_database_up 0.0" in client.get("/metrics").text
    studies = client.get("/api/v1/studies")
    assert (studies.status_code, studies.headers["content-type"], studies.headers["retry-after"]) == (503, PROBLEM, "5")
    page = client.get("/", headers={"Accept": "text/html"})
    assert page.status_code == 503
    assert "The database did not answer." in page.text


def test_metrics_add_up_and_name_no_patient(world: World) -> None:
    study_id = world.suspected()
    world.receive(7)
    text = world.client().get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    outcomes = [float(value) for name, value in values.items() if name.startswith("pacs_node_instances{")]
    assert sum(outcomes) == float(values["pacs_node_instances_received"]) == 3
    assert float(values['pacs_node_deliveries{destination="main",state="sent"}']) == 1
    assert float(values['pacs_node_jobs{kind="infer",state="ready"}']) == 1
    for private in ("DEMO", "SYN-", "A-1", str(study_id)):
        assert private not in text


def test_refused_contexts_are_metrics_of_few_labels_and_a_list_on_the_quality_page(small_world: World) -> None:
    ct = "1.2.840.10008.5.1.4.1.1.2"
    assert "Refused before" not in small_world.client().get("/quality").text
    with session_scope(small_world.engine) as session:
        now = db_now(session)
        day = now.astimezone().date()
        facts.record_refused_contexts(session, "CT_1", {(ct, 3), ("<b>", 4)}, is_empty=True, day=day, now=now)
        facts.record_refused_contexts(session, "ROUTER", {(ct, 3)}, is_empty=False, day=day, now=now)
    client = small_world.client()
    text = client.get("/metrics").text
    name = 'pacs_node_refused_contexts_today{association="%s",reason="abstract_syntax_not_supported"} 1.0'
    assert name % "empty" in text
    assert name % "other" in text
    assert ct not in text
    page = client.get("/quality").text
    assert "<td>CT_1</td><td>CT Image Storage</td><td>abstract syntax not supported</td>" in page
    assert "ROUTER" not in client.get("/quality?sender=CT_1").text


def test_model_info_counts_the_parameters(small_world: World) -> None:
    info = small_world.client().get("/model/info").json()
    assert (info["model_name"], info["version"], info["num_parameters"]) == ("drawn", "0.0.1", 24_559_170)
    (population,) = info["populations"]
    assert (population["name"], population["age_years"], population["temperature"]) == ("children", [1, 5], 1.0)
    assert population["limits"]["pneumonia"]["operating_points"] == {"balanced": 0.5}


def test_jobs_results_and_quarantine_are_listed(world: World) -> None:
    world.suspected()
    with session_scope(world.engine) as session:
        facts.quarantine(
            session, path="q/1", digest="0" * 64, size_bytes=3, reason="unreadable", association_id=None, now=NOON
        )
    client = world.client()
    assert {job["kind"] for job in client.get("/api/v1/jobs").json()} == {"infer", "report", "deliver"}
    assert [job["kind"] for job in client.get("/api/v1/jobs?kind=infer&state=done&limit=1").json()] == ["infer"]
    assert [one["probability"] for one in client.get("/api/v1/results").json()["items"]] == [0.94]
    assert [one["reason"] for one in client.get("/api/v1/quarantine").json()["items"]] == ["unreadable"]
