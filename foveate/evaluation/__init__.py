"""Measuring what compression costs and keeps: `compare`, its data and its report."""

from __future__ import annotations

from foveate.evaluation.compare import compare
from foveate.evaluation.comparison import Accuracy, Comparison, Row
from foveate.evaluation.data import Dialogue, Turn, from_jsonl, from_reference
from foveate.evaluation.settings import Setting

__all__ = [
    "Accuracy",
    "Comparison",
    "Dialogue",
    "Row",
    "Setting",
    "Turn",
    "compare",
    "from_jsonl",
    "from_reference",
]
