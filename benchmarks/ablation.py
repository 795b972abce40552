"""What made the reference model learn: the same short training with one thing left out at a time.

    python -m benchmarks.ablation --out RUNS                    # on a CPU: hours
    python -m benchmarks.ablation --out RUNS --device cuda      # not tried
    python -m benchmarks.ablation --out RUNS --from-store       # the page, from what is there

Each case is a training of its own, with the same initialisation and the same batches. What shapes
the tower is judged by its first stage alone, on a short one; what shapes the answers by the second
stage, which goes on from one first stage of the same seed. Interrupted, the same command goes on.
Trainings here are shorter than the shipped one, so figures are compared with each other, not with
the model's own. The page is `docs/ablation.md`.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from benchmarks.pages import errors_told, note
from foveate.errors import InputError, UnknownName
from foveate.holding import training_in
from foveate.reference.batches import labelled_scenes
from foveate.reference.data import Scenes
from foveate.reference.measure import measure
from foveate.reference.optimiser import Optimiser, schedule
from foveate.reference.recipe import Recipe
from foveate.reference.report import Progress
from foveate.reference.store import Store
from foveate.reference.train import SceneTrainer, on
from foveate.reference.vision_stage import vision_loss

DOCS = Path(__file__).parents[1] / "docs"
SHORT = Recipe(language_steps=800)
TOWER_STEPS = 800
READ = 96  # validation scenes that a tower is read on
MEASURED = "measured.json"
EVERYTHING = "everything"


class OwnPositions(SceneTrainer):
    """Positions of the tower start as CLIP starts them, tens of times smaller than patches."""

    def _build(self) -> Any:
        model = super()._build()
        with torch.no_grad():
            model.model.vision_tower.embeddings.position_embedding.weight.normal_(0, 0.02)
        return model


class Unaligned(SceneTrainer):
    """The projector starts at random; features are whitened all the same."""

    def _alignment(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        projector = self.model.model.multi_modal_projector
        before = {name: value.clone() for name, value in projector.state_dict().items()}
        found = super()._alignment()
        self._restored = before
        return found

    def _begin_language(self) -> None:
        super()._begin_language()
        self.model.model.multi_modal_projector.load_state_dict(self._restored)
        self.save()


class AllAdamW(Optimiser):
    """AdamW on everything, at the rate that it has beside Muon."""

    def __init__(self, modules: Any, muon_lr: float, adam_lr: float, steps: int) -> None:
        parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        self.steps, self.peaks, self.parameters = steps, (0.0, adam_lr), parameters
        self.parts = (torch.optim.AdamW(parameters, lr=adam_lr, betas=(0.9, 0.98)),)

    def step(self, step: int) -> None:
        """One update at the schedule's rate."""
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        (part,) = self.parts
        for group in part.param_groups:
            group["lr"] = self.peaks[1] * schedule(step / self.steps, 100 / self.steps)
        part.step()
        part.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state."""
        return {"all": self.parts[0].state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave; a first stage that Muon trained has nothing for it."""
        if "all" in state:
            self.parts[0].load_state_dict(state["all"])


