"""Variants as data: what they go by, what their sides are, and how they are trained and asked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.claims import __main__ as command
from benchmarks.claims import optima, variants
from benchmarks.claims.kinds import KINDS
from foveate import reference
from foveate.errors import BudgetError, InputError, SavedFileError, UnknownName
from foveate.evaluation import Dialogue, from_reference
from foveate.evaluation.answering import Batch
from foveate.evaluation.claims import Side, read
from foveate.evaluation.optimum import Optimum
from foveate.evaluation.variants import Bounds, Trained, Variant
from foveate.evaluation.variants import read as read_variants
from foveate.mapping import Mapping
from foveate.training import learning
from tests.families import checkpoints
from tests.families.models import FAMILIES
from tests.training import needs_features

FIRST: dict[str, Any] = {
    "says": "one",
    "method": "metacompress:dim=4",
    "start": {"kind": "random"},
    "recipe": {"steps": 100, "keeps": [0.1]},
    "seeds": 3,
    "dialogues": 40,
}


def test_a_variant_is_like_another_but_for_what_it_says() -> None:
    found = read_variants(
        {"one": FIRST, "two": {"like": "one", "says": "two", "recipe": {"entropy": 0.0}}}
    )
    one, two = found.values()
    assert dict(two.recipe) == {"steps": 100, "keeps": (0.1,), "entropy": 0.0}
    assert (two.method, two.start, two.seeds) == (one.method, one.start, one.seeds)
    assert two.says == "two" and dict(one.recipe) == {"steps": 100, "keeps": (0.1,)}
    assert one.identity(0) == dataclasses.replace(one, says="as", name="it is called").identity(0)


@pytest.mark.parametrize(
    "change",
    [
        {"method": "metacompress:dim=8"},
        {"start": (("kind", "pca"),)},
        {"recipe": (("steps", 101), ("keeps", (0.1,)))},
        {"data": "second-world"},
        {"dialogues": 41},
    ],
)
def test_what_a_training_depends_on_is_in_its_name(change: dict[str, Any]) -> None:
    (one,) = read_variants({"one": FIRST}).values()
    assert dataclasses.replace(one, **change).identity(0) != one.identity(0) != one.identity(1)


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ({"like": "none", "says": ""}, UnknownName, "none"),
        ({**FIRST, "rates": 1}, InputError, "rates"),
        ({"method": "metacompress"}, InputError, "says"),
        ({**FIRST, "method": "pool"}, InputError, "nothing to train"),
        ({**FIRST, "method": "meta"}, UnknownName, "meta"),
    ],
)
def test_a_variant_that_is_wrong_says_where(
    given: dict[str, Any], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        read_variants({"two": given})


def test_seeds_are_draws_of_one_side_and_places_do_not_name_answers(tmp_path: Path) -> None:
    (one,) = read_variants({"one": FIRST}).values()
    side = Side("variant:one", 0.1, prepared=one)
    assert side.label == "one" and len(set(side.keys)) == 3
    first = side.settings[0]
    assert isinstance(first, Trained)
    assert first.at(tmp_path).key == first.key
    assert first.at(tmp_path).method == str(tmp_path.resolve())
    assert {*Side("variant:one", 0.2, prepared=one).keys}.isdisjoint(side.keys)
    assert not hasattr(first.make(), "fitted") or getattr(first.make(), "net", None) is None
    with pytest.raises(BudgetError, match="needs a budget"):
        _ = Side("variant:one", prepared=one).keys


def test_what_reads_no_prompt_is_asked_in_one_way() -> None:
    (blind,) = read_variants({"one": FIRST}).values()
    aware = Variant("a", "b", 'relevance:kinds=["image"]')
    assert {each.turns for each in blind.settings(0.1, "first")} == {"each"}
    ((each,), (first,)) = aware.settings(0.1), aware.settings(0.1, "first")
    assert (each.turns, first.turns) == ("each", "first") and each.key != first.key


def test_bounds_are_the_most_that_is_trained() -> None:
    (one,) = read_variants({"one": FIRST}).values()
    small = one.bounded(Bounds(seeds=1, steps=4, dialogues=10))
    assert (small.seeds, small.dialogues) == (1, 10) and dict(small.recipe)["steps"] == 4
    assert one.bounded(Bounds(5, 500, 500)) == one == one.bounded(Bounds())
    passes = dataclasses.replace(one, recipe=(("epochs", 100), ("batch", 100)))
    assert passes.bounded(Bounds(steps=4)).recipe == (("epochs", 4), ("batch", 100))


PAGE = """
title = "A paper"
text = "Its text."
[variants.start]
says = "untrained"
method = "metacompress:dim=4"
recipe = {steps = 1, rate = 0.0, batch = 4}
dialogues = 500
seeds = 2
[variants.learned]
like = "start"
says = "trained"
start = {kind = "pca", sharpness = 4.0}
recipe = {steps = 300, rate = 0.1, optimiser = "adamw"}
[variants.moved]
like = "learned"
says = "trained elsewhere"
data = "second-world"
seeds = 1
[mappings]
title = "Pictures of P"
text = "Two scenes."
sides = ["variant:start", "uniform"]
keep = 0.2
[[parts]]
title = "Scenes"
data = "scenes"
text = "Some."
[[parts.claims]]
source = "Table 1"
says = "training helps"
better = "variant:learned"
worse = "variant:start"
keep = 0.2
[[parts]]
title = "Elsewhere"
data = "second-world"
text = "Another world."
[[parts.claims]]
source = "Table 7"
says = "it carries over"
better = "variant:learned"
worse = "variant:moved"
keep = 0.2
[[parts]]
title = "Best"
data = "optimum"
text = "One P each."
[[parts.claims]]
source = "10.1"
says = "the best P is better"
better = "optimum"
worse = "variant:learned"
keep = 0.2
[[parts]]
title = "Where"
data = "kept"
text = "Tokens."
[[parts.claims]]
source = "4"
says = "not those of CLS"
better = "chance"
worse = "tower"
[[parts]]
title = "Clips"
data = "clips"
text = "Moving."
[[parts.claims]]
source = "Table 8"
says = "has no model"
better = "variant:learned"
worse = "uniform"
keep = 0.3
"""


def of_no_kind(world: str) -> Callable[..., list[Dialogue]]:
    """Scenes whose questions are of no kind, so that an untrained model's answers count."""

    def drawn(count: int, split: str = "test") -> list[Dialogue]:
        return [
            dataclasses.replace(
                each, turns=tuple(dataclasses.replace(turn, kind="") for turn in each.turns[:1])
            )
            for each in from_reference(count, split, world)
        ]

    return drawn


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("variants")
    (out / "paper.toml").write_text(PAGE)
    FAMILIES["llava"].build(seed=0).save_pretrained(checkpoints.save("llava", out / "model"))
    return out


