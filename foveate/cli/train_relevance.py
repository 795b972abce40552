"""`foveate train relevance | seek`: what a method is told, relevance, and the net fitted to them.

One command for all methods that predict relevance; it trains the one that it is called by.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from foveate.cli import options
from foveate.cli.output import call, finish, folder_for

# What each method's command says of it.
METHODS = {
    "relevance": "Train the explainability compressor, which predicts relevance, for a model.",
    "seek": "Train foveate's own compressor, which reads the question, for a model.",
}


class Named(TyperCommand):
    """A command told its name by the context that Typer's annotations ask for."""

    context_class = typer.Context


def command(
    context: typer.Context,
    model: options.Model = "reference",
    data: options.Data = "scenes",
    count: options.Count = None,
    validation: options.Validation = 0.1,
    out: options.RunFolder = None,
    epochs: Annotated[int, typer.Option(help="Passes over the pairs.", min=1)] = 100,
    batch: Annotated[int, typer.Option(help="Pairs of a step.", min=1)] = 128,
    rate: Annotated[float, typer.Option(help="Adam's learning rate.", min=0)] = 1e-3,
    schedule: Annotated[str, typer.Option(help="Of the rate: constant or cosine.")] = "constant",
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="field=value of the method; may be repeated."),
    ] = None,
    weighting: Annotated[
        str, typer.Option(help="Of attention in the labels: gradient (published) or mean.")
    ] = "gradient",
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
    """Train the method that the command is called by."""
    from rich.console import Console
    from rich.progress import Progress

    from foveate import catalog
    from foveate.cli.loading import Source
    from foveate.evaluation.settings import parse_method
    from foveate.predicting import KINDS, RelevancePredictor
    from foveate.relevance import Rule
    from foveate.training.data import examples, split
    from foveate.training.pairs import Pairs
    from foveate.training.relevance import Settings, train

    method = context.info_name
    assert method in METHODS
    rule = Rule(weighting=weighting, relu=relu, explained=explained)
    settings = Settings(epochs=epochs, batch=batch, rate=rate, schedule=schedule, seed=seed)
    dialogues = examples(data, count, seed)
    kinds = tuple(k for k in KINDS if any(KINDS[each.is_video] == k for each in dialogues))
    fields = dict(parse_method(f"{method}:{','.join(change or [])}").fields)
    chosen = catalog.make(method, **{"kinds": kinds, **fields})
    assert isinstance(chosen, RelevancePredictor)
    learned, held = split(dialogues, validation, seed)
    folder = folder_for(out, "train", f"{method}-seed{seed}")
    source = Source(model, revision, dtype, device_map, attn)
    loaded, processor = source.load()
    asked: dict[str, Any] = {"rule": rule, "limit": limit, "max_new_tokens": max_new_tokens}
    pairs = Pairs(loaded, processor, folder / "pairs", chosen, **asked)
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
            chosen,
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
        f"from {type(chosen).__module__} import {type(chosen).__name__}",
        "from foveate.relevance import Rule",
        "from foveate.training import data",
        "from foveate.training.pairs import Pairs",
        "from foveate.training.relevance import Settings, train",
        "found = " + call("data.examples", repr(data), count=count, seed=seed),
        f"learn, held = data.split(found, {validation}, seed={seed})",
        f"method = {chosen!r}",
        "pairs = "
        + call("Pairs", "model", "processor", repr(str(folder / "pairs")), "method", **asked),
        "pairs.fill([*learn, *held])",
        f"trained = train(method, model, pairs.read(learn), {str(folder)!r}, {settings!r}, "
        f"validation=pairs.read(held), facts={facts!r})",
    ]
    finish({"compressor": str(trained.folder), "values": trained.values}, shown, python, as_json)


def register(app: typer.Typer) -> None:
    """A command for each of `METHODS`."""
    for method, says in METHODS.items():
        stored = (
            "The model answers each question; of those that it answers right, relevance and what "
            "the method is told are stored. Interrupted, the same command goes on."
        )
        app.command(method, cls=Named, help=f"{says}\n\n{stored}")(command)
