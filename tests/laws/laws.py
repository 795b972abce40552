"""The laws of `foveate.attach`, as plain functions that raise AssertionError when one is broken.

The law tests call them on the library as it is; the fault tests call the same functions with a
deliberate fault in the library and expect them to fail. Truth is recomputed by
`tests.families.reference`, prompt by prompt, without padding, cache or the library.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import foveate
from foveate import catalog
from foveate.compressor import Compressor, Stage, VisualTokens, resolve_keep
from foveate.learned import LearnedCompressor
from tests.families import reference
from tests.families.family import IMAGE, VIDEO, Batch, Family
from tests.families.models import FAMILIES
from tests.families.reference import Plan

# Differences are counted in standard deviations of logits. cos and sin are float32 in every
# model and generate returns float32, so float64 shows their rounding wherever positions shift.
TOLERANCE = {torch.float64: 2e-5, torch.float32: 2e-4}
STEPS = 4


@dataclasses.dataclass(frozen=True)
class Case:
    """One family in one setting.

    Attributes:
        name: the family.
        attn, dtype: of the model.
        padding: ``"left"`` or ``"right"``.
        images, videos: how many of them each row has.
        seed: of the prompts.
    """

    name: str
    attn: str = "sdpa"
    dtype: torch.dtype = torch.float64
    padding: str = "left"
    images: tuple[int, ...] = (1, 1)
    videos: tuple[int, ...] | None = None
    seed: int = 2

    @property
    def family(self) -> Family:
        return FAMILIES[self.name]

    def model(self) -> PreTrainedModel:
        """The shared model: a law must leave it as it was."""
        return shared_model(self.name, self.attn, self.dtype)

    def batch(self) -> Batch:
        return self.family.batch(
            seed=self.seed,
            padding=self.padding,
            images_per_row=self.images,
            videos_per_row=self.videos,
            dtype=self.dtype,
        )

    def alone(self, row: reference.Any) -> dict[str, Any]:
        """The model's inputs for one prompt by itself."""
        return self.family.pad([row], dtype=self.dtype).inputs


@functools.lru_cache(maxsize=64)
def shared_model(name: str, attn: str, dtype: torch.dtype) -> PreTrainedModel:
    return FAMILIES[name].build(attn, dtype)


def ready(method: str | Compressor, model: nn.Module) -> Compressor:
    """The method; a learned one with parameters, though untrained ones."""
    made = catalog.make(method) if isinstance(method, str) else method
    return made.initialised(model) if isinstance(made, LearnedCompressor) else made


# ---------------------------------------------------------------------- comparing


def assert_close(out: Tensor, truth: Tensor, dtype: torch.dtype, what: str) -> None:
    """`out` equals `truth` up to rounding, wherever the truth is known."""
    assert out.shape == truth.shape, f"{what}: {tuple(out.shape)}, expected {tuple(truth.shape)}"
    known = ~truth.isnan()
    assert bool(known.any()), f"{what}: nothing to compare"
    assert bool(out[known].isfinite().all()), f"{what}: not finite"
    scale = truth[known].std(correction=0).clamp(min=1)
    off = (out.to(truth.dtype) - truth)[known].abs().max() / scale
    assert float(off) <= TOLERANCE[dtype], f"{what}: off by {float(off):.2g}"


def decision(method: Compressor, keep: int | float | None, layers: int, totals: list[int]) -> Any:
    """What `method` decides, as the reference asks for it."""
    budget: dict[tuple[int, int], int | None] = {}
    for picture, n in enumerate(totals):
        count = None if keep is None else resolve_keep(keep, n)
        if method.stage != Stage.DECODER:
            budget[picture, 0] = count
        elif count is not None:
            steps = method.decoder_budget(n, count, layers)
            budget |= {(picture, k): m for k, m in zip(method.layers, steps, strict=True)}

    def decide(picture: int, layer: int, features: Tensor) -> tuple[Tensor, Tensor | None]:
        at = layer if method.stage == Stage.DECODER else None
        tokens = VisualTokens(features=features, grids=(), layer=at)
        mapping = method(tokens, budget.get((picture, layer)))
        matrix = None if mapping.is_selection else mapping.to_matrix()
        return mapping.anchors, matrix

    return decide


