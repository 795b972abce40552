"""Which visual tokens an answer came from: attention weighted by its gradient, over all layers.

    maps = relevance.explain(model, inputs)           # of what the model itself answers
    mapping = relevance.strongest(maps[0], keep=64)    # P of the tokens that mattered most

Relevance Maps of "Task-Related Token Compression in Multimodal Large Language Models from an
Explainability Perspective" (arXiv 2506.01097), section 3.2, after Chefer et al. (arXiv 2103.15679).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from foveate import ops
from foveate.adapters import adapter_for
from foveate.adapters.base import Adapter
from foveate.attach.probe import Kernel, Server, logits_of, served
from foveate.attach.prompt import Prompt, placed
from foveate.attention import BLOCK, Logits, visible
from foveate.compressor import resolve_keep
from foveate.errors import InputError, UnknownName
from foveate.mapping import Mapping

WEIGHTINGS = ("gradient", "mean")
EXPLAINED = ("logit", "logprob")
# What is differentiated is taken so many times: in float16 the gradients of a sure answer vanish.
_SCALES = {torch.float16: 2.0**14}
_BY_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


@dataclasses.dataclass(frozen=True)
class Rule:
    """How relevance is computed.

    Attributes:
        weighting: ``"gradient"`` weights each attention probability by its gradient, as the paper
            does; ``"mean"`` takes attention alone (attention rollout with half of it the identity,
            up to a factor).
        relu: whether negative products are set to zero before the mean over heads: Chefer's
            rule 5. The paper's Eq. 1 has none.
        explained: what is differentiated, the answer token's ``"logit"`` or its ``"logprob"``; the
            paper does not say which. A logit also moves together with all others, which changes no
            answer: without a ReLU, tokens that lower all of them rank last, needed or not.
    """

    weighting: str = "gradient"
    relu: bool = False
    explained: str = "logprob"

    def __post_init__(self) -> None:
        if self.weighting not in WEIGHTINGS:
            raise UnknownName("weighting", self.weighting, WEIGHTINGS)
        if self.explained not in EXPLAINED:
            raise UnknownName("explained scalar", self.explained, EXPLAINED)


def explain(
    model: nn.Module,
    inputs: dict[str, Any],
    answers: Sequence[Sequence[int]] | None = None,
    *,
    rule: Rule | None = None,
    max_new_tokens: int = 16,
) -> list[Float[Tensor, " n"]]:
    """Relevance of every visual token to the answer of its prompt.

    For each answer token y_t, predicted at place p: R starts as the identity, and layer by layer
    R <- R + E_h(A * dA) R (Eq. 1), A the layer's attention, dA the gradient with respect to it of
    what `rule.explained` says of y_t, E_h the mean over heads. The relevance of visual token j is
    R[p, j]; the mean over answer tokens is returned. Only the row p is needed: r starts as its unit
    vector and goes from the last layer to the first, r <- r + r E_h(A * dA), which gives the same
    numbers.

    The answer is fed in behind the prompt (teacher forcing), once, with the model's own attention
    kernel; then there is one backward pass for each answer token, in which every layer computes
    its map anew, a block of at most `foveate.attention.BLOCK` entries at a time. So memory is what
    a backward pass through frozen weights keeps, O(layers x length x width), and a few such
    blocks; no whole map is ever held. Parameters are frozen meanwhile and none gets a gradient.

    Args:
        model: a supported model in evaluation mode. Nothing may be attached to it.
        inputs: its inputs, pictures not yet encoded; rows may be padded on either side.
        answers: the token ids of each row's answer, without an end-of-sequence token; what the
            model itself generates if None.
        rule: how relevance is computed; as the paper does if None.
        max_new_tokens: the longest answer that is generated.

    Returns:
        For each picture, row by row and in their order there, (n,) relevance of its n slots, in
        slot order, float32 (float64 for such a model), on the host.

    Raises:
        UnsupportedModel: no adapter for this model.
        InputError: the model is in training mode, a compressor is attached, the answers do not
            fit the prompts, or no gradients can be had (inference mode).
    """
    rule = rule or Rule()
    if rule.weighting == "gradient" and torch.is_inference_mode_enabled():
        raise InputError(
            "No gradients are kept under torch.inference_mode().\nCall it outside of that, or with "
            'rule=Rule(weighting="mean").'
        )
    if model.training or "_foveate_run" in model.__dict__:
        raise InputError(
            "Relevance is computed on the full model as it answers: in evaluation mode, and with "
            "no compressor attached.\nCall model.eval(), and detach the compressor."
        )
    adapter = adapter_for(model)
    given = answers if answers is not None else own_answers(model, inputs, max_new_tokens)
    whole, places = _answered(adapter, inputs, given)
    rows = _rows(adapter, whole, given, places, rule)
    pictures = placed(model, {"attention_mask": torch.ones_like(inputs["input_ids"])} | whole)
    return [rows[p.row, p.slots].cpu() for p in pictures]


def strongest(relevance: Float[Tensor, " n"], keep: int | float) -> Mapping:
    """P of the most relevant tokens, in raster order: the paper's pruning by relevance itself.

    Args:
        relevance: of the picture's tokens.
        keep: how many, or which share of them.
    """
    n = len(relevance)
    return Mapping.select(ops.top(relevance, resolve_keep(keep, n)).sort().values, n)


@torch.no_grad()
def own_answers(model: Any, inputs: dict[str, Any], max_new_tokens: int = 16) -> list[list[int]]:
    """What the model answers to each prompt, greedily: token ids up to the end of the sequence.

    An answer that ends at once is that end, so none is empty. Rows may be padded on either side.
    """
    out = model.generate(
        **_padded_left(inputs), max_new_tokens=max_new_tokens, do_sample=False, num_beams=1
    )
    ends = model.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    found = []
    for row in out[:, inputs["input_ids"].shape[1] :].tolist():
        stop = next((i for i, token in enumerate(row) if token in ends), len(row))
        found.append(row[: max(1, stop)])
    return found


def _padded_left(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same with all padding in front, where generation needs it."""
    if (mask := inputs.get("attention_mask")) is None:
        return inputs
    order = mask.long().argsort(dim=1, stable=True)
    return inputs | {key: inputs[key].gather(1, order) for key in _BY_TOKEN if key in inputs}


