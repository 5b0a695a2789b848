"""README's "Retrain", as an administrator types it: from a folder of images to a version that the node runs."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tomli_w

from models.registry import Registry
from pacs_node.wiring import BUNDLED_MODELS
from tests.acceptance.node import ROOT, Node
from tests.labelled import make_patients
from training.export import CARDS

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]

RECIPE = """\
network = "mobilenet_v2"
learning_rate = 3e-3
validation_share = 0.4
[[stages]]
epochs = 2
size = 32
batch_size = 8
"""


def python(*arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_from_a_folder_to_a_running_version_in_four_commands(tmp_path: Path) -> None:
    images = make_patients(tmp_path / "ours", train=24, test=2)
    (recipe := tmp_path / "tiny.toml").write_text(RECIPE)
    spoken = tomllib.loads((CARDS / "chest-pneumonia.toml").read_text())
    spoken["populations"] = [spoken["populations"][0] | {"sources": ["ours"], "least_auc": 0.0, "least_patients": 2}]
    (about := tmp_path / "about.toml").write_text(tomli_w.dumps(spoken))
    run, trained = tmp_path / "run", tmp_path / "trained"
    running = Registry([BUNDLED_MODELS]).newest().folder

    python("training.train", "--recipe", recipe, "--data", images, "--out", run, "--workers", "0")
    named = ["--name", "chest-pneumonia", "--version", "9.9.9", "--about", about, "--to", trained]
    said = python("training.export", "--run", run, "--data", images, *named)
    bundle = trained / "chest-pneumonia" / "9.9.9"
    assert str(bundle) in said
    judged = ["--model", bundle, "--model", running, "--data", images, "--out", run / "report", "--run", run]
    python("training.evaluate", *judged)
    node = Node(tmp_path / "node")
    node.command("migrate", check=True)
    node.command("models", "add", str(bundle), check=True)
    node.command("models", "activate", "chest-pneumonia/9.9.9", check=True)

    figures = json.loads((run / "report" / "metrics.json").read_text())
    assert (figures["split"], figures["data"]["images"]) == ("test", 4)
    assert figures["operating_points"].keys() == {"balanced", "high_recall"}
    assert "comparison" in figures
    report = (run / "report" / "report.html").read_text()
    assert "http://" not in report.replace("http://www.w3.org", "")
    assert (run / "report" / "training_history.png").stat().st_size > 1000
    assert "9.9.9" in node.command("models", "list").stdout