def run(folder: Path, *more: str) -> Any:
    given = ["--claims", str(folder), "--out", str(folder), "--store", str(folder / "store")]
    asked = ["--model", str(folder / "model"), "--dialogues", "2", "--resamples", "200"]
    bounds = ["--steps", "2", "--learn", "6"]
    return CliRunner().invoke(command.app, ["paper", *given, *asked, *bounds, *more])


@needs_features
def test_a_page_trains_what_it_needs_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, world in (("scenes", "first"), ("second-world", "second"), ("optimum", "first")):
        monkeypatch.setitem(KINDS, kind, dataclasses.replace(KINDS[kind], drawn=of_no_kind(world)))
    trained: list[tuple[str, int]] = []
    real = variants.TRAININGS["metacompress"]

    def training(lesson: variants.Lesson) -> None:
        trained.append((lesson.wanted.label, lesson.wanted.seed))
        assert len(lesson.learn) + len(lesson.held) == 6
        real(lesson)

    monkeypatch.setitem(variants.TRAININGS, "metacompress", training)
    result = run(folder)
    assert result.exit_code == 0, result.output
    assert sorted(trained) == [
        *(("learned", 0), ("learned", 1), ("moved", 0), ("start", 0), ("start", 1)),
    ]
    text = (folder / "paper.md").read_text()
    assert "no model for clips" in text
    assert "| `learned` | trained | `metacompress:dim=4` | 2 | 6 |" in text
    assert "prediction 0.1 " in text and str(folder) not in text
    assert "(paper-mappings.png)" in text
    assert (folder / "paper-mappings.png").stat().st_size > 1000
    words = [line.split("**")[1] for line in text.splitlines() if line.endswith("** |")]
    assert words[-1] == "out of reach" and words.count("out of reach") == 1  # of clips
    # Again: nothing is trained, found or asked, and the page is the same.
    monkeypatch.setattr(Batch, "converse", None)
    monkeypatch.setattr(optima.optimal, "optimise", None)
    assert run(folder).exit_code == 0 and len(trained) == 5
    assert run(folder, "--from-store").exit_code == 0
    assert (folder / "paper.md").read_text() == text
    page = read(folder / "paper.toml")
    assert page.variants["learned"].dialogues == 500  # the bounds are not the page's
    # Another training of the same recipe must not pass for the one that was asked.
    noted = folder / "store/paper/scenes/model/run.json"
    record = json.loads(noted.read_text())
    for each in record["trained"].values():
        each["weights"] = "others" if each["name"] == "learned" else each["weights"]
    noted.write_text(json.dumps(record))
    result = run(folder)
    assert result.exit_code == 2 and "another training of learned" in result.output
    assert run(folder, "--only", "nobody").exit_code == 2


