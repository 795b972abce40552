"""`foveate compare`: accuracy and cost of methods and budgets, beside the full model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from foveate.cli import options
from foveate.cli.output import call, finish, folder_for


def compare(
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-m",
            help="name[@preset][:field=value,...], or a chain name/name; may be repeated. "
            "All if none.",
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", "-k", help="A budget; may be repeated. 25% and 10% if none."),
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            help="scenes, tiles or clips, which are drawn (second-scenes ..: of another world), "
            "or FILE.jsonl."
        ),
    ] = "scenes",
    count: Annotated[
        int | None, typer.Option(help="Dialogues to use; of drawn ones 100 if not said.", min=1)
    ] = None,
    split: Annotated[str, typer.Option(help="Of drawn ones: validation or test.")] = "test",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for answers and report.")
    ] = None,
    draws: Annotated[int, typer.Option(help="Seeds of methods that draw at random.", min=1)] = 3,
    turns: Annotated[
        str,
        typer.Option(
            help="Where methods that read the prompt choose: at each turn anew, at the first one "
            "for all, or both ways side by side."
        ),
    ] = "each",
    oracle: Annotated[
        bool,
        typer.Option(
            "--oracle", help="Add what is told where the picture shows something (scenes only)."
        ),
    ] = False,
    batch: Annotated[int, typer.Option(help="Dialogues answered at a time.", min=1)] = 20,
    max_new_tokens: options.MaxNewTokens = 16,
    repeats: Annotated[int, typer.Option(help="Timed prefills of each setting.", min=2)] = 5,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget stored answers.")] = False,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="Shipped model, Hub id or folder of a checkpoint; several to compare on each.",
        ),
    ] = None,
    all_seeds: Annotated[
        Path | None,
        typer.Option(help="A folder of folders seed0, seed1 .. with one checkpoint each."),
    ] = None,
    revision: options.Revision = None,
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
    attn: options.Attn = None,
    as_json: options.Json = False,
) -> None:
    """Compare methods and budgets: accuracy for each turn, tokens, FLOPs, cache and time.

    Answers are stored as they come; interrupted, the same command goes on where it was.
    """
    import json

    from rich.console import Console
    from rich.progress import Progress

    from foveate import catalog, evaluation
    from foveate.cli.loading import Source, load_lines
    from foveate.cli.seeds import named, seeds_in
    from foveate.errors import InputError, UnknownName
    from foveate.evaluation import report, tables
    from foveate.evaluation.data import DRAWN
    from foveate.evaluation.oracle import Oracle, check
    from foveate.evaluation.settings import expand, parse_keep

    methods = method or catalog.names()
    budgets = [parse_keep(each) for each in keep or ["25%", "10%"]]
    expand(methods, budgets, draws, turns)  # wrong names are told before anything is loaded
    if all_seeds is not None and model:
        raise InputError("--all-seeds names the models; leave out --model.")
    places = seeds_in(all_seeds) if all_seeds is not None else named(model or ["reference"])
    sources = {
        name: Source(place, revision, dtype, device_map, attn) for name, place in places.items()
    }
    if data in DRAWN:
        if split not in ("validation", "test"):
            raise UnknownName("split", split, ("validation", "test"))
        made, many = DRAWN[data], count or 100
        dialogues, data_name = made(many, split), f"{split} {data}"
        data_line = f"data = evaluation.{made.python(many, split)}"
    elif not Path(data).suffix and not Path(data).exists():
        raise UnknownName("kind of dialogues", data, [*DRAWN, "FILE.jsonl"])
    else:
        dialogues, data_name = evaluation.from_jsonl(data)[:count], Path(data).name
        first = "" if count is None else f"[:{count}]"
        data_line = f"data = evaluation.from_jsonl({data!r}){first}"
    if oracle:
        check(dialogues)
    folder = folder_for(out, "compare", all_seeds.name if all_seeds else "+".join(places))
    asked: dict[str, Any] = {
        "out": str(folder),
        "data_name": data_name,
        "draws": draws,
        "turns": turns,
        "oracle": oracle,
        "batch_size": batch,
        "max_new_tokens": max_new_tokens,
        "repeats": repeats,
    }
    several = all_seeds is not None or len(sources) > 1
    source, *_ = sources.values()
    with Progress(console=Console(stderr=True), disable=as_json, transient=True) as progress:
        run: dict[str, Any] = {**asked, "fresh": fresh, "progress": progress}
        if several:
            loaders = {name: each.load for name, each in sources.items()}
            found = evaluation.compare_models(loaders, dialogues, methods, budgets, **run)
            loaded, processor = source.load()
        else:
            loaded, processor = source.load()
            run["model_name"] = source.model
            found = evaluation.compare(loaded, processor, dialogues, methods, budgets, **run)
    groups = expand(methods, budgets, draws)
    shown = [g[0] for g in groups] + [Oracle(keep=each) for each in budgets if oracle]
    left_out = {(each.method, each.budget) for each in found.skipped}
    drawn = [each for each in shown if (each.label, each.budget) not in left_out]
    pictures = report.kept_pictures(loaded, processor, dialogues, drawn, 2)
    page = report.write_html(found, folder / "report.html", pictures)
    partial = folder / "comparison.json.partial"
    partial.write_text(json.dumps(found.to_dict(), indent=1) + "\n")
    partial.replace(folder / "comparison.json")
    arguments = ["data", repr(methods), repr(budgets)]
    if several:
        lines = [
            *load_lines(sources),
            "from foveate import evaluation",
            data_line,
            "found = " + call("evaluation.compare_models", "models", *arguments, **asked),
        ]
    else:
        lines = [
            *source.python,
            "from foveate import evaluation",
            data_line,
            "found = "
            + call("evaluation.compare", "model.eval()", "processor", *arguments, **asked),
        ]
    python = [
        *lines,
        "from foveate.evaluation import report",
        f"report.write_html(found, {str(page)!r})",
    ]
    printed: list[Any] = [*tables.tables(found), f"\nreport with plots and pictures: {page}"]
    finish({**found.to_dict(), "report": str(page)}, printed, python, as_json)
