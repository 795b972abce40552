"""A page of claims, from what is stored."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping as Table
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.claims import cls_attention, optima
from benchmarks.claims.again import taken_over
from benchmarks.claims.kinds import FAMILIES, KINDS, OPTIMUM, SCENES, kinds_of
from benchmarks.claims.prefill import prefill
from benchmarks.claims.running import DPI, MAPPINGS, RELEVANCES
from benchmarks.claims.stored import Asked, answered, attention_evidence, looked, stored
from benchmarks.claims.tables import DEEP, curves, scores, trainings
from benchmarks.packed import SUFFIX
from foveate.errors import InputError
from foveate.evaluation import claims, fingerprints, verdicts
from foveate.evaluation.claims import ATTENTION, KEPT, Claim, Page
from foveate.evaluation.optimum import Optimum
from foveate.evaluation.variants import Bounds
from foveate.evaluation.verdicts import Answered, Evidence, Verdict

RESULTS = Path(__file__).parents[1] / "results"


def write(
    source: Path,
    store: Path,
    asked: dict[str, Any],
    timing: Path | None,
    out: Path,
    *,
    resamples: int,
) -> Path:
    """The page, from what is stored.

    Args:
        source: the claims.
        store: folder of the stored runs.
        asked: which models there are of each kind of data, how many dialogues, and the command.
        timing: a stored run of `benchmarks/overhead.py`; that of the page's budget if None.
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
    judged = verdicts.judge(
        [claim for _, claim in every], [evidence(*each) for each in every], resamples=resamples
    )
    by_part: dict[str, list[Verdict]] = {}
    for (part, _), verdict in zip(every, judged, strict=True):
        by_part.setdefault(part.title, []).append(verdict)
    pictures = _draw(name, page, found[SCENES], attention, models, out)
    lines = [
        f"<!-- Made by `python -m benchmarks.claims {name}`; edit {name}.toml. -->\n",
        f"# Claims: {page.title}\n",
        page.text.strip() + "\n",
        "## How this page was made\n",
        *dict.fromkeys(_made(page, models, found, asked, len(judged))),
        *_packed(out / f"{name}{SUFFIX}"),
        "",
        _counts(by_part, {part.title: _models_of(part.data, models) for part in page.parts}),
    ]
    for part in page.parts:
        own = by_part[part.title]
        lines += [f"\n## {part.title}\n", part.text.strip() + "\n", verdicts.markdown(own)]
        if part.data == ATTENTION:
            lines += [f"\n{each}" for each in pictures[ATTENTION]]
        if why := verdicts.reasons(own):
            lines += ["\nWhere it does not hold:\n", why]
    if page.prefill is not None:
        lines.append(prefill(page.prefill, timing or RESULTS / page.prefill.file))
    if page.mappings is not None:
        lines += [f"\n## {page.mappings.title}\n", page.mappings.text.strip() + "\n"]
        lines += pictures[MAPPINGS]
    for each in page.relevances:
        lines += [f"\n## {each.title}\n", each.text.strip() + "\n"]
        lines += pictures.get(_relevances(each.data), ["No model for these yet."])
    if page.variants:
        lines += ["\n## What was trained\n", trainings(page, models)]
    for kind, there in found.items():
        if there is not None and page.sides(kind):
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
            lines.append(f"- {KINDS[kind].title}: no model was asked; its claims are out of reach.")
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
            f"that runs on all tokens is {100 / layers:.0f} % of all, in {DEEP} it is "
            f"{100 / DEEP:.0f} %: what drops tokens between layers is left with fewer in the last "
            "ones here than there (last columns below), or cannot meet the budget at all."
        )
        facts = there.stores[0].facts
        stale = "" if facts["foveate"] == fingerprints.code() else " (not the present one)"
        lines.append(
            f"- Code: foveate {facts['foveate']}{stale}, transformers {facts['transformers']}."
            + taken_over([one.folder for one in each])
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
            ", with the doubt about the models added: Student's t over their differences, where "
            "all claims on the same models together tell how much models differ (a variance is "
            "drawn towards those of the others as far as they are alike, Smyth 2004)"
            if largest > 1
            else ""
        )
        + f"; p-values corrected by Holm for the {count} claims of this page together, fewer those "
        f"out of reach. It *holds* or is *reversed* below a corrected p of {verdicts.SURE}, else "
        "it is *open*. Of a claim to keep a share of the full model's score the difference is to "
        "that share of it; one to lose less than so much holds if the difference lies above minus "
        "that. The least p that the resamples can give, with so many claims, stands in many rows."
    )
    if largest > 1:
        lines.append(
            "- *These alone* is the verdict as if the models that were asked were all there are: "
            "the dialogues' doubt by itself, corrected likewise. What holds so and is *open* is "
            "sure of these models' mean; they differ too much to say what another would do."
        )
    if alone := [KINDS[kind].title for kind, each in models.items() if len(each) == 1]:
        of = f" for {', '.join(alone)}" if largest > 1 else ""
        lines.append(
            f"- **One model**{of}: what is sure there is sure of this model. Another training of "
            "it may differ by more than the intervals say."
        )
    return lines


