"""Options that several verbs share."""

from __future__ import annotations

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
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")]
Positions = Annotated[
    str | None, typer.Option("--positions", help='"original" or "reindex" position ids.')
]
