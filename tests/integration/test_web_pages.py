"""The pages as the server renders them: every state in words, nothing of a patient where it does not belong."""

from __future__ import annotations

import pytest

from db.audit import Action
from db.tables import DeliveryState
from tests.web_world import FORM, LATERAL, World


def test_worklist_says_every_state_in_words(world: World) -> None:
    world.suspected()
    undecided, failed, lateral = (world.receive(number) for number in (2, 3, 4))
    world.judge(undecided.instance_id, 0.55)
    world.fail(failed.instance_id)
    world.judge(lateral.instance_id, None, [LATERAL])
    for accepted in (undecided, failed, lateral):
        world.report(accepted.study_id, DeliveryState.FAILED, "no presentation context.")
    world.receive(5)
    page = world.client().get("/").text
    for words in (
        "Suspected",
        "0.55 lies between 0.40 and 0.60.",
        "processing failed; the file is kept",
        "the view is lateral; only frontal views are judged.",
        "its images are being judged",
        "main did not accept the report: no presentation context.",
        "Stored in main",
        "Research use only.",
        "Model drawn 0.0.1",
        "DEMO1 Drawn",
    ):
        assert words in page, words
    for hidden in ("secret traceback", "Settings(", "bound method"):
        assert hidden not in page


def test_study_whose_report_could_not_be_built_is_seen_everywhere(world: World) -> None:
    accepted = world.receive(1)
    study_id = accepted.study_id
    world.judge(accepted.instance_id, 0.94)
    job_id = world.break_report(study_id)
    client = world.client()
    (line,) = client.get("/api/v1/studies?state=failed").json()["items"]
    assert (line["state"], line["failed_job_id"], line["answer"]) == ("failed", str(job_id), "present")
    said = "its report could not be built, so no PACS has this answer; an administrator can run it again."
    for page in (client.get("/?view=undelivered").text, client.get(f"/studies/{study_id}").text):
        assert said in page
        assert "secret traceback" not in page
    assert "Not built" in client.get("/").text
    assert "pneumonia suspected, not built" in client.get(f"/studies/{study_id}").text
    metrics = client.get("/metrics").text
    assert 'pacs_node_studies{state="failed"} 1.0' in metrics
    assert 'pacs_node_studies{state="held"} 0.0' in metrics
    assert "pacs_node_oldest_unreported_seconds 0.0" in metrics


def test_worklist_groups_urgent_first_and_views_count(small_world: World) -> None:
    small_world.suspected()
    urgent = small_world.receive(2, priority=1)
    page = small_world.client().get("/").text
    assert page.index("Urgent") < page.index(str(urgent.study_id)) < page.index("highest probability first")
    assert small_world.client().get("/?view=positive").text.count('class="study"') == 1


def test_empty_worklist_explains_itself(small_world: World) -> None:
    assert "Nothing has been received yet." in small_world.client().get("/").text


def test_page_search_posts_and_finds_a_name_as_people_write_it(small_world: World) -> None:
    study_id = small_world.suspected(number=42)
    client = small_world.client()
    for typed in ("demo42+drawn", "SYN-42", "A-42"):
        assert str(study_id) in client.post("/", content=f"q={typed}", headers=FORM).text, typed
    assert "No study has this name" in client.post("/", content="q=nobody", headers=FORM).text


def test_study_page_shows_answer_reasons_and_report(world: World) -> None:
    study_id = world.suspected()
    page = world.client().get(f"/studies/{study_id}").text
    for words in (
        "Pneumonia suspected",
        "0.94",
        "threshold 0.50",
        "The view is not stated.",
        "because the view is lateral",
        "main stored the report.",
        "DICOM Structured Report",
    ):
        assert words in page, words
    assert Action.STUDY_VIEWED in world.actions()


def test_study_page_takes_an_answer_without_script(small_world: World) -> None:
    study_id = small_world.suspected()
    client = small_world.client()
    said = client.post(f"/studies/{study_id}/reviews", content="verdict=agree&reviewer=R&comment=", headers=FORM)
    assert said.history[0].status_code == 303
    assert "<b>Agree</b> saved for DEMO1 Drawn, A-1." in said.text


def test_page_escapes_what_a_modality_sent(small_world: World) -> None:
    evil = "<script>alert(1)</script>"
    accepted = small_world.receive(1, patient_name=evil, study_description=evil, patient_id='"><img src=x>')
    client = small_world.client()
    for address in ("/", f"/studies/{accepted.study_id}"):
        page = client.get(address).text
        assert evil not in page
        assert "<img src=x>" not in page
        assert "&lt;script&gt;" in page


def test_pages_hold_no_inline_script_or_style(small_world: World) -> None:
    study_id = small_world.suspected()
    client = small_world.client()
    for address in ("/", f"/studies/{study_id}", "/docs", "/redoc"):
        page = client.get(address)
        assert "<script>" not in page.text
        assert " style=" not in page.text
        assert "script-src 'self';" in page.headers["content-security-policy"]
        assert "//" not in page.text.replace("<!doctype html>", ""), "nothing is fetched from another machine"


@pytest.mark.parametrize(
    "file", ["static/page.css", "static/worklist.js", "reference/swagger-ui-bundle.js", "reference/redoc.standalone.js"]
)
def test_files_of_the_pages_are_served_here(small_world: World, file: str) -> None:
    answer = small_world.client().get(f"/{file}")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-cache"
