"""Server-sent events over a real server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from uuid import UUID

import httpx

from db.engine import db_now, make_engine, session_scope
from pacs_node.settings import NodeSettings, Settings
from pacs_node.settings.web import WebSettings
from tests.records import add_image
from tests.web_world import free_port, serving


def test_page_hears_of_a_new_study(tmp_path: Path, migrated_sqlite: Path) -> None:
    settings = Settings(node=NodeSettings(data_dir=tmp_path), web=WebSettings(port=free_port(), authentication="off"))
    path = settings.database_url.removeprefix("sqlite:///")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(migrated_sqlite, path)
    with serving(settings) as url, httpx.stream("GET", f"{url}/api/v1/events", timeout=60) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = stream.iter_lines()
        assert next(lines) == "retry: 3000"
        study_id = _receive(settings.database_url)
        event = _next_event(lines)
        assert (event["event"], json.loads(event["data"])["study_id"]) == ("study", str(study_id))
        assert event["id"]


def _receive(url: str) -> UUID:
    engine = make_engine(url)
    with session_scope(engine) as session:
        accepted = add_image(session, now=db_now(session))
    engine.dispose()
    return accepted.study_id


def _next_event(lines: object) -> dict[str, str]:
    event: dict[str, str] = {}
    for line in lines:  # type: ignore[attr-defined]
        if line:
            name, _, value = line.partition(": ")
            event[name] = value
        elif event and event.get("event") != "heartbeat":
            return event
        else:
            event = {}
    raise AssertionError("the stream ended")
