"""The replica role as one object: every service of it, built from ports, run and stopped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from node.service.compactor import Compactor, Planner
from node.service.keeper import Keeper
from node.service.membership import Membership, NodeIdentity
from node.service.receiver import Receiver, ReceiverLimits
from node.service.releaser import Releaser
from node.service.replica_access import ReplicaAccess
from node.service.replica_parts import KeeperLimits, RecordCache, RecordWriter, ReplicaParts
from node.service.replica_vm import ReplicaVms
from node.service.replica_wait import cancelled
from node.service.storage_watch import StorageLocation, StorageWatch
from node.service.test_failover import TestFailovers
from vmreplica.coordination.lease_keeper import LeaseKeeper
from vmreplica.coordination.operations import Operations
from vmreplica.core.keys import Keys
from vmreplica.core.lease_timing import NODE_LEASE, LeaseTiming
from vmreplica.ports.clock import Clock
from vmreplica.ports.cluster_store import ClusterStore
from vmreplica.ports.event_log import EventLog
from vmreplica.ports.guard import Guard
from vmreplica.ports.randomness import Randomness
from vmreplica.ports.replica_store import ReplicaStore
from vmreplica.ports.vm_host import VmHost

_log = logging.getLogger(__name__)
_STOP_FINISH_MS = 1_000
_LIMITS = KeeperLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaRolePorts:
    """What the replica role is built from."""

    identity: NodeIdentity
    keys: Keys
    store: ClusterStore
    cache: RecordCache
    writer: RecordWriter
    clock: Clock
    randomness: Randomness
    replica_store: ReplicaStore
    host: VmHost
    guard: Guard
    events: EventLog
    locations: Sequence[StorageLocation]
    console_directory: str
    planner: Planner
    lease: LeaseTiming = NODE_LEASE
    limits: KeeperLimits = _LIMITS
    receiver_limits: ReceiverLimits | None = None
    memory_free_bytes: Callable[[], int] = lambda: 0


class ReplicaRole:
    """Keeps the replicas that this node owns. The cache is run by its owner, not by this."""

    def __init__(self, ports: ReplicaRolePorts) -> None:
        self.ports = ports
        lease = LeaseKeeper.with_timing(ports.store, ports.clock, ports.lease)
        lease.on_deadline.append(ports.guard.set_deadline)
        self.watch = StorageWatch(
            ports.replica_store,
            ports.clock,
            ports.host,
            ports.locations,
            self._probe_ages_ms,
            ports.memory_free_bytes,
        )
        self.membership = Membership(
            ports.store,
            ports.clock,
            ports.randomness,
            ports.keys,
            lease,
            ports.identity,
            self.watch.facts,
        )
        self.vms = ReplicaVms(
            ports.host, ports.store, ports.cache, ports.keys, ports.clock, ports.events
        )
        self.parts = ReplicaParts(
            node=ports.identity.name,
            keys=ports.keys,
            store=ports.store,
            cache=ports.cache,
            writer=ports.writer,
            clock=ports.clock,
            randomness=ports.randomness,
            replica_store=ports.replica_store,
            standing=self.membership,
            domains=self.vms,
            events=ports.events,
            limits=ports.limits,
        )
        self.access = ReplicaAccess(ports.cache, ports.keys)
        self.keeper = Keeper(self.parts)
        self.membership.on_change.append(self.keeper.changed)
        self.receiver = Receiver(self.parts, self.keeper, self.access, ports.receiver_limits)
        self.releaser = Releaser(self.parts, self.keeper)
        self.compactor = Compactor(self.parts, self.keeper, ports.planner)
        operations = Operations(ports.store, ports.clock, ports.randomness, ports.keys)
        self.tests = TestFailovers(
            self.parts, self.keeper, ports.host, operations, ports.console_directory
        )

    def _probe_ages_ms(self) -> Mapping[str, int]:
        return self.ports.guard.probe_ages_ms()

    async def run(self) -> None:
        """All loops until cancelled; the first one that fails ends the role (a bug: crash)."""
        loops = [
            asyncio.ensure_future(loop)
            for loop in (
                self.membership.run(),
                self.keeper.run(),
                self.vms.run(),
                self.releaser.run(),
                self.compactor.run(),
                self.tests.run(),
                self.watch.run(self.membership.facts_changed),
            )
        ]
        try:
            done, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_EXCEPTION)
            for loop in done:
                loop.result()
        finally:
            await cancelled(*loops)

    async def stop(self) -> None:
        """Clean stop: cycles under way end at a boundary, replicas are released, then the lease.

        Call it while ``run`` still runs; cancel that afterwards.
        """
        self.keeper.draining = True
        ids = [actor.replica_id for actor in self.keeper.actors()]
        released = await self.keeper.release(ids, finish_ms=_STOP_FINISH_MS)
        _log.info("stopping: %d of %d replicas released", len(released), len(ids))
        await self.membership.stop()
