"""What made the reference model learn: the same short training with one thing left out at a time.

    python -m benchmarks.ablation --out RUNS --seeds 3                 # hours on two cores
    python -m benchmarks.ablation --out RUNS --seeds 3 --device cuda   # minutes
    python -m benchmarks.ablation --out RUNS --page FILE.md             # from what is there

Every case is a training of its own, with its own initialisation and the same batches; those that
change only the second stage go on from the first stage of the same seed. Interrupted, the same
command goes on. Trainings here are shorter than the shipped one, so figures are compared with each
other, not with the model's own.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from foveate.reference.data import Scenes
from foveate.reference.measure import measure
from foveate.reference.optimiser import Optimiser, schedule
from foveate.reference.recipe import Recipe
from foveate.reference.report import Progress
from foveate.reference.store import Store
from foveate.reference.table import insert
from foveate.reference.train import SceneTrainer, on

SHORT = Recipe(scenes=24_000, vision_steps=1_600, language_steps=1_600)


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
        self.steps, self.peaks, self.parameters = steps, (adam_lr,), parameters
        self.parts = (torch.optim.AdamW(parameters, lr=adam_lr, betas=(0.9, 0.98)),)

    def step(self, step: int) -> None:
        """One update at the schedule's rate."""
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        (part,) = self.parts
        for group in part.param_groups:
            group["lr"] = self.peaks[0] * schedule(step / self.steps, 100 / self.steps)
        part.step()
        part.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state."""
        return {"adam": self.parts[0].state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.parts[0].load_state_dict(state["adam"])


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
        whole: whether the first stage differs too.
    """

    says: str
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    trainer: type[SceneTrainer] = SceneTrainer
    whole: bool = False


CASES = {
    "everything": Case("nothing left out"),
    "descriptions": Case("no descriptions: questions only", {"captions": (0.0, 0.0)}),
    "gaze": Case("no hint where to look, no places", {"gaze": 0.0}),
    "places": Case("no places of what is named", {"place": 0.0}),
    "alignment": Case("projector not aligned with the words", trainer=Unaligned),
    "resolutions": Case("no low resolutions first", {"low_first": SHORT.low_share}),
    "muon": Case("AdamW instead of Muon", trainer=WithoutMuon, whole=True),
    "positions": Case("CLIP's own start of positions", trainer=OwnPositions, whole=True),
}


def run(case: str, seed: int, out: Path, store: Path, recipe: Recipe, device: str) -> Path:
    """Train one case; returns its folder."""
    what = CASES[case]
    folder = out / f"{case}-seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    mine = dataclasses.replace(recipe, **what.changes)
    first = out / f"stage1-seed{seed}"
    scenes = Scenes(Store(store, recipe.scenes))

    def tell(progress: Progress) -> None:
        print(case, seed, progress, flush=True)

    with on(device):
        if not what.whole and not (folder / "checkpoint.pt").exists():
            first.mkdir(exist_ok=True)
            # Leaving before the last step keeps the stage open for every case to finish itself.
            stop = (1, recipe.vision_steps - 1)
            SceneTrainer(first, seed, recipe, scenes, tell=tell).run(stop_at=stop)
            _adopt(first / "checkpoint.pt", folder / "checkpoint.pt", mine)
        what.trainer(folder, seed, mine, scenes, tell=tell).run()
    return folder


def _adopt(source: Path, target: Path, recipe: Recipe) -> None:
    """The checkpoint of a first stage, for a run whose second stage differs."""
    state = torch.load(source, weights_only=True, map_location="cpu")
    state["recipe"] = json.dumps(dataclasses.asdict(recipe))
    partial = target.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(target)


def figures(folder: Path, scenes: int) -> dict[str, Any]:
    """Accuracy of a finished case on so many test scenes; measured once."""
    kept = folder / "measured.json"
    known: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    if known.get("scenes") != scenes:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        model = AutoModelForImageTextToText.from_pretrained(folder / "model", dtype=torch.float32)
        processor = AutoProcessor.from_pretrained(folder / "model")
        known = measure(model.eval(), processor, scenes)
        partial = kept.with_suffix(".partial")
        partial.write_text(json.dumps(known, indent=1))
        partial.replace(kept)
    return known


def page(out: Path, seeds: int) -> str:
    """The table, from what has been measured."""
    found: dict[str, list[dict[str, Any]]] = {}
    for case in CASES:
        files = [out / f"{case}-seed{seed}" / "measured.json" for seed in range(seeds)]
        found[case] = [json.loads(file.read_text()) for file in files if file.exists()]
    found = {case: each for case, each in found.items() if each}
    if not found:
        raise typer.BadParameter(f"{out} holds no measured case yet.")
    kinds = sorted(next(iter(found.values()))[0]["kinds"])
    lines = [
        f"| left out | seeds | all | {' | '.join(kinds)} |",
        f"| --- | --- | --- | {' | '.join('---' for _ in kinds)} |",
    ]
    for case, each in found.items():
        values = [one["all"]["accuracy"] for one in each]
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        cells = [statistics.mean(one["kinds"][kind]["accuracy"] for one in each) for kind in kinds]
        lines.append(
            f"| {CASES[case].says} | {len(each)} | {statistics.mean(values):.3f}{spread} | "
            + " | ".join(f"{cell:.2f}" for cell in cells)
            + " |"
        )
    return "\n".join(lines)


def main(
    out: Annotated[Path, typer.Option(help="Folder of the trainings.")],
    case: Annotated[list[str] | None, typer.Option(help="May be repeated; all if none.")] = None,
    seeds: Annotated[int, typer.Option(help="Seeds 0 .. n - 1.", min=1)] = 1,
    store: Annotated[Path | None, typer.Option(help="Drawn scenes to share.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="On a CPU.", min=1)] = 2,
    workers: Annotated[int, typer.Option(help="Processes that draw.", min=1)] = 1,
    scenes: Annotated[int, typer.Option(help="Test scenes to measure on.", min=1)] = 500,
    vision_steps: Annotated[int, typer.Option(min=2)] = SHORT.vision_steps,
    language_steps: Annotated[int, typer.Option(min=1)] = SHORT.language_steps,
    drawn: Annotated[int, typer.Option(help="Training scenes.", min=1)] = SHORT.scenes,
    page_file: Annotated[
        Path | None, typer.Option("--page", help="Bring this page's table up to date, and leave.")
    ] = None,
) -> None:
    """Train every case, measure it, print the table."""
    if page_file is not None:
        page_file.write_text(insert(page_file.read_text(), page(out, seeds)))
        return
    torch.set_num_threads(threads)
    recipe = dataclasses.replace(
        SHORT, vision_steps=vision_steps, language_steps=language_steps, scenes=drawn
    )
    if unknown := set(case or ()) - set(CASES):
        raise typer.BadParameter(f"No case {', '.join(unknown)}; known: {', '.join(CASES)}.")
    kept = store or out / "scenes"
    Store(kept, recipe.scenes).fill(workers)
    for seed in range(seeds):
        for name in case or CASES:
            figures(run(name, seed, out, kept, recipe, device), scenes)
            print(page(out, seeds), flush=True)


if __name__ == "__main__":
    typer.run(main)
