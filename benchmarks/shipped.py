r"""Trains compressors that ship with the reference models, and puts them where names find them.

    python -m benchmarks.shipped RUNS                                  # all of them
    python -m benchmarks.shipped RUNS --only reference/metacompress    # one
    python -m benchmarks.shipped RUNS --measure reference/seek         # its card anew

Each is one `foveate train` command, printed before it runs; interrupted, it goes on. What a name
finds is a copy of what the command leaves, card included.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
from pathlib import Path
from typing import Annotated

import typer

import foveate
from benchmarks.pages import errors_told
from foveate import cli, learned, reference, saving
from foveate.errors import UnknownName
from foveate.evaluation import from_reference
from foveate.fingerprint import of_weights
from foveate.training import accuracy
from foveate.training.learning import FOLDER
from foveate.training.processes import Process
from foveate.training.relevance import SHARES

# model/method -> what its command is given beside both.
COMMANDS = {
    "reference/metacompress": "--data scenes --count 1200 --steps 250 --set pool=2d --start pca "
    "--sharpness 30 --whiten --optimiser adamw --rate 2e-4 --schedule cosine --keep 10% --keep 5%",
    "reference/relevance": "--data scenes --count 500 --bf16",
    "reference-tiles/metacompress": "--data tiles --count 500 --steps 200 --set pool=2d "
    "--start pca --sharpness 30 --whiten --optimiser adamw --rate 2e-4 --schedule cosine "
    "--keep 10% --keep 5%",
    "reference-tiles/relevance": "--data tiles --data clips --count 300 --bf16",
    "reference-tiles/seek": "--data tiles --data clips --count 600 --weighting mean "
    "--set inner=128 --set small=64 --epochs 12 --batch 64 --rate 1.5e-3 --schedule cosine",
}


def ship(folder: Path) -> Path:
    """Copy a saved compressor to where its name finds it, in place of the one that is there.

    Args:
        folder: as `foveate train` leaves it.
    """
    record = json.loads((folder / saving.FILE).read_text())
    target = learned.SHIPPED / record["method"] / record["model"]["weights"]
    partial = target.with_name(f"partial-{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(folder, partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    return target


def measure(name: str) -> Path:
    """Ask what ships about scenes that nothing is trained on, and say on its card what is right.

    Args:
        name: model/method.
    """
    model, _, method = name.partition("/")
    loaded, processor = reference.load(model)
    folder = learned.SHIPPED / method / of_weights(loaded)
    compressor = foveate.load(folder, model=loaded)
    held = from_reference(accuracy.MOST, "validation")
    alone = Process(0, 1, loaded.device)
    known = json.loads((folder / saving.FILE).read_text())["training"]
    # Those that all cards share, and those that it was trained for.
    keeps = sorted({*SHARES, *known["settings"].get("keeps", ())}, reverse=True)
    found = accuracy.measure(compressor, loaded, processor, held, keeps, alone)
    assert found is not None  # these have answers
    known["accuracy"] = dataclasses.asdict(found)
    return foveate.save(compressor, folder, model=loaded, training=known)


app = typer.Typer(add_completion=False)


@app.command()
@errors_told()
def main(
    runs: Annotated[Path, typer.Argument(help="Folder of the trainings.")],
    only: Annotated[
        list[str] | None, typer.Option(help="model/method; may be repeated. All if not said.")
    ] = None,
    again: Annotated[
        str | None,
        typer.Option("--measure", help="model/method that ships: its card anew, nothing trained."),
    ] = None,
) -> None:
    """Train, and put in place."""
    if again is not None:
        typer.echo(f"measured: {measure(again)}")
        return
    for name in only or ():
        if name not in COMMANDS:
            raise UnknownName("shipped compressor", name, COMMANDS)
    for name, given in COMMANDS.items():
        if only and name not in only:
            continue
        model, method = name.split("/")
        out = runs / model / method
        command = ["train", method, "--model", model, "--out", str(out), *shlex.split(given)]
        typer.echo(f"foveate {shlex.join(command)}")
        if cli.main(command):
            raise typer.Exit(1)
        typer.echo(f"shipped: {ship(out / FOLDER)}")


if __name__ == "__main__":
    app()
