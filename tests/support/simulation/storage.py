"""The shared directory of a simulated cluster: modelled disk, slow syncs, errors, observed links."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

from simulation.checks import Checks
from vmreplica.core.manifest_text import parse_manifest
from vmreplica.ports.replica_store import StorageFailed
from vmreplica.testing.memory_disk import Inode, MemoryDisk
from vmreplica.testing.memory_files import LinkFault, MemoryFiles

_SLOW = frozenset({"fdatasync", "fsync-directory", "link"})


class SimFiles(MemoryFiles):
    """One host's view. Each step takes time; with ``error_chance`` it fails."""

    def __init__(
        self, disk: MemoryDisk, host: str, rng: random.Random, checks: Checks, fired: Counter[str]
    ) -> None:
        super().__init__(disk, host)
        self._random = rng
        self._checks = checks
        self._fired = fired
        self.error_chance = 0.0

    async def step(self, operation: str, path: str) -> None:
        """A step of the model, with time and errors."""
        if operation in _SLOW:
            await asyncio.sleep(self._random.uniform(0.0005, 0.01))
        if self._random.random() < self.error_chance:
            self._fired["io_error"] += 1
            raise StorageFailed(f"{path}: {operation} failed", no_space=self._random.random() < 0.3)
        if operation == "link" and self._random.random() < self.error_chance * 4:
            fault = self._random.choice(list(LinkFault))
            self._fired[f"link_{fault.name.lower()}"] += 1
            self.faults.links.append(fault)
        self.journal.clear()
        await super().step(operation, path)

    def _link(self, inode: Inode, target: str) -> None:
        super()._link(inode, target)
        name = target.rpartition("/")[2]
        if name.startswith("manifest."):
            content = inode.seen_by(self.host)
            self._checks.linked(parse_manifest(content.read(content.length, 0)))

    async def rename(self, source: str, target: str) -> None:
        """A manifest's name is never renamed upon."""
        name = target.rpartition("/")[2]
        if name.startswith("manifest.") and self.disk.walk(target) is not None:
            self._checks.replaced(target)
        await super().rename(source, target)
