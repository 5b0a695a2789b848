"""Training data from the page: made in the background, audited before it can be taken, downloaded as a ZIP."""

from __future__ import annotations

import io
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from db.audit import Action
from db.tables import Role
from pacs_node.settings import DatabaseSettings, NodeSettings, PredictSettings, Settings
from pacs_node.settings.web import WebSettings
from pacs_node.web.training_export import zipped
from tests.builders import as_bytes, make_radiograph
from tests.web_world import FORM, World, make_world

ADDRESS = "/api/v1/exports/training"
PATIENCE_S = 240


@pytest.fixture
def own_world(sqlite_engine: Engine, tmp_path: Path, models_folder: Path) -> World:
    """A node whose settings name its database, as the process of the export opens it."""
    settings = Settings(
        node=NodeSettings(data_dir=tmp_path / "var"),
        database=DatabaseSettings(url=str(sqlite_engine.url)),
        web=WebSettings(authentication="off"),
        predict=PredictSettings(is_preloaded=False),
    )
    return make_world(sqlite_engine, tmp_path / "var", models_folder, settings=settings)


def ended(client: TestClient) -> Any:
    """Return where the export stands once it is no longer made."""
    deadline = time.monotonic() + PATIENCE_S
    while (found := client.get(ADDRESS).json())["state"] == "running":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


def test_reviewed_study_becomes_a_zip_that_is_audited(own_world: World) -> None:
    client = own_world.client()
    assert client.get(ADDRESS).json() == {"state": "none", "name": "", "said": []}
    assert client.get(f"{ADDRESS}/file").status_code == 404
    study_id = own_world.suspected(1, data=as_bytes(make_radiograph(patient_name="SECRET^NAME")))
    client.post(f"/studies/{study_id}/reviews", content="answer=agree:&reviewer=R", headers=FORM)
    begun = client.post(ADDRESS, json={"accept_unstated": True})
    assert (begun.status_code, begun.json()["state"]) == (202, "running")
    assert client.post(ADDRESS, json={}).status_code == 409
    found = ended(client)
    assert found["state"] == "ready", found
    assert found["said"][0] == "1 images of 1 patients (1 PNEUMONIA)"
    (event,) = own_world.audited(Action.REVIEWS_EXPORTED)
    assert (event.details["images"], event.actor, event.details["from"]) == (1, "web", "testclient")
    got = client.get(f"{ADDRESS}/file")
    assert got.headers["content-disposition"] == f'attachment; filename="{found["name"]}.zip"'
    assert b"SECRET" not in got.content
    with zipfile.ZipFile(io.BytesIO(got.content)) as archive:
        assert archive.testzip() is None
        names = [name.partition("/")[2] for name in archive.namelist()]
        assert sorted(name.partition("/")[0] for name in names) == ["excluded.csv", "images", "manifest.csv"]
    assert own_world.audited(Action.REVIEWS_EXPORTED)[-1].details["downloaded"] == found["name"]
    page = client.get("/admin").text
    assert f"{found['name']} is ready." in page


def test_export_that_fails_says_why(own_world: World) -> None:
    exports = own_world.settings.node.data_dir / "exports"
    exports.parent.mkdir(parents=True, exist_ok=True)
    exports.write_text("in the way")
    client = own_world.client()
    client.post(ADDRESS, json={})
    found = ended(client)
    assert found["state"] == "failed"
    assert "The disk refused: File exists." in found["said"][0]
    assert "The export was not made. The disk refused" in client.get("/admin").text


def test_export_is_for_administrators(sqlite_engine: Engine, tmp_path: Path, models_folder: Path) -> None:
    world = make_world(sqlite_engine, tmp_path / "var", models_folder, WebSettings())
    reader = world.logged_in("reader", Role.RADIOLOGIST)
    assert [reader.post(ADDRESS, json={}).status_code, reader.get(f"{ADDRESS}/file").status_code] == [403, 403]


def test_zip_holds_the_folder_and_is_the_same_each_time(tmp_path: Path) -> None:
    (tmp_path / "made" / "images").mkdir(parents=True)
    (tmp_path / "made" / "images" / "1.dcm").write_bytes(bytes(3_000_000))
    (tmp_path / "made" / "manifest.csv").write_text("path\n")
    first, second = (b"".join(zipped(tmp_path / "made")) for _ in range(2))
    assert first == second
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        assert archive.namelist() == ["made/images/1.dcm", "made/manifest.csv"]
        assert len(archive.read("made/images/1.dcm")) == 3_000_000
