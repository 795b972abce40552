"""An attention backend that takes masks as flash kernels do, and gives no maps back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "stand-in"


@contextlib.contextmanager
def flash_like(language: nn.Module) -> Iterator[list[nn.Module]]:
    """A language model on it; gives the modules that attended, in order.

    Where there is padding it is told which keys there are, (b, k), never which query sees which
    key: queries are the last keys, and each sees what stands before it.
    """
    called: list[nn.Module] = []

    def attention(
        module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, **kwargs: Any
    ) -> Any:
        assert module.config._attn_implementation == NAME  # its own name, as kernels ask
        called.append(module)
        n, m = q.shape[2], k.shape[2]
        visible = torch.ones(n, m, dtype=torch.bool).tril(m - n)[None, None]
        if (window := kwargs.get("sliding_window")) is not None:
            visible = visible.triu(m - n - window + 1)
        if mask is not None:
            assert mask.ndim == 2
            visible = visible & mask[:, None, None, :].bool()
            # Padding sees itself, so that it is a number.
            visible = visible | torch.eye(m, dtype=torch.bool)[m - n :]
        out, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](module, q, k, v, visible, **kwargs)
        return out, None

    ALL_ATTENTION_FUNCTIONS[NAME] = attention
    AttentionMaskInterface.register(NAME, flash_attention_mask)
    configs = {id(m.config): m.config for m in language.modules() if hasattr(m, "config")}
    before = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation = NAME
        yield called
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]
        del ALL_ATTENTION_FUNCTIONS[NAME]
        del AttentionMaskInterface._global_mapping[NAME]
