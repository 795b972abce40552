"""Which weights a model holds, as a short hash that does not change with how they were loaded."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

_VALUES = 64  # of each parameter


def of_weights(model: nn.Module) -> str:
    """A hash of every parameter's name, shape and 64 of its values, in bfloat16.

    So the same checkpoint has the same fingerprint in float32 and bfloat16 and on any device; in
    float16 as well if it was stored in half precision, else rounding twice may end elsewhere. A
    quantised model has another one: its parameters are no longer the same numbers.
    """
    found = hashlib.sha256()
    for name, parameter in model.named_parameters():
        found.update(f"{name} {tuple(parameter.shape)}".encode())
        if not parameter.is_meta:  # weights that accelerate keeps elsewhere are not read
            flat = parameter.detach().flatten()
            few = flat[:: max(1, len(flat) // _VALUES)][:_VALUES]
            found.update(few.to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def of_bits(net: nn.Module) -> str:
    """A hash of every bit of a net, buffers included: what training has moved at all differs."""
    found = hashlib.sha256()
    for name, value in net.state_dict().items():
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]
