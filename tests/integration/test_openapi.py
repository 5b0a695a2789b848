"""The OpenAPI document: it says what is true of every route, and no call that it allows makes the server fail."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import strategies
from PIL import Image
from schemathesis.checks import CHECKS, load_all_checks
from sqlalchemy import Engine

from pacs_node.settings import DatabaseSettings, NodeSettings, PredictSettings, Settings
from pacs_node.settings.web import WebSettings
from pacs_node.web.routes import events
from tests.builders import as_bytes, make_radiograph
from tests.web_world import BASE_URL, PROBLEM, World, make_world

CALLS = 4
"""For each operation; a longer hunt is made by hand, with the `schemathesis` command."""
AWAY = 503
"""Said of what is not there now: a model, a drawing process."""
TRUTHS = ("status_code_conformance", "content_type_conformance", "response_schema_conformance")
"""An answer has a status, a media type and a form that the document names."""
UPLOADS = {"/predict", "/predict/batch"}


@pytest.fixture
def open_world(
    sqlite_engine: Engine, sqlite_url: str, tmp_path: Path, models_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    """A node whose event streams end at once, and that takes any number of uploads."""
    monkeypatch.setattr(events, "LIFE_S", 0.0)
    schemathesis.openapi.format("binary", strategies.sampled_from(_files()))
    settings = Settings(
        node=NodeSettings(data_dir=tmp_path / "var"),
        database=DatabaseSettings(url=sqlite_url),
        web=WebSettings(authentication="off", predictions_per_minute=0),
        predict=PredictSettings(is_preloaded=False, decode_processes=1),
    )
    world = make_world(sqlite_engine, tmp_path, models_folder, settings=settings)
    world.suspected()
    yield world
    world.app.state.web.predictions.close()


def _files() -> list[bytes]:
    """Return what people upload: pictures, a DICOM object, and what is none of these."""
    kinds = []
    for kind in ("PNG", "JPEG", "GIF"):
        buffer = io.BytesIO()
        Image.new("L", (64, 48), 90).save(buffer, kind)
        kinds.append(buffer.getvalue())
    dicom = as_bytes(make_radiograph(seed=3, rows=96, columns=80))
    return [*kinds, dicom, dicom[:200], kinds[0][:40], b"", b"\x00" * 3000]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("is_upload", [False, True])
def test_the_document_is_true_and_no_call_of_it_is_a_server_error(open_world: World, is_upload: bool) -> None:
    load_all_checks()
    client = open_world.client()
    schema = schemathesis.openapi.from_dict(open_world.app.openapi())
    schema.config.generation.update(with_security_parameters=False)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 30
    assert {operation.path for operation in operations} >= UPLOADS | {"/api/v1/events"}
    for operation in operations:
        if (operation.path in UPLOADS) == is_upload:
            _try(client, operation)


def _try(client: TestClient, operation: Any) -> None:
    @hypothesis.settings(
        max_examples=CALLS,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy())
    def attempt(case: Any) -> None:
        sent = requests.Request(**_without(case.as_transport_kwargs(base_url=BASE_URL), "cookies")).prepare()
        answer = client.request(sent.method or "GET", sent.url or "", content=sent.body, headers=dict(sent.headers))
        assert answer.status_code < 500 or answer.status_code == AWAY, f"{case.method} {case.path}: {answer.text}"
        case.validate_response(answer, checks=[CHECKS.get_one(name) for name in TRUTHS])

    attempt()


def _without(given: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name not in names}


def operations_of(world: World) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give every operation of the document with its name."""
    for path, operations in world.app.openapi()["paths"].items():
        yield from ((f"{method} {path}", operation) for method, operation in operations.items())


def test_every_parameter_and_every_field_of_a_body_shows_what_it_looks_like(small_world: World) -> None:
    schemas = small_world.app.openapi()["components"]["schemas"]
    without = []
    for name, operation in operations_of(small_world):
        without += [f"{name} {one['name']}" for one in operation.get("parameters", []) if not _shows(one)]
        for body in operation.get("requestBody", {}).get("content", {}).values():
            form = schemas[body["schema"]["$ref"].rpartition("/")[2]] if "$ref" in body["schema"] else body["schema"]
            without += [f"{name} {field}" for field, one in form["properties"].items() if not _shows(one)]
    assert without == []


def _shows(told: dict[str, Any]) -> bool:
    """Tell whether there is an example, or a type that leaves nothing to ask."""
    own = told.get("schema", told)
    kinds = [own, *own.get("anyOf", ())]
    plain = ("boolean", "integer"), ("uuid", "date-time", "binary")
    return (
        "$ref" in str(kinds)
        or any("example" in kind or "examples" in kind or "enum" in kind for kind in (told, *kinds))
        or any(kind.get("type") in plain[0] or kind.get("format") in plain[1] for kind in kinds)
        or own.get("items", {}).get("format") == "binary"
        or "description" in told
    )


def test_every_error_is_documented_as_a_problem(small_world: World) -> None:
    for name, operation in operations_of(small_world):
        responses = {int(status): response for status, response in operation["responses"].items()}
        for status, response in responses.items():
            if status >= 400 and name != "get /ready":
                assert list(response["content"]) == [PROBLEM], (name, status)
        if name.endswith(("predict", "predict/batch", "events")) or "/api/v1/" in name:
            assert {401, 403, 503} <= set(responses), name
            assert "Retry-After" in responses[503]["headers"], name
        if name.endswith(("predict", "predict/batch")):
            assert {400, 408, 413, 415, 422, 429} <= set(responses), name
            assert "Retry-After" in responses[429]["headers"], name


def test_who_has_to_show_a_token_is_documented(small_world: World) -> None:
    document = small_world.app.openapi()
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    wanted = {name: operation["security"] for name, operation in operations_of(small_world)}
    assert wanted["get /health"] == []
    assert wanted["post /predict"] == [{"token": []}, {}]
    assert wanted["get /api/v1/studies"] == [{"token": []}]
