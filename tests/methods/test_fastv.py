"""FastV by hand."""

from __future__ import annotations

import pytest
import torch

from foveate.errors import BudgetError
from foveate.methods.fastv import FastV
from tests.methods.given import average, look, preset_steps, rows, tokens

# A prompt of 0: system, 1..4: picture, 5, 6: text. What the last token looks at, by two heads:
#            v0    v1    v2    v3
#  head A   0.40  0.02  0.10  0.15   (the rest on system and text)
#  head B   0.05  0.30  0.34  0.24
#  mean x2  0.45  0.32  0.44  0.39   -> v0, v2, v3, v1
#  largest  0.40  0.30  0.34  0.24   -> v0, v2, v1, v3
A = {5: (0, 0.0, 0.9, 0.0, 0.1), 6: (0.30, 0.40, 0.02, 0.10, 0.15, 0.03, 0.00)}
B = {5: (0, 0.0, 0.9, 0.0, 0.1), 6: (0.00, 0.05, 0.30, 0.34, 0.24, 0.02, 0.05)}
SEEN = look(A, B, visual=(1, 2, 3, 4), text=(5, 6), question=(5,))


def kept(keep: int | None, **fields: object) -> list[int]:
    return FastV(**fields)(tokens(torch.zeros(4, 2), before=SEEN), keep).anchors.tolist()


def test_by_hand() -> None:
    assert kept(1) == [0]
    assert kept(2) == [0, 2]  # head A alone would take v0 and v3, B alone v2 and v1
    assert kept(3) == [0, 2, 3]  # by the largest of the heads v1 would be third


def test_edge_budgets() -> None:
    found = FastV()(tokens(torch.zeros(4, 2), before=SEEN), 4)
    assert found.is_identity
    assert kept(None) == [0, 1, 2, 3]


def test_what_the_text_gets_counts() -> None:
    # Head A looks at the picture with a tenth of its attention only: 0.09 and 0.01 of it; B with
    # all: 0.1, 0.3, 0.2, 0.4. Sums 0.19, 0.30, 0.20, 0.41. Made to sum to one over the picture,
    # A would weigh ten times as much and v0 would be first, with 1.0.
    a, b = {5: (0.90, 0.09, 0.0, 0.0, 0.01, 0.0)}, {5: (0.0, 0.1, 0.3, 0.2, 0.4)}
    seen = look(a, b, visual=(1, 2, 3, 4), text=(5,))
    given = tokens(torch.zeros(4, 2), before=seen)
    assert FastV()(given, 1).anchors.tolist() == [3]
    assert FastV()(given, 3).anchors.tolist() == [1, 2, 3]


def test_ties_go_to_the_lower_slot() -> None:
    seen = look({4: (0.2, 0.2, 0.2, 0.2, 0.2)}, visual=(1, 2, 3), text=(4,))
    assert FastV()(tokens(torch.zeros(3, 2), before=seen), 2).anchors.tolist() == [0, 1]


def test_only_the_picture_is_a_candidate() -> None:
    # Picture at 2 and 4, a newline between them, all else looked at more.
    seen = look({5: (0.4, 0.3, 0.1, 0.1, 0.05, 0.05)}, visual=(2, 4), text=(5,))
    assert FastV()(tokens(torch.zeros(2, 2), before=seen), 1).anchors.tolist() == [0]


def test_all_rows_as_the_paper_writes_it() -> None:
    # 0: system, 1..3: picture, 4, 5: text. Attention received:
    #                 v0     v1     v2
    #  from v0       0.50
    #  from v1       0.30   0.20
    #  from v2       0.05   0.00   0.90
    #  from 4        0.80   0.05   0.05
    #  from 5        0.00   0.30   0.10
    #  all           1.65   0.55   1.05  -> v0, v2, v1
    #  picture       0.85   0.20   0.90  -> v2 first
    #  text          0.80   0.35   0.15  -> v1 second
    #  last token    0.00   0.30   0.10  -> v1 first
    head = {
        1: (0.5, 0.5),
        2: (0.5, 0.3, 0.2),
        3: (0.05, 0.05, 0.0, 0.9),
        4: (0.1, 0.8, 0.05, 0.05),
        5: (0.3, 0.0, 0.3, 0.1, 0.2, 0.1),
    }
    given = tokens(torch.zeros(3, 2), before=look(head, visual=(1, 2, 3), text=(4, 5)))
    everyone = FastV(rows="all")
    assert everyone(given, 1).anchors.tolist() == [0]
    assert everyone(given, 2).anchors.tolist() == [0, 2]
    assert FastV()(given, 1).anchors.tolist() == [1]


