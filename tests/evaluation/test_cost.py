"""What a prefill costs: counted, timed, and on how many prompts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from foveate.evaluation import cost
from foveate.evaluation.timing import alternate


def test_flops_by_hand() -> None:
    layer = torch.nn.Linear(3, 5, bias=False)
    # 7 rows, 3 x 5 multiply-adds each, two operations a multiply-add.
    assert cost.count_flops(lambda: layer(torch.zeros(7, 3))) == 7 * 3 * 5 * 2


def test_attention_is_counted_on_the_cpu_too() -> None:
    q, k = torch.zeros(1, 2, 6, 4), torch.zeros(1, 2, 9, 4)
    call = torch.nn.functional.scaled_dot_product_attention
    # 2 heads; scores 6 x 9 x 4 and values 6 x 9 x 4 multiply-adds.
    assert cost.count_flops(lambda: call(q, k, k)) == 2 * 2 * (6 * 9 * 4) * 2


def test_the_two_sides_are_timed_in_turns() -> None:
    order: list[str] = []
    found = alternate(lambda: order.append("a"), lambda: order.append("b"), "cpu", 4, warm_up=1)
    assert "".join(order) == "ab" * 5
    assert found.low <= found.median <= found.high


@pytest.mark.parametrize(
    ("a_row", "batch"),
    [
        ({1: 1.0, 2: 1.0, 4: 1.0}, 1),  # compute-bound from the start: stops after two doublings
        ({1: 4.0, 2: 2.0, 4: 1.0, 8: 0.98, 16: 0.97}, 4),
        ({1: 4.0, 2: 2.0, 4: 1.0}, 4),  # no more rows
    ],
)
def test_the_batch_is_the_first_that_is_compute_bound(
    a_row: dict[int, float], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = {"size": 0}

    def inputs(size: int) -> dict[str, Any]:
        clock["size"] = size
        return {}

    monkeypatch.setattr(cost, "prefill", lambda model, given: None)
    monkeypatch.setattr(cost, "seconds", lambda call, device: a_row[clock["size"]] * clock["size"])
    model = torch.nn.Linear(1, 1)
    model.device = torch.device("cpu")  # type: ignore[assignment]
    assert cost.compute_bound_batch(model, inputs, max(a_row)) == batch


def test_the_batch_stays_within_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def prefill(model: Any, given: dict[str, int]) -> None:
        if given["rows"] > most:
            raise torch.OutOfMemoryError

    monkeypatch.setattr(cost, "prefill", prefill)
    monkeypatch.setattr(cost, "seconds", lambda call, device: 1.0)
    model = torch.nn.Linear(1, 1)
    model.device = torch.device("cpu")  # type: ignore[assignment]
    most = 2
    assert cost.compute_bound_batch(model, lambda rows: {"rows": rows}, 32) == 2
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        cost.compute_bound_batch(model, lambda rows: {"rows": rows}, 32)
