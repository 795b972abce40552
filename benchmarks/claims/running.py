"""Everything that a page of claims needs of one model, run and stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from collections.abc import Mapping as Table
from pathlib import Path
from typing import Any

from rich.progress import Progress

from benchmarks.claims import cls_attention, mappings, optima, relevances, variants
from benchmarks.claims.again import take_over
from benchmarks.claims.kinds import KINDS, SCENES, kinds_of
from benchmarks.claims.stored import share
from benchmarks.pages import note
from foveate import drawing
from foveate.cli.loading import Source
from foveate.errors import InputError
from foveate.evaluation import claims
from foveate.evaluation.asking import Asking, Group
from foveate.evaluation.claims import ATTENTION, Page
from foveate.evaluation.compare import answers
from foveate.evaluation.data import Dialogue
from foveate.evaluation.optimum import Optimum
from foveate.evaluation.settings import Setting
from foveate.evaluation.variants import Trained
from foveate.training.learning import FOLDER

MAPPINGS, RELEVANCES, _DRAWN = "mappings.png", "relevances.png", 2
_MAPS = {"layers.png": cls_attention.through_layers, "scenes.png": cls_attention.over_scenes}
DPI = 110
COLOURS = 128  # of a sheet of many pictures: it looks the same and takes a quarter of the bytes


def ask(
    page: Page,
    family: str,
    name: str,
    source: Source,
    count: int,
    store: Path,
    batch: int,
    progress: Progress | None,
    again: int | None = None,
) -> None:
    """Everything that a page needs of one model, stored in a folder.

    Args:
        page: the claims.
        family: of the model, one of `FAMILIES`.
        name, source: the model.
        count: dialogues of each kind that it is asked.
        store: folder of the page's runs.
        batch: dialogues answered at a time.
        progress: where to show how far it is.
        again: dialogues that are asked again before answers of earlier code count as the present
            one's; None: they never do.
    """
    model, processor = source.load()
    kinds = [kind for kind in kinds_of(page) if KINDS[kind].family == family]
    settings = {kind: claims.groups_of(page.sides(kind)) for kind in kinds}
    drawn = page.mappings.sides if page.mappings is not None and family == SCENES else ()
    shown = [each for each in page.relevances if KINDS[each.data].family == family]
    every = [each for groups in settings.values() for group in groups for each in group]
    every += [each for side in drawn for each in side.settings]
    every += [each for part in shown for sides in part.sides for each in sides[0].settings]
    trainings = store / "trained" / family / name
    trained = variants.prepare(
        [each for each in every if isinstance(each, Trained)],
        model,
        processor,
        family,
        trainings,
        store / "cache",
        progress,
    )

    def found(setting: Setting, folder: Path) -> Setting:
        """With what has been made for it."""
        if isinstance(setting, Trained):
            return setting.at(variants.place(trainings, setting) / FOLDER)
        return setting.at(folder) if isinstance(setting, Optimum) else setting

    for kind in kinds:
        dialogues, folder = KINDS[kind].dialogues(count), store / kind / name
        groups = [Group([found(each, folder) for each in group]) for group in settings[kind]]
        _same_weights(folder, trained)
        for setting in dict.fromkeys(each for group in groups for each in group.settings):
            if isinstance(setting, Optimum):
                optima.find(setting, model, processor, dialogues, store / "cache", progress)
        if again is not None:
            take_over(folder, model, processor, dialogues[:again], groups, batch, progress)
        asking = answers(
            model, processor, dialogues, groups, folder, batch_size=batch, progress=progress
        )
        _note(asking, source, model, trained, folder)
        if kind == SCENES and any(part.data == ATTENTION for part in page.parts):
            _look(asking, model, processor, folder)
        if kind == SCENES and drawn:
            wanted = [found(side.settings[0], folder) for side in drawn]
            _draw_mappings(wanted, model, processor, dialogues[:_DRAWN], folder)
        for part in shown:
            if part.data == kind:
                rows = [[found(one.settings[0], folder) for one in each] for each in part.sides]
                _draw_relevances(rows, model, processor, dialogues[:_DRAWN], folder)
        if progress is not None:
            progress.console.print(f"{name}: all answers are in {folder}", highlight=False)


def _note(asking: Asking, source: Source, model: Any, trained: Any, folder: Path) -> None:
    """What a page says of a run beside its answers."""
    left_out = {
        setting.key: f"{setting.label} at {share(setting.keep)}: "
        + (group.skipped.short or group.skipped.reason.splitlines()[0])
        for group in asking.groups
        if group.skipped is not None
        for setting in group.settings
    }
    sizes = {
        record["n"] // len(record["answers"])
        for record in asking.store.records.values()
        if record.get("n")
    }
    record = {
        "model": source.model,
        "type": model.config.model_type,
        "parameters": sum(each.numel() for each in model.parameters()),
        "layers": model.config.get_text_config().num_hidden_layers,
        "tokens": sorted(sizes),
        "left_out": left_out,
        "trained": trained,
    }
    note(folder / "run.json", record)


def _same_weights(folder: Path, trained: Table[str, dict[str, Any]]) -> None:
    """Raise an InputError if stored answers were given with other parameters of a training."""
    noted = folder / "run.json"
    there = json.loads(noted.read_text()).get("trained", {}) if noted.is_file() else {}
    for identity, each in trained.items():
        if identity in there and there[identity]["weights"] != each["weights"]:
            raise InputError(
                f"{folder} holds answers of another training of {each['name']}.\n"
                "Remove that folder and ask again, or bring the training back."
            )


def _look(asking: Asking, model: Any, processor: Any, folder: Path) -> None:
    """Where CLS looks, measured and drawn."""
    known, count = folder / "attention.json", len(asking.data)
    wanted = {"model": asking.store.facts["model"], "scenes": count}
    if not known.exists() or json.loads(known.read_text())["of"] != wanted:
        found = cls_attention.measure(model, processor, count)
        for file, draw in _MAPS.items():
            draw(model, processor).savefig(folder / file, dpi=DPI)
        note(known, {"of": wanted, **found})


def _draw_mappings(
    settings: Sequence[Setting],
    model: Any,
    processor: Any,
    dialogues: Sequence[Dialogue],
    folder: Path,
) -> None:
    """P of some dialogues' pictures as a picture."""
    _drawn(
        folder / MAPPINGS,
        [[each.key for each in settings], [each.name for each in dialogues]],
        lambda path: mappings.draw(settings, model, processor, dialogues).savefig(path, dpi=DPI),
    )


def _draw_relevances(
    rows: Sequence[Sequence[Setting]],
    model: Any,
    processor: Any,
    dialogues: Sequence[Dialogue],
    folder: Path,
) -> None:
    """Relevance to some dialogues' questions, and what is kept, as a picture."""
    _drawn(
        folder / RELEVANCES,
        [[[each.key for each in row] for row in rows], [each.name for each in dialogues]],
        lambda path: drawing.save(
            relevances.draw(rows, model, processor, dialogues).quantize(COLOURS), path
        ),
    )


def _drawn(path: Path, of: Any, draw: Callable[[Path], Any]) -> None:
    """Draw a picture unless it is there and of the same."""
    noted = path.with_suffix(".json")
    if not noted.exists() or json.loads(noted.read_text()) != of:
        draw(path)
        note(noted, of)
