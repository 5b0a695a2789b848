"""A node that is stopped while somebody waits for its answer."""

from __future__ import annotations

import io
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from pacs_node.settings import DatabaseSettings, NodeSettings, PredictSettings, Settings
from pacs_node.settings.web import WebSettings
from pacs_node.web import app
from tests.builders import draw_chest
from tests.web_world import PROBLEM, free_port, serving


def test_who_waits_for_an_answer_when_the_node_stops_is_told_to_come_again(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first uploads wait for the model and the decoding processes to start, longer than a stopping node does."""
    monkeypatch.setattr(app, "DRAIN_S", 0)
    settings = Settings(
        node=NodeSettings(data_dir=tmp_path),
        database=DatabaseSettings(url=sqlite_url),
        web=WebSettings(port=free_port(), authentication="off", predictions_per_minute=0),
        predict=PredictSettings(is_preloaded=False, max_waiting=9),
    )
    with ThreadPoolExecutor(2) as callers:
        with serving(settings) as url:
            waiting = [callers.submit(_upload, f"{url}{path}") for path in ("/predict", "/predict/batch")]
            _wait_until_busy(f"{url}/predict")
        answers = [one.result() for one in waiting]
    assert [answer.status_code for answer in answers] == [503, 503]
    assert [answer.headers["content-type"] for answer in answers] == [PROBLEM, PROBLEM]
    assert all(int(answer.headers["retry-after"]) > 0 for answer in answers)


def _upload(url: str) -> httpx.Response:
    buffer = io.BytesIO()
    Image.fromarray(np.rint(255 * draw_chest(320, 280, seed=1)).astype(np.uint8)).save(buffer, "PNG")
    name = "files" if url.endswith("batch") else "file"
    return httpx.post(url, files={name: ("chest.png", buffer.getvalue())}, timeout=60)


def _wait_until_busy(url: str) -> None:
    """Wait until both uploads hold all places: the next one is turned away at once."""
    until = time.monotonic() + 60
    while httpx.post(url, timeout=30).status_code != 503:
        assert time.monotonic() < until, "the uploads are not in work"
        time.sleep(0.02)
