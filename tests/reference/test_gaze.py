"""The hint where to look, and the two steps that put patches on the decoder's scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from foveate.reference import words
from foveate.reference.alignment import align, patch_targets
from foveate.reference.architecture import build_model
from foveate.reference.captions import describe, listing, relate, tally
from foveate.reference.dialogues import training_dialogues
from foveate.reference.gaze import Gaze, place_head
from foveate.reference.labels import MOST_OWNERS, PATCH_CLASSES, centres_of, patch_labels
from foveate.reference.language_stage import PREFIX_WORDS, language_loss
from foveate.reference.layout import Layout, Thing
from foveate.reference.packing import pack, text_encoder
from foveate.reference.questions import KINDS, ask
from foveate.reference.referring import attribute
from foveate.reference.scenes import scene, scene_layout
from foveate.reference.whitening import Whitening


def test_gaze_is_the_attention_of_the_layer_itself() -> None:
    """Against the probabilities that the layer returns, cut to the patches and renormalised."""
    torch.manual_seed(0)
    model = build_model(64, 2, 64, 2).eval()
    model.set_attn_implementation("eager")
    rng = np.random.default_rng(0)
    dialogues = training_dialogues(scene_layout(0, "train"), rng, 6, 0.5)
    packed = pack([dialogues], text_encoder())
    owners = torch.randint(0, MOST_OWNERS, (1, 64))
    returned: list[torch.Tensor] = []

    def note(_: nn.Module, __: Any, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        returned.append(output[1])

    gaze = Gaze(model)
    gaze.attention.register_forward_hook(note)
    with torch.no_grad(), gaze.watching():
        language_loss(model, torch.randn(1, 64, 64), packed)
        prefix = PREFIX_WORDS + 64
        loss, looked = gaze.loss(owners, packed, prefix)
    heads = returned[0].shape[1] // 2
    weights = returned[0][0, :heads, prefix:, PREFIX_WORDS:prefix]
    weights = weights / weights.sum(-1, keepdim=True)
    means = []
    for which, wanted in (("gaze at named", packed.named), ("gaze at asked", packed.about)):
        costs, shares = [], []
        for token, about in enumerate(wanted[0]):
            found = [one for one in about.nonzero().flatten().tolist() if (owners == one).any()]
            for head in range(heads if found else 0):
                each = [weights[head, token, owners[0] == owner].sum() for owner in found]
                costs.append(-torch.stack(each).log().mean())
                shares.append(torch.stack(each).sum())
        assert len(costs) > 10
        means.append(torch.stack(costs).mean().item())
        assert looked[which] == pytest.approx(torch.stack(shares).mean().item(), rel=1e-4)
    assert loss.item() == pytest.approx(sum(means) / 2, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_names_last_word_means_what_the_name_fits(kind: str) -> None:
    rng = np.random.default_rng(5)
    seen = 0
    for seed in range(20):
        layout = scene_layout(seed, "validation")
        if (asked := ask(kind, layout, rng)) is None:
            continue
        said = asked.text.split()
        for place, found in asked.named:
            # The words before the place name every one of them, and end with a noun or a place.
            for thing in meant(layout, tuple(one for one in found if one <= len(layout.things))):
                known = {thing.shape, words.plural(thing.shape), "thing", "things"}
                assert said[place] in known | {attribute(thing, "region")}
            seen += 1
    assert seen > 5 or kind == "number"


def test_the_named_tokens_are_those_of_the_text() -> None:
    """In a packed dialogue too, behind earlier turns."""
    layout = scene_layout(3, "validation")
    rng = np.random.default_rng(0)
    turns = [asked for kind in KINDS if (asked := ask(kind, layout, rng))]
    packed = pack([[turns]], text_encoder())
    places = [(found, asked.text.split()[place]) for asked in turns for place, found in asked.named]
    table = {index: word for word, index in words.vocabulary().items()}
    got = [
        (tuple(owner.nonzero().flatten().tolist()), table[int(word)])
        for word, owner in zip(packed.ids[0], packed.named[0], strict=True)
        if owner.any()
    ]
    assert got == [(tuple(sorted(found)), word) for found, word in places if found]


def test_relations_are_said_as_the_picture_shows_them() -> None:
    rng = np.random.default_rng(6)
    for seed in range(40):
        layout = scene_layout(seed, "validation")
        if told := relate(layout, rng):
            (_, (one,)), (_, (other,)) = told.named
            first, second = layout.things[one - 1], layout.things[other - 1]
            said = set(told.answer.split())
            assert ("left" in said) == (second.x - first.x >= 16)
            assert ("right" in said) == (first.x - second.x >= 16)
            assert ("above" in said) == (second.y - first.y >= 16)
            assert ("below" in said) == (first.y - second.y >= 16)


def test_names_that_mean_one_object_must_tell_its_place() -> None:
    torch.manual_seed(0)
    model = build_model(64, 2, 64, 2).eval()
    layouts = [scene_layout(seed, "train") for seed in (0, 1)]
    rng = np.random.default_rng(1)
    packed = pack([training_dialogues(one, rng, 6, 0.5) for one in layouts], text_encoder())
    places = centres_of(layouts) / 64 - 1
    places[1, 1:] = torch.nan  # as in a clip
    head = place_head(64)
    with torch.no_grad():
        head.weight.normal_()
    gaze, prefix, left = Gaze(model), PREFIX_WORDS + 64, []
    gaze.layer.register_forward_hook(lambda _, __, output: left.append(output))
    with torch.no_grad(), gaze.watching():
        language_loss(model, torch.randn(2, 64, 64), packed)
        loss, facts = gaze.place_loss(head, places, packed, prefix)
    states = (left[0][0] if isinstance(left[0], tuple) else left[0])[0, prefix:]
    costs, off = [], []
    for token, owners in enumerate(packed.named[0]):
        if int(owners.sum()) == 1:
            thing = [*layouts[0].things, *layouts[0].plates][int(owners.long().argmax()) - 1]
            wanted = torch.tensor([thing.x / 64 - 1, thing.y / 64 - 1])
            middle, spread = states[token].mean(), states[token].var(correction=0) + 1e-5
            state = (states[token] - middle) / spread.sqrt()
            missed = (head(state) - wanted).abs()
            costs.append(torch.where(missed < 0.1, missed**2 / 0.2, missed - 0.05))
            off.append(missed)
    assert len(costs) > 5
    assert loss.item() == pytest.approx(torch.stack(costs).mean().item(), rel=1e-3)
    assert facts["place off"] == pytest.approx(torch.stack(off).mean().item(), rel=1e-3)
    nothing = torch.full_like(places, torch.nan)
    with torch.no_grad():
        assert gaze.place_loss(head, nothing, packed, prefix) == (0, {})


def meant(layout: Layout, about: tuple[int, ...]) -> list[Thing]:
    return [layout.things[owner - 1] for owner in about]


@pytest.mark.parametrize("kind", ["colour", "shape", "size", "pattern"])
def test_attribute_answers_are_read_from_the_object_that_has_them(kind: str) -> None:
    rng = np.random.default_rng(2)
    for seed in range(30):
        layout = scene_layout(seed, "validation")
        question = ask(kind, layout, rng)
        if question is None:
            continue
        (thing,) = meant(layout, question.about[0])
        assert attribute(thing, kind) == question.answer


def test_counted_and_existing_objects_are_all_meant() -> None:
    rng = np.random.default_rng(3)
    for seed in range(30):
        layout = scene_layout(seed, "validation")
        if count := ask("count", layout, rng):
            assert words.NUMERALS[len(count.about[0])] == count.answer
        if existence := ask("existence", layout, rng):
            assert bool(existence.about[0]) == (existence.answer == "yes")


def test_each_word_of_a_listing_is_read_from_its_own_object() -> None:
    rng = np.random.default_rng(4)
    for seed in range(10):
        layout = scene_layout(seed, "validation")
        listed, counted, told = listing(layout, rng), tally(layout, rng), describe(layout, rng)
        for asked in (listed, counted):
            said = asked.answer.split()
            assert len(asked.about) == len(said)
            for word, about in zip(said, asked.about, strict=True):
                (thing,) = meant(layout, about)
                assert word in (",", thing.colour, thing.shape)
        if told:
            (thing,) = meant(layout, told.about[0])
            assert told.answer.startswith(f"{thing.size} {thing.pattern} {thing.colour}")


def test_folded_whitening_takes_raw_features() -> None:
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([100.0, 1.0, 0.5, 3.0])
    raw = torch.randn(500, 4, generator=generator) * scale + 7
    whitening = Whitening.of(raw)
    linear = nn.Linear(4, 3)
    with torch.no_grad():
        expected = linear(whitening(raw))
        whitening.fold(linear)
        assert torch.allclose(linear(raw), expected, atol=1e-3)
    # The largest direction was a hundred times the others; it has size one now.
    assert whitening(raw)[:, 0].std() == pytest.approx(1, abs=0.05)
    assert whitening(raw).mean(0).abs().max() < 1e-3


def test_a_direction_without_any_variance_stays_small() -> None:
    """Variances 9 and 0, 4.5 on average: a floor of 0.15^2 of that is added to both."""
    whitening = Whitening.of(torch.tensor([[8.0, 5.0], [2.0, 5.0]]))
    assert whitening.mean.tolist() == [5.0, 5.0]
    scales = torch.tensor([(9 + 0.0225 * 4.5) ** -0.5, (0.0225 * 4.5) ** -0.5])
    torch.testing.assert_close(whitening.matrix, torch.diag(scales))


def test_an_unfolded_layer_says_of_white_features_what_it_said_of_raw_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(500, 3, generator=generator) @ torch.randn(3, 3, generator=generator) + 7
    whitening = Whitening.of(raw)
    linear = nn.Linear(3, 2)
    with torch.no_grad():
        expected = linear(raw)
        whitening.unfold(linear)
        torch.testing.assert_close(linear(whitening(raw)), expected, rtol=1e-3, atol=1e-3)


def test_patch_targets_tell_apart_what_a_word_tells_apart() -> None:
    drawn = scene(0, "validation")
    labels, offsets = patch_labels([drawn.layout], torch.from_numpy(drawn.owners)[None], 16)
    table = torch.randn(len(words.vocabulary()), 64, generator=torch.Generator().manual_seed(0))
    before = patch_targets(table, labels, offsets, 16, 0.25)
    thing = int((labels["colour"][0] >= 0).nonzero()[0])
    colours = list(words.COLOURS)
    old = int(labels["colour"][0, thing])
    new = (old + 1) % len(colours)
    labels["colour"][0, thing] = new
    change = patch_targets(table, labels, offsets, 16, 0.25) - before
    words_differ = table[words.vocabulary()[colours[new]]] - table[words.vocabulary()[colours[old]]]
    assert torch.allclose(change[0, thing], words_differ, atol=1e-5)
    assert change[0].abs().sum(-1).count_nonzero() == 1
    assert set(labels) == set(PATCH_CLASSES)


def test_alignment_teaches_the_projector_and_nothing_else() -> None:
    torch.manual_seed(0)
    model = build_model(64, 2, 64, 2)
    others = model.model.language_model.state_dict()
    before = {name: value.clone() for name, value in others.items()}
    features = torch.randn(2, 256, 64)
    errors = align(model, [(features, features.roll(1, -1) * 0.5)])
    assert errors[-1] < 0.3 * errors[0]
    after = model.model.language_model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
