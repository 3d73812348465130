"""The hosts of a simulated cluster: production services composed over fakes, as a daemon would."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from broker.service.composition import BrokerServices, build_services
from node.disk.replica_store import DiskReplicaStore
from node.service.compactor import Planner
from node.service.membership import NodeIdentity
from node.service.replica_parts import KeeperLimits
from node.service.replica_role import ReplicaRole, ReplicaRolePorts
from node.service.storage_watch import StorageLocation
from vmreplica.coordination.guarded import GuardedWriter
from vmreplica.coordination.store_cache import StoreCache
from vmreplica.core.authorization import authorize, unknown_replica
from vmreplica.core.compaction import plan_merge, with_merged
from vmreplica.core.cycle import Disk
from vmreplica.core.problems import Problem
from vmreplica.core.records import BrokerRecord, PolicyRecord, ReplicaRecord
from vmreplica.ports.replica_link import Location, NewReplica, ReplicaHead
from vmreplica.testing.fake_clock import FakeClock
from vmreplica.testing.fake_cluster_store import FakeClusterStore
from vmreplica.testing.fake_vm_host import FakeVmHost
from vmreplica.testing.seeded_randomness import SeededRandomness

if TYPE_CHECKING:
    from simulation.cluster import Cluster

CAP = "r-cap:7443"
LOCATION = "/srv/replicas"


class SimBroker:
    """One broker candidate."""

    def __init__(self, cluster: Cluster, name: str, clock: FakeClock) -> None:
        self._cluster = cluster
        self.name = name
        self.clock = clock
        self.services: BrokerServices = self._build()

    def _build(self) -> BrokerServices:
        cluster, name = self._cluster, self.name
        store = FakeClusterStore(cluster.server, name)
        return build_services(
            store=store,
            clock=self.clock,
            randomness=SeededRandomness(cluster.random.getrandbits(64)),
            keys=cluster.keys,
            events=cluster.events_of(name),
            record=BrokerRecord(name=name, address=f"{name}:7443", server_name=name, version="sim"),
            client_access_point=CAP,
            address_holder=SimAddress(cluster, name, self.clock),
        )

    async def main(self) -> None:
        """What the daemon runs."""
        await self.services.run()

    # -- the API's glue: names are resolved, authorization is asked, the owner is asked

    async def create(self, names: tuple[str, ...], request: NewReplica) -> ReplicaHead:
        """CreateReplica."""
        admitted = await self.services.admission.admit(names, request)
        record, owner = admitted.record, admitted.owner
        return ReplicaHead(
            replica_id=record.replica_id,
            trust_group=record.trust_group,
            owner=owner.node if owner else "",
            epoch=owner.epoch if owner else 0,
            acked_seq=0,
            acked_digest=bytes(16),
            acked_cycle_id=b"",
            acked_time_ms=0,
            disks=tuple(Disk(d.target, d.size_bytes, d.excluded) for d in record.disks),
            placement_reasons=record.placement_reasons,
        )

    async def update(self, names: tuple[str, ...], replica_id: str, policy: PolicyRecord) -> None:
        """UpdateReplica."""
        record = self._record(names, replica_id)
        await self.services.policy.update(
            record.replica_id,
            lambda old: replace(old, frequency_ms=policy.frequency_ms, route=policy.route),
            b"",
        )

    async def locate(self, names: tuple[str, ...], replica_id: str) -> Location:
        """Locate."""
        return self.services.locator.locate(self._record(names, replica_id))

    async def head(self, names: tuple[str, ...], replica_id: str) -> ReplicaHead:
        """GetReplica: asked of the owner over the network."""
        record = self._record(names, replica_id)
        owner, _ = self.services.locator.owner(record)
        node = owner.node
        return await self._cluster.network.call(
            self.name, node, lambda: self._cluster.node(node).head(replica_id)
        )

    def _record(self, names: tuple[str, ...], replica_id: str) -> ReplicaRecord:
        inventory = self.services.inventory
        record = inventory.replica(replica_id)
        if record is None:
            raise unknown_replica(replica_id)
        verdict = authorize(names, inventory.settings, inventory.authorizations, record, "")
        if isinstance(verdict, Problem):
            raise verdict
        return record


class SimAddress:
    """The client access point's address: one process beside the broker, on the same host."""

    def __init__(self, cluster: Cluster, name: str, clock: FakeClock) -> None:
        self._cluster = cluster
        self._name = name
        self._clock = clock

    async def claim(self, deadline_boottime_ms: int) -> None:
        """The newest claim wins, as gratuitous ARP does."""
        self._cluster.network.vip = self._name
        await self.extend(deadline_boottime_ms)

    async def extend(self, deadline_boottime_ms: int) -> None:
        """Hold until then."""
        network = self._cluster.network
        if network.vip == self._name:
            left_ms = deadline_boottime_ms - self._clock.boottime_ms()
            network.vip_deadline_s = network.loop.time() + left_ms / 1000

    async def release(self) -> None:
        """Drop it."""
        if self._cluster.network.vip == self._name:
            self._cluster.network.vip = ""


