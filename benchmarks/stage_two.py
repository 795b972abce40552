r"""What does Polymorphic's second stage lose by: the layer it drops at, the choice, the merging?

    python -m benchmarks.stage_two                              # on the shipped model
    python -m benchmarks.stage_two --from-store                 # the page alone, nothing runs

The same number of tokens is dropped at the same layers, chosen by stage 2's raters, at random,
evenly, and by what is known of the drawn scenes. Answers are stored as they come: interrupted, the
same command goes on. The page is `docs/claims/polymorphic-stage-two.md`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from collections.abc import Mapping as Table
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
import typer
from rich.progress import Progress
from torch import Tensor

from benchmarks.discrimination import Found
from benchmarks.pages import ASKED, errors_told, last_run, note
from foveate import ops
from foveate.adapters import adapter_for
from foveate.attach import Item, attach
from foveate.cli.loading import Source
from foveate.cli.seeds import named
from foveate.compressor import (
    Compressor,
    DecoderMethod,
    Reads,
    Step,
    VisualTokens,
    resolve_keep,
)
from foveate.evaluation import stats
from foveate.evaluation.answering import FULL, Batch
from foveate.evaluation.asking import Group
from foveate.evaluation.compare import ANSWERS, answers
from foveate.evaluation.data import Dialogue, from_reference
from foveate.evaluation.oracle import asked_about, covered, ground_truth, preferred
from foveate.evaluation.settings import Keep, Setting
from foveate.evaluation.store import Store
from foveate.mapping import Mapping
from foveate.methods.polymorphic import Merge, Polymorphic, Prune
from foveate.methods.relevance import observed

DOCS = Path(__file__).parents[1] / "docs" / "claims"
PAGE = "polymorphic-stage-two.md"
BUDGETS = {"33.3 %": 192 / 576, "22.2 %": 128 / 576}  # as the paper's Table 6 has them
DRAWS = 3
SHARE = 0.25  # left by a single drop, and the highest of a ranking
SMALL = BUDGETS["22.2 %"]
LOOKS = "looks"  # what stored overlaps go by

Settings = tuple[Setting, ...]


# ---------------------------------------------------------------- the same drops, chosen otherwise


@dataclasses.dataclass(frozen=True)
class Dropping(Prune):
    """Stage 2 with all places for the tokens of highest a_i, and the others dropped."""

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        m = tokens.n if keep is None else keep
        return Mapping.select(ops.top(self.rated(tokens), m).sort().values, tokens.n)


@dataclasses.dataclass(frozen=True)
class Staged(Polymorphic):
    """The first stage with its published budget, and another second one behind it."""

    inside: DecoderMethod = dataclasses.field(default_factory=Prune)

    @property
    def parts(self) -> tuple[Compressor, ...]:
        return Merge(self.neighbours), self.inside

    def budgets(self, n: int, keep: int | None, total: int) -> tuple[int | None, ...]:
        return Polymorphic().budgets(n, keep, total)


@dataclasses.dataclass(frozen=True)
class Chosen(Setting):
    """A first stage and drops in the decoder, where a rule may choose what stays.

    Attributes:
        compressor: says where and how many; and what, without a rule.
        rule: one of `RULES`; none leaves the choice to the compressor.
    """

    method: str = "polymorphic"
    compressor: Compressor = dataclasses.field(default_factory=Staged)
    rule: str = ""

    @property
    def key(self) -> str:
        return json.dumps([self.rule, self.drawn, self.keep, repr(self.compressor)])

    def resolved(self) -> tuple[Compressor, Keep | None]:
        return self.compressor, self.keep

    @property
    def options(self) -> dict[str, Any]:
        return {"method": self.compressor, "keep": self.keep}

    def told(
        self,
        model: Any,
        dialogues: Sequence[Dialogue],
        turn: int,
        inputs: Callable[[], dict[str, Any]],
        max_new_tokens: int,
    ) -> list[list[list[Mapping]]] | None:
        """The first stage's own mapping, and at each drop as many tokens as are dropped there."""
        if not self.rule:
            return None
        with torch.no_grad(), self.attach(model) as run:
            model(**inputs(), use_cache=False)
        found: list[list[list[Mapping]]] = [[] for _ in dialogues]
        for item in run.items:
            worth = RULES[self.rule](dialogues[item.row], turn, item, dict(self.drawn)["seed"])
            (_, first), *drops = item.steps
            said, alive = [item.answers[0]], first.anchors.cpu()
            for _, drop in drops:
                said.append(preferred(worth[alive], drop.m))
                alive = alive[said[-1].anchors]
            found[item.row].append(said)
        return found


