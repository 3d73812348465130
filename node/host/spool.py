"""Keeps the frames of an open point, so that they can be sent again after the job has ended."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import replace
from pathlib import Path

from vmreplica.core.cycle import Frame

MEMORY_BYTES = 8 << 20
TAIL_BYTES = 24 << 20
"""What is kept of a transfer that is not spooled: more than an owner may not have made durable."""


class FrameSpool:
    """All frames of a delta: the first 8 MiB of payload in memory, the rest in a nameless file.

    The file has no name, so that nothing is left of it whatever becomes of this process.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._frames: list[Frame] = []
        self._places: list[tuple[int, int]] = []
        self._in_memory = 0
        self._written = 0
        self._file = -1

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def first(self) -> int:
        """The earliest frame that can still be read."""
        return 0

    def append(self, frame: Frame) -> None:
        """Keep the next frame. Blocks on the disk. :raises OSError: no room."""
        size = len(frame.payload)
        if self._file < 0 and self._in_memory + size <= MEMORY_BYTES:
            self._in_memory += size
            self._places.append((-1, size))
            self._frames.append(frame)
            return
        if self._file < 0:
            self._file = os.open(self._directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        view = memoryview(frame.payload)
        while view:
            view = view[os.pwrite(self._file, view, self._written + size - len(view)) :]
        self._places.append((self._written, size))
        self._frames.append(replace(frame, payload=b""))
        self._written += size

    def read(self, number: int) -> Frame:
        """Frame ``number``. May block on the disk."""
        offset, size = self._places[number]
        frame = self._frames[number]
        if offset < 0:
            return frame
        return replace(frame, payload=os.pread(self._file, size, offset))

    def close(self) -> None:
        """Free everything. Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._frames.clear()
        self._places.clear()


class FrameTail:
    """The last frames of a transfer too large to be kept as a whole."""

    def __init__(self, first: int) -> None:
        self._frames: deque[Frame] = deque()
        self._first = first
        self._bytes = 0

    def __len__(self) -> int:
        return self._first + len(self._frames)

    @property
    def first(self) -> int:
        """The earliest frame that can still be read."""
        return self._first

    def append(self, frame: Frame) -> None:
        """Keep the next frame, and let go of the oldest."""
        self._frames.append(frame)
        self._bytes += len(frame.payload)
        while self._bytes > TAIL_BYTES:
            self._bytes -= len(self._frames.popleft().payload)
            self._first += 1

    def read(self, number: int) -> Frame:
        """Frame ``number``, which must not lie before ``first``."""
        return self._frames[number - self._first]

    def close(self) -> None:
        """Free everything."""
        self._frames.clear()


def free_bytes(directory: str) -> int:
    """Room on the file system of a directory, for those who are not root too."""
    stat = os.statvfs(directory)
    return stat.f_bavail * stat.f_frsize


def remove_quietly(path: str) -> None:
    """Unlink what may be gone already."""
    Path(path).unlink(missing_ok=True)
