"""`foveate compare`: accuracy and cost of methods and budgets, beside the full model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from foveate.cli import options
from foveate.cli.output import call, finish


def compare(
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method", "-m", help="name[@preset][:field=value,...]; may be repeated. All if none."
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", "-k", help="A budget; may be repeated. 25% and 10% if none."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Dialogues as JSON lines; the shipped scenes if none.")
    ] = None,
    count: Annotated[
        int | None, typer.Option(help="Dialogues to use; of the scenes 100 if not said.", min=1)
    ] = None,
    split: Annotated[str, typer.Option(help="Of the scenes: validation or test.")] = "test",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for answers and report.")
    ] = None,
    draws: Annotated[int, typer.Option(help="Seeds of methods that draw at random.", min=1)] = 3,
    batch: Annotated[int, typer.Option(help="Dialogues answered at a time.", min=1)] = 20,
    max_new_tokens: Annotated[int, typer.Option(help="The longest answer.", min=1)] = 16,
    repeats: Annotated[int, typer.Option(help="Timed prefills of each setting.", min=2)] = 5,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget stored answers.")] = False,
    model: options.Model = "reference",
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
    from foveate.cli.loading import Source
    from foveate.errors import InputError, UnknownName
    from foveate.evaluation import report
    from foveate.evaluation.settings import expand, parse_keep

    methods = method or catalog.names()
    budgets = [parse_keep(each) for each in keep or ["25%", "10%"]]
    groups = expand(methods, budgets, draws)  # wrong names are told before anything is loaded
    source = Source(model, revision, dtype, device_map, attn)
    if data is None:
        if split not in ("validation", "test"):
            raise UnknownName("split", split, ("validation", "test"))
        dialogues, data_name = evaluation.from_reference(count or 100, split), f"{split} scenes"
        data_line = f"data = evaluation.from_reference({count or 100}, {split!r})"
    else:
        dialogues, data_name = evaluation.from_jsonl(data)[:count], data.name
        first = "" if count is None else f"[:{count}]"
        data_line = f"data = evaluation.from_jsonl({str(data)!r}){first}"
    folder = out or Path("output") / "compare" / Path(model).name
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; --out needs a folder.")
    loaded, processor = source.load()
    with Progress(console=Console(stderr=True), disable=as_json, transient=True) as progress:
        found = evaluation.compare(
            loaded,
            processor,
            dialogues,
            methods,
            budgets,
            out=folder,
            model_name=model,
            data_name=data_name,
            draws=draws,
            batch_size=batch,
            max_new_tokens=max_new_tokens,
            repeats=repeats,
            fresh=fresh,
            progress=progress,
        )
    left_out = {(name, budget) for name, budget, _ in found.skipped}
    drawn = [g[0] for g in groups if (g[0].label, g[0].budget) not in left_out]
    pictures = report.kept_pictures(loaded, processor, dialogues, drawn, 2)
    page = report.write_html(found, folder / "report.html", pictures)
    partial = folder / "comparison.json.partial"
    partial.write_text(json.dumps(found.to_dict(), indent=1) + "\n")
    partial.replace(folder / "comparison.json")
    python: list[str] = [
        *source.python,
        "from foveate import evaluation",
        data_line,
        "found = "
        + call(
            "evaluation.compare",
            "model.eval()",
            "processor",
            "data",
            repr(methods),
            repr(budgets),
            out=str(folder),
            draws=draws,
            batch_size=batch,
            max_new_tokens=max_new_tokens,
            repeats=repeats,
        ),
        "from foveate.evaluation import report",
        f"report.write_html(found, {str(page)!r})",
    ]
    shown: list[Any] = [*report.tables(found), f"\nreport with plots and pictures: {page}"]
    finish({**found.to_dict(), "report": str(page)}, shown, python, as_json)
