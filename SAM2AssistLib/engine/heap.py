"""The heap of glibc, which gives memory back too readily while the network works, and too slowly afterwards.

Elsewhere nothing is done. Source: the manual pages mallopt(3) and malloc_trim(3).
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 256 << 20
"""What may be free at the end of the heap: about what the tensors of one step take."""
OWN_PAGES_BYTES = 32 << 20
"""What is as large as this gets pages of its own, which go back at once; glibc gets here by itself, step by step."""


def keep_freed_memory() -> None:
    """Let the tensors of a step take what those of the step before have left, instead of fresh pages of the system.

    Each fresh page has to be cleared and mapped: without this, SAM 2.1 tiny at 512 pixels took a tenth longer.
    """
    _call("mallopt", M_TRIM_THRESHOLD, KEPT_BYTES)
    _call("mallopt", M_MMAP_THRESHOLD, OWN_PAGES_BYTES)


def give_freed_memory_back() -> None:
    """Give all that is free back to the system.

    Features come and go between tensors of other sizes; by itself the heap keeps about as much again as it holds.
    """
    _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> None:
    function = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    if function is not None:
        function(*arguments)
