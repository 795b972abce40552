"""What foveate itself costs, beside the model it is attached to.

    python -m benchmarks.overhead                       # a small shape on the CPU, minutes
    python -m benchmarks.overhead --shape 7b --device cuda --dtype bfloat16

Random weights, real classes: time does not depend on what the weights are. Every comparison
alternates the two sides (A B A B ...) after a warm-up and reports the median of the ratios with
their quartiles. On a GPU every timing waits for the device. Peak memory is that of the
tensors made during a prefill.

Rows of the report:

* no-op: keep=1.0 attached beside the stock model;
* all tables: every token kept, but through every hook, gather and table;
* each method: prefill beside the stock prefill, and the host time of its decision as a share of
  the full prefill; a method whose first layers alone exceed `--keep` gets `--keep-inside`;
* decode: one step on the compressed cache beside one step on the full cache;
* answers, with `--words`: a prefill and as many decoded tokens, beside the stock model's;
* host reads: transfers from device to host in one decode step, beside the stock model's.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import foveate
from foveate import catalog
from foveate.attach.prompt import placed
from foveate.compressor import Compressor, Stage, VisualTokens
from foveate.evaluation.cost import count_flops
from foveate.evaluation.fingerprints import code
from foveate.evaluation.reach import refusal
from foveate.evaluation.settings import parse_method
from foveate.evaluation.timing import Ratio, alternate, seconds
from foveate.learned import LearnedCompressor
from foveate.mapping import Mapping

SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    # One 24 x 24 picture in every shape, as LLaVA-1.5 has it; only depth and width differ.
    "small": {
        "vision": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4},
        "text": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8},
    },
    # The widths of 7B with few layers, for machines that cannot hold it: shares of a prefill are
    # larger than in the whole model, by about the ratio of depths.
    "7b-shallow": {
        "vision": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4},
        "text": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 4},
    },
    # The depth of 7B at a small width, so that methods between decoder layers act at their
    # published layers and meet their published budgets.
    "deep": {
        "vision": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 24},
        "text": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 32},
    },
    "7b": {
        "vision": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24},
        "text": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32},
    },
}
TEXT_TOKENS = 64
# TRIM needs a CLIP checkpoint of the model's; learned methods, with parameters drawn at random, are
# timed if they are named.
METHODS = [
    name for name in catalog.names() if name != "trim" and not catalog.method_class(name).trainable
]


@dataclasses.dataclass(frozen=True)
class KeepAll(Compressor):
    """Keeps every token, so that only the machinery is measured."""

    stage: ClassVar[Stage] = Stage.INPUT

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        return Mapping.identity(tokens.n, tokens.features.device)


class HostReads(TorchDispatchMode):
    """Counts operations that make the host wait for a value of the device."""

    NAMES = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in self.NAMES
        return func(*args, **(kwargs or {}))


def build(shape: str, device: str, dtype: torch.dtype) -> Any:
    """A LLaVA of this shape with random weights."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers import LlavaForConditionalGeneration as Llava

    sizes = SHAPES[shape]
    text = sizes["text"]
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            image_size=336,
            patch_size=14,
            num_attention_heads=sizes["vision"]["hidden_size"] // 64,
            **sizes["vision"],
        ),
        text_config=LlamaConfig(
            vocab_size=32064, num_attention_heads=text["hidden_size"] // 128, **text
        ),
        image_token_index=32000,
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = Llava(config)
    finally:
        torch.set_default_dtype(default)
    return model.eval()


def prompt(model: Any, batch: int) -> dict[str, Tensor]:
    """One picture and TEXT_TOKENS words a row."""
    device, dtype = model.device, model.dtype
    words = torch.randint(10, 1000, (batch, TEXT_TOKENS), device=device)
    picture = torch.full((batch, 576), 32000, device=device)
    ids = torch.cat([words[:, :4], picture, words[:, 4:]], 1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(batch, 3, 336, 336, device=device, dtype=dtype),
    }


