"""Tiny random models of the real transformers classes, with the inputs their processors would give.

Nothing is downloaded: a model is built from its config and every parameter is drawn anew, with
weights large enough that a wrong position id, mask or feature visibly changes the logits (left to
themselves several classes start with zero weights and would hide it). The prompt of each family
is laid out as its processor does it: tiles, newline and separator tokens, timestamps.

    family = FAMILIES["llava_next"]
    model = family.build(attn="eager", dtype=torch.float64)
    batch = family.batch(seed=1, padding="right", images_per_row=[2, 0])
    model(**batch.inputs)
"""

from __future__ import annotations

import dataclasses
import inspect
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
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


# ---------------------------------------------------------------------- llava, llava_gqa


def make_llava(attn: str, **text: Any) -> PreTrainedModel:
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**TOWER, image_size=20),
        text_config=transformers.LlamaConfig(**(TEXT | text)),
        image_token_index=IMAGE,
        image_seq_length=25,
        vision_feature_layer=-2,
    )
    return from_config(transformers.LlavaForConditionalGeneration, config, attn)


def make_llava_gqa(attn: str) -> PreTrainedModel:
    return make_llava(
        attn,
        num_key_value_heads=2,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    )


def llava_image(g: torch.Generator, which: int, count: int) -> Picture:
    return Picture(*placeholders(25), {"pixel_values": pixels(g, 3, 20, 20)})


def collate_pixels(rows: list[list[Picture]]) -> dict[str, Any]:
    return stacked(rows, "pixel_values")


# ---------------------------------------------------------------------- tiles with newlines

TILE = 3  # patches along one side of a tile
PINPOINTS = [[12, 24], [24, 12], [24, 24]]
# (height, width), tiles (down, across), rows and columns of patches left after unpadding
ANYRES = [((14, 24), (2, 2), (4, 6)), ((26, 6), (2, 1), (6, 1)), ((12, 24), (1, 2), (3, 6))]


def anyres_image(g: torch.Generator, which: int) -> Picture:
    """A base view, then the tiles' patches row by row, each row ended by a newline token."""
    size, (down, across), (height, width) = ANYRES[which % len(ANYRES)]
    visual = [True] * TILE**2 + ([True] * width + [False]) * height
    data = {
        "pixel_values": pixels(g, 1 + down * across, 3, 12, 12),
        "image_sizes": list(size),
    }
    return Picture([IMAGE] * len(visual), visual, data)


def collate_tiles(rows: list[list[Picture]]) -> dict[str, Any]:
    pictures = [p for row in rows for p in row if not p.is_video]
    if not pictures:
        return {}
    most = max(len(p.data["pixel_values"]) for p in pictures)
    padded = torch.zeros(len(pictures), most, 3, 12, 12)
    for i, p in enumerate(pictures):
        padded[i, : len(p.data["pixel_values"])] = p.data["pixel_values"]
    sizes = torch.tensor([p.data["image_sizes"] for p in pictures])
    return {"pixel_values": padded, "image_sizes": sizes}


def make_llava_next(attn: str) -> PreTrainedModel:
    config = transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**TOWER, image_size=12),
        text_config=transformers.MistralConfig(
            **(TEXT | {"num_key_value_heads": 2}), sliding_window=None
        ),
        image_token_index=IMAGE,
        image_seq_length=TILE**2,
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-2,
    )
    return from_config(transformers.LlavaNextForConditionalGeneration, config, attn)


def llava_next_image(g: torch.Generator, which: int, count: int) -> Picture:
    return anyres_image(g, which)


def make_llava_onevision(attn: str) -> PreTrainedModel:
    config = transformers.LlavaOnevisionConfig(
        vision_config=transformers.SiglipVisionConfig(
            **TOWER, image_size=12, vision_use_head=False
        ),
        text_config=transformers.Qwen2Config(**(TEXT | {"num_key_value_heads": 2})),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=PINPOINTS,
    )
    return from_config(transformers.LlavaOnevisionForConditionalGeneration, config, attn)


