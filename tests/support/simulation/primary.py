"""A standalone primary host in the simulation: model VMs, the primary role, a store of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from node.service.replication import PrimaryRole
from simulation.checks import Checks
from simulation.link import SimReplicaLink
from vmreplica.coordination.guarded import GuardedWriter
from vmreplica.coordination.store_cache import StoreCache
from vmreplica.core.cycle import CLUSTER_BYTES, Disk
from vmreplica.core.keys import Keys
from vmreplica.core.problems import Problem
from vmreplica.core.records import PolicyRecord
from vmreplica.ports.cluster_store import StoreError
from vmreplica.ports.replica_link import LinkFailed
from vmreplica.testing.fake_change_source import FakeChangeSource, ModelVm
from vmreplica.testing.fake_clock import FakeClock
from vmreplica.testing.fake_cluster_store import FakeClusterStore
from vmreplica.testing.fake_store_server import FakeStoreServer
from vmreplica.testing.fake_vm_host import FakeVmHost, model_vm
from vmreplica.testing.seeded_randomness import SeededRandomness

if TYPE_CHECKING:
    from simulation.cluster import Cluster

HOST = "p1"
NAMES = ("p1", "p1.lab")
_CLUSTERS = 24


class SimChangeSource(FakeChangeSource):
    """Watches what the sender does with its checkpoints."""

    def __init__(self, clock: FakeClock, checks: Checks) -> None:
        super().__init__(clock, frame_ms=2.0)
        self._checks = checks

    async def acknowledge(self, vm_uuid: str, acked_cycle_id: bytes) -> None:
        """The base advances."""
        before = self._sound(vm_uuid)
        await super().acknowledge(vm_uuid, acked_cycle_id)
        self._checks.base_kept(vm_uuid, acked_cycle_id, before - self._sound(vm_uuid))

    async def forget(self, vm_uuid: str, cycle_id: bytes) -> None:
        """A checkpoint goes."""
        before = self._sound(vm_uuid)
        await super().forget(vm_uuid, cycle_id)
        self._checks.base_lost(vm_uuid, before - self._sound(vm_uuid))

    def _sound(self, vm_uuid: str) -> set[bytes]:
        vm = self.vms[vm_uuid]
        return set(vm.trackers) - vm.broken


class Hypervisor:
    """What outlives the agent on the primary host: VMs, their trackers, the agent's own store."""

    def __init__(self, cluster: Cluster, clock: FakeClock, vms: int) -> None:
        self.source = SimChangeSource(clock, cluster.checks)
        self.host = FakeVmHost()
        self.server = FakeStoreServer(cluster.random.getrandbits(32))
        self.vms: list[ModelVm] = []
        self._random = cluster.random
        self._value = 0
        for i in range(vms):
            disks = (
                Disk("vda", (_CLUSTERS + i) * CLUSTER_BYTES),
                Disk("vdb", 8 * CLUSTER_BYTES),
            )
            uuid = f"00000000-0000-4000-8000-{i:012d}"
            self.host.add(model_vm(f"vm{i}", uuid, disks))
            vm = self.source.add(ModelVm(uuid, disks))
            for index in range(0, disks[0].clusters, 3):
                vm.write("vda", index, self._next())
            self.vms.append(vm)

    def _next(self) -> int:
        self._value += 1
        return self._value

    async def guests_write(self) -> None:
        """Guests go on, whatever happens elsewhere: never two disks at one instant by accident."""
        while True:
            await asyncio.sleep(self._random.uniform(0.5, 1.5))
            for vm in self.vms:
                for _ in range(self._random.randint(1, 3)):
                    disk = self._random.choice(vm.disks)
                    zero = self._random.random() < 0.15
                    index = self._random.randrange(disk.clusters)
                    vm.write(disk.target, index, 0 if zero else self._next())


class SimPrimary:
    """One life of the agent on the primary host."""

    def __init__(self, cluster: Cluster, clock: FakeClock, hypervisor: Hypervisor) -> None:
        keys = Keys("primary")
        randomness = SeededRandomness(cluster.random.getrandbits(64))
        store = FakeClusterStore(hypervisor.server, HOST)
        self.cache = StoreCache(store, clock, keys.root)
        self.hypervisor = hypervisor
        self._policy = PolicyRecord(frequency_ms=cluster.options.frequency_ms)
        self.role = PrimaryRole(
            node=HOST,
            primary_access_point=f"{HOST}:7444",
            keys=keys,
            cache=self.cache,
            writer=GuardedWriter(store, clock, randomness, keys),
            link=SimReplicaLink(cluster.network, cluster, HOST, NAMES),
            source=hypervisor.source,
            host=hypervisor.host,
            clock=clock,
            randomness=randomness,
            events=cluster.events_of(HOST),
        )

    async def main(self) -> None:
        """What the agent runs; enables what a person would have enabled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.cache.run())
            group.create_task(self.role.run())
            for vm in self.hypervisor.vms:
                group.create_task(self._enable(vm.uuid))

    async def _enable(self, uuid: str) -> None:
        while True:
            try:
                await self.role.enable(uuid, "r-cap:7443", self._policy)
                await self.role.start(uuid)
            except (Problem, LinkFailed, StoreError):
                await asyncio.sleep(1)
            else:
                return
