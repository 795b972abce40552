"""`foveate run`: one image or video, one question, with and without compression."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from foveate.cli import options
from foveate.cli.output import finish


def run(
    image: options.Shown,
    question: Annotated[str, typer.Argument(help="What to ask about it.")],
    method: options.Method = "divprune",
    keep: options.Keep = None,
    preset: options.Preset = None,
    positions: options.Positions = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where to draw what was kept (PNG).")
    ] = None,
    max_new_tokens: options.MaxNewTokens = 64,
    frames: options.Frames = None,
    model: options.Model = "reference",
    revision: options.Revision = None,
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
    attn: options.Attn = None,
    as_json: options.Json = False,
) -> None:
    """Answer a question about an image or a video, with and without compression."""
    from rich.table import Table

    from foveate.cli.attaching import attach_line, setting_of
    from foveate.cli.loading import Source
    from foveate.cli.showing import shown as looked_at

    setting = setting_of(method, keep, preset)
    seen = looked_at(image, frames)
    source = Source(model, revision, dtype, device_map, attn)
    loaded, processor = source.load()

    from foveate.prompting import conversation, model_inputs, new_words

    text = conversation(processor, [question], is_video=seen.is_video)
    inputs = model_inputs(processor, loaded, [text], [seen.pictures], is_video=seen.is_video)
    length = inputs["input_ids"].shape[1]

    def answer() -> str:
        out = loaded.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        return new_words(processor, out, length)[0]

    full = answer()
    with setting.attach(loaded, processor=processor, positions=positions) as attached:
        short = answer()
    report = attached.report()
    result: dict[str, Any] = {
        "question": question,
        "full": {
            "answer": full,
            "visual_tokens": report.visual,
            "cache_bytes": report.kv_bytes_full,
        },
        "compressed": {
            "answer": short,
            "visual_tokens": report.entering,
            "average_over_layers": report.average,
            "cache_bytes": report.kv_bytes,
        },
        "method": setting.label,
        "keep": setting.budget,
    }
    table = Table(box=None, pad_edge=False)
    for column in ("", "full model", f"{setting.label}, keep {setting.budget}"):
        table.add_column(column)
    table.add_row("answer", full, short)
    table.add_row(
        "visual tokens",
        str(report.visual),
        f"{report.entering}, {report.average:g} averaged over {report.layers} layers",
    )
    table.add_row(
        "KV cache after prefill", f"{report.kv_bytes_full:,} bytes", f"{report.kv_bytes:,} bytes"
    )
    shown: list[Any] = [question, table]
    python = [
        *source.python,
        "from foveate.prompting import conversation, model_inputs, new_words",
        *seen.asked(question),
        f"full = model.generate(**inputs, max_new_tokens={max_new_tokens}, do_sample=False)",
        f"with {attach_line(setting, positions)} as run:",
        f"    out = model.generate(**inputs, max_new_tokens={max_new_tokens}, do_sample=False)",
        "for found in (full, out):",
        '    print(new_words(processor, found, inputs["input_ids"].shape[1])[0])',
        "print(run)",
    ]
    if out is not None:
        from foveate import drawing

        drawing.save(drawing.draw(seen.drawable, attached.items[0]), out)
        result["picture"] = str(out)
        shown.append(f"drawn to {out}")
        python += [
            "from foveate import drawing",
            f"drawing.save(drawing.draw({seen.name}, run.items[0]), {str(out)!r})",
        ]
    finish(result, shown, python, as_json)
