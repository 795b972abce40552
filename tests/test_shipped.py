"""The compressors that ship: trained by commands, found by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import foveate
from benchmarks import shipped
from foveate import learned, reference
from foveate.fingerprint import of_weights
from foveate.training import accuracy
from tests.training import needs_features

NAME = "reference/metacompress"


@needs_features
def test_a_command_s_compressor_is_found_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = "--data scenes --count 10 --batch 4 --steps 1 --set dim=4 --cpu --no-tensorboard"
    monkeypatch.setattr(shipped, "COMMANDS", {NAME: quick})
    monkeypatch.setattr(learned, "SHIPPED", tmp_path / "weights")
    for _ in range(2):  # the second time there is one to replace
        result = CliRunner().invoke(shipped.app, [str(tmp_path / "runs")])
        assert result.exit_code == 0, result.output
    model, _ = reference.load()
    (place,) = (tmp_path / "weights" / "metacompress").iterdir()
    assert {each.name for each in place.iterdir()} >= {"compressor.json", "README.md"}
    with foveate.attach(model, "metacompress", keep=6) as run:
        found = run.method
    assert getattr(found, "dim") == 4  # noqa: B009  (of a learned one)
    monkeypatch.setattr(accuracy, "MOST", 3)
    card, weights = place / "README.md", place / "compressor.safetensors"
    before = weights.read_bytes()
    assert "in 3 dialogues" not in card.read_text()
    result = CliRunner().invoke(shipped.app, [str(tmp_path), "--measure", NAME])
    assert result.exit_code == 0, result.output
    assert "in 3 dialogues" in card.read_text() and "steps: 1" in card.read_text()
    assert weights.read_bytes() == before


def test_an_unknown_one_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(shipped.app, [str(tmp_path), "--only", "reference/relevence"])
    assert result.exit_code == 2 and "reference/relevance" in result.output


@pytest.mark.parametrize(
    "folder", sorted(learned.SHIPPED.glob("*/*")), ids=lambda folder: folder.parent.name
)
def test_what_ships_says_what_it_leaves_right(folder: Path) -> None:
    """And what it is for is a model that ships."""
    record = json.loads((folder / "compressor.json").read_text())
    loaded, _ = reference.load(record["model"]["name"])
    assert folder.name == of_weights(loaded)
    found = foveate.load(folder, model=loaded)
    assert isinstance(found, learned.LearnedCompressor) and found.net is not None
    assert all(torch.isfinite(each).all() for each in found.net.parameters())
    rows = record["training"]["accuracy"]["rows"]
    assert rows[0]["keep"] is None and len(rows) > 2
    assert "## Accuracy" in (folder / "README.md").read_text()
