"""Settings that two methods find by looking at a model: VTW's layer and FitPrune's quotas."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.adapters import adapter_for
from foveate.attach import attach
from foveate.compressor import Compressor, Reads, Stage, VisualTokens, scaled_layers
from foveate.errors import InputError
from foveate.mapping import Mapping
from foveate.methods.fitprune import FitPrune
from foveate.methods.vtw import VTW

_HALVINGS = 7  # alpha to within 0.01


@torch.no_grad()
def withdrawal_layer(
    model: nn.Module,
    prompts: Iterable[dict[str, Any]],
    *,
    eta: float = 0.003,
    first: int | None = None,
) -> int:
    """The first decoder layer from which on visual tokens are not missed (VTW, section 3.3).

    For K from `first` on: the mean over prompts of KL(p_K || p) between the next token's
    distributions with all visual tokens withdrawn before layer K and without. The first K with a
    mean of at most `eta` is returned, the number of layers if none is: `VTW(layer=...)` takes
    both.

        from foveate import fitting

        layer = fitting.withdrawal_layer(model, prompts)
        with foveate.attach(model, "vtw", layer=layer):
            model.generate(**inputs)

    Args:
        model: the model.
        prompts: inputs of the model, padded on either side; about twenty prompts, as in the paper.
        eta: the authors' 0.003 (0.0005 for LLaVA-1.5-13B, 0.0001 for LLaVA-1.6-7B).
        first: the first layer tried; 5 of 32 if None.

    Raises:
        InputError: there is no prompt.
    """
    given = _some(prompts)
    total = len(adapter_for(model).decoder_layers)
    start = scaled_layers((5,), 32, total)[0] if first is None else first
    full = [_next_token(model, inputs) for inputs in given]
    for layer in range(start, total):
        costs = []
        for inputs, expected in zip(given, full, strict=True):
            with attach(model, VTW(layer=layer)):
                found = _next_token(model, inputs)
            costs.append(F.kl_div(expected, found, log_target=True, reduction="none").sum(-1))
        if float(torch.cat(costs).mean()) <= eta:
            return layer
    return total


def _some(prompts: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    given = list(prompts)
    if not given:
        raise InputError("Nothing to fit on: give at least one prompt with a picture.")
    return given


def _next_token(model: nn.Module, inputs: dict[str, Any]) -> Float[Tensor, "b v"]:
    """Log-probabilities of the token after each prompt."""
    logits: Tensor = model(**inputs, use_cache=False).logits
    mask = inputs.get("attention_mask")
    real = torch.ones(logits.shape[:2]) if mask is None else mask
    last = real.shape[1] - 1 - real.flip(1).argmax(1).to(logits.device)
    return logits[torch.arange(len(logits)), last].float().log_softmax(-1)


@dataclasses.dataclass(frozen=True)
class _Trial(Compressor):
    """Drops what both rankings would drop at this alpha, and notes how much."""

    alpha: float = 0.0
    # (prompt, layer) -> attention mass that the un-pruned model's tokens get, by ranking
    masses: dict[tuple[int, int], tuple[float, float]] = dataclasses.field(default_factory=dict)
    dropped: dict[tuple[int, int], int] = dataclasses.field(default_factory=dict)
    prompt: int = 0
    learn: bool = False
    stage: ClassVar[Stage] = Stage.DECODER
    reads: ClassVar[frozenset[Reads]] = frozenset({Reads.BEFORE})

    def layers_in(self, total: int) -> tuple[int, ...]:
        return tuple(range(1, total))

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        seen, layer = tokens.before, tokens.layer
        assert seen is not None and layer is not None
        own = seen.received(seen.visual, heads="max") / max(1, tokens.n)
        cross = seen.received(seen.text, heads="max") / max(1, len(seen.text))
        place = self.prompt, layer
        if self.learn:
            self.masses[place] = float(own.sum()), float(cross.sum())
            return Mapping.identity(tokens.n)
        gone = _prefix(own, (1 - self.alpha) * self.masses[place][0])
        gone &= _prefix(cross, (1 - self.alpha) * self.masses[place][1])
        self.dropped[place] = int(gone.sum())
        return Mapping.select((~gone).nonzero().flatten().cpu(), tokens.n)


def _prefix(score: Float[Tensor, " n"], least: float) -> Tensor:
    """(n,) the longest run of smallest scores without which the rest still sums to `least`."""
    order = torch.argsort(score, stable=True)
    left = score.sum() - score[order].cumsum(0)
    gone = torch.zeros(len(score), dtype=torch.bool, device=score.device)
    gone[order[: int((left >= least).sum())]] = True
    return gone


@torch.no_grad()
def quotas(
    model: nn.Module, prompts: Iterable[dict[str, Any]], *, reduction: float
) -> tuple[float, ...]:
    """FitPrune's quotas for a model: shares of a picture's tokens to remove in each layer.

    For an alpha every layer drops the tokens that are in both prefixes: the longest ones of
    smallest attention from the picture, and from the text, without which 1 - alpha of the
    un-pruned model's mass in that layer is left. The least alpha is found whose mean drop saves
    `reduction` of the visual tokens' FLOPs. Give the result to `FitPrune(quotas=...)`.

    Args:
        model: the model.
        prompts: inputs of the model, one picture each; a few hundred in the paper.
        reduction: share of FLOPs to save, in (0, 1).

    Raises:
        InputError: there is no prompt, a prompt has several pictures, or `reduction` is out of
            range.
    """
    given = _some(prompts)
    if not 0 < reduction < 1:
        raise InputError(f"reduction must lie between 0 and 1; got {reduction}.")
    total = len(adapter_for(model).decoder_layers)
    masses: dict[tuple[int, int], tuple[float, float]] = {}
    counts = [
        _try(model, inputs, _Trial(0.0, masses, {}, number, learn=True))
        for number, inputs in enumerate(given)
    ]
    low, high = 0.0, 1.0
    found = _shares(model, given, masses, counts, high, total)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        shares = _shares(model, given, masses, counts, middle, total)
        if _saved(model, counts, shares) >= reduction:
            high, found = middle, shares
        else:
            low = middle
    return found


def _try(model: nn.Module, inputs: dict[str, Any], trial: _Trial) -> int:
    """Run a prompt; returns its picture's tokens."""
    with attach(model, trial, _force=True) as run:
        model(**inputs, use_cache=False)
    if len(run.items) != 1:
        raise InputError(
            f"Quotas are fitted on prompts with one picture each; one has {len(run.items)}."
        )
    return run.items[0].n


