"""Counterexamples of a review of the data path, each of which must stay refuted."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest

from node.api.access import NodeAccess
from node.service.replica_parts import KeeperLimits
from node.service.storage_watch import StorageLocation, StorageWatch
from tests.support.primary_world import PrimaryWorld
from tests.support.primary_world import in_world as in_primary_world
from tests.unit.replica_world import (
    KEYS,
    REPLICA,
    XML,
    Line,
    World,
    cluster,
    make_cycle,
    raw_frame,
    send_cycle,
)
from tests.unit.test_keeper import in_world
from vmreplica.coordination.lease_keeper import LeaseKeeper
from vmreplica.coordination.store_cache import StoreCache
from vmreplica.core.cycle import (
    CLUSTER_BYTES,
    EMPTY_DIGEST,
    Accepted,
    Acknowledged,
    CycleKind,
    Disk,
    Frame,
    cycle_digest,
    digest,
)
from vmreplica.core.domain_xml import replica_xml
from vmreplica.core.identity import Identity, Role, RoleKind
from vmreplica.core.lease_timing import NODE_LEASE
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.receiving import CycleTally
from vmreplica.core.records import OwnerRecord, render
from vmreplica.core.replica_state import ReplicaPhase
from vmreplica.ports.cluster_store import Put
from vmreplica.ports.replica_store import ReplicaFolder, ReplicaStore, Space
from vmreplica.ports.vm_host import Vm
from vmreplica.testing.fake_clock import FakeClock
from vmreplica.testing.fake_cluster_store import FakeClusterStore
from vmreplica.testing.fake_replica_store import FakeReplicaStore, FakeStorage
from vmreplica.testing.fake_store_server import FakeStoreServer
from vmreplica.testing.fake_vm_host import FakeVmHost
from vmreplica.testing.sim_loop import SimLoop, run
from vmreplica.wire.call import Call

OTHER = "33333333-3333-3333-3333-333333333333"
FULL = [raw_frame(0, {i: cluster(f"a{i}") for i in range(8)})]


def test_a_directory_of_another_replica_is_never_taken_over() -> None:
    """The data of a removed replica may still lie where a new one is to be made."""

    async def story(world: World) -> None:
        node = await world.start("r1")
        record = await world.create(node)
        await send_cycle(node, make_cycle(1, b"", FULL))
        actor = node.role.keeper.find(REPLICA)
        assert actor is not None and actor.session is not None
        before = actor.session.manifest.n
        foreign = replace(
            record,
            replica_id=OTHER,
            vm_uuid="44444444-4444-4444-4444-444444444444",
            trust_group="DEFAULT/p9.example.org",
            established=False,
        )
        owner = OwnerRecord(node="r1", incarnation=await node.joined(), epoch=1)
        await world.store.transaction(
            [], [Put(KEYS.replica(OTHER), render(foreign)), Put(KEYS.owner(OTHER), render(owner))]
        )
        await asyncio.sleep(3)
        other = node.role.keeper.find(OTHER)
        assert other is not None
        assert other.session is None
        with pytest.raises(Problem):
            await other.serving(100)
        # Nothing was written into the other's log: its owner goes on.
        assert actor.session is not None and actor.session.manifest.n == before
        again = make_cycle(2, actor.session.manifest.head.digest, [raw_frame(0, {1: cluster("d")})])
        assert (await send_cycle(node, again)).seq == 2
        # Removing the new one, data and all, takes nothing of the old one's.
        gone = replace(foreign, removing=True, delete_data=True)
        await world.store.transaction([], [Put(KEYS.replica(OTHER), render(gone))])
        await asyncio.sleep(30)
        assert await world.store.get(KEYS.replica(OTHER)) is None
        third = make_cycle(3, again.close.cycle_digest, [raw_frame(0, {2: cluster("e")})])
        assert (await send_cycle(node, third)).seq == 3
        assert actor.session is not None
        named = await actor.session.folder.plain_digests("vda", actor.session.manifest, 3)
        assert named.get(7) == digest(cluster("a7"))

    in_world(story)


class SlowStorage:
    """statvfs takes a moment, as on any real storage."""

    def __init__(self, inner: ReplicaStore) -> None:
        self._inner = inner

    async def open_folder(self, folder_path: str, *, create: bool) -> ReplicaFolder:
        return await self._inner.open_folder(folder_path, create=create)

    async def space(self, location: str) -> Space:
        await asyncio.sleep(0.02)
        return await self._inner.space(location)


def test_two_streams_that_open_at_once_never_both_serve() -> None:
    """Both wait for an older one's end; a draft one of them seals must not fall unseen."""

    async def story(world: World) -> None:
        storage = SlowStorage(world.replica_store("r1"))
        node = await world.start("r1", storage)
        await world.create(node)
        old = Line(node)
        old.send(make_cycle(1, b"", FULL, cycle_id=b"o" * 16).open)
        assert isinstance(await old.next(), Accepted)
        older = asyncio.ensure_future(old.next())
        frames = [raw_frame(0, {i: cluster(f"s{i}")}) for i in range(10)]
        one = make_cycle(1, b"", frames, cycle_id=b"x" * 16)
        two = make_cycle(1, b"", frames, cycle_id=b"y" * 16)
        lines = []
        for sent in (one, two):
            line = Line(node)
            line.send(sent.open)
            lines.append((sent, line))
        firsts = await asyncio.gather(*(line.next() for _, line in lines))
        assert all(isinstance(f, Accepted) for f in firsts)
        with pytest.raises(Problem):
            await older
        acked, refused = [], []
        for sent, line in lines:
            line.send(*sent.frames[:6])
            await asyncio.sleep(1)
        for sent, line in lines:
            line.send(*sent.frames[6:], sent.close)
        for sent, line in lines:
            try:
                async for reply in line.replies:
                    if isinstance(reply, Acknowledged):
                        acked.append(sent)
            except Problem as problem:
                refused.append(problem.reason)
        assert len(acked) == 1
        actor = node.role.keeper.find(REPLICA)
        assert actor is not None and actor.session is not None
        session = actor.session
        assert session.manifest.head.cycle_id == acked[0].open.cycle_id
        named = await session.folder.plain_digests("vda", session.manifest, 1)
        for place, frame in enumerate(acked[0].frames):
            assert named.get(place) == frame.digests, (
                f"cluster {place} was acknowledged and is lost"
            )
        assert refused == [Reason.BUSY]

    in_world(story, KeeperLimits(segment_bytes=100_000))


