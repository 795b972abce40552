"""The parts of a comparison: budgets and methods as typed, data, statistics, stored answers."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import foveate
from foveate import catalog
from foveate.errors import BudgetError, InputError, SavedFileError, UnknownName
from foveate.evaluation import cost, fingerprints, from_jsonl, from_reference
from foveate.evaluation.data import Dialogue, Turn, fingerprint, normalised, others
from foveate.evaluation.settings import Setting, expand, parse_keep, parse_method
from foveate.evaluation.stats import difference
from foveate.evaluation.store import Store
from foveate.evaluation.summary import majority
from foveate.evaluation.timing import alternate
from tests.families import checkpoints
from tests.families.llava import make_llava
from tests.families.models import FAMILIES

# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("text", "keep"), [("64", 64), ("0.25", 0.25), ("25%", 0.25), ("12.5%", 0.125), ("1", 1)]
)
def test_budgets_as_typed(text: str, keep: float) -> None:
    found = parse_keep(text)
    assert found == keep
    assert type(found) is type(keep)


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "nan", "200%", "many", "", "64 tokens"])
def test_budgets_that_are_none(text: str) -> None:
    with pytest.raises(BudgetError) as error:
        parse_keep(text)
    assert len(str(error.value).splitlines()) <= 4


def test_methods_as_typed() -> None:
    assert parse_method("pool") == Setting("pool")
    assert parse_method("visionzip@authors-64").preset == "authors-64"
    setting = parse_method("random:seed=3")
    assert setting.fields == (("seed", 3),)
    assert setting.make().seed == 3  # type: ignore[attr-defined]
    with pytest.raises(UnknownName, match="visionzip"):
        parse_method("vizionzip")
    with pytest.raises(UnknownName, match="authors-64"):
        parse_method("visionzip@authors-65")
    with pytest.raises(UnknownName, match="seed"):
        parse_method("random:sed=3")
    with pytest.raises(InputError, match="field=value"):
        parse_method("random:seed")


def test_chains_as_typed() -> None:
    setting = parse_method("visionzip/fastv:ratio=3.0,fastv.layer=2")
    assert setting.label == "visionzip/fastv:ratio=3.0,fastv.layer=2"
    assert setting.make() == foveate.chain("visionzip", foveate.FastV(layer=2), ratio=3.0)
    assert parse_method(setting.label) == setting
    keeps = parse_method("visionzip/fastv:keeps=[0.5,0.25]")
    assert keeps.make() == foveate.chain(("visionzip", 0.5), ("fastv", 0.25))
    assert parse_method(keeps.label) == keeps
    keys = {setting.key, keeps.key, parse_method("visionzip/fastv").key}
    assert len(keys) == 3
    with pytest.raises(UnknownName, match=r"'fastv.layr'. Did you mean 'fastv.layer'"):
        parse_method("visionzip/fastv:fastv.layr=2")
    with pytest.raises(UnknownName, match="Did you mean 'fastv'"):
        parse_method("visionzip/fast")
    with pytest.raises(UnknownName, match="'methods'"):
        parse_method("visionzip/fastv:methods=x")
    with pytest.raises(BudgetError, match="takes as many budgets"):
        parse_method("visionzip/fastv:keeps=[0.5]")


@pytest.mark.usefixtures("unchecked")
def test_a_value_of_the_wrong_kind_is_told() -> None:
    with pytest.raises(InputError, match="layer of fastv is a whole number or null; got 'deep'"):
        parse_method("fastv:layer=deep")
    with pytest.raises(InputError, match="wrong kind"):
        parse_method("relevance:channels=3")


def test_budgets_that_a_method_states_itself_come_once() -> None:
    methods = ["visionzip/fastv:keeps=[0.5,0.25]", "fastv:schedule=[4]", "vtw"]
    groups = expand(methods, [0.5, 0.25])
    assert [group[0].budget for group in groups] == ["own", "own", "50%", "25%"]
    assert all(setting.keep is None for group in groups[:2] for setting in group)


def test_every_part_of_a_chain_is_drawn_anew() -> None:
    ((*drawn,),) = expand(["random/fastv"], [0.5], draws=2)
    assert [dict(setting.drawn) for setting in drawn] == [{"random.seed": 0}, {"random.seed": 1}]
    assert len(expand(["pool", "random", "pool"], [0.5])) == 2
    assert {setting.label for setting in drawn} == {"random/fastv"}
    assert drawn[1].make() == foveate.chain(foveate.Random(seed=1), "fastv")


def test_only_what_reads_the_prompt_comes_in_both_ways() -> None:
    methods = ["fastv", "visionzip", "visionzip/fastv", "polymorphic", "polymorphic:stages=merge"]
    for turns, ways in {"each": ["each"], "first": ["first"], "both": ["each", "first"]}.items():
        groups = expand(methods, [0.5], turns=turns)
        found = [(g[0].label, g[0].turns) for g in groups]
        expected = [
            (method, way)
            for method in methods
            for way in (["each"] if method in ("visionzip", "polymorphic:stages=merge") else ways)
        ]
        assert found == expected
        assert len({group[0].key for group in groups}) == len(groups)
    with pytest.raises(UnknownName, match="'last'"):
        expand(methods, [0.5], turns="last")


def test_what_is_random_is_drawn_several_times_and_presets_once() -> None:
    groups = expand(["random", "pool", "random:seed=5", "visionzip@authors-64"], [4, 0.5], draws=3)
    assert [(g[0].label, g[0].budget, len(g)) for g in groups] == [
        ("random", "4", 3),
        ("random", "50%", 3),
        ("pool", "4", 1),
        ("pool", "50%", 1),
        ("random:seed=5", "4", 1),
        ("random:seed=5", "50%", 1),
        ("visionzip@authors-64", "preset", 1),
    ]
    assert len({setting.key for group in groups for setting in group}) == sum(map(len, groups))
    with pytest.raises(BudgetError):
        expand(["pool"], [0])


# ---------------------------------------------------------------------- data


def test_answers_are_compared_without_case_articles_and_punctuation() -> None:
    assert normalised(" The  Red, star. ") == "red star"
    assert normalised("3.5 km/h") == "3.5 km/h"
    assert normalised("4 7") != normalised("47")
    assert Turn("?", ("a dog", "puppy")).right("Dog.")
    assert not Turn("?", ("a dog",)).right("dogs")
    # An article may be the choice that was asked for.
    assert Turn("?", ("A",)).right("a.") and not Turn("?", ("A",)).right("")


def write(folder: Path, *lines: Any) -> Path:
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "data.jsonl").write_text(text)
    return folder / "data.jsonl"


GOOD = {"image": "a.png", "turns": [{"question": "what ?", "answer": "red"}]}


def test_data_from_a_file(tmp_path: Path) -> None:
    two = {**GOOD, "id": "b", "image": ["a.png", "a.png"]}
    video = {"frames": ["a.png"] * 3, "turns": [{"question": "?", "answers": ["x", "y"]}]}
    found = from_jsonl(write(tmp_path, GOOD, "", two, video))
    assert [each.name for each in found] == ["1", "b", "4"]
    assert [len(each.load()) for each in found] == [1, 2, 3]
    assert [each.is_video for each in found] == [False, False, True]
    assert found[2].turns == (Turn("?", ("x", "y")),)


def test_an_id_that_is_null_is_none(tmp_path: Path) -> None:
    lines = [{**GOOD, "id": None}, {**GOOD, "id": 0}, {**GOOD, "id": None}]
    assert [each.name for each in from_jsonl(write(tmp_path, *lines))] == ["1", "0", "3"]


def test_one_answer_is_no_list_of_letters(tmp_path: Path) -> None:
    turns = [
        {"question": "?", "answers": "blue"},
        {"question": "?", "answers": None, "answer": "x"},
        {"question": "?", "answers": ["x", "y"], "answer": "x"},  # all that count as right
    ]
    (found,) = from_jsonl(write(tmp_path, {**GOOD, "turns": turns}))
    assert found.turns == (Turn("?", ("blue",)), Turn("?", ("x",)), Turn("?", ("x", "y")))


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    odd = {"image": "a.png", "turns": [{"question": "a\u2028b\x85c ?", "answer": "x"}]}
    text = "\ufeff" + json.dumps(odd, ensure_ascii=False) + "\r\n" + json.dumps(GOOD)
    file = write(tmp_path, GOOD)
    file.write_text(text, encoding="utf-8", newline="")
    found = from_jsonl(file)
    assert [each.name for each in found] == ["1", "2"]
    assert found[0].turns[0].question == "a\u2028b\x85c ?"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "data.jsonl:2 is no JSON"),
        ([], r'data.jsonl:2 needs "image"'),
        ({**GOOD, "image": 3}, "data.jsonl:2: .* must be a path"),
        ({**GOOD, "image": "b.png"}, "data.jsonl:2: no picture .*b.png"),
        ({**GOOD, "frames": []}, 'data.jsonl:2: "frames" must be a path or a list'),
        ({**GOOD, "video": 3}, 'data.jsonl:2: "video" must be a path'),
        ({**GOOD, "video": "b.mp4"}, "data.jsonl:2: no picture .*b.mp4"),
        ({**GOOD, "video": "a.png", "frames": "8"}, 'data.jsonl:2: expected one path as "video"'),
        ({**GOOD, "video": ["a.png"]}, 'data.jsonl:2: expected one path as "video"'),
        ({**GOOD, "video": "a.png", "frames": 0}, 'data.jsonl:2: expected one path as "video"'),
        ({**GOOD, "turns": []}, 'data.jsonl:2: "turns" must be a list'),
        ({**GOOD, "turns": [{"question": "?"}]}, 'data.jsonl:2: expected "question"'),
        ({**GOOD, "turns": [{"question": 5, "answer": "a"}]}, 'data.jsonl:2: expected "question"'),
        ({**GOOD, "turns": [{"question": "?", "answers": 5}]}, 'data.jsonl:2: expected "question"'),
        ({**GOOD, "turns": [{"question": "?", "answers": ["a", 5]}]}, "data.jsonl:2: expected"),
        ({**GOOD, "id": "1"}, "uses the id '1' twice"),
    ],
)
def test_broken_data_is_named_by_its_line(line: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as error:
        from_jsonl(write(tmp_path, GOOD, line))
    assert len(str(error.value).splitlines()) <= 4


def test_no_data(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No data file"):
        from_jsonl(tmp_path / "absent.jsonl")
    with pytest.raises(InputError, match="holds no dialogue"):
        from_jsonl(write(tmp_path, ""))


def test_the_fingerprint_sees_questions_answers_and_pictures() -> None:
    image = Image.new("RGB", (4, 4))
    base = Dialogue("a", (image,), (Turn("?", ("x",)),))
    others = [
        Dialogue("a", (image,), (Turn("?", ("y",)),)),
        Dialogue("a", (Image.new("RGB", (4, 4), (1, 0, 0)),), (Turn("?", ("x",)),)),
        Dialogue("b", (image,), (Turn("?", ("x",)),)),
        Dialogue("a", (image,), (Turn("?", ("x",)),), is_video=True),
    ]
    found = {fingerprint([each]) for each in [base, *others]}
    assert len(found) == 5
    assert fingerprint([base]) == fingerprint([base])


def test_the_fingerprint_sees_that_a_file_has_changed(tmp_path: Path) -> None:
    """By the time of it: files of one size may show different things."""
    file = tmp_path / "a.png"
    file.write_bytes(b"one")
    of = [Dialogue("a", (file,), (Turn("?", ("x",)),))]
    before = fingerprint(of)
    os.utime(file, ns=(0, file.stat().st_mtime_ns))
    assert fingerprint(of) == before
    file.write_bytes(b"two")
    os.utime(file, ns=(0, 10**18))
    assert fingerprint(of) != before


def test_a_palette_belongs_to_what_a_picture_shows() -> None:
    red, blue = (Image.new("P", (4, 4)) for _ in range(2))
    red.putpalette([200, 0, 0])
    blue.putpalette([0, 0, 200])
    assert red.tobytes() == blue.tobytes()
    data = [Dialogue("a", (one,), (Turn("?", ("x",)),)) for one in (red, blue)]
    assert fingerprint(data[:1]) != fingerprint(data[1:])
    assert others(data) == [1, 0]


def test_a_saved_compressor_that_was_trained_on_has_other_answers(tmp_path: Path) -> None:
    model = FAMILIES["llava"].build()
    made = catalog.make("metacompress").initialised(model)  # type: ignore[attr-defined]
    keys = []
    for _ in range(2):
        foveate.save(made, tmp_path, model=model)
        keys.append(Setting(str(tmp_path), 0.5).key)
        with torch.no_grad():
            made.net.query[0, 0] += 1e-6
    assert keys[0] != keys[1]


def test_a_wrong_picture_is_never_the_right_one() -> None:
    red, blue = (Image.new("RGB", (4, 4), colour) for colour in ((9, 0, 0), (0, 0, 9)))
    data = [Dialogue(str(i), (one,), ()) for i, one in enumerate([red, red, blue, red])]
    assert others(data) == [2, 2, 3, 2]
    assert others(data[:2]) == []
    # The same bytes in another shape are another picture.
    assert others([data[0], Dialogue("w", (red.resize((8, 2)),), ())]) == [1, 0]


def test_the_shipped_scenes_are_data() -> None:
    found = from_reference(2)
    assert [len(each.turns) for each in found] == [3, 3]
    assert all(turn.kind for each in found for turn in each.turns)


def test_majority_by_hand() -> None:
    turns = [Turn("?", (a,), k) for a, k in [("x", "p"), ("x", "p"), ("y", "p"), ("z", "q")]]
    # Two of three p-questions are x, the one q-question is z: three of four.
    assert majority([Dialogue("a", (), tuple(turns))]) == 0.75
    # Answers are counted as they are compared.
    same = [Turn("?", (a,)) for a in ("Yes", "yes.", "the yes", "no")]
    assert majority([Dialogue("a", (), tuple(same))]) == 0.75


# ---------------------------------------------------------------------- statistics


def test_the_difference_by_hand() -> None:
    gain, asked = np.array([2.0, 1.0]) - np.array([3.0, 0.0]), np.array([3.0, 3.0])
    # Gains -1 and +1 of three questions each. Resampling two dialogues gives both the first
    # (1/4: -2/6), one of each (1/2: 0) or both the second (1/4: +2/6).
    value, low, high = difference(gain, asked)
    assert value == 0
    assert (round(low, 4), round(high, 4)) == (-0.3333, 0.3333)
    # A level that cuts off more than a quarter on either side leaves nothing but 0.
    assert difference(gain, asked, level=0.4) == (0, 0, 0)


def test_no_difference_has_no_interval() -> None:
    assert difference(np.zeros(5), np.ones(5)) == (0, 0, 0)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        asked = np.full(80, 3.0)
        base = rng.binomial(3, 0.6, 80).astype(float)
        right = rng.binomial(3, 0.5, 80).astype(float)
        _, low, high = difference(right - base, asked, seed=trial, resamples=400)
        covered += low <= -0.1 <= high
    # Binomial(200, 0.95) lies in 178..199 with probability 0.999.
    assert 178 <= covered <= 199


# ---------------------------------------------------------------------- stored answers


def test_reading_stored_answers_takes_none_from_a_run_that_goes_on(tmp_path: Path) -> None:
    running = Store(tmp_path / "answers.jsonl", {"model": "m"})
    running.add("s", "1", answers=["x"])
    seen = Store.existing(running.path)
    assert seen.facts == {"model": "m"} and seen["s", "1"]["answers"] == ["x"]
    running.add("s", "2", answers=["y"])
    running.close()
    assert ("s", "2") in Store.existing(running.path)


@pytest.mark.parametrize("content", [b"[1]\n", b"3\n", b"\xff\xfe", b"", b"no json"])
def test_another_file_is_no_stored_answers(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(content)
    for read in (Store.existing, lambda at: Store(at, {"model": "m"})):
        with pytest.raises(SavedFileError, match="is no file of stored answers"):
            read(path)
    assert path.read_bytes() == content
    with pytest.raises(SavedFileError, match="is no file of stored answers"):
        Store.existing(tmp_path / "absent.jsonl")


def test_stored_answers_come_back(tmp_path: Path) -> None:
    store = Store(tmp_path / "new" / "answers.jsonl", {"model": "m"})
    store.add("s", "1", answers=["x"])
    store.close()
    again = Store(store.path, {"model": "m"})
    assert ("s", "1") in again
    assert again["s", "1"]["answers"] == ["x"]
    assert ("s", "2") not in again
    again.close()


def test_a_file_of_answers_is_added_to_by_one_at_a_time(tmp_path: Path) -> None:
    store = Store(tmp_path / "answers.jsonl", {"model": "m"})
    store.add("s", "1", answers=["x"])
    for fresh in (False, True):
        with pytest.raises(SavedFileError, match="Another run is adding to") as error:
            Store(store.path, {"model": "m"}, fresh=fresh)
        assert len(str(error.value).splitlines()) <= 4
    store.add("s", "2", answers=["y"])
    store.close()
    again = Store(store.path, {"model": "m"})
    assert list(again.records) == [("s", "1"), ("s", "2")]
    again.close()
    # Whichever thread closes it.
    third = Store(store.path, {"model": "m"})
    other = threading.Thread(target=third.close)
    other.start()
    other.join()
    assert ("s", "2") in third
    # One that is refused for what it is about lets go, too.
    with pytest.raises(SavedFileError, match="made with"):
        Store(store.path, {"model": "other"})
    Store(store.path, {"model": "other"}, fresh=True).close()
    assert not Store.existing(store.path).records


def test_a_line_cut_in_two_is_forgotten(tmp_path: Path) -> None:
    store = Store(tmp_path / "answers.jsonl", {"model": "m"})
    store.add("s", "1", answers=["x"])
    store.close()
    with store.path.open("a") as file:
        file.write('{"setting": "s", "dialo')
    again = Store(store.path, {"model": "m"})
    assert list(again.records) == [("s", "1")]
    again.add("s", "2", answers=["y"])
    again.close()
    last = Store(store.path, {"model": "m"})
    assert list(last.records) == [("s", "1"), ("s", "2")]
    last.close()


def test_another_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text("notes of mine\n")
    with pytest.raises(SavedFileError, match="no file of stored answers"):
        Store(tmp_path / "answers.jsonl", {"model": "m"})
    assert (tmp_path / "answers.jsonl").read_text() == "notes of mine\n"


def test_answers_of_another_model_are_not_mixed_in(tmp_path: Path) -> None:
    Store(tmp_path / "answers.jsonl", {"model": "m", "data": "d"}).close()
    with pytest.raises(SavedFileError, match=r"model 'm' \(now 'other'\)") as error:
        Store(tmp_path / "answers.jsonl", {"model": "other", "data": "d"})
    assert "--fresh" in str(error.value)
    assert "data" not in str(error.value).splitlines()[0].partition("made with")[2]


# ---------------------------------------------------------------------- fingerprints


class _Model(torch.nn.Linear):
    def __init__(self, backend: str = "sdpa", dtype: torch.dtype = torch.float32) -> None:
        super().__init__(40, 40, dtype=dtype)
        torch.nn.init.zeros_(self.weight)
        torch.nn.init.zeros_(self.bias)
        self.config = transformers.CLIPVisionConfig(attn_implementation=backend)


def test_the_models_fingerprint_sees_every_weight_its_type_and_the_attention() -> None:
    changed = _Model()
    changed.weight.data[-1, -1] = 1e-8
    models = [_Model(), changed, _Model("eager"), _Model(dtype=torch.bfloat16)]
    assert len({fingerprints.model(each) for each in models}) == 4
    assert fingerprints.model(_Model()) == fingerprints.model(_Model())
    assert fingerprints.model(_Model().to("meta"))  # weights kept elsewhere are not read


def test_fingerprints_do_not_see_the_folder_that_was_loaded(tmp_path: Path) -> None:
    made = make_llava("sdpa")
    found = set()
    for place in ("a", "b"):
        made.save_pretrained(tmp_path / place)
        checkpoints.PROCESSORS["llava"]().save_pretrained(tmp_path / place)
        model = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / place)
        processor = transformers.AutoProcessor.from_pretrained(tmp_path / place)
        assert model.config._name_or_path.endswith(place)
        found.add((fingerprints.model(model), fingerprints.processor(processor)))
    assert len(found) == 1


def test_the_processors_fingerprint_sees_template_and_pictures() -> None:
    def made(template: str | None = None, side: int | None = None) -> str:
        processor = checkpoints.PROCESSORS["llava"]()
        processor.chat_template = template or processor.chat_template
        if side is not None:
            processor.image_processor.size = {"shortest_edge": side}
        return fingerprints.processor(processor)

    assert made() == made()
    assert len({made(), made(template="{{ 1 }}"), made(side=7)}) == 3


def test_an_edit_of_the_code_makes_answers_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprints.code()
    assert before.startswith(foveate.__version__)
    shutil.copytree(Path(foveate.__file__).parent, tmp_path / "foveate")
    monkeypatch.setattr(foveate, "__file__", str(tmp_path / "foveate" / "__init__.py"))
    assert fingerprints.code() == before
    with (tmp_path / "foveate" / "evaluation" / "report.py").open("a") as file:
        file.write("# told differently")
    assert fingerprints.code() == before
    pool = tmp_path / "foveate" / "methods" / "pool.py"
    text = pool.read_text()
    assert text.startswith('"""')
    pool.write_text(text.replace('"""', '"""Said otherwise. ', 1) + "# a remark")
    assert fingerprints.code() == before
    pool.write_text(text + "pooled = 'differently'")
    assert fingerprints.code() != before