def things(dialogue: Dialogue, turn: int, item: Item) -> list[Tensor]:
    """Which of a picture's slots show each object that the turn's question is about."""
    return [_slots(mask, item) for mask in asked_about(dialogue, turn)]


def _slots(mask: Any, item: Item) -> Tensor:
    return torch.cat([covered(mask, grid) for grid in item.grids])


def at_random(dialogue: Dialogue, turn: int, item: Item, seed: int) -> Tensor:
    """A ranking of a picture's slots that is drawn by its scene and the seed."""
    assert dialogue.scene is not None
    drawn = torch.Generator().manual_seed(DRAWS * dialogue.scene[0] + seed)
    return torch.randperm(item.n, generator=drawn)


def _evenly(dialogue: Dialogue, turn: int, item: Item, seed: int) -> Tensor:
    return torch.zeros(item.n, dtype=torch.long)


def _objects(dialogue: Dialogue, turn: int, item: Item, seed: int) -> Tensor:
    return _slots(ground_truth(dialogue), item).long()


def _asked(dialogue: Dialogue, turn: int, item: Item, seed: int) -> Tensor:
    return sum(things(dialogue, turn, item), _objects(dialogue, turn, item, seed)).clamp(max=2)


# What each slot is worth: those worth most stay.
RULES: dict[str, Callable[[Dialogue, int, Item, int], Tensor]] = {
    "random": at_random,
    "even": _evenly,
    "objects": _objects,
    "asked": _asked,
}
MERGED, STATES, DROPPED = "published", "states", "raters"
RATERS = {MERGED: Prune(), STATES: Prune(raters="states"), DROPPED: Dropping()}
ALONE, ENTERING = "stage 1 alone", "stage 1, nothing dropped"
SAYS = {
    FULL: "the full model",
    ENTERING: "what stage 1 leaves for stage 2, nothing dropped inside",
    ALONE: "stage 1 alone with the budget of both",
    MERGED: "stage 2 as it is: raters choose, the others are merged",
    STATES: "the same, raters by the states that enter the layer",
    DROPPED: "raters choose, the others are dropped",
    "random": f"at random, the others dropped (mean of {DRAWS} draws)",
    "even": "evenly over the raster, the others dropped",
    "objects": "told which slots show an object, the others dropped",
    "asked": "told which objects are asked about, the others dropped",
}


def stage_two(keep: Keep, **where: Any) -> dict[str, Settings]:
    """Every way to choose, at the published layers or at those of `where`."""

    def settings(inside: Prune, rule: str = "", draws: int = 1) -> Settings:
        staged = Staged(inside=dataclasses.replace(inside, **where))
        seeds = ((("seed", seed),) for seed in range(draws))
        return tuple(Chosen("", keep, drawn=s, compressor=staged, rule=rule) for s in seeds)

    found = {name: settings(inside) for name, inside in RATERS.items()}
    draws = {rule: DRAWS if rule == "random" else 1 for rule in RULES}
    return found | {rule: settings(Dropping(), rule, draws[rule]) for rule in RULES}


def entering(keep: Keep) -> Settings:
    """What the first stage leaves, in all layers."""
    return (Chosen("", keep, compressor=Staged(inside=Prune(at=(1,), schedule=(1.0,)))),)