# ---------------------------------------------------------------------- the prompt, answered


def _answered(
    adapter: Adapter, inputs: dict[str, Any], answers: Sequence[Sequence[int]]
) -> tuple[dict[str, Any], list[list[int]]]:
    """The inputs with each answer right behind its prompt, and where its tokens are predicted."""
    ids = inputs["input_ids"]
    if len(answers) != len(ids) or not all(answers):
        raise InputError(
            f"Expected an answer of at least one token for each of the {len(ids)} prompts; got "
            f"{[len(each) for each in answers]} tokens."
        )
    mask = inputs.get("attention_mask", torch.ones_like(ids))
    pad = getattr(adapter.config.get_text_config(), "pad_token_id", None) or 0
    longest = max(map(len, answers))
    prompt = Prompt(ids.cpu(), mask.bool().cpu())
    starts = [prompt.last(row) + 1 for row in range(len(ids))]

    def grown(values: Tensor, fill: int, added: Sequence[Tensor]) -> Tensor:
        """(b, s + longest): what belongs to each answer at its place, padding behind it."""
        spare = values.new_full((longest,), fill)
        rows = [
            torch.cat([values[row, :start], new.to(values), values[row, start:], spare])
            for row, (start, new) in enumerate(zip(starts, added, strict=True))
        ]
        return torch.stack([row[: values.shape[1] + longest] for row in rows])

    said = [torch.tensor(answer) for answer in answers]
    whole = dict(inputs)
    whole["input_ids"] = grown(ids, pad, said)
    whole["attention_mask"] = grown(mask, 0, [torch.ones_like(each) for each in said])
    for name, kind in (("token_type_ids", adapter.answer_type), ("mm_token_type_ids", 0)):
        if name in inputs:
            types = [torch.full_like(each, kind) for each in said]
            whole[name] = grown(inputs[name], kind, types)
    places = [
        list(range(start - 1, start - 1 + len(answer)))
        for start, answer in zip(starts, answers, strict=True)
    ]
    return whole, places