def test_other_shipped_weights_are_other_answers_of_what_finds_them_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(Path(foveate.__file__).parent, tmp_path / "foveate")
    monkeypatch.setattr(foveate, "__file__", str(tmp_path / "foveate" / "__init__.py"))
    seek, chained = Setting("seek", 0.5), Setting("seek/fastv", 0.5)
    others = [Setting("metacompress", 0.5), Setting("fastv", 0.5), Setting("relevance-map", 0.5)]
    before, same = [seek.key, chained.key], [each.key for each in others]
    for file in ("compressor.safetensors", "compressor.json"):
        found = sorted((tmp_path / "foveate" / "weights" / "seek").rglob(file))
        assert found
        found[0].write_bytes(found[0].read_bytes() + b" ")
        after = [seek.key, chained.key]
        assert not set(after) & set(before)
        assert [each.key for each in others] == same
        before = after


# ---------------------------------------------------------------------- cost


def test_flops_by_hand() -> None:
    layer = torch.nn.Linear(3, 5, bias=False)
    # 7 rows, 3 x 5 multiply-adds each, two operations a multiply-add.
    assert cost.count_flops(lambda: layer(torch.zeros(7, 3))) == 7 * 3 * 5 * 2


def test_attention_is_counted_on_the_cpu_too() -> None:
    q, k = torch.zeros(1, 2, 6, 4), torch.zeros(1, 2, 9, 4)
    call = torch.nn.functional.scaled_dot_product_attention
    # 2 heads; scores 6 x 9 x 4 and values 6 x 9 x 4 multiply-adds.
    assert cost.count_flops(lambda: call(q, k, k)) == 2 * 2 * (6 * 9 * 4) * 2


