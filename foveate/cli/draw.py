"""`foveate draw`: what methods keep of an image or a video."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from foveate.cli import options
from foveate.cli.output import finish


def draw(
    image: options.Shown,
    method: Annotated[
        list[str] | None, typer.Option("--method", "-m", help="name[@preset]; may be repeated.")
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option("--keep", "-k", help="Tokens (64) or a share (25%); not for presets."),
    ] = None,
    question: Annotated[
        str, typer.Option("--question", "-q", help="For methods that read it.")
    ] = "what is in the picture ?",
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture to write.")] = Path(
        "kept.png"
    ),
    frames: options.Frames = None,
    model: options.Model = "reference",
    revision: options.Revision = None,
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
    attn: options.Attn = None,
    as_json: options.Json = False,
) -> None:
    """Draw the tokens that methods keep or merge, on the picture itself."""
    import torch

    from foveate import drawing
    from foveate.cli.attaching import attach_line, setting_of
    from foveate.cli.loading import Source
    from foveate.cli.showing import shown as looked_at
    from foveate.prompting import conversation, model_inputs

    settings = [
        setting_of(each, None if "@" in each else keep, None) for each in method or ["divprune"]
    ]
    seen = looked_at(image, frames)
    source = Source(model, revision, dtype, device_map, attn)
    loaded, processor = source.load()
    text = conversation(processor, [question], is_video=seen.is_video)
    inputs = model_inputs(processor, loaded, [text], [seen.pictures], is_video=seen.is_video)
    python = [
        *source.python,
        "from foveate import drawing",
        "from foveate.prompting import conversation, model_inputs",
        *seen.asked(question),
        "panels = []",
    ]
    panels, found = [], []
    for setting in settings:
        with torch.no_grad(), setting.attach(loaded, processor=processor) as run:
            loaded(**inputs, logits_to_keep=1)
        item = run.items[0]
        title = f"{setting.label} {item.n} -> {item.mapping.m}"
        panels.append(drawing.draw(seen.drawable, item, title=title))
        found.append({"method": setting.label, "visual": item.n, "kept": item.mapping.m})
        python += [
            f"with {attach_line(setting)} as run:",
            "    model(**inputs, logits_to_keep=1)",
            f"panels.append(drawing.draw({seen.name}, run.items[0], title={title!r}))",
        ]
    drawing.save(drawing.sheet(panels, columns=3), out)
    python.append(f"drawing.save(drawing.sheet(panels, columns=3), {str(out)!r})")
    shown: list[Any] = [f"{f['method']}: {f['visual']} -> {f['kept']} tokens" for f in found]
    finish({"pictures": found, "out": str(out)}, [*shown, f"drawn to {out}"], python, as_json)