def plan_of(
    method: Compressor,
    slots: Sequence[Tensor],
    keep: int | float | None = None,
    positions: str = "original",
    layers: int = 4,
    lengths: Sequence[int] = (),
) -> Plan:
    """What the reference must do where `method` reads the embeddings or hidden states.

    Args:
        lengths: of the sequence after each prefill with pictures.
    """
    decide = decision(method, keep, layers, [len(s) for s in slots])
    first = method.settles_from(layers)
    settled = None if first is None else (first, lengths)
    return Plan(slots, decide, tuple(method.layers) or (0,), positions, settled=settled)


def plans(
    batch: Batch,
    found: list[Any],
    method: Compressor,
    keep: int | float | None,
    positions: str,
) -> list[Plan]:
    """The plan of each row; also checks that the run reports each row's pictures.

    Args:
        found: the run's items.
    """
    out = []
    for row, slots in enumerate(batch.slots):
        first = int(batch.inputs["attention_mask"][row].argmax())
        items = [item for item in found if item.row == row]
        assert len(items) == len(slots), f"row {row}: {len(items)} pictures, {len(slots)} passed"
        for item, truth in zip(items, slots, strict=True):
            assert item.slots.tolist() == truth.tolist(), "slots are not where the pictures are"
            assert sum(g.size for g in item.grids) == len(truth) == item.mapping.n
        own = [s - first for s in slots]
        plan = plan_of(method, own, keep, positions, lengths=[len(batch.rows[row].ids)])
        if method.stage == Stage.VISION:
            # The reference does not see the encoder's output: it takes over what was selected.
            mappings = [item.mapping for item in items]
            assert all(m.is_selection for m in mappings)
            plan = dataclasses.replace(
                plan, decide=lambda p, k, x, chosen=mappings: (chosen[p].anchors, None)
            )
        out.append(plan)
    return out


def forward_truth(case: Case, batch: Batch, per_row: list[Plan]) -> list[Tensor]:
    """The reference's logits of each prompt."""
    model = case.model()
    return [
        reference.logits(model, case.alone(row), plan)
        for row, plan in zip(batch.rows, per_row, strict=True)
    ]


def answered(case: Case, row: Any, answer: Tensor) -> dict[str, Any]:
    """A prompt alone with its answer appended."""
    inputs = case.alone(row)
    extra = {
        "input_ids": answer[None],
        "attention_mask": torch.ones(1, len(answer), dtype=torch.long),
        "mm_token_type_ids": torch.zeros(1, len(answer), dtype=torch.long),
        "token_type_ids": torch.full((1, len(answer)), case.family.suffix_type),
    }
    for name, value in extra.items():
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], value.to(inputs[name].dtype)], 1)
    return inputs


def answer_truth(case: Case, row: Any, answer: Tensor, plan: Plan) -> Tensor:
    """(t, v) the reference's logits from which each token of `answer` (t,) was drawn."""
    out = reference.logits(case.model(), answered(case, row, answer), plan)
    return out[-len(answer) - 1 : -1]


def generate(case: Case, batch: Batch, **kwargs: Any) -> Any:
    settings = {
        "max_new_tokens": STEPS,
        "output_logits": True,
        "output_scores": True,
        "return_dict_in_generate": True,
    }
    return case.model().generate(**batch.inputs, **(settings | kwargs))


def copied(inputs: dict[str, Any]) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in inputs.items()}


def assert_unchanged(inputs: dict[str, Any], before: dict[str, Any]) -> None:
    for name, value in before.items():
        same = torch.equal(inputs[name], value) if isinstance(value, Tensor) else True
        assert same, f"the input {name} was modified"


