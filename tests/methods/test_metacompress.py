"""MetaCompress by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from foveate.compressor import Grid
from foveate.errors import BudgetError
from foveate.methods.metacompress import Generator, MetaCompress
from tests.methods.given import rows, tokens

LINE = rows([0], [1], [2], [3])
LOG2 = math.log(2)


def method(scale: float = 1.0, offset: float = 0.0, **fields: Any) -> MetaCompress:
    """One that compares tokens of one number: a logit is `scale` log2(2) q k.

    d_c is 4, so that 1 / sqrt(d_c) is a half; the other three directions are 0.
    """
    net = Generator(1, 4)
    net.query.data = net.key.data = rows([1, 0, 0, 0])
    net.omega.data[0] = 2 * scale * LOG2
    net.offset.data[:] = offset
    return MetaCompress(**{"dim": 4, "kernel": 1, "position_scale": 0.0, **fields, "net": net})


def weights(made: MetaCompress, keep: int = 2, x: torch.Tensor = LINE) -> torch.Tensor:
    return made(tokens(x), keep).to_matrix().detach()


def near(*wanted: list[float]) -> Any:
    shares = rows(*wanted)
    return pytest.approx((shares / shares.sum(1, keepdim=True)).numpy(), rel=1e-5)


def test_rows_by_hand() -> None:
    # Two of four, one token each: the stretches' middles are 1 and 3. Logits q k log 2.
    assert weights(method()).numpy() == near([1, 2, 4, 8], [1, 8, 64, 512])


def test_queries_and_keys_have_parameters_of_their_own() -> None:
    made = method()
    assert isinstance(made.net, Generator)
    made.net.key.data = rows([2, 0, 0, 0])
    assert weights(made).numpy() == near([1, 4, 16, 64], [1, 64, 64**2, 64**3])


def test_the_kernel_is_what_a_query_averages() -> None:
    # Around 1: 0, 1, 2, whose mean is 1. Around 3: 2 and 3, for there is no 4; their mean is 2.5.
    found = weights(method(2.0, kernel=3))
    assert found.numpy() == near([1, 4, 16, 64], [1, 32, 32**2, 32**3])


def test_over_the_lattice_a_query_averages_its_cell() -> None:
    # Left half and right half: 0.5 and 2.5.
    found = weights(method(2.0, pool="2d"))
    assert found.numpy() == near([1, 2, 4, 8], [1, 32, 32**2, 32**3])
    # Left and right half of a picture of two rows: 0 and 2 average to 1, 1 and 3 to 2.
    square = method(2.0, pool="2d")(tokens(LINE, Grid(1, 2, 2)), 2).to_matrix().detach()
    assert square.numpy() == near([1, 4, 16, 64], [1, 16, 16**2, 16**3])


def test_frames_without_a_query_of_their_own_are_still_mixed_in() -> None:
    # Four frames of one token, two queries: frames 0 and 1 have one each.
    found = method(2.0, pool="2d")(tokens(LINE, Grid(4, 1, 1)), 2).to_matrix().detach()
    assert found.numpy() == near([1, 1, 1, 1], [1, 4, 16, 64])


def test_the_learned_offset_is_added_to_every_token() -> None:
    # -1, 0, 1, 2: the first query is 0 and has no preference, the second is 2.
    found = weights(method(offset=-1.0))
    assert found.numpy() == near([1, 1, 1, 1], [1, 4, 16, 64])


def test_places_are_told_by_their_scale() -> None:
    # Equal tokens; the embedding's one number is sin 0 = 0 and sin 1.
    alike = rows([0], [0])
    assert weights(method(), x=alike).numpy() == near([1, 1], [1, 1])
    told = weights(method(position_scale=1 / math.sin(1)), x=alike)
    assert told.numpy() == near([1, 1], [1, 2])
    # 1 and 1 become 1 and 2: the embedding is added.
    told = weights(method(position_scale=1 / math.sin(1)), x=rows([1], [1]))
    assert told.numpy() == near([1, 2], [1, 4])


def test_the_published_start() -> None:
    torch.manual_seed(0)
    net = MetaCompress(dim=25).build(400)
    assert isinstance(net, Generator)
    # N(0, 1 / d_c): 10,000 draws of deviation 0.2 tell it to within 2 %.
    assert float(net.query.detach().std()) == pytest.approx(0.2, rel=0.02)
    assert torch.equal(net.query, net.key) and net.query.data_ptr() != net.key.data_ptr()
    assert net.omega.tolist() == [1.0] * 25 and not net.offset.any()


@pytest.mark.parametrize("wrong", [{"dim": 0}, {"kernel": 0}, {"pool": "3d"}])
def test_settings_that_mean_nothing(wrong: dict[str, Any]) -> None:
    with pytest.raises(BudgetError, match="needs dim >= 1"):
        MetaCompress(**wrong)
