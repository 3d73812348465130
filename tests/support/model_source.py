"""The truth that replicas are compared with: disks as numbers, one per 64 KiB cluster.

A number stands for 65,536 fixed bytes (0 for zeros), so that a whole disk's state at every cycle
is a small table, and every bit of it is known.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from blake3 import blake3

CLUSTER_BYTES = 65_536
Table = dict[str, dict[int, int]]
"""target → cluster index → number."""


def content(number: int) -> bytes:
    """The bytes of a number. Every third is compressible, the others are noise."""
    if number == 0:
        return bytes(CLUSTER_BYTES)
    seed = b"cluster %d " % number
    if number % 3 == 0:
        return (seed * (CLUSTER_BYTES // len(seed) + 1))[:CLUSTER_BYTES]
    return blake3(seed).digest(length=CLUSTER_BYTES)


def cluster(size_bytes: int, index: int, number: int) -> bytes:
    """A disk's cluster; the last one padded with zeros behind the disk's end."""
    inside = min(CLUSTER_BYTES, size_bytes - index * CLUSTER_BYTES)
    return content(number)[:inside].ljust(CLUSTER_BYTES, b"\0")


@dataclass(slots=True)
class ModelSource:
    """A VM's disks, changed at random, and what they held at each cycle that was ever begun."""

    sizes: Mapping[str, int]
    randomness: random.Random
    now: Table = field(default_factory=dict)
    at: dict[int, Table] = field(default_factory=dict)
    _number: int = 0

    def __post_init__(self) -> None:
        self.now = {target: {} for target in self.sizes}

    def clusters(self, target: str) -> int:
        """How many clusters cover a disk."""
        return -(-self.sizes[target] // CLUSTER_BYTES)

    def change(self, seq: int, count: int) -> Table:
        """Change up to ``count`` clusters of each disk; the state is that of cycle ``seq``."""
        changed: Table = {}
        for target in self.sizes:
            chosen = self.randomness.sample(range(self.clusters(target)), count)
            changed[target] = {index: self._next() for index in sorted(chosen)}
            self.now[target].update(changed[target])
        self.at[seq] = {target: dict(table) for target, table in self.now.items()}
        return changed

    def _next(self) -> int:
        """A new number, now and then zero."""
        self._number += 1
        return 0 if self.randomness.random() < 0.1 else self._number

    def difference(self, seq: int, target: str, data: bytes) -> str:
        """Where ``data`` is not the disk at cycle ``seq``; "" when every bit agrees."""
        if len(data) != self.sizes[target]:
            return f"{target} has {len(data)} bytes, {self.sizes[target]} expected"
        table = self.at[seq][target]
        wrong = []
        for index in range(self.clusters(target)):
            found = data[index * CLUSTER_BYTES : (index + 1) * CLUSTER_BYTES]
            if found != content(table.get(index, 0))[: len(found)]:
                wrong.append(index)
        return f"{target} at cycle {seq} differs in clusters {wrong[:10]}" if wrong else ""