def _packed(file: Path) -> list[str]:
    """Where the answers are, if they lie beside the page."""
    if not file.is_file():
        return []
    command = f"python -m benchmarks.claims {file.name.removesuffix(SUFFIX)} --from-store"
    return [
        f"- What this page was made of lies beside it in the repository, in `{file.name}`; "
        f"`{command}` makes it again without a run."
    ]


def _models_of(data: str, models: Table[str, Sequence[Asked]]) -> int:
    """How many models a part of a page is judged on."""
    kind = {ATTENTION: SCENES, KEPT: OPTIMUM}.get(data, data)
    return len(models.get(kind, ()))


def _counts(by_part: Table[str, Sequence[Verdict]], models: Table[str, int]) -> str:
    """Verdicts by part, added up over parts that are judged on as many models."""
    # Of one model both are the same.
    alone = (verdicts.HOLDS, verdicts.REVERSED) if max(models.values(), default=0) > 1 else ()
    head = ["models", *verdicts.WORDS, *(f"these alone: {word}" for word in alone)]
    lines = [f"| | {' | '.join(head)} |", "| --- |" + " --- |" * len(head)]
    totals: dict[int, Counter[tuple[bool, str]]] = {}

    def row(title: str, count: int, own: Counter[tuple[bool, str]]) -> list[str]:
        judged = [own[False, word] for word in verdicts.WORDS]
        return [title, *map(str, (count, *judged, *(own[True, word] for word in alone)))]

    for title, each in by_part.items():
        own = Counter((False, verdict.word) for verdict in each)
        own.update((True, verdict.alone) for verdict in each)
        totals.setdefault(models[title], Counter()).update(own)
        lines.append(f"| {' | '.join(row(title, models[title], own))} |")
    for count, total in sorted(totals.items(), reverse=True):
        if count:  # no sum over what was not asked
            cells = " | ".join(f"**{cell}**" for cell in row("all", count, total))
            lines.append(f"| {cells} |")
    return "\n".join(lines)


def _draw(
    name: str,
    page: Page,
    found: Answered | None,
    attention: dict[str, dict[str, Any]],
    every: Table[str, Sequence[Asked]],
    out: Path,
) -> dict[str, list[str]]:
    """The pictures, saved beside the page; what shows them there."""
    out.mkdir(parents=True, exist_ok=True)
    models = every[SCENES]
    shown: dict[str, list[str]] = {SCENES: [], ATTENTION: [], MAPPINGS: []}

    def kept(kind: str, what: str, caption: str) -> Path:
        shown.setdefault(kind, []).append(f"![{caption}]({name}-{what}.png)\n")
        return out / f"{name}-{what}.png"

    if found is not None and (figure := curves(found, page)) is not None:
        figure.savefig(
            kept(SCENES, "budgets", "Accuracy over budgets; bars: 95 % of the difference to full"),
            dpi=DPI,
        )
    if page.mappings is not None and models:
        caption = "Scenes and their P: a row for each kept token, a column for each of the scene's"
        target = kept(MAPPINGS, "mappings", caption)
        shutil.copyfile(models[0].folder / MAPPINGS, target)
    for each in page.relevances:
        if every[each.data]:
            caption = (
                f"Relevance, {KINDS[each.data].title}: what it is, what is predicted, and kept"
            )
            target = kept(_relevances(each.data), _relevances(each.data), caption)
            shutil.copyfile(every[each.data][0].folder / RELEVANCES, target)
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
        figure.savefig(kept(ATTENTION, "cls-curves", caption), dpi=DPI)
    return shown


def _relevances(data: str) -> str:
    """What pictures of relevance go by."""
    return f"relevance-{data}"
