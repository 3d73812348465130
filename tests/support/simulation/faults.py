"""What goes wrong in a simulated world, drawn from its seed; and the healing at the end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from broker.service.composition import BrokerServices
from simulation.cluster import Cluster
from simulation.hosts import LOCATION
from simulation.options import FAULT_KINDS
from simulation.primary import HOST
from vmreplica.core.problems import Problem
from vmreplica.ports.cluster_store import StoreError
from vmreplica.ports.replica_link import LinkFailed

_MOMENTS = ("", "fsync-directory", "rename", "layers", "manifest.", "json", "link")


class Faults:
    """Injects one fault after another; several may overlap."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self._cluster = cluster
        self._random = random.Random(seed ^ 0x5EED)
        self._over = False
        self._acts: dict[str, Callable[[], Awaitable[None]]] = {
            kind: getattr(self, f"_{kind}") for kind in FAULT_KINDS
        }

    async def run(self, until_s: float) -> None:
        """Inject until the given virtual time."""
        loop = self._cluster.loop
        options = self._cluster.options
        kinds = [k for k in FAULT_KINDS for _ in range(getattr(options, k))]
        while loop.time() < until_s:
            await asyncio.sleep(self._random.expovariate(1 / options.fault_pause_s))
            kind = self._random.choice(kinds)
            self._cluster.fired[kind] += 1
            self._cluster.spawn(self._acts[kind]())

    def heal(self) -> None:
        """Faults stop: the network passes, the store answers, clocks are right, hosts are up."""
        cluster = self._cluster
        self._over = True
        cluster.spawn(self._undrain_all())
        cluster.network.heal()
        cluster.server.regain_quorum()
        for name, life in cluster.lives.items():
            cluster.server.faults(name).heal()
            cluster.clocks[name].set_drift(0)
            cluster.clocks[name].go()
            cluster.loop.resume(life)
            cluster.view(name).error_chance = 0.0
        for ages in cluster.probe_ages.values():
            ages[LOCATION] = 0
        for name in list(cluster.lives):
            if not cluster.alive(name):
                cluster.boot(name)

    # -- helpers

    def _node(self) -> str:
        return self._random.choice(self._cluster.node_names)

    def _any(self) -> str:
        return self._random.choice((*self._cluster.node_names, *self._cluster.broker_names, HOST))

    async def _away(self, name: str, low_s: float, high_s: float) -> None:
        if not self._cluster.alive(name):
            return
        self._cluster.crash(name)
        await asyncio.sleep(self._random.uniform(low_s, high_s))
        if not self._cluster.alive(name):
            self._cluster.boot(name)

    async def _moment(self, name: str) -> bool:
        """Most faults strike in the middle of an act; false: the faults are over meanwhile.

        The act is one that changes names or what is durable, or a keepalive whose answer is
        under way.
        """
        cluster, drawn = self._cluster, self._random.random()
        moment: asyncio.Future[None] = cluster.loop.create_future()
        if drawn < 0.5:
            cluster.view(name).moment = moment
            cluster.view(name).moment_at = self._random.choice(_MOMENTS)
        elif drawn < 0.8 and cluster.alive(name):
            cluster.ownership.keepalives[cluster.node(name).role.membership.lease_id] = moment
        else:
            moment.set_result(None)
        await asyncio.wait({moment}, timeout=12)
        cluster.view(name).moment = None
        return not self._over

    # -- the kinds

    async def _crash_node(self) -> None:
        name = self._node()
        if await self._moment(name):
            await self._away(name, 1, 40)

    async def _brake(self) -> None:
        """All nodes but one vanish at once."""
        names = list(self._cluster.node_names)
        names.remove(self._node())
        await asyncio.gather(*(self._away(name, 1, 40) for name in names))

    async def _power_cut(self) -> None:
        """Storage and all nodes lose power: only what was durable is left."""
        cluster = self._cluster
        if not await self._moment(self._node()):
            return
        up = [name for name in cluster.node_names if cluster.alive(name)]
        for name in up:
            cluster.crash(name)
        cluster.disk.delayed.clear()
        cluster.disk.power_cut()
        cluster.checks.power_was_cut()
        await asyncio.sleep(self._random.uniform(1, 15))
        for name in up:
            if not cluster.alive(name):
                cluster.boot(name)

    async def _crash_broker(self) -> None:
        await self._away(self._random.choice(self._cluster.broker_names), 1, 40)

    async def _crash_primary(self) -> None:
        await self._away(HOST, 0.5, 10)

    async def _pause_node(self) -> None:
        name = self._node()
        if not await self._moment(name):
            return
        life = self._cluster.lives[name]
        self._cluster.loop.pause(life)
        await asyncio.sleep(self._random.choice((1.0, 4.0, 4.5, 7.0, 15.0)))
        self._cluster.loop.resume(life)

    async def _freeze_clock(self) -> None:
        """The host is a virtual machine that was paused: its clocks stood still as well."""
        name = self._any()
        if name in self._cluster.node_names and not await self._moment(name):
            return
        life, clock = self._cluster.lives[name], self._cluster.clocks[name]
        clock.stop()
        self._cluster.loop.pause(life)
        await asyncio.sleep(self._random.uniform(2, 20))
        clock.go()
        self._cluster.loop.resume(life)

    async def _drift(self) -> None:
        clock = self._cluster.clocks[self._any()]
        clock.set_drift(self._random.uniform(-0.1, 0.1))
        await asyncio.sleep(self._random.uniform(10, 60))
        clock.set_drift(0)

    async def _clock_step(self) -> None:
        self._cluster.clocks[self._any()].step(
            self._random.choice((-86_400_000, -5_000, 86_400_000))
        )

    async def _cut(self, *, one_way: bool) -> None:
        network = self._cluster.network
        hosts = [*self._cluster.node_names, *self._cluster.broker_names, HOST]
        source, target = self._random.sample(hosts, 2)
        network.cut(source, target, one_way=one_way)
        await asyncio.sleep(self._random.uniform(1, 40))
        network.blocked.discard((source, target))
        network.blocked.discard((target, source))

    async def _partition(self) -> None:
        await self._cut(one_way=False)

    async def _one_way(self) -> None:
        await self._cut(one_way=True)

    async def _store_unavailable(self) -> None:
        name = self._any()
        faults = self._cluster.server.faults(name)
        faults.cut = True
        await asyncio.sleep(self._random.uniform(1, 25))
        faults.cut = False

    async def _store_unknown(self) -> None:
        faults = self._cluster.server.faults(self._any())
        faults.lose_request = faults.lose_reply = faults.late_apply = 0.15
        await asyncio.sleep(self._random.uniform(2, 20))
        faults.lose_request = faults.lose_reply = faults.late_apply = 0.0

    async def _store_quorum(self) -> None:
        self._cluster.server.lose_quorum()
        await asyncio.sleep(self._random.uniform(1, 30))
        self._cluster.server.regain_quorum()

    async def _store_slow(self) -> None:
        faults = self._cluster.server.faults(self._any())
        faults.slow = 0.5
        await asyncio.sleep(self._random.uniform(2, 20))
        faults.slow = 0.0

    async def _watch_faults(self) -> None:
        cluster = self._cluster
        name = self._any()
        if self._random.random() < 0.4:
            name = cluster.network.vip_host() or name
        faults = cluster.server.faults(name)
        faults.lose_watch_events = 0.3
        faults.watch_delay_ms = (0, 2_000)
        await asyncio.sleep(self._random.uniform(2, 20))
        faults.lose_watch_events = 0.0
        faults.watch_delay_ms = (0, 0)
        faults.break_watches()

    async def _compaction(self) -> None:
        self._cluster.server.compact()
        self._cluster.server.faults(self._any()).compact_watches()

    async def _lost_reply(self) -> None:
        self._cluster.network.lose_reply = 0.3
        await asyncio.sleep(self._random.uniform(2, 15))
        self._cluster.network.lose_reply = 0.0

    async def _cut_streams(self) -> None:
        self._cluster.network.cut_stream = 0.1
        await asyncio.sleep(self._random.uniform(2, 15))
        self._cluster.network.cut_stream = 0.0

    async def _storage_stall(self) -> None:
        ages = self._cluster.probe_ages[self._node()]
        ages[LOCATION] = 9_000
        await asyncio.sleep(self._random.uniform(3, 20))
        ages[LOCATION] = 0

    async def _storage_error(self) -> None:
        name = self._node()
        self._cluster.view(name).error_chance = 0.05
        await asyncio.sleep(self._random.uniform(1, 10))
        self._cluster.view(name).error_chance = 0.0

    async def _drain(self) -> None:
        name = self._node()
        if await self._at_leader(lambda services: services.drain.drain(name)):
            self._cluster.fired["drain_begun"] += 1
        await asyncio.sleep(self._random.uniform(5, 30))
        await self._at_leader(lambda services: services.drain.undrain(name))

    async def _at_leader(self, act: Callable[[BrokerServices], Awaitable[object]]) -> bool:
        """A person asks the leader; whether it was done."""
        cluster = self._cluster
        leader = cluster.network.vip_host()
        if not leader:
            return False
        try:
            await cluster.network.call(leader, leader, lambda: act(cluster.broker(leader).services))
        except (Problem, LinkFailed, StoreError):
            return False
        return True

    async def _undrain_all(self) -> None:
        """In the end somebody puts every node to use again."""
        cluster = self._cluster
        for name in cluster.node_names:
            while not await self._at_leader(lambda s, n=name: s.drain.undrain(n)):
                await asyncio.sleep(2)

    async def _lose_bitmap(self) -> None:
        self._cluster.checks.tracking_lost += 1
        self._random.choice(self._cluster.hypervisor.vms).lose_tracking()
