r"""A paper's claims, asked again on the reference models: runs what a page needs, and writes it.

    python -m benchmarks.claims polymorphic                         # the shipped model
    python -m benchmarks.claims polymorphic --all-seeds RUNS        # every training seed in RUNS
    python -m benchmarks.claims polymorphic --from-store            # the page alone, nothing runs

The claims are data, `docs/claims/NAME.toml`; the page beside it is made of stored answers. What
claims are about that has to be trained for each model is data there, too, and trained before it is
asked. Everything is stored as it comes: interrupted, the same command goes on. With `--only` a
process runs some of the models and leaves the page to the last one. What the page was made of is
packed beside it, `docs/claims/NAME.tar.xz`, and taken from there by `--from-store` where the store
has no such page. Prefill times are taken apart, on a quiet machine, and the page reads them from
`--timing`; it says what to measure if they are not there:

    python -m benchmarks.overhead --shape deep --words 16 -m visionzip -m sparsevlm -m fastv \
        -m polymorphic -m metacompress -m uniform -m random -m prumerge \
        --out benchmarks/results/cpu-deep.json
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from benchmarks.claims.kinds import KINDS, SCENES, TILES, kinds_of
from benchmarks.claims.page import write
from benchmarks.claims.running import ask
from benchmarks.packed import SUFFIX, pack, unpack
from benchmarks.pages import ASKED, errors_told, last_run, note
from foveate.cli.loading import Source
from foveate.cli.seeds import named, seeds_in
from foveate.errors import InputError, UnknownName
from foveate.evaluation import claims, stats
from foveate.evaluation.variants import Bounds

CLAIMS = Path(__file__).parents[2] / "docs" / "claims"


def _known(folder: Path) -> str:
    return ", ".join(sorted(each.stem for each in folder.glob("*.toml"))) or "none"


app = typer.Typer(add_completion=False)


@app.command()
@errors_told()
def main(
    name: Annotated[str, typer.Argument(help="Of a page: docs/claims/NAME.toml.")],
    model: Annotated[
        list[str] | None, typer.Option(help="Model of scenes; several for their mean.")
    ] = None,
    all_seeds: Annotated[
        Path | None, typer.Option(help="A folder of folders seed0, seed1 .. instead.")
    ] = None,
    tiles: Annotated[
        list[str] | None, typer.Option(help="Model of tiles; may be repeated.")
    ] = None,
    dialogues: Annotated[
        int, typer.Option(help="Test scenes, three questions each.", min=2)
    ] = 1000,
    store: Annotated[Path, typer.Option(help="Folder of the stored runs.")] = Path("output/claims"),
    timing: Annotated[
        Path | None,
        typer.Option(help="Stored prefill times; those in benchmarks/results if none."),
    ] = None,
    folder: Annotated[Path, typer.Option("--claims", help="Folder of NAME.toml.")] = CLAIMS,
    out: Annotated[Path, typer.Option(help="Folder of the page.")] = CLAIMS,
    batch: Annotated[int, typer.Option(help="Dialogues answered at a time.", min=1)] = 20,
    resamples: Annotated[int, typer.Option(help="Of the bootstrap.", min=100)] = stats.RESAMPLES,
    from_store: Annotated[
        bool, typer.Option("--from-store", help="Write the page of the last run; nothing runs.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Run this one of the models, no page; may be repeated."),
    ] = None,
    again: Annotated[
        int | None,
        typer.Option(
            help="Take answers of earlier code over if it gives the same to so many dialogues.",
            min=1,
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Of each training; at most as many as the page says.", min=1)
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Of each training, at most; to try a page out.", min=1)
    ] = None,
    learn: Annotated[
        int | None, typer.Option(help="Dialogues to learn from, at most; to try it out.", min=2)
    ] = None,
) -> None:
    """Run what a page of claims needs, and write it."""
    source = folder / f"{name}.toml"
    if not source.is_file():
        raise InputError(f"No claims {source}.\nExpected one of {_known(folder)}.")
    packed = out / f"{name}{SUFFIX}"
    if from_store:
        if packed.is_file() and not (store / name).exists():
            unpack(packed, store / name)
        asked = last_run(store / name)
    else:
        bounds = Bounds(seeds, steps, learn)
        page = claims.read(source, bounds)
        if all_seeds is not None and model:
            raise InputError("--all-seeds names the models; leave out --model.")
        places = {
            SCENES: named(model or ["reference"]) if all_seeds is None else seeds_in(all_seeds),
            TILES: named(tiles) if tiles else {},
        }
        command = f"python -m benchmarks.claims {name} --dialogues {dialogues}"
        command += f" --all-seeds {all_seeds.name}" if all_seeds is not None else ""
        command += "".join(f" --model {each}" for each in places[SCENES] if model)
        command += "".join(f" --tiles {each}" for each in places[TILES])
        for option, bound in (("seeds", seeds), ("steps", steps), ("learn", learn)):
            command += f" --{option} {bound}" if bound is not None else ""
        asked = {
            "dialogues": dialogues,
            "command": command,
            "bounds": dataclasses.asdict(bounds),
            **{family: list(given) for family, given in places.items()},
        }
        if unknown := set(only or ()) - {each for given in places.values() for each in given}:
            raise UnknownName("model", unknown.pop(), [*places[SCENES], *places[TILES]])
        with Progress(transient=True) as progress:
            for family, given in places.items():
                for each, place in given.items():
                    if not only or each in only:
                        folder_of = store / name
                        ask(
                            page,
                            family,
                            each,
                            Source(place, dtype="float32"),
                            dialogues,
                            folder_of,
                            batch,
                            progress,
                            again,
                        )
        if only:
            return
        note(store / name / ASKED, asked)
        parts = [f"{kind}/{each}" for kind in kinds_of(page) for each in places[KINDS[kind].family]]
        pack(store / name, [ASKED, *parts], packed)
    typer.echo(write(source, store / name, asked, timing, out, resamples=resamples))


if __name__ == "__main__":
    app()
