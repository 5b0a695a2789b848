"""The pages as the server renders them: every state in words, nothing of a patient where it does not belong."""

from __future__ import annotations

import html
import re
import socket
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from uuid import UUID

import pytest
from pydantic import ValidationError
from sqlalchemy import Engine, update

from db import facts
from db.audit import Action
from db.engine import db_now, read_scope, session_scope
from db.tables import DeliveryState, Instance, Role, Verdict, rows_of
from pacs_node.settings import Settings
from pacs_node.settings.delivery import DestinationSettings
from pacs_node.settings.web import GroupSettings, WebSettings
from pacs_node.web.context import Web
from pacs_node.web.reading import Shown, study_view
from pacs_node.web.routes import administration, pages
from pacs_node.web.routes.administration import Disk
from tests.records import NOON
from tests.web_world import FORM, LATERAL, World, make_world


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


def test_urgent_study_stays_on_the_page_however_many_came_after_it(
    small_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "ROWS", 2)
    monkeypatch.setattr(pages, "GROUP_ROWS", 2)
    urgent = small_world.receive(1, priority=1, minutes_ago=600)
    small_world.judge(urgent.instance_id, 0.97)
    small_world.report(urgent.study_id, DeliveryState.FAILED)
    for number in range(2, 7):
        calm = small_world.receive(number)
        small_world.judge(calm.instance_id, 0.1)
        small_world.report(calm.study_id)
    client = small_world.client()
    for view in ("open", "positive", "undelivered", "all"):
        page = client.get(f"/?view={view}").text
        assert str(urgent.study_id) in page, view
        views = dict(re.findall(r'href="/\?view=(\w+)"[^>]*>[^<]*<span class="num">(\d+)', page))
        assert views == {"open": "6", "positive": "1", "silent": "0", "undelivered": "1", "all": "6"}, view
        assert "6 to read, longest wait 10 h. 0 answered." in page
    page = client.get("/").text
    assert page.count('class="study"') == 3
    assert '<a href="/?view=open&amp;group=negative">and 3 more; here stand the first and the newest</a>' in page
    address, seen = "/?view=open&group=negative", set()
    while address:
        page = client.get(address).text
        seen |= set(re.findall(r'data-id="([^"]+)"', page))
        following = re.search(r'href="([^"]+)">More of this group', page)
        address = html.unescape(following[1]) if following else ""
    assert len(seen) == 5
    assert str(urgent.study_id) not in seen


def test_study_of_which_a_reader_is_unsure_stays_to_be_read(small_world: World) -> None:
    study_id, client = small_world.suspected(), small_world.client()
    client.post(f"/studies/{study_id}/reviews", content="answer=unsure:&reviewer=Anna", headers=FORM)
    page = client.get("/").text
    assert "Needs another reader" in page
    assert re.search(r"Unsure:</b> Anna, \d\d:\d\d\.", page)
    assert client.get("/api/v1/studies?reviewed=false").json()["items"][0]["needs_reader"] is True


def test_empty_worklist_explains_itself(small_world: World) -> None:
    assert "Nothing has been received yet." in small_world.client().get("/").text


def test_page_search_posts_and_finds_a_name_as_people_write_it(small_world: World) -> None:
    study_id = small_world.suspected(number=42)
    client = small_world.client()
    for typed in ("demo42+drawn", "SYN-42", "A-42"):
        assert str(study_id) in client.post("/", content=f"q={typed}", headers=FORM).text, typed
    assert "No study has this name" in client.post("/", content="q=nobody", headers=FORM).text


def test_worklist_is_narrowed_to_what_was_not_delivered_and_to_a_warning(small_world: World) -> None:
    failed, warned, plain = small_world.suspected(1), small_world.suspected(2), small_world.receive(3).study_id
    small_world.break_delivery(failed)

    def shown(query: str) -> set[str]:
        return set(re.findall('data-id="([^"]+)"', small_world.client().get(f"/?{query}").text))

    assert shown("view=all") == {str(failed), str(warned), str(plain)}
    assert shown("view=all&delivery=failed") == {str(failed)}
    assert shown("view=undelivered&delivery=failed") == {str(failed)}
    assert shown("view=all&warning=view_unknown") == {str(failed), str(warned)}
    assert small_world.client().get("/?warning=nonsense").status_code == 422
    page = small_world.client().get("/?view=all&delivery=failed&warning=view_unknown").text
    assert "warning=view_unknown&amp;undelivered=true" in page, "the file holds what the list does"
    listed = small_world.client().get("/api/v1/studies?undelivered=true").json()["items"]
    assert [study["study_id"] for study in listed] == [str(failed)]