class WithoutMuon(SceneTrainer):
    """AdamW on the matrices too."""

    def _optimiser(self) -> Optimiser:
        muon = super()._optimiser()
        recipe = self.recipe
        rate = recipe.language_adam if self.answering else recipe.vision_adam
        holder = nn.ParameterList(muon.parameters)
        return AllAdamW([holder], 0.0, rate, muon.steps)


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing left out.

    Attributes:
        says: what, for the page.
        changes: of the recipe.
        trainer: what trains.
    """

    says: str
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    trainer: type[SceneTrainer] = SceneTrainer


TOWER = {
    EVERYTHING: Case("nothing"),
    "muon": Case("Muon: AdamW on all parameters", trainer=WithoutMuon),
    "positions": Case("large positions: CLIP's own start", trainer=OwnPositions),
}
ANSWERS = {
    EVERYTHING: Case("nothing"),
    "descriptions": Case("descriptions: questions only", {"captions": (0.0, 0.0)}),
    "gaze": Case("the hint where to look, and places", {"gaze": 0.0}),
    "places": Case("places of what is named", {"place": 0.0}),
    "alignment": Case("the projector's start among the words", trainer=Unaligned),
    "resolutions": Case("many low resolutions at first", {"low_first": SHORT.low_share}),
    "muon": Case("Muon: AdamW on all parameters", trainer=WithoutMuon),
}
STAGES = {"tower": TOWER, "answers": ANSWERS}


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long the trainings are, and where they are kept.

    Attributes:
        out: folder of the trainings.
        store: folder of the drawn scenes.
        recipe: of what is judged by its answers.
        tower_steps: of what is judged by its tower.
        scenes: test scenes that answers are measured on.
    """

    out: Path
    store: Path
    recipe: Recipe
    tower_steps: int
    scenes: int

    def folder(self, stage: str, case: str, seed: int) -> Path:
        """Where one training lies."""
        return self.out / f"{stage}-{case}-seed{seed}"

    def drawn(self) -> Scenes:
        """The training scenes."""
        return Scenes(Store(self.store, self.recipe.scenes))

    def run(self, stage: str, case: str, seed: int) -> None:
        """Train one case and measure it, or go on with it."""
        what, folder = STAGES[stage][case], self.folder(stage, case, seed)

        def tell(progress: Progress) -> None:
            print(stage, case, seed, progress, flush=True)

        mine = dataclasses.replace(self.recipe, **what.changes)
        with training_in(folder):
            if stage == "tower":
                mine = dataclasses.replace(mine, vision_steps=self.tower_steps)
                trainer = what.trainer(folder, seed, mine, self.drawn(), tell=tell)
                trainer.run(stop_at=(1, self.tower_steps - 1))
                note(folder / MEASURED, {"steps": self.tower_steps, "read": reads(trainer)})
                return
            if not (folder / "checkpoint.pt").exists():
                _adopt(self.first_stage(seed) / "checkpoint.pt", folder / "checkpoint.pt", mine)
            what.trainer(folder, seed, mine, self.drawn(), tell=tell).run()
            figures(folder, self.scenes)

    def first_stage(self, seed: int) -> Path:
        """Train what all cases that are judged by their answers begin with."""
        folder = self.out / f"stage1-seed{seed}"
        with training_in(folder):
            # Leaving before the last step keeps the stage open for every case to finish itself.
            trainer = SceneTrainer(folder, seed, self.recipe, self.drawn())
            trainer.run(stop_at=(1, self.recipe.vision_steps - 1))
        return folder


def _adopt(source: Path, target: Path, recipe: Recipe) -> None:
    """The checkpoint of a first stage, for a run whose second stage differs."""
    state = torch.load(source, weights_only=True, map_location="cpu")
    state["recipe"] = json.dumps(dataclasses.asdict(recipe))
    partial = target.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(target)


@torch.no_grad()
def reads(trainer: SceneTrainer) -> dict[str, float]:
    """What can be read off the tower on validation scenes: shares of right patches and pictures."""
    # The trainer has a store of fewer validation scenes of its own.
    scenes = Scenes(Store(trainer.folder / "read", READ, "validation"))
    scenes.store.fill()
    found: dict[str, list[float]] = defaultdict(list)
    for start in range(0, READ, 16):
        shown = labelled_scenes(scenes, range(start, start + 16))
        _, facts = vision_loss(trainer.model.model.vision_tower, trainer.heads, shown)
        for name, value in facts.items():
            found[name].append(value)
    return {name: statistics.mean(values) for name, values in found.items()}


def figures(folder: Path, scenes: int) -> dict[str, Any]:
    """Accuracy of a finished case on so many test scenes; measured once."""
    kept = folder / MEASURED
    known: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    if known.get("scenes") != scenes:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        model = AutoModelForImageTextToText.from_pretrained(folder / "model", dtype=torch.float32)
        processor = AutoProcessor.from_pretrained(folder / "model")
        known = measure(model.eval(), processor, scenes)
        known["training"] = json.loads((folder / "model" / "training.json").read_text())["training"]
        note(kept, known)
    return known


