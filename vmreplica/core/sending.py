"""What a sender keeps in mind of the cycle it sends: digest, window, what can be repeated."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence

from blake3 import blake3

from vmreplica.core.cycle import DIGEST_BYTES, Disk, Frame

WINDOW_BYTES = 8 << 20
"""Payload that may be under way beyond the node's last ``received_frames``."""


class RunningCycleDigest:
    """The cycle's digest, fed frame by frame in the order of the plan.

    Equal to ``cycle.cycle_digest`` of the same clusters, in constant memory. Frames that were
    already counted (resent after a cut) are skipped.

    :param counts: clusters of each disk in the whole cycle, in the order of ``disks``.
    """

    def __init__(
        self, parent_digest: bytes, seq: int, disks: Sequence[Disk], counts: Sequence[int]
    ) -> None:
        self._hasher = blake3(b"vmreplica.cycle.v1\0" + parent_digest + struct.pack(">Q", seq))
        self._disks = tuple(disks)
        self._counts = tuple(counts)
        self._opened = 0
        self._last_index = -1
        self.frames = 0
        self.clusters = 0

    def add(self, number: int, frame: Frame) -> None:
        """Count frame ``number``; :raises ValueError: frames were skipped or out of order."""
        if number < self.frames:
            return
        if number > self.frames or frame.disk < self._opened - 1:
            raise ValueError(f"frame {number} of disk {frame.disk} is out of order")
        self._open_up_to(frame.disk)
        if frame.indexes[0] <= self._last_index:
            raise ValueError(f"frame {number}: cluster {frame.indexes[0]} is out of order")
        self._last_index = frame.indexes[-1]
        plain = frame.digests
        self._hasher.update(
            b"".join(
                index.to_bytes(8, "big") + plain[at : at + DIGEST_BYTES]
                for index, at in zip(frame.indexes, range(0, len(plain), DIGEST_BYTES), strict=True)
            )
        )
        self.frames += 1
        self.clusters += len(frame.indexes)

    def finish(self) -> bytes:
        """The digest, once every frame has been added."""
        self._open_up_to(len(self._disks) - 1)
        if self.clusters != sum(self._counts):
            raise ValueError(f"{self.clusters} clusters of {sum(self._counts)} were added")
        return self._hasher.digest(length=DIGEST_BYTES)

    def _open_up_to(self, disk: int) -> None:
        while self._opened <= disk:
            shape, count = self._disks[self._opened], self._counts[self._opened]
            target = shape.target.encode()
            self._hasher.update(struct.pack(">H", len(target)) + target)
            self._hasher.update(struct.pack(">QQ", shape.size_bytes, count))
            self._opened += 1
            self._last_index = -1


class Window:
    """Payload bytes under way: sent, and not yet reported as received."""

    def __init__(self, first: int, limit_bytes: int = WINDOW_BYTES) -> None:
        self._received = first
        self._sizes: deque[int] = deque()
        self._limit_bytes = limit_bytes
        self.bytes = 0

    def fits(self, payload_bytes: int) -> bool:
        """Whether a frame of this size may be sent now (one always may, however large)."""
        return not self._sizes or self.bytes + payload_bytes <= self._limit_bytes

    def sent(self, payload_bytes: int) -> None:
        """The next frame is under way."""
        self._sizes.append(payload_bytes)
        self.bytes += payload_bytes

    def received(self, frames: int) -> None:
        """The node has received all frames below ``frames``."""
        while self._received < frames and self._sizes:
            self.bytes -= self._sizes.popleft()
            self._received += 1
