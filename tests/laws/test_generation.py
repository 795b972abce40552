"""Whatever generate does with rows and caches, the compressed cache follows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version

import foveate
from foveate.compressor import Stage
from foveate.errors import StageNotAvailable
from tests.families.models import FAMILIES
from tests.laws.laws import (
    Case,
    check_beams,
    check_cache_rows,
    check_generate,
    check_prompt_lookup,
    check_second_turn,
    check_static_cache,
)
from tests.laws.methods import DropAt, First, MergePairs, SelectAll, TopNorm

MIXED = (2, 1, 0)
METHODS: dict[str, Any] = {
    "input": TopNorm(),
    "decoder": DropAt((0, 2), (0.7, 0.5)),
    "merging between layers": MergePairs(Stage.DECODER, at=(1, 3)),
}

# PaliGemma's prompt is a bidirectional prefix: a second turn on a cache is no longer prefix, so
# the stock model itself differs from a recomputation.
SECOND_TURN = [name for name in FAMILIES if not name.startswith("paligemma")]
# The stock PaliGemma hands Gemma 2 one mask for each kind of layer, which this cannot generate from
# with a static cache.
STATIC = [name for name in FAMILIES if name != "paligemma2"]
# The stock Qwen models cannot number a new picture's positions beside a cache, and before 5.23 the
# stock Gemma 3 masks one wrongly.
OLD = Version(transformers.__version__) < Version("5.23")
SECOND_PICTURE = [
    name for name in SECOND_TURN if not name.startswith("qwen") and not (OLD and name == "gemma3")
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_beam_search(name: str, method: str) -> None:
    check_beams(Case(name, images=MIXED), METHODS[method])


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_beam_search_with_reindexed_positions(name: str) -> None:
    check_beams(Case(name), First(), positions="reindex")


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_several_sampled_answers(name: str) -> None:
    check_generate(Case(name), TopNorm(), do_sample=True, num_return_sequences=2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_without_a_cache(name: str, method: str) -> None:
    check_generate(Case(name), METHODS[method], use_cache=False)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", STATIC)
@torch.no_grad()
def test_static_cache(name: str, method: str) -> None:
    check_static_cache(Case(name), METHODS[method])


@pytest.mark.parametrize("how", ["reorder", "repeat", "select"])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_rows_of_a_compressed_cache(name: str, how: str) -> None:
    check_cache_rows(Case(name), TopNorm(), how)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_prompt_lookup_decoding(name: str) -> None:
    check_prompt_lookup(Case(name), DropAt((0, 2), (0.7, 0.5)))


@pytest.mark.parametrize("name", SECOND_TURN)
@torch.no_grad()
def test_the_stock_model_takes_a_second_turn(name: str) -> None:
    """The control of the next laws: they would prove nothing where this fails."""
    check_second_turn(Case(name), SelectAll(), attached=False)
    if name in SECOND_PICTURE:
        check_second_turn(Case(name), SelectAll(), images=(1, 1), attached=False)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SECOND_TURN)
@torch.no_grad()
def test_a_second_question(name: str, method: str) -> None:
    check_second_turn(Case(name), METHODS[method])


@pytest.mark.parametrize("name", SECOND_TURN)
@torch.no_grad()
def test_a_second_question_with_reindexed_positions(name: str) -> None:
    check_second_turn(Case(name), First(), positions="reindex")


@pytest.mark.parametrize("name", SECOND_TURN)
@torch.no_grad()
def test_a_second_question_where_layers_number_their_tokens_anew(name: str) -> None:
    check_second_turn(Case(name), METHODS["decoder"], positions="reindex")


@pytest.mark.parametrize("name", SECOND_PICTURE)
@torch.no_grad()
def test_a_new_picture_where_layers_number_their_tokens_anew(name: str) -> None:
    check_second_turn(Case(name), METHODS["decoder"], positions="reindex", images=(1, 1))


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_beam_search_where_layers_number_their_tokens_anew(name: str) -> None:
    check_beams(Case(name), METHODS["decoder"], positions="reindex")


# Caches with sliding windows cannot be cut.
UNCUT = ["gemma3", "paligemma2"]
CUT = DropAt((2, 3), (0.6, 0.5), settle=1)


@pytest.mark.parametrize("positions", ["original", "reindex"])
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in UNCUT])
@torch.no_grad()
def test_caches_cut_after_the_prefill(name: str, positions: str) -> None:
    """Uneven rows and a text-only one; the answer sees what is left, the prompt saw everything."""
    check_generate(Case(name, images=MIXED), CUT, positions=positions)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in UNCUT])
@torch.no_grad()
def test_beam_search_on_cut_caches(name: str) -> None:
    check_beams(Case(name, images=MIXED), CUT)


@pytest.mark.parametrize("positions", ["original", "reindex"])
@pytest.mark.parametrize("name", [name for name in SECOND_TURN if name not in UNCUT])
@torch.no_grad()
def test_a_second_question_on_cut_caches(name: str, positions: str) -> None:
    check_second_turn(Case(name), CUT, positions=positions)


@pytest.mark.parametrize("name", [name for name in SECOND_PICTURE if name not in UNCUT])
@torch.no_grad()
def test_a_new_picture_beside_cut_caches(name: str) -> None:
    check_second_turn(Case(name), CUT, images=(1, 1))
    check_second_turn(Case(name), CUT, images=(1, 1), positions="reindex")


@torch.no_grad()
def test_rows_and_ends_of_cut_caches() -> None:
    for how in ("reorder", "repeat", "select"):
        check_cache_rows(Case("llava_next"), CUT, how)
    check_prompt_lookup(Case("llava"), CUT)


@pytest.mark.parametrize("name", UNCUT)
@torch.no_grad()
def test_caches_that_cannot_be_cut_are_refused(name: str) -> None:
    with pytest.raises(StageNotAvailable, match="cannot be cut after the prefill"):
        check_generate(Case(name), CUT)
    with pytest.raises(StageNotAvailable, match="StaticLayer of decoder layer"):
        check_static_cache(Case("llava"), CUT)


@torch.no_grad()
def test_a_cut_cache_is_as_long_as_the_last_layers() -> None:
    case = Case("llava", images=(2, 1))
    model, batch = case.model(), case.batch()
    lengths = {}
    for settle in (None, 1):
        method = DropAt((2, 3), (0.6, 0.5), settle=settle)
        with foveate.attach(model, method, _force=True) as run:
            out = model(**batch.inputs, use_cache=True)
        lengths[settle] = [layer.keys.shape[2] for layer in out.past_key_values.layers]
        bytes_of = run.report().kv_bytes, run.report().kv_bytes_full
        wanted = [x * bytes_of[1] // (4 * lengths[None][0]) for x in lengths[settle]]
        assert bytes_of[0] == sum(wanted)
    full, _, second, last = lengths[None]
    assert full > second > last
    assert lengths[1] == [full, last, last, last]


@pytest.mark.parametrize("method", [*METHODS, "merge"])
@pytest.mark.parametrize("name", SECOND_PICTURE)
@torch.no_grad()
def test_a_new_picture_with_the_second_question(name: str, method: str) -> None:
    found = MergePairs(Stage.INPUT) if method == "merge" else METHODS[method]
    check_second_turn(Case(name), found, images=(1, 1))
