"""Which model answers, changed over HTTP: as by the command, with its checks, and in the trail."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
from PIL import Image
from sqlalchemy import Engine

from db.audit import Action
from db.tables import Role
from models.card import CARD_FILE
from models.registry import Registry
from pacs_node import rollout
from pacs_node.settings import NodeSettings, PredictSettings, Settings
from pacs_node.settings.web import WebSettings
from tests.builders import make_bundle
from tests.web_world import PROBLEM, World, make_world

OLD, NEW = {"name": "drawn", "version": "0.0.1"}, {"name": "drawn", "version": "0.0.2"}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    make_bundle(folder, version="0.0.1", seed=1)
    make_bundle(folder, version="0.0.2", seed=2)
    return folder


@pytest.fixture
def node(sqlite_engine: Engine, tmp_path: Path, bundles: Path) -> World:
    """A node with logins and two versions of its own on disk, of which 0.0.1 answers."""
    shutil.copytree(bundles, tmp_path / "models")
    settings = Settings(
        node=NodeSettings(data_dir=tmp_path / "var"),
        web=WebSettings(),
        predict=PredictSettings(is_preloaded=False),
    )
    return make_world(sqlite_engine, tmp_path / "var", tmp_path / "models", settings=settings)


def test_administrator_lets_another_version_answer_and_goes_back(node: World) -> None:
    admin = node.logged_in("ada", Role.ADMIN)
    changed = admin.post("/api/v1/models/drawn/0.0.2/activate")
    assert (changed.status_code, changed.json()) == (200, {"active": NEW, "before": OLD})
    assert "Model drawn 0.0.2" in admin.get("/admin").text, "the page's foot follows at once"
    assert admin.post("/api/v1/models/rollback", json={}).json() == {"active": OLD, "before": NEW}
    assert [one["version"] for one in admin.get("/api/v1/models?state=active").json()["items"]] == ["0.0.1"]
    for action, version in ((Action.MODEL_ACTIVATED, "0.0.2"), (Action.MODEL_ROLLED_BACK, "0.0.1")):
        told = node.audited(action)[-1]
        assert (told.actor, told.details["version"], told.details["from"]) == ("user:ada", version, "192.0.2.7")


def test_going_back_is_to_the_version_that_the_administrator_saw(node: World) -> None:
    admin = node.logged_in("ada", Role.ADMIN)
    assert admin.post("/api/v1/models/rollback", json={}).status_code == 409, "no other version ever answered"
    admin.post("/api/v1/models/drawn/0.0.2/activate")
    refused = admin.post("/api/v1/models/rollback", json={"to": NEW})
    assert (refused.status_code, refused.headers["content-type"]) == (409, PROBLEM)
    assert "drawn 0.0.1" in refused.json()["detail"]
    assert admin.post("/api/v1/models/rollback", json={"to": OLD}).status_code == 200


def test_version_that_is_not_sound_never_answers(node: World, tmp_path: Path) -> None:
    admin = node.logged_in("ada", Role.ADMIN)
    assert admin.post("/api/v1/models/drawn/9.9.9/activate").status_code == 404
    with (tmp_path / "models/drawn/0.0.2/weights.safetensors").open("r+b") as weights:
        weights.seek(5_000_000)
        weights.write(b"tampered")
    refused = admin.post("/api/v1/models/drawn/0.0.2/activate")
    assert (refused.status_code, refused.headers["content-type"]) == (409, PROBLEM)
    assert "sha256" in refused.json()["detail"]
    assert [one["version"] for one in admin.get("/api/v1/models?state=active").json()["items"]] == ["0.0.1"]


def test_version_of_the_books_is_not_replaced_by_another_content(node: World, tmp_path: Path) -> None:
    admin = node.logged_in("ada", Role.ADMIN)
    assert admin.post("/api/v1/models/drawn/0.0.2/activate").status_code == 200
    assert admin.post("/api/v1/models/rollback", json={}).status_code == 200
    shutil.rmtree(tmp_path / "models/drawn/0.0.2")
    make_bundle(tmp_path / "models", version="0.0.2", seed=3)
    refused = admin.post("/api/v1/models/drawn/0.0.2/activate")
    assert (refused.status_code, "other weights" in refused.text) == (409, True)


def test_version_whose_files_are_gone_can_be_replaced(node: World, tmp_path: Path) -> None:
    (tmp_path / "models/drawn/0.0.1" / CARD_FILE).unlink()
    admin = node.logged_in("ada", Role.ADMIN)
    assert "gone from disk" in admin.get("/admin").text
    assert admin.post("/api/v1/models/drawn/0.0.2/activate").json() == {"active": NEW, "before": OLD}


@pytest.mark.parametrize("path", ["drawn/0.0.2/activate", "rollback"])
def test_nobody_else_changes_which_version_answers(node: World, path: str) -> None:
    reader, program = node.logged_in("rita", Role.RADIOLOGIST), node.with_token("script", Role.SERVICE)
    for client in (reader, program):
        assert client.post(f"/api/v1/models/{path}", json={}).status_code == 403
    assert node.client().post(f"/api/v1/models/{path}", json={}).status_code == 401
    forged = node.logged_in("ada", Role.ADMIN)
    assert forged.post(f"/api/v1/models/{path}", json={}, headers={"X-CSRF-Token": "0" * 64}).status_code == 403
    assert node.audited(Action.MODEL_ROLLED_BACK) == []
    assert [one.details["version"] for one in node.audited(Action.MODEL_ACTIVATED)] == ["0.0.1"]


@pytest.mark.parametrize(
    "path", ["<script>/1.2.3", "%2e%2e/%2e%2e", "a%00b/1.2.3", "drawn/0.0.2%0A", f"{'a' * 65}/1.2.3", "x/1.2"]
)
@pytest.mark.parametrize("what", ["activate", "recall"])
def test_what_no_model_is_called_is_refused_and_not_quoted(node: World, path: str, what: str) -> None:
    refused = node.logged_in("ada", Role.ADMIN).post(f"/api/v1/models/{path}/{what}", json={})
    assert (refused.status_code, refused.headers["content-type"]) == (422, PROBLEM)
    assert "script" not in refused.text
    assert "a" * 65 not in refused.text


def test_page_offers_what_can_be_done_with_each_version(node: World) -> None:
    admin = node.logged_in("ada", Role.ADMIN)
    page = admin.get("/admin").text
    assert 'data-activate="drawn/0.0.2"' in page
    assert 'data-ages="1 to 5 years"' in page
    assert 'data-activate="drawn/0.0.1"' not in page, "it answers already"
    admin.post("/api/v1/models/drawn/0.0.2/activate")
    page = admin.get("/admin").text
    assert 'data-rollback="drawn/0.0.1"' in page
    assert 'data-recall="drawn/0.0.1"' in page
    assert 'data-recall="drawn/0.0.2"' not in page, "first another one has to answer"
    assert admin.post("/api/v1/models/drawn/0.0.1/recall", json={"dry_run": False}).status_code == 200
    page = admin.get("/admin").text
    assert "recalled" in page
    assert 'data-rollback="drawn/0.0.1"' not in page
    assert 'data-activate="drawn/0.0.1"' in page


def test_stranger_learns_no_path_from_a_model_that_does_not_load(node: World, tmp_path: Path) -> None:
    (tmp_path / "models/drawn/0.0.1/weights.safetensors").write_bytes(b"")
    picture = io.BytesIO()
    Image.new("L", (300, 300)).save(picture, "PNG")
    refused = node.client_at("127.0.0.1").post("/predict", files={"file": ("x.png", picture.getvalue())})
    assert (refused.status_code, refused.headers["content-type"]) == (503, PROBLEM)
    assert int(refused.headers["retry-after"]) > 0
    assert str(tmp_path) not in refused.text


def test_versions_on_disk_are_known_before_they_are_in_the_books(node: World, tmp_path: Path) -> None:
    known = rollout.known_versions(node.engine, Registry([tmp_path / "models"]))
    assert [(one.version, one.is_active, one.is_here, one.added_at is None) for one in known] == [
        ("0.0.1", True, True, False),
        ("0.0.2", False, True, True),
    ]