def test_the_optimum_has_to_be_found_first() -> None:
    with pytest.raises(SavedFileError, match="has to be found"):
        Optimum(keep=0.1).file("a")
    few, many = Optimum(keep=0.1, steps=2), Optimum(keep=0.1)
    assert few.key != many.key
    assert few.at(Path("a")).folder != many.at(Path("a")).folder
    more = Optimum(keep=0.2, steps=2)
    assert more.key != few.key and more.at(Path("a")).folder != few.at(Path("a")).folder
    assert few.at(Path("a")).key == few.key


def test_every_picture_is_told_what_was_found_for_it(tmp_path: Path) -> None:
    """Two dialogues, of one picture and of two: slot 3 for the first one, then 5 and 7."""
    family = FAMILIES["llava"]
    setting = Optimum(keep=1).at(tmp_path)
    files = [setting.file("a"), setting.file("b", 0), setting.file("b", 1)]
    files[0].parent.mkdir()
    for file, slot in zip(files, (3, 5, 7), strict=True):
        Mapping.select(torch.tensor([slot]), 25).save(file)
    asked = [Dialogue(name, (), ()) for name in "ab"]
    inputs = family.inputs(images_per_row=[1, 2])
    told = setting.told(family.build(), asked, 0, lambda: inputs, 4)
    assert [[p.anchors.tolist() for (p,) in each] for each in told] == [[[3]], [[5], [7]]]


def test_a_training_is_one_function_of_a_lesson() -> None:
    """Whatever is trained: methods of two papers have theirs in one table."""
    assert {"metacompress", "relevance"} <= set(variants.TRAININGS)
    assert learning.FOLDER == "compressor"
    assert Variant("a", "b", 'relevance:kinds=["image"]').setting.method == "relevance"


@pytest.mark.parametrize("answers", ["generated", "given"])
def test_whose_answers_are_learned_from_is_part_of_a_recipe(
    answers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the teacher's, no number of the training, and "generated" where nothing is said."""
    told: list[Any] = []
    monkeypatch.setattr(variants, "train", lambda *given, **more: told.append(given))
    said = {} if answers == "generated" else {"answers": answers}
    recipe = tuple({"steps": 3, **said}.items())
    variant = Variant("a", "b", "metacompress:dim=4", recipe=recipe)
    (wanted,) = variant.settings(0.1)
    model, processor = reference.load()
    lesson = variants.Lesson(
        wanted, model, processor, [], [], tmp_path, tmp_path, lambda progress: None
    )
    variants.TRAININGS["metacompress"](lesson)
    ((_, teacher, _, _, found),) = told
    assert teacher.answers == answers and found.steps == 3


@pytest.mark.parametrize("path", sorted(command.CLAIMS.glob("*.toml")), ids=lambda path: path.stem)
def test_claims_are_about_what_there_is(path: Path) -> None:
    """Also those that no page was made of: data, trainings, and every variant in some claim."""
    page = read(path)
    assert {part.data for part in page.parts} <= {*KINDS, "attention", "kept"}
    sides = [side for kind in KINDS for side in page.sides(kind)]
    trained = {side.prepared for side in sides if isinstance(side.prepared, Variant)}
    assert trained == set(page.variants.values())
    for each in trained:
        assert each.setting.method in variants.TRAININGS
        assert each.data in ("", *KINDS)
