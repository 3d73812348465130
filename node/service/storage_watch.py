"""What the node tells of itself: room in its storage locations, stalled storage, VMs, memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from node.service.membership import NodeFacts
from node.service.replica_wait import cancelled
from vmreplica.core.problems import Problem
from vmreplica.core.records import StorageRecord
from vmreplica.ports.clock import Clock
from vmreplica.ports.replica_store import ReplicaStore, StorageFailed
from vmreplica.ports.vm_host import VmHost

STALLED_AFTER_MS = 8_000
_WATCH_MS = 1_000
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StorageLocation:
    """One configured storage location."""

    path: str
    shared: bool


class StorageWatch:
    """Measures for the node record. A location or a hypervisor that hangs never holds it up.

    :param probe_ages_ms: age of the last answered probe of each location (the guard's).
    :param memory_free_bytes: what the host could still give to VMs.
    """

    def __init__(
        self,
        store: ReplicaStore,
        clock: Clock,
        host: VmHost,
        locations: Sequence[StorageLocation],
        probe_ages_ms: Callable[[], Mapping[str, int]],
        memory_free_bytes: Callable[[], int] = lambda: 0,
    ) -> None:
        self._store = store
        self._clock = clock
        self._host = host
        self._locations = tuple(locations)
        self._probe_ages_ms = probe_ages_ms
        self._memory_free_bytes = memory_free_bytes
        self._known: dict[str, StorageRecord] = {}
        self._measuring: dict[str, asyncio.Task[None]] = {}
        self._counting: asyncio.Task[None] | None = None
        self._running_vms = 0
        self.stalled = False

    def stalled_now(self) -> bool:
        """Whether a location has not answered its probe for 8 s."""
        ages = self._probe_ages_ms()
        return any(ages.get(x.path, 0) > STALLED_AFTER_MS for x in self._locations)

    async def facts(self) -> NodeFacts:
        """The present figures; a location that does not answer keeps its last ones."""
        for location in self._locations:
            task = self._measuring.get(location.path)
            if task is None or task.done():
                task = asyncio.ensure_future(self._measure(location))
                self._measuring[location.path] = task
        if self._counting is None or self._counting.done():
            self._counting = asyncio.ensure_future(self._count_vms())
        timer = asyncio.ensure_future(self._clock.sleep(_WATCH_MS))
        measuring = _all((*self._measuring.values(), self._counting))
        await _first_of(timer, asyncio.ensure_future(measuring))
        self.stalled = self.stalled_now()
        return NodeFacts(
            storage=tuple(self._known[x.path] for x in self._locations if x.path in self._known),
            stalled=self.stalled,
            running_vms=self._running_vms,
            memory_free_bytes=self._memory_free_bytes(),
        )

    async def _measure(self, location: StorageLocation) -> None:
        try:
            space = await self._store.space(location.path)
        except StorageFailed as failed:
            _log.warning("%s: %s", location.path, failed)
            return
        self._known[location.path] = StorageRecord(
            path=location.path,
            shared=location.shared,
            total_bytes=space.total_bytes,
            free_bytes=_rounded(space.free_bytes),
        )

    async def _count_vms(self) -> None:
        try:
            self._running_vms = sum(vm.running for vm in await self._host.list_vms())
        except Problem as problem:
            _log.info("VMs not counted: %s", problem)

    async def run(self, changed: Callable[[], None]) -> None:
        """Call ``changed`` as soon as a location stalls or answers again."""
        while True:
            await self._clock.sleep(_WATCH_MS)
            if self.stalled_now() != self.stalled:
                changed()


async def _all(tasks: Iterable[asyncio.Task[None]]) -> None:
    for task in tuple(tasks):
        await asyncio.wait({task})


async def _first_of(timer: asyncio.Future[None], work: asyncio.Future[None]) -> None:
    await asyncio.wait({timer, work}, return_when=asyncio.FIRST_COMPLETED)
    await cancelled(timer, work)


def _rounded(free_bytes: int) -> int:
    """Free space in steps of 64 MiB: the record is not rewritten for every small change."""
    return free_bytes & ~((64 << 20) - 1) if free_bytes >= 128 << 20 else free_bytes
