"""How concentrated CLS's attention is, layer by layer of a CLIP tower, over the test scenes.

    python -m benchmarks.cls_attention --out FOLDER             # the shipped model, 100 scenes
    python -m benchmarks.cls_attention --out FOLDER --model runs/seed0/model

Of each layer the attention from CLS to the patches, mean over heads, that to itself left out; its
share in the tenth of the patches that it looks at most, and its entropy (1: every patch alike).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from jaxtyping import Float
from torch import Tensor

from foveate import reference
from foveate.reference.measure import cls_weights

Array = np.ndarray
TOP = 0.1
_BATCH = 20


@torch.no_grad()
def weights(model: Any, processor: Any, images: Sequence[Any]) -> Float[Tensor, "b layers n"]:
    """What CLS gives each patch in every layer; sums to one over the patches."""
    pixels = processor.image_processor(list(images), return_tensors="pt").pixel_values
    tower = model.model.vision_tower
    layers = range(model.config.vision_config.num_hidden_layers)
    found = torch.stack([cls_weights(tower, layer, pixels) for layer in layers], 1)
    return found / found.sum(-1, keepdim=True)


def concentration(
    given: Float[Tensor, "*b n"],
) -> tuple[Float[Tensor, " *b"], Float[Tensor, " *b"]]:
    """Share of attention in its top tenth, and its entropy over that of even attention."""
    n = given.shape[-1]
    top = given.topk(max(1, round(TOP * n)), dim=-1).values.sum(-1)
    entropy = -torch.xlogy(given, given).sum(-1) / float(np.log(n))
    return top, entropy


def measure(model: Any, processor: Any, scenes: int) -> dict[str, Any]:
    """Of every scene, over the layers: "top" and "entropy"; "read" is the layer that is read."""
    top: list[list[float]] = []
    entropy: list[list[float]] = []
    for start in range(0, scenes, _BATCH):
        drawn = reference.samples("test", min(_BATCH, scenes - start), start)
        found = concentration(weights(model, processor, [each.image for each in drawn]))
        for known, new in zip((top, entropy), found, strict=True):
            known += [[round(value, 6) for value in row] for row in new.tolist()]
    return {"read": model.config.vision_feature_layer, "top": top, "entropy": entropy}


def maps(
    images: Sequence[Any], shown: Float[Tensor, "b m n"], labels: Sequence[Sequence[str]]
) -> Any:
    """Pictures with attention over them, as a figure.

    Args:
        images: one a row.
        shown: maps beside each, over its patches.
        labels: of the maps, above them.
    """
    from matplotlib.figure import Figure

    rows, columns = len(images), shown.shape[1] + 1
    figure = Figure(figsize=(1.6 * columns, 1.85 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for panels, image, given, said in zip(axes, images, shown, labels, strict=True):
        side = round(given.shape[-1] ** 0.5)
        panels[0].imshow(image)
        for panel, one, label in zip(panels[1:], given, said, strict=True):
            grey = np.asarray(image.convert("L"))
            extent = (0, image.width, image.height, 0)
            panel.imshow(grey, cmap="gray", vmin=0, vmax=255, extent=extent)
            panel.imshow(
                one.reshape(side, side).numpy(), cmap="inferno", vmin=0, alpha=0.75, extent=extent
            )
            panel.set_title(label, fontsize=7)
        for panel in panels:
            panel.set_xticks([])
            panel.set_yticks([])
    return figure


def through_layers(model: Any, processor: Any, scenes: Sequence[int] = (0, 1)) -> Any:
    """Scenes, and where CLS looks in each layer."""
    images = [next(reference.samples("test", 1, seed)).image for seed in scenes]
    given = weights(model, processor, images)
    top, entropy = concentration(given)
    read = model.config.vision_feature_layer % given.shape[1]
    labels = [
        [
            f"layer {i}{', read' if i == read else ''}\ntop tenth {100 * t:.0f} %, entropy {e:.2f}"
            for i, (t, e) in enumerate(zip(tops, entropies, strict=True))
        ]
        for tops, entropies in zip(top.tolist(), entropy.tolist(), strict=True)
    ]
    return maps(images, given, labels)


def over_scenes(model: Any, processor: Any, count: int = 6) -> Any:
    """Several scenes in rows, three beside each other, and where CLS looks in the layer read."""
    images = [each.image for each in reference.samples("test", count, 2)]
    given = weights(model, processor, images)[:, model.config.vision_feature_layer]
    top = concentration(given)[0].tolist()
    from matplotlib.figure import Figure

    columns = (count + 1) // 2
    figure = Figure(figsize=(3.2 * columns, 3.6), layout="constrained")
    axes = figure.subplots(2, 2 * columns)
    for i, (image, one) in enumerate(zip(images, given, strict=True)):
        left, right = axes[i // columns, 2 * (i % columns) : 2 * (i % columns) + 2]
        side = round(len(one) ** 0.5)
        left.imshow(image)
        right.imshow(one.reshape(side, side).numpy(), cmap="inferno", vmin=0)
        right.set_title(f"top tenth {100 * top[i]:.0f} %", fontsize=8)
    for panel in axes.flat:
        panel.set_axis_off()
    return figure


def curves(found: dict[str, dict[str, Any]]) -> Any:
    """Both measures over the layers of each model, with the middle nine tenths of the scenes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 3.0), layout="constrained")
    axes = figure.subplots(1, 2)
    names = {"top": "share in the top tenth of patches", "entropy": "entropy / even attention's"}
    for panel, (key, label) in zip(axes, names.items(), strict=True):
        for number, (name, each) in enumerate(found.items()):
            values = np.array(each[key])
            layers = np.arange(values.shape[1])
            low, high = np.quantile(values, [0.05, 0.95], axis=0)
            panel.fill_between(layers, low, high, alpha=0.15, color=f"C{number}")
            panel.plot(layers, values.mean(0), "o-", color=f"C{number}", label=name)
            panel.axvline(each["read"] % len(layers), color="0.6", linewidth=0.8, linestyle=":")
        panel.set_xticks(layers)
        panel.set_xlabel("layer (dotted: the one that is read)")
        panel.set_ylabel(label)
        panel.set_ylim(0, 1)
        panel.grid(alpha=0.25)
    axes[0].legend(fontsize=8, frameon=False)
    return figure


def main(
    out: Annotated[Path, typer.Option(help="Folder for numbers and pictures.")],
    model: Annotated[str, typer.Option(help="Shipped model or folder of a checkpoint.")] = (
        "reference"
    ),
    scenes: Annotated[int, typer.Option(help="Test scenes to measure on.", min=1)] = 100,
) -> None:
    """Measure one model's CLS attention and draw it."""
    from foveate.cli.loading import Source

    loaded, processor = Source(model, dtype="float32").load()
    found = measure(loaded, processor, scenes)
    out.mkdir(parents=True, exist_ok=True)
    (out / "attention.json").write_text(json.dumps(found) + "\n")
    through_layers(loaded, processor).savefig(out / "layers.png", dpi=150)
    over_scenes(loaded, processor).savefig(out / "scenes.png", dpi=150)
    curves({model: found}).savefig(out / "curves.png", dpi=150)
    for key in ("top", "entropy"):
        print(key, [f"{value:.3f}" for value in np.array(found[key]).mean(0)])


if __name__ == "__main__":
    typer.run(main)