# ---------------------------------------------------------------------- leaving no trace


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that attaching could leave changed, but its parameters' values."""
    state: dict[str, Any] = {
        "state keys": list(model.state_dict()),
        "attention functions": dict(ALL_ATTENTION_FUNCTIONS._global_mapping)
        | dict(ALL_ATTENTION_FUNCTIONS._local_mapping),
        "mask functions": dict(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping)
        | dict(ALL_MASK_ATTENTION_FUNCTIONS._local_mapping),
    }
    for name, module in model.named_modules():
        inside = {}
        for key, value in vars(module).items():
            if key in {"rope_deltas"}:
                continue  # Qwen-VL's own memory of the last prompt
            if key.startswith("_") and key.endswith(("hooks", "with_kwargs", "always_called")):
                inside[key] = list(value)
            elif key not in {"_parameters", "_buffers", "_modules"}:
                inside[key] = (
                    id(value) if not isinstance(value, int | float | str | bool) else value
                )
        state[f"module {name!r}"] = (type(module), inside)
        state[f"forward of {name!r}"] = type(module).forward
        config = getattr(module, "config", None)
        if config is not None:
            state[f"config of {name!r}"] = (id(config), config._attn_implementation)
    return state


def assert_same_state(before: dict[str, Any], after: dict[str, Any]) -> None:
    for key in before.keys() | after.keys():
        assert before.get(key) == after.get(key), f"{key} was left changed"


def check_keep_all_is_untouched(case: Case, method: Compressor) -> None:
    """keep=1.0 hooks nothing, and neither the cache nor the outputs differ in a bit."""
    model, batch = case.model(), case.batch()
    stock = generate(case, batch)
    before = snapshot(model)  # after a first run, in which transformers installs its own hooks
    with foveate.attach(model, method, keep=1.0):
        inside = snapshot(model)
        for key in before:
            kind, attributes = inside[key] if key.startswith("module") else (None, {})
            attributes.pop("_foveate_run", None)  # the only trace: that something is attached
            if key.startswith("module"):
                inside[key] = (kind, attributes)
        assert_same_state(before, inside)
        out = generate(case, batch)
    assert type(out.past_key_values) is type(stock.past_key_values)
    assert torch.equal(out.sequences, stock.sequences)
    assert all(torch.equal(a, b) for a, b in zip(out.logits, stock.logits, strict=True))
    assert_same_state(before, snapshot(model))


def check_detach_restores(case: Case, method: Compressor, error: bool = False) -> None:
    """After the context the model is as it was, also when it is left by an exception."""
    model, batch = case.model(), case.batch()
    stock = model(**batch.inputs).logits
    before = snapshot(model)  # after a first run, in which transformers installs its own hooks
    leaving = pytest.raises(RuntimeError, match="left early") if error else contextlib.nullcontext()
    with leaving, foveate.attach(model, method, _force=True):
        model.generate(**batch.inputs, max_new_tokens=2)
        if error:
            raise RuntimeError("left early")
    gc.collect()
    assert_same_state(before, snapshot(model))
    assert torch.equal(model(**batch.inputs).logits, stock)


def check_select_all_is_exact(case: Case, method: Compressor) -> None:
    """A select-all that is sent through every gather changes no bit of any logit."""
    model, batch = case.model(), case.batch()
    real = batch.inputs["attention_mask"].bool()
    stock = model(**batch.inputs).logits[real]
    stock_out = generate(case, batch)
    with foveate.attach(model, method, _force=True) as run:
        out = model(**batch.inputs).logits[real]
        assert all(item.mapping.is_identity for item in run.items)
        assert len(run.items) == sum(map(len, batch.slots))
        answer = generate(case, batch)
    assert torch.equal(out, stock), f"logits off by {float((out - stock).abs().max()):.2g}"
    assert torch.equal(answer.sequences, stock_out.sequences), "other tokens"
    for step, (a, b) in enumerate(zip(answer.logits, stock_out.logits, strict=True)):
        assert torch.equal(a, b), f"step {step}: logits off by {float((a - b).abs().max()):.2g}"


# ---------------------------------------------------------------------- pruning = reference


