"""Counterexamples of a review of the data path, each of which must stay refuted."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest

from node.service.replica_parts import KeeperLimits
from tests.support.primary_world import PrimaryWorld
from tests.support.primary_world import in_world as in_primary_world
from tests.unit.replica_world import (
    KEYS,
    REPLICA,
    Line,
    World,
    cluster,
    make_cycle,
    raw_frame,
    send_cycle,
)
from tests.unit.test_keeper import in_world
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
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.receiving import CycleTally
from vmreplica.core.records import OwnerRecord, render
from vmreplica.core.replica_state import ReplicaPhase
from vmreplica.ports.cluster_store import Put
from vmreplica.ports.replica_store import ReplicaFolder, ReplicaStore, Space

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
