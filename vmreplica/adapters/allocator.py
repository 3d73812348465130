"""How the C library keeps memory that frames of a megabyte come and go through."""

from __future__ import annotations

import contextlib
import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
KEPT_BYTES = 32 << 20
"""At most this much freed memory at the top of the heap stays with the process."""


def keep_freed_memory() -> None:
    """Reuse freed buffers instead of giving each back to the kernel and getting cleared pages.

    Left alone, glibc maps and unmaps every large buffer, and each page of it is a fault and is
    cleared: a quarter of the processor time of a stream. One arena, so that what is kept is kept
    once. To be called before threads are started. Does nothing with another C library.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_ARENA_MAX, 1)
        library.mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
