"""`make demo`: the whole line for somebody who has a minute and no PACS."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.node import ROOT
from tests.builders import data_folder

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(240)]


def test_the_demo_passes_on_real_radiographs(tmp_path: Path) -> None:
    for kind in ("NORMAL", "PNEUMONIA"):
        image = min((data_folder("originals") / kind).iterdir())
        shutil.copy(image, tmp_path)
    command = [sys.executable, "-m", "pacs_node.demo", "--from", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The demo passed." in done.stdout
    assert done.stdout.count(" yes ") == 2
