"""Starts of MetaCompress, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import foveate
from foveate import catalog, ops, reference
from foveate.attach import encode
from foveate.compressor import VisualTokens
from foveate.errors import InputError
from foveate.evaluation.data import Dialogue
from foveate.mapping import Mapping
from foveate.methods.metacompress import MetaCompress
from foveate.training import data, start
from foveate.training.batches import collate
from foveate.training.start import pca_start, principal_directions
from foveate.training.teacher import Teacher
from foveate.training.transcripts import first_inputs
from tests.evaluation.test_turns import dialogue
from tests.families import checkpoints
from tests.training import needs_features

pytestmark = needs_features


def tokens() -> torch.Tensor:
    """Around (0, 0, 5): wide along the second axis, narrow along the first, not at all else."""
    plane = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 3.0], [0.0, -3.0]])
    return torch.cat([plane, torch.full((4, 1), 5.0)], 1)


def test_the_widest_direction_comes_first() -> None:
    found = principal_directions(tokens(), 2, sharpness=2.0)
    # Variances 4.5 and 0.5: W = c (e2, e1), mean logit c^2 (4.5 + 0.5) / sqrt(2) = 2
    c = (2.0 * 2**0.5 / 5.0) ** 0.5
    expected = torch.tensor([[0.0, c], [c, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_whitened_directions_count_the_same() -> None:
    found = principal_directions(tokens(), 2, sharpness=2.0, whiten=True)
    seen = (tokens() - tokens().mean(0)) @ found
    torch.testing.assert_close(seen.T @ seen / 4, torch.eye(2) * 2.0 / 2**0.5)


@torch.no_grad()
def test_a_token_looks_at_itself_more_with_more_sharpness(tmp_path: Path) -> None:
    model, processor = reference.load()
    teacher, dialogues = Teacher(model, processor, tmp_path), data.examples("scenes", count=3)
    teacher.fill(dialogues)
    method = catalog.make("metacompress", kernel=1)
    logits = []
    for sharpness in (1.0, 4.0):
        made = pca_start(sharpness)(method, model, teacher.entries(dialogues))
        net = made.net
        assert net is not None and torch.equal(net.query, net.key)
        x = torch.cat([token for each in dialogues for token in shown(model, processor, each)])
        x = x + torch.cat([ops.sine_positions(256, 128)] * 3) + net.offset
        assert float(x.mean(0).abs().max()) < 1e-4
        seen = x @ net.query
        logits.append(float((seen * seen).sum(1).mean() / method.dim**0.5))
    assert logits == pytest.approx([1.0, 4.0], rel=1e-4)


def shown(model: Any, processor: Any, dialogue: Dialogue) -> Any:
    inputs = first_inputs(model, processor, dialogue, dialogue.load())
    return encode(model, inputs).inputs["mm_encoder_outputs"]["image"].pooler_output


@pytest.mark.parametrize("pictures", [1, 2])
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_vl"])
def test_it_starts_from_what_the_method_sees(
    family: str, pictures: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without newlines, and with the places of each picture counted from its first token."""
    folder = checkpoints.save(family, tmp_path / "model")
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    teacher = Teacher(model, AutoProcessor.from_pretrained(folder), tmp_path, max_new_tokens=2)
    asked = dialogue(pictures - 1, 1, pictures)
    teacher.fill([asked])
    method: Any = catalog.make("metacompress", dim=4)
    seen: list[torch.Tensor] = []
    real = MetaCompress.__call__

    def watched(self: MetaCompress, tokens: VisualTokens, keep: int | None) -> Mapping:
        x = tokens.features
        seen.append(x + ops.sine_positions(*x.shape))
        return real(self, tokens, keep)

    monkeypatch.setattr(MetaCompress, "__call__", watched)
    lessons = collate([teacher.lesson(asked)])
    encoded, fresh = lessons.encoded(model), method.initialised(model)
    with torch.no_grad(), foveate.attach(model, fresh, keep=0.5, encoded=encoded):
        lessons.answer_logits(model, encoded)
    found = start._seen(method, model, teacher.lesson(asked))
    assert len(seen) == pictures
    torch.testing.assert_close(found, torch.cat(seen))


def test_more_directions_than_numbers_are_refused() -> None:
    model, _ = reference.load()
    with pytest.raises(InputError, match="128 directions at most") as error:
        pca_start()(catalog.make("metacompress", dim=129), model, [])
    assert len(str(error.value).splitlines()) <= 4


def test_parameters_that_are_there_are_not_replaced() -> None:
    model, _ = reference.load()
    method = catalog.make("metacompress", dim=4).initialised(model)  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="has some already"):
        pca_start()(method, model, [])
