r"""A paper's claims, asked again on the reference models: runs what a page needs, and writes it.

    python -m benchmarks.claims polymorphic                         # the shipped model
    python -m benchmarks.claims polymorphic --all-seeds RUNS        # every training seed in RUNS
    python -m benchmarks.claims polymorphic --from-store            # the page alone, nothing runs

The claims are data, `docs/claims/NAME.toml`; the page beside it is made of stored answers. What
claims are about that has to be trained for each model is data there, too, and trained before it is
asked. Everything is stored as it comes: interrupted, the same command goes on. With `--only` a
process runs some of the models and leaves the page to the last one. Prefill times are taken apart,
on a quiet machine, and the page reads them from `--timing`:

    python -m benchmarks.overhead --shape deep --words 16 -m visionzip -m sparsevlm -m fastv \
        -m polymorphic -m metacompress -m uniform -m random -m prumerge \
        --out benchmarks/results/cpu-deep.json
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Mapping as Table
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import Progress

from benchmarks import cls_attention, mappings, optima, variants
from benchmarks.kinds import FAMILIES, KINDS, OPTIMUM, SCENES, TILES
from foveate.cli.loading import Source
from foveate.cli.seeds import named, seeds_in
from foveate.errors import FoveateError, InputError, UnknownName
from foveate.evaluation import claims, data, fingerprints, stats
from foveate.evaluation.answering import FULL
from foveate.evaluation.asking import Asking, Group
from foveate.evaluation.claims import (
    ATTENTION,
    KEPT,
    Answered,
    Claim,
    Evidence,
    Page,
    Prefill,
    Side,
    Verdict,
)
from foveate.evaluation.compare import ANSWERS, answers
from foveate.evaluation.data import Dialogue
from foveate.evaluation.optimum import Optimum
from foveate.evaluation.reach import in_last_layer
from foveate.evaluation.settings import Setting
from foveate.evaluation.store import Store
from foveate.evaluation.timing import Ratio
from foveate.evaluation.variants import Bounds, Trained
from foveate.training.learning import FOLDER

CLAIMS = Path(__file__).parents[1] / "docs" / "claims"
_MAPS = {"layers.png": cls_attention.through_layers, "scenes.png": cls_attention.over_scenes}
_MAPPINGS, _DRAWN = "mappings.png", 2
_DPI = 110
_ALIKE = 0.05
_DEEP, _WIDE = 32, 576  # layers and tokens of LLaVA-1.5-7B


@dataclasses.dataclass(frozen=True)
class Asked:
    """What one model was asked.

    Attributes:
        name: of the model.
        folder: where its answers are.
        facts: what the run noted beside them: layers, tokens, what was left out.
    """

    name: str
    folder: Path
    facts: dict[str, Any]


# ---------------------------------------------------------------------- running


def ask(
    page: Page,
    family: str,
    name: str,
    source: Source,
    count: int,
    store: Path,
    batch: int,
    progress: Progress | None,
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
    """
    model, processor = source.load()
    kinds = [kind for kind in kinds_of(page) if KINDS[kind].family == family]
    settings = {kind: claims.groups_of(page.sides(kind)) for kind in kinds}
    drawn = page.mappings.sides if page.mappings is not None and family == SCENES else ()
    every = [each for groups in settings.values() for group in groups for each in group]
    every += [each for side in drawn for each in side.settings]
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
        asking = answers(
            model, processor, dialogues, groups, folder, batch_size=batch, progress=progress
        )
        _note(asking, source, model, trained, folder)
        if kind == SCENES and any(part.data == ATTENTION for part in page.parts):
            _look(asking, model, processor, folder)
        if kind == SCENES and drawn:
            shown = [found(side.settings[0], folder) for side in drawn]
            _draw_mappings(shown, model, processor, dialogues[:_DRAWN], folder)
        if progress is not None:
            progress.console.print(f"{name}: all answers are in {folder}", highlight=False)


def kinds_of(page: Page) -> list[str]:
    """The kinds of dialogues that a page's models are asked: their own, and those of its claims."""
    return [kind for kind in KINDS if kind in FAMILIES or page.sides(kind)]