def test_a_removal_cut_off_behind_its_last_unlink_is_finished() -> None:
    """Between the data's end and the records' end the owner may die: nobody else finds a folder."""

    async def story(world: World) -> None:
        first, second = await world.start("r1"), await world.start("r2")
        await world.create(first)
        await send_cycle(first, make_cycle(1, b"", FULL))
        actor = first.role.keeper.find(REPLICA)
        assert actor is not None and actor.session is not None
        await actor.submit(actor.session, actor.erase)
        kept = await world.record()
        assert kept is not None
        await first.kill()
        asked = replace(kept, removing=True, delete_data=True)
        await world.store.transaction([], [Put(KEYS.replica(REPLICA), render(asked))])
        await world.give(second)
        await asyncio.sleep(60)
        assert await world.record() is None
        assert not await world.files["r2"].list_directory("/store")

    in_world(story)


def test_the_records_of_a_damaged_replica_can_be_removed() -> None:
    async def story(world: World) -> None:
        first, second = await world.start("r1"), await world.start("r2")
        record = await world.create(first)
        await send_cycle(first, make_cycle(1, b"", FULL))
        await first.kill()
        names = await world.files["r2"].list_directory(record.folder_path)
        highest = max(name for name in names if name.startswith("manifest."))
        path = f"{record.folder_path}/{highest}"
        await world.files["r2"].unlink(path)
        await world.files["r2"].write_new(path, b"not a manifest")
        await world.give(second)
        await asyncio.sleep(5)
        actor = second.role.keeper.find(REPLICA)
        assert actor is not None and actor.phase is ReplicaPhase.DAMAGED
        kept = await world.record()
        assert kept is not None
        asked = replace(kept, removing=True)
        await world.store.transaction([], [Put(KEYS.replica(REPLICA), render(asked))])
        await asyncio.sleep(40)
        assert await world.record() is None
        assert await world.files["r2"].list_directory(record.folder_path)

    in_world(story)


def test_a_replica_given_up_is_not_begun_anew_before_its_record_says_so() -> None:
    async def story(world: World) -> None:
        node = await world.start("r1")
        record = await world.create(node)
        await send_cycle(node, make_cycle(1, b"", FULL))
        before = await world.files["r1"].list_directory(record.folder_path)
        assert await node.role.keeper.release([REPLICA], finish_ms=1_000) == (REPLICA,)
        await asyncio.sleep(3)
        assert await world.files["r1"].list_directory(record.folder_path) == before
        assert (await world.owner()).released

    in_world(story)


