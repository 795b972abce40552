"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str, typer.Option("--model", help="Shipped model, Hub id or folder of a checkpoint.")
]
Revision = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit.")]
Dtype = Annotated[str, typer.Option("--dtype", help="float32, bfloat16, float16 or auto.")]
DeviceMap = Annotated[
    str | None, typer.Option("--device-map", help='As transformers takes it: "auto", "cuda" ...')
]
Attn = Annotated[str | None, typer.Option("--attn", help='Attention kernel: "sdpa", "eager" ...')]
Shown = Annotated[str, typer.Argument(help="An image or video file, scene:N or clip:N.")]
Frames = Annotated[
    int | None, typer.Option("--frames", help="Taken of a video; 8 if not said.", min=1)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")]
Positions = Annotated[
    str | None, typer.Option("--positions", help='"original" or "reindex" position ids.')
]
Method = Annotated[
    str,
    typer.Option(
        "--method", "-m", help="name[@preset][:field=value,...], or a chain of them: name/name."
    ),
]
Keep = Annotated[
    str | None, typer.Option("--keep", "-k", help='Tokens (64), or a share ("25%", 0.25).')
]
Preset = Annotated[str | None, typer.Option("--preset", help="A published setting instead.")]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", help="The longest answer.", min=1)]

# Of trainings.
Data = Annotated[
    str,
    typer.Option(
        "--data",
        help="scenes, tiles, clips, FILE.jsonl, hf:NAME, or LAYOUT:FOLDER (gqa, vqav2 ...)",
    ),
]
Count = Annotated[
    int | None,
    typer.Option(
        "--count",
        help="Dialogues of each source: of files all, of what is drawn 1000, if not said.",
        min=1,
    ),
]
Validation = Annotated[
    float,
    typer.Option("--validation", help="Share of the pictures to validate on.", max=0.9, min=0),
]
RunFolder = Annotated[
    Path | None, typer.Option("--out", "-o", help="The run's folder; goes on from there.")
]
Cpu = Annotated[bool, typer.Option("--cpu", help="Leave an accelerator alone.")]