def as_published(keep: Keep) -> dict[str, Settings]:
    """At the published layers, and the first stage by itself."""
    alone = Setting("polymorphic", keep, fields=(("stages", "merge"),))
    return {ENTERING: entering(keep), ALONE: (alone,)} | stage_two(keep)


def single(layer: int) -> dict[str, Settings]:
    """One drop, before a layer, of what the first stage leaves at the smaller budget."""
    found = stage_two(SMALL, at=(layer,), schedule=(SHARE,))
    return {name: found[name] for name in (MERGED, DROPPED, "even", "asked")}


# ---------------------------------------------------------------- what a ranking finds


def _from_last(tokens: VisualTokens) -> Tensor:
    assert tokens.ahead is not None
    return tokens.ahead.received(torch.tensor([tokens.ahead.last]))


RANKINGS: dict[str, Callable[[VisualTokens], Tensor]] = {
    "raters, embeddings": Prune().rated,
    "raters, states": Prune(raters="states").rated,
    "attention of the question": observed,
    "attention of the last token": _from_last,
}
COLUMNS = [*RANKINGS, "at random"]


@dataclasses.dataclass(frozen=True)
class _Looking(DecoderMethod):
    """Keeps everything, and notes every ranking in every layer."""

    noted: list[list[Tensor]] = dataclasses.field(default_factory=list)
    reads: ClassVar[frozenset[Reads]] = Prune.reads | {Reads.AHEAD}

    def steps(self, n: int, keep: int | None, total: int) -> tuple[Step, ...]:
        return tuple(Step(layer, n) for layer in range(total))

    def layers_in(self, total: int) -> tuple[int, ...]:
        return tuple(range(total))

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        self.noted.append([ranked(tokens) for ranked in RANKINGS.values()])
        return Mapping.identity(tokens.n)


@torch.no_grad()
def look(model: Any, processor: Any, data: Sequence[Dialogue], store: Store, batch: int) -> None:
    """What the highest of each ranking have in common with what is asked, stored by dialogue.

    A record holds of each turn, layer by layer, what `seen` says of each ranking of the tokens that
    the first stage leaves; None where the question is about nothing that they show.
    """
    missing = [each for each in data if (LOOKS, each.name) not in store]
    for start in range(0, len(missing), batch):
        part = missing[start : start + batch]
        records: list[list[Any]] = [[None] * len(each.turns) for each in part]
        given = Batch(model, processor, part, [each.load() for each in part], frozenset(), 1)
        for turn in range(max(len(each.turns) for each in part)):
            rows = [i for i, each in enumerate(part) if len(each.turns) > turn]
            said = [store[FULL, part[row].name]["answers"][:turn] for row in rows]
            looking = _Looking()
            staged = Staged(inside=looking)
            with attach(model, staged, keep=SMALL, processor=processor) as run:
                model(**given.inputs(rows, turn, said), use_cache=False)
            for number, item in enumerate(run.items):
                dialogue, (_, first) = part[rows[item.row]], item.steps[0]
                left = (each[first.anchors] for each in things(dialogue, turn, item))
                asked = [each for each in left if each.any()]
                chance = at_random(dialogue, turn, item, 0)[first.anchors].float()
                layers = looking.noted[number :: len(run.items)]
                if asked:
                    records[rows[item.row]][turn] = [
                        [seen(ranks, asked) for ranks in (*layer, chance)] for layer in layers
                    ]
        for each, record in zip(part, records, strict=True):
            store.add(LOOKS, each.name, found=record)


def seen(ranks: Tensor, asked: Sequence[Tensor]) -> tuple[float, bool]:
    """Of the tokens that show one of `asked`, the share among the highest `SHARE` of a ranking.

    Returns:
        That share, and whether any of them has no token there at all.
    """
    highest = ops.top(ranks, resolve_keep(SHARE, len(ranks))).cpu()
    together = torch.stack(list(asked)).any(0)
    lost = any(not each[highest].any() for each in asked)
    return float(together[highest].sum() / together.sum()), lost