def check_forward(
    case: Case, method: Compressor, keep: int | float | None = None, positions: str = "original"
) -> None:
    """One forward pass equals the reference at every token of every row."""
    model, batch = case.model(), case.batch()
    before = copied(batch.inputs)
    with foveate.attach(model, method, keep=keep, positions=positions, _force=True) as run:
        out = model(**batch.inputs).logits
        per_row = plans(batch, run.items, method, keep, positions)
    assert_unchanged(batch.inputs, before)
    real = batch.inputs["attention_mask"].bool()
    for row, truth in enumerate(forward_truth(case, batch, per_row)):
        assert_close(out[row, real[row]], truth, case.dtype, f"row {row}")


def check_generate(
    case: Case,
    method: Compressor,
    keep: int | float | None = None,
    positions: str = "original",
    **kwargs: Any,
) -> None:
    """Every step of a generation equals a full recomputation; also for several sequences a row."""
    model, batch = case.model(), case.batch()
    before = copied(batch.inputs)
    with foveate.attach(model, method, keep=keep, positions=positions, _force=True) as run:
        out = generate(case, batch, **kwargs)
    assert_unchanged(batch.inputs, before)
    length = batch.inputs["input_ids"].shape[1]
    copies = len(out.sequences) // len(batch.rows)
    per_row = plans(batch, one_copy(run.items, batch), method, keep, positions)
    for i, sequence in enumerate(out.sequences):
        row = i // copies
        answer = sequence[length:]
        truth = answer_truth(case, batch.rows[row], answer, per_row[row])
        got = torch.stack([step[i] for step in out.logits])
        assert_close(got, truth, case.dtype, f"answer {i}")


