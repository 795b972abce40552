"""Exactly as many rows as asked, whatever the tokens: equal, zero, many or one."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate import catalog
from foveate.attention import LayerAttention, Logits
from foveate.compressor import Compressor, VisualTokens
from foveate.learned import LearnedCompressor
from foveate.mapping import Mapping
from foveate.methods.polymorphic import Prune
from foveate.methods.trim import Trim
from tests.methods.given import tokens


@dataclasses.dataclass(frozen=True)
class InJointSpace(Trim):
    """TRIM of tokens that are in CLIP's joint space already."""

    def _joint_space(self, x: torch.Tensor, question: str) -> tuple[torch.Tensor, torch.Tensor]:
        return x, torch.ones(x.shape[1])


# VTW leaves no token, whatever it is asked for.
METHODS = [catalog.make(name) for name in catalog.names() if name not in ("trim", "vtw")]
METHODS = [each.drawn(width=3) if isinstance(each, LearnedCompressor) else each for each in METHODS]
METHODS += [InJointSpace()]
METHODS += [Prune(), Prune(raters="states"), catalog.make("fastv", rows="all")]
# With one level every token is zero.
drawn = {"n": st.integers(1, 24), "levels": st.sampled_from([1, 2, 50]), "seed": st.integers(0, 99)}
NESTED = [catalog.make(name) for name in ("divprune", "mmtok", "random")]
NESTED += [catalog.make("cover", merge=False)]


def seen(n: int, levels: int, seed: int) -> VisualTokens:
    """Tokens of few different values, with everything that a method may read."""
    g = torch.Generator().manual_seed(seed)

    def few(*shape: int) -> torch.Tensor:
        return torch.randint(0, levels, shape, generator=g).float()

    layer = LayerAttention(
        q=few(4, n + 3, 2),
        k=few(2, n + 3, 2),
        logits=Logits(0.5),
        offset=0,
        mask=None,
        visual=torch.arange(1, n + 1),
        text=torch.arange(n + 1, n + 3),
        question=torch.arange(n + 1, n + 2),
        everyone=torch.arange(n + 3),
        last=n + 2,
    )
    return tokens(
        few(n, 3),
        layer=2,
        total=n,
        entering=n,
        so_far=Mapping.identity(n),
        start=few(n, 3),
        text=few(2, 3),
        asked=torch.tensor([True, False]),
        text_states=few(2, 3),
        normed=few(n, 3),
        text_normed=few(2, 3),
        before=layer,
        ahead=layer,
        encoder=few(n, 3),
        attention=few(n),
        keys=few(n, 2),
        wide_attention=few(n),
        wide_keys=few(n, 2),
        question=few(2, 3),
        question_text="?",
        cells=few(n).long(),
    )


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
@settings(max_examples=40, deadline=None)
@given(**drawn, data=st.data())
def test_exact_counts(
    method: Compressor, n: int, levels: int, seed: int, data: st.DataObject
) -> None:
    given_tokens, keep = seen(n, levels, seed), data.draw(st.integers(1, n))
    found = method(given_tokens, keep)
    assert found.m == keep
    assert len(set(found.anchors.tolist())) == keep
    assert found.apply(given_tokens.features).isfinite().all()


@pytest.mark.parametrize("method", NESTED, ids=lambda method: type(method).__name__)
@settings(max_examples=20, deadline=None)
@given(**drawn)
def test_a_smaller_budget_is_part_of_a_larger_one(
    method: Compressor, n: int, levels: int, seed: int
) -> None:
    given_tokens, kept = seen(n, levels, seed), set()
    for keep in range(1, n + 1):
        more = set(method(given_tokens, keep).anchors.tolist())
        assert kept < more
        kept = more