def test_search_says_that_it_shows_a_part(small_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "ROWS", 2)
    for number in range(1, 4):
        small_world.receive(number)
    found = small_world.client().post("/", content="q=drawn", headers=FORM).text
    assert "The first 2 of more studies" in found
    monkeypatch.setattr(pages, "ROWS", 3)
    assert "3 studies found." in small_world.client().post("/", content="q=drawn", headers=FORM).text


def test_study_whose_result_was_withdrawn_says_so(small_world: World) -> None:
    study_id = small_world.suspected(1)
    page = small_world.client().get(f"/studies/{study_id}").text
    assert "do not rely on this result" not in page
    with session_scope(small_world.engine) as session:
        [report] = facts.study_detail(session, study_id).reports
        facts.withdraw_report(session, report.report_id, code="113001", actor="admin", now=NOON)
    assert "do not rely on this result" in small_world.client().get(f"/studies/{study_id}").text
    [said] = small_world.client().get(f"/api/v1/studies/{study_id}").json()["reports"]
    assert said["withdrawn_at"]


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
        "Trained on",
        "DICOM Structured Report",
    ):
        assert words in page, words
    assert Action.STUDY_VIEWED in world.actions()


def test_study_page_takes_an_answer_without_script(small_world: World) -> None:
    study_id = small_world.suspected()
    client = small_world.client()
    said = client.post(f"/studies/{study_id}/reviews", content="answer=agree:&reviewer=R&comment=seen", headers=FORM)
    assert said.history[0].status_code == 303
    assert "Your answer is saved." in said.text
    assert "<b>Agree</b>, R," in said.text
    other = client.post(f"/studies/{study_id}/reviews", content="answer=disagree:normal&reviewer=S", headers=FORM)
    assert other.status_code == 428, "another reader's verdict stands and this form does not say that it was seen"


@pytest.mark.parametrize(
    ("probability", "pressed", "kept"),
    [
        (None, "disagree:pneumonia", "pneumonia"),
        (None, "disagree:normal", "other"),
        (0.94, "disagree:normal", "other"),
        (0.05, "disagree:pneumonia", "pneumonia"),
    ],
)
def test_other_finding_takes_the_place_of_none_and_never_of_pneumonia(
    small_world: World, probability: float | None, pressed: str, kept: str
) -> None:
    received, client = small_world.receive(1), small_world.client()
    small_world.judge(received.instance_id, probability, [] if probability else [LATERAL])
    small_world.report(received.study_id)
    form = f"answer={pressed}&finding=other&reviewer=R"
    client.post(f"/studies/{received.study_id}/reviews", content=form, headers=FORM)
    (review,) = client.get(f"/api/v1/studies/{received.study_id}/reviews").json()["history"]
    assert review["corrected_finding"] == kept


def test_enter_in_the_comment_is_no_answer_without_script(small_world: World) -> None:
    study_id, client = small_world.suspected(), small_world.client()
    form = client.get(f"/studies/{study_id}").text.partition('<form class="say"')[2]
    first = next(tag for tag in re.findall(r"<button[^>]*>", form) if 'type="button"' not in tag)
    assert "name=" not in first, "a browser presses the first button"
    client.post(f"/studies/{study_id}/reviews", content="reviewer=R&comment=seen&finding=other", headers=FORM)
    (review,) = client.get(f"/api/v1/studies/{study_id}/reviews").json()["history"]
    assert (review["verdict"], review["corrected_finding"]) == ("comment", None)


def test_page_that_asks_by_itself_is_no_readers_view(small_world: World) -> None:
    study_id, client = small_world.suspected(), small_world.client()
    for headers in ({"X-Background": "1"}, {"X-Background": "1"}, {}):
        client.get(f"/studies/{study_id}", headers=headers)
    noted = [event.details["what"] for event in small_world.audited(Action.STUDY_VIEWED)]
    assert noted == ["page, in the background", "page"], "what left the node is told, and what a reader opened"


