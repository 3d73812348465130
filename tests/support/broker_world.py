"""A simulated cluster for the broker's services: fake store, brokers, nodes that are records."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace

from broker.service.composition import BrokerServices, build_services
from vmreplica.core.cycle import Disk
from vmreplica.core.keys import Keys
from vmreplica.core.records import (
    BrokerRecord,
    NodeRecord,
    OwnerRecord,
    ReplicaRecord,
    StorageRecord,
    parse,
    render,
)
from vmreplica.core.settings import SettingsRecord
from vmreplica.ports.cluster_store import Put, StoreError
from vmreplica.ports.event_log import Severity
from vmreplica.ports.replica_link import NewReplica
from vmreplica.testing import sim_loop
from vmreplica.testing.fake_clock import FakeClock
from vmreplica.testing.fake_cluster_store import FakeClusterStore
from vmreplica.testing.fake_store_server import FakeStoreServer
from vmreplica.testing.seeded_randomness import SeededRandomness

KEYS = Keys("c1")
GIB = 1 << 30
UUID = "11111111-2222-3333-4444-{:012d}"


class Events:
    """Collects what was written."""

    def __init__(self) -> None:
        self.names: list[str] = []

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
        self.names.append(name)


class Holder:
    """An address that several brokers of one world may hold at a time, if they are wrong."""

    def __init__(self, world: World, name: str, clock: FakeClock) -> None:
        self.world = world
        self.name = name
        self.clock = clock
        self.until_ms = 0

    async def claim(self, deadline_boottime_ms: int) -> None:
        self.until_ms = deadline_boottime_ms

    async def extend(self, deadline_boottime_ms: int) -> None:
        self.until_ms = deadline_boottime_ms

    async def release(self) -> None:
        self.until_ms = 0

    def held(self) -> bool:
        return self.clock.boottime_ms() < self.until_ms


@dataclass
class Broker:
    """One broker process of the world."""

    name: str
    services: BrokerServices
    store: FakeClusterStore
    clock: FakeClock
    events: Events
    holder: Holder
    task: asyncio.Task[None]

    async def crash(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@dataclass
class World:
    """A store, brokers, and nodes that are no more than their records."""

    seed: int
    server: FakeStoreServer
    brokers: list[Broker] = field(default_factory=list)
    leases: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root = FakeClusterStore(self.server, "root")

    def broker(self, name: str, standalone: bool = False) -> Broker:
        store = FakeClusterStore(self.server, name)
        clock = FakeClock()
        events = Events()
        holder = Holder(self, name, clock)
        services = build_services(
            store=store,
            clock=clock,
            randomness=SeededRandomness(f"{self.seed}/{name}"),
            keys=KEYS,
            events=events,
            record=BrokerRecord(
                name=name, address=f"{name}:7443", server_name=name, version="0.1.0"
            ),
            client_access_point="r.example.org:7443",
            address_holder=holder,
            standalone=standalone,
        )
        task = asyncio.create_task(services.run())
        made = Broker(name, services, store, clock, events, holder, task)
        self.brokers.append(made)
        return made

    async def node(self, name: str, incarnation: str = "i1", **fields: object) -> None:
        lease = await self.root.grant(6_000)
        self.leases[name] = lease.lease_id
        record = NodeRecord(
            name=name,
            incarnation=incarnation,
            address=f"{name}:7444",
            server_name=name,
            version="0.1.0",
            storage=(
                StorageRecord(path="/s", shared=True, total_bytes=100 * GIB, free_bytes=90 * GIB),
            ),
        )
        record = replace(record, **fields)  # type: ignore[arg-type]
        await self.root.transaction(
            [], [Put(KEYS.node(name, incarnation), render(record), lease.lease_id)]
        )
        asyncio.get_running_loop().create_task(self._keep(lease.lease_id))

    async def _keep(self, lease_id: int) -> None:
        while lease_id in self.leases.values():
            with contextlib.suppress(StoreError):
                await self.root.keepalive(lease_id, 1_000)
            await asyncio.sleep(1.5)

    def kill_node(self, name: str) -> None:
        self.server.expire(self.leases.pop(name))

    async def settings(self, **values: str) -> None:
        wanted = {"any_server": "true", "default_storage_location": "/s", **values}
        await self.root.transaction(
            [], [Put(KEYS.settings, render(SettingsRecord(version=1, values=wanted)))]
        )

    async def until(self, what: Callable[[], object], seconds: float = 60) -> None:
        give_up = asyncio.get_running_loop().time() + seconds
        while not what():
            assert asyncio.get_running_loop().time() < give_up, "it never came true"
            await asyncio.sleep(0.01)

    def leaders(self) -> list[Broker]:
        return [b for b in self.brokers if b.services.election.may_act() and not b.task.done()]

    async def leader(self) -> Broker:
        await self.until(self.leaders)
        (one,) = self.leaders()
        return one

    def owner(self, replica_id: str) -> OwnerRecord:
        return parse(OwnerRecord, self.server.state.live[KEYS.owner(replica_id)].value)

    def owners(self) -> dict[str, OwnerRecord]:
        return {
            key[len(KEYS.owners) :]: parse(OwnerRecord, kv.value)
            for key, kv in self.server.state.live.items()
            if key.startswith(KEYS.owners)
        }

    async def release(self, replica_id: str) -> None:
        """What a draining or stopping owner does at the end of a cycle."""
        freed = render(replace(self.owner(replica_id), released=True))
        await self.root.transaction([], [Put(KEYS.owner(replica_id), freed)])

    async def admit(self, broker: Broker, number: int, name: str = "") -> ReplicaRecord:
        request = wish(number, name or f"vm{number}")
        return (await broker.services.admission.admit(("p.example.org",), request)).record


def wish(number: int, name: str, size: int = GIB, cap: str = "p.example.org:7443") -> NewReplica:
    return NewReplica(
        vm_uuid=UUID.format(number),
        vm_name=name,
        disks=(Disk("vda", size),),
        domain_xml=b"<domain/>",
        primary_access_point=cap,
        frequency_ms=5_000,
    )


def play(story: Callable[[World], Awaitable[None]], seed: int = 7) -> None:
    async def main(_: sim_loop.SimLoop) -> None:
        server = FakeStoreServer(seed)
        await story(World(seed, server))
        mine = asyncio.current_task()
        left = [task for task in asyncio.all_tasks() if task is not mine]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        server.close()

    print(f"seed {seed}")
    sim_loop.run(main, seed)
