"""The fitting of the chest check: what it writes is what the node reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models import chest
from pacs_node.phantom import draw_chest
from training import chest_score


@pytest.fixture(scope="module", name="data")
def drawn_patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty drawn chests in two classes, one image for each patient."""
    root = tmp_path_factory.mktemp("drawn")
    for number in range(40):
        folder, name = ("NORMAL", f"IM-{number:04}") if number % 2 else ("PNEUMONIA", f"person{number}_virus_1")
        (root / "train" / folder).mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(number)
        grey_HW = draw_chest(240, 224, seed=number + 1) + random.normal(0, 0.02, (240, 224))
        pixels = (255 * np.clip(grey_HW, 0, 1)).astype(np.uint8)
        Image.fromarray(pixels).save(root / "train" / folder / f"{name}.png")
    return root


def test_command_writes_statistics_that_know_the_images_they_were_fitted_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "chest.safetensors"
    arguments = ["--data", str(data), "--cache", str(tmp_path / "cache"), "--out", str(out)]
    assert chest_score.main(arguments) == 0
    said = capsys.readouterr().out
    assert f"falsely refused of the validation images of {data.name}" in said
    content = out.read_bytes()
    assert chest_score.main(arguments) == 0
    assert out.read_bytes() == content  # the same images, the same bytes

    monkeypatch.setattr(chest, "STATISTICS_FILE", out)
    chest._statistics.cache_clear()
    try:
        random = np.random.default_rng(1)
        drawn = torch.from_numpy(draw_chest(240, 224, seed=7)).float()[None].numpy()
        assert chest.looks_like_a_chest(drawn)
        assert not chest.looks_like_a_chest(random.random((1, 224, 224), dtype=np.float32))
    finally:
        chest._statistics.cache_clear()


def test_data_that_cannot_be_used_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert chest_score.main(["--data", str(tmp_path / "none"), "--cache", str(tmp_path / "cache")]) == 2
    assert capsys.readouterr().err.startswith("chest_score: ")
