"""Deliberate faults in the real code path, for the tests that prove the tests.

Every law of the library has a fault here that must turn it red. Nothing else may read this
module, and outside `switched_on` it does nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from foveate.errors import UnknownName

NAMES = frozenset(
    {
        "mask_not_gathered",  # the mask is cropped to the short length instead of gathered
        "stale_position_shift",  # re-indexed positions are not carried to the next step
        "tables_not_reordered",  # beams are reordered, the slot tables are not
        "hook_left_behind",  # one hook survives detach
        "packed_positions",  # gapped position ids reach the mask with no mask given
        "cache_not_cut",  # caches stay as long as they were when they should be cut
        "anchor_ignored",  # cos and sin are taken from the first slots, not from the kept ones
    }
)

_active: set[str] = set()


@contextlib.contextmanager
def switched_on(name: str) -> Iterator[None]:
    """Break the library in one known way while the context lasts."""
    if name not in NAMES:
        raise UnknownName("fault", name, NAMES)
    _active.add(name)
    try:
        yield
    finally:
        _active.discard(name)


def is_on(name: str) -> bool:
    """Whether the fault `name` is switched on."""
    return name in _active
