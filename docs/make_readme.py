"""Fills the parts of README.md that the code knows better than a person.

    python docs/make_readme.py            # the tables of methods, models and files
    python docs/make_readme.py --run      # also runs the first example and prints what it printed

`tests/test_docs.py` checks that they are current.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"

# Files and folders of the package as a reader meets them, and the others.
ORDER = (
    "errors.py",
    "mapping.py",
    "compressor.py",
    "composition.py",
    "attention.py",
    "ops.py",
    "methods/",
    "adapters/",
    "catalog.py",
    "card.py",
    "attach/",
    "fitting.py",
    "learned.py",
    "predicting.py",
    "fingerprint.py",
    "saving.py",
    "model_card.py",
    "relevance.py",
    "pictures.py",
    "prompting.py",
    "chat.py",
    "facts.py",
    "drawing.py",
    "holding.py",
    "reference/",
    "evaluation/",
    "training/",
    "web/",
    "cli/",
)
OUTSIDE = {
    "tests/": "laws for every method and model, and what is particular to each",
    "docs/": "these pages; method pages are made from docstrings",
    "benchmarks/": "what is measured, and the results",
}


def part(text: str, name: str) -> str:
    """What stands between `<!-- name -->` and the next `<!-- end -->`."""
    found = re.search(f"<!-- {name} -->\n(.*?)<!-- end -->", text, re.DOTALL)
    if found is None:
        raise SystemExit(f"README.md has no part named {name!r}.")
    return found[1]


def replaced(text: str, name: str, content: str) -> str:
    """The text with another content between the marks."""
    old = f"<!-- {name} -->\n{part(text, name)}<!-- end -->"
    return text.replace(old, f"<!-- {name} -->\n{content}<!-- end -->")


def methods() -> str:
    """The table of methods."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    return generate.table()


def models() -> str:
    """The model families, from the adapters' table."""
    from foveate.adapters import TABLE

    rows = ["| `config.model_type` | adapter |", "| --- | --- |"]
    for where in dict.fromkeys(TABLE.values()):
        types = ", ".join(f"`{kind}`" for kind, value in TABLE.items() if value == where)
        module, _, name = where.partition(":")
        path = module.replace(".", "/") + ".py"
        rows.append(f"| {types} | [{name}]({path}) |")
    return "\n".join(rows) + "\n"


def files() -> str:
    """The package's files with the first sentence of each docstring."""
    lines = ["```text", "foveate/"]
    for entry in ORDER:
        path = ROOT / "foveate" / entry
        if path.exists():
            name = entry.rstrip("/").removesuffix(".py")
            lines.append(f"  {entry:<16}{phrase(f'foveate.{name}')}")
    for entry, text in OUTSIDE.items():
        if (ROOT / entry).exists():
            lines.append(f"{entry:<18}{text}")
    return "\n".join([*lines, "```\n"])


def phrase(module: str) -> str:
    """First sentence of a module's docstring, in lower case and without its full stop."""
    text = (importlib.import_module(module).__doc__ or "").strip().split("\n\n")[0]
    first = re.split(r"(?<=[a-z)`])[.:](?:\s|$)", text.replace("\n", " "))[0]
    keep = (first[:2].isalpha() and first[:2].isupper()) or first[0] == "`"
    return first if keep else first[0].lower() + first[1:]


def example(text: str) -> str:
    """The first Python block of the README."""
    found = re.search(r"```python\n(.*?)```", part(text, "first result"), re.DOTALL)
    assert found is not None
    return found[1]


def run(code: str) -> str:
    """What the code prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    return out.getvalue()


def current(text: str) -> str:
    """The text with its tables as they should be now."""
    for name, content in (("methods", methods()), ("models", models()), ("files", files())):
        text = replaced(text, name, content)
    return text


def main() -> None:
    text = current(README.read_text())
    if "--run" in sys.argv[1:]:
        code = example(text)
        block = f"```python\n{code}```\n\n```text\n{run(code)}```\n"
        text = replaced(text, "first result", block)
    README.write_text(text)


if __name__ == "__main__":
    main()
