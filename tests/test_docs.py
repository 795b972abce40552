"""Documents that cannot fall behind the code."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import foveate
from foveate import card, catalog
from foveate.compressor import Grid, VisualTokens, resolve_keep
from foveate.evaluation import claims, verdicts

ROOT = Path(__file__).parents[1]
# Claims may be stated before anything was run for them: then they have no page.
CLAIMS = [
    path for path in sorted(ROOT.glob("docs/claims/*.toml")) if path.with_suffix(".md").is_file()
]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def script(name: str) -> ModuleType:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate, make_readme = script("generate"), script("make_readme")


def blocks(path: Path, language: str = "python") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)


# ---------------------------------------------------------------- methods


@pytest.mark.parametrize("name", catalog.BUILT_IN)
def test_a_methods_card_has_every_heading_in_order(name: str) -> None:
    found = card.sections(catalog.method_class(name))
    assert list(found) == list(card.HEADINGS)
    assert all(text for text in found.values())


@pytest.mark.parametrize("name", catalog.BUILT_IN)
def test_a_methods_summary_is_one_short_sentence(name: str) -> None:
    summary = card.summary(catalog.method_class(name))
    assert 10 < len(summary) <= 160
    assert summary.endswith(".")
    assert "|" not in summary


def test_a_missing_heading_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positive control: the headings are read from the text."""
    text = "X: does.\n\nWhat it does:\n    One.\n\nNeeds:\n    Nothing.\n    At all.\n"
    monkeypatch.setattr(card, "card", lambda cls: text)
    assert card.sections(object) == {"What it does": "One.", "Needs": "Nothing.\nAt all."}
    assert card.summary(object) == "does."


@pytest.mark.parametrize("name", catalog.BUILT_IN)
def test_a_methods_page_shows_its_presets_and_fields(name: str) -> None:
    cls, page = catalog.method_class(name), generate.page(name)
    assert all(f"`{preset}`" in page for preset in cls.presets)
    assert f"::: {cls.__module__}.{cls.__qualname__}" in page


# ---------------------------------------------------------------- pages


def test_every_public_name_has_its_place_on_the_api_page() -> None:
    text = (ROOT / "docs/api.md").read_text() + (ROOT / "docs/errors.md").read_text()
    shown = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    for name in foveate.__all__:
        module = foveate._PUBLIC[name]
        assert {f"{module}.{name}", module} & set(shown), f"{name} is not documented"


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    for path in ROOT.glob("docs/**/*.md"):
        name = path.relative_to(ROOT / "docs").as_posix()
        assert f" {name}\n" in text, f"{name} is in no menu"


@pytest.mark.parametrize("path", CLAIMS, ids=lambda path: path.stem)
def test_a_page_of_claims_has_them_all_with_verdicts(path: Path) -> None:
    """Made anew when its claims change: `python -m benchmarks.claims NAME --from-store`."""
    page, text = claims.read(path), path.with_suffix(".md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    judged = {(row[0][2:], row[1]): row[-1] for row in rows if len(row) > 3}
    for claim in (claim for part in page.parts for claim in part.claims):
        assert judged[claim.source, claim.says].strip("|* ") in verdicts.WORDS
    assert all(f"| {what} | {why} |" in text for what, why in page.left_out)
    assert all(part.text.strip() in text for part in page.parts)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_and_pictures_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    made = {"index.md", *(generate.filename(name) for name in catalog.names())}
    for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", text):
        if "://" not in target and target.removeprefix("methods/") not in made:
            assert (path.parent / target).exists(), f"{target} does not exist"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_python_blocks_are_python(path: Path) -> None:
    for block in blocks(path):
        assert not block.startswith("--8 "), "a formatter has taken the inclusion for code"
        if not block.startswith("--8<--"):
            ast.parse(block)


def test_the_changelog_begins_with_what_is_not_released() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"


def test_the_method_that_is_shown_as_an_example_works() -> None:
    code = blocks(ROOT / "docs/adding-a-method.md")[0]
    module = ModuleType("example")
    sys.modules["example"] = module  # dataclasses look their module up
    try:
        exec(compile(code, "adding-a-method.md", "exec"), module.__dict__)
    finally:
        del sys.modules["example"]
    features = torch.tensor([[3.0, 0.0], [0.0, 1.0], [2.0, 2.0], [0.5, 0.0]])
    tokens = VisualTokens(features=features, grids=(Grid(1, 2, 2),))
    method = module.__dict__["Norm"]()
    assert method(tokens, resolve_keep(0.5, 4)).anchors.tolist() == [0, 2]
    assert method(tokens, None).is_identity
    assert (module.__doc__ or "").startswith("Norm: keep")
    headings = [line[:-1] for line in code.splitlines() if line[:-1] in card.HEADINGS]
    assert headings == list(card.HEADINGS)


# ---------------------------------------------------------------- README


def test_the_readmes_tables_are_current() -> None:
    text = (ROOT / "README.md").read_text()
    assert make_readme.current(text) == text, "run `python docs/make_readme.py`"


def test_the_readme_names_every_part_of_the_package() -> None:
    there = {path.name for path in (ROOT / "foveate").iterdir() if path.suffix == ".py"}
    there |= {f"{path.parent.name}/" for path in (ROOT / "foveate").glob("*/__init__.py")}
    named = set(make_readme.ORDER)
    assert named == there - {"__init__.py", "__main__.py"}


def untimed(text: str) -> str:
    """Without what differs from one run or machine to the next."""
    return re.sub(r"[\d.]+ ms", "_ ms", text)


def test_the_readmes_first_example_prints_what_the_readme_says() -> None:
    text = (ROOT / "README.md").read_text()
    (said,) = re.findall(r"```text\n(.*?)```", make_readme.part(text, "first result"), re.DOTALL)
    code = make_readme.example(text)
    assert len([line for line in code.splitlines() if line.strip()]) <= 8
    printed = make_readme.run(code)
    assert untimed(printed) == untimed(said)
    assert printed.strip()


def test_the_conversation_on_its_page_goes_as_it_says() -> None:
    page = ROOT / "docs/chat.md"
    assert make_readme.run(blocks(page)[0]) == blocks(page, "text")[0]
