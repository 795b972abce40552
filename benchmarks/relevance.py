r"""Does the first layer look at what an answer comes from, and which layer does?

    python -m benchmarks.relevance                               # on the shipped model
    python -m benchmarks.relevance --from-store                  # the page alone, nothing runs

Measures how much each decoder layer's attention has in common with relevance: what the
explainability compressor is told, and what it is to predict. The page is `docs/relevance.md`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
import typer
from torch import Tensor

from benchmarks.pages import errors_told, note
from foveate import relevance
from foveate.adapters import adapter_for
from foveate.attach import attach
from foveate.cli.loading import Source
from foveate.compressor import DecoderMethod, Reads, VisualTokens
from foveate.errors import InputError
from foveate.evaluation.answering import Batch
from foveate.evaluation.data import Dialogue, from_reference
from foveate.mapping import Mapping as P
from foveate.methods.relevance import observed
from foveate.relevance import Rule
from foveate.training.relevance import label, overlap

DOCS = Path(__file__).parents[1] / "docs"
SHARE = 0.1  # the most relevant tokens that a ranking should find
RULES = {"gradient": Rule(), "gradient, ReLU": Rule(relu=True), "mean": Rule(weighting="mean")}


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
    if not maps["mean"]:
        raise InputError(
            f"The model answers none of the {len(dialogues)} first questions right.\n"
            "Relevance is asked of right answers: take more scenes, or train the model longer."
        )
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


def page(seen: Mapping[str, Any]) -> str:
    """The page, from what is stored."""
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
    mass = ", ".join(f"{seen['mass'][name]:.2f} ({name})" for name in RULES)
    return "\n".join(
        [
            "<!-- Made by `python -m benchmarks.relevance`; edit that file. -->",
            "",
            "# Relevance: which layer looks at what an answer comes from",
            "",
            "The explainability compressor (arXiv 2506.01097) learns to predict which tokens an "
            "answer will come from (*relevance*) out of the attention that the first decoder layer "
            "would give, from the question's tokens to the picture's, averaged over heads and "
            "tokens. This page asks of the reference model whether that attention holds what is to "
            "be predicted. What the net makes of it, and what another makes that is told the "
            "tokens and words themselves, is on [the page of the paper's claims]"
            "(claims/explainability.md).",
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
        ]
    )


app = typer.Typer(add_completion=False)


@app.command()
@errors_told()
def main(
    count: Annotated[int, typer.Option(help="Validation scenes.", min=2)] = 100,
    store: Annotated[Path, typer.Option(help="Folder of what is measured.")] = Path(
        "output/relevance"
    ),
    out: Annotated[Path, typer.Option(help="Folder of the page.")] = DOCS,
    from_store: Annotated[
        bool, typer.Option("--from-store", help="The page of the last run; nothing runs.")
    ] = False,
) -> None:
    """Look, and write the page."""
    seen = store / "looked.json"
    if not from_store:
        model, processor = Source("reference").load()
        note(seen, looks(model, processor, from_reference(count, "validation")))
    if not seen.is_file():
        raise InputError(f"{seen} does not exist.\nRun it first, without --from-store.")
    target = out / "relevance.md"
    target.write_text(page(json.loads(seen.read_text())))
    typer.echo(str(target))


if __name__ == "__main__":
    app()