def overlaps(found: Found) -> tuple[int, Any]:
    """How many questions are about something that is left, and of them what `seen` says.

    Returns:
        Their number; (layers, rankings, 2, 3) means with their intervals.
    """
    (store,) = found.stores
    asked = [[turn for turn in store[LOOKS, each.name]["found"] if turn] for each in found.data]
    counts = np.array([float(len(each)) for each in asked if each])
    sums = np.array([np.sum(each, 0, dtype=float) for each in asked if each])
    means = np.apply_along_axis(lambda values: stats.difference(values, counts), 0, sums)
    return int(counts.sum()), np.moveaxis(means, 0, -1)


# ---------------------------------------------------------------- the page


HEAD = """<!-- Made by `python -m benchmarks.stage_two`; edit that file. -->

# What Polymorphic's second stage loses by

[The claims of *Polymorphic*](polymorphic.md) ask for its two stages as `polymorphic` has them. Here
the second is taken apart: where it drops, what it chooses, and whether it merges the rest. Model:
{model}, {layers} decoder layers, counted from 0, and {n} visual tokens. {dialogues} dialogues of
the test split, {questions} questions. Differences are paired, with their 95 % interval by the
bootstrap over dialogues; this is one model, and they are not corrected for being several. Code:
{foveate}, transformers {transformers}.

## The same drops, chosen otherwise

Is something lost because tokens are dropped before these layers, or because of which ones are? All
rows behind the third drop as many tokens before the same layers as `polymorphic` itself. What is
told knows the drawn scene: it is no method, but says what a choice could keep there. Where the
others are merged, some of the tokens that are left are clusters of them; else all are chosen ones.
"""
SINGLE = """## One drop, before one layer after the other

How does that change with the first layer that tokens are dropped before? Stage 1 leaves as many as
at {budget} % above, and one drop {share:g} % of these for all later layers. Behind each accuracy:
its difference from dropping nothing inside.
"""
LOOKED = """## What rankings find

Does a ranking know, before a layer, what is asked? Ranked are the tokens that stage 1 leaves at
{budget} %, all of which go on; {looked} questions are about something that they show. Attention is
that of the layer about to run, mean over heads. First: of the tokens that show what is asked about,
the share among the highest {share:g} % of a ranking.
"""
MISSED = """Second: the share of questions where one of the objects asked about has no token at all
among these {share:g} %.
"""


