"""A host of another trust group that tries every door, again and again (promise 6)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from simulation.link import SimReplicaLink
from vmreplica.core.cycle import ZERO_DIGEST, CycleKind, CycleOpen
from vmreplica.core.problems import Problem, Reason
from vmreplica.ports.replica_link import LinkFailed, Location, NewReplica
from vmreplica.testing.sim_loop import HostLife

if TYPE_CHECKING:
    from simulation.cluster import Cluster

NAME = "x1"
_PERIOD_S = 17.0
_HIDDEN = frozenset({Reason.UNKNOWN_REPLICA})
_REFUSED = frozenset({Reason.NOT_AUTHORIZED})
# What anybody may be told before it is asked who he is.
_NEUTRAL = frozenset({Reason.NO_LEADER, Reason.STORE_UNAVAILABLE})


class Intruder:
    """``tries`` counts what was refused."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._link = SimReplicaLink(cluster.network, cluster, NAME, (NAME,))
        cluster.network.lives[NAME] = HostLife(NAME)
        self.tries = 0

    async def run(self) -> None:
        """Until the world ends."""
        cluster = self._cluster
        while True:
            await asyncio.sleep(_PERIOD_S)
            for replica_id, history in list(cluster.checks.histories.items())[:2]:
                newest = history.newest
                node = cluster.random.choice(cluster.node_names)
                # None of these closes over the loop's variables beyond its own awaiting.
                await self._refused(_HIDDEN, lambda r=replica_id: self._link.get_head("", r))
                await self._refused(_HIDDEN, lambda r=replica_id: self._link.locate("", r))
                await self._refused(_HIDDEN, lambda r=replica_id, n=node: self._offer(n, r))
                foreign = NewReplica(
                    vm_uuid=newest.vm_uuid,
                    vm_name=newest.vm_name,
                    disks=newest.disks,
                    domain_xml=b"",
                    primary_access_point=newest.primary_access_point,
                    frequency_ms=5_000,
                )
                await self._refused(
                    _REFUSED, lambda f=foreign: self._link.create_replica("", f, "")
                )

    async def _offer(self, node: str, replica_id: str) -> None:
        """A cycle straight to a node."""
        newest = self._cluster.checks.histories[replica_id].newest
        location = Location(
            replica_id=replica_id, node=node, address="", server_name="", epoch=newest.epoch
        )
        stream = await self._link.replicate("", location)
        try:
            await stream.open(
                CycleOpen(
                    replica_id=replica_id,
                    epoch=0,
                    seq=newest.head.seq + 1,
                    parent_digest=newest.head.digest or ZERO_DIGEST,
                    kind=CycleKind.DELTA,
                    disks=newest.disks,
                    cycle_id=bytes(16),
                )
            )
        finally:
            await stream.cancel()

    async def _refused(
        self, reasons: frozenset[Reason], attempt: Callable[[], Awaitable[object]]
    ) -> None:
        try:
            got = await attempt()
        except LinkFailed:
            return
        except Problem as problem:
            if problem.reason not in reasons | _NEUTRAL:
                self._cluster.checks.fail(f"the intruder was told: {problem}")
            self.tries += problem.reason in reasons
        else:
            self._cluster.checks.fail(f"the intruder got {got}")
