"""Keeper and receiver over the fake cluster store and the real store on a modelled disk."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

import pytest

from tests.unit.replica_world import (
    DISKS,
    KEYS,
    LOCATION,
    NAMES,
    REPLICA,
    Line,
    Node,
    World,
    cluster,
    make_cycle,
    raw_frame,
    send_cycle,
)
from vmreplica.core.cycle import Accepted, Acknowledged, CycleKind
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import DrainState, NodeConfigRecord, render
from vmreplica.ports.cluster_store import Put
from vmreplica.testing import sim_loop

T = TypeVar("T")


def in_world(test: Callable[[World], Awaitable[T]], seed: int = 1) -> T:
    async def main(_: object) -> T:
        world = World()
        try:
            return await test(world)
        finally:
            await world.close()

    return sim_loop.run(main, seed)


async def read(node: Node, target: str) -> dict[int, bytes]:
    actor = node.role.keeper.find(REPLICA)
    assert actor is not None
    session = await actor.serving(5_000)
    return dict(
        await session.folder.plain_digests(target, session.manifest, session.manifest.head.seq)
    )


TAIL = b"c" * 512 + bytes(65_536 - 512)
FULL = [raw_frame(0, {1: cluster("a"), 2: b""}), raw_frame(1, {0: cluster("b"), 1: TAIL})]


def test_full_then_delta_then_duplicate() -> None:
    async def story(world: World) -> None:
        node = await world.start("r1")
        await world.create(node)
        first = await send_cycle(node, make_cycle(1, b"", FULL))
        assert first == Acknowledged(1, first.cycle_digest, False, 1)
        delta = make_cycle(2, first.cycle_digest, [raw_frame(0, {1: cluster("d")})])
        second = await send_cycle(node, delta)
        assert (second.seq, second.duplicate) == (2, False)
        again = await send_cycle(node, delta)
        assert again == Acknowledged(2, second.cycle_digest, True, 1)
        record = await world.record()
        assert record is not None and record.established
        digests = await read(node, "vda")
        assert digests[1] == delta.frames[0].digests
        assert "initial.completed" in node.events.names
        assert (await node.host.list_replica_ids()) == (REPLICA,)

    in_world(story)


def test_a_cut_stream_is_continued_from_where_it_was() -> None:
    async def story(world: World) -> None:
        node = await world.start("r1")
        await world.create(node)
        sent = make_cycle(1, b"", [*FULL, raw_frame(0, {7: cluster("e")})], resume=True)
        line = Line(node)
        line.send(sent.open, *sent.frames[:2])
        assert await line.next() == Accepted(0)
        await asyncio.sleep(1)
        await line.cut()
        again = Line(node)
        again.send(sent.open)
        assert await again.next() == Accepted(2)
        again.send(sent.frames[2], sent.close)
        reply = await again.next()
        assert isinstance(reply, Acknowledged)
        assert reply.cycle_digest == sent.close.cycle_digest

    in_world(story)


def test_a_newer_stream_takes_the_place_of_an_older_one() -> None:
    async def story(world: World) -> None:
        node = await world.start("r1")
        await world.create(node)
        sent = make_cycle(1, b"", FULL, resume=True)
        older = Line(node)
        older.send(sent.open, sent.frames[0])
        assert await older.next() == Accepted(0)
        await asyncio.sleep(1)
        newer = Line(node)
        newer.send(sent.open)
        assert await newer.next() == Accepted(1)
        with pytest.raises(Problem) as refused:
            await older.next()
        assert refused.value.reason is Reason.BUSY
        newer.send(sent.frames[1], sent.close)
        assert isinstance(await newer.next(), Acknowledged)

    in_world(story)


def test_without_resume_a_cycle_begins_again() -> None:
    async def story(world: World) -> None:
        node = await world.start("r1")
        await world.create(node)
        sent = make_cycle(1, b"", FULL)
        line = Line(node)
        line.send(sent.open, sent.frames[0])
        await line.next()
        await asyncio.sleep(1)
        await line.cut()
        assert (await send_cycle(node, sent)).seq == 1

    in_world(story)


async def refused(node: Node, *messages: object, names: tuple[str, ...] = NAMES) -> Problem:
    """The problem that a stream of these messages ends with."""
    line = Line(node, names)
    line.send(*messages)
    line.end()
    with pytest.raises(Problem) as caught:
        while True:
            await line.next()
    return caught.value


def test_every_refusal_leaves_the_node_serving() -> None:
    async def story(world: World) -> None:
        node = await world.start("r1")
        await world.create(node)
        first = await send_cycle(node, make_cycle(1, b"", FULL))
        good = make_cycle(2, first.cycle_digest, [raw_frame(0, {1: cluster("d")})])

        def opened(**changes: object) -> list[object]:
            return [replace(good.open, **changes)]

        def closed(**changes: object) -> list[object]:
            return [good.open, *good.frames, replace(good.close, **changes)]

        bad_disks = (DISKS[0],)
        frame = good.frames[0]
        cases: list[tuple[list[object], Reason]] = [
            (opened(epoch=0), Reason.STALE_EPOCH),
            (opened(epoch=9), Reason.NOT_OWNER),
            (opened(seq=4), Reason.SEQ_GAP),
            (opened(parent_digest=b"x" * 16), Reason.PARENT_MISMATCH),
            (opened(since_cycle_id=b"y" * 16), Reason.SEQ_GAP),
            (opened(kind=CycleKind.RESYNC, since_cycle_id=b"y" * 16), Reason.PARENT_MISMATCH),
            (opened(disks=bad_disks), Reason.DISK_SHAPE_CHANGED),
            (opened(cycle_id=b"short"), Reason.BAD_FIELD),
            (opened(cycle_id=b"\x01" * 16), Reason.PARENT_MISMATCH),
            (opened(kind=CycleKind.FULL), Reason.BAD_FIELD),
            (opened(replica_id="nobody"), Reason.UNKNOWN_REPLICA),
            ([*opened(), raw_frame(0, {160: cluster("x")})], Reason.CLUSTER_OUT_OF_RANGE),
            ([*opened(), frame, frame], Reason.BAD_FIELD),
            ([*opened(), raw_frame(2, {1: cluster("x")})], Reason.BAD_FIELD),
            ([*opened(), replace(frame, stored_digests=b"z" * 16)], Reason.DIGEST_MISMATCH),
            ([*opened(), replace(frame, payload=bytes((1 << 20) + 1))], Reason.FRAME_TOO_LARGE),
            ([*opened(), replace(frame, stored_bytes=(5,))], Reason.BAD_FIELD),
            (closed(cycle_digest=b"q" * 16), Reason.DIGEST_MISMATCH),
            (closed(clusters=7), Reason.DIGEST_MISMATCH),
            (closed(nvram=b"no zstd"), Reason.BAD_FIELD),
            ([*opened(), frame], Reason.BAD_FIELD),  # truncated
            ([frame], Reason.BAD_FIELD),
            ([*opened(), *opened()], Reason.BAD_FIELD),
        ]
        for messages, reason in cases:
            problem = await refused(node, *messages)
            assert problem.reason is reason, (messages[0], problem)
            assert problem.remedy, problem
        outsider = await refused(node, good.open, names=("x1.other.org",))
        assert outsider.reason is Reason.UNKNOWN_REPLICA
        nameless = await refused(node, good.open, names=())
        assert nameless.reason is Reason.NO_IDENTITY
        assert (await send_cycle(node, good)).seq == 2
        assert (await read(node, "vda"))[1] == frame.digests

    in_world(story)


def test_the_same_id_with_other_content_is_answered_with_what_is_stored() -> None:
    async def story(world: World) -> None:
        node = await world.start("r1")
        await world.create(node)
        first = await send_cycle(node, make_cycle(1, b"", FULL))
        other = make_cycle(1, b"", [raw_frame(0, {1: cluster("other")})])
        again = await send_cycle(node, other)
        assert again.duplicate
        assert again.cycle_digest == first.cycle_digest != other.close.cycle_digest

    in_world(story)


def test_relocation_adopts_the_head_and_refuses_the_old_owner() -> None:
    async def story(world: World) -> None:
        old, new = await world.start("r1"), await world.start("r2")
        await world.create(old)
        first = await send_cycle(old, make_cycle(1, b"", FULL))
        delta = make_cycle(2, first.cycle_digest, [raw_frame(0, {1: cluster("d")})])
        line = Line(old)
        line.send(delta.open, *delta.frames)
        await line.next()
        epoch = await world.give(new)
        assert epoch == 2
        await asyncio.sleep(3)
        line.send(delta.close)
        with pytest.raises(Problem) as caught:
            await line.next()
        assert caught.value.reason in (Reason.NOT_OWNER, Reason.NODE_UNREACHABLE)
        moved = make_cycle(2, first.cycle_digest, delta.frames, epoch=2)
        assert (await send_cycle(new, moved)).epoch == 2
        gone = await refused(old, moved.open)
        assert gone.reason is Reason.NOT_OWNER
        assert gone.node == "r2"

    in_world(story)


def test_a_stale_owner_that_cannot_hear_is_deposed_by_the_manifest_log() -> None:
    async def story(world: World) -> None:
        old, new = await world.start("r1"), await world.start("r2")
        await world.create(old)
        first = await send_cycle(old, make_cycle(1, b"", FULL))
        delta = make_cycle(2, first.cycle_digest, [raw_frame(0, {1: cluster("d")})])
        line = Line(old)
        line.send(delta.open, *delta.frames)
        await line.next()
        # Its watch hears nothing and its keepalives are still good: only the files can stop it.
        old.store.faults.watch_delay_ms = 60_000
        old.store.faults.refuse = 1.0
        await world.give(new)
        moved = make_cycle(2, first.cycle_digest, delta.frames, epoch=2, cycle_id=b"m" * 16)
        assert (await send_cycle(new, moved)).seq == 2
        line.send(delta.close)
        with pytest.raises(Problem) as caught:
            await line.next()
        assert caught.value.reason in (Reason.NOT_OWNER, Reason.NODE_UNREACHABLE, Reason.LEASE_LOST)
        actor = new.role.keeper.find(REPLICA)
        assert actor is not None and actor.session is not None
        assert actor.session.manifest.head.cycle_id == b"m" * 16

    in_world(story)


def test_a_restarted_node_takes_its_replica_over_anew() -> None:
    async def story(world: World) -> None:
        node = await world.start("r1")
        await world.create(node)
        first = await send_cycle(node, make_cycle(1, b"", FULL))
        await node.kill()
        again = await world.start("r1")
        await world.give(again)
        delta = make_cycle(2, first.cycle_digest, [raw_frame(0, {1: cluster("d")})], epoch=2)
        assert (await send_cycle(again, delta)).epoch == 2
        assert len(await read(again, "vdb")) == 2

    in_world(story)


def test_a_higher_epoch_on_disk_raises_the_record_above_it() -> None:
    async def story(world: World) -> None:
        node = await world.start("r1")
        await world.create(node)
        first = await send_cycle(node, make_cycle(1, b"", FULL))
        await world.give(node, epoch=9)
        await asyncio.sleep(3)
        # The cluster store was rebuilt and counts from 1 again.
        other = await world.start("r2")
        await world.give(other, epoch=3)
        await asyncio.sleep(10)
        assert (await world.owner()).epoch == 10
        delta = make_cycle(2, first.cycle_digest, [raw_frame(0, {1: cluster("d")})], epoch=10)
        assert (await send_cycle(other, delta)).epoch == 10

    in_world(story)


def test_a_damaged_manifest_stops_the_replica() -> None:
    async def story(world: World) -> None:
        node, other = await world.start("r1"), await world.start("r2")
        record = await world.create(node)
        await send_cycle(node, make_cycle(1, b"", FULL))
        folder = record.folder_path
        files = world.files["r2"]
        names = sorted(n for n in await files.list_directory(folder) if n.startswith("manifest."))
        target = f"{folder}/{names[-1]}"
        size = len(await files.read(target))
        await files.unlink(target)
        await files.write_new(target, b"x" * size)
        await world.give(other)
        await asyncio.sleep(3)
        actor = other.role.keeper.find(REPLICA)
        assert actor is not None
        problem = await refused(other, make_cycle(2, b"", FULL, epoch=2).open)
        assert problem.reason is Reason.REPLICA_DAMAGED
        assert "point.damaged" in other.events.names

    in_world(story)


def test_draining_loses_no_cycle_and_releases() -> None:
    async def story(world: World) -> None:
        node, other = await world.start("r1"), await world.start("r2")
        await world.create(node)
        first = await send_cycle(node, make_cycle(1, b"", FULL))
        delta = make_cycle(2, first.cycle_digest, [raw_frame(0, {1: cluster("d")})])
        line = Line(node)
        line.send(delta.open, *delta.frames)
        await line.next()

        config = NodeConfigRecord(name="r1", drain=DrainState.DRAINING)
        await world.store.transaction([], [Put(KEYS.node_config("r1"), render(config))])
        await asyncio.sleep(2)
        assert (await refused(node, delta.open)).reason is Reason.DRAINING
        line.send(delta.close)
        reply = await line.next()
        assert isinstance(reply, Acknowledged)
        await line.cut()
        await asyncio.sleep(5)
        assert (await world.owner()).released
        await world.give(other)
        third = make_cycle(3, reply.cycle_digest, [raw_frame(0, {2: cluster("f")})], epoch=2)
        assert (await send_cycle(other, third)).seq == 3

    in_world(story)


@pytest.mark.parametrize("delete", [True, False])
def test_removal(delete: bool) -> None:
    async def story(world: World) -> None:

        node = await world.start("r1")
        await world.create(node)
        await send_cycle(node, make_cycle(1, b"", FULL))
        record = await world.record()
        assert record is not None
        removing = replace(record, removing=True, delete_data=delete)
        await world.store.transaction([], [Put(KEYS.replica(REPLICA), render(removing))])
        await asyncio.sleep(10)
        assert await world.record() is None
        assert node.role.keeper.find(REPLICA) is None
        files = world.files["r1"]
        if delete:
            assert record.folder_path.rpartition("/")[2] not in await files.list_directory(LOCATION)
        else:
            left = await files.list_directory(record.folder_path)
            assert [name for name in left if name.startswith("manifest.")]
        assert (await node.host.list_replica_ids()) == ()

    in_world(story)


def test_losing_the_lease_ends_every_acknowledgement() -> None:
    async def story(world: World) -> None:
        node = await world.start("r1")
        await world.create(node)
        first = await send_cycle(node, make_cycle(1, b"", FULL))
        delta = make_cycle(2, first.cycle_digest, [raw_frame(0, {1: cluster("d")})])
        line = Line(node)
        line.send(delta.open, *delta.frames)
        await line.next()
        node.store.faults.refuse = 1.0
        await asyncio.sleep(6)
        assert not node.role.membership.may_act()
        line.send(delta.close)
        with pytest.raises(Problem) as caught:
            await line.next()
        assert caught.value.reason is Reason.LEASE_LOST

    in_world(story)


def test_chains_stay_short_and_read_the_same_while_cycles_go_on() -> None:
    async def story(world: World) -> None:
        node = await world.start("r1")
        record = await world.create(node)
        last = await send_cycle(node, make_cycle(1, b"", FULL))
        expected = {1: FULL[0].digests[:16], 2: FULL[0].digests[16:32]}
        longest = 0
        for seq in range(2, 82):
            frame = raw_frame(0, {seq % 7: cluster(f"c{seq}"), 20 + seq: cluster(f"n{seq}")})
            expected[seq % 7], expected[20 + seq] = frame.digests[:16], frame.digests[16:]
            sent = make_cycle(seq, last.cycle_digest, [frame], cycle_id=seq.to_bytes(16, "big"),
                              since=(seq - 1).to_bytes(16, "big") if seq > 2 else b"")  # fmt: skip
            last = await send_cycle(node, sent)
            await asyncio.sleep(1)
            actor = node.role.keeper.find(REPLICA)
            assert actor is not None and actor.session is not None
            longest = max(longest, len(actor.session.manifest.chain("vda")))
        assert longest <= 17
        await asyncio.sleep(10)
        found = await read(node, "vda")
        assert {i: d for i, d in found.items() if i in expected} == expected
        names = await world.files["r1"].list_directory(f"{record.folder_path}/layers")
        named = {n.partition("/")[2] for n in actor.session.manifest.named_files() if "/" in n}
        assert set(names) <= named, "files that nothing names were left behind"

    in_world(story)