def one_copy(items: list[Any], batch: Batch) -> list[Any]:
    """The items of the first of each prompt's repeated rows, numbered as the prompts are."""
    last = max((row for row, slots in enumerate(batch.slots) if slots), default=0)
    copies = max((1 + item.row for item in items), default=1) // (1 + last)
    return [
        dataclasses.replace(item, row=item.row // copies)
        for item in items
        if item.row % copies == 0
    ]


def check_beams(
    case: Case, method: Compressor, keep: int | float | None = None, positions: str = "original"
) -> None:
    """The score that beam search gives each answer is the reference's log-probability of it."""
    model, batch = case.model(), case.batch()
    with foveate.attach(model, method, keep=keep, positions=positions, _force=True) as run:
        out = generate(case, batch, num_beams=3, num_return_sequences=2, length_penalty=0.0)
    per_row = plans(batch, one_copy(run.items, batch), method, keep, positions)
    length = batch.inputs["input_ids"].shape[1]
    for i, sequence in enumerate(out.sequences):
        row, answer = i // 2, sequence[length:]
        truth = answer_truth(case, batch.rows[row], answer, per_row[row]).log_softmax(-1)
        total = truth.gather(1, answer[:, None]).sum()
        assert_close(out.sequences_scores[i : i + 1], total[None], torch.float32, f"beam {i}")


def check_cache_rows(case: Case, method: Compressor, how: str) -> None:
    """Reordering, repeating or selecting rows of a compressed cache moves its tables along."""
    model, batch = case.model(), case.batch()
    rows = len(batch.rows)
    index = {
        "reorder": list(reversed(range(rows))),
        "repeat": [r for r in range(rows) for _ in range(2)],
        "select": [rows - 1],
    }[how]
    with foveate.attach(model, method, _force=True) as run:
        out = generate(case, batch, max_new_tokens=2)
        per_row = plans(batch, run.items, method, None, "original")
        cache = out.past_key_values
        if how == "reorder":
            cache.reorder_cache(torch.tensor(index))
        elif how == "repeat":
            cache.batch_repeat_interleave(2)
        else:
            cache.batch_select_indices(torch.tensor(index))
        ids = out.sequences[index]
        mask = torch.cat([batch.inputs["attention_mask"], torch.ones(rows, 2).long()], 1)[index]
        step = {"input_ids": ids[:, -1:], "attention_mask": mask, "past_key_values": cache}
        position = mask.sum(1, keepdim=True) - 1 + case.family.suffix_type
        if hasattr(model.model, "rope_deltas"):
            position = (position + model.model.rope_deltas[index]).expand(3, -1, -1)
        step["position_ids"] = position
        logits = model(**step).logits[:, -1]
    length = batch.inputs["input_ids"].shape[1]
    for i, row in enumerate(index):
        answer = ids[i, length:]
        inputs = answered(case, batch.rows[row], answer)
        truth = reference.logits(model, inputs, per_row[row])[-1]
        assert_close(logits[i], truth, case.dtype, f"{how}: row {i}")


def check_second_turn(
    case: Case,
    method: Compressor,
    positions: str = "original",
    images: tuple[int, ...] = (),
    attached: bool = True,
) -> None:
    """A second question, and new pictures, on the compressed cache of the first.

    Args:
        attached: False checks the stock model, with a method that keeps everything.
    """
    model, batch = case.model(), case.batch()
    with contextlib.ExitStack() as stack:
        if attached:
            stack.enter_context(foveate.attach(model, method, positions=positions, _force=True))
        first = generate(case, batch)
        answer = first.sequences[:, batch.inputs["input_ids"].shape[1] :]
        turn = case.family.next_turn(batch, answer, images_per_row=images or None)
        turn.inputs = {
            k: v.to(case.dtype) if isinstance(v, Tensor) and v.is_floating_point() else v
            for k, v in turn.inputs.items()
        }
        second = generate(case, turn, past_key_values=first.past_key_values)
    length = turn.inputs["input_ids"].shape[1]
    for row, prompt in enumerate(turn.rows):
        whole = joined_row(batch.rows[row], prompt)
        slots = [
            torch.tensor(p.visual).nonzero().flatten() + start
            for p, start in zip(whole.pictures, whole.starts, strict=True)
        ]
        lengths = [len(batch.rows[row].ids)] + [len(whole.ids)] * bool(images)
        plan = plan_of(method, slots, None, positions, lengths=lengths)
        reply = second.sequences[row, length:]
        truth = answer_truth(case, whole, reply, plan)
        got = torch.stack([step[row] for step in second.logits])
        assert_close(got, truth, case.dtype, f"turn 2, row {row}")


def joined_row(first: Any, second: Any) -> Any:
    """Both turns as one prompt, with the pictures of both."""
    return dataclasses.replace(
        second,
        pictures=first.pictures + second.pictures,
        starts=first.starts + second.starts,
    )


# ---------------------------------------------------------------------- training


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Gradient checkpointing, by the name that this release of transformers gives it."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable({"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable({"use_reentrant": False})


def check_loss_and_gradients(
    case: Case, method: Compressor, positions: str = "original", checkpointing: bool = False
) -> None:
    """Labels of the original length give the reference's loss and gradients."""
    family = case.family
    model = family.build(case.attn, case.dtype)
    batch = case.batch()
    inputs = dict(batch.inputs)
    labels = inputs["input_ids"].clone()
    labels[(labels == IMAGE) | (labels == VIDEO) | (inputs["attention_mask"] == 0)] = -100
    # Tokens before which nothing is kept have no logits of their own.
    for row in range(len(labels)):
        labels[row, : int(inputs["attention_mask"][row].argmax()) + 1] = -100
        if family.image_first:
            labels[row, : int(batch.slots[row][0].max()) + 2] = -100
    if checkpointing:
        checkpoint_activations(model)
        model.train()
    with foveate.attach(model, method, positions=positions, _force=True) as run:
        loss = model(**inputs, labels=labels, use_cache=False).loss
        loss.backward()
        per_row = plans(batch, run.items, method, None, positions)
    got = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.eval()
    parts, count = [], 0
    real = inputs["attention_mask"].bool()
    for row, plan in enumerate(per_row):
        out = reference.logits(model, case.alone(batch.rows[row]), plan)
        target = labels[row, real[row]][1:]
        known = target != -100
        parts.append(nn.functional.cross_entropy(out[:-1][known], target[known], reduction="sum"))
        count += int(known.sum())
    truth = torch.stack(parts).sum() / count
    assert_close(loss.detach()[None], truth.detach()[None].nan_to_num(-1), torch.float32, "loss")
    truth.backward()
    assert len(got) > 10, "hardly any parameter has a gradient"
    for name, parameter in model.named_parameters():
        want = parameter.grad
        if want is None or float(want.abs().max()) < 1e-12:
            continue
        assert name in got, f"{name} has no gradient"
        scale = float(want.abs().max())
        off = float((got[name] - want).abs().max()) / scale
        assert off < 50 * TOLERANCE[case.dtype], f"gradient of {name} off by {off:.2g}"


# ---------------------------------------------------------------------- independence


def check_batch_mates(case: Case, method: Compressor, keep: int | float | None = None) -> None:
    """A prompt's answer is the same alone, with others and in another order of rows."""
    model, batch = case.model(), case.batch()
    rows = batch.rows
    orders = [list(range(len(rows))), list(reversed(range(len(rows)))), [0]]
    answers: dict[int, list[Tensor]] = {}
    with foveate.attach(model, method, keep=keep, _force=True):
        for order in orders:
            part = case.family.pad([rows[i] for i in order], case.padding, case.dtype)
            out = generate(case, part)
            for at, row in enumerate(order):
                answers.setdefault(row, []).append(torch.stack([s[at] for s in out.logits]))
    for row, found in answers.items():
        for other in found[1:]:
            assert_close(other, found[0], case.dtype, f"row {row}")


def check_half_precision(case: Case, method: Compressor) -> None:
    """bfloat16 stays finite where the stock model does, holes and all."""
    model, batch = case.model(), case.batch()
    with foveate.attach(model, method, _force=True) as run:
        out = generate(case, batch)
        assert run.items
    assert all(bool(step.isfinite().all()) for step in out.logits)


def check_without_mask(case: Case, method: Compressor, positions: str) -> None:
    """A prompt that comes without an attention mask is one sequence, not several packed ones."""
    model, batch = case.model(), case.family.pad(case.batch().rows[:1], dtype=case.dtype)
    inputs = {k: v for k, v in batch.inputs.items() if k != "attention_mask"}
    with foveate.attach(model, method, positions=positions, _force=True) as run:
        # transformers looks for packed sequences only where no cache is filled.
        out = model(**inputs, use_cache=False).logits[0]
        (plan,) = plans(batch, run.items, method, None, positions)
    truth = reference.logits(model, batch.inputs, plan)
    assert_close(out, truth, case.dtype, "without a mask")


def check_prompt_lookup(case: Case, method: Compressor) -> None:
    """Speculative decoding, which crops the cache, finds the same tokens."""
    model, batch = case.model(), case.family.pad(case.batch().rows[:1], dtype=case.dtype)
    with foveate.attach(model, method, _force=True):
        plain = model.generate(**batch.inputs, max_new_tokens=8)
        fast = model.generate(**batch.inputs, max_new_tokens=8, prompt_lookup_num_tokens=3)
    assert plain.tolist() == fast.tolist()


def check_counts(case: Case, method: Compressor, keep: int | float) -> None:
    """Every picture keeps exactly what was asked for, and the report counts it."""
    model, batch = case.model(), case.batch()
    with foveate.attach(model, method, keep=keep) as run:
        model(**batch.inputs)
        sizes = [len(s) for slots in batch.slots for s in slots]
        wanted = [resolve_keep(keep, n) for n in sizes]
        assert [item.mapping.m for item in run.items] == wanted
        assert [item.mapping.n for item in run.items] == sizes


def check_text_only_is_untouched(case: Case, method: Compressor) -> None:
    """A request without pictures runs bit for bit as if nothing were attached."""
    model, batch = case.model(), case.batch()
    stock = generate(case, batch)
    with foveate.attach(model, method, _force=True):
        out = generate(case, batch)
    assert type(out.past_key_values) is type(stock.past_key_values) is DynamicCache
    assert all(torch.equal(a, b) for a, b in zip(out.logits, stock.logits, strict=True))


def check_static_cache(case: Case, method: Compressor) -> None:
    """A static cache gives what a dynamic one gives."""
    check_generate(case, method, cache_implementation="static")