def test_page_over_which_a_report_came_takes_no_answer(small_world: World) -> None:
    study_id = small_world.suspected()
    with read_scope(small_world.engine) as session:
        before, now = facts.study_detail(session, study_id), db_now(session)
    small_world.judge(before.images[0].instance_id, 0.05, model_version="1.0.1")
    small_world.report(study_id)
    with read_scope(small_world.engine) as session:
        after, reviews = facts.study_detail(session, study_id), facts.review_state(session, study_id)
    tags = [study_view(study, reviews, [], Shown(), now=now).tag for study in (before, after)]
    assert tags[1] == reviews.tag
    review = {"study_id": str(study_id), "verdict": "agree", "reviewer": "Dr R. Reader"}
    answer = small_world.client().post("/api/v1/reviews", json=review, headers={"If-Match": f'"{tags[0]}"'})
    assert answer.status_code == 412


def test_study_page_offers_what_fits_the_answer(small_world: World) -> None:
    suspected, silent = small_world.suspected(1), small_world.receive(2)
    small_world.judge(silent.instance_id, None, [LATERAL])
    small_world.report(silent.study_id)
    client = small_world.client()
    keys = [re.findall(r'data-say="(.)"', client.get(f"/studies/{i}").text) for i in (suspected, silent.study_id)]
    assert keys == [["A", "D", "U", "P", "N", "U"], ["P", "N", "U"]], "the last three while the answer is hidden"


def test_study_page_shows_the_past_of_the_same_patient_beside_it(small_world: World) -> None:
    past = {"patient_id": "SYN-7", "issuer_of_patient_id": "here"}
    early = small_world.suspected(1, **past, study_date=date(2026, 1, 5))
    elsewhere = small_world.suspected(2, **past | {"issuer_of_patient_id": "there"}, study_date=date(2026, 1, 6))
    now = small_world.suspected(3, **past, study_date=date(2026, 3, 5))
    page = small_world.client().get(f"/studies/{now}?beside={early}").text
    assert "EARLIER, 2026-01-05" in page
    assert "pneumonia suspected, 0.94 by version 1.0.0; not reviewed" in page
    assert f"beside={elsewhere}" not in page, "the same number of another issuer is another patient"
    assert len(small_world.audited(Action.STUDY_VIEWED)) == 2
    assert "EARLIER" not in small_world.client().get(f"/studies/{early}").text


def test_hospital_viewer_is_a_link_without_patient_attributes(
    sqlite_engine: Engine, tmp_path: Path, models_folder: Path
) -> None:
    viewer = WebSettings(authentication="off", viewer_url="https://viewer.example.org/?s={study_instance_uid}")
    world = make_world(sqlite_engine, tmp_path / "var", models_folder, viewer)
    study_id = world.suspected(4)
    assert 'href="https://viewer.example.org/?s=1.2.4"' in world.client().get(f"/studies/{study_id}").text


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)//{study_instance_uid}", "https://v/?p={patient_id}", "https://v/"]
)
def test_viewer_address_that_says_more_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="viewer_url"):
        WebSettings(viewer_url=url)


def test_quality_page_adds_up_and_gives_no_share_of_few(small_world: World) -> None:
    study_id = small_world.suspected(1)
    failed, silent = small_world.receive(2), small_world.receive(3)
    small_world.fail(failed.instance_id)
    small_world.judge(silent.instance_id, None, [LATERAL])
    for accepted in (failed, silent):
        small_world.report(accepted.study_id)
    small_world.receive(4)
    client = small_world.client()
    client.post(f"/studies/{study_id}/reviews", content="answer=agree:&reviewer=R", headers=FORM)
    page = client.get("/quality").text
    assert page.count("The counts add up.") == 2
    assert "1 of 1, too few to give a share" in page
    assert "too few to give a share" in page
    assert "The view is lateral" in page or "not frontal" in page
    assert "DEMO1" not in page


def test_counts_of_quality_lead_to_the_studies_that_they_count(small_world: World) -> None:
    analysed, undelivered, waiting = (
        small_world.suspected(1),
        small_world.suspected(2),
        small_world.receive(3).study_id,
    )
    small_world.break_delivery(undelivered)
    silent, failed = small_world.receive(4), small_world.receive(5)
    small_world.judge(silent.instance_id, None, [LATERAL])
    small_world.fail(failed.instance_id)
    for accepted in (silent, failed):
        small_world.report(accepted.study_id)
    client = small_world.client()
    page = html.unescape(client.get("/quality?period=12w").text)
    expected = {
        "end=analysed": {analysed, undelivered},
        "end=not_analysed": {silent.study_id},
        "end=failed": {failed.study_id},
        "end=waiting": {waiting},
        "view=undelivered": {undelivered},
    }
    links = re.findall(r'<a href="(/\?[^"]+)" aria-label="(\d+) ', page)
    assert len(links) == len(expected)
    for (address, count), (asked, studies) in zip(links, expected.items(), strict=True):
        assert asked in address
        shown = set(re.findall('data-id="([^"]+)"', client.get(address).text))
        assert (shown, int(count)) == ({str(one) for one in studies}, len(studies)), address


