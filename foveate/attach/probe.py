"""Reading attention without eager attention: a function between a module and its kernel.

For the modules that are read, the attention interface is a registered function that hands q and
k to a reader and then calls the original backend. Masks, kernels and outputs stay as they are.
The module gets a copied config that names the function; leaving takes both away again.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foveate.attention import Logits, visible_keys
from foveate.errors import AttachError

ROWS_AT_ONCE = 256  # query rows of a score matrix held in memory at a time

Reader = Callable[..., Tensor | None]
"""(q (b, h, n, d), k (b, g, n, d), mask or None, interface kwargs) -> None, or a bias added to
the attention logits, broadcastable to (b, 1, 1, n)."""


Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Any]
"""The module's own attention: (q, k, v, mask) -> (output (b, n, h, d), weights or None)."""

Server = Callable[[Kernel, Tensor, Tensor, Tensor, Tensor | None, dict[str, Any]], Any]
"""(kernel, q, k, v, mask, interface kwargs) -> what the kernel would give."""


@contextlib.contextmanager
def served(servers: dict[nn.Module, Server]) -> Iterator[None]:
    """Let `servers` stand between their attention modules and their kernels.

    Args:
        servers: module -> what computes its attention, by the module's own kernel or otherwise.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    saved: list[tuple[nn.Module, Any]] = []
    names: set[str] = set()
    try:
        for module, server in servers.items():
            config: Any = module.config
            implementation = config._attn_implementation or "eager"
            # A kernel's own name stays inside ours: towers ask for "flash" by substring.
            name = f"{implementation}|foveate-{id(server)}"
            ALL_ATTENTION_FUNCTIONS[name] = _interface(server, config, implementation)
            names.add(name)
            saved.append((module, config))
            mine = copy.copy(config)
            mine._attn_implementation = name
            module.config = mine
        yield
    finally:
        for module, config in saved:
            module.config = config
        for name in names:
            del ALL_ATTENTION_FUNCTIONS[name]


@contextlib.contextmanager
def probed(readers: dict[nn.Module, Reader], attend: bool = True) -> Iterator[None]:
    """Let `readers` see the q and k of their attention modules while the context lasts.

    Args:
        readers: module -> what gets its queries and keys.
        attend: whether attention is then computed; if not, zeros take its place.
    """
    with served({module: _reading(reader, attend) for module, reader in readers.items()}):
        yield


def scale_of(q: Tensor, kwargs: dict[str, Any]) -> float:
    """The factor on the logits of an attention call."""
    scaling = kwargs.get("scaling")
    return float(q.shape[-1] ** -0.5 if scaling is None else scaling)


def check(mask: Any) -> None:
    """Raise an AttachError if a mask cannot be read."""
    if mask is not None and not isinstance(mask, Tensor):
        raise AttachError(
            f"Attention masks of type {type(mask).__name__} cannot be read.\n"
            "Use attn_implementation 'sdpa', 'eager' or a flash kernel, which the model has."
        )


def logits_of(q: Tensor, mask: Any, kwargs: dict[str, Any]) -> Logits:
    """How an attention call makes its logits.

    Raises:
        AttachError: the mask is no tensor.
    """
    check(mask)
    # The masks of other kernels hold the sliding window.
    window = kwargs.get("sliding_window") if mask is None or mask.ndim == 2 else None
    return Logits(scale_of(q, kwargs), window, kwargs.get("softcap"))


def peek(module: nn.Module, reader: Reader, output: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Call an attention module up to its queries and keys, which `reader` gets; no attention.

    Args:
        module: the attention module.
        reader: what gets its queries and keys.
        output: its output projection, which is given nothing to project.
        args, kwargs: of the module.
    """
    nothing = output.register_forward_pre_hook(lambda _, given: (given[0][:, :0],))
    try:
        with probed({module: reader}, attend=False):
            module(*args, **kwargs)
    finally:
        nothing.remove()


def chain(readers: dict[nn.Module, Reader], module: nn.Module, reader: Reader) -> None:
    """Add a reader to a module that may have one already; biases add up."""
    first = readers.get(module)
    if first is None:
        readers[module] = reader
        return

    def both(*args: Any) -> Tensor | None:
        found = [bias for bias in (first(*args), reader(*args)) if bias is not None]
        return sum(found[1:], found[0]) if found else None

    readers[module] = both


def _reading(reader: Reader, attend: bool) -> Server:
    """A server that shows q and k to a reader and leaves the rest to the kernel."""

    def serve(
        kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kwargs: dict[str, Any]
    ) -> Any:
        bias = reader(q, k, mask, kwargs)
        if not attend:
            heads_last = q.transpose(1, 2)
            return q.new_zeros(*heads_last.shape[:-1], v.shape[-1]), None
        if bias is not None:
            bias = bias.to(q.dtype)
            mask = bias if mask is None else _add(mask, bias)
        return kernel(q, k, v, mask)

    return serve


def _interface(server: Server, config: Any, implementation: str) -> Callable[..., Any]:
    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        if implementation == "eager":
            # Every modeling file has an eager function of its own.
            backend = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
        else:
            backend = ALL_ATTENTION_FUNCTIONS[implementation]

        def kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Any:
            # Flash kernels read their own name from the config of the module that they serve.
            mine, module.config = module.config, config
            try:
                return backend(module, q, k, v, mask, *args, **kwargs)
            finally:
                module.config = mine

        return server(kernel, query, key, value, attention_mask, kwargs)

    return attention


def _add(mask: Tensor, bias: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=bias.dtype).masked_fill(
            ~mask, torch.finfo(bias.dtype).min
        )
    return mask + bias


def attention_received(
    q: Float[Tensor, "h n d"],
    k: Float[Tensor, "h n d"],
    scale: float,
    mask: Tensor | None = None,
) -> Float[Tensor, " n"]:
    """(n,) attention each key receives, mean over heads and over the queries that may see it.

    Args:
        q, k: one sequence's queries and keys.
        scale: factor on the logits.
        mask: (1 or h, n, n) boolean (True: visible) or additive; None if all is visible.
    """
    n = q.shape[1]
    total = torch.zeros(n, device=q.device)
    seen = torch.zeros(n, device=q.device)
    for start in range(0, n, ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        logits = (q[:, rows].float() @ k.float().mT) * scale
        if mask is None:
            seen += logits.shape[1]
        else:
            visible = visible_keys(mask[:, rows])
            logits = logits.masked_fill(~visible, -torch.inf)
            seen += visible.float().mean(0).sum(0)
        total += logits.softmax(-1).nan_to_num().mean(0).sum(0)
    return total / seen.clamp(min=1)


def attention_rows(
    q: Float[Tensor, "h m d"],
    k: Float[Tensor, "h n d"],
    scale: float,
    mask: Tensor | None = None,
) -> Float[Tensor, "h m n"]:
    """Attention probabilities of a few query rows, in float32."""
    logits = (q.float() @ k.float().mT) * scale
    if mask is not None:
        logits = logits.masked_fill(~visible_keys(mask), -torch.inf)
    return logits.softmax(-1)
