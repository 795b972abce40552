"""`foveate train relevance`: pairs of attention and relevance, and the net fitted to them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from foveate.cli import options
from foveate.cli.output import call, finish, folder_for


def relevance(
    model: options.Model = "reference",
    data: options.Data = "scenes",
    count: options.Count = None,
    validation: options.Validation = 0.1,
    out: options.RunFolder = None,
    epochs: Annotated[int, typer.Option(help="Passes over the pairs.", min=1)] = 100,
    batch: Annotated[int, typer.Option(help="Pairs of a step.", min=1)] = 128,
    rate: Annotated[float, typer.Option(help="Adam's learning rate.", min=0)] = 1e-3,
    scaling: Annotated[str, typer.Option(help="Of the attention: count, share or log.")] = "count",
    relu: Annotated[bool, typer.Option(help="Chefer's ReLU, which the paper leaves out.")] = False,
    explained: Annotated[str, typer.Option(help="logit or logprob.")] = "logprob",
    limit: Annotated[int, typer.Option(help="Visual tokens of a prompt.", min=1)] = 1500,
    max_new_tokens: options.MaxNewTokens = 16,
    seed: Annotated[int, typer.Option(help="Of parameters, order and drawing.", min=0)] = 0,
    run: Annotated[int, typer.Option(help="Dialogues that the model runs at a time.", min=1)] = 8,
    cpu: options.Cpu = False,
    revision: options.Revision = None,
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
    attn: options.Attn = None,
    as_json: options.Json = False,
) -> None:
    """Train the relevance compressor for a model.

    The model answers each question; of those that it answers right, attention and relevance are
    stored. Interrupted, the same command goes on.
    """
    from rich.console import Console
    from rich.progress import Progress

    from foveate.cli.loading import Source
    from foveate.methods.relevance import KINDS, Relevance
    from foveate.relevance import Rule
    from foveate.training.data import examples, split
    from foveate.training.relevance import Pairs, Settings, train

    rule = Rule(relu=relu, explained=explained)
    settings = Settings(epochs=epochs, batch=batch, rate=rate, seed=seed)
    dialogues = examples(data, count, seed)
    kinds = tuple(k for k in KINDS if any(KINDS[each.is_video] == k for each in dialogues))
    method = Relevance(scaling=scaling, kinds=kinds)
    learned, held = split(dialogues, validation, seed)
    folder = folder_for(out, "train", f"relevance-seed{seed}")
    source = Source(model, revision, dtype, device_map, attn)
    loaded, processor = source.load()
    asked: dict[str, Any] = {"rule": rule, "limit": limit, "max_new_tokens": max_new_tokens}
    pairs = Pairs(loaded, processor, folder / "pairs", **asked)
    with Progress(console=Console(stderr=True), disable=as_json, transient=True) as progress:
        task = progress.add_task("asking the model", total=len(dialogues))
        pairs.fill([*learned, *held], batch_size=run, done=lambda n: progress.advance(task, n))
        fitting = progress.add_task("fitting the net", total=None)
        facts: dict[str, Any] = {
            "source": data,
            "dialogues": len(learned),
            "rule": f"{rule}",
        }
        trained = train(
            method,
            loaded,
            pairs.read(learned),
            folder,
            settings,
            validation=pairs.read(held),
            facts=facts,
            cpu=cpu,
            tell=lambda at: progress.update(fitting, completed=at.step, total=at.steps),
        )
    shown: list[Any] = [f"{name}: {value:.3f}" for name, value in trained.values.items()]
    shown.append(f"the compressor is in {trained.folder}")
    python = [
        *source.python,
        "from foveate.methods.relevance import Relevance",
        "from foveate.relevance import Rule",
        "from foveate.training import data",
        "from foveate.training.relevance import Pairs, Settings, train",
        "found = " + call("data.examples", repr(data), count=count, seed=seed),
        f"learn, held = data.split(found, {validation}, seed={seed})",
        "pairs = " + call("Pairs", "model", "processor", repr(str(folder / "pairs")), **asked),
        "pairs.fill([*learn, *held])",
        f"trained = train({method!r}, model, pairs.read(learn), {str(folder)!r}, {settings!r}, "
        f"validation=pairs.read(held), facts={facts!r})",
    ]
    finish({"compressor": str(trained.folder), "values": trained.values}, shown, python, as_json)
