r"""What does learning bring MetaCompress? Starts and recipes, and beside them what is untrained.

    python -m benchmarks.metacompress                               # on the shipped model
    python -m benchmarks.metacompress --from-store                  # the page alone, nothing runs

Trains every variant for the same number of steps on the same dialogues, saves it, and asks all of
them the same test questions. Both go on where they were interrupted. The page is
`docs/metacompress.md`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from benchmarks.discrimination import Found
from foveate.cli.loading import Source
from foveate.errors import FoveateError, InputError
from foveate.evaluation.answering import FULL
from foveate.evaluation.asking import Group
from foveate.evaluation.compare import ANSWERS, answers
from foveate.evaluation.data import from_reference
from foveate.evaluation.settings import Setting, expand
from foveate.evaluation.store import Store
from foveate.methods.metacompress import MetaCompress
from foveate.training import data as training_data
from foveate.training.learning import Start, random_start, train
from foveate.training.recipe import Recipe
from foveate.training.start import pca_start
from foveate.training.teacher import Teacher

DOCS = Path(__file__).parents[1] / "docs"
BUDGETS = (0.1, 0.05)
BESIDE = ("random", "uniform", "uniform-2d", "pool", "divprune", "cover")
# Published: SGD 1e-3, gradients bounded by 1e-2, both regularisers with weight 1.
PUBLISHED: dict[str, Any] = {"optimiser": "sgd", "rate": 1e-3, "bound": 1e-2}
ADAM: dict[str, Any] = {"optimiser": "adamw", "schedule": "cosine"}
FREE: dict[str, Any] = {"entropy": 0.0, "collapse": 0.0}


@dataclasses.dataclass(frozen=True)
class Variant:
    """One MetaCompress.

    Attributes:
        says: what it is, in the page.
        method: its fields.
        start: its first parameters.
        recipe: what differs from `Recipe()`; None: not trained.
    """

    says: str
    method: MetaCompress
    start: Start
    recipe: Mapping[str, Any] | None = None


_1D, _2D = MetaCompress(), MetaCompress(pool="2d")
_PCA = pca_start(sharpness=30.0, whiten=True)
VARIANTS = {
    "published-start": Variant("published start, untrained", _1D, random_start()),
    "published-norm": Variant(
        "published recipe, clipped by norm", _1D, random_start(), PUBLISHED | {"clip": "norm"}
    ),
    "published-value": Variant(
        "published recipe, clipped by value", _1D, random_start(), PUBLISHED | {"clip": "value"}
    ),
    "start-adam": Variant(
        "published start and loss, AdamW 1e-3", _1D, random_start(), ADAM | {"rate": 1e-3}
    ),
    "start-adam-slow": Variant(
        "published start and loss, AdamW 1e-4", _1D, random_start(), ADAM | {"rate": 1e-4}
    ),
    "pca-1d": Variant("PCA start, untrained", _1D, _PCA),
    "pca": Variant("PCA start, pooled in 2-D, untrained", _2D, _PCA),
    "pca-adam": Variant(
        "PCA start, pooled in 2-D, AdamW 1e-4, KL alone", _2D, _PCA, ADAM | FREE | {"rate": 1e-4}
    ),
    "pca-adam-full": Variant(
        "PCA start, pooled in 2-D, AdamW 1e-4, all losses", _2D, _PCA, ADAM | {"rate": 1e-4}
    ),
}


def groups(runs: Path) -> dict[str, tuple[Setting, ...]]:
    """Name and budget -> settings: every variant, and what is not trained."""
    found = {}
    for name in VARIANTS:
        for (setting,) in expand([str((runs / name / "compressor").resolve())], BUDGETS):
            found[f"{name} {setting.keep}"] = (setting,)
    for each in expand(BESIDE, BUDGETS):
        found[f"{each[0].label} {each[0].keep}"] = tuple(each)
    return found


def learn(store: Path, model: Any, processor: Any, count: int, steps: int) -> None:
    """Train every variant that is not there yet."""
    dialogues = training_data.examples("scenes", count, 0)
    learned, held = training_data.split(dialogues, 0.1, 0)
    teacher = Teacher(model, processor, store / "teacher")
    for name, variant in VARIANTS.items():
        # An untrained one is a training of one step at rate 0: the same road to a saved folder.
        given = {"steps": 1, "rate": 0.0} if variant.recipe is None else {"steps": steps}
        recipe = Recipe(**{"keeps": BUDGETS[:1], **given, **(variant.recipe or {})})
        typer.echo(f"{variant.says}: {recipe.steps} steps")
        found = train(
            variant.method,
            teacher,
            learned,
            store / name,
            recipe,
            validation=held,
            start=variant.start,
            facts={"data": "scenes", "variant": name},
            tensorboard=False,
        )
        typer.echo(f"  {found.values}")
        (store / name / "values.json").write_text(json.dumps(found.values))


def page(found: Found, store: Path, facts: Mapping[str, Any]) -> str:
    """The page, from what is stored."""
    full = found.right([FULL])
    assert full is not None
    asked = groups(store)
    heads = [f"{100 * keep:g} % (minus full [95 %])" for keep in BUDGETS]
    lines = [f"| | KL, 10 % | {' | '.join(heads)} |", "| --- |" + " --- |" * (len(BUDGETS) + 1)]

    def row(name: str, says: str, divergence: str) -> str:
        cells = []
        for keep in BUDGETS:
            right = found.right([each.key for each in asked[f"{name} {keep}"]])
            assert right is not None
            (value, low, high), _ = found.apart(right, full)
            cells.append(f"{found.accuracy(right):.3f} ({value:+.3f} [{low:+.3f}, {high:+.3f}])")
        return f"| {says} | {divergence} | {' | '.join(cells)} |"

    for name, variant in VARIANTS.items():
        values = json.loads((store / name / "values.json").read_text())
        divergence = next((v for k, v in values.items() if "prediction" in k), None)
        lines.append(row(name, variant.says, "" if divergence is None else f"{divergence:.3f}"))
    lines += [row(name, f"`{name}`", "") for name in BESIDE]
    gains = []
    for better, worse in (
        ("published-norm", "published-start"),
        ("published-value", "published-start"),
        ("start-adam-slow", "published-start"),
        ("pca", "published-start"),
        ("pca-adam", "pca"),
        ("pca-adam-full", "pca"),
        ("pca-adam-full", "pca-adam"),
        ("pca-adam-full", "divprune"),
        ("cover", "pca-adam-full"),
    ):
        for keep in BUDGETS:
            a, b = (
                found.right([each.key for each in asked[f"{name} {keep}"]])
                for name in (better, worse)
            )
            assert a is not None and b is not None
            (value, low, high), p = found.apart(a, b)
            named = [VARIANTS[n].says if n in VARIANTS else n for n in (better, worse)]
            gains.append(
                f"| {named[0]} | {named[1]} | {100 * keep:g} % | "
                f"{value:+.3f} [{low:+.3f}, {high:+.3f}] | {p:.2g} |"
            )
    return "\n".join(
        [
            "<!-- Made by `python -m benchmarks.metacompress`; edit that file. -->",
            "",
            "# MetaCompress: what learning brings",
            "",
            "MetaCompress (arXiv 2603.21701) learns a small attention that writes P. The paper's "
            "section 9 argues that its start, W_q = W_k drawn at random, already is a pooled "
            "down-sampling; its recipe is SGD with a rate of 1e-3, gradients bounded by 1e-2 "
            "(by norm or by value, it does not say). This page asks how much of the result is "
            "the start, and what training adds.",
            "",
            f"The shipped model, one seed of the compressor; {facts['count']} training dialogues, "
            f"{facts['steps']} steps of 36 at 10 % of the tokens; {len(found.data)} test "
            f"dialogues, {int(found.asked.sum())} questions, full model "
            f"{found.accuracy(full):.3f}. KL is that of validation dialogues. In brackets: the "
            "difference from the full model, 95 % by the paired bootstrap over dialogues. Code: "
            f"{found.stores[0].facts['foveate']}.",
            "",
            *lines,
            "",
            "| | against | at | difference [95 %] | p |",
            "| --- | --- | --- | --- | --- |",
            *gains,
            "",
            "The p-values are not corrected for being several.",
            "",
        ]
    )


app = typer.Typer(add_completion=False)


@app.command()
def main(
    count: Annotated[int, typer.Option(help="Training scenes.", min=40)] = 600,
    steps: Annotated[int, typer.Option(help="Of each training.", min=1)] = 120,
    dialogues: Annotated[int, typer.Option(help="Test scenes.", min=2)] = 300,
    store: Annotated[Path, typer.Option(help="Folder of runs and answers.")] = Path(
        "output/metacompress"
    ),
    out: Annotated[Path, typer.Option(help="Folder of the page.")] = DOCS,
    from_store: Annotated[
        bool, typer.Option("--from-store", help="The page of the last run; nothing runs.")
    ] = False,
) -> None:
    """Train, ask, and write the page."""
    noted = store / "asked.json"
    try:
        if from_store:
            if not noted.is_file():
                raise InputError(f"{store} holds no finished run.\nRun it without --from-store.")
            facts = json.loads(noted.read_text())
            data = from_reference(facts["dialogues"])
        else:
            facts = {"count": count, "steps": steps, "dialogues": dialogues}
            data = from_reference(dialogues)
            model, processor = Source("reference").load()
            learn(store, model, processor, count, steps)
            asked = [Group(each) for each in groups(store).values()]
            with Progress(transient=True) as progress:
                answers(
                    model, processor, data, asked, store / "answers", batch_size=25,
                    progress=progress,
                )  # fmt: skip
            noted.write_text(json.dumps(facts) + "\n")
        found = Found([Store.existing(store / "answers" / ANSWERS)], data)
        (out / "metacompress.md").write_text(page(found, store, facts))
        typer.echo(str(out / "metacompress.md"))
    except FoveateError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    app()
