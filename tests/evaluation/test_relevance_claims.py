"""Claims about relevance: nets trained by their labels' rule, pictures, and what is timed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

import foveate
from benchmarks import overhead
from benchmarks.claims import __main__ as command
from benchmarks.claims import relevances
from benchmarks.claims.kinds import KINDS, kinds_of
from benchmarks.claims.prefill import prefill
from foveate import saving
from foveate.errors import UnknownName
from foveate.evaluation import claims
from foveate.evaluation.answering import Batch
from foveate.evaluation.settings import parse_method
from foveate.methods.relevance import Relevance
from foveate.training.learning import FOLDER
from foveate.training.pairs import Pairs
from tests.evaluation.test_turns import DATA
from tests.evaluation.test_variants import of_no_kind
from tests.families import checkpoints
from tests.families.models import FAMILIES
from tests.training import needs_features

PAGE = """
title = "A paper"
text = "Its text."
[variants.net]
says = "published"
method = 'relevance:channels=[4,4],kinds=["image"]'
recipe = {epochs = 100, batch = 4}
[variants.net-mean]
like = "net"
says = "attention alone"
recipe = {weighting = "mean"}
[variants.ours]
like = "net-mean"
says = "ours"
method = 'seek:inner=8,small=4,kinds=["image"]'
[variants.drawn]
like = "ours"
says = "in no claim"
recipe = {epochs = 1}
[[relevances]]
title = "Pictures"
data = "scenes"
text = "Two scenes."
sides = ["relevance-map", "variant:net", "variant:drawn", "uniform"]
keeps = [0.5, 0.25]
[[relevances]]
title = "Pictures of clips"
data = "short-clips"
text = "Two clips."
sides = ["relevance-map"]
keeps = [0.5]
[[parts]]
title = "Scenes"
data = "scenes"
text = "Some."
[[parts.claims]]
source = "Table 2"
says = "the net is better than chance"
better = "variant:net"
worse = "variant:ours"
keep = 0.25
[[parts.claims]]
source = "Table 5"
says = "labels"
better = "variant:net"
worse = "variant:net-mean"
keep = 0.25
[[parts.claims]]
source = "Table 5"
says = "gradients are better"
better = "relevance-map"
worse = "relevance-map:weighting=mean,relu=true"
keep = 0.25
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("relevances")
    (out / "paper.toml").write_text(PAGE)
    FAMILIES["llava"].build(seed=0).save_pretrained(checkpoints.save("llava", out / "model"))
    return out


@needs_features
def test_a_page_about_relevance_from_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = dataclasses.replace(KINDS["scenes"], drawn=of_no_kind("first"))
    monkeypatch.setitem(KINDS, "scenes", scenes)
    monkeypatch.setattr(Pairs, "_counts", lambda *_: True)  # the model answers nothing right
    given = ["paper", "--claims", str(folder), "--out", str(folder)]
    given += ["--store", str(folder / "store"), "--resamples", "200"]
    asked = ["--model", str(folder / "model"), "--dialogues", "2", "--steps", "2", "--learn", "4"]
    result = CliRunner().invoke(command.app, [*given, *asked])
    assert result.exit_code == 0, result.output
    text = (folder / "paper.md").read_text()
    # Of each net its labels' rule is known; the variant that is only drawn was trained, too.
    trained = {
        record["training"]["data"]["variant"]: record["training"]["data"]["rule"]
        for file in (folder / "store/paper/trained/scenes/model").glob(f"*/{FOLDER}/{saving.FILE}")
        for record in [json.loads(file.read_text())]
    }
    page = claims.read(folder / "paper.toml", claims.Bounds(steps=2, dialogues=4))
    names = {each.identity(0): name for name, each in page.variants.items()}
    rules = {names[identity]: rule for identity, rule in trained.items()}
    assert {name for name, rule in rules.items() if "weighting='mean'" in rule} == {
        *("net-mean", "ours", "drawn")
    }
    assert "weighting='gradient'" in rules["net"]
    # Pairs of both rules for the published net, of one for ours; four dialogues each.
    assert len([*(folder / "store/paper/cache/pairs").glob("*.safetensors")]) == 3 * 4
    assert "| Table 5 | gradients are better |" in text and "relevance-map:weighting=mean" in text
    assert (folder / "paper-relevance-scenes.png").stat().st_size > 1000
    assert "(paper-relevance-scenes.png)" in text
    assert "## Pictures of clips" in text and "No model for these yet." in text
    # Again: nothing is trained, asked or drawn, and the page is the same.
    monkeypatch.setattr(relevances, "draw", None)
    monkeypatch.setattr(Pairs, "fill", None)
    assert CliRunner().invoke(command.app, [*given, *asked]).exit_code == 0
    assert CliRunner().invoke(command.app, [*given, "--from-store"]).exit_code == 0
    assert (folder / "paper.md").read_text() == text


def test_a_kind_that_is_only_drawn_is_asked(folder: Path) -> None:
    page = claims.read(folder / "paper.toml")
    assert kinds_of(page) == ["scenes", "tiles", "short-clips"]
    ((first, second), *_, (last, _)) = page.relevances[0].sides
    assert (first.method, first.keep, second.keep) == ("relevance-map", 0.5, 0.25)
    assert last.label == "uniform" and len(page.relevances[1].sides[0]) == 1


