"""TRIM: the maths by hand, and the whole way with a tiny CLIP checkpoint on disk."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers.processors import TemplateProcessing
from torch import Tensor

import foveate
from foveate.errors import InputError, StageNotAvailable
from foveate.methods.trim import Trim
from tests.families.checkpoints import EOS, PROCESSORS, tokenizer
from tests.families.family import BOS, VOCABULARY
from tests.families.models import FAMILIES
from tests.methods.given import tokens


@dataclasses.dataclass(frozen=True)
class InJointSpace(Trim):
    """TRIM of tokens that are in CLIP's joint space already, for the question (1, 0)."""

    def _joint_space(self, x: Tensor, question: str) -> tuple[Tensor, Tensor]:
        return x, torch.tensor([1.0, 0.0])


def trimmed(first: list[float], keep: int | None) -> Any:
    features = torch.tensor([[value, 0.0] for value in first])
    return InJointSpace()(tokens(features, question_text="?"), keep)


def test_by_hand() -> None:
    # Scores fall with the first coordinate: the smallest, 2 and then 0, are kept; the mean of the
    # others is a third row, on the first of them.
    found = trimmed([2.0, 5.0, 1.0, 4.0, 3.0], 3)
    expected = torch.zeros(3, 5)
    expected[0, 0] = expected[1, 2] = 1
    expected[2, [1, 3, 4]] = 1 / 3
    torch.testing.assert_close(found.to_matrix(), expected)
    assert found.anchors.tolist() == [0, 2, 1]


def test_ties_go_to_the_lower_index() -> None:
    assert trimmed([1.0, 1.0, 1.0, 1.0], 2).anchors.tolist() == [0, 1]  # 0 kept, the rest on 1
    assert trimmed([3.0, 1.0, 1.0, 1.0], 3).anchors.tolist() == [1, 2, 0]


def test_edge_budgets() -> None:
    one = trimmed([2.0, 5.0, 1.0], 1)
    assert one.is_selection
    assert one.anchors.tolist() == [2]
    assert trimmed([2.0, 5.0, 1.0], 3).is_identity
    assert trimmed([2.0, 5.0, 1.0], 2).to_matrix().tolist() == [[0, 0, 1], [0.5, 0.5, 0]]


def test_its_own_count_is_that_of_outliers() -> None:
    # Softmax of -(x): eleven tokens at 0 and one at -5, which alone lies above the quartiles.
    found = trimmed([0.0] * 11 + [-5.0], None)
    assert found.m == 2
    assert found.anchors.tolist() == [11, 0]


def test_outliers_are_those_of_the_softmax() -> None:
    # Weights 1, 2, 4 .. 4096, over their sum. Quartiles are those at places 3 and 9, 8 and 512;
    # above 512 + 1.5 * 504 = 1268 are 2048 and 4096. Of the exponents 0 .. 12 none stands out.
    found = trimmed([-i * math.log(2) for i in range(13)], None)
    assert found.anchors.tolist() == [11, 12, 0]


def test_without_outliers_one_token_is_kept() -> None:
    assert trimmed([1.0, 1.0, 1.0], None).to_matrix().tolist() == [[1, 0, 0], [0, 0.5, 0.5]]


# ---------------------------------------------------------------------- with a checkpoint


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder, width=32)
    return str(folder)


def clip_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """CLIP's end every text with the token whose state stands for all of it."""
    made = tokenizer()
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    return made


def save_clip(folder: Path, width: int) -> None:
    small = {"intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={"hidden_size": 16, "vocab_size": VOCABULARY, "eos_token_id": EOS, **small},
        vision_config={"hidden_size": width, "image_size": 20, "patch_size": 4, **small},
        projection_dim=8,
    )
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)


@torch.no_grad()
def test_both_sides_go_to_the_joint_space(clip: str) -> None:
    model = transformers.CLIPModel.from_pretrained(clip).eval()
    x = torch.randn(7, 32)
    v, t = Trim(clip)._joint_space(x, "what colour is the thing ?")
    ids = clip_tokenizer()("what colour is the thing ?", return_tensors="pt")
    text = model(**ids, pixel_values=torch.zeros(1, 3, 20, 20)).text_embeds[0]
    torch.testing.assert_close(t / t.norm(), text)
    torch.testing.assert_close(v, model.visual_projection(model.vision_model.post_layernorm(x)))


@torch.no_grad()
def test_attached_it_reads_the_question(clip: str) -> None:
    model, processor = FAMILIES["llava"].build(), PROCESSORS["llava"]()
    kept = {}
    for question in ("what colour ?", "yes blue red picture topmost thing in"):
        text = f"user : <image> {question} assistant :"
        inputs = processor(images=torch.zeros(3, 20, 20), text=text, return_tensors="pt")
        inputs["pixel_values"] = torch.randn(
            inputs["pixel_values"].shape, generator=torch.Generator().manual_seed(0)
        )
        with foveate.attach(model, "trim", keep=9, clip=clip, processor=processor) as run:
            model(**inputs)
        (item,) = run.items
        assert item.mapping.m == 9
        kept[question] = item.mapping.anchors.tolist()
    assert len(set(map(tuple, kept.values()))) == 2


@torch.no_grad()
def test_what_it_needs(clip: str, tmp_path: Path) -> None:
    model, inputs = FAMILIES["llava"].build(), FAMILIES["llava"].inputs()
    with (
        pytest.raises(StageNotAvailable, match="Pass the processor"),
        foveate.attach(model, "trim", keep=9, clip=clip),
    ):
        model(**inputs)
    with pytest.raises(StageNotAvailable, match="CLIP checkpoint that the vision tower comes from"):
        Trim()(tokens(torch.zeros(4, 32), question_text="?"), 2)
    save_clip(tmp_path, width=24)
    with pytest.raises(StageNotAvailable, match=r"tower is 32 wide, .* 24"):
        Trim(str(tmp_path))(tokens(torch.zeros(4, 32), question_text="?"), 2)


@torch.no_grad()
def test_a_question_is_cut_at_the_towers_own_limit(clip: str) -> None:
    """The tokenizer states none; CLIP's text tower has 77 places, and two are taken."""
    x = torch.randn(4, 32)
    assert clip_tokenizer().model_max_length > 77
    cut, whole = (Trim(clip)._joint_space(x, "what " * count)[1] for count in (75, 300))
    torch.testing.assert_close(whole, cut)


@torch.no_grad()
def test_a_checkpoint_in_half_precision(tmp_path: Path) -> None:
    save_clip(tmp_path, width=32)
    transformers.CLIPModel.from_pretrained(tmp_path).half().save_pretrained(tmp_path)
    given = tokens(torch.randn(6, 32), question_text="what colour ?")
    assert Trim(str(tmp_path))(given, 3).m == 3


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    for clip in (str(tmp_path), str(tmp_path / "none")):
        with pytest.raises(InputError, match="Cannot load the CLIP checkpoint") as error:
            Trim(clip)(tokens(torch.zeros(4, 32), question_text="?"), 2)
        assert len(str(error.value).splitlines()) <= 4
