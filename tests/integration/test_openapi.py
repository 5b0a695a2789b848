"""The OpenAPI document: examples for every route, and no call that it allows makes the server fail."""

from __future__ import annotations

import json
from typing import Any

import hypothesis
import pytest
import schemathesis
from fastapi.testclient import TestClient
from schemathesis.core import NOT_SET

from tests.web_world import World

CALLS = 4
"""For each operation; a longer hunt is made by hand, with the `schemathesis` command."""
ELSEWHERE = {"/api/v1/events", "/predict", "/predict/batch"}
"""A stream, which this client would wait for, and uploads, which it cannot encode: they have tests of their own."""
AWAY = 503
"""Said of what is not there now: a model, a drawing process."""


def test_no_call_of_the_document_is_a_server_error(small_world: World) -> None:
    small_world.suspected()
    client = small_world.client()
    schema = schemathesis.openapi.from_dict(small_world.app.openapi())
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 30
    for operation in operations:
        if operation.path not in ELSEWHERE:
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
        wanted = {name: value for name, value in case.as_transport_kwargs().items() if value is not NOT_SET}
        wanted.pop("cookies", None)
        url = wanted.pop("url", None) or case.formatted_path
        answer = client.request(wanted.pop("method", case.method), url, **wanted)
        assert answer.status_code < 500 or answer.status_code == AWAY, f"{case.method} {case.path}: {answer.text}"

    attempt()


@pytest.mark.parametrize("kind", ["parameters", "bodies"])
def test_every_route_gives_examples(small_world: World, kind: str) -> None:
    document = small_world.app.openapi()
    without = []
    for path, operations in document["paths"].items():
        if not path.startswith("/api/v1"):
            continue
        for method, operation in operations.items():
            if kind == "bodies":
                body = operation.get("requestBody", {}).get("content", {})
                without += [f"{method} {path}" for one in body.values() if not _has_example(one["schema"], document)]
            else:
                given = operation.get("parameters", [])
                without += [f"{method} {path} {one['name']}" for one in given if not _tells_its_form(one)]
    assert not without


def _tells_its_form(parameter: dict[str, Any]) -> bool:
    told = ("example", "$ref", "enum", "boolean", "date-time", "uuid", "description", "integer")
    return any(word in json.dumps(parameter) for word in told)


def _has_example(schema: dict[str, Any], document: dict[str, Any]) -> bool:
    name = schema.get("$ref", "").rpartition("/")[2]
    told = json.dumps(document["components"]["schemas"].get(name, schema))
    return any(word in told for word in ("example", "boolean", "$ref"))
