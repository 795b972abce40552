"""What all tiny models share: vocabulary, prompts with pictures in them, weights drawn anew.

Nothing is downloaded: a model is built from its config and every parameter is drawn anew, with
weights large enough that a wrong position id, mask or feature visibly changes the logits (left to
themselves several classes start with zero weights and would hide it). The prompt of each family
is laid out as its processor does it: tiles, newline and separator tokens, timestamps.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

VOCABULARY = 200
PAD, BOS = 0, 2
TEXT_IDS = (10, 170)  # ordinary words are drawn from this range
IMAGE, VIDEO = 190, 191  # placeholders of images and videos in every family
OPEN, CLOSE, GLOBAL, NEWLINE, ROW_BREAK, ROW_END = 180, 181, 182, 183, 184, 185
TILE_NAMES = 171  # 171..179 stand for "row r, column c"

HIDDEN, HEADS, LAYERS = 64, 4, 4
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": None,
}
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "patch_size": 4,
}


@dataclasses.dataclass
class Picture:
    """One image or video of a prompt.

    Attributes:
        ids: the token ids that stand for it in the prompt, wrappers included.
        visual: for each id, whether it is a visual slot (newline and separator tokens are not).
        data: its own model inputs, not yet batched.
        is_video: whether it is a video.
    """

    ids: list[int]
    visual: list[bool]
    data: dict[str, Any]
    is_video: bool = False


@dataclasses.dataclass
class Row:
    """One prompt: its ids and where its pictures lie in them, before padding."""

    ids: list[int]
    pictures: list[Picture]
    starts: list[int]


@dataclasses.dataclass
class Batch:
    """Padded prompts.

    Attributes:
        inputs: what the family's processor would return: the arguments of the model.
        slots: for each row, for each picture, the absolute positions of its visual slots.
        rows: the prompts before padding.
    """

    inputs: dict[str, Any]
    slots: list[list[Tensor]]
    rows: list[Row]


@dataclasses.dataclass(frozen=True)
class Family:
    """One model family.

    Attributes:
        name: key in `FAMILIES`.
        make: builds the model from its config, given the attention implementation.
        image: draws the i-th image of a row of `count` images.
        collate: the pictures of each row -> the batched visual inputs.
        video: draws a video; None if the family takes none.
        token_types: name and kind of the per-token argument: ``"mm"`` numbers image and video
            placeholders 1 and 2, ``"image"`` marks placeholders, ``"prefix"`` is all zero.
        image_first: whether the pictures precede all text, BOS included.
    """

    name: str
    make: Callable[[str], PreTrainedModel]
    image: Callable[[torch.Generator, int, int], Picture]
    collate: Callable[[list[list[Picture]]], dict[str, Any]]
    video: Callable[[torch.Generator, int], Picture] | None = None
    token_types: tuple[str, str] | None = None
    image_first: bool = False

    @property
    def suffix_type(self) -> int:
        """`token_type_ids` of a generated token: PaliGemma's prompt is a prefix, its answer not."""
        return int(self.token_types is not None and self.token_types[1] == "prefix")

    def build(
        self, attn: str = "sdpa", dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> PreTrainedModel:
        """The model in eval mode; the same weights for the same seed on every version."""
        model = self.make(attn)
        draw_weights(model, seed)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        model.generation_config.update(
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=None,
            do_sample=False,
            # A generated placeholder would ask for an image that does not exist.
            suppress_tokens=[IMAGE, VIDEO],
        )
        return model.eval()

    def batch(
        self,
        rows: int = 2,
        seed: int = 0,
        padding: str = "left",
        images_per_row: Sequence[int] | None = None,
        *,
        videos_per_row: Sequence[int] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Batch:
        """Prompts of different lengths, padded to one.

        Args:
            rows: number of prompts, if `images_per_row` does not say it.
            seed: of words and pixels; the image sizes depend on it as well.
            padding: ``"left"`` or ``"right"``.
            images_per_row: images in each row, 0 for a text-only row; one each if None.
            videos_per_row: videos in each row, after its images; none if None.
            dtype: of floating-point inputs.
        """
        images = list(images_per_row) if images_per_row is not None else [1] * rows
        videos = list(videos_per_row) if videos_per_row is not None else [0] * len(images)
        prompts = [
            self.prompt(seed, row, i, v)
            for row, (i, v) in enumerate(zip(images, videos, strict=True))
        ]
        return self.pad(prompts, padding, dtype)

    def inputs(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """`batch(...)`, only the model's arguments."""
        return self.batch(*args, **kwargs).inputs

    def video_inputs(self, rows: int = 2, seed: int = 0, **kwargs: Any) -> dict[str, Any]:
        """The model's arguments for prompts with one video each and no image."""
        return self.inputs(
            seed=seed, images_per_row=[0] * rows, videos_per_row=[1] * rows, **kwargs
        )

    def prompt(self, seed: int, row: int, images: int, videos: int = 0) -> Row:
        """One prompt: words, pictures with words between them, words."""
        g = torch.Generator().manual_seed(1000 * seed + row)
        pictures = [self.image(g, seed + row + i, images) for i in range(images)]
        if videos:
            assert self.video is not None, f"{self.name} takes no videos"
            pictures += [self.video(g, seed + row + i) for i in range(videos)]
        ids: list[int] = [] if self.image_first else [BOS, *words(g, 3 + (seed + 2 * row) % 3)]
        starts = []
        for i, picture in enumerate(pictures):
            if i and not self.image_first:
                ids += words(g, 2)
            starts.append(len(ids))
            ids += picture.ids
        if self.image_first:
            ids.append(BOS)
        return Row(ids + words(g, 4 + 3 * ((row + seed) % 3)), pictures, starts)

    def pad(
        self, rows: list[Row], padding: str = "left", dtype: torch.dtype = torch.float32
    ) -> Batch:
        """Prompts -> a batch."""
        length = max(len(row.ids) for row in rows)
        input_ids = torch.full((len(rows), length), PAD)
        mask = torch.zeros(len(rows), length, dtype=torch.long)
        slots: list[list[Tensor]] = []
        for b, row in enumerate(rows):
            first = length - len(row.ids) if padding == "left" else 0
            input_ids[b, first : first + len(row.ids)] = torch.tensor(row.ids)
            mask[b, first : first + len(row.ids)] = 1
            slots.append(
                [
                    torch.tensor(picture.visual).nonzero().flatten() + first + start
                    for picture, start in zip(row.pictures, row.starts, strict=True)
                ]
            )
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": mask}
        if self.token_types is not None:
            name, kind = self.token_types
            inputs[name] = token_types(input_ids, kind)
        if any(row.pictures for row in rows):
            inputs |= self.collate([row.pictures for row in rows])
        for key, value in inputs.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                inputs[key] = value.to(dtype)
        return Batch(inputs, slots, rows)

    def next_turn(
        self,
        batch: Batch,
        answer: Tensor,
        seed: int = 7,
        images_per_row: Sequence[int] | None = None,
    ) -> Batch:
        """The conversation so far plus each row's `answer` (b, t), new words and new images.

        `inputs` holds all tokens of both turns, but only the new images, as a chat passes them
        beside the first turn's cache. Needs a batch without right padding.
        """
        counts = list(images_per_row) if images_per_row is not None else [0] * len(batch.rows)
        rows = []
        for b, (row, count) in enumerate(zip(batch.rows, counts, strict=True)):
            g = torch.Generator().manual_seed(5000 * seed + b)
            ids = row.ids + answer[b].tolist() + words(g, 3)
            pictures, starts = [], []
            for i in range(count):
                pictures.append(self.image(g, seed + i, count))  # one size in every row
                starts.append(len(ids))
                ids = ids + pictures[-1].ids + words(g, 2)
            rows.append(Row(ids + words(g, 2), pictures, starts))
        dtype = next(
            (
                v.dtype
                for v in batch.inputs.values()
                if isinstance(v, Tensor) and v.is_floating_point()
            ),
            torch.float32,
        )
        return self.pad_after(batch, rows, dtype)

    def pad_after(self, first: Batch, rows: list[Row], dtype: torch.dtype) -> Batch:
        """Rows that go on from `first`: its padding stays, new padding would have to go between."""
        grown = {len(row.ids) - len(old.ids) for row, old in zip(rows, first.rows, strict=True)}
        assert len(grown) == 1, "the second turn must add as many tokens to every row"
        return self.pad(rows, "left", dtype)


def words(g: torch.Generator, count: int) -> list[int]:
    """Random ordinary token ids."""
    return torch.randint(*TEXT_IDS, (count,), generator=g).tolist()


def token_types(input_ids: Tensor, kind: str) -> Tensor:
    """(b, s) the per-token argument of the given kind; see `Family.token_types`."""
    if kind == "prefix":
        return torch.zeros_like(input_ids)
    types = (input_ids == IMAGE).long()
    return types + 2 * (input_ids == VIDEO) if kind == "mm" else types


def draw_weights(model: PreTrainedModel, seed: int) -> None:
    """Draw every parameter anew from its own generator, seeded by its name.

    Matrices keep the scale of their input, embeddings have unit size, and what a class starts at
    0 or 1 (norms, biases, layer scales, Gemma 3's projector) is moved away from it.
    """
    centred = model.config.model_type in {"gemma3", "paligemma"}  # their text norms use 1 + weight
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            g = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
            noise = torch.randn(parameter.shape, generator=g)
            if "embed_tokens" in name:
                value = noise / HIDDEN**0.5 if centred else noise  # these scale by sqrt(hidden)
            elif any(
                word in name
                for word in (
                    "position_embed",
                    "pos_embed",
                    "class_embedding",
                    "cls_token",
                    "image_newline",
                )
            ):
                value = noise
            elif name.endswith("mm_input_projection_weight"):
                value = noise / parameter.shape[0] ** 0.5
            elif parameter.ndim >= 2:
                value = 1.3 * noise / parameter[0].numel() ** 0.5
            elif name.endswith("bias"):
                value = 0.1 * noise
            elif centred and "norm" in name and "vision" not in name:
                value = 0.2 * noise
            else:
                value = 1 + 0.2 * noise
            parameter.copy_(value.to(parameter.dtype))


def pixels(g: torch.Generator, *shape: int) -> Tensor:
    """Random pixels, as they are after normalisation."""
    return torch.randn(shape, generator=g)


def placeholders(count: int, token: int = IMAGE) -> tuple[list[int], list[bool]]:
    """`count` visual slots in a row."""
    return [token] * count, [True] * count


def between(ids: list[int], visual: list[bool], before: Sequence[int], after: Sequence[int]) -> Any:
    """(ids, visual) with wrapper tokens around them."""
    return (
        [*before, *ids, *after],
        [False] * len(before) + visual + [False] * len(after),
    )


def stacked(rows: list[list[Picture]], *keys: str) -> dict[str, Tensor]:
    """The data of all pictures, stacked along a new first dimension."""
    return {
        key: torch.stack(
            [torch.as_tensor(p.data[key]) for row in rows for p in row if key in p.data]
        )
        for key in keys
        if any(key in p.data for row in rows for p in row)
    }


def joined(rows: list[list[Picture]], *keys: str) -> dict[str, Tensor]:
    """The data of all pictures, joined along their first dimension."""
    return {
        key: torch.cat([p.data[key] for row in rows for p in row if key in p.data])
        for key in keys
        if any(key in p.data for row in rows for p in row)
    }


def from_config(cls: type[PreTrainedModel], config: Any, attn: str) -> PreTrainedModel:
    """A model of `cls` with random weights."""
    return cls._from_config(config, attn_implementation=attn, dtype=torch.float32)
