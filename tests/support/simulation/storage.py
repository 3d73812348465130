"""The shared directory of a simulated cluster: modelled disk, slow syncs, errors, all observed."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import Counter

from simulation.checks import Checks
from vmreplica.ports.replica_store import StorageFailed
from vmreplica.testing.memory_disk import Inode, MemoryDisk
from vmreplica.testing.memory_files import LinkFault, MemoryFiles

_SLOW = frozenset({"fdatasync", "fsync-directory", "link", "rename"})
_NOBODY = contextvars.Context()


class SimFiles(MemoryFiles):
    """One host's view. Each step takes time; with ``error_chance`` it fails.

    ``moment``: resolved when the host begins a step that changes what is durable or named, and
    whose operation and path contain ``moment_at``.
    """

    def __init__(
        self, disk: MemoryDisk, host: str, rng: random.Random, checks: Checks, fired: Counter[str]
    ) -> None:
        super().__init__(disk, host)
        self._random = rng
        self._checks = checks
        self._fired = fired
        self.error_chance = 0.0
        self.moment: asyncio.Future[None] | None = None
        self.moment_at = ""

    async def step(self, operation: str, path: str) -> None:
        """A step of the model, with time and errors."""
        if operation in _SLOW:
            moment = self.moment
            if moment is not None and not moment.done() and self.moment_at in f"{operation} {path}":
                moment.set_result(None)
            await asyncio.sleep(self._random.uniform(0.0005, 0.01))
        if self.error_chance:
            self._fail_perhaps(operation, path)
        if operation in ("write", "truncate"):
            self._checks.written(path)
        elif operation == "create":
            self._checks.created(path)
        elif operation == "rename" and self.disk.walk(path) is not None:
            self._checks.replaced(path)

    def _fail_perhaps(self, operation: str, path: str) -> None:
        if self._random.random() < self.error_chance:
            self._fired["io_error"] += 1
            raise StorageFailed(f"{path}: {operation} failed", no_space=self._random.random() < 0.3)
        if operation == "link" and self._random.random() < self.error_chance * 4:
            fault = self._random.choice(list(LinkFault))
            self._fired[f"link_{fault.name.lower()}"] += 1
            self.faults.links.append(fault)
            if fault is LinkFault.DELAYED:
                late_s = self._random.uniform(0.01, 15.0)
                loop = asyncio.get_running_loop()
                loop.call_later(late_s, self.disk.deliver_delayed, context=_NOBODY)

    def _link(self, inode: Inode, target: str) -> None:
        super()._link(inode, target)
        self._appeared(target)

    async def rename(self, source: str, target: str) -> None:
        """rename(2), observed as a link is."""
        await super().rename(source, target)
        self._appeared(target)

    def _appeared(self, path: str) -> None:
        inode = self.disk.walk(path)
        if path.rpartition("/")[2].startswith("manifest.") and isinstance(inode, Inode):
            self._checks.linked(path, inode)

    async def unlink(self, path: str) -> bool:
        """Unlink, observed."""
        gone = await super().unlink(path)
        if gone:
            self._checks.unlinked(path)
        return gone