def test_quality_numbers_are_a_file_that_is_audited(small_world: World) -> None:
    study_id, client = small_world.suspected(1), small_world.client()
    client.post(f"/studies/{study_id}/reviews", content="answer=agree:&reviewer=R", headers=FORM)
    assert 'href="/api/v1/quality/numbers?period=30d&amp;sender="' in client.get("/quality").text
    heads, first, *rest = client.get("/api/v1/quality/numbers?period=30d&sender=").text.splitlines()
    assert heads.startswith("grouped_by,group,both_yes,model_only,reader_only,both_no,predictive_value,")
    assert first == "All,all readings,1,0,0,0,,,,,,", "one reading gives no share"
    assert "View,not known,1,0,0,0,,,,,," in rest
    assert small_world.audited(Action.LIST_EXPORTED)[-1].details["list"] == "numbers"


def test_admin_page_shows_what_needs_a_person_and_no_patient(
    small_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    accepted = small_world.receive(1)
    small_world.judge(accepted.instance_id, 0.94)
    job_id = small_world.break_report(accepted.study_id)
    client = small_world.client()
    page = client.get("/admin").text
    assert "1 failed job" in page
    assert f'data-retry="{job_id}"' in page
    for hidden in ("DEMO1", "SYN-1", "A-1<"):
        assert hidden not in page
    monkeypatch.setattr(administration, "FAILED_SHOWN", 1)
    other = small_world.receive(2)
    assert re.search(r"Queue: 1 image, 3\d\d s old", client.get("/admin").text)
    small_world.judge(other.instance_id, 0.94)
    small_world.break_report(other.study_id)
    page = client.get("/admin").text
    assert "2 failed jobs" in page
    assert "Shown are 1 of 2." in page
    assert "Queue: no image waits" in page
    assert client.post("/api/v1/audit/verify").json()["unbroken"] is True
    assert client.post("/api/v1/destinations/nobody/echo").status_code == 404


def test_study_and_its_reviews_are_of_one_instant(small_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    study_id, client, note_view = small_world.suspected(), small_world.client(), Web.note_view

    def answer_meanwhile(web: Web, viewed: UUID, what: str) -> None:
        note_view(web, viewed, what)
        with session_scope(small_world.engine) as session:
            facts.add_review(session, viewed, verdict=Verdict.AGREE, comment="", reviewer="Late Reader", now=NOON)

    monkeypatch.setattr(Web, "note_view", answer_meanwhile)
    assert "Late Reader" not in client.get(f"/studies/{study_id}").text
    assert "Late Reader" in client.get(f"/studies/{study_id}").text


def test_echo_waits_as_long_as_the_settings_say(sqlite_engine: Engine, tmp_path: Path, models_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        pacs = DestinationSettings(name="main", ae_title="PACS", host="127.0.0.1", port=silent.getsockname()[1])
        settings = Settings(
            node={"data_dir": tmp_path / "var"},
            web=WebSettings(authentication="off"),
            predict={"is_preloaded": False},
            delivery={"connect_timeout_s": 0.3},
            destinations=(pacs,),
        )
        client = make_world(sqlite_engine, tmp_path / "var", models_folder, settings=settings).client()
        began = time.monotonic()
        assert client.post("/api/v1/destinations/main/echo").json()["state"] == "silent"
        assert time.monotonic() - began < 5


def test_shelf_names_views_and_shows_the_images_that_are_still_here(small_world: World) -> None:
    study_id, instances = small_world.suspected(), rows_of(Instance)
    with session_scope(small_world.engine) as session:
        first, second = (image.instance_id for image in facts.study_detail(session, study_id).images)
        session.execute(update(instances).where(instances.c.id == first).values(view="PA", gone_at=NOON))
    page = small_world.client().get(f"/studies/{study_id}").text
    assert "Image 1, PA<br>" in page
    assert "Image 2<br>" in page
    assert f"/instances/{first}/image?size=160" not in page
    assert f"/instances/{second}/image?size=160" in page


def test_admin_page_says_how_destinations_take_their_reports(
    sqlite_engine: Engine, tmp_path: Path, models_folder: Path
) -> None:
    pacs = DestinationSettings(name="main", ae_title="PACS", host="127.0.0.1", port=104)
    settings = Settings(
        node={"data_dir": tmp_path / "var"},
        web=WebSettings(authentication="off"),
        predict={"is_preloaded": False},
        destinations=(pacs,),
    )
    world = make_world(sqlite_engine, tmp_path / "var", models_folder, settings=settings)
    assert "nothing sent yet" in world.client().get("/admin").text
    study_id = world.suspected(1)
    assert "takes reports" in world.client().get("/admin").text
    world.break_delivery(study_id)
    assert "✕ 1 failed" in world.client().get("/admin").text


def test_disk_is_said_to_last_for_what_came_lately() -> None:
    disk = Disk(used_gb=370, free_gb=100, size_gb=500, floor_gb=20, daily_gb=2)
    assert disk.days_left == 40
    assert replace(disk, free_gb=19).days_left == 0
    assert replace(disk, daily_gb=0.02).days_left is None
    assert replace(disk, daily_gb=0).days_left is None


def test_admin_page_names_held_studies(small_world: World) -> None:
    small_world.receive(1)
    client = small_world.client()
    assert "Nothing waits for a person." in client.get("/admin").text
    other = small_world.receive(2, study="1.2.1", patient_id="SYN-OTHER")
    assert other.hold is not None
    page = client.get("/admin").text
    assert "1 held study" in page
    assert "studies list --state held" in page


def test_pages_are_for_those_who_may_see_them(sqlite_engine: Engine, tmp_path: Path, models_folder: Path) -> None:
    world = make_world(sqlite_engine, tmp_path / "var", models_folder, WebSettings())
    reader, program = world.logged_in("reader", Role.RADIOLOGIST), world.with_token("program", Role.SERVICE)
    assert reader.get("/quality").status_code == 200
    refused = reader.get("/admin")
    assert refused.status_code == 403
    assert "role admin" in refused.text
    assert 'href="/admin"' not in reader.get("/").text
    assert program.get("/quality").status_code == 403
    assert world.client().get("/quality", follow_redirects=False).status_code in (303, 401)


def test_pages_offer_what_the_caller_may_do_and_nothing_else(
    sqlite_engine: Engine, tmp_path: Path, models_folder: Path
) -> None:
    world = make_world(sqlite_engine, tmp_path, models_folder, WebSettings())
    study = f"/studies/{world.suspected(1)}"
    reader, keeper = world.logged_in("anna", Role.RADIOLOGIST), world.logged_in("olga", Role.ADMIN)
    assert ('name="answer"' in reader.get(study).text, 'name="answer"' in keeper.get(study).text) == (True, False)
    assert "Radiologists answer studies" in keeper.get(study).text
    listed = [client.get("/").text for client in (reader, keeper)]
    assert ["data-batch" in page for page in listed] == [False, True]
    assert ['type="checkbox" aria-label="Choose' in page for page in listed] == [False, True]
    assert [re.findall('data-key="(.)"', page) for page in listed] == [["w", "q"], ["w", "q", "a"]]


def test_pages_and_counts_show_a_group_its_own_senders_alone(
    sqlite_engine: Engine, tmp_path: Path, models_folder: Path
) -> None:
    groups = (GroupSettings(name="ward", senders=("CR_ROOM_1",)),)
    world = make_world(sqlite_engine, tmp_path / "var", models_folder, WebSettings(groups=groups))
    own, other = world.suspected(1), world.suspected(2, calling_ae_title="CR_ROOM_2")
    reader = world.logged_in("reader", Role.RADIOLOGIST, groups=["ward"])
    page = reader.get("/?view=all").text
    assert str(own) in page
    assert str(other) not in page
    assert "CR_ROOM_2" not in page
    assert reader.get(f"/studies/{other}").status_code == 404
    assert "CR_ROOM_2" not in reader.get("/quality").text


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
    for address in ("/", f"/studies/{study_id}", "/quality", "/admin", "/docs", "/redoc"):
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