def page(found: Found, facts: Table[str, Any]) -> str:
    """The page, from what is stored."""
    (store,), layers = found.stores, facts["layers"]
    undropped = entering(SMALL)
    record = store[undropped[0].key, found.data[0].name]
    n = record["n"] // len(record["answers"])
    told = {**store.facts, **facts, "n": n, "share": 100 * SHARE, "budget": f"{100 * SMALL:.1f}"}
    lines = [HEAD.format(questions=int(found.asked.sum()), **told)]
    for budget, keep in BUDGETS.items():
        asked = {FULL: (), **as_published(keep)}
        lines += [f"A mean of {budget}: {schedule(keep, n, layers)}.", ""]
        lines += table(
            ["choice", "accuracy", "minus full", f"minus *{SAYS[DROPPED]}*"],
            [
                [SAYS[k], accuracy(found, s), gain(found, s, ()), gain(found, s, asked[DROPPED])]
                for k, s in asked.items()
            ],
        )
    every = [single(layer) for layer in range(1, layers)]
    cells = {
        name: [f"{accuracy(found, s[name])} {gain(found, s[name], undropped)}" for s in every]
        for name in every[0]
    }
    lines += [
        SINGLE.format(**told),
        *table(
            ["choice", *(f"before layer {layer}" for layer in range(1, layers))],
            [[SAYS[name], *each] for name, each in cells.items()],
        ),
    ]
    questions, means = overlaps(found)
    for number, text in enumerate((LOOKED, MISSED)):
        lines.append(text.format(looked=questions, **told))
        lines += table(
            ["before layer", *COLUMNS],
            [
                [str(layer), *(f"{mean:.2f} [{low:.2f}, {high:.2f}]" for mean, low, high in each)]
                for layer, each in enumerate(means[:, :, number])
            ],
        )
    return "\n".join(lines)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of Markdown."""
    cells = [heads, ["---"] * len(heads), *rows]
    return [*(f"| {' | '.join(each)} |" for each in cells), ""]


def schedule(share: float, n: int, layers: int) -> str:
    """What the published stages leave of a picture."""
    entered, after = Polymorphic().budgets(n, resolve_keep(share, n), layers)
    assert entered is not None
    left = [f"{s.keep} from layer {s.layer} on" for s in Prune().steps(entered, after, layers)]
    return f"stage 1 leaves {entered} of {n} tokens, stage 2 {', '.join(left)}"


def right(found: Found, settings: Settings) -> Any:
    """Right answers of each dialogue, a mean over draws; those of the full model for no setting."""
    return found.right([each.key for each in settings] or [FULL])


def accuracy(found: Found, settings: Settings) -> str:
    """As a cell of a table."""
    ours = right(found, settings)
    return "out of reach" if ours is None else f"{found.accuracy(ours):.3f}"


def gain(found: Found, settings: Settings, against: Settings) -> str:
    """The difference of two settings with its interval, as a cell."""
    ours, theirs = right(found, settings), right(found, against)
    if ours is None or theirs is None or settings == against:
        return ""
    (value, low, high), _ = found.apart(ours, theirs)
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


app = typer.Typer(add_completion=False)


@app.command()
@errors_told()
def main(
    model: Annotated[str, typer.Option(help="A shipped model, or a folder.")] = "reference",
    dialogues: Annotated[int, typer.Option(help="Test scenes.", min=2)] = 100,
    store: Annotated[Path, typer.Option(help="Folder of the answers.")] = Path("output/stage-two"),
    out: Annotated[Path, typer.Option(help="Folder of the page.")] = DOCS,
    batch: Annotated[int, typer.Option(help="Dialogues answered at a time.", min=1)] = 25,
    from_store: Annotated[
        bool, typer.Option("--from-store", help="The page of the last run; nothing runs.")
    ] = False,
) -> None:
    """Run what the page needs, and write it."""
    if from_store:
        facts = last_run(store)
        data = from_reference(facts["dialogues"])
    else:
        data = from_reference(dialogues)
        facts = {"model": next(iter(named([model]))), "dialogues": dialogues}
        loaded, processor = Source(model, dtype="float32").load()
        facts["layers"] = len(adapter_for(loaded).decoder_layers)
        ask(loaded, processor, data, facts["layers"], store, batch)
        note(store / ASKED, facts)
    out.mkdir(parents=True, exist_ok=True)
    (out / PAGE).write_text(page(Found([Store.existing(store / ANSWERS)], data), facts))
    typer.echo(str(out / PAGE))


def ask(
    model: Any, processor: Any, data: Sequence[Dialogue], layers: int, store: Path, batch: int
) -> None:
    """Everything that the page needs, stored."""
    rows = [as_published(keep) for keep in BUDGETS.values()]
    rows += [single(layer) for layer in range(1, layers)]
    groups = [Group(settings) for row in rows for settings in row.values()]
    with Progress(transient=True) as progress:
        asked = answers(model, processor, data, groups, store, batch_size=batch, progress=progress)
    reopened = Store(asked.store.path, asked.store.facts)
    try:
        look(model, processor, data, reopened, batch)
    finally:
        reopened.close()


if __name__ == "__main__":
    app()
