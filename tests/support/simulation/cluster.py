"""A simulated cluster: three to four nodes, two to three brokers, one primary, one store."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Coroutine
from typing import Any, Protocol

from simulation.checks import Checks
from simulation.hosts import LOCATION, SimBroker, SimNode
from simulation.network import Network
from simulation.options import Options
from simulation.ownership_checks import OwnershipChecks
from simulation.primary import HOST, Hypervisor, SimPrimary
from simulation.storage import SimFiles
from vmreplica.core.keys import Keys
from vmreplica.core.records import render
from vmreplica.core.settings import SettingsRecord
from vmreplica.ports.cluster_store import Put
from vmreplica.ports.event_log import Severity
from vmreplica.testing.fake_clock import FakeClock
from vmreplica.testing.fake_cluster_store import FakeClusterStore
from vmreplica.testing.fake_store_server import FakeStoreServer
from vmreplica.testing.memory_disk import MemoryDisk
from vmreplica.testing.sim_loop import HostLife, SimLoop


class Host(Protocol):
    """A composed daemon."""

    async def main(self) -> None:
        """Run until the host dies."""
        ...


class SimEvents:
    """EventLog that counts."""

    def __init__(self, seen: Counter[str]) -> None:
        self._seen = seen

    def write(
        self,
        name: str,
        message: str,
        *,
        severity: Severity = Severity.INFO,
        replica_id: str = "",
        vm_name: str = "",
        data: object = None,
    ) -> None:
        """Count the name."""
        del message, severity, replica_id, vm_name, data
        self._seen[name] += 1


class Cluster:
    """Everything of one world. ``fired`` counts each fault that really happened."""

    def __init__(self, loop: SimLoop, seed: int, options: Options) -> None:
        self.loop = loop
        self.random = random.Random(seed)
        self.options = options
        self.keys = Keys("replica")
        self.fired: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        self.network = Network(loop, random.Random(self.random.getrandbits(64)), self.fired)
        self.violated: asyncio.Future[None] = loop.create_future()
        self.disk = MemoryDisk(
            now_ms=lambda: loop.time() * 1000,
            listing_lag_ms=self.random.choice((0.0, 0.0, 2_000.0)),
            pick=self.random.randrange,
        )
        self.disk.make_location(LOCATION)
        self.checks = Checks(self.disk, loop.time, self._violated)
        self.ownership = OwnershipChecks(self.keys, self.checks, self._leaders)
        self.server = FakeStoreServer(self.random.getrandbits(32), step=self.ownership.step)
        # Watched while the check is sound: a frozen clock shows that a lease stands which is gone.
        self.clocks_are_true = not options.freeze_clock
        self.files: dict[str, SimFiles] = {}
        self.node_names = tuple(f"r{i + 1}" for i in range(options.nodes))
        self.broker_names = tuple(f"b{i + 1}" for i in range(options.brokers))
        self.probe_ages = {name: {LOCATION: 0} for name in self.node_names}
        self.clocks = {
            name: FakeClock(booted_ms=self.random.randrange(10**6, 10**8))
            for name in (*self.node_names, *self.broker_names, HOST)
        }
        self.hypervisor = Hypervisor(self, self.clocks[HOST], options.vms)
        self.lives: dict[str, HostLife] = {}
        self.hosts: dict[str, SimBroker | SimNode | SimPrimary] = {}

    def _violated(self, violation: BaseException) -> None:
        if not self.violated.done():
            self.violated.set_exception(violation)

    def _leaders(self) -> list[str]:
        brokers = [self.broker(name) for name in self.broker_names if self.alive(name)]
        leading = [
            b.name
            for b in brokers
            if not self.lives[b.name].paused and b.services.election.may_act()
        ]
        return leading if self.clocks_are_true else leading[:1]

    def events_of(self, name: str) -> SimEvents:
        """The event log of one host."""
        del name
        return SimEvents(self.events)

    def view(self, name: str) -> SimFiles:
        """One host's view of the shared directory."""
        if name not in self.files:
            rng = random.Random(self.random.getrandbits(64))
            self.files[name] = SimFiles(self.disk, name, rng, self.checks, self.fired)
        return self.files[name]

    def broker(self, name: str) -> SimBroker:
        """A living broker."""
        host = self.hosts[name]
        assert isinstance(host, SimBroker)
        return host

    def node(self, name: str) -> SimNode:
        """A living node."""
        host = self.hosts[name]
        assert isinstance(host, SimNode)
        return host

    @property
    def primary(self) -> SimPrimary:
        """The agent of the primary host."""
        host = self.hosts[HOST]
        assert isinstance(host, SimPrimary)
        return host

    def look_at_standings(self) -> None:
        """One broker leads at the most; a node that may act has its lease."""
        self.ownership.one_leader()
        for name in self.node_names:
            if self.alive(name) and not self.lives[name].paused:
                self.node(name).look_at_standing()

    async def start(self) -> None:
        """Settings first, then every host."""
        settings = SettingsRecord(
            values={"any_server": "true", "default_storage_location": LOCATION}
        )
        admin = FakeClusterStore(self.server, "admin")
        await admin.transaction([], [Put(self.keys.settings, render(settings))])
        for name in (*self.broker_names, *self.node_names, HOST):
            self.boot(name)
        self.spawn(self.hypervisor.guests_write())

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """The world's own doing, part of no host's life; it must not fail."""
        self.loop.create_task(self._reported(work))

    async def _reported(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:
            self._violated(error)
            raise

    def boot(self, name: str) -> None:
        """Start a host's daemon in a new life."""
        boots = self.lives[name].boot + 1 if name in self.lives else 1
        life = HostLife(name, boots)
        self.lives[name] = self.network.lives[name] = life
        host: SimBroker | SimNode | SimPrimary
        if name in self.broker_names:
            host = SimBroker(self, name, self.clocks[name])
        elif name in self.node_names:
            host = SimNode(self, name, self.clocks[name])
        else:
            host = SimPrimary(self, self.clocks[name], self.hypervisor)
        self.hosts[name] = host
        self.loop.start_on(life, self._guarded(life, host.main()))

    async def _guarded(self, life: HostLife, main: Coroutine[Any, Any, None]) -> None:
        """A daemon that ends by itself is a bug."""
        try:
            await main
        except BaseException as error:
            if not life.dead:
                self._violated(error)
            raise

    def crash(self, name: str) -> None:
        """kill -9 of everything on the host."""
        self.loop.crash(self.lives[name])
        self.network.died(self.lives[name])
        if name in self.node_names:
            self.disk.crash(name)

    def alive(self, name: str) -> bool:
        """Whether the host is up."""
        return not self.lives[name].dead
