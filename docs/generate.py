"""Writes the method pages from the methods' docstrings while the documentation is built.

Run by mkdocs (plugin gen-files). `table()` is the same table that stands in the README.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from foveate import catalog
from foveate.card import sections, summary


def table(link: str = "{name}") -> str:
    """Every catalogued method as a Markdown table; `link` formats a name."""
    rows = ["| name | stage | reads the question | what it does |", "| --- | --- | --- | --- |"]
    for name in catalog.names():
        cls = catalog.method_class(name)
        text = link.format(name=f"`{name}`", file=filename(name))
        asks = "yes" if cls().prompt_aware else "no"
        rows.append(f"| {text} | `{cls.stage}` | {asks} | {summary(cls)} |")
    return "\n".join(rows) + "\n"


def filename(name: str) -> str:
    """File of a method's page."""
    return name.replace("+", "-plus") + ".md"


def page(name: str) -> str:
    """A method's page."""
    cls = catalog.method_class(name)
    parts = [f"# {name}\n\n{summary(cls)}\n"]
    for heading, text in sections(cls).items():
        # Equations stand as they are written; in Markdown their stars and bars would vanish.
        shown = f"```text\n{text}\n```" if heading == "The mapping" else text
        parts.append(f"## {heading}\n\n{shown}\n")
    lines = ["## In code\n", "```python", f'foveate.attach(model, "{name}", keep=64)']
    lines += [f'foveate.attach(model, "{name}", preset="{preset}")' for preset in cls.presets]
    parts.append("\n".join([*lines, "```\n"]))
    if fields := dataclasses.fields(cls):
        lines = ["| field | default |", "| --- | --- |"]
        lines += [f"| `{field.name}` | `{field.default!r}` |" for field in fields]
        parts.append("\n".join(lines) + "\n")
    if cls.presets:
        lines = ["## Published settings\n", "| preset | source | fields | keep | positions |"]
        lines.append("| --- | --- | --- | --- | --- |")
        for preset, setting in cls.presets.items():
            fields_text = ", ".join(f"{key}={value!r}" for key, value in setting.fields.items())
            keep = "by its fields" if setting.keep is None else setting.keep
            lines.append(
                f"| `{preset}` | {setting.source} | {fields_text or '-'} | {keep} | "
                f"{setting.positions} |"
            )
        parts.append("\n".join(lines) + "\n")
    parts.append(f"## Reference of the class\n\n::: {cls.__module__}.{cls.__qualname__}\n")
    return "\n".join(parts)


def overhead() -> str:
    """The stored runs of `benchmarks/overhead.py` as tables."""
    parts = []
    for path in sorted(Path("benchmarks/results").glob("*.json")):
        record = json.loads(path.read_text())
        setting = ", ".join(f"{key} {value}" for key, value in record["setting"].items())
        lines = [
            f"### {path.stem}\n\n{setting}\n",
            "| | time / stock | quartiles | decision / full prefill | peak / stock | host reads |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for row in record["rows"]:
            share, most = row.get("decision_share"), row.get("peak")
            cells = [
                row["name"] + (", answer" if row["kind"] == "answer" else ""),
                f"{row['median']:.3f}",
                f"{row['low']:.3f} - {row['high']:.3f}",
                "" if share is None else f"{100 * share:.2f} %",
                "" if most is None else f"{most / row['stock_peak']:.3f}",
                f"{row['host_reads']} / {row['stock_host_reads']}" if "host_reads" in row else "",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def write() -> None:
    """Every page, through mkdocs."""
    import mkdocs_gen_files

    # The first page shows what the README shows, from one source.
    first = Path("README.md").read_text().split("<!-- first result -->")[1].split("<!-- end")[0]
    text = Path("docs/index.md").read_text().replace("<!-- first result -->", first)
    with mkdocs_gen_files.open("index.md", "w") as file:
        file.write(text)
    text = Path("docs/overhead.md").read_text().replace("<!-- results -->", overhead())
    with mkdocs_gen_files.open("overhead.md", "w") as file:
        file.write(text)
    with mkdocs_gen_files.open("methods/index.md", "w") as file:
        file.write("# Methods\n\n" + table("[{name}]({file})"))
    with mkdocs_gen_files.open("methods/nav.txt", "w") as file:
        file.write("* [All methods](index.md)\n")
        file.writelines(f"* [{name}]({filename(name)})\n" for name in catalog.names())
    for name in catalog.names():
        with mkdocs_gen_files.open(f"methods/{filename(name)}", "w") as file:
            file.write(page(name))


if __name__ == "<run_path>":  # as the plugin runs it
    write()
