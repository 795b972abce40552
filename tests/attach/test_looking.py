"""Attention read between decoder layers is what eager attention computes, whatever the kernel."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

import foveate
from foveate import attention
from foveate.adapters import adapter_for
from foveate.attach.probe import logits_of
from foveate.attention import LayerAttention, Logits
from foveate.compressor import Compressor, DecoderMethod, Reads, Stage, VisualTokens
from foveate.errors import AttachError
from foveate.mapping import Mapping
from tests.attach.backends import flash_like
from tests.families.family import IMAGE, VIDEO
from tests.families.models import FAMILIES
from tests.laws.laws import Case, shared_model
from tests.laws.methods import MergePairs

AT = (1, 3)


@dataclasses.dataclass(frozen=True)
class Watch(DecoderMethod):
    """Keeps everything (or every second token) and notes what it may look at."""

    seen: list[tuple[int, VisualTokens]] = dataclasses.field(default_factory=list, compare=False)
    drop: bool = False
    reads: ClassVar[frozenset[Reads]] = frozenset(
        {Reads.BEFORE, Reads.AHEAD, Reads.START, Reads.TEXT, Reads.TEXT_STATES, Reads.NORMED}
    )

    @property
    def layers(self) -> tuple[int, ...]:
        return AT

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        assert tokens.layer is not None
        self.seen.append((tokens.layer, tokens))
        step = 2 if self.drop else 1
        return Mapping.select(torch.arange(0, tokens.n, step), tokens.n)


def eager_maps(case: Case, row: Any) -> list[Tensor]:
    """(h, s, s) attention of every decoder layer for one prompt, by the stock eager model."""
    model = shared_model(case.name, "eager", case.dtype)
    maps = []
    layers = adapter_for(model).decoder_layers
    hooks = [
        layer.self_attn.register_forward_hook(lambda m, a, out: maps.append(out[1][0]))
        for layer in layers
    ]
    model(**case.alone(row))
    for hook in hooks:
        hook.remove()
    return maps


def watched(case: Case, method: Watch) -> list[tuple[int, int, VisualTokens]]:
    """(row, layer, what was seen), one picture a row."""
    batch, model = case.batch(), case.model()
    with foveate.attach(model, method, _force=True):
        model(**batch.inputs)
    rows = len(batch.rows)
    return [(i % rows, layer, tokens) for i, (layer, tokens) in enumerate(method.seen)]


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_rows_and_sums_equal_eager_attention(name: str, padding: str) -> None:
    case = Case(name, dtype=torch.float32, padding=padding)
    batch, method = case.batch(), Watch()
    found = watched(case, method)
    assert len(found) == len(AT) * len(batch.rows)
    for row, layer, tokens in found:
        maps = eager_maps(case, batch.rows[row])
        first = int(batch.inputs["attention_mask"][row].argmax())
        (slots,) = (s - first for s in batch.slots[row])
        # A picture's last newline is no text, nor is any other of its placeholders.
        words = [i for i, token in enumerate(batch.rows[row].ids) if token not in (IMAGE, VIDEO)]
        # The picture may stand last: all text before it.
        text = torch.tensor([i for i in words if i > int(slots.max())] or words)
        assert tokens.before is not None and tokens.ahead is not None
        for seen, truth in ((tokens.before, maps[layer - 1]), (tokens.ahead, maps[layer])):
            check_against(seen, truth.float(), slots, text)


def check_against(seen: LayerAttention, truth: Tensor, slots: Tensor, text: Tensor) -> None:
    last = truth[:, -1:][..., slots]
    rows = seen.rows(torch.tensor([seen.last]))
    torch.testing.assert_close(rows, last, atol=2e-5, rtol=1e-4)
    columns = truth[..., slots]
    for heads, over in (("mean", columns.mean(0)), ("max", columns.amax(0))):
        for which, where in ((seen.text, text), (seen.visual, slots)):
            got = seen.received(which, heads)
            torch.testing.assert_close(got, over[where].sum(0), atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(
        seen.received(seen.everyone), columns.mean(0).sum(0), atol=2e-4, rtol=1e-3
    )


def only_ones(model: Any) -> contextlib.ExitStack:
    """Every query and key is ones before it is turned, while the context lasts."""
    stack = contextlib.ExitStack()
    for layer in adapter_for(model).decoder_layers:
        attn = layer.self_attn
        for each in "qk":
            module = getattr(attn, f"{each}_norm", getattr(attn, f"{each}_proj"))
            hook = module.register_forward_hook(lambda m, args, out: torch.ones_like(out))
            stack.callback(hook.remove)
    return stack


@pytest.mark.parametrize("positions", ["original", "reindex"])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_nearness_is_what_the_layer_makes_of_ones(name: str, positions: str) -> None:
    """Uneven rows, before and after a drop, also where tokens are numbered anew."""
    case = Case(name, images=(2, 1))
    model, method = case.model(), Watch(drop=True)
    with only_ones(model), foveate.attach(model, method, _force=True, positions=positions):
        model(**case.batch().inputs)
    assert len(method.seen) == 3 * len(AT)
    differ = []
    for _, tokens in method.seen:
        for seen in (tokens.before, tokens.ahead):
            assert seen is not None
            near = seen.nearness(seen.text)
            q, k = seen.q[0, seen.text].float(), seen.k[0, seen.visual + seen.offset].float()
            wanted = (q @ k.mT) / (q.norm(dim=1)[:, None] * k.norm(dim=1))
            torch.testing.assert_close(near, wanted, atol=1e-5, rtol=1e-4)
            differ.append(float(near.max() - near.min()))
    assert min(differ) > 0.01  # there is something to tell apart


def test_rows_of_older_m_rope_are_merged_by_section() -> None:
    """Up to transformers 5.1x a layer gets a row of each axis and picks from them itself."""
    adapter = adapter_for(FAMILIES["qwen2_vl"].build())
    sections = adapter.config.get_text_config().rope_parameters["mrope_section"]
    ids = torch.arange(3)[:, None, None] * 7 + torch.arange(4)  # time, height, width
    angle = 10.0 ** -torch.arange(sum(sections))
    axis = torch.arange(3).repeat_interleave(torch.tensor(sections))
    whole = ids[:, 0, :, None] * angle  # (3, s, d / 2)
    merged = torch.stack([whole[a, :, i] for i, a in enumerate(axis.tolist())], -1)[None]

    def pair(angles: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([angles, angles], -1)
        return both.cos(), both.sin()

    old = adapter.turned_ones(pair(whole[:, None]))
    torch.testing.assert_close(old, adapter.turned_ones(pair(merged)))


def test_many_rows_are_done_in_bounded_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    seen = LayerAttention(
        q=torch.randn(4, 10, 8),
        k=torch.randn(2, 13, 8),
        logits=Logits(0.3),
        offset=3,
        mask=None,
        visual=torch.arange(1, 6),
        text=torch.arange(6, 10),
        question=torch.arange(6, 8),
        everyone=torch.arange(10),
        last=9,
    )
    whole = seen.received(seen.everyone)
    monkeypatch.setattr(attention, "BLOCK", 4 * 13 * 3)  # three rows at a time
    blocks = list(seen.blocks(seen.everyone))
    assert [block.shape[1] for block in blocks] == [3, 3, 3, 1]
    torch.testing.assert_close(seen.received(seen.everyone), whole)
    # By hand: query 2 sees keys 0..5, its head 3 reads key head 1; slot 5 (key 8) is not seen yet.
    logits = seen.q[3, 2] @ seen.k[1, :6].T * 0.3
    by_hand = logits.softmax(-1)[torch.tensor([4, 5])]
    row = seen.rows(torch.tensor([2]))[3, 0]
    torch.testing.assert_close(row[:2], by_hand)
    assert row[2:].tolist() == [0, 0, 0]


@pytest.mark.parametrize("attn", ["eager", "stand-in"])
@torch.no_grad()
def test_any_kernel_shows_the_same(attn: str) -> None:
    """Eager, and a registered backend that returns no maps, as flash kernels do."""
    case = Case("llava", dtype=torch.float32)
    first = Watch()
    watched(case, first)
    second = Watch()
    if attn == "eager":
        watched(dataclasses.replace(case, attn="eager"), second)
    else:
        model = FAMILIES["llava"].build("sdpa", torch.float32)
        with (
            flash_like(model.model.language_model) as calls,
            foveate.attach(model, second, _force=True),
        ):
            model(**case.batch().inputs)
        # Each of the four layers attends once: looking costs no second pass.
        assert len(calls) == 4 == len(set(calls))
    for (_, one), (_, other) in zip(first.seen, second.seen, strict=True):
        assert one.before is not None and other.before is not None
        last = torch.tensor([one.before.last])
        torch.testing.assert_close(one.before.rows(last), other.before.rows(last))
        assert one.ahead is not None and other.ahead is not None
        torch.testing.assert_close(one.ahead.rows(last), other.ahead.rows(last))


@dataclasses.dataclass(frozen=True)
class Sliding(Watch):
    """Behind a layer with a window, and before the next one."""

    @property
    def layers(self) -> tuple[int, ...]:
        return (1, 2)


@torch.no_grad()
@pytest.mark.parametrize("images", [(1, 2), (2,)], ids=["padded", "one row"])
def test_a_kernel_without_masks_shows_its_window(images: tuple[int, ...]) -> None:
    """Of Gemma 3 the first and third layer have one, of 16 tokens; unpadded there is no mask."""
    case, found = Case("gemma3", dtype=torch.float32, images=images), Sliding()
    model = FAMILIES["gemma3"].build("sdpa", torch.float32)
    with flash_like(adapter_for(model).language), foveate.attach(model, found, _force=True):
        model(**case.batch().inputs)
    windows = []
    for layer, tokens in found.seen:
        look = tokens.before if layer == 1 else tokens.ahead
        assert look is not None and look.logits.window is not None
        near = look.visual > look.last - look.logits.window
        given = look.rows(torch.tensor([look.last]))[:, 0]
        assert bool((given[:, ~near] == 0).all()) and bool((given[:, near] > 0).all())
        windows.append(bool(near.any()) and not bool(near.all()))
    assert any(windows)


def test_a_mask_that_cannot_be_read_is_told() -> None:
    """Flex attention describes its mask by a function."""
    mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, 128, 128, device="cpu")
    with pytest.raises(AttachError, match="masks of type BlockMask cannot be read") as error:
        logits_of(torch.zeros(1, 1, 2, 4), mask, {})
    assert len(str(error.value).splitlines()) <= 4


@torch.no_grad()
def test_a_second_turn_with_a_picture_sees_the_cache() -> None:
    """Keys of the first turn take their share; both ways of looking count them."""
    case = Case("llava", dtype=torch.float32, images=(1,))
    model, batch = case.model(), case.batch()
    first, again = Watch(), Watch()
    one = {**batch.inputs}
    ids = one["input_ids"]
    with foveate.attach(model, first, _force=True):
        out = model(**one, use_cache=True)
        both = {**one, "attention_mask": torch.ones(1, 2 * ids.shape[1], dtype=torch.long)}
        model(**both, past_key_values=out.past_key_values, use_cache=True)
    twice = {
        **one,
        "input_ids": torch.cat([ids, ids], 1),
        "attention_mask": torch.ones(1, 2 * ids.shape[1], dtype=torch.long),
        "pixel_values": torch.cat([one["pixel_values"], one["pixel_values"]]),
    }
    with foveate.attach(model, again, _force=True):
        model(**twice)
    seconds = [tokens for _, tokens in again.seen[1::2]]
    for (_, tokens), truth in zip(first.seen[2:], seconds, strict=True):
        for name in ("before", "ahead"):
            got, want = getattr(tokens, name), getattr(truth, name)
            a, b = torch.tensor([got.last]), torch.tensor([want.last])
            torch.testing.assert_close(got.rows(a), want.rows(b), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_what_was_dropped_before_is_not_seen() -> None:
    """Layer 3 looks at what layer 1 left: its rows sum to one over the kept keys only."""
    case = Case("llava_next", dtype=torch.float32, images=(2, 1))
    method, batch = Watch(drop=True), case.batch()
    with foveate.attach(case.model(), method, _force=True):
        case.model()(**batch.inputs)
    third = [tokens for layer, tokens in method.seen if layer == 3]
    first = [tokens for layer, tokens in method.seen if layer == 1]
    for before, after in zip(first, third, strict=True):
        assert after.n == (before.n + 1) // 2
        assert after.before is not None and after.so_far is not None
        assert after.total == before.n and after.so_far.anchors.tolist() == list(
            range(0, before.n, 2)
        )
        assert len(after.before.everyone) < len(before.before.everyone)  # type: ignore[union-attr]
        assert after.start is not None and len(after.start) == before.n


@torch.no_grad()
def test_texts_and_states_are_the_models_own() -> None:
    case = Case("llava", dtype=torch.float32, images=(1,))
    model, batch = case.model(), case.batch()
    states = model(**batch.inputs, output_hidden_states=True).hidden_states
    method = Watch()
    with foveate.attach(model, method, _force=True):
        model(**batch.inputs)
    (slots,) = batch.slots[0]
    text = torch.arange(int(slots.max()) + 1, batch.inputs["input_ids"].shape[1])
    for layer, tokens in method.seen:
        torch.testing.assert_close(tokens.features, states[layer][0, slots])
        torch.testing.assert_close(tokens.text_states, states[layer][0, text])
        torch.testing.assert_close(tokens.start, states[0][0, slots])
        torch.testing.assert_close(tokens.text, states[0][0, text])
        norm = model.model.language_model.norm
        torch.testing.assert_close(tokens.normed, norm(states[layer][0, slots]))
        torch.testing.assert_close(tokens.text_normed, norm(states[layer][0, text]))
        assert bool(tokens.asked.all())  # type: ignore[union-attr]


@dataclasses.dataclass(frozen=True)
class MergeThenWatch(Compressor):
    """Merges neighbours before the decoder, and looks between its layers."""

    inside: Watch = dataclasses.field(default_factory=Watch)
    stage: ClassVar[Stage] = Stage.INPUT

    @property
    def parts(self) -> tuple[Compressor, ...]:
        return (MergePairs(), self.inside)

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        raise AssertionError("its parts are asked")


@pytest.mark.parametrize("positions", ["original", "reindex"])
@torch.no_grad()
def test_what_entered_is_found_by_anchors_wherever_it_runs(positions: str) -> None:
    case = Case("llava", dtype=torch.float32, images=(2, 1))
    plain, method = Watch(), MergeThenWatch()
    watched(case, plain)
    with foveate.attach(case.model(), method, _force=True, positions=positions):
        case.model()(**case.batch().inputs)
    for (layer, before), (_, after) in zip(plain.seen, method.inside.seen, strict=True):
        if layer == AT[0]:
            assert after.so_far is not None and before.start is not None
            assert after.start is not None and not after.so_far.is_selection
            entered = after.so_far.apply(before.start)
            torch.testing.assert_close(after.start[after.so_far.anchors], entered)
            gone = [j for j in range(before.n) if j not in after.so_far.anchors]
            torch.testing.assert_close(after.start[gone], before.start[gone])
