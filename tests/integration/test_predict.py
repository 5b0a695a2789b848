"""`/predict` over a real model, real decoding processes and a real database."""

from __future__ import annotations

import base64
import hashlib
import io
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from db import audit, facts
from db.audit import Action
from db.engine import Engine, make_engine, read_scope, session_scope
from models.predictor import Predictor
from models.preprocess import from_array, squash
from models.registry import Registry
from pacs_node.settings import NodeSettings, PredictSettings, Settings, WorkerSettings
from pacs_node.settings.web import WebSettings
from pacs_node.store import ObjectStore
from pacs_node.web.app import create_app
from pacs_node.web.context import Web
from pacs_node.web.node_schemas import ModelInfo
from pacs_node.wiring import BUNDLED_MODELS
from tests.builders import as_bytes, draw_chest, make_bundle, make_radiograph
from tests.records import NOON
from tests.web_world import BASE_URL, PROBLEM

USUAL_KEYS = {
    *("status", "prediction", "confidence", "probabilities", "p_pneumonia", "processing_time_ms", "timestamp"),
    *("patient_id", "image_size", "warnings", "model", "note", "gradcam", "threshold"),
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Engine]:
    path = tmp_path_factory.mktemp("predict") / "node.sqlite"
    path.write_bytes(migrated_sqlite.read_bytes())
    engine = make_engine(f"sqlite:///{path}")
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_bundle(folder, version="0.0.1", seed=1)
    make_bundle(folder, version="0.0.2", seed=2)
    return folder