def test_all_rows_are_averaged_over_heads() -> None:
    # From token 3, head A: 0.6 and 0.2, head B: 0.0 and 0.5; mean 0.3, 0.35, largest 0.6, 0.5.
    a, b = {3: (0.2, 0.6, 0.2)}, {3: (0.5, 0.0, 0.5)}
    quiet = {1: (1.0, 0.0), 2: (1.0, 0.0, 0.0)}
    seen = look(a | quiet, b | quiet, visual=(1, 2), text=(3,))
    found = FastV(rows="all")(tokens(torch.zeros(2, 2), before=seen), 1)
    assert found.anchors.tolist() == [1]


def test_features_play_no_part() -> None:
    given = tokens(rows([1, 0], [50, 0], [1, 0], [1, 9]), before=SEEN)
    assert FastV()(given, 2).anchors.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("name", "layer", "count"),
    [
        ("authors-k2-r25", 2, 432),
        ("authors-k2-r50", 2, 288),
        ("authors-k2-r75", 2, 144),
        ("authors-k2-72", 2, 72),
        ("authors-k3-r50", 3, 288),
        ("authors-k3-r75", 3, 144),
        ("metacompress-50", 1, 288),
        ("metacompress-70", 1, 173),  # 172.8
        ("metacompress-90", 1, 58),  # 57.6
        ("explainability-2", 1, 288),
        ("explainability-2-25", 1, 144),
        ("explainability-2-10", 1, 58),  # 57.6
        ("explainability-4", 3, 288),
        ("explainability-4-25", 3, 144),
    ],
)
def test_presets(name: str, layer: int, count: int) -> None:
    assert preset_steps(FastV, name) == [(layer, count)]


@pytest.mark.parametrize(
    ("name", "tera"), [("explainability-2-25", 3.5), ("explainability-4-25", 4.2)]
)
def test_layers_of_the_explainability_paper_are_those_of_its_flops(name: str, tera: float) -> None:
    """Table 9, LLaVA-OneVision, a quarter kept: 4 n d^2 + 2 n^2 d + 3 n d m a layer (Eq. 4)."""

    def flops(n: float) -> float:
        d, m = 3584, 18944
        return 4 * n * d**2 + 2 * n**2 * d + 3 * n * d * m

    layer, (kept,) = (FastV.presets[name].fields[key] for key in ("layer", "schedule"))
    assert round(28 * flops(1728) / 1e12, 1) == 12.9
    ran = layer * flops(1728) + (28 - layer) * flops(1728 * kept)
    assert round(ran / 1e12, 1) == tera


@pytest.mark.parametrize(
    ("layer", "keep", "count"),
    [(2, 192, 166), (2, 128, 98), (2, 64, 30), (3, 192, 152), (3, 128, 82), (3, 64, 11)],
)
def test_the_count_behind_an_average(layer: int, keep: int, count: int) -> None:
    """(32 T - 576 K) / (32 - K) of the algorithm card, rounded."""
    steps = FastV(layer=layer).steps(576, keep, 32)
    assert [(step.layer, step.keep) for step in steps] == [(layer, count)]
    assert average(steps, 576, 32) == pytest.approx(keep, abs=0.5)


@pytest.mark.parametrize("fields", [{"layer": 0}, {"layer": -1}, {"rows": "text"}])
def test_other_fields_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(BudgetError, match="FastV needs layer >= 1 and rows 'last' or 'all'"):
        FastV(**fields)