def test_what_is_drawn_and_does_not_exist_is_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "paper.toml"
    file.write_text(PAGE.replace('"uniform"]', '"uniforms"]'))
    with pytest.raises(UnknownName, match="uniforms"):
        claims.read(file)


@pytest.mark.parametrize("method", ["relevance-map", "relevance", "uniform"])
def test_a_row_of_pictures(folder: Path, method: str) -> None:
    """Relevance has a label; what is predicted of it has none; `uniform` has but what it keeps."""
    model = AutoModelForImageTextToText.from_pretrained(folder / "model").eval()
    processor = AutoProcessor.from_pretrained(folder / "model")
    place = method
    if method == "relevance":
        place = str(folder / "saved")
        trained = dataclasses.replace(
            Relevance(channels=(4, 4), kinds=("image",)).initialised(model), trained_on=None
        )
        foveate.save(trained, place, model=model, training={})
    one = dataclasses.replace(DATA[0], turns=DATA[0].turns[:1], pictures=DATA[0].pictures[:1])
    batch = Batch(model, processor, [one], [one.load()], frozenset(), 4)
    row = [dataclasses.replace(parse_method(place), keep=keep) for keep in (0.5, 4)]
    titles, pictures = zip(*relevances._pictures(batch, row), strict=True)
    name = row[0].label
    first = {"uniform": ("", ""), "relevance-map": (name, "its label")}.get(method, (name, ""))
    assert titles == (*first, f"{name}, 50%", f"{name}, 4")
    plain = [picture.tobytes() for picture in pictures]
    assert (plain[0] == plain[1]) == (method == "uniform")
    assert len({*plain[1:]}) == 3
    sheet = relevances.draw([row], model, processor, [one])
    assert sheet.width > 4 * 192 and sheet.height > 192


def test_kinds_differ_in_what_there_is_more_of() -> None:
    for kind, size in (("small-tiles", (128, 128)), ("large-tiles", (192, 192))):
        assert {each.pictures[0].size for each in KINDS[kind].dialogues(3)} == {size}  # type: ignore[union-attr]
    short, long = (KINDS[kind].dialogues(2) for kind in ("short-clips", "long-clips"))
    assert [len(each.pictures) for each in (*short, *long)] == [8, 8, 32, 32]
    assert [each.turns for each in short] == [each.turns for each in long]
    assert KINDS["short-clips"].examples(1)[0].name != short[0].name


def row(name: str, low: float, flops: float, **more: Any) -> dict[str, Any]:
    base = {"kind": "prefill", "base_seconds": 1.0, "stock_flops": 1000.0}
    return {**base, "name": name, "median": low, "low": low, "high": low, "flops": flops, **more}


def test_methods_that_state_their_budget_are_compared_and_flops_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    stated = "fastv:layer=1,schedule=[0.25]"
    rows = [
        row("relevance", 0.5, 252, method="relevance", average=144.0, keep=144),
        row("seek", 0.5, 265, method="seek", average=144.0, keep=144),
        row("uniform", 0.4, 250, method="uniform", average=144.0, keep=144),
        row(stated, 0.6, 280, method=stated, average=157.5),
        row("pyramiddrop, 192 kept", 0.9, 300, method="pyramiddrop", average=192.0, keep=192),
    ]
    path.write_text(json.dumps({"setting": {}, "rows": rows}))
    said = claims.Prefill(
        "Costs",
        "Of a prefill.",
        dict.fromkeys((stated, "relevance"), ""),
        faster=[["relevance", stated], ["relevance", "pyramiddrop"]],
        light=[["relevance", "uniform"], ["seek", "uniform"], ["seek", "pyramiddrop"]],
        keep=144,
    )
    text = prefill(said, path)
    assert f"| {stated} | 158 on average | 0.600" in text and "| relevance | 144 |" in text
    words = [line.split("**")[1] for line in text.splitlines() if line.endswith("** |")]
    # 2 and 15 of 1000 more than `uniform`; PyramidDrop left more tokens.
    assert words == ["holds", "out of reach", "holds", "reversed", "out of reach"]
    assert "(0.20 % of the full model's FLOPs more than uniform)" in text
    nothing = prefill(said, tmp_path / "none.json")
    assert f"-m '{stated}' -m relevance --keep 144 --out" in nothing
    assert said.file == "cpu-deep-144.json"
    assert dataclasses.replace(said, keep=64).file == "cpu-deep.json"


def test_overhead_takes_methods_as_they_are_typed() -> None:
    """FastV leaves half of the 25 tokens, 13, behind one layer of two on all: 19 on average."""
    family = FAMILIES["llava"]
    model, inputs = family.build(), family.inputs(rows=1)
    stated = "fastv:layer=1,schedule=[0.5]"
    n = int((inputs["input_ids"] == model.config.image_token_index).sum())
    total = model.config.text_config.num_hidden_layers
    found = {
        each.get("method"): each
        for each in overhead.measure(model, inputs, [stated, "uniform"], 7, 9, "cpu", 2)
    }
    half = (n + 1) // 2
    assert found[stated]["average"] == pytest.approx((n + (total - 1) * half) / total)
    assert "keep" not in found[stated] and found[stated]["name"] == stated
    assert (found["uniform"]["keep"], found["uniform"]["average"]) == (7, 7.0)
    assert torch.is_grad_enabled()