def _note(asking: Asking, source: Source, model: Any, trained: Any, folder: Path) -> None:
    """What a page says of a run beside its answers."""
    left_out = {
        setting.key: f"{setting.label} at {_share(setting.keep)}: "
        + (group.skipped.short or group.skipped.reason.splitlines()[0])
        for group in asking.groups
        if group.skipped is not None
        for setting in group.settings
    }
    sizes = {
        record["n"] // len(record["answers"])
        for record in asking.store.records.values()
        if record["n"]
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
    _write(folder / "run.json", record)


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
            draw(model, processor).savefig(folder / file, dpi=_DPI)
        _write(known, {"of": wanted, **found})


def _draw_mappings(
    settings: Sequence[Setting],
    model: Any,
    processor: Any,
    dialogues: Sequence[Dialogue],
    folder: Path,
) -> None:
    """P of some dialogues' pictures as a picture."""
    noted = folder / "mappings.json"
    wanted = [[each.key for each in settings], [each.name for each in dialogues]]
    if not noted.exists() or json.loads(noted.read_text()) != wanted:
        figure = mappings.draw(settings, model, processor, dialogues)
        figure.savefig(folder / _MAPPINGS, dpi=_DPI)
        _write(noted, wanted)


def _share(keep: int | float | None) -> str:
    """A budget as a reader wants it."""
    return f"{100 * keep:.1f} %" if isinstance(keep, float) else str(keep or "its own budget")


def _write(path: Path, record: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n")
    partial.replace(path)


# ---------------------------------------------------------------------- judging


def stored(store: Path, kind: str, names: Sequence[str]) -> list[Asked]:
    """What was noted of each model.

    Raises:
        InputError: a model was not asked, or not to the end.
    """
    found = []
    for name in names:
        folder = store / kind / name
        if not (folder / "run.json").is_file():
            raise InputError(
                f"{folder} holds no finished run.\nRun it first, without --from-store."
            )
        found.append(Asked(name, folder, json.loads((folder / "run.json").read_text())))
    return found


def answered(models: Sequence[Asked], dialogues: Sequence[Dialogue]) -> Answered:
    """The stored answers of several models to the same dialogues.

    Raises:
        InputError: they were made under different circumstances.
    """
    stores = [Store.existing(each.folder / ANSWERS) for each in models]
    shared = [
        {key: value for key, value in store.facts.items() if key not in ("model", "processor")}
        for store in stores
    ]
    if any(each != shared[0] for each in shared):
        raise InputError(
            f"The answers of {', '.join(each.name for each in models)} were made with different "
            "data or code.\nRun all of them again."
        )
    if shared and shared[0]["data"] != data.fingerprint(dialogues):
        raise InputError("The stored answers are to other dialogues.\nRun them again.")
    left_out = {
        key: (f"{each.name}: " if len(models) > 1 else "") + why
        for each in models
        for key, why in each.facts["left_out"].items()
    }
    return Answered(stores, dialogues, left_out)


def looked(models: Sequence[Asked]) -> dict[str, dict[str, Any]]:
    """What was measured of each model's CLS attention."""
    files = {each.name: each.folder / "attention.json" for each in models}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def attention_evidence(claim: Claim, found: Table[str, dict[str, Any]]) -> Evidence | str:
    """The share of CLS's attention in its top tenth of patches, of two layers."""
    if not found:
        return "no tower with a CLS token was measured"

    def share(side: Side) -> Any:
        layer = int(side.method.removeprefix("layer "))
        return np.array([[scene[layer] for scene in each["top"]] for each in found.values()])

    better, worse = share(claim.better), share(claim.worse)
    return Evidence(better, worse, np.ones(better.shape[1]))


# ---------------------------------------------------------------------- the page


def scores(found: Answered, models: Sequence[Asked], sides: Sequence[Side]) -> str:
    """Every setting's accuracy and tokens as a table."""
    counted = found.counted()
    full = np.asarray(found.right(Side(FULL)))[:, counted]
    sizes = sorted({n for each in models for n in each.facts["tokens"]})
    layers = min(each.facts["layers"] for each in models)
    lines = [
        "| setting | keep | accuracy | % of full | - full [95 %] | entering | mean | "
        f"last of {layers} layers | last of {_DEEP} |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        f"| full model | {' / '.join(map(str, sizes))} | {full.mean():.3f} | 100 | | | | 100 % | "
        "100 % |",
    ]
    for side in sides:
        right = found.right(side)
        if not side.settings or isinstance(right, str):
            continue
        value, records = right[:, counted], found.records(side)
        whole = sum(each["n"] for each in records)
        entering, mean = (sum(r[name] for r in records) / whole for name in ("entering", "average"))
        cells = [
            "" if left is None else f"{100 * left / n:.0f} %"
            for n, total in ((sizes[-1], layers), (_WIDE, _DEEP))
            for left in (in_last_layer(side.settings[0], n, total),)
        ]
        _, low, high = _gain(found, value - full)
        gain = value.mean() - full.mean()
        share = f"{100 * value.mean() / full.mean():.1f}" if full.any() else ""
        cells = [f"{100 * entering:.0f} %", f"{100 * mean:.0f} %", *cells]
        lines.append(
            f"| {side.label} | {_share(side.keep)} | {value.mean():.3f} | {share} | "
            f"{gain:+.3f} [{low:+.3f}, {high:+.3f}] | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def _gain(found: Answered, gain: Any, kinds: Sequence[str] = ()) -> stats.Interval:
    """A difference by question with its interval over dialogues and models."""
    dialogue = found.dialogue[found.counted(kinds)]
    asked = np.bincount(dialogue)
    some = asked > 0
    gains = np.array([np.bincount(dialogue, weights=one) for one in gain])[:, some]
    return stats.between_models(gains, asked[some].astype(float), made_up=claims.MADE_UP)[0]


def trainings(page: Page, models: Table[str, Sequence[Asked]]) -> str:
    """What every variant is, and how far it came from what the full models say."""
    lines = [
        "| name | what it is | method | trainings of a model | dialogues | recipe | measured |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    noted = [
        each.facts.get("trained", {}) for family in FAMILIES for each in models.get(family, ())
    ]
    for name, each in page.variants.items():
        sums: dict[str, list[float]] = {}
        for there in noted:
            for identity in map(each.identity, range(each.seeds)):
                for key, value in there.get(identity, {}).get("measured", {}).items():
                    sums.setdefault(key.removeprefix("eval_").replace("_", " "), []).append(value)
        cells = [
            f"`{name}`",
            each.says,
            f"`{each.method}`",
            str(each.seeds),
            f"{each.dialogues} {each.data}".strip(),
            ", ".join(f"{key} {value}" for key, value in (*each.start, *each.recipe)),
            ", ".join(
                f"{key} {sum(values) / len(values):.3f}"
                for key, values in sums.items()
                if "loss" not in key  # sums of the others
            ),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def curves(found: Answered, page: Page) -> Any:
    """Accuracy over budgets of every setting that is claimed about at three or more (None: none).

    One panel of all questions, and one of each set of kinds that a claim is about.
    """
    from matplotlib.figure import Figure

    lines: dict[str, list[Side]] = {}
    for side in page.sides(SCENES):
        if side.settings:
            lines.setdefault(side.label, []).append(side)
    lines = {
        label: [side for side in each if not isinstance(found.right(side), str)]
        for label, each in lines.items()
        if len(each) >= 3
    }
    lines = {label: each for label, each in lines.items() if each}
    if not lines:
        return None
    claimed = (claim.kinds for part in page.parts if part.data == SCENES for claim in part.claims)
    panels = [each for each in dict.fromkeys(((), *claimed)) if found.counted(each).any()]
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.3 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, kinds in zip(axes, panels, strict=False):
        counted = found.counted(kinds)
        full = np.asarray(found.right(Side(FULL)))[:, counted]
        for number, (label, sides) in enumerate(lines.items()):
            sides = sorted(sides, key=lambda side: side.keep or 0)
            values = [np.asarray(found.right(side))[:, counted] for side in sides]
            gains = [_gain(found, value - full, kinds) for value in values]
            panel.errorbar(
                [
                    100 * (side.keep or 0) * (1 + 0.012 * (number - len(lines) / 2))
                    for side in sides
                ],
                [value.mean() for value in values],
                yerr=[[g[0] - g[1] for g in gains], [g[2] - g[0] for g in gains]],
                label=label,
                marker="osD^vP*X"[number % 8],
                color=f"C{number}",
                markersize=4,
                linewidth=1.2,
                elinewidth=0.7,
                capsize=2,
            )
        panel.axhline(full.mean(), color="0.4", linewidth=0.9, label="full model")
        panel.set_title(", ".join(kinds) or "all questions", fontsize=8, wrap=True)
        panel.set_xlabel("tokens, % of all (mean over layers)", fontsize=8)
        panel.set_ylabel("accuracy", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.25)
    for panel in axes[len(panels) :]:
        panel.set_axis_off()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        fontsize=8,
        loc="outside lower center",
        ncols=2 * columns + 1,
        frameon=False,
    )
    return figure


def prefill(said: Prefill, path: Path) -> str:
    """Times from a stored run of `benchmarks/overhead.py`, and what they say."""
    methods = " ".join(f"-m {name}" for name in said.paper)
    kept = f"benchmarks/results/{path.name}"
    lines = [f"\n## {said.title}\n", said.text.strip() + "\n"]
    if not path.is_file():
        spoken = "--words 16 " if said.answers else ""
        command = f"python -m benchmarks.overhead --shape deep {spoken}{methods} --out {kept}"
        return "\n".join([*lines, f"Not measured yet: `{command}`."])
    record = json.loads(path.read_text())
    times = {kind: _times(record, kind) for kind in ("prefill", "answer")}
    lines += [
        f"From `{kept}`: "
        + ", ".join(f"{key} {value}" for key, value in record["setting"].items())
        + ".",
        "\n| method | tokens of 576 | time / full [quartiles] | times as fast | the paper | "
        "to the end of an answer / full | peak memory / full | FLOPs / full |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, printed in said.paper.items():
        if row := times["prefill"].get(name):
            ratio, later = _ratio(row), times["answer"].get(name)
            shares = [
                f"{row[what] / row[f'stock_{what}']:.3f}" if what in row else ""
                for what in ("peak", "flops")
            ]
            cells = [f"{1 / ratio.median:.2f}", printed, str(_ratio(later)) if later else ""]
            lines.append(f"| {name} | {row['keep']} | {ratio} | {' | '.join([*cells, *shares])} |")
    lines += ["\n| it says | verdict |", "| --- | --- |"]
    for kind, pairs, what in (
        ("prefill", said.faster, "is faster than"),
        ("answer", said.answers, "is at the end of an answer before"),
    ):
        for better, worse in pairs:
            word = _faster(times[kind], better, worse)
            lines.append(f"| {better} {what} {worse} | **{word}** |")
    for one, other in said.alike:
        word = _alike(times["prefill"], one, other)
        lines.append(f"| {one} is as fast as {other} | **{word}** |")
    lines.append(
        "\nA verdict on times holds where the quartiles of the ratios lie apart"
        + (
            f", one of being alike where they lie within {_ALIKE} of the full model's time"
            if said.alike
            else ""
        )
        + "; these are not among the claims that are counted and corrected above."
    )
    return "\n".join(lines)


def _times(record: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    """The rows of a kind by method; the full model beside itself among them, if there are any."""
    rows = {row["name"].split(",")[0]: row for row in record["rows"] if row["kind"] == kind}
    return rows and {**rows, "full": {"low": 1.0, "high": 1.0}}


def _ratio(row: dict[str, Any]) -> Ratio:
    return Ratio(*(row[key] for key in ("median", "low", "high", "base_seconds")))


def _pair(
    rows: Table[str, dict[str, Any]], *names: str
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Two methods' times; None unless both were measured at the same budget."""
    first, second = (rows.get(each) for each in names)
    if first is None or second is None:
        return None
    alike = len({row["keep"] for row in (first, second) if "keep" in row}) <= 1
    return (first, second) if alike else None


def _faster(rows: Table[str, dict[str, Any]], better: str, worse: str) -> str:
    pair = _pair(rows, better, worse)
    if pair is None:
        return claims.OUT_OF_REACH
    first, second = pair
    if first["high"] < second["low"]:
        return claims.HOLDS
    return claims.REVERSED if first["low"] > second["high"] else claims.OPEN


def _alike(rows: Table[str, dict[str, Any]], one: str, other: str) -> str:
    pair = _pair(rows, one, other)
    if pair is None:
        return claims.OUT_OF_REACH
    gaps = [a["high"] - b["low"] for a, b in (pair, pair[::-1])]
    if max(gaps) < _ALIKE:
        return claims.HOLDS
    # The nearest ends of the two spans.
    return claims.REVERSED if -min(gaps) > _ALIKE else claims.OPEN


def write(
    source: Path, store: Path, asked: dict[str, Any], timing: Path, out: Path, *, resamples: int
) -> Path:
    """The page, from what is stored.

    Args:
        source: the claims.
        store: folder of the stored runs.
        asked: which models there are of each kind of data, how many dialogues, and the command.
        timing: a stored run of `benchmarks/overhead.py`.
        out: folder of the page.
        resamples: of the bootstrap.
    """
    page, name = claims.read(source, Bounds(**asked.get("bounds", {}))), source.stem
    kinds = kinds_of(page)
    models = {kind: stored(store, kind, asked[KINDS[kind].family]) for kind in kinds}
    dialogues = {
        kind: KINDS[kind].dialogues(asked["dialogues"]) if models[kind] else [] for kind in kinds
    }
    found = {
        kind: answered(each, dialogues[kind]) if each else None for kind, each in models.items()
    }
    for kind, each in found.items():
        if kind in FAMILIES and each is not None and not each.counted().any():
            raise InputError(
                f"Without the picture the models answer {KINDS[kind].title} as well as with it.\n"
                "Such models carry no claim; train them longer."
            )
    attention = looked(models[SCENES])
    kept = optima.stored(
        [
            setting.at(each.folder)
            for each in models.get(OPTIMUM, ())
            for side in page.sides(OPTIMUM)
            for setting in side.settings
            if isinstance(setting, Optimum)
        ]
    )

    def evidence(part: claims.Part, claim: Claim) -> Evidence | str:
        if part.data == ATTENTION:
            return attention_evidence(claim, attention)
        if part.data == KEPT:
            return optima.evidence(claim, kept)
        there = found[part.data]
        title = KINDS[part.data].title
        return there.evidence(claim) if there is not None else f"no model for {title}"

    every = [(part, claim) for part in page.parts for claim in part.claims]
    verdicts = claims.judge(
        [claim for _, claim in every], [evidence(*each) for each in every], resamples=resamples
    )
    by_part: dict[str, list[Verdict]] = {}
    for (part, _), verdict in zip(every, verdicts, strict=True):
        by_part.setdefault(part.title, []).append(verdict)
    pictures = _draw(name, page, found[SCENES], attention, models[SCENES], out)
    lines = [
        f"<!-- Made by `python -m benchmarks.claims {name}`; edit {name}.toml. -->\n",
        f"# Claims: {page.title}\n",
        page.text.strip() + "\n",
        "## How this page was made\n",
        *dict.fromkeys(_made(page, models, found, asked, len(verdicts))),
        "",
        _counts(by_part),
    ]
    for part in page.parts:
        own = by_part[part.title]
        lines += [f"\n## {part.title}\n", part.text.strip() + "\n", claims.markdown(own)]
        if part.data == ATTENTION:
            lines += [f"\n{each}" for each in pictures[ATTENTION]]
        if why := claims.reasons(own):
            lines += ["\nWhere it does not hold:\n", why]
    if page.prefill is not None:
        lines.append(prefill(page.prefill, timing))
    if page.mappings is not None:
        lines += [f"\n## {page.mappings.title}\n", page.mappings.text.strip() + "\n"]
        lines += pictures[_MAPPINGS]
    if page.variants:
        lines += ["\n## What was trained\n", trainings(page, models)]
    for kind, there in found.items():
        if there is not None:
            sides, title = page.sides(kind), KINDS[kind].title
            lines += [f"\n## All settings, {title}\n", scores(there, models[kind], sides)]
            lines += [f"\n{each}" for each in pictures.get(kind, ())]
    if page.left_out:
        lines += ["\n## What is not put\n", "| of the paper | why |", "| --- | --- |"]
        lines += [f"| {what} | {why} |" for what, why in page.left_out]
    target = out / f"{name}.md"
    partial = target.with_suffix(".partial")
    partial.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    partial.replace(target)
    return target


def _made(
    page: Page,
    models: Table[str, Sequence[Asked]],
    found: Table[str, Answered | None],
    asked: dict[str, Any],
    count: int,
) -> list[str]:
    """What a reader must know to read the verdicts."""
    lines = [f"- Command: `{asked['command']}`"]
    for kind, each in models.items():
        there = found[kind]
        if there is None:
            lines.append(f"- {KINDS[kind].title}: no model; its claims are out of reach.")
            continue
        names = ", ".join(
            f"{one.name} ({one.facts['type']}, {one.facts['parameters'] / 1e6:.1f} M parameters, "
            f"{one.facts['layers']} decoder layers)"
            for one in each
        )
        dropped = sorted(frozenset(there.kind.tolist()) - there.learned)
        lines.append(
            f"- {KINDS[kind].title}: {len(each)} model{'s' * (len(each) > 1)}: {names}; "
            f"{len(there.data)} dialogues of the test split, {len(there.kind)} questions, "
            f"{int(there.counted().sum())} of them counted"
            + (f" (the full model did not learn {', '.join(dropped)})." if dropped else ".")
        )
        layers = min(one.facts["layers"] for one in each)
        lines.append(
            f"- A budget is a mean over the decoder's layers. With {layers} of them, one layer "
            f"that runs on all tokens is {100 / layers:.0f} % of all, in {_DEEP} it is "
            f"{100 / _DEEP:.0f} %: what drops tokens between layers is left with fewer in the last "
            "ones here than there (last columns below), or cannot meet the budget at all."
        )
        facts = there.stores[0].facts
        stale = "" if facts["foveate"] == fingerprints.code() else " (not the present one)"
        lines.append(
            f"- Code: foveate {facts['foveate']}{stale}, transformers {facts['transformers']}."
        )
    if page.variants:
        lines.append(
            "- Several trainings of a compressor on one model are averaged, as draws are: how much "
            "they differ is in the intervals as far as it makes models differ."
        )
    largest = max(map(len, models.values()))
    lines.append(
        "- The rule: the difference in accuracy on the same questions, by the paired bootstrap "
        "over dialogues (a won and a lost question that are made up among them)"
        + (
            ", with the doubt about the models added (Student's t over their differences)"
            if largest > 1
            else ""
        )
        + f"; p-values corrected by Holm for the {count} claims of this page together, fewer those "
        f"out of reach. It *holds* or is *reversed* below a corrected p of {claims.SURE}, else it "
        "is *open*."
    )
    if largest == 1:
        lines.append(
            "- **One model**: what is sure here is sure of this model. Another training of it may "
            "differ by more than the intervals say."
        )
    return lines


def _counts(by_part: Table[str, Sequence[Verdict]]) -> str:
    lines = [
        f"| | {' | '.join(claims.WORDS)} |",
        "| --- | " + " | ".join("---" for _ in claims.WORDS) + " |",
    ]
    total: Counter[str] = Counter()
    for title, each in by_part.items():
        own = Counter(verdict.word for verdict in each)
        total += own
        lines.append(f"| {title} | {' | '.join(str(own[word]) for word in claims.WORDS)} |")
    lines.append(f"| **all** | {' | '.join(f'**{total[word]}**' for word in claims.WORDS)} |")
    return "\n".join(lines)


def _draw(
    name: str,
    page: Page,
    found: Answered | None,
    attention: dict[str, dict[str, Any]],
    models: Sequence[Asked],
    out: Path,
) -> dict[str, list[str]]:
    """The pictures, saved beside the page; what shows them there."""
    out.mkdir(parents=True, exist_ok=True)
    shown: dict[str, list[str]] = {SCENES: [], ATTENTION: [], _MAPPINGS: []}

    def kept(kind: str, what: str, caption: str) -> Path:
        shown[kind].append(f"![{caption}]({name}-{what}.png)\n")
        return out / f"{name}-{what}.png"

    if found is not None and (figure := curves(found, page)) is not None:
        figure.savefig(
            kept(SCENES, "budgets", "Accuracy over budgets; bars: 95 % of the difference to full"),
            dpi=_DPI,
        )
    if page.mappings is not None and models:
        caption = "Scenes and their P: a row for each kept token, a column for each of the scene's"
        target = kept(_MAPPINGS, "mappings", caption)
        shutil.copyfile(models[0].folder / _MAPPINGS, target)
    if attention:
        first = models[0].folder
        captions = {
            "layers": "Two scenes, and what CLS gives each patch in every layer of the tower",
            "scenes": "Other scenes, and what CLS gives each patch in the layer that is read",
        }
        for what, caption in captions.items():
            shutil.copyfile(first / f"{what}.png", kept(ATTENTION, f"cls-{what}", caption))
        figure = cls_attention.curves(attention)
        caption = "How concentrated CLS's attention is; bands: the middle nine tenths of the scenes"
        figure.savefig(kept(ATTENTION, "cls-curves", caption), dpi=_DPI)
    return shown


def _known(folder: Path) -> str:
    return ", ".join(sorted(each.stem for each in folder.glob("*.toml"))) or "none"


app = typer.Typer(add_completion=False)


@app.command()
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
    timing: Annotated[Path, typer.Option(help="Stored prefill times.")] = Path(
        "benchmarks/results/cpu-deep.json"
    ),
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
    noted, source = store / name / "asked.json", folder / f"{name}.toml"
    try:
        if not source.is_file():
            raise InputError(f"No claims {source}.\nExpected one of {_known(folder)}.")
        if from_store:
            if not noted.is_file():
                raise InputError(f"{noted.parent} holds no run.\nRun it without --from-store.")
            asked = json.loads(noted.read_text())
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
                                Source(place),
                                dialogues,
                                folder_of,
                                batch,
                                progress,
                            )
            if only:
                return
            _write(noted, asked)
        typer.echo(write(source, store / name, asked, timing, out, resamples=resamples))
    except FoveateError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    app()
