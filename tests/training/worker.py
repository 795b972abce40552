"""A training in a process of its own, to be killed or to be one of several.

python worker.py CACHE OUT TRACE     every told line goes to TRACE
"""

from __future__ import annotations

import sys
from pathlib import Path

from foveate import catalog, reference
from foveate.training import data
from foveate.training.learning import train
from foveate.training.recipe import Recipe
from foveate.training.teacher import Teacher
from foveate.training.trainer import Progress

SHARED = {"batch": 4, "steps": 12, "log_every": 1, "evaluate_every": 4, "save_every": 1}
RECIPES = {
    # State in the optimiser and in the schedule, and several budgets: what a checkpoint must hold.
    # Steps enough that five kills come before the last, which is no epoch's end.
    "adamw": Recipe(
        keeps=(0.05, 0.1, 20),
        optimiser="adamw",
        rate=3e-3,
        schedule="cosine",
        **{**SHARED, "steps": 25},
    ),
    # Steps in proportion to gradients: rounding stays rounding.
    "sgd": Recipe(keeps=(0.05, 0.1), rate=0.01, bound=1.0, **SHARED),
}


def main(cache: str, out: str, trace: str, optimiser: str) -> None:
    dialogues = data.examples("scenes", count=17)
    # Answers of different lengths: means over ragged rows are what goes wrong.
    dialogues[::3] = data.single_turns(dialogues[::3])[::3]
    with Path(trace).open("a") as file:

        def tell(progress: Progress) -> None:
            print(progress.step, progress.values.get("loss"), file=file, flush=True)

        train(
            catalog.make("metacompress", dim=8),
            Teacher(*reference.load(), cache),
            dialogues[:14],
            out,
            RECIPES[optimiser],
            validation=dialogues[14:],
            tensorboard=False,
            cpu=True,
            tell=tell,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
