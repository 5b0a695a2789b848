"""Readers who answer before they see the model's answer: what the pages hide from them, and what is kept of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from db import facts
from db.engine import db_now, session_scope
from db.facts import Region, WarningFacts
from db.tables import Role, Verdict
from pacs_node.settings import NodeSettings, PredictSettings, ReviewSettings, Settings
from pacs_node.settings.web import WebSettings
from tests.web_world import FORM, LATERAL, World, make_world

TELLING = (
    "Suspected",
    "suspected",
    "0.94",
    "0.07",
    "above threshold",
    "below threshold",
    "Above threshold",
    "positive",
)


@pytest.fixture
def blind_world(sqlite_engine: Engine, tmp_path: Path) -> World:
    settings = Settings(
        node=NodeSettings(data_dir=tmp_path / "var"),
        web=WebSettings(),
        predict=PredictSettings(is_preloaded=False),
        reviews=ReviewSettings(answer_first=True),
    )
    return make_world(sqlite_engine, tmp_path / "var", tmp_path / "none", settings=settings)


def say(client: TestClient, study_id: object, verdict: str, **more: Any) -> Any:
    return client.post(
        "/api/v1/reviews", json={"study_id": str(study_id), "verdict": verdict, **more}, headers={"If-Match": "*"}
    )


def told(page: str) -> list[str]:
    """Return the words of an answer that stand in a page, the classes of its drawings and its foot left out."""
    return [word for word in TELLING if word in page.split("<footer")[0]]


def test_pages_tell_a_reader_nothing_of_the_answer_before_theirs(blind_world: World) -> None:
    reader, other = (blind_world.logged_in(name, Role.RADIOLOGIST) for name in ("reader", "other"))
    study_id = blind_world.suspected()
    assert told(reader.get("/?view=all").text) == []
    page = reader.get(f"/studies/{study_id}").text
    assert told(page) == []
    assert "data-heat=" not in page
    assert re.findall(r'data-say="(.)"', page) == ["P", "N", "U"]
    assert "Say what you see" in page
    assert say(reader, study_id, "disagree", corrected_finding="pneumonia", is_blind=True).status_code == 201
    assert "Pneumonia suspected" in reader.get(f"/studies/{study_id}").text
    assert "Suspected" in reader.get("/?view=all").text
    assert told(other.get("/?view=all").text) == [], "a second reader answers first too"
    assert told(other.get(f"/studies/{study_id}").text) == []


def test_what_could_not_be_judged_is_no_secret_and_administrators_see_all(blind_world: World) -> None:
    reader, admin = blind_world.logged_in("reader", Role.RADIOLOGIST), blind_world.logged_in("admin", Role.ADMIN)
    lateral = blind_world.receive(2)
    blind_world.judge(lateral.instance_id, None, [LATERAL])
    blind_world.report(lateral.study_id)
    assert "the view is lateral" in reader.get("/").text
    assert "the view is lateral" in reader.get(f"/studies/{lateral.study_id}").text
    study_id = blind_world.suspected(3)
    assert "Pneumonia suspected" in admin.get(f"/studies/{study_id}").text


def test_what_became_of_a_hidden_answer_is_told_at_once(blind_world: World) -> None:
    reader, unbuilt = blind_world.logged_in("reader", Role.RADIOLOGIST), blind_world.receive(2)
    blind_world.judge(unbuilt.instance_id, 0.94)
    blind_world.break_report(unbuilt.study_id)
    study_id = blind_world.suspected()
    with session_scope(blind_world.engine) as session:
        (report,) = facts.study_detail(session, study_id).reports
        facts.withdraw_report(session, report.report_id, code="113001", actor="admin", now=db_now(session))
    undecided = blind_world.receive(3)
    blind_world.judge(undecided.instance_id, 0.55)
    blind_world.report(undecided.study_id)
    pages = [reader.get(f"/studies/{one}").text for one in (study_id, unbuilt.study_id, undecided.study_id)]
    assert "do not rely on this result" in pages[0]
    assert "its report could not be built" in pages[1]
    assert "lies between" not in pages[2]
    assert [told(page) for page in pages] == [[], [], []]


def test_image_that_is_judged_before_its_study_tells_nothing(blind_world: World) -> None:
    reader, waiting = blind_world.logged_in("reader", Role.RADIOLOGIST), blind_world.receive(1)
    blind_world.judge(waiting.instance_id, 0.94)
    page = reader.get(f"/studies/{waiting.study_id}").text
    assert "Waiting" in page
    assert told(page) == []
    assert "data-heat=" not in page


def test_readers_own_veil_hides_answers_alone(small_world: World) -> None:
    client, silent = small_world.client(), small_world.receive(2)
    withdrawn, waiting = small_world.suspected(1), small_world.receive(3)
    small_world.judge(silent.instance_id, None, [LATERAL])
    small_world.report(silent.study_id)
    with session_scope(small_world.engine) as session:
        (report,) = facts.study_detail(session, withdrawn).reports
        facts.withdraw_report(session, report.report_id, code="113001", actor="admin", now=db_now(session))
    for study_id in (silent.study_id, waiting.study_id):
        panel = client.get(f"/studies/{study_id}").text.partition('class="told"')[2]
        assert "veil" not in panel, "there is no answer to promise"
        assert "clear" not in panel
    veil = client.get(f"/studies/{withdrawn}").text.partition('class="verdict veil"')[2].partition("</div>")[0]
    assert "do not rely on this result" in veil


def test_probability_is_no_filter_for_who_answers_first(blind_world: World) -> None:
    reader, study_id = blind_world.logged_in("reader", Role.RADIOLOGIST), blind_world.suspected()
    for query in ("from=0.99", "to=0.01"):
        page = reader.get(f"/?{query}").text
        assert str(study_id) in page
        assert 'name="from"' not in page


@pytest.mark.parametrize("group", ["positive", "negative", "silent"])
def test_no_address_sorts_studies_by_what_is_hidden(blind_world: World, group: str) -> None:
    reader, admin = blind_world.logged_in("reader", Role.RADIOLOGIST), blind_world.logged_in("admin", Role.ADMIN)
    assert reader.get(f"/?group={group}").status_code == 404
    assert admin.get(f"/?group={group}").status_code == 200


@pytest.mark.parametrize(
    ("probability", "seen", "kept"),
    [
        (0.94, "pneumonia", ("agree", None)),
        (0.94, "normal", ("disagree", "normal")),
        (0.07, "normal", ("agree", None)),
        (0.07, "pneumonia", ("disagree", "pneumonia")),
        (0.55, "pneumonia", ("disagree", "pneumonia")),
    ],
)
def test_blind_review_becomes_the_verdict_that_it_is(
    blind_world: World, probability: float, seen: str, kept: tuple[str, str | None]
) -> None:
    reader, received = blind_world.logged_in("reader", Role.RADIOLOGIST), blind_world.receive(1)
    blind_world.judge(received.instance_id, probability)
    blind_world.report(received.study_id)
    review = say(reader, received.study_id, "disagree", corrected_finding=seen, is_blind=True).json()
    assert (review["verdict"], review["corrected_finding"]) == kept
    assert review["is_blind"] is True
    assert "before the model&#39;s answer" in reader.get(f"/studies/{received.study_id}").text
    again = say(reader, received.study_id, "unsure", is_blind=True).json()
    assert again["is_blind"] is False, "the answer was shown after the first word"


def test_answer_that_the_node_did_not_hide_is_not_called_blind(small_world: World, blind_world: World) -> None:
    seen = {"corrected_finding": "pneumonia", "is_blind": True}
    open_page = say(small_world.client(), small_world.suspected(), "disagree", reviewer="R", **seen)
    program = say(blind_world.with_token("script", Role.RADIOLOGIST), blind_world.suspected(2), "disagree", **seen)
    for said in (open_page, program):
        kept = said.json()
        assert (kept["verdict"], kept["corrected_finding"], kept["is_blind"]) == ("agree", None, False), said.text
    page = small_world.client().get(f"/studies/{small_world.suspected(3)}").text
    assert ":blind" not in page, "a reader's own veil is no proof"


def test_blind_review_says_what_is_seen(blind_world: World) -> None:
    reader, study_id = blind_world.logged_in("reader", Role.RADIOLOGIST), blind_world.suspected()
    assert say(reader, study_id, "agree", is_blind=True).status_code == 422
    assert say(reader, study_id, "disagree", is_blind=True).status_code == 422


def test_blind_review_needs_no_script(blind_world: World) -> None:
    reader, study_id = blind_world.logged_in("reader", Role.RADIOLOGIST), blind_world.suspected()
    form = "answer=disagree:pneumonia:blind"
    said = reader.post(f"/studies/{study_id}/reviews", content=form, headers=FORM)
    assert "<b>Agree, before the model&#39;s answer</b>" in said.text


def test_reader_who_hides_the_answer_is_offered_no_agreement(small_world: World) -> None:
    suspected, undecided = small_world.suspected(1), small_world.receive(2)
    small_world.judge(undecided.instance_id, 0.55, [WarningFacts(code="low_confidence", severity="warning", text="x")])
    small_world.report(undecided.study_id)
    pages = [small_world.client().get(f"/studies/{i}").text for i in (suspected, undecided.study_id)]
    assert re.findall(r'data-say="(.)"', pages[0]) == ["A", "D", "U", "P", "N", "U"]
    assert re.findall(r'data-say="(.)"', pages[1]) == ["P", "N", "U"]


def test_region_of_a_reader_stands_beside_their_word(small_world: World) -> None:
    study_id, client = small_world.suspected(), small_world.client()
    with session_scope(small_world.engine) as session:
        image = facts.study_detail(session, study_id).images[0].instance_id
        said = facts.add_review(
            session,
            study_id,
            verdict=Verdict.AGREE,
            comment="",
            reviewer="R",
            region=Region(instance_id=image, left=10, top=20, right=40, bottom=60),
            now=db_now(session),
        )
    page = client.get(f"/studies/{study_id}").text
    assert f'data-region="{said.review_id}" data-instance="{image}" data-box="10 20 40 60"' in page
    assert ">Region on Image 1</button>" in page