def _shares(
    model: nn.Module,
    given: Sequence[dict[str, Any]],
    masses: dict[tuple[int, int], tuple[float, float]],
    counts: Sequence[int],
    alpha: float,
    total: int,
) -> tuple[float, ...]:
    """Mean share removed after each layer at this alpha; the last layer removes nothing."""
    lost = torch.zeros(total)
    for number, inputs in enumerate(given):
        trial = _Trial(alpha, masses, {}, number)
        _try(model, inputs, trial)
        for (_, layer), count in trial.dropped.items():
            lost[layer - 1] += count / counts[number]
    return tuple(round(float(share), 6) for share in lost / len(given))


def _saved(model: nn.Module, counts: Sequence[int], shares: Sequence[float]) -> float:
    """Share of FLOPs saved: 4 n d^2 + 2 n^2 d + 3 n d m a layer, n visual tokens."""
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    d, inner = config.hidden_size, config.intermediate_size
    whole = left = 0.0
    for n in counts:
        steps = FitPrune(quotas=tuple(shares)).steps(n, None, len(shares))
        entering = {0: n} | {step.layer: step.keep or 0 for step in steps}
        now = n
        for layer in range(len(shares)):
            now = entering.get(layer, now)
            whole += 4 * n * d * d + 2 * n * n * d + 3 * n * d * inner
            left += 4 * now * d * d + 2 * now * now * d + 3 * now * d * inner
    return 1 - left / whole
