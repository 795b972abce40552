r"""Why does predicting relevance fail on the reference model, and what does better?

    python -m benchmarks.relevance                               # on the shipped model
    python -m benchmarks.relevance --from-store                  # the page alone, nothing runs

Measures how much each decoder layer's attention has in common with relevance, trains the published
net and others on what the model answers right, and asks all of them the same test questions. All of
it goes on where it was interrupted. The page is `docs/relevance.md`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
import typer
from rich.progress import Progress
from torch import Tensor

from benchmarks.discrimination import Found
from benchmarks.pages import ASKED, errors_told, last_run, note
from foveate import relevance, saving
from foveate.adapters import adapter_for
from foveate.attach import attach
from foveate.cli.loading import Source
from foveate.compressor import DecoderMethod, Reads, VisualTokens
from foveate.evaluation.answering import FULL, Batch
from foveate.evaluation.asking import Group
from foveate.evaluation.compare import ANSWERS, answers
from foveate.evaluation.data import Dialogue, from_reference
from foveate.evaluation.settings import Setting, expand
from foveate.evaluation.store import Store
from foveate.mapping import Mapping as P
from foveate.methods.relevance import Relevance, observed
from foveate.methods.seek import Seek
from foveate.predicting import RelevancePredictor
from foveate.relevance import Rule
from foveate.training import data as training_data
from foveate.training.learning import FOLDER
from foveate.training.pairs import Pairs
from foveate.training.relevance import Settings, label, overlap, train

DOCS = Path(__file__).parents[1] / "docs"
BUDGETS = (0.5, 0.25, 0.1, 0.05)
SHARE = 0.1  # the most relevant tokens that a ranking should find
BESIDE = ("uniform", "cover", "fastv")
GRADIENT, RELU, MEAN = Rule(), Rule(relu=True), Rule(weighting="mean")
RULES = {"gradient": GRADIENT, "gradient, ReLU": RELU, "mean": MEAN}


@dataclasses.dataclass(frozen=True)
class Variant:
    """One net that predicts relevance.

    Attributes:
        says: what it is, in the page.
        method: its fields.
        rule: its labels.
        recipe: what differs from the published `Settings`.
        many: whether it learns from all training scenes, or from the first `FEW`.
    """

    says: str
    method: RelevancePredictor
    rule: Rule
    recipe: Mapping[str, Any]
    many: bool = False


IMAGES = ("image",)
# A twentieth of the published weights: what it is told decides, not its size.
_NARROW: dict[str, Any] = {"channels": (32, 64, 64), "kinds": IMAGES}
_FAST: dict[str, Any] = {"epochs": 12, "batch": 64, "rate": 1.5e-3, "schedule": "cosine"}
_SEEK = Seek(inner=128, small=64, kinds=IMAGES)
FEW = 512  # gradient labels take a backward pass for each word of an answer
VARIANTS = {
    "published": Variant(
        "first layer's attention, gradient labels", Relevance(**_NARROW), GRADIENT, _FAST
    ),
    "published-relu": Variant(
        "first layer's attention, gradient labels with ReLU", Relevance(**_NARROW), RELU, _FAST
    ),
    "published-mean": Variant(
        "first layer's attention, mean labels", Relevance(**_NARROW), MEAN, _FAST
    ),
    "published-many": Variant(
        "the same, more scenes", Relevance(**_NARROW), MEAN, _FAST | {"epochs": 5}, many=True
    ),
    "seek-gradient": Variant(
        "tokens and words, gradient labels", dataclasses.replace(_SEEK, spread=False), GRADIENT,
        _FAST,
    ),
    "seek-few": Variant(
        "tokens and words, mean labels", dataclasses.replace(_SEEK, spread=False), MEAN, _FAST
    ),
    "seek-top": Variant(
        "tokens and words, mean labels, more scenes", dataclasses.replace(_SEEK, spread=False),
        MEAN, _FAST, many=True,
    ),
    "seek": Variant(
        "tokens and words, mean labels, picked far apart and the rest merged (`seek`)", _SEEK,
        MEAN, _FAST, many=True,
    ),
}  # fmt: skip


# ---------------------------------------------------------------- what each layer looks at


@dataclasses.dataclass(frozen=True)
class _Looking(DecoderMethod):
    """Keeps everything, and notes what each layer's question and last token look at."""

    total: int = 1
    noted: list[tuple[Tensor, Tensor]] = dataclasses.field(default_factory=list)
    reads: ClassVar[frozenset[Reads]] = frozenset({Reads.AHEAD})

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(range(self.total))

    def __call__(self, tokens: VisualTokens, keep: int | None) -> P:
        assert tokens.ahead is not None
        last = torch.tensor([tokens.ahead.last])
        self.noted.append((observed(tokens), tokens.ahead.received(last)))
        return P.identity(tokens.n)


