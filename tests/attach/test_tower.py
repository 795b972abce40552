"""Methods that change the vision tower, against towers that were given less by hand."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import foveate
from foveate.adapters.qwen_vl import _frames_of, _patches_of
from foveate.compressor import (
    DecoderMethod,
    Reads,
    Stage,
    TowerMethod,
    TowerPlan,
    VisualTokens,
    Windows,
)
from foveate.errors import StageNotAvailable
from foveate.mapping import Mapping
from tests.families.models import FAMILIES


@dataclasses.dataclass(frozen=True)
class Fixed(TowerMethod):
    """A plan given outright; keeps every slot, so that what the tower made can be seen."""

    size: tuple[int, int] | None = None
    merges: tuple[int, ...] = ()
    proportional: bool = True
    windows: Windows | None = None

    stage: ClassVar[Stage] = Stage.IMAGE

    def tower_plan(self, height: int, width: int, target: int, blocks: int) -> TowerPlan:
        size = self.size if self.size is None else (min(self.size[0], height), self.size[1])
        return TowerPlan(size, self.merges, self.proportional, self.windows)

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        return Mapping.identity(tokens.n)


@torch.no_grad()
def features(model: Any, inputs: dict[str, Any], method: TowerMethod) -> Tensor:
    """(n, d) projected tokens of the only picture, with the tower changed by `method`."""
    seen = {}

    def keep(module: Any, args: Any, kwargs: Any) -> None:
        seen["embeds"] = kwargs["inputs_embeds"]

    hook = model.model.language_model.register_forward_pre_hook(keep, with_kwargs=True)
    with foveate.attach(model, method, _force=True) as run:
        model(**inputs)
    hook.remove()
    return seen["embeds"][0, run.items[0].slots]


@torch.no_grad()
def projected(model: Any, pixels: Tensor) -> Tensor:
    """(n, d) projected tokens of pixels given by hand, position embeddings interpolated."""
    out = model.model.vision_tower(
        pixels, interpolate_pos_encoding=True, output_hidden_states=True, return_dict=True
    )
    return model.model.multi_modal_projector(out.hidden_states[-2][:, 1:])[0]


def test_a_resized_llava_picture_is_the_tower_on_fewer_pixels() -> None:
    family = FAMILIES["llava"]
    model = family.build("sdpa", torch.float32)
    inputs = family.inputs(1, seed=3)
    got = features(model, inputs, Fixed(size=(2, 3)))
    small = F.interpolate(inputs["pixel_values"], size=(8, 12), mode="bicubic", antialias=True)
    tokens = projected(model, small)  # 2 x 3 tokens for 5 x 5 slots
    for y in range(5):
        for x in range(5):
            want = tokens[(y * 2 // 5) * 3 + x * 3 // 5]
            torch.testing.assert_close(got[5 * y + x], want)


def test_qwen_patches_are_in_the_order_of_its_processor() -> None:
    """Against transformers' own cutting, on a picture whose size needs no rounding."""
    pytest.importorskip("torchvision", reason="the processor of Qwen2-VL is built on torchvision")
    from transformers import Qwen2VLImageProcessor

    processor = Qwen2VLImageProcessor(
        patch_size=4, merge_size=2, temporal_patch_size=2, do_resize=False, do_rescale=False,
        do_normalize=False,
    )  # fmt: skip
    picture = torch.randint(0, 255, (3, 24, 16), dtype=torch.uint8)
    made = processor(images=[picture], return_tensors="pt")
    patches = made["pixel_values"].float()
    frames = _frames_of(patches, 1, 3, 2, 2, 2, 4)
    torch.testing.assert_close(frames, picture.float().expand(2, -1, -1, -1))
    torch.testing.assert_close(_patches_of(frames, 1, 3, 2, 2, 2, 4), patches)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_resized_qwen_picture_is_the_tower_on_a_smaller_grid(name: str) -> None:
    family = FAMILIES[name]
    model = family.build("sdpa", torch.float32)
    inputs = family.inputs(1, seed=3)
    (t, h, w) = inputs["image_grid_thw"][0].tolist()
    high, wide = h // 2, w // 2
    got = features(model, inputs, Fixed(size=(2, 3)))
    frames = _frames_of(inputs["pixel_values"], t, high, wide, 2, 2, 4)
    small = F.interpolate(frames, size=(16, 24), mode="bicubic", antialias=True)
    grid = torch.tensor([[t, 4, 6]])
    with torch.no_grad():
        out = model.model.get_image_features(
            _patches_of(small, t, 2, 3, 2, 2, 4), grid, return_dict=True
        )
    tokens = out.pooler_output[0]
    for y in range(high):
        for x in range(wide):
            want = tokens[(y * 2 // high) * 3 + x * 3 // wide]
            torch.testing.assert_close(got[wide * y + x], want)


@torch.no_grad()
def merged_by_hand(model: Any, pixels: Tensor, merges: tuple[int, ...], scaled: bool) -> Tensor:
    """ToMe before each block, token by token, with plain Python lists."""
    tower = model.model.vision_tower
    tower = getattr(tower, "vision_model", tower)
    x = tower.pre_layrnorm(tower.embeddings(pixels))[0]
    groups, k = [[i] for i in range(len(x))], x
    for index, block in enumerate(tower.encoder.layers[:-1]):
        if 0 < index <= len(merges):
            keys = k.reshape(len(x), 2, -1).mean(1)
            keys = keys / keys.norm(dim=1, keepdim=True)
            pairs = []
            for a in range(2, len(x), 2):  # place 0 is CLS
                score = [float(keys[a] @ keys[b]) for b in range(1, len(x), 2)]
                pairs.append((-max(score), a, 1 + 2 * score.index(max(score))))
            joins = {a: b for _, a, b in sorted(pairs)[: merges[index - 1]]}
            into: dict[int, list[int]] = {i: [i] for i in range(len(x)) if i not in joins}
            for a, b in joins.items():
                into[b].append(a)
            sizes = [len(group) for group in groups]
            x = torch.stack(
                [
                    sum(x[i] * sizes[i] for i in members) / sum(sizes[i] for i in members)
                    for members in into.values()
                ]
            )
            groups = [[g for i in members for g in groups[i]] for members in into.values()]
        size = torch.tensor([float(len(group)) for group in groups])
        bias = size.log()[None, None, None] if scaled else None
        bias = None if bias is None else bias.expand(1, 1, len(x), -1)
        normed = block.layer_norm1(x)
        k = block.self_attn.k_proj(normed)
        out = block(x[None], attention_mask=bias)
        x = (out[0] if isinstance(out, tuple) else out)[0]
    spread = torch.empty(sum(map(len, groups)), x.shape[1])
    for token, group in zip(x, groups, strict=True):
        spread[group] = token
    return model.model.multi_modal_projector(spread[1:])


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_merging_in_the_tower_is_merging_by_hand(attn: str, scaled: bool) -> None:
    family = FAMILIES["llava"]
    model = family.build(attn, torch.float32)
    inputs = family.inputs(1, seed=3)
    got = features(model, inputs, Fixed(merges=(9,), proportional=scaled))
    want = merged_by_hand(model, inputs["pixel_values"], (9,), scaled)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    plain = features(model, inputs, Fixed())
    assert not torch.allclose(got, plain, atol=1e-3)  # merging did something


@dataclasses.dataclass(frozen=True)
class Scores(DecoderMethod):
    """Keeps everything and notes what the tower's tokens received."""

    seen: list[Tensor] = dataclasses.field(default_factory=list, compare=False)
    reads: ClassVar[frozenset[Reads]] = frozenset({Reads.ATTENTION})

    @property
    def layers(self) -> tuple[int, ...]:
        return (1,)

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        assert tokens.attention is not None
        self.seen.append(tokens.attention)
        return Mapping.identity(tokens.n)


@torch.no_grad()
def windowed_by_hand(model: Any, pixels: Tensor, merge: bool) -> tuple[Tensor, Tensor, float]:
    """(projected tokens, attention received, likeness of the window) of one 5 x 5 picture.

    The 3 x 3 slots at the top left are averaged after the first block if `merge`.
    """
    tower = model.model.vision_tower
    tower = getattr(tower, "vision_model", tower)
    has_cls = hasattr(tower.embeddings, "class_embedding")
    x = tower.embeddings(pixels)
    x = (tower.pre_layrnorm(x) if has_cls else x)[0]
    lead, last = int(has_cls), len(tower.encoder.layers) - (2 if has_cls else 1)
    owner = [[i] for i in range(len(x))]
    for index, block in enumerate(tower.encoder.layers[: last + 1]):
        if index == 1:
            window = [lead + 5 * row + column for row in range(3) for column in range(3)]
            u = x[window] / x[window].norm(dim=1, keepdim=True)
            score = float(((u @ u.T).sum() - 9) / 72)
            if merge:
                owner = [[i] if i != window[0] else window for i in range(len(x))]
                owner = [group for group in owner if group[0] not in window[1:]]
                x = torch.stack([x[group].mean(0) for group in owner])
        if index == last:
            normed = block.layer_norm1(x)
            q, k = (
                getattr(block.self_attn, f"{each}_proj")(normed).reshape(len(x), 2, -1)
                for each in "qk"
            )
            logits = torch.einsum("ihd,jhd->hij", q, k) * q.shape[-1] ** -0.5
            maps = logits.softmax(-1).mean(0)
            received = maps[0, 1:] if has_cls else maps.mean(0)
        out = block(x[None], attention_mask=None)
        x = (out[0] if isinstance(out, tuple) else out)[0]
    if not has_cls:
        x = tower.post_layernorm(x)
    spread = torch.empty(25, x.shape[1])
    scores = torch.empty(25)
    for token, score_here, group in zip(x[lead:], received, owner[lead:], strict=True):
        spread[[i - lead for i in group]] = token
        scores[[i - lead for i in group]] = score_here
    return model.model.multi_modal_projector(spread), scores, score


@pytest.mark.parametrize("name", ["llava", "paligemma"])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@torch.no_grad()
def test_alike_windows_merge_in_each_picture_by_itself(name: str, attn: str) -> None:
    """One of two pictures in a batch merges its window: the other one runs beside it as it is."""
    family = FAMILIES[name]
    model = family.build(attn, torch.float32)
    inputs = family.inputs(2, seed=3)
    pixels = inputs["pixel_values"].reshape(2, 1, 3, 20, 20)
    likeness = [windowed_by_hand(model, each, False)[2] for each in pixels]
    assert likeness[0] != likeness[1]
    least = sum(likeness) / 2
    method, seen = Scores(), {}
    chained = foveate.chain((Fixed(windows=Windows(3, least, 1)), None), (method, None))

    def keep(module: Any, args: Any, kwargs: Any) -> None:
        seen["embeds"] = kwargs["inputs_embeds"]

    hook = model.model.language_model.register_forward_pre_hook(keep, with_kwargs=True)
    with foveate.attach(model, chained, _force=True) as run:
        model(**inputs)
    hook.remove()
    for row, (each, one) in enumerate(zip(pixels, likeness, strict=True)):
        wanted, scores, _ = windowed_by_hand(model, each, one >= least)
        other, plain, _ = windowed_by_hand(model, each, one < least)
        got = seen["embeds"][row, run.items[row].slots]
        if name == "paligemma":  # its language model is given them divided by a constant
            got = got * (wanted.norm() / got.norm())
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(got, other, atol=1e-3)
        torch.testing.assert_close(method.seen[row], scores, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(scores, plain, atol=1e-4)


@torch.no_grad()
def test_what_is_read_of_a_changed_tower_stands_for_every_patch() -> None:
    """A method that reads the tower's attention behind one that changes it."""
    family = FAMILIES["llava"]
    model, inputs = family.build("sdpa", torch.float32), family.inputs(2, seed=3)
    method = Scores()
    resized = foveate.chain((Fixed(size=(2, 3)), None), (method, None))
    with foveate.attach(model, resized, _force=True):
        model(**inputs)
    for scores in method.seen:  # rows 0 to 2 of 5 show the upper of 2
        shown = scores.reshape(5, 5)
        assert torch.equal(shown[0], shown[2]) and torch.equal(shown[3], shown[4])
        assert len(scores.unique()) == 6
    assert not torch.equal(*method.seen)
    method = Scores()
    with foveate.attach(
        model, foveate.chain((Fixed(merges=(9,)), None), (method, None)), _force=True
    ):
        model(**inputs)
    for scores in method.seen:
        assert len(scores) == 25
        assert len(scores.unique()) == 16


@torch.no_grad()
def test_what_cannot_be_read_of_a_changed_tower_is_refused() -> None:
    family = FAMILIES["qwen2_vl"]
    model, inputs = family.build("sdpa", torch.float32), family.inputs(1, seed=3)
    chained = foveate.chain((Fixed(size=(2, 3)), None), (Scores(), None))
    refused = pytest.raises(StageNotAvailable, match="cannot be read here of a picture")
    with refused, foveate.attach(model, chained, _force=True):
        model(**inputs)


def test_a_tower_that_cannot_be_changed_says_so() -> None:
    family = FAMILIES["internvl"]
    model = family.build("sdpa", torch.float32)
    with (
        pytest.raises(StageNotAvailable, match="takes no smaller pictures"),
        foveate.attach(model, "resize", keep=4),
        torch.no_grad(),
    ):
        model(**family.inputs(1))
