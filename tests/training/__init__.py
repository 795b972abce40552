"""Tests of the training."""

from __future__ import annotations

import inspect

import pytest
import transformers

# Without this argument nothing can be kept between epochs, and `Teacher` says so.
TAKES_FEATURES = (
    "mm_encoder_outputs"
    in inspect.signature(transformers.LlavaForConditionalGeneration.forward).parameters
)
needs_features = pytest.mark.skipif(
    not TAKES_FEATURES, reason="this transformers release takes no encoded pictures"
)