def test_a_head_that_moved_on_costs_no_checkpoint() -> None:
    """A cycle that was given up may be committed late: the base before it is still a right one."""

    async def story(world: PrimaryWorld) -> None:
        replica = await world.protect()
        for n in range(3):
            world.vm.write("vda", n, 9000 + n)
            await world.acknowledged()
        moved = Problem(Reason.SEQ_GAP, "cycle 5 does not follow the head", field="open.seq")
        world.link.faults.refuse_open.append(moved)
        world.vm.write("vda", 50, 9050)
        await world.acknowledged(2)
        assert replica.kinds.count(CycleKind.FULL) == 1
        world.check()

    in_primary_world(story)


def test_clusters_in_any_order_are_sorted_in_bites() -> None:
    """Who cannot send keepalives loses its lease, and the guard kills it: so would the next."""
    disk = Disk("vda", 40_000 * CLUSTER_BYTES)
    order = list(range(disk.clusters))
    random.Random(7).shuffle(order)
    plain = {index: digest(index.to_bytes(8, "big")) for index in order}
    sent, known = CycleTally([disk]), CycleTally([disk])
    known.restore(0, plain)
    for start in range(0, len(order), 1_024):
        frame = tuple(order[start : start + 1_024])
        count = len(frame)
        sent.take(
            Frame(
                0, frame, (0,) * count, b"".join(plain[i] for i in frame), b"", EMPTY_DIGEST * count
            )
        )
    largest = max(disk.clusters // 16_384, 1)
    steps = sum(1 for _ in sent.sort_steps())
    assert steps > largest
    assert sum(1 for _ in sent.sort_steps()) == 0
    expected = cycle_digest(bytes(16), 1, [disk], [plain])
    assert sent.digest(bytes(16), 1) == known.digest(bytes(16), 1) == expected


def test_a_keepalive_answered_after_the_release_gives_nobody_a_deadline() -> None:
    async def main(_: SimLoop) -> None:
        server = FakeStoreServer(1)
        store, clock = SlowKeepalives(server, "h"), FakeClock()
        keeper = LeaseKeeper.with_timing(store, clock, NODE_LEASE)
        await keeper.acquire()
        running = asyncio.ensure_future(keeper.run())
        await store.asked.wait()
        await keeper.release()
        store.answer.set()
        await running
        assert not keeper.may_act()
        server.close()

    run(main, 1)


class SlowKeepalives(FakeClusterStore):
    """The answer of a keepalive is under way until the test lets it arrive."""

    def __init__(self, server: FakeStoreServer, host: str) -> None:
        super().__init__(server, host)
        self.asked, self.answer = asyncio.Event(), asyncio.Event()

    async def keepalive(self, lease_id: int, timeout_ms: int) -> int:
        ttl_ms = await super().keepalive(lease_id, timeout_ms)
        self.asked.set()
        await self.answer.wait()
        return ttl_ms


class HungHost(FakeVmHost):
    """libvirtd does not answer."""

    async def list_vms(self) -> tuple[Vm, ...]:
        await asyncio.Event().wait()
        raise AssertionError


def test_a_hung_hypervisor_hides_no_stalled_storage() -> None:
    async def main(_: SimLoop) -> None:
        watch = StorageWatch(
            FakeReplicaStore(FakeStorage()),
            FakeClock(),
            HungHost(),
            [StorageLocation("/store", True)],
            lambda: {"/store": 9_000},
        )
        facts = await asyncio.wait_for(watch.facts(), 5)
        assert facts.stalled

    run(main, 1)


def test_a_firmware_entry_reads_no_file_of_the_replicas_host() -> None:
    """QEMU would show the guest any file, another tenant's layers too."""
    sysinfo = "<sysinfo type='fwcfg'><entry name='opt/x' file='store/other/layers/vda'/></sysinfo>"
    sent = XML.decode().replace("</domain>", f"{sysinfo}</domain>")
    built = replica_xml(
        sent, name="n", uuid="u", replica_id="r", targets=("vda", "vdb"), folder="/store/f"
    )
    assert "opt/x" in built
    assert "store/other" not in built


def test_an_operator_of_another_trust_group_sees_nothing_at_the_node() -> None:
    def caller(group: str) -> Call:
        role = Role(KEYS.cluster, RoleKind.OPERATOR, "o", group)
        return Call(identity=Identity(dns_names=(), roles=(role,)))

    async def story(world: World) -> None:
        node = await world.start("r1")
        record = await world.create(node)
        await send_cycle(node, make_cycle(1, b"", FULL))
        access = NodeAccess(node.role, KEYS.cluster)
        assert (await access.owned(caller(record.trust_group), REPLICA)).replica_id == REPLICA
        with pytest.raises(Problem) as caught:
            await access.owned(caller("DEFAULT/p9.example.org"), REPLICA)
        assert caught.value.reason is Reason.UNKNOWN_REPLICA

    in_world(story)


class SlowStart(FakeVmHost):
    """The hypervisor works in a thread: a caller that is cancelled does not stop it."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()

    async def start_test_vm(self, *args: Any, **kwargs: Any) -> None:
        async def work() -> None:
            await asyncio.sleep(2)
            await FakeVmHost.start_test_vm(self, *args, **kwargs)

        self.begun.set()
        await asyncio.shield(asyncio.ensure_future(work()))


def test_a_test_that_is_stopped_while_it_starts_leaves_no_vm() -> None:
    async def story(world: World) -> None:
        node = await world.start("r1")
        await world.create(node)
        await send_cycle(node, make_cycle(1, b"", FULL))
        slow = node.role.tests._host = SlowStart()
        await node.role.tests.start(REPLICA, "", {})
        await slow.begun.wait()
        assert await node.role.tests.stop(REPLICA)
        await asyncio.sleep(20)
        assert not await slow.test_vm_running(REPLICA)
        record = await world.record()
        assert record is not None and not record.test_failover.running

    in_world(story)


class LateStart(FakeVmHost):
    """The hypervisor makes the VM long after nobody waits for it any more."""

    async def start_test_vm(self, *args: Any, **kwargs: Any) -> None:
        async def work() -> None:
            await asyncio.sleep(25)
            await FakeVmHost.start_test_vm(self, *args, **kwargs)
            self.made = True

        self.made = False
        self.late = asyncio.ensure_future(work())
        raise Problem(Reason.NODE_UNREACHABLE, "libvirt does not answer", remedy="wait")


def test_a_test_vm_that_comes_up_after_its_end_is_stopped() -> None:
    async def story(world: World) -> None:
        node = await world.start("r1")
        await world.create(node)
        await send_cycle(node, make_cycle(1, b"", FULL))
        late = node.role.tests._host = LateStart()
        await node.role.tests.start(REPLICA, "", {})
        await asyncio.sleep(5)
        record = await world.record()
        assert record is not None and not record.test_failover.running
        # Those of other clusters on this host are not ours to stop.
        await FakeVmHost.start_test_vm(
            late, XML.decode(), domain_name="x", replica_id="elsewhere", vm_uuid="u", disks=(),
            networks={}, nvram=b"", tpm_state=b"", console_log="c",
        )  # fmt: skip
        await late.late
        assert late.made
        await asyncio.sleep(21)
        assert not await late.test_vm_running(REPLICA)
        assert await late.test_vm_running("elsewhere")
        # One that is recorded stays.
        node.role.tests._host = good = FakeVmHost()
        await node.role.tests.start(REPLICA, "", {})
        await asyncio.sleep(31)
        assert await good.test_vm_running(REPLICA)

    in_world(story)


def test_a_pin_falls_only_by_what_the_store_says_now() -> None:
    """A new owner's copy of the record may be older than the test that the pin belongs to."""

    async def story(world: World) -> None:
        first, second = await world.start("r1"), await world.start("r2")
        before = await world.create(first)
        await send_cycle(first, make_cycle(1, b"", FULL))
        await first.role.tests.start(REPLICA, "", {})
        await asyncio.sleep(2)
        await first.kill()  # cut off, for all that is known: its test VM may run on
        await asyncio.sleep(10)
        await world.give(second)
        await asyncio.sleep(5)
        actor = second.role.keeper.find(REPLICA)
        assert actor is not None and actor.session is not None
        assert len(actor.session.manifest.pins) == 1
        actor.update(before)
        await actor.submit(actor.session, actor.tidy)
        assert len(actor.session.manifest.pins) == 1

    in_world(story)


@pytest.mark.parametrize("keys", [1, 2])
def test_a_cache_follows_a_store_that_was_rebuilt(keys: int) -> None:
    """Revisions begin again; an owner record of the old store must not outlive it in memory."""

    async def main(_: SimLoop) -> None:
        old, new = FakeStoreServer(1), FakeStoreServer(2)
        before, after = FakeClusterStore(old, "h"), FakeClusterStore(new, "h")
        for number in range(50):
            await before.transaction([], [Put("/p/0", f"old {number}")])
        cache = StoreCache(before, FakeClock(), "/p/")
        running = asyncio.ensure_future(cache.run())
        await cache.ready()
        for number in range(keys):
            await after.transaction([], [Put(f"/p/{number}", "new")])
        cache._store = after
        await asyncio.sleep(20)
        assert [kv.value for kv in cache.items()] == ["new"] * keys
        await after.transaction([], [Put("/p/0", "newer")])
        await asyncio.sleep(20)
        assert next(kv.value for kv in cache.items()) == "newer"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        old.close()
        new.close()

    run(main, 1)
