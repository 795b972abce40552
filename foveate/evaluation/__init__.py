"""Measuring what compression costs and keeps: `compare`, its data and its report."""

from __future__ import annotations

from foveate.evaluation.compare import compare, compare_models
from foveate.evaluation.comparison import (
    Accuracy,
    Comparison,
    Price,
    Reuse,
    Row,
    Skipped,
    Spread,
)
from foveate.evaluation.data import (
    Dialogue,
    Turn,
    from_clips,
    from_jsonl,
    from_reference,
    from_tiles,
)
from foveate.evaluation.settings import Setting

__all__ = [
    "Accuracy",
    "Comparison",
    "Dialogue",
    "Price",
    "Reuse",
    "Row",
    "Setting",
    "Skipped",
    "Spread",
    "Turn",
    "compare",
    "compare_models",
    "from_clips",
    "from_jsonl",
    "from_reference",
    "from_tiles",
]