# ---------------------------------------------------------------------- one row of R


@dataclasses.dataclass(eq=False)
class _Trace:
    """The row of R that goes from the last layer to the first, one for each prompt."""

    rule: Rule
    row: Float[Tensor, "b s"]
    scale: float = 1.0  # of the gradients that arrive

    def move(self, by: Sequence[Tensor]) -> None:
        """To the layer before: what each prompt's row grows by, on whatever device."""
        self.row = self.row + torch.stack([each.to(self.row) for each in by])


@dataclasses.dataclass(frozen=True, eq=False)
class _Maps:
    """What turns a layer's queries and keys into its attention map."""

    mask: Tensor | None
    logits: Logits

    def blocks(
        self, row: int, q: Float[Tensor, "h s d"], keys: Float[Tensor, "h s d"]
    ) -> Iterator[tuple[Int[Tensor, " r"], Float[Tensor, "h r s"]]]:
        """Rows of the map of one prompt, in blocks of bounded size."""
        heads, length = q.shape[:2]
        mask = self.mask if self.mask is None else self.mask[row if len(self.mask) > 1 else 0]
        for which in torch.arange(length, device=q.device).split(max(1, BLOCK // (heads * length))):
            seen = visible(mask, which, length, window=self.logits.window)
            logits = self.logits.of(q[:, which], keys)
            # A padded query may see nothing at all.
            yield which, logits.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num()


def _wide(x: Tensor, heads: int) -> Float[Tensor, "h s d"]:
    """(g, s, d) states of one prompt, once for each of `heads` query heads, at least float32."""
    return x.to(_precision(x)).repeat_interleave(heads // len(x), 0)


def _precision(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


class _Weighted(torch.autograd.Function):
    """A kernel's attention, whose backward pass also moves the row of R one layer on.

    The map is not kept: it is made again from q and k, block by block.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, start: Any, kernel: Any, maps: Any, trace: Any
    ) -> Tensor:
        """The kernel's own output; `start` is what is differentiated by, in the first layer."""
        ctx.save_for_backward(q, k, v)
        ctx.maps, ctx.trace = maps, trace
        ctx.start = None if start is None else start.device
        out: Tensor = kernel(q, k, v)
        return out

    @staticmethod
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k and v, if these depend on anything; r <- r + r E_h(A * dA)."""
        q, k, v = ctx.saved_tensors
        maps, trace = ctx.maps, ctx.trace
        heads = q.shape[1]
        wanted = any(ctx.needs_input_grad[:3])
        grads = [torch.zeros_like(x, dtype=_precision(x)) for x in (q, k, v)] if wanted else []
        moved = []
        for row in range(len(q)):
            queries, keys, values = (_wide(x[row], heads) for x in (q, k, v))
            own = trace.row[row].to(queries.device)
            moved.append(torch.zeros_like(own))
            upper = given[row].transpose(0, 1).to(values.dtype)  # (h, s, d)
            for which, a in maps.blocks(row, queries, keys):
                weighted = a * (upper[:, which] @ values.mT)  # A * dA   (h, r, s)
                counted = weighted.relu() if trace.rule.relu else weighted
                found = torch.einsum("i,hij->j", own[which], counted)
                moved[row] += found / (heads * trace.scale)
                if wanted:
                    logits = weighted - a * weighted.sum(-1, keepdim=True)
                    logits = logits * maps.logits.slope(queries[:, which], keys)
                    grads[0][row, :, which] = logits @ keys
                    for grad, part in zip(
                        grads[1:],
                        (logits.mT @ queries[:, which], a.mT @ upper[:, which]),
                        strict=True,
                    ):
                        grad[row] += part.unflatten(0, (grad.shape[1], -1)).sum(1)
        trace.move(moved)
        down = [grad.to(x.dtype) for grad, x in zip(grads, (q, k, v), strict=wanted)]
        first = torch.zeros((), device=ctx.start) if ctx.needs_input_grad[3] else None
        return (*(down or (None, None, None)), first, None, None, None)


def _rows(
    adapter: Adapter,
    inputs: dict[str, Any],
    answers: Sequence[Sequence[int]],
    places: Sequence[Sequence[int]],
    rule: Rule,
) -> Float[Tensor, "b s"]:
    """The rows of R that belong to the answers' tokens, their mean over each answer's tokens."""
    b, s = inputs["input_ids"].shape
    device = inputs["input_ids"].device
    needed = sorted({place for each in places for place in each})
    column = {place: number for number, place in enumerate(needed)}
    start = torch.zeros((), device=device, requires_grad=True)
    trace = _Trace(rule, torch.zeros(b, s, device=device))
    passed: list[tuple[Tensor, Tensor, _Maps]] = []
    servers: dict[nn.Module, Server] = {
        adapter.decoder_attention(layer): partial(
            _serve, trace, passed, start if not layer else None
        )
        for layer in range(len(adapter.decoder_layers))
    }
    with torch.set_grad_enabled(rule.weighting == "gradient"), _frozen(adapter.model):
        with served(servers):
            logits: Tensor = adapter.model(
                **inputs, use_cache=False, logits_to_keep=torch.tensor(needed, device=device)
            ).logits
        total = torch.zeros(b, s, dtype=_precision(logits), device=device)
        trace.scale = _SCALES.get(logits.dtype, 1.0)
        for t in range(max(map(len, answers))):
            rows = [row for row, answer in enumerate(answers) if len(answer) > t]
            trace.row = torch.zeros_like(total)
            scalar = logits.new_zeros((), dtype=total.dtype)
            for row in rows:
                trace.row[row, places[row][t]] = 1
                scores = logits[row, column[places[row][t]]].to(total.dtype)
                if rule.explained == "logprob":
                    scores = scores.log_softmax(-1)
                scalar = scalar + trace.scale * scores[answers[row][t]]
            if rule.weighting == "gradient":
                torch.autograd.grad(scalar, start, retain_graph=True)
            else:
                _roll_out(trace, passed)
            total += trace.row
    lengths = torch.tensor([len(answer) for answer in answers], device=device)
    return total.detach() / lengths[:, None]


def _serve(
    trace: _Trace,
    passed: list[tuple[Tensor, Tensor, _Maps]],
    start: Tensor | None,
    kernel: Kernel,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    kwargs: dict[str, Any],
) -> tuple[Tensor, None]:
    """A decoder layer's attention, noted on the way."""
    maps = _Maps(mask, logits_of(q, mask, kwargs))
    if trace.rule.weighting == "mean":
        passed.append((q, k, maps))
        return kernel(q, k, v, mask)[0], None

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = kernel(q, k, v, mask)[0]
        return out

    out: Tensor = _Weighted.apply(q, k, v, start, run, maps, trace)
    return out, None


def _roll_out(trace: _Trace, passed: Sequence[tuple[Tensor, Tensor, _Maps]]) -> None:
    """Move the row from the last layer to the first: r <- r + r E_h(A)."""
    for q, k, maps in reversed(passed):
        moved = []
        for row in range(len(q)):
            queries, keys = _wide(q[row], q.shape[1]), _wide(k[row], q.shape[1])
            own = trace.row[row].to(queries.device)
            moved.append(torch.zeros_like(own))
            for which, a in maps.blocks(row, queries, keys):
                moved[row] += own[which] @ a.mean(0)
        trace.move(moved)


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient while the context lasts."""
    learning = [each for each in model.parameters() if each.requires_grad]
    for each in learning:
        each.requires_grad_(False)
    try:
        yield
    finally:
        for each in learning:
            each.requires_grad_(True)
