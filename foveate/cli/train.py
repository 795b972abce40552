"""`foveate train`: what the project trains, each with one seeded command that resumes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.cli import learn, options, train_relevance
from foveate.cli.output import call, finish, folder_for

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from foveate.reference.recipe import Recipe
    from foveate.reference.report import Progress, Tell

app = typer.Typer(no_args_is_help=True, help="Train compressors, and the reference models.")
app.command("metacompress")(learn.metacompress)
app.command("optimal")(learn.optimal)
train_relevance.register(app)
_NAMES = ("reference", "reference-tiles")
_COLUMNS = 8  # validations shown beside each other
# What is shown of an evaluation, as far as it has it.
_CONDITIONS = {
    "accuracy": "accuracy",
    "majority": "majority answer",
    "blind": "mean image",
    "wrong_image": "wrong image",
}


@app.command("reference")
def reference(
    name: Annotated[
        str, typer.Argument(help="reference (scenes), or reference-tiles (tiles and clips).")
    ] = "reference",
    out: options.RunFolder = None,
    seed: Annotated[int, typer.Option(help="Of initialisation and batches.", min=0)] = 0,
    recipe: Annotated[str, typer.Option(help="cpu (hours), or gpu (larger; not run yet).")] = "cpu",
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="field=number of the recipe; may be repeated."),
    ] = None,
    device: Annotated[str, typer.Option(help='"cpu", "cuda", "cuda:1" ...')] = "cpu",
    threads: Annotated[int, typer.Option(help="Threads on a CPU.", min=1)] = 2,
    workers: Annotated[
        int, typer.Option(help="Processes that draw pictures and batches.", min=1)
    ] = 1,
    store: Annotated[
        Path | None, typer.Option(help="For reference: drawn scenes, to share between runs.")
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            help="For reference-tiles: the model/ folder of a trained reference to go on from; "
            "the shipped one if not said."
        ),
    ] = None,
    scenes: Annotated[
        int, typer.Option(help="Test scenes to measure on afterwards; 0 for none.", min=0)
    ] = 1000,
    as_json: options.Json = False,
) -> None:
    """Train a reference model: draw, train, export, measure.

    reference begins with nothing, reference-tiles with a trained reference.

    Accuracy on each kind of question is shown as it is learned. Interrupted or killed, the same
    command goes on from the last checkpoint (every three minutes) and ends with the same weights.
    """
    import torch
    from rich.console import Console

    from foveate.errors import InputError, UnknownName

    if name not in _NAMES:
        raise UnknownName("reference model", name, _NAMES)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"There is no device {device!r} here.\nUse --device cpu --recipe cpu.")
    if start is not None and name != "reference-tiles":
        raise InputError(f"{name} begins with nothing.\nLeave --start out.")
    if store is not None and name == "reference-tiles":
        raise InputError(f"{name} draws its pictures as it needs them.\nLeave --store out.")
    chosen = _recipe(name, recipe, change or [])
    folder = folder_for(out, "train", f"{name}-seed{seed}")
    torch.set_num_threads(threads)
    console = Console(stderr=True)
    with _shown(console) as tell:
        model = _train(name, folder, seed, chosen, device, workers, store, start, tell)
        found = _measure(name, model, scenes) if scenes else None
    result = {"model": str(model), "evaluation": found}
    target = "train" if name == "reference" else "train_tiles"
    module = "train" if name == "reference" else "tiles_train"
    shown: list[Any] = [f"the model is in {model}"]
    if found is not None:
        shown.append(_accuracies(found))
    python = [f"from foveate.reference.{module} import {target}"]
    usual = chosen == type(chosen)()
    if not usual:
        python.append(f"from {type(chosen).__module__} import {type(chosen).__name__}")
    python.append(
        call(
            target,
            repr(str(folder)),
            seed=seed,
            recipe=None if usual else chosen,
            start=None if start is None else str(start),
            device=device,
        )
    )
    finish(result, shown, python, as_json)


def _recipe(name: str, wanted: str, changes: list[str]) -> Recipe:
    """The named recipe with changes of the form "field=number".

    Raises:
        UnknownName: no such recipe or field.
        InputError: a change that is no number.
    """
    from foveate.errors import InputError, UnknownName
    from foveate.reference.recipe import GPU, TILES_GPU, Recipe, TilesRecipe

    known: dict[str, Recipe] = (
        {"cpu": Recipe(), "gpu": GPU}
        if name == "reference"
        else {"cpu": TilesRecipe(), "gpu": TILES_GPU}
    )
    if wanted not in known:
        raise UnknownName("recipe", wanted, known)
    fields = {field.name: getattr(known[wanted], field.name) for field in _numbers(known[wanted])}
    values: dict[str, Any] = {}
    for item in changes:
        field, _, text = item.partition("=")
        if field not in fields:
            raise UnknownName("number of the recipe", field, fields)
        try:
            values[field] = type(fields[field])(text)
        except ValueError:
            raise InputError(
                f"Expected {field}=number like {field}={fields[field]}; got {item!r}."
            ) from None
    return dataclasses.replace(known[wanted], **values)


def _numbers(recipe: Recipe) -> list[dataclasses.Field[Any]]:
    fields = dataclasses.fields(recipe)
    return [field for field in fields if isinstance(getattr(recipe, field.name), int | float)]


def _train(
    name: str,
    folder: Path,
    seed: int,
    recipe: Any,
    device: str,
    workers: int,
    store: Path | None,
    start: Path | None,
    tell: Tell,
) -> Path:
    from foveate.reference.tiles_train import train_tiles
    from foveate.reference.train import train

    if name == "reference-tiles":
        return train_tiles(
            folder, seed, recipe, start=start, device=device, workers=workers, tell=tell
        )
    return train(folder, seed, recipe, store, device=device, workers=workers, tell=tell)


def _measure(name: str, model: Path, scenes: int) -> dict[str, Any]:
    from foveate.reference.measure import record
    from foveate.reference.tiles_measure import record_tiles

    return (record if name == "reference" else record_tiles)(model, scenes)


@contextlib.contextmanager
def _shown(console: Console) -> Iterator[Tell]:
    """A live table on a terminal, lines elsewhere."""
    if not console.is_terminal:
        yield lambda progress: console.print(str(progress), soft_wrap=True, highlight=False)
        return
    from rich.live import Live

    seen: list[Progress] = []
    with Live(console=console, refresh_per_second=2) as live:

        def tell(progress: Progress) -> None:
            seen.append(progress)
            live.update(view(seen))

        yield tell


def view(seen: list[Progress]) -> Table:
    """Accuracy by kind at the last validations, under a line that says where the run stands."""
    from rich.table import Table

    last = seen[-1]
    running = next((each for each in reversed(seen) if each.means), None)
    told = [each for each in seen if each.accuracies][-_COLUMNS:]
    figures = "" if running is None else _figures(running.means)
    table = Table(
        title=f"stage {last.stage} of 2, step {last.step} of {last.steps}, {last.minutes:.0f} min",
        caption=figures,
        box=None,
    )
    table.add_column("share of right answers on validation pictures")
    for each in told:
        table.add_column(f"{each.step}", justify="right")
    kinds = sorted({kind for each in told for kind in each.accuracies})
    for kind in kinds:
        values = [each.accuracies.get(kind) for each in told]
        table.add_row(kind, *("" if value is None else f"{value:.2f}" for value in values))
    return table


def _figures(means: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in means.items())


def _accuracies(found: dict[str, Any]) -> Table:
    """Accuracy by kind beside what needs no picture, or has another one."""
    from rich.table import Table

    parts = _parts(found)
    everything = [rows["all"] for rows in parts.values()]
    names = [name for name in _CONDITIONS if all(name in row for row in everything)]
    table = Table(box=None, pad_edge=False)
    for column in ("kind", *(_CONDITIONS[name] for name in names)):
        table.add_column(column)
    for part, rows in parts.items():
        for kind, row in rows.items():
            figures = (f"{row[name]:.3f}" for name in names)
            table.add_row(" ".join(filter(None, (part, kind))), *figures)
    return table


def _parts(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The kinds of each part of an evaluation: one for scenes, or scenes and clips."""
    if "kinds" in found:
        return {"": {**found["kinds"], "all": found["all"]}}
    return {
        part: {**each["kinds"], "all": each["all"]}
        for part, each in found.items()
        if isinstance(each, dict) and "kinds" in each
    }
