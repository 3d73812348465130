"""The page of memory that a node's main process, its guard and its probe share.

Native 64-bit integers at fixed places; each has one writer, so nothing is ever locked.
"""

from __future__ import annotations

import mmap
import os
import struct
import time

PAGE_BYTES = 4096
MAX_LOCATIONS = 256
_INT = struct.Struct("=q")
_DEADLINE = 0
_CONFIRMED = 8
_PROBES = 64


def boottime_ms() -> int:
    """CLOCK_BOOTTIME, read directly: the guard runs beside the clock port on purpose."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class GuardPage:
    """Written by main: deadline, confirmation. Written by the probe: last answer by location."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._map = mmap.mmap(descriptor, PAGE_BYTES)

    @classmethod
    def create(cls) -> GuardPage:
        """A fresh page behind a descriptor that children inherit."""
        descriptor = os.memfd_create("vmreplica-guard")
        os.ftruncate(descriptor, PAGE_BYTES)
        return cls(descriptor)

    @property
    def deadline_ms(self) -> int:
        """Until when the node may act; 0 = not now."""
        return self._get(_DEADLINE)

    @deadline_ms.setter
    def deadline_ms(self, value: int) -> None:
        self._put(_DEADLINE, value)

    @property
    def confirmed_ms(self) -> int:
        """The last deadline whose passing the main process has confirmed."""
        return self._get(_CONFIRMED)

    @confirmed_ms.setter
    def confirmed_ms(self, value: int) -> None:
        self._put(_CONFIRMED, value)

    def answered_ms(self, place: int) -> int:
        """When the probe of location ``place`` was last answered."""
        return self._get(_PROBES + 8 * place)

    def set_answered_ms(self, place: int, value: int) -> None:
        """Only the probe calls this (main, once, before the probe begins)."""
        self._put(_PROBES + 8 * place, value)

    def _get(self, offset: int) -> int:
        return int(_INT.unpack_from(self._map, offset)[0])

    def _put(self, offset: int, value: int) -> None:
        _INT.pack_into(self._map, offset, value)
