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
from foveate.compressor import Stage, TowerMethod, TowerPlan, VisualTokens
from foveate.errors import StageNotAvailable
from foveate.mapping import Mapping
from tests.families.models import FAMILIES


@dataclasses.dataclass(frozen=True)
class Fixed(TowerMethod):
    """A plan given outright; keeps every slot, so that what the tower made can be seen."""

    size: tuple[int, int] | None = None
    merges: tuple[int, ...] = ()
    proportional: bool = True

    stage: ClassVar[Stage] = Stage.IMAGE

    def tower_plan(self, height: int, width: int, target: int, blocks: int) -> TowerPlan:
        size = self.size if self.size is None else (min(self.size[0], height), self.size[1])
        return TowerPlan(size=size, merges=self.merges, proportional=self.proportional)

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


def test_a_tower_that_cannot_be_changed_says_so() -> None:
    family = FAMILIES["internvl"]
    model = family.build("sdpa", torch.float32)
    with (
        pytest.raises(StageNotAvailable, match="takes no smaller pictures"),
        foveate.attach(model, "resize", keep=4),
        torch.no_grad(),
    ):
        model(**family.inputs(1))