def llava_onevision_image(g: torch.Generator, which: int, count: int) -> Picture:
    if count == 1:
        return anyres_image(g, which)
    # Among several images each is one tile and one newline.
    size = list(ANYRES[which % len(ANYRES)][0])
    visual = [True] * TILE**2 + [False]
    data = {"pixel_values": pixels(g, 1, 3, 12, 12), "image_sizes": size}
    return Picture([IMAGE] * len(visual), visual, data)


def llava_onevision_video(g: torch.Generator, which: int) -> Picture:
    visual = [True] * (4 * 4) + [False]  # 4 frames of 2 x 2, one newline at the end
    data = {"pixel_values_videos": pixels(g, 4, 3, 12, 12)}
    return Picture([VIDEO] * len(visual), visual, data, is_video=True)


def collate_onevision(rows: list[list[Picture]]) -> dict[str, Any]:
    images = collate_tiles(rows)
    if images:
        # How many images were passed together; one passed alone is cut into tiles. (The tiles
        # say it for a row that holds the pictures of several turns.)
        counts = []
        for row in rows:
            tiles = [len(p.data["pixel_values"]) for p in row if not p.is_video]
            counts += [len(tiles)] if set(tiles) == {1} else [1] * len(tiles)
        images["batch_num_images"] = torch.tensor(counts)
    return images | stacked(rows, "pixel_values_videos")


# ---------------------------------------------------------------------- Qwen-VL

QWEN_GRIDS = [(8, 10), (8, 8), (12, 8)]  # patches; merged 2 x 2 into slots
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}


def qwen_text() -> dict[str, Any]:
    return TEXT | {"num_key_value_heads": 2, "rope_parameters": dict(MROPE)}


def qwen_ids() -> dict[str, int]:
    return {
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": OPEN,
        "vision_end_token_id": CLOSE,
    }


