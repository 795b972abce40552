"""The benchmarks that no page's test covers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import ablation, overhead
from foveate import catalog


def test_a_measurement_on_other_scenes_is_none(tmp_path: Path) -> None:
    known = {"scenes": 5, "all": {"accuracy": 0.5}}
    (tmp_path / "measured.json").write_text(json.dumps(known))
    assert ablation.figures(tmp_path, 5) == known
    with pytest.raises(OSError, match="model"):  # it would measure, and there is no model
        ablation.figures(tmp_path, 6)


def test_overhead_times_every_method_that_needs_no_weights() -> None:
    learned = {name for name in catalog.names() if catalog.method_class(name).trainable}
    assert set(catalog.names()) - set(overhead.METHODS) == {"trim"} | learned
