"""The broker's services on the fake store, in virtual time: elections, admission, relocation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace

import pytest

from broker.service.composition import BrokerServices, build_services
from vmreplica.core.cycle import Disk
from vmreplica.core.keys import Keys
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import (
    BrokerRecord,
    DrainState,
    NodeConfigRecord,
    NodeRecord,
    OperationState,
    OwnerRecord,
    ReplicaRecord,
    StorageRecord,
    parse,
    render,
)
from vmreplica.core.settings import SettingsRecord
from vmreplica.ports.cluster_store import Delete, Put
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


def test_the_next_candidate_leads_when_the_leader_dies() -> None:
    async def story(world: World) -> None:
        first = world.broker("b1")
        assert await world.leader() is first
        second, third = world.broker("b2"), world.broker("b3")
        await world.until(lambda: len(second.services.inventory.brokers()) == 3)
        assert first.holder.held() and not second.holder.held()
        await first.crash()
        await world.until(lambda: not first.holder.held())
        heir = await world.leader()
        assert heir in (second, third)
        await world.until(heir.holder.held)
        assert heir.events.names.count("broker.elected") == 1

    play(story)


@pytest.mark.parametrize("seed", range(5))
def test_at_most_one_may_act_and_holds_the_address(seed: int) -> None:
    async def story(world: World) -> None:
        brokers = [world.broker(f"b{i}") for i in range(3)]
        for turn in range(200):
            chosen = brokers[world.server.random.randrange(3)]
            if turn % 20 == 0:
                chosen.store.faults.cut = True
            if turn % 20 == 12:
                for broker in brokers:
                    broker.store.faults.heal()
            await asyncio.sleep(0.5)
            assert len(world.leaders()) <= 1
            assert sum(b.holder.held() for b in brokers) <= 1
        await world.leader()

    play(story, seed)


def test_a_clean_stop_hands_over_at_once() -> None:
    async def story(world: World) -> None:
        first = world.broker("b1")
        await world.leader()
        second = world.broker("b2")
        await world.until(lambda: len(second.services.inventory.brokers()) == 2)
        began = asyncio.get_running_loop().time()
        await first.services.stop()
        assert not first.holder.held()
        await world.until(second.services.election.may_act)
        assert asyncio.get_running_loop().time() - began < 0.3

    play(story)


def test_past_its_deadline_it_pauses_and_goes_on_with_the_same_lease() -> None:
    async def story(world: World) -> None:
        only = world.broker("b1")
        await world.leader()
        lease = next(iter(world.server.state.live)).split("/")[-1]
        world.server.lose_quorum()
        await world.until(lambda: not only.services.election.may_act())
        assert only.services.election.leads
        with pytest.raises(Problem) as refused:
            await only.services.settings.update({"fence": "none"})
        assert refused.value.reason is Reason.NO_LEADER
        world.server.regain_quorum()
        await world.until(only.services.election.may_act)
        assert only.events.names.count("broker.elected") in (1, 2)
        assert lease

    play(story)


def test_a_lost_lease_means_a_new_campaign() -> None:
    async def story(world: World) -> None:
        only = world.broker("b1")
        await world.leader()
        (key,) = [k for k in world.server.state.live if k.startswith(KEYS.elections)]
        world.server.expire(int(key.rsplit("/", 1)[1], 16))
        await world.until(lambda: only.events.names.count("broker.elected") == 2)
        assert "broker.resigned" in only.events.names

    play(story)


def test_admission_places_writes_and_repeats() -> None:
    async def story(world: World) -> None:
        await world.settings()
        await world.node("n1", running_vms=3)
        await world.node("n2")
        broker = world.broker("b1")
        await world.leader()
        await world.until(lambda: len(broker.services.inventory.live_nodes()) == 2)
        first = await broker.services.admission.admit(("p.example.org",), wish(1, "web"))
        assert first.changed
        assert first.record.placement_node == "n2"
        assert first.record.trust_group == "DEFAULT/p.example.org"
        assert first.record.folder_path == f"/s/{first.record.replica_id}.i1"
        assert world.owner(first.record.replica_id).epoch == 1
        live = world.server.state.live
        assert live[KEYS.definition(first.record.replica_id)].value == "<domain/>"
        again = await broker.services.admission.admit(("p.example.org",), wish(1, "web"))
        assert not again.changed
        assert again.record == first.record
        with pytest.raises(Problem) as refused:
            await broker.services.admission.admit(("p.example.org",), wish(1, "web", 2 * GIB))
        assert refused.value.reason is Reason.DISK_SHAPE_CHANGED
        twin = await world.admit(broker, 2, "web")
        assert twin.domain_name == f"web ({twin.replica_id[:8]})"

    play(story)


def test_equal_requests_at_once_make_one_replica_and_names_stay_unique() -> None:
    async def story(world: World) -> None:
        await world.settings()
        await world.node("n1")
        broker = world.broker("b1")
        await world.leader()
        await world.until(broker.services.inventory.live_nodes)
        made = await asyncio.gather(*(world.admit(broker, n % 4, "same") for n in range(12)))
        assert len({r.replica_id for r in made}) == 4
        assert len({r.domain_name for r in made}) == 4

    play(story)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"replication_enabled": "false"}, Reason.REPLICATION_DISABLED),
        ({"any_server": "false"}, Reason.NOT_AUTHORIZED),
        ({"default_storage_location": "/other"}, Reason.NO_NODE_FITS),
    ],
)
def test_admission_refuses(change: dict[str, str], reason: Reason) -> None:
    async def story(world: World) -> None:
        await world.settings(**change)
        await world.node("n1")
        broker = world.broker("b1")
        await world.leader()
        await world.until(broker.services.inventory.live_nodes)
        with pytest.raises(Problem) as refused:
            await world.admit(broker, 1)
        assert refused.value.reason is reason
        assert not world.owners()

    play(story)


def test_a_cluster_keeps_no_replica_of_its_own_vms() -> None:
    async def story(world: World) -> None:
        await world.settings()
        broker = world.broker("b1")
        await world.leader()
        own = wish(1, "a", cap="r.example.org:7443")
        with pytest.raises(Problem) as refused:
            await broker.services.admission.admit(("r.example.org",), own)
        assert refused.value.field == "primary_access_point"

    play(story)


def test_a_standby_admits_nothing() -> None:
    async def story(world: World) -> None:
        world.broker("b1")
        await world.leader()
        standby = world.broker("b2")
        await standby.services.inventory.ready()
        with pytest.raises(Problem) as refused:
            await world.admit(standby, 1)
        assert refused.value.reason is Reason.NO_LEADER

    play(story)


def test_replicas_of_a_dead_node_are_spread_over_the_others() -> None:
    async def story(world: World) -> None:
        await world.settings()
        broker = world.broker("b1")
        await world.leader()
        await world.node("n1")
        await world.until(broker.services.inventory.live_nodes)
        ids = [(await world.admit(broker, n)).replica_id for n in range(30)]
        await world.node("n2")
        await world.node("n3")
        await world.until(lambda: len(broker.services.inventory.live_nodes()) == 3)
        world.kill_node("n1")
        await world.until(lambda: all(o.node != "n1" for o in world.owners().values()), 3)
        owners = world.owners()
        assert {owners[i].epoch for i in ids} == {2}
        counts = [sum(o.node == n for o in owners.values()) for n in ("n2", "n3")]
        assert counts == [15, 15]
        assert broker.events.names.count("replica.relocated") == 30
        assert "brake.engaged" not in broker.events.names

    play(story)


def test_the_brake_delays_when_most_vanish_and_then_acts() -> None:
    async def story(world: World) -> None:
        await world.settings()
        broker = world.broker("b1")
        await world.leader()
        for name in ("n1", "n2", "n3"):
            await world.node(name)
        await world.until(lambda: len(broker.services.inventory.live_nodes()) == 3)
        for n in range(30):
            await world.admit(broker, n)
        began = asyncio.get_running_loop().time()
        lease_of = dict(world.leases)
        for name in ("n1", "n2"):
            world.leases.pop(name)
        world.server.expire(lease_of["n1"])
        world.server.expire(lease_of["n2"])
        await world.until(lambda: "brake.engaged" in broker.events.names, 2)
        await world.until(lambda: all(o.node == "n3" for o in world.owners().values()), 20)
        assert asyncio.get_running_loop().time() - began >= 6
        assert "brake.released" in broker.events.names

    play(story)


def test_a_node_that_came_back_takes_its_own_without_the_brake() -> None:
    async def story(world: World) -> None:
        await world.settings()
        broker = world.broker("b1")
        await world.leader()
        await world.node("n1")
        await world.node("n2")
        await world.until(lambda: len(broker.services.inventory.live_nodes()) == 2)
        for n in range(6):
            await world.admit(broker, n)
        await world.node("n1", "i2")
        old = [k for k in world.server.state.live if k == KEYS.node("n1", "i1")]
        world.server.expire(world.server.state.live[old[0]].lease_id)
        await world.until(
            lambda: all(o.incarnation != "i1" or o.node == "n2" for o in world.owners().values()), 3
        )
        owners = world.owners().values()
        assert sorted(o.node for o in owners) == ["n1"] * 3 + ["n2"] * 3
        assert "brake.engaged" not in broker.events.names

    play(story)


def test_a_stalled_node_loses_its_replicas_though_it_lives() -> None:
    async def story(world: World) -> None:
        await world.settings()
        broker = world.broker("b1")
        await world.leader()
        await world.node("n1")
        await world.until(broker.services.inventory.live_nodes)
        made = await world.admit(broker, 1)
        await world.node("n2")
        kv = world.server.state.live[KEYS.node("n1", "i1")]
        stalled = replace(parse(NodeRecord, kv.value), stalled=True)
        await world.root.transaction([], [Put(kv.key, render(stalled), kv.lease_id)])
        await world.until(lambda: world.owner(made.replica_id).node == "n2", 3)

    play(story)


async def release_all(world: World, node: str) -> None:
    """What a draining node does, replica by replica."""
    for replica_id, owner in world.owners().items():
        if owner.node == node:
            freed = render(replace(owner, released=True))
            await world.root.transaction([], [Put(KEYS.owner(replica_id), freed)])


def drain_state(world: World, node: str) -> DrainState:
    return parse(NodeConfigRecord, world.server.state.live[KEYS.node_config(node)].value).drain


def test_a_drained_node_ends_empty_across_a_change_of_leader() -> None:
    async def story(world: World) -> None:
        await world.settings()
        broker = world.broker("b1")
        await world.leader()
        await world.node("n1")
        await world.until(broker.services.inventory.live_nodes)
        for n in range(4):
            await world.admit(broker, n)
        with pytest.raises(Problem) as refused:
            await broker.services.drain.drain("n1")
        assert refused.value.reason is Reason.NO_NODE_FITS
        await world.node("n2")
        await world.until(lambda: len(broker.services.inventory.live_nodes()) == 2)
        operation_id = await broker.services.drain.drain("n1")
        assert await broker.services.drain.drain("n1") == operation_id
        heir = world.broker("b2")
        await heir.services.inventory.ready()
        await broker.crash()
        await world.until(heir.services.election.may_act)
        await release_all(world, "n1")
        await world.until(lambda: drain_state(world, "n1") is DrainState.DRAINED, 10)
        done = await heir.services.operations.wait(operation_id, 5_000)
        assert done.state is OperationState.SUCCEEDED
        assert (done.done, done.total) == (4, 4)
        assert {o.node for o in world.owners().values()} == {"n2"}
        assert await heir.services.drain.undrain("n1")
        assert not await heir.services.drain.undrain("n1")
        assert drain_state(world, "n1") is DrainState.READY

    play(story)


def test_cancelling_a_drain_undrains() -> None:
    async def story(world: World) -> None:
        await world.settings()
        broker = world.broker("b1")
        await world.leader()
        await world.node("n1")
        await world.node("n2")
        await world.until(lambda: len(broker.services.inventory.live_nodes()) == 2)
        for n in range(4):
            await world.admit(broker, n)
        operation_id = await broker.services.drain.drain("n1")
        await broker.services.operations.request_cancel(operation_id)
        await world.until(lambda: drain_state(world, "n1") is DrainState.READY, 10)
        done = await broker.services.operations.wait(operation_id, 5_000)
        assert done.state is OperationState.CANCELLED

    play(story)


def test_removal_is_told_to_the_owner_and_ends_when_the_record_is_gone() -> None:
    async def story(world: World) -> None:
        await world.settings()
        broker = world.broker("b1")
        await world.leader()
        await world.node("n1")
        await world.until(broker.services.inventory.live_nodes)
        made = await world.admit(broker, 1)
        operation_id = await broker.services.remover.remove(made.replica_id, delete_data=True)
        again = await broker.services.remover.remove(made.replica_id, delete_data=False)
        assert again == operation_id
        kv = world.server.state.live[KEYS.replica(made.replica_id)]
        record = parse(ReplicaRecord, kv.value)
        assert record.removing and record.delete_data
        await asyncio.sleep(5)
        state = (await broker.services.operations.get(operation_id)).state
        assert state is OperationState.RUNNING
        await world.root.transaction(
            [], [*(Delete(k) for k in (kv.key, KEYS.owner(made.replica_id)))]
        )
        done = await broker.services.operations.wait(operation_id, 10_000)
        assert done.state is OperationState.SUCCEEDED

    play(story)


def test_without_an_owner_only_the_records_go() -> None:
    async def story(world: World) -> None:
        await world.settings()
        broker = world.broker("b1")
        await world.leader()
        await world.node("n1")
        await world.until(broker.services.inventory.live_nodes)
        made = await world.admit(broker, 1)
        world.kill_node("n1")
        await world.until(lambda: not broker.services.inventory.live_nodes())
        operation_id = await broker.services.remover.remove(made.replica_id, delete_data=False)
        done = await broker.services.operations.wait(operation_id, 10_000)
        assert done.state is OperationState.SUCCEEDED
        assert not [k for k in world.server.state.live if made.replica_id in k and "oper" not in k]

    play(story)


def test_settings_are_versioned() -> None:
    async def story(world: World) -> None:
        broker = world.broker("b1")
        await world.leader()
        service = broker.services.settings
        both = {"any_server": "true", "default_storage_location": "/s"}
        assert await service.update(both) == (1, True)
        assert await service.update(both, expected_version=1) == (1, False)
        assert broker.services.inventory.settings.any_server
        with pytest.raises(Problem) as refused:
            await service.update({"verify": "before-ack"}, expected_version=7)
        assert refused.value.reason is Reason.STATE_REFUSES

    play(story)


def test_locate_tells_the_owner_or_why_not() -> None:
    async def story(world: World) -> None:
        await world.settings()
        broker = world.broker("b1")
        await world.leader()
        await world.node("n1")
        await world.until(broker.services.inventory.live_nodes)
        made = await world.admit(broker, 1)
        standby = world.broker("b2")
        await standby.services.inventory.ready()
        found = standby.services.locator.locate(made)
        assert (found.node, found.address, found.epoch) == ("n1", "n1:7444", 1)
        relayed = standby.services.locator.locate(made, relay=True)
        assert (relayed.address, relayed.server_name) == ("r.example.org:7443", "r.example.org")
        world.kill_node("n1")
        await world.until(lambda: not standby.services.inventory.live_nodes())
        with pytest.raises(Problem) as refused:
            standby.services.locator.locate(made)
        assert refused.value.reason is Reason.NODE_UNREACHABLE
        world.server.lose_quorum()
        await asyncio.sleep(15)
        with pytest.raises(Problem) as refused:
            standby.services.locator.locate(made)
        assert refused.value.reason is Reason.STORE_UNAVAILABLE

    play(story)


def test_a_name_that_fits_two_is_ambiguous() -> None:
    async def story(world: World) -> None:
        await world.settings()
        broker = world.broker("b1")
        await world.leader()
        await world.node("n1")
        await world.until(broker.services.inventory.live_nodes)
        one, two = await world.admit(broker, 1, "web"), await world.admit(broker, 2, "web")
        inventory = broker.services.inventory
        with pytest.raises(Problem) as refused:
            inventory.find("web")
        assert refused.value.reason is Reason.AMBIGUOUS_NAME
        assert one.replica_id in refused.value.message and two.replica_id in refused.value.message
        assert inventory.find(one.vm_uuid) == one
        assert inventory.find(two.replica_id) == two
        assert inventory.find("nobody") is None

    play(story)


def test_an_unreadable_record_is_ignored() -> None:
    async def story(world: World) -> None:
        await world.root.transaction([], [Put(KEYS.replica("x"), "not json")])
        broker = world.broker("b1")
        await world.leader()
        assert broker.services.inventory.replica("x") is None

    play(story)