def make_qwen2_vl(attn: str) -> PreTrainedModel:
    config = transformers.Qwen2VLConfig(
        vision_config={
            "depth": 3, "embed_dim": 32, "hidden_size": HIDDEN, "num_heads": 2, "mlp_ratio": 2,
            "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
        text_config=qwen_text(),
        **qwen_ids(),
    )  # fmt: skip
    return from_config(transformers.Qwen2VLForConditionalGeneration, config, attn)


def make_qwen2_5_vl(attn: str) -> PreTrainedModel:
    config = transformers.Qwen2_5_VLConfig(
        vision_config={
            "depth": 3, "hidden_size": 32, "out_hidden_size": HIDDEN, "num_heads": 2,
            "intermediate_size": 48, "patch_size": 4, "spatial_merge_size": 2,
            "temporal_patch_size": 2, "window_size": 24, "fullatt_block_indexes": [1],
            "tokens_per_second": 4,
        },
        text_config=qwen_text(),
        **qwen_ids(),
    )  # fmt: skip
    return from_config(transformers.Qwen2_5_VLForConditionalGeneration, config, attn)


def make_qwen3_vl(attn: str) -> PreTrainedModel:
    text = qwen_text() | {"head_dim": HIDDEN // HEADS}
    text["rope_parameters"]["mrope_interleaved"] = True
    del text["bos_token_id"], text["eos_token_id"]
    config = transformers.Qwen3VLConfig(
        vision_config={
            "depth": 3, "hidden_size": 32, "out_hidden_size": HIDDEN, "num_heads": 2,
            "intermediate_size": 48, "patch_size": 4, "spatial_merge_size": 2,
            "temporal_patch_size": 2, "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1, 2],
        },
        text_config=text,
        **qwen_ids(),
    )  # fmt: skip
    return from_config(transformers.Qwen3VLForConditionalGeneration, config, attn)


def qwen_patches(g: torch.Generator, frames: int, height: int, width: int) -> Tensor:
    return pixels(g, frames * height * width, 3 * 2 * 4 * 4)


def qwen_image(g: torch.Generator, which: int, count: int) -> Picture:
    height, width = QWEN_GRIDS[which % len(QWEN_GRIDS)]
    ids, visual = between(*placeholders(height * width // 4), [OPEN], [CLOSE])
    data = {
        "pixel_values": qwen_patches(g, 1, height, width),
        "image_grid_thw": [1, height, width],
    }
    return Picture(ids, visual, data)


def qwen2_video(g: torch.Generator, which: int) -> Picture:
    frames, height, width = 3, 6, 6
    ids, visual = between(*placeholders(frames * height * width // 4, VIDEO), [OPEN], [CLOSE])
    data = {
        "pixel_values_videos": qwen_patches(g, frames, height, width),
        "video_grid_thw": [frames, height, width],
    }
    return Picture(ids, visual, data, is_video=True)


def qwen2_5_video(g: torch.Generator, which: int) -> Picture:
    picture = qwen2_video(g, which)
    picture.data["second_per_grid_ts"] = 0.5
    return picture


def qwen3_video(g: torch.Generator, which: int) -> Picture:
    frames, height, width = 3, 6, 6
    ids: list[int] = []
    visual: list[bool] = []
    for _ in range(frames):  # a timestamp before each frame
        a, b = between(*placeholders(height * width // 4, VIDEO), [*words(g, 2), OPEN], [CLOSE])
        ids, visual = ids + a, visual + b
    data = {
        "pixel_values_videos": qwen_patches(g, frames, height, width),
        "video_grid_thw": [frames, height, width],
    }
    return Picture(ids, visual, data, is_video=True)


def collate_qwen(rows: list[list[Picture]]) -> dict[str, Any]:
    return joined(rows, "pixel_values", "pixel_values_videos") | stacked(
        rows, "image_grid_thw", "video_grid_thw", "second_per_grid_ts"
    )


# ---------------------------------------------------------------------- InternVL


def make_internvl(attn: str) -> PreTrainedModel:
    config = transformers.InternVLConfig(
        vision_config=transformers.InternVLVisionConfig(**TOWER, image_size=24, use_qk_norm=True),
        text_config=transformers.Qwen2Config(**(TEXT | {"num_key_value_heads": 2})),
        image_token_id=IMAGE,
        image_seq_length=9,
    )
    return from_config(transformers.InternVLForConditionalGeneration, config, attn)


def internvl_image(g: torch.Generator, which: int, count: int) -> Picture:
    tiles = 3 if which % 3 else 2  # tiles and, where there are several, a thumbnail
    ids, visual = between(*placeholders(9 * tiles), [OPEN], [CLOSE])
    return Picture(ids, visual, {"pixel_values": pixels(g, tiles, 3, 24, 24)})


def collate_joined_pixels(rows: list[list[Picture]]) -> dict[str, Any]:
    return joined(rows, "pixel_values")


# ---------------------------------------------------------------------- Idefics3, SmolVLM


def idefics_configs() -> dict[str, Any]:
    return {
        "text_config": transformers.LlamaConfig(**(TEXT | {"num_key_value_heads": 2})),
        "image_token_id": IMAGE,
        "scale_factor": 2,
    }


def make_idefics3(attn: str) -> PreTrainedModel:
    from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig

    config = transformers.Idefics3Config(
        vision_config=Idefics3VisionConfig(**TOWER, image_size=24), **idefics_configs()
    )
    return from_config(transformers.Idefics3ForConditionalGeneration, config, attn)


def make_smolvlm(attn: str) -> PreTrainedModel:
    from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig

    config = transformers.SmolVLMConfig(
        vision_config=SmolVLMVisionConfig(**TOWER, image_size=24), **idefics_configs()
    )
    return from_config(transformers.SmolVLMForConditionalGeneration, config, attn)


def idefics_image(g: torch.Generator, which: int, count: int) -> Picture:
    """Tiles, each announced by its row and column, then the whole image."""
    down, across = [(1, 2), (2, 1), (1, 1)][which % 3]
    ids: list[int] = []
    visual: list[bool] = []
    tiles = 1
    if (down, across) != (1, 1):
        tiles += down * across
        for r in range(down):
            for c in range(across):
                name = TILE_NAMES + 3 * r + c
                a, b = between(*placeholders(9), [OPEN, name], [])
                ids, visual = ids + a, visual + b
            ids, visual = [*ids, NEWLINE], [*visual, False]
        ids, visual = [*ids, NEWLINE], [*visual, False]
    a, b = between(*placeholders(9), [OPEN, GLOBAL], [OPEN])
    return Picture(ids + a, visual + b, {"pixel_values": pixels(g, tiles, 3, 24, 24)})


def collate_idefics(rows: list[list[Picture]]) -> dict[str, Any]:
    tiles = [torch.cat([p.data["pixel_values"] for p in row]) if row else None for row in rows]
    most = max(len(t) for t in tiles if t is not None)
    padded = torch.zeros(len(rows), most, 3, 24, 24)
    mask = torch.zeros(len(rows), most, 24, 24, dtype=torch.long)
    for b, t in enumerate(tiles):
        if t is not None:
            padded[b, : len(t)] = t
            mask[b, : len(t)] = 1
    return {"pixel_values": padded, "pixel_attention_mask": mask}


# ---------------------------------------------------------------------- Gemma 3, PaliGemma


def make_gemma3(attn: str) -> PreTrainedModel:
    config = transformers.Gemma3Config(
        vision_config=transformers.SiglipVisionConfig(
            **TOWER, image_size=32, vision_use_head=False
        ),
        text_config=transformers.Gemma3TextConfig(
            **(TEXT | {"num_key_value_heads": 2}),
            head_dim=HIDDEN // HEADS,
            query_pre_attn_scalar=HIDDEN // HEADS,
            sliding_window=16,  # smaller than a prompt, so that the sliding layers differ
            layer_types=["sliding_attention", "full_attention"] * (LAYERS // 2),
        ),
        mm_tokens_per_image=16,
        boi_token_index=OPEN,
        eoi_token_index=CLOSE,
        image_token_index=IMAGE,
    )
    return from_config(transformers.Gemma3ForConditionalGeneration, config, attn)


def gemma3_image(g: torch.Generator, which: int, count: int) -> Picture:
    ids, visual = between(*placeholders(16), [NEWLINE, OPEN], [CLOSE, NEWLINE])
    return Picture(ids, visual, {"pixel_values": pixels(g, 3, 32, 32)})


def make_paligemma(attn: str) -> PreTrainedModel:
    config = transformers.PaliGemmaConfig(
        vision_config=transformers.SiglipVisionConfig(
            **TOWER, image_size=20, vision_use_head=False
        ),
        text_config=transformers.GemmaConfig(
            **(TEXT | {"num_key_value_heads": 1}), head_dim=HIDDEN // HEADS
        ),
        image_token_index=IMAGE,
        vocab_size=VOCABULARY,
        projection_dim=HIDDEN,
        hidden_size=HIDDEN,
    )
    return from_config(transformers.PaliGemmaForConditionalGeneration, config, attn)


# ---------------------------------------------------------------------- Mistral 3, Video-LLaVA


def make_mistral3(attn: str) -> PreTrainedModel:
    config = transformers.Mistral3Config(
        vision_config=transformers.PixtralVisionConfig(**TOWER, image_size=48, head_dim=16),
        text_config=transformers.MistralConfig(
            **(TEXT | {"num_key_value_heads": 2}), head_dim=HIDDEN // HEADS, sliding_window=None
        ),
        image_token_index=IMAGE,
        spatial_merge_size=2,
    )
    return from_config(transformers.Mistral3ForConditionalGeneration, config, attn)


def mistral3_image(g: torch.Generator, which: int, count: int) -> Picture:
    """Rows of slots, each ended by a break token, the last by an end token."""
    height, width = [(4, 5), (6, 3), (4, 4)][which % 3]  # slots of 8 x 8 pixels
    ids: list[int] = []
    visual: list[bool] = []
    for r in range(height):
        a, b = between(*placeholders(width), [], [ROW_END if r == height - 1 else ROW_BREAK])
        ids, visual = ids + a, visual + b
    data = {
        "pixel_values": pixels(g, 3, 8 * height, 8 * width),
        "image_sizes": [8 * height, 8 * width],
    }
    return Picture(ids, visual, data)


def collate_sized(rows: list[list[Picture]]) -> dict[str, Any]:
    pictures = [p for row in rows for p in row]
    sizes = torch.tensor([p.data["image_sizes"] for p in pictures])
    height, width = sizes.amax(0).tolist()
    padded = torch.zeros(len(pictures), 3, height, width)
    for i, p in enumerate(pictures):
        h, w = p.data["image_sizes"]
        padded[i, :, :h, :w] = p.data["pixel_values"]
    return {"pixel_values": padded, "image_sizes": sizes}


def make_video_llava(attn: str) -> PreTrainedModel:
    config = transformers.VideoLlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**TOWER, image_size=20),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_seq_length=25,
        video_seq_length=3 * 26,
    )
    return from_config(transformers.VideoLlavaForConditionalGeneration, config, attn)


def video_llava_video(g: torch.Generator, which: int) -> Picture:
    # Frames keep their CLS token, whose placeholder is no patch of the picture.
    visual = ([False] + [True] * 25) * 3
    data = {"pixel_values_videos": pixels(g, 3, 3, 20, 20)}
    return Picture([VIDEO] * len(visual), visual, data, is_video=True)


def collate_video_llava(rows: list[list[Picture]]) -> dict[str, Any]:
    inputs = stacked(rows, "pixel_values", "pixel_values_videos")
    forward = inspect.signature(transformers.VideoLlavaForConditionalGeneration.forward)
    if "pixel_values" in inputs and "pixel_values" not in forward.parameters:
        inputs["pixel_values_images"] = inputs.pop("pixel_values")  # its name up to some 5.x
    return inputs


def _families() -> dict[str, Family]:
    mm = ("mm_token_type_ids", "mm")
    families = [
        Family("llava", make_llava, llava_image, collate_pixels),
        Family("llava_gqa", make_llava_gqa, llava_image, collate_pixels),
        Family("llava_next", make_llava_next, llava_next_image, collate_tiles),
        Family(
            "llava_onevision",
            make_llava_onevision,
            llava_onevision_image,
            collate_onevision,
            video=llava_onevision_video,
        ),
        Family("qwen2_vl", make_qwen2_vl, qwen_image, collate_qwen, qwen2_video, mm),
        Family("qwen2_5_vl", make_qwen2_5_vl, qwen_image, collate_qwen, qwen2_5_video, mm),
        Family("qwen3_vl", make_qwen3_vl, qwen_image, collate_qwen, qwen3_video, mm),
        Family("internvl", make_internvl, internvl_image, collate_joined_pixels),
        Family("idefics3", make_idefics3, idefics_image, collate_idefics),
        Family("smolvlm", make_smolvlm, idefics_image, collate_idefics),
        Family(
            "gemma3",
            make_gemma3,
            gemma3_image,
            collate_pixels,
            token_types=("token_type_ids", "image"),
        ),
        Family(
            "paligemma",
            make_paligemma,
            llava_image,
            collate_pixels,
            token_types=("token_type_ids", "prefix"),
            image_first=True,
        ),
        Family("mistral3", make_mistral3, mistral3_image, collate_sized),
        Family(
            "video_llava", make_video_llava, llava_image, collate_video_llava, video_llava_video
        ),
    ]
    return {family.name: family for family in families}


FAMILIES = _families()
VIDEO_FAMILIES = {name: family for name, family in FAMILIES.items() if family.video is not None}
