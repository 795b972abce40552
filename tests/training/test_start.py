"""Starts of MetaCompress, by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from foveate import catalog, reference
from foveate.adapters import adapter_for
from foveate.attach import encode
from foveate.errors import InputError
from foveate.training import data, start
from foveate.training.features import join, pack
from foveate.training.start import pca_start, principal_directions
from foveate.training.transcripts import first_inputs
from tests.training import needs_features

pytestmark = needs_features


def tokens() -> torch.Tensor:
    """Around (0, 0, 5): wide along the second axis, narrow along the first, not at all else."""
    plane = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 3.0], [0.0, -3.0]])
    return torch.cat([plane, torch.full((4, 1), 5.0)], 1)


def test_the_widest_direction_comes_first() -> None:
    found = principal_directions(tokens(), 2, sharpness=2.0)
    # Variances 4.5 and 0.5: W = c (e2, e1), mean logit c^2 (4.5 + 0.5) / sqrt(2) = 2
    c = (2.0 * 2**0.5 / 5.0) ** 0.5
    expected = torch.tensor([[0.0, c], [c, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_whitened_directions_count_the_same() -> None:
    found = principal_directions(tokens(), 2, sharpness=2.0, whiten=True)
    seen = (tokens() - tokens().mean(0)) @ found
    torch.testing.assert_close(seen.T @ seen / 4, torch.eye(2) * 2.0 / 2**0.5)


@torch.no_grad()
def test_a_token_looks_at_itself_more_with_more_sharpness() -> None:
    model, processor = reference.load()
    pictures = []
    for each in data.examples("scenes", count=3):
        inputs = first_inputs(model, processor, each, each.load())
        pictures.append(pack(encode(model, inputs)))
    method = catalog.make("metacompress", kernel=1)
    logits = []
    for sharpness in (1.0, 4.0):
        made = pca_start(sharpness)(method, model, pictures)
        net = made.net
        assert net is not None and torch.equal(net.query, net.key)
        x = torch.cat([p.tensors["image.pooled.0"] for p in pictures])
        x = x + torch.cat([_positions(256, 128)] * 3) + net.offset
        assert float(x.mean(0).abs().max()) < 1e-4
        seen = x @ net.query
        logits.append(float((seen * seen).sum(1).mean() / method.dim**0.5))
    assert logits == pytest.approx([1.0, 4.0], rel=1e-4)


def test_the_projector_finishes_features_where_the_model_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On another device than the stored features, as those before the projector are."""
    model, processor = reference.load()
    (each,) = data.examples("scenes", count=1)
    packed = pack(encode(model, first_inputs(model, processor, each, each.load())))
    asked: list[object] = []

    def watched(parts: object, device: object = None, project: object = None) -> object:
        asked.append(device)
        return join(parts, None, project)  # type: ignore[arg-type]

    monkeypatch.setattr(start, "join", watched)
    elsewhere = SimpleNamespace(device=torch.device("meta"))
    monkeypatch.setattr(start, "adapter_for", lambda _: adapter_for(model))
    start._seen(catalog.make("metacompress"), elsewhere, packed)
    assert asked == [torch.device("meta")]


def test_more_directions_than_numbers_are_refused() -> None:
    model, _ = reference.load()
    with pytest.raises(InputError, match="128 directions at most") as error:
        pca_start()(catalog.make("metacompress", dim=129), model, [])
    assert len(str(error.value).splitlines()) <= 4


def _positions(n: int, d: int) -> torch.Tensor:
    from foveate import ops

    return ops.sine_positions(n, d)
