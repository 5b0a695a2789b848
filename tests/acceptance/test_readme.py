"""What README says to type about the API, typed: against a node that asks for logins."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.node import ROOT, Node
from tests.acceptance.peers import SUCCESS, Modality
from tests.builders import data_folder, make_radiograph

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [
    (language, textwrap.dedent(text))
    for language, text in re.findall(r"^ *```(\w*)\n(.*?)^ *```$", README, re.M | re.S)
]
PROGRAMS = Path(sys.executable).parent


@dataclass(kw_only=True)
class Desk:
    """A terminal in a folder with two radiographs, beside a running node."""

    node: Node
    folder: Path
    token: str = ""

    def type(self, line: str) -> str:
        """Run a line of README; only the port, and where `.venv` lies, are this node's."""
        done = subprocess.run(self._command(line), capture_output=True, text=True, timeout=300, **self._place())
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    def opened(self, line: str) -> subprocess.Popen[str]:
        """Start a line that goes on by itself."""
        return subprocess.Popen(self._command(line), stdout=subprocess.PIPE, text=True, **self._place())

    def _command(self, line: str) -> list[str]:
        here = line.replace("http://127.0.0.1:8000", self.node.url).replace(".venv/bin/pacs-node", "pacs-node")
        return ["bash", "-ec", here]

    def _place(self) -> dict[str, Any]:
        own = {"PATH": f"{PROGRAMS}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "TOKEN": self.token}
        return {"cwd": self.folder, "env": os.environ | own | {"PACS_NODE_CONFIG": str(self.node.config)}}

    def run_python(self, code: str) -> str:
        """Run a Python block of README."""
        (self.folder / "typed.py").write_text(code.replace("http://127.0.0.1:8000", self.node.url), encoding="utf-8")
        return self.type("python typed.py")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("desk")
    for number, kind in enumerate(("PNEUMONIA", "NORMAL"), start=1):
        shutil.copy(min((data_folder("originals") / kind).iterdir()), folder / f"chest{number}.jpeg")
    web = {"authentication": "required"}
    with Node(
        folder / "node", web=web, predict={"is_preloaded": True, "decode_processes": 1, "timeout_s": 250}
    ) as node:
        yield Desk(node=node, folder=folder)


def lines(word: str) -> list[str]:
    """Return the lines of the shell blocks that have this word."""
    found = [line for language, text in BLOCKS if not language for line in text.splitlines() if word in line]
    assert found, word
    return found


def line(word: str) -> str:
    (found,) = lines(word)
    return found


def block(word: str) -> str:
    (found,) = [text for language, text in BLOCKS if language == "python" and word in text]
    return found


@pytest.fixture
def scripts(desk: Desk) -> Desk:
    """The desk with README's token, and one study that is answered."""
    if not desk.token:
        desk.token = desk.type(line("tokens create") + "; echo $TOKEN").strip()
        dataset = make_radiograph(seed=71, patient_id="SYN-1")
        dataset.BurnedInAnnotation = "NO"
        assert Modality(node=desk.node).send([dataset]) == [SUCCESS]
        desk.node.wait_quiet(200)
    return desk


def test_the_worklist_is_read_with_the_token(scripts: Desk) -> None:
    (study,) = json.loads(scripts.type(line("/api/v1/studies?")))["items"]
    assert (study["patient_id"], study["state"], study["is_reviewed"]) == ("SYN-1", "answered", False)
    (found,) = json.loads(scripts.type(line("studies/search")))["items"]
    assert found["study_id"] == study["study_id"]
    asked = block("/api/v1/studies")
    assert scripts.run_python(asked.replace('"present"', json.dumps(study["answer"]))).split()[:2] == [
        study["study_id"],
        "answered",
    ]
    assert f"{study['study_id']} answered" not in scripts.run_python(asked.replace('"present"', '"incomplete"'))


def test_without_the_token_nothing_is_read(scripts: Desk) -> None:
    refused = json.loads(scripts.type(line("/api/v1/studies?").replace("$TOKEN", "none")))
    assert (refused["status"], refused["title"]) == (401, "Unauthorized")


def test_the_worklist_is_exported_as_a_file(scripts: Desk) -> None:
    scripts.type(line("-OJ"))
    (file,) = scripts.folder.glob("studies-*.csv")
    (row,) = csv.DictReader(file.read_text(encoding="utf-8").splitlines())
    assert row["state"] == "answered"
    assert "patient_id" not in row


def test_news_are_heard_live(scripts: Desk) -> None:
    listening = scripts.opened(line("-N"))
    try:
        assert listening.stdout is not None
        assert listening.stdout.readline() == "retry: 3000\n"
        assert Modality(node=scripts.node).send([make_radiograph(seed=72)]) == [SUCCESS]
        assert "event: study\n" in iter(listening.stdout.readline, "")
    finally:
        listening.kill()
        listening.wait()


def test_images_are_judged_by_curl_without_a_login(desk: Desk) -> None:
    plain, drawn, batch = (json.loads(desk.type(typed)) for typed in lines("/predict"))
    assert (plain["status"], plain["patient_id"], plain["gradcam"]) == ("success", "SYN-1", None)
    assert plain["prediction"] in ("PNEUMONIA", "UNDETERMINED", "NORMAL")
    assert drawn["gradcam"].startswith("data:image/png;base64,")
    assert [(one["filename"], one["patient_id"]) for one in batch["results"]] == [
        ("chest1.jpeg", "SYN-1"),
        ("chest2.jpeg", "SYN-2"),
    ]
    assert batch["results"][0]["p_pneumonia"] == plain["p_pneumonia"]


def test_images_are_judged_from_python(desk: Desk) -> None:
    first, *others = desk.run_python(block("/predict")).splitlines()
    assert re.match(r"(PNEUMONIA|UNDETERMINED|NORMAL) [\d.]+ % {", first)
    assert (desk.folder / "heatmap.png").read_bytes().startswith(b"\x89PNG")
    assert [other.split()[:2] for other in others] == [["chest1.jpeg", "success"], ["chest2.jpeg", "success"]]


def test_reviewed_studies_are_exported_for_training(scripts: Desk) -> None:
    reader = scripts.type("pacs-node tokens create reader --role radiologist | head -1").strip()
    study_id = scripts.node.rows("SELECT id FROM studies WHERE patient_id = 'SYN-1'")[0]["id"]
    body = json.dumps({"study_id": study_id, "verdict": "disagree", "corrected_finding": "normal"})
    headers = f"-H 'Authorization: Bearer {reader}' -H 'Content-Type: application/json' -H 'If-Match: *'"
    said = scripts.type(f"curl -sS {headers} -d '{body}' {scripts.node.url}/api/v1/reviews")
    assert json.loads(said)["verdict"] == "disagree", said
    (typed,) = re.findall(r"`(pacs-node export-reviews [^`]*)`", README)
    scripts.type(typed.replace("DIR", "reviewed"))
    (row,) = csv.DictReader((scripts.folder / "reviewed" / "manifest.csv").read_text(encoding="utf-8").splitlines())
    assert row["label"].lower() == "normal"
    assert (scripts.folder / "reviewed" / row["path"]).is_file()