@pytest.fixture(scope="module")
def client(engine: Engine, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A node whose model 0.0.1 answers; one for all tests, because its processes take seconds to start."""
    with make_client(engine, folder, tmp_path_factory.mktemp("node")) as client:
        yield client


def make_client(engine: Engine, folder: Path, root: Path, *, a_minute: int = 0, **predict: Any) -> TestClient:
    activate(engine, "0.0.1")
    settings = Settings(
        node=NodeSettings(data_dir=root),
        web=WebSettings(authentication="off", predictions_per_minute=a_minute),
        worker=WorkerSettings(decode_timeout_s=200),  # a busy machine may take long to start a decoding process
        predict=PredictSettings(decode_processes=1, max_upload_mb=2, max_waiting=16, timeout_s=250, **predict),
    )
    store = ObjectStore(settings.store_dir)
    app = create_app(engine=engine, store=store, registry=Registry([folder]), settings=settings)
    return TestClient(app, base_url=BASE_URL, raise_server_exceptions=False)


def activate(engine: Engine, version: str) -> None:
    with session_scope(engine) as session:
        facts.add_model_version(session, "drawn", version, "0" * 64, actor="test", now=NOON)
        facts.activate_model(session, "drawn", version, actor="test", now=NOON)


def pixels(seed: int) -> np.ndarray:
    grey_HW: np.ndarray = np.rint(255 * draw_chest(320, 280, seed=seed)).astype(np.uint8)
    return grey_HW


def png(seed: int = 1) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed)).save(buffer, "PNG")
    return buffer.getvalue()


def ask(client: TestClient, content: bytes, **fields: Any) -> Any:
    return client.post("/predict", files={"file": ("chest.png", content)}, data=fields)


def uploads(engine: Engine) -> list[dict[str, Any]]:
    with read_scope(engine) as session:
        told = audit.tail(session, 500)
    return [one.details for one in told if one.action in (Action.UPLOAD_JUDGED, Action.UPLOAD_NOT_ANALYSED)]


def test_answer_has_the_usual_keys_and_adds_up(client: TestClient) -> None:
    answer = ask(client, png(1), patient_id="SYN-7")
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert set(said) == USUAL_KEYS
    assert (said["status"], said["patient_id"], said["image_size"]) == (
        "success",
        "SYN-7",
        {"width": 280, "height": 320},
    )
    assert said["prediction"] in ("NORMAL", "PNEUMONIA", "UNDETERMINED")
    assert said["probabilities"] == {"NORMAL": 1 - said["p_pneumonia"], "PNEUMONIA": said["p_pneumonia"]}
    assert said["confidence"] == pytest.approx(100 * max(said["probabilities"].values()), abs=0.01)
    assert said["model"] == {"name": "drawn", "version": "0.0.1"}
    assert {"age_unknown", "view_unknown"} <= {warning["code"] for warning in said["warnings"]}
    assert "Research use only" in said["note"]
    assert said["gradcam"] is None


def test_concurrent_uploads_each_get_their_own_answer(client: TestClient, folder: Path) -> None:
    (card,) = [card for card in Registry([folder]).cards() if card.version == "0.0.1"]
    images_1HW = [squash(from_array(pixels(seed)), card.input_size).numpy() for seed in range(20, 32)]
    expected = [said.probability for (said,) in Predictor(card, device="cpu").predict(np.stack(images_1HW))]
    with ThreadPoolExecutor(12) as callers:
        answers = list(callers.map(lambda seed: ask(client, png(seed)).json(), range(20, 32)))
    assert [said["p_pneumonia"] for said in answers] == pytest.approx(expected, abs=0.02), "bf16 differs by the batch"
    assert len({said["p_pneumonia"] for said in answers}) > 1


def test_same_bytes_are_answered_from_memory_and_audited_again(client: TestClient, engine: Engine) -> None:
    first, second = ask(client, png(2), patient_id="SYN-1").json(), ask(client, png(2), patient_id="SYN-2").json()
    changing = {"processing_time_ms", "timestamp", "patient_id"}
    assert {key: first[key] for key in USUAL_KEYS - changing} == {key: second[key] for key in USUAL_KEYS - changing}
    assert (first["patient_id"], second["patient_id"]) == ("SYN-1", "SYN-2")
    told = [one for one in uploads(engine) if one["digest"] == hashlib.sha256(png(2)).hexdigest()]
    assert [one["repeated"] for one in told] == [False, True]
    assert told[0]["probabilities"] == {"pneumonia": pytest.approx(first["p_pneumonia"], abs=1e-6)}
    assert set(told[0]["answers"]) == {"pneumonia"}


def test_patient_id_is_in_no_log_and_no_audit_event(
    client: TestClient, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        ask(client, png(3), patient_id="SECRET-ID")
        assert ask(client, png(3), patient_id="SECRET-ID", age_years="old").status_code == 422
    assert "SECRET-ID" not in "".join(str(vars(record)) for record in caplog.records if record.name[:5] != "httpx")
    assert "SECRET-ID" not in str(uploads(engine))


def test_tta_and_heat_map_are_given_where_asked_for(client: TestClient) -> None:
    plain, moved = ask(client, png(4)).json(), ask(client, png(4), use_tta="true", gradcam="true").json()
    assert moved["p_pneumonia"] != plain["p_pneumonia"], "options are part of what is remembered"
    head, _, data = moved["gradcam"].partition(",")
    assert head == "data:image/png;base64"
    heatmap = Image.open(io.BytesIO(base64.b64decode(data)))
    assert (heatmap.mode, heatmap.size) == ("RGB", (280, 320))


def test_dicom_is_judged_like_an_image_of_the_node(client: TestClient) -> None:
    frontal = ask(client, as_bytes(make_radiograph(seed=5, rows=320, columns=280))).json()
    assert frontal["status"] == "success"
    assert "age_unknown" not in {warning["code"] for warning in frontal["warnings"]}
    lateral = ask(client, as_bytes(make_radiograph(seed=5, rows=320, columns=280, view_position="LL")), gradcam="1")
    said = lateral.json()
    assert (lateral.status_code, said["status"]) == (200, "not_analysed")
    assert [(one["code"], one["severity"]) for one in said["warnings"]] == [("not_frontal", "forbids")]
    silent = ("prediction", "confidence", "probabilities", "p_pneumonia", "threshold", "gradcam")
    assert [said[key] for key in silent] == [None] * 6


@pytest.mark.parametrize(
    ("content", "fields", "status"),
    [
        (b"GIF89a" + bytes(100), {}, 415),
        (b"", {}, 415),
        (b"\xff\xd8\xff" + bytes(2_100_000), {}, 413),
        (png(1), {"use_tta": "perhaps"}, 422),
        (png(1), {"patient_id": "P" * 65}, 422),
        (png(1), {"age_years": "-1"}, 422),
        (png(1), {"unheard_of": "1"}, 422),
    ],
)
def test_unfit_request_is_a_problem(client: TestClient, content: bytes, fields: dict[str, str], status: int) -> None:
    answer = ask(client, content, **fields)
    assert (answer.status_code, answer.headers["content-type"]) == (status, PROBLEM)


def test_request_without_its_file_is_a_problem(client: TestClient) -> None:
    for answer, status in (
        (client.post("/predict", json={"file": "x"}), 415),
        (client.post("/predict", data={"patient_id": "SYN-1"}), 415),
        (client.post("/predict", files={"picture": ("x.png", png(1))}), 422),
        (client.post("/predict", files=[("file", ("a", png(1))), ("file", ("b", png(1)))]), 400),
        (client.post("/predict", content=b"--x", headers={"Content-Type": "multipart/form-data"}), 400),
    ):
        assert (answer.status_code, answer.headers["content-type"]) == (status, PROBLEM), answer.text


def test_batch_answers_in_order_and_one_refusal_fails_nobody(client: TestClient) -> None:
    contents = [png(6), b"no image", as_bytes(make_radiograph(seed=6, view_position="LL")), png(7)]
    files = [("files", (f"{place}.bin", content)) for place, content in enumerate(contents)]
    answer = client.post("/predict/batch", files=files, data={"patient_id": ["SYN-0", "SYN-1", "SYN-2", "SYN-3"]})
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert said["count"] == 4
    assert [one["status"] for one in said["results"]] == ["success", "error", "not_analysed", "success"]
    assert [one["index"] for one in said["results"]] == [0, 1, 2, 3]
    assert (said["results"][1]["code"], said["results"][1]["filename"]) == (415, "1.bin")
    assert [one.get("patient_id") for one in said["results"]] == ["SYN-0", None, "SYN-2", "SYN-3"]
    assert said["results"][0]["p_pneumonia"] == pytest.approx(ask(client, png(6)).json()["p_pneumonia"])


def test_batch_of_too_many_or_with_missing_names_is_refused(client: TestClient) -> None:
    one = [("files", ("x.png", png(1)))]
    assert client.post("/predict/batch", files=one * 65).status_code == 400
    assert client.post("/predict/batch", files=one * 2, data={"patient_id": ["SYN-1"]}).status_code == 422


def test_busy_node_says_when_to_come_again_and_then_answers(client: TestClient) -> None:
    web: Web = client.app.state.web  # type: ignore[attr-defined]
    with web.predictions.admitted(16, 0):
        for path, name in (("/predict", "file"), ("/predict/batch", "files")):
            answer = client.post(path, files={name: ("x.png", png(1))})
            assert (answer.status_code, answer.headers["content-type"]) == (503, PROBLEM)
            assert int(answer.headers["retry-after"]) > 0
        assert client.get("/health").status_code == 200
    assert ask(client, png(1)).status_code == 200, "the places are given back"


def test_health_and_model_info_tell_of_the_model(client: TestClient) -> None:
    ask(client, png(1))
    assert client.get("/health").json() == {"status": "ok", "api_version": "v1", "model_loaded": True}
    info = client.get("/model/info").json()
    assert (info["device"], info["class_names"], info["image_size"]) == ("cpu", ["normal", "pneumonia"], 224)
    assert info["accuracy"] is None, "the drawn bundle was never measured"


def test_accuracy_is_the_one_of_the_operating_point_in_use() -> None:
    card = Registry([BUNDLED_MODELS]).newest()
    children = card.populations[0]
    points = card.metrics[children.name]["pneumonia"]["operating_points"].values()
    [used] = [point for point in points if point["threshold"] == children.limits["pneumonia"].threshold]
    assert ModelInfo.of(card, 0, "cpu").accuracy == used["accuracy"]


def test_form_is_documented(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    form = paths["/predict"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["file"]
    assert {"file", "patient_id", "use_tta", "gradcam", "age_years"} == set(form["properties"])
    assert paths["/predict/batch"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]["required"] == [
        "files"
    ]


def test_limit_per_minute_counts_images(engine: Engine, folder: Path, tmp_path: Path) -> None:
    client = make_client(engine, folder, tmp_path, a_minute=3)  # no process is started: what is asked is refused
    statuses = [ask(client, b"no image").status_code for _ in range(4)]
    assert statuses == [415, 415, 415, 429]


def test_other_active_version_answers_within_seconds(client: TestClient, engine: Engine) -> None:
    before = ask(client, png(8)).json()
    activate(engine, "0.0.2")
    try:
        until = time.monotonic() + 60
        while (said := ask(client, png(8)).json())["model"]["version"] != "0.0.2":
            assert time.monotonic() < until, "the other version is not taken up"
            time.sleep(0.2)
        assert said["p_pneumonia"] != before["p_pneumonia"], "what was remembered is of the former version"
    finally:
        activate(engine, "0.0.1")
