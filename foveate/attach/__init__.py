"""Attaching a compressor to a model: hooks on, hooks off, batches, positions, caches."""

from __future__ import annotations

from foveate.attach import faults
from foveate.attach.forward import Item
from foveate.attach.run import Encoded, Report, Run, attach, encode

__all__ = ["Encoded", "Item", "Report", "Run", "attach", "encode", "faults"]
