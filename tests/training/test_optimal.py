"""The best P for one dialogue: the algorithm step by step, and the numbers of what it keeps."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import foveate
from foveate import reference
from foveate.errors import AttachError, InputError, SavedFileError
from foveate.evaluation.data import Dialogue
from foveate.evaluation.optimum import Optimum
from foveate.mapping import Mapping
from foveate.training import data, optimal
from foveate.training.batches import collate
from foveate.training.losses import entropy, prediction
from foveate.training.optimal import Looked, looked, optimise, summary
from foveate.training.teacher import Teacher
from tests.laws.methods import TopNorm
from tests.training import needs_features

pytestmark = needs_features


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    made = Teacher(*reference.load(), tmp_path_factory.mktemp("t"), reads=optimal.READS)
    made.fill(scenes())
    return made


def scenes() -> list[Dialogue]:
    found = data.examples("scenes", count=2)
    return [found[0], *data.single_turns(found[1:])[:1]]


def test_one_step_is_that_of_algorithm_2(teacher: Teacher) -> None:
    one = scenes()[0]
    start = optimise(teacher, [one], 12, steps=0)[0].mappings[0].to_matrix()
    found = optimise(teacher, [one], 12, steps=1, rate=5.0, alpha=0.5)[0]
    # log P is P_raw up to a constant of each row, which softmax takes off again.
    raw = start.log().requires_grad_()
    matrix = raw.softmax(-1)
    model, batch = teacher.model, collate([teacher.lesson(one)])
    shared = batch.encoded(model)
    given = [[Mapping.dense(matrix)]]
    with foveate.attach(model, TopNorm(), keep=12, encoded=shared, _recorded=given):
        logits = batch.answer_logits(model, shared)
    assert batch.full is not None
    divergence = prediction(batch.full, logits).mean()
    (divergence + 0.5 * entropy(matrix)).backward()
    assert raw.grad is not None
    expected = (raw.detach() - 5.0 * raw.grad).softmax(-1)
    torch.testing.assert_close(found.mappings[0].to_matrix(), expected, rtol=1e-4, atol=1e-6)
    assert found.before == pytest.approx(float(divergence.detach()), rel=1e-4)
    assert found.entropy == pytest.approx(float(entropy(expected)), rel=1e-4)


def test_it_gets_nearer_to_the_full_model_and_batch_mates_do_not_matter(teacher: Teacher) -> None:
    together = optimise(teacher, scenes(), 0.1, steps=8, alpha=0.0, rate=50.0)
    assert all(each.after < each.before and len(each.curve) == 8 for each in together)
    alone = [optimise(teacher, [d], 0.1, steps=8, alpha=0.0, rate=50.0)[0] for d in scenes()]
    for a, b in zip(together, alone, strict=True):
        assert a.before == pytest.approx(b.before, rel=1e-4)
        assert a.after == pytest.approx(b.after, rel=2e-3)
    assert together[0].mappings[0].m == 26
    drawn = optimise(teacher, scenes()[:1], 0.1, steps=0, seed=1)[0]
    first = optimise(teacher, scenes()[:1], 0.1, steps=0)[0]
    assert not torch.equal(drawn.mappings[0].to_matrix(), first.mappings[0].to_matrix())
    spread = first.mappings[0].to_matrix().log()
    assert float((spread - spread.mean(1, keepdim=True)).std()) == pytest.approx(0.1, rel=0.05)


def test_what_is_kept_beside_the_attention(teacher: Teacher, tmp_path: Path) -> None:
    found = optimise(teacher, scenes(), 0.1, steps=1)
    places = looked(teacher, scenes(), found)
    assert len(places) == 2
    for each, one in zip(places, found, strict=True):
        assert len(each.tower) == len(each.prompt) == 256
        assert torch.equal(each.kept, one.mappings[0].to_matrix().argmax(1).unique())
        assert float(each.prompt.sum()) < 1  # the text looks at itself as well
    # The same numbers that a method reading the tower's attention is given.
    lesson = teacher.lesson(scenes()[0])
    layout = collate([lesson]).encoded(teacher.model).captures[0]
    assert layout.attention is not None
    torch.testing.assert_close(places[0].tower, layout.layouts[0].pool(layout.attention))
    assert optimal.plot(places, tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    files = optimal.save(found, tmp_path)
    back = Mapping.load(files[0])
    assert torch.equal(back.to_matrix(), found[0].mappings[0].to_matrix())
    assert not list(tmp_path.glob("*partial*"))


def test_a_teacher_that_did_not_look_is_refused(teacher: Teacher) -> None:
    blind = Teacher(teacher.model, teacher.processor, teacher.folder)
    with pytest.raises(AttachError, match=r"reads=foveate\.training\.optimal\.READS"):
        looked(blind, scenes(), [])


def test_shares_and_ranks_by_hand() -> None:
    tower = torch.tensor([0.1, 0.5, 0.2, 0.9, 0.0])
    one = Looked(torch.tensor([1, 4]), 2, tower, tower.flip(0))
    assert one.share("tower") == 0.5  # of {1, 4} the top two {3, 1} hold one
    assert one.rank("tower") == pytest.approx((3 / 4 + 0) / 2)
    assert one.share("prompt") == pytest.approx(0.5)  # {1, 3} of 0, .9, .2, .5, .1
    assert one.chance == pytest.approx(0.4)
    found = summary([one, Looked(torch.tensor([3]), 1, tower, tower)])
    assert found["tower_share"] == pytest.approx(0.75)
    assert found["sources"] == 1.0


def test_dialogues_of_like_names_have_files_of_their_own(tmp_path: Path) -> None:
    names = ("a/b", "a b", "a_b", "x" * 300, "x" * 301)
    found = [
        optimal.Optimal(
            name, (Mapping.select(torch.tensor([i]), 9),), 0.0, 0.0, torch.zeros(0), 0.0
        )
        for i, name in enumerate(names)
    ]
    files = optimal.save(found, tmp_path)
    assert [Mapping.load(file).anchors.tolist() for file in files] == [[i] for i in range(5)]
    assert files[2].name == "a_b-0.safetensors"
    there = dataclasses.replace(Optimum(keep=1), folder=tmp_path)
    assert [there.file(name) for name in names] == files
    with pytest.raises(SavedFileError, match="no safetensors file"):
        Mapping.load(there.file("c"))


def test_a_budget_of_everything_is_refused(teacher: Teacher) -> None:
    with pytest.raises(InputError, match="nothing to optimise"):
        optimise(teacher, scenes()[:1], 1.0)
