"""`foveate train relevance | seek`: what a method is told, relevance, and the net fitted to them.

One command for all methods that predict relevance; it trains the one that it is called by.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from foveate.cli import learn, options
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
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="As of train metacompress; repeated, all of them. [scenes]"),
    ] = None,
    count: options.Count = None,
    validation: options.Validation = 0.1,
    out: options.RunFolder = None,
    epochs: Annotated[int, typer.Option(help="Passes over the pairs.", min=1)] = 100,
    batch: Annotated[int, typer.Option(help="Pairs of a step, over all GPUs.", min=1)] = 128,
    rate: Annotated[float, typer.Option(help="Adam's learning rate.", min=0)] = 1e-3,
    schedule: Annotated[str, typer.Option(help="Of the rate: constant or cosine.")] = "constant",
    clip: Annotated[str, typer.Option(help="Gradients: norm, value or none.")] = "none",
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Take the net's products in bfloat16, which is faster.")
    ] = False,
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
    wanted: Annotated[
        int | None,
        typer.Option("--pairs", help="Ask no more dialogues once so many are there.", min=1),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for the pairs, to share between runs.")
    ] = None,
    cache_limit: learn.Limit = 50.0,
    evaluate_every: Annotated[int, typer.Option(help="Steps.", min=1)] = 500,
    save_every: Annotated[int, typer.Option(help="Steps.", min=1)] = 500,
    tensorboard: learn.Tensorboard = True,
    accuracy: learn.Accuracy = 100,
    cpu: options.Cpu = False,
    revision: options.Revision = None,
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
    attn: options.Attn = None,
    as_json: options.Json = False,
) -> None:
    """Train the method that the command is called by."""
    from foveate import catalog
    from foveate.cli.loading import Source
    from foveate.evaluation.settings import parse_method
    from foveate.predicting import KINDS, RelevancePredictor
    from foveate.relevance import Rule
    from foveate.training.accuracy import MOST
    from foveate.training.data import examples, public, split
    from foveate.training.pairs import Pairs
    from foveate.training.processes import here
    from foveate.training.relevance import Settings, train

    method = context.info_name
    assert method in METHODS
    rule = Rule(weighting=weighting, relu=relu, explained=explained)
    settings = Settings(
        epochs=epochs,
        batch=batch,
        rate=rate,
        schedule=schedule,
        clip=clip,
        bf16=bf16,
        seed=seed,
        save_every=save_every,
        evaluate_every=evaluate_every,
    )
    sources = data or ["scenes"]
    dialogues = [each for source in sources for each in examples(source, count, seed)]
    kinds = tuple(k for k in KINDS if any(KINDS[each.is_video] == k for each in dialogues))
    fields = dict(parse_method(f"{method}:{','.join(change or [])}").fields)
    chosen = catalog.make(method, **{"kinds": kinds, **fields})
    assert isinstance(chosen, RelevancePredictor)
    learned, held = split(dialogues, validation, seed)
    folder = folder_for(out, "train", f"{method}-{Path(model).name}")
    origin = Source(model, revision, dtype, device_map, attn)
    loaded, processor = origin.load()
    asked: dict[str, Any] = {"rule": rule, "limit": limit, "max_new_tokens": max_new_tokens}
    process = here(cpu)
    settings.recipe(batch, process.count).parts(process.count)  # told before the model runs
    process.hold(loaded)
    where = cache or folder / "pairs"
    asked["max_bytes"] = learn.in_bytes(cache_limit)
    pairs = Pairs(loaded, processor, where, chosen, **asked)
    with learn.shown(len(dialogues)) as (told, answered, tell):
        running: dict[str, Any] = {"batch_size": run, "tell": told, "done": answered}
        learned = list(pairs.gather(learned, wanted, process, **running))
        pairs.gather(held, None, process, **running)
        tally = pairs.tally([*learned, *held])
        told(tally)
        facts: dict[str, Any] = {
            "source": ", ".join(map(public, sources)),
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
            held=held,
            processor=processor,
            facts=facts,
            tensorboard=tensorboard,
            cpu=cpu,
            accuracy=accuracy,
            max_new_tokens=max_new_tokens,
            tell=tell,
        )
    if not learn.first_process():
        return
    shown: list[Any] = [f"the compressor is in {trained.folder}"]
    if trained.values:
        shown.append(learn.measured(trained.values))
    python = [
        *origin.python,
        f"from {type(chosen).__module__} import {type(chosen).__name__}",
        "from foveate.relevance import Rule",
        "from foveate.training import data",
        "from foveate.training.pairs import Pairs",
        *(["from foveate.training.processes import here"] if wanted else []),
        "from foveate.training.relevance import Settings, train",
        "found = "
        + " + ".join(call("data.examples", repr(each), count=count, seed=seed) for each in sources),
        f"learn, held = data.split(found, {validation}, seed={seed})",
        f"method = {chosen!r}",
        "pairs = " + call("Pairs", "model", "processor", repr(str(where)), "method", **asked),
        *([f"learn = pairs.gather(learn, {wanted}, here())"] if wanted else []),
        "pairs.fill([*learn, *held])",
        f"trained = train(method, model, pairs.read(learn), {str(folder)!r}, {settings!r}, "
        f"validation=pairs.read(held), held=held, processor=processor, facts={facts!r}, "
        f"max_new_tokens={max_new_tokens}"
        + (f", accuracy={accuracy})" if accuracy != MOST else ")"),
    ]
    result = {
        "compressor": str(trained.folder),
        "pairs": dataclasses.asdict(tally),
        "values": trained.values,
    }
    finish(result, shown, python, as_json)


def register(app: typer.Typer) -> None:
    """A command for each of `METHODS`."""
    for method, says in METHODS.items():
        stored = (
            "The model answers each question; of those that it answers right, relevance and what "
            "the method is told are stored. Interrupted, the same command goes on. Several GPUs: "
            f"`torchrun --nproc-per-node 4 -m foveate train {method} ...`"
        )
        app.command(method, cls=Named, help=f"{says}\n\n{stored}")(command)