def found(out: Path, seeds: list[int]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Stage -> case -> what was measured of each seed, as far as there is any."""
    there: dict[str, dict[str, list[dict[str, Any]]]] = {stage: {} for stage in STAGES}
    for stage, cases in STAGES.items():
        for case in cases:
            files = [out / f"{stage}-{case}-seed{seed}" / MEASURED for seed in seeds]
            if records := [json.loads(file.read_text()) for file in files if file.exists()]:
                there[stage][case] = records
    return there


def table(cases: dict[str, Case], rows: dict[str, list[dict[str, float]]], first: str) -> list[str]:
    """A row for each case: what it has, a mean over its seeds, least different from all first.

    Args:
        cases: name -> what it is.
        rows: name -> of each seed, figures by column.
        first: the column that rows are sorted by.
    """
    columns = [first, *(name for name in next(iter(rows.values()))[0] if name != first)]
    lines = [f"| left out | seeds | {' | '.join(columns)} |", "| --- " * (len(columns) + 2) + "|"]

    def cell(case: str, column: str) -> float:
        return statistics.mean(each[column] for each in rows[case])

    order = sorted(rows, key=lambda case: (case != EVERYTHING, -cell(case, first)))
    for case in order:
        cells = [f"{cell(case, column):.3f}" for column in columns]
        if len(rows[case]) > 1:
            cells[0] += f" ± {statistics.stdev(each[first] for each in rows[case]):.3f}"
        lines.append(f"| {cases[case].says} | {len(rows[case])} | {' | '.join(cells)} |")
    return lines


def page(there: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """The page, from what has been measured.

    Raises:
        InputError: nothing has.
    """
    if not any(there.values()):
        raise InputError("Nothing has been measured yet.\nRun it without --from-store.")
    lines = [
        "<!-- Made by `python -m benchmarks.ablation`; edit that file. -->",
        "",
        "# What made the reference model learn",
        "",
        "Short trainings with one thing left out at a time, on the same batches. They are shorter "
        "than [the shipped model's](reference-model.md), so figures are to be compared with each "
        "other. What a longer training would make up for is not seen here. AdamW has the rate that "
        "it has beside Muon; no other was tried. Trainings are of equal steps, not of equal time: "
        "a step at a low resolution costs a third.",
    ]
    if all(len(records) == 1 for cases in there.values() for records in cases.values()):
        lines += [
            "",
            "One training each: how much another seed would change is not seen, so that only large "
            "differences say something.",
        ]
    if tower := there["tower"]:
        rows = {case: [one["read"] for one in each] for case, each in tower.items()}
        steps = tower[next(iter(tower))][0]["steps"]
        lines += [
            "",
            "## The tower",
            "",
            f"{steps} steps of the first stage. What can be read off each patch, and off the "
            f"picture as a whole by CLS and by what CLS collects (*pooled*), on {READ} validation "
            "scenes.",
            "",
            *table(TOWER, rows, "shape"),
        ]
    if answers := there["answers"]:
        rows = {
            case: [
                {"all": one["all"]["accuracy"]}
                | {kind: row["accuracy"] for kind, row in sorted(one["kinds"].items())}
                for one in each
            ]
            for case, each in answers.items()
        }
        one = answers[next(iter(answers))][0]
        recipe = one["training"]["recipe"]
        lines += [
            "",
            "## The answers",
            "",
            f"{recipe['language_steps']} steps of the second stage, all from the same tower "
            f"({recipe['vision_steps']} steps). Accuracy on {one['scenes']} test scenes, "
            f"{one['all']['questions']} questions; the majority answer of each kind gets "
            f"{one['all']['majority']:.3f}.",
            "",
            *table(ANSWERS, rows, "all"),
        ]
    return "\n".join([*lines, ""])


app = typer.Typer(add_completion=False)


@app.command()
@errors_told()
def main(
    out: Annotated[Path, typer.Option(help="Folder of the trainings.")],
    case: Annotated[
        list[str] | None, typer.Option(help="As STAGE-CASE; may be repeated; all if none.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="May be repeated; 0 if none.")] = None,
    store: Annotated[Path | None, typer.Option(help="Drawn scenes to share.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="On a CPU.", min=1)] = 2,
    workers: Annotated[int, typer.Option(help="Processes that draw.", min=1)] = 1,
    scenes: Annotated[int, typer.Option(help="Test scenes to measure on.", min=1)] = 500,
    tower_steps: Annotated[
        int, typer.Option(help="Of trainings judged by the tower.", min=2)
    ] = TOWER_STEPS,
    vision_steps: Annotated[
        int, typer.Option(help="Before the second stage.", min=2)
    ] = SHORT.vision_steps,
    language_steps: Annotated[
        int, typer.Option(help="Of the second stage.", min=1)
    ] = SHORT.language_steps,
    drawn: Annotated[int, typer.Option(help="Training scenes.", min=1)] = SHORT.scenes,
    page_file: Annotated[Path, typer.Option("--page", help="Where the page goes.")] = (
        DOCS / "ablation.md"
    ),
    from_store: Annotated[
        bool, typer.Option("--from-store", help="The page alone; nothing is trained.")
    ] = False,
) -> None:
    """Train every case, measure it, and write the page."""
    known = [f"{stage}-{name}" for stage, cases in STAGES.items() for name in cases]
    if unknown := sorted(set(case or ()) - set(known)):
        raise UnknownName("case", unknown[0], known)
    seeds = seed or [0]
    if not from_store:
        torch.set_num_threads(threads)
        recipe = dataclasses.replace(
            SHORT, vision_steps=vision_steps, language_steps=language_steps, scenes=drawn
        )
        plan = Plan(out, store or out / "scenes", recipe, tower_steps, scenes)
        with on(device):
            Store(plan.store, recipe.scenes).fill(workers)
            for one in seeds:
                for name in case or known:
                    stage, _, which = name.partition("-")
                    plan.run(stage, which, one)
    page_file.write_text(page(found(out, seeds)))
    typer.echo(page_file)


if __name__ == "__main__":
    app()