def test_the_two_sides_are_timed_in_turns() -> None:
    order: list[str] = []
    found = alternate(lambda: order.append("a"), lambda: order.append("b"), "cpu", 4, warm_up=1)
    assert "".join(order) == "ab" * 5
    assert found.low <= found.median <= found.high


@pytest.mark.parametrize(
    ("a_row", "batch"),
    [
        ({1: 1.0, 2: 1.0, 4: 1.0}, 1),  # compute-bound from the start: stops after two doublings
        ({1: 4.0, 2: 2.0, 4: 1.0, 8: 0.98, 16: 0.97}, 4),
        ({1: 4.0, 2: 2.0, 4: 1.0}, 4),  # no more rows
    ],
)
def test_the_batch_is_the_first_that_is_compute_bound(
    a_row: dict[int, float], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = {"size": 0}

    def inputs(size: int) -> dict[str, Any]:
        clock["size"] = size
        return {}

    monkeypatch.setattr(cost, "prefill", lambda model, given: None)
    monkeypatch.setattr(cost, "seconds", lambda call, device: a_row[clock["size"]] * clock["size"])
    model = torch.nn.Linear(1, 1)
    model.device = torch.device("cpu")  # type: ignore[assignment]
    assert cost.compute_bound_batch(model, inputs, max(a_row)) == batch


def test_the_batch_stays_within_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def prefill(model: Any, given: dict[str, int]) -> None:
        if given["rows"] > most:
            raise torch.OutOfMemoryError

    monkeypatch.setattr(cost, "prefill", prefill)
    monkeypatch.setattr(cost, "seconds", lambda call, device: 1.0)
    model = torch.nn.Linear(1, 1)
    model.device = torch.device("cpu")  # type: ignore[assignment]
    most = 2
    assert cost.compute_bound_batch(model, lambda rows: {"rows": rows}, 32) == 2
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        cost.compute_bound_batch(model, lambda rows: {"rows": rows}, 32)