def looks(model: Any, processor: Any, dialogues: Sequence[Dialogue]) -> dict[str, Any]:
    """What each layer's attention has in common with the relevance of first questions.

    Returns:
        "overlap": of each rule, of each layer, [question, last token]: the share of the most
        relevant tokens that it looks at most. "mass": of each rule, the share of relevance in
        them. "places": of each rule, the overlap of the other dialogues' mean label, which knows
        neither picture nor question.
    """
    total = len(adapter_for(model).decoder_layers)
    sums: dict[str, Any] = {name: [[[], []] for _ in range(total)] for name in RULES}
    maps: dict[str, list[Tensor]] = {name: [] for name in RULES}
    for each in dialogues:
        batch = Batch(model, processor, [each], [each.load()], frozenset(), 16)
        inputs = batch.inputs([0], 0, [[]])
        said = relevance.own_answers(model, inputs)
        if not each.turns[0].right(processor.batch_decode(said, skip_special_tokens=True)[0]):
            continue
        seen = _Looking(total=total)
        with torch.no_grad(), attach(model, seen, processor=processor, _force=True):
            model(**inputs, use_cache=False)
        for name, rule in RULES.items():
            (found,) = relevance.explain(model, inputs, said, rule=rule)
            maps[name].append(found)
            for layer, pair in enumerate(seen.noted):
                for row, values in enumerate(pair):
                    sums[name][layer][row].append(overlap(values, found, SHARE))
    result: dict[str, Any] = {"questions": len(maps["mean"]), "overlap": {}}
    result["mass"], result["places"] = {}, {}
    for name, found in maps.items():
        mean = [[sum(row) / len(row) for row in layer] for layer in sums[name]]
        result["overlap"][name] = mean
        labels = torch.stack([label(each) for each in found])
        top = labels.topk(round(SHARE * labels.shape[1]), -1).values.sum(-1)
        result["mass"][name] = float(top.mean())
        others = [labels.sum(0) - own for own in labels]
        places = [overlap(o, each, SHARE) for o, each in zip(others, found, strict=True)]
        result["places"][name] = sum(places) / len(places)
    return result


# ---------------------------------------------------------------- what can be learned


def learn(store: Path, model: Any, processor: Any, count: int, held: int) -> None:
    """Train every variant that is not there yet."""
    learned = training_data.examples("scenes", count, 0)
    validation = from_reference(held, "validation")
    for name, variant in VARIANTS.items():
        if (store / name / FOLDER / saving.FILE).is_file():
            continue
        typer.echo(variant.says)
        pairs = Pairs(model, processor, store / "pairs", variant.method, rule=variant.rule)
        scenes = learned if variant.many else learned[:FEW]
        pairs.fill([*scenes, *validation])
        train(
            variant.method,
            model,
            pairs.read(scenes),
            store / name,
            Settings(**variant.recipe),
            validation=pairs.read(validation),
            tensorboard=False,
            facts={"source": "scenes", "dialogues": len(scenes), "rule": f"{variant.rule}"},
        )


def trained(runs: Path) -> dict[str, Variant]:
    """The variants that are there."""
    return {k: v for k, v in VARIANTS.items() if (runs / k / FOLDER / saving.FILE).is_file()}


def groups(runs: Path) -> dict[str, tuple[Setting, ...]]:
    """Name and budget -> settings: every variant that is there, and what is not trained."""
    found = {}
    for name in trained(runs):
        for (setting,) in expand([str((runs / name / FOLDER).resolve())], BUDGETS):
            found[f"{name} {setting.keep}"] = (setting,)
    for each in expand(BESIDE, BUDGETS):
        found[f"{each[0].label} {each[0].keep}"] = tuple(each)
    return found


# ---------------------------------------------------------------- the page