def peak(call: Callable[[], Any], device: str) -> int:
    """Most bytes that tensors made during a call held at once."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    now = most = 0
    # The profiler's own record of every allocation, in the order of time.
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@torch.no_grad()
def prefill(model: Any, inputs: dict[str, Tensor]) -> Any:
    """The cache after one prefill."""
    return model(**inputs, logits_to_keep=1).past_key_values


@torch.no_grad()
def answer(model: Any, inputs: dict[str, Tensor], words: int) -> Any:
    """A prefill and `words` tokens after it, the end not recognised."""
    return model.generate(
        **inputs, max_new_tokens=words, do_sample=False, eos_token_id=None, pad_token_id=0
    )


@torch.no_grad()
def step(model: Any, cache: Any, token: Tensor, seen: int) -> None:
    """One decoded token; the cache is put back as it was."""
    mask = torch.ones(len(token), seen + 1, dtype=torch.long, device=token.device)
    model(input_ids=token, past_key_values=cache, attention_mask=mask)
    cache.crop(-1)


def measure(
    model: Any,
    inputs: dict[str, Tensor],
    methods: list[str],
    keep: int,
    keep_inside: int,
    device: str,
    repeats: int,
    words: int = 0,
) -> Iterator[dict[str, Any]]:
    """One record for each row of the report."""
    sizes = {picture.layout.n for picture in placed(model, inputs)}

    def stock() -> Any:
        return prefill(model, inputs)

    def attached(method: Any, made: Callable[[], Any] = stock, **how: Any) -> Callable[[], Any]:
        def call() -> Any:
            with foveate.attach(model, method, **how):
                return made()

        return call

    def answered() -> Any:
        return answer(model, inputs, words)

    def row(name: str, kind: str, ratio: Ratio, **more: Any) -> dict[str, Any]:
        return {"name": name, "kind": kind, **dataclasses.asdict(ratio), **more}

    base_peak, base_flops = peak(stock, device), count_flops(stock)
    noop = attached("uniform", keep=1.0)
    yield row("keep=1.0", "prefill", alternate(stock, noop, device, repeats))
    tables = attached(KeepAll(), _force=True)
    yield row(
        "all tables", "prefill", alternate(stock, tables, device, repeats),
        peak=peak(tables, device), stock_peak=base_peak,
    )  # fmt: skip
    for name in methods:
        setting = parse_method(name)
        method = setting.make()
        kept: int | None = keep
        if isinstance(method, LearnedCompressor):
            method = method.initialised(model)  # time does not depend on its weights either
        elif method.states_budget:
            kept = None
        elif refusal(model, dataclasses.replace(setting, keep=keep), sizes) is not None:
            kept = keep_inside
        call = attached(method, keep=kept)
        ratio = alternate(stock, call, device, repeats)
        with foveate.attach(model, method, keep=kept) as run:
            decisions = []
            for _ in range(repeats):
                before = run.report().decision_seconds
                seconds(lambda: prefill(model, inputs), device)
                decisions.append(run.report().decision_seconds - before)
            layers = run.report().layers
            average = statistics.fmean(item.average(layers) for item in run.items)
        title = name if kept in (keep, None) else f"{name}, {kept} kept"
        left: dict[str, Any] = {"method": name, "average": average}
        left |= {} if kept is None else {"keep": kept}
        yield row(
            title, "prefill", ratio, **left,
            decision_share=statistics.median(decisions) / ratio.base_seconds,
            peak=peak(call, device), stock_peak=base_peak,
            flops=count_flops(call), stock_flops=base_flops,
        )  # fmt: skip
        if words:
            spoken = attached(method, answered, keep=kept)
            yield row(title, "answer", alternate(answered, spoken, device, repeats), **left)
    seen = inputs["input_ids"].shape[1]
    token = inputs["input_ids"][:, -1:]
    full = stock()
    with foveate.attach(model, "uniform", keep=keep):
        short = prefill(model, inputs)
        ratio = alternate(
            lambda: step(model, full, token, seen),
            lambda: step(model, short, token, seen),
            device,
            repeats * 4,
        )
        reads = []
        for cache in (full, short):
            with HostReads() as counter:
                step(model, cache, token, seen)
            reads.append(counter.count)
    yield row(
        f"decode step, {keep} of 576 kept", "decode", ratio,
        stock_host_reads=reads[0], host_reads=reads[1],
    )  # fmt: skip


def main(
    shape: Annotated[str, typer.Option(help=f"One of {', '.join(SHAPES)}.")] = "small",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    keep: Annotated[int, typer.Option(help="Visual tokens kept of 576.")] = 64,
    keep_inside: Annotated[
        int, typer.Option(help="The same on average, for methods that cannot reach --keep.")
    ] = 192,
    batch: Annotated[int, typer.Option(help="Prompts in a batch.")] = 1,
    repeats: Annotated[int, typer.Option(help="Pairs that are timed.", min=2)] = 7,
    words: Annotated[int, typer.Option(help="Also time answers of so many tokens.", min=0)] = 0,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method", "-m", help="May be repeated; all but TRIM and learned ones if none."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write the numbers as JSON.")] = None,
) -> None:
    """Measure what foveate costs on this machine."""
    model = build(shape, device, getattr(torch, dtype))
    inputs = prompt(model, batch)
    where = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "CPU"
    title = f"{shape} shape, {dtype}, batch {batch}, {where}, {torch.get_num_threads()} threads"
    table = Table(title=title)
    for column in ("", "time / stock [quartiles]", "stock ms", "decision / full prefill",
                   "peak / stock", "host reads / stock"):  # fmt: skip
        table.add_column(column)
    rows = []
    for record in measure(
        model, inputs, method or METHODS, keep, keep_inside, device, repeats, words
    ):
        rows.append(record)
        ratio = Ratio(*(record[k] for k in ("median", "low", "high", "base_seconds")))
        share, high = record.get("decision_share"), record.get("peak")
        reads = (
            f"{record['host_reads']} / {record['stock_host_reads']}"
            if ("host_reads" in record)
            else ""
        )
        name = record["name"] + (", answer" if record["kind"] == "answer" else "")
        table.add_row(
            name, str(ratio), f"{1e3 * ratio.base_seconds:.1f}",
            "" if share is None else f"{100 * share:.2f} %",
            "" if high is None else f"{high / record['stock_peak']:.3f}", reads,
        )  # fmt: skip
    Console().print(table)
    if out is not None:
        setting = {"shape": shape, "device": where, "dtype": dtype, "batch": batch, "keep": keep,
                   "repeats": repeats, "words": words,
                   "torch": torch.__version__, "transformers": transformers.__version__,
                   "foveate": code(), "threads": torch.get_num_threads()}  # fmt: skip
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"setting": setting, "rows": rows}, indent=1))


if __name__ == "__main__":
    typer.run(main)