class SimGuard:
    """The guard process of a node: it probes storage. Who must not act is left to the checks."""

    def __init__(self, probe_ages: Mapping[str, int]) -> None:
        self._probe_ages = probe_ages

    def set_deadline(self, boottime_ms: int) -> None:
        """The manifest log alone must be enough."""

    def register_child(self, pid: int) -> None:
        """There are none."""

    def unregister_child(self, pid: int) -> None:
        """There are none."""

    def probe_ages_ms(self) -> Mapping[str, int]:
        """As the world says."""
        return self._probe_ages

    async def frozen(self, vm_uuid: str, until_boottime_ms: int) -> None:
        """Of the primary role."""

    async def thawed(self, vm_uuid: str) -> None:
        """Likewise."""

    async def job_begins(
        self, vm_uuid: str, scratch_paths: tuple[str, ...], abort_at_boottime_ms: int
    ) -> None:
        """Likewise."""

    async def job_ended(self, vm_uuid: str) -> None:
        """Likewise."""


class SimNode:
    """One node in the replica role."""

    def __init__(self, cluster: Cluster, name: str, clock: FakeClock) -> None:
        self._cluster = cluster
        self.name = name
        self.clock = clock
        keys, events = cluster.keys, cluster.events_of(name)
        randomness = SeededRandomness(cluster.random.getrandbits(64))
        store = FakeClusterStore(cluster.server, name)
        self.cache = StoreCache(store, clock, keys.root)
        self.role = ReplicaRole(
            ReplicaRolePorts(
                identity=NodeIdentity(
                    name=name, address=f"{name}:7444", server_name=name, version="sim"
                ),
                keys=keys,
                store=store,
                cache=self.cache,
                writer=GuardedWriter(store, clock, randomness, keys),
                clock=clock,
                randomness=randomness,
                replica_store=DiskReplicaStore(cluster.view(name), (LOCATION,), randomness),
                host=FakeVmHost(),
                guard=SimGuard(cluster.probe_ages[name]),
                events=events,
                locations=(StorageLocation(LOCATION, True),),
                console_directory="/console",
                planner=Planner(plan_merge, with_merged),
                limits=KeeperLimits(segment_bytes=cluster.options.segment_bytes),
            )
        )
        self._may_act = self.role.membership.may_act
        self.role.membership.may_act = self._watched_may_act  # type: ignore[method-assign]

    def _watched_may_act(self) -> bool:
        self.look_at_standing()
        return self._may_act()

    def look_at_standing(self) -> None:
        """Whoever thinks that it may act has a lease (unless clocks stood still)."""
        cluster, membership = self._cluster, self.role.membership
        if not cluster.clocks_are_true or not self._may_act():
            return
        if cluster.keys.node(self.name, membership.incarnation) not in cluster.server.state.live:
            cluster.checks.fail(f"{self.name} may act although its lease is gone")

    async def main(self) -> None:
        """What the daemon runs."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.cache.run())
            group.create_task(self.role.run())

    async def head(self, replica_id: str) -> ReplicaHead:
        """GetReplica at the owner."""
        actor = await self.role.keeper.locate(replica_id)
        session = await actor.serving(2_000)
        manifest = session.manifest
        self._cluster.checks.served(replica_id, session.epoch, self.name)
        return ReplicaHead(
            replica_id=replica_id,
            trust_group=manifest.trust_group,
            owner=self.name,
            epoch=session.epoch,
            acked_seq=manifest.head.seq,
            acked_digest=manifest.head.digest,
            acked_cycle_id=manifest.head.cycle_id,
            acked_time_ms=manifest.head.time_ms,
            disks=manifest.disks,
        )