def page(found: Found, store: Path, facts: Mapping[str, Any], seen: Mapping[str, Any]) -> str:
    """The page, from what is stored."""
    full = found.right([FULL])
    assert full is not None
    asked, there = groups(store), trained(store)
    rows = [
        f"| | {' | '.join(RULES)} |",
        "| --- |" + " --- |" * len(RULES),
    ]
    for layer in range(len(seen["overlap"]["mean"])):
        for row, says in enumerate(("question", "last token")):
            cells = [f"{seen['overlap'][name][layer][row]:.2f}" for name in RULES]
            rows.append(f"| layer {layer + 1}, {says} | {' | '.join(cells)} |")
    places = [f"{seen['places'][name]:.2f}" for name in RULES]
    rows.append(f"| places alone, whatever is shown and asked | {' | '.join(places)} |")
    rows.append("| chance |" + f" {SHARE:.2f} |" * len(RULES))

    heads = [f"{100 * keep:g} % (minus full [95 %])" for keep in BUDGETS]
    lines = [
        f"| | pairs | found at 10 % | {' | '.join(heads)} |",
        "| --- | --- | --- |" + " --- |" * len(BUDGETS),
    ]

    def row_of(name: str, says: str, pairs: str, overlaps: str) -> str:
        cells = []
        for keep in BUDGETS:
            right = found.right([each.key for each in asked[f"{name} {keep}"]])
            if right is None:  # also what this budget is out of reach of
                cells.append("not asked")
                continue
            (value, low, high), _ = found.apart(right, full)
            cells.append(f"{found.accuracy(right):.3f} ({value:+.3f} [{low:+.3f}, {high:+.3f}])")
        return f"| {says} | {pairs} | {overlaps} | {' | '.join(cells)} |"

    for name, variant in there.items():
        record = json.loads((store / name / FOLDER / saving.FILE).read_text())["training"]
        share = record["measured"]["overlap at 10 %"]
        lines.append(row_of(name, variant.says, str(record["data"]["pairs"]), f"{share:.2f}"))
    lines += [row_of(name, f"`{name}`", "", "") for name in BESIDE]
    gains = []
    for better, worse in (
        ("seek", "uniform"),
        ("seek", "cover"),
        ("seek", "seek-top"),
        ("seek-top", "seek-few"),
        ("seek-few", "seek-gradient"),
        ("seek-few", "published-mean"),
        ("published-many", "published-mean"),
        ("published", "uniform"),
    ):
        for keep in BUDGETS:
            a, b = (
                found.right([each.key for each in asked[f"{name} {keep}"]])
                if f"{name} {keep}" in asked
                else None
                for name in (better, worse)
            )
            if a is None or b is None:
                continue
            (value, low, high), p = found.apart(a, b)
            named = [VARIANTS[n].says if n in VARIANTS else f"`{n}`" for n in (better, worse)]
            gains.append(
                f"| {named[0]} | {named[1]} | {100 * keep:g} % | "
                f"{value:+.3f} [{low:+.3f}, {high:+.3f}] | {p:.2g} |"
            )
    mass = ", ".join(f"{seen['mass'][name]:.2f} ({name})" for name in RULES)
    return "\n".join(
        [
            "<!-- Made by `python -m benchmarks.relevance`; edit that file. -->",
            "",
            "# Relevance: what can be predicted before the first layer",
            "",
            "The explainability compressor (arXiv 2506.01097) learns to predict which tokens an "
            "answer will come from (*relevance*) out of the attention that the first decoder layer "
            "would give, from the question's tokens to the picture's, averaged over heads and "
            "tokens. This page asks of the reference model whether that attention holds what is to "
            "be predicted, and whether something else before the first layer does.",
            "",
            "## Which layer looks at what the answer comes from",
            "",
            f"{seen['questions']} first questions about validation scenes that the model answers "
            f"right. Of the {100 * SHARE:g} % most relevant tokens, the share that is among the "
            f"{100 * SHARE:g} % most looked at, by the question's tokens or the prompt's last one, "
            "mean over heads. Relevance is that of `foveate.relevance.explain` with its three "
            "weightings.",
            "",
            *rows,
            "",
            f"Of the labels' mass, {mass} lies in the {100 * SHARE:g} % most relevant tokens: "
            "where that is nearly all, a label ranks nothing behind these.",
            "",
            "## What was learned, and what it brings",
            "",
            "`seek` is told the projected tokens and the question's words. Nets that are told the "
            "first layer's attention have 32, 64 and 64 channels here, not the published five "
            f"layers up to 512, to save time. {facts['dialogues']} test dialogues, "
            f"{int(found.asked.sum())} questions, full model {found.accuracy(full):.3f}; one seed. "
            "*Pairs* are those that a net was trained on, *found at 10 %* the share of the most "
            "relevant validation tokens that it finds, by its own labels' rule. In brackets: the "
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
@errors_told()
def main(
    count: Annotated[int, typer.Option(help="Training scenes.", min=10)] = 2816,
    held: Annotated[int, typer.Option(help="Validation scenes.", min=1)] = 250,
    looked: Annotated[int, typer.Option(help="Of them, where layers are looked at.", min=2)] = 100,
    dialogues: Annotated[int, typer.Option(help="Test scenes.", min=2)] = 300,
    store: Annotated[Path, typer.Option(help="Folder of runs and answers.")] = Path(
        "output/relevance"
    ),
    out: Annotated[Path, typer.Option(help="Folder of the page.")] = DOCS,
    from_store: Annotated[
        bool, typer.Option("--from-store", help="The page of the last run; nothing runs.")
    ] = False,
) -> None:
    """Look, train, ask, and write the page."""
    seen = store / "looked.json"
    if from_store:
        facts = last_run(store)
        data = from_reference(facts["dialogues"])
    else:
        facts = {"count": count, "held": held, "looked": looked, "dialogues": dialogues}
        data = from_reference(dialogues)
        model, processor = Source("reference").load()
        if not seen.is_file():
            found_there = looks(model, processor, from_reference(looked, "validation"))
            seen.parent.mkdir(parents=True, exist_ok=True)
            seen.write_text(json.dumps(found_there) + "\n")
        learn(store, model, processor, count, held)
        asked = [Group(each) for each in groups(store).values()]
        with Progress(transient=True) as progress:
            answers(
                model, processor, data, asked, store / "answers", batch_size=25,
                progress=progress,
            )  # fmt: skip
        note(store / ASKED, facts)
    found = Found([Store.existing(store / "answers" / ANSWERS)], data)
    text = page(found, store, facts, json.loads(seen.read_text()))
    (out / "relevance.md").write_text(text)
    typer.echo(str(out / "relevance.md"))


if __name__ == "__main__":
    app()
