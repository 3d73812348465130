"""A primary with one VM and a whole other side, in virtual time, for tests of the primary role."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from node.service.replication import PrimaryRole
from node.service.transfer_slots import TransferLimits
from vmreplica.coordination.guarded import GuardedWriter
from vmreplica.coordination.store_cache import StoreCache
from vmreplica.core.cycle import Disk
from vmreplica.core.keys import Keys
from vmreplica.core.records import PolicyRecord
from vmreplica.core.replication_state import ReplicationState
from vmreplica.ports.event_log import Severity
from vmreplica.testing import sim_loop
from vmreplica.testing.fake_change_source import FakeChangeSource, ModelVm
from vmreplica.testing.fake_clock import FakeClock
from vmreplica.testing.fake_cluster_store import FakeClusterStore
from vmreplica.testing.fake_replica_link import FakeReplicaLink, ModelReplica
from vmreplica.testing.fake_store_server import FakeStoreServer
from vmreplica.testing.fake_vm_host import FakeVmHost, model_vm
from vmreplica.testing.seeded_randomness import SeededRandomness

T = TypeVar("T")
VM = "11111111-2222-4333-8444-555555555555"
DISKS = (Disk("vda", 64 << 20), Disk("vdb", 8 << 20))
CAP = "replica.example:7443"
FAST = PolicyRecord(frequency_ms=5_000)


@dataclass(frozen=True)
class Written:
    name: str
    message: str
    data: dict[str, str]


class Events:
    """An event log that keeps everything."""

    def __init__(self) -> None:
        self.all: list[Written] = []

    def write(
        self,
        name: str,
        message: str,
        *,
        severity: Severity = Severity.INFO,
        replica_id: str = "",
        vm_name: str = "",
        data: Mapping[str, str] | None = None,
    ) -> None:
        self.all.append(Written(name, message, dict(data or {})))

    def named(self, name: str) -> list[Written]:
        return [event for event in self.all if event.name == name]


class PrimaryWorld:
    """Build inside a running SimLoop."""

    def __init__(self, seed: int = 1, limits: TransferLimits | None = None) -> None:
        self.seed = seed
        self.clock = FakeClock()
        self.keys = Keys("p")
        self.store = FakeClusterStore(FakeStoreServer(seed))
        self.link = FakeReplicaLink(self.clock)
        self.source = FakeChangeSource(self.clock)
        self.host = FakeVmHost()
        self.events = Events()
        self.limits = limits or TransferLimits()
        self.vm = self.source.add(ModelVm(VM, DISKS))
        self.host.add(model_vm("guest1", VM, DISKS))
        for cluster in range(200):
            self.vm.write("vda", cluster, 1000 + cluster)
        for cluster in range(0, 128, 7):
            self.vm.write("vdb", cluster, 5000 + cluster)
        self._boots = 0
        self.role, self._tasks = self._boot()

    def _boot(self) -> tuple[PrimaryRole, list[asyncio.Task[None]]]:
        self._boots += 1
        randomness = SeededRandomness(f"{self.seed}/{self._boots}")
        cache = StoreCache(self.store, self.clock, self.keys.root)
        role = PrimaryRole(
            node="p1",
            primary_access_point="p1.example:7444",
            keys=self.keys,
            cache=cache,
            writer=GuardedWriter(self.store, self.clock, randomness, self.keys),
            link=self.link,
            source=self.source,
            host=self.host,
            clock=self.clock,
            randomness=randomness,
            events=self.events,
            limits=lambda: self.limits,
        )
        return role, [asyncio.ensure_future(cache.run()), asyncio.ensure_future(role.run())]

    async def restart(self) -> None:
        """The agent ends and a new one starts: nothing but the store and the VM survives."""
        await self.stop()
        self.role, self._tasks = self._boot()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def replica(self) -> ModelReplica:
        (replica,) = self.link.replicas.values()
        return replica

    async def protect(self, policy: PolicyRecord = FAST) -> ModelReplica:
        """Enabled, started, and the first cycle acknowledged."""
        await self.role.enable("guest1", CAP, policy)
        await self.role.start("guest1")
        await self.until(lambda: self.replica.seq >= 1)
        return self.replica

    async def until(self, true: Callable[[], bool], limit_ms: int = 120_000) -> int:
        """Virtual ms until ``true()``. An AssertionError where it never comes."""
        began = self.clock.boottime_ms()
        while not true():
            waited = self.clock.boottime_ms() - began
            assert waited < limit_ms, f"not within {limit_ms} virtual ms (seed {self.seed})"
            await self.clock.sleep(10)
        return self.clock.boottime_ms() - began

    async def acknowledged(self, cycles: int = 1, limit_ms: int = 120_000) -> int:
        """Wait for that many further cycles."""
        wanted = self.replica.seq + cycles
        return await self.until(lambda: self.replica.seq >= wanted, limit_ms)

    async def state(self) -> ReplicationState:
        return (await self.role.show("guest1")).state

    def check(self) -> None:
        """The replica's head reads back as the VM was at that cycle's point."""
        wanted = self.source.points[self.replica.cycle_id]
        assert _plain(self.replica.content) == _plain(wanted), "the replica has other bytes"


def _plain(content: dict[str, dict[int, int]]) -> dict[str, dict[int, int]]:
    return {target: clusters for target, clusters in content.items() if clusters}


def in_world(story: Callable[[PrimaryWorld], Awaitable[T]], *, seed: int = 1) -> T:
    """Run a story in a fresh world of virtual time."""

    async def main(loop: sim_loop.SimLoop) -> T:
        world = PrimaryWorld(seed)
        try:
            return await story(world)
        finally:
            await world.stop()

    return sim_loop.run(main, seed)
