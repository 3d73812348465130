"""Storage errors at every step of a commit, drafts, test failovers, membership: on fakes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from node.api.access import NodeAccess
from node.api.replica_service import ReplicaService
from node.service.replica_parts import KeeperLimits
from tests.unit.replica_world import (
    DISKS,
    KEYS,
    LOCATION,
    REPLICA,
    Line,
    Node,
    World,
    cluster,
    make_cycle,
    raw_frame,
    send_cycle,
)
from vmreplica.core.cycle import CLUSTER_BYTES, Acknowledged, Durable
from vmreplica.core.identity import Identity, Role, RoleKind
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import NodeRecord, parse
from vmreplica.ports.replica_store import StorageFailed
from vmreplica.testing import sim_loop
from vmreplica.testing.fake_replica_store import FakeReplicaStore, FakeStorage, content
from vmreplica.v1 import replica_pb2
from vmreplica.wire.call import Call

T = TypeVar("T")
FULL = [raw_frame(0, {i: cluster(f"a{i}") for i in range(8)})]


def in_world(
    test: Callable[[World], Awaitable[T]], limits: KeeperLimits | None = None, seed: int = 1
) -> T:
    async def main(_: object) -> T:
        world = World(limits)
        try:
            return await test(world)
        finally:
            await world.close()

    return sim_loop.run(main, seed)


async def on_fake(world: World, storage: FakeStorage, name: str = "r1") -> Node:
    return await world.start(name, FakeReplicaStore(storage))


@pytest.mark.parametrize("step", ["append", "seal", "before_link", "after_link"])
def test_an_io_error_anywhere_ends_in_one_acknowledged_cycle(step: str) -> None:
    async def story(world: World) -> None:
        storage = FakeStorage()
        node = await on_fake(world, storage)
        record = await world.create(node)
        first = await send_cycle(node, make_cycle(1, b"", FULL))
        delta = make_cycle(2, first.cycle_digest, [raw_frame(0, {1: cluster("d")})], resume=True)
        storage.fail[step] = StorageFailed(f"{step}: EIO")
        with pytest.raises(Problem) as caught:
            await send_cycle(node, delta)
        assert caught.value.reason is Reason.STORE_UNAVAILABLE
        reply = await send_cycle(node, delta)
        assert reply.cycle_digest == delta.close.cycle_digest
        # After the link the cycle was in: the new takeover adopts it and says so.
        assert reply.duplicate == (step == "after_link")
        directory = storage.directories[record.folder_path]
        head = directory.highest
        assert head is not None and head.head.seq == 2
        assert content(directory, head, "vda")[1] == cluster("d")
        assert content(directory, head, "vda")[2] == cluster("a2")
        assert [head.n for head in directory.manifests.values()] == sorted(directory.manifests)

    in_world(story)


def test_a_full_storage_is_said_and_heals() -> None:
    async def story(world: World) -> None:
        storage = FakeStorage(free_bytes=1 << 20)
        node = await on_fake(world, storage)
        await world.create(node)
        with pytest.raises(Problem) as caught:
            await send_cycle(node, make_cycle(1, b"", FULL))
        assert caught.value.reason is Reason.NO_SPACE
        storage.free_bytes = 1 << 40
        storage.fail["append"] = StorageFailed("ENOSPC", no_space=True)
        with pytest.raises(Problem) as caught:
            await send_cycle(node, make_cycle(1, b"", FULL))
        assert caught.value.reason is Reason.NO_SPACE
        assert (await send_cycle(node, make_cycle(1, b"", FULL))).seq == 1

    in_world(story)


def test_segments_become_drafts_that_a_new_owner_goes_on_behind() -> None:
    async def story(world: World) -> None:
        storage = FakeStorage()
        node, other = await on_fake(world, storage), await on_fake(world, storage, "r2")
        record = await world.create(node)
        frames = [raw_frame(0, {i: cluster(f"s{i}")}) for i in range(10)]
        sent = make_cycle(1, b"", frames, resume=True)
        line = Line(node)
        line.send(sent.open, *sent.frames[:8])
        await line.next()
        told = await line.next()
        assert isinstance(told, Durable) and told.durable_frames == 4
        await asyncio.sleep(1)
        head = storage.directories[record.folder_path].highest
        assert head is not None and head.head.seq == 0
        assert {x.draft.frames for x in head.layers if x.draft} == {4, 8}
        await world.give(other)
        await asyncio.sleep(3)
        moved = make_cycle(1, b"", frames, epoch=2, resume=True)
        again = Line(other)
        again.send(moved.open)
        accepted = await again.next()
        assert accepted.durable_frames == 8
        again.send(*moved.frames[8:], moved.close)
        reply = await again.next()
        while not isinstance(reply, Acknowledged):
            reply = await again.next()
        head = storage.directories[record.folder_path].highest
        assert head is not None and head.head.seq == 1
        assert all(x.draft is None for x in head.layers)
        found = content(storage.directories[record.folder_path], head, "vda")
        assert found == {i: cluster(f"s{i}") for i in range(10)}

    in_world(story, KeeperLimits(segment_bytes=3 * CLUSTER_BYTES))


def test_drafts_of_another_cycle_fall() -> None:
    async def story(world: World) -> None:
        storage = FakeStorage()
        node = await on_fake(world, storage)
        record = await world.create(node)
        frames = [raw_frame(0, {i: cluster(f"s{i}")}) for i in range(6)]
        line = Line(node)
        sent = make_cycle(1, b"", frames)
        line.send(sent.open, *sent.frames)
        await line.next()
        await asyncio.sleep(1)
        await line.cut()
        assert storage.directories[record.folder_path].highest.layers
        other = make_cycle(1, b"", [raw_frame(0, {9: cluster("x")})], cycle_id=b"o" * 16)
        await send_cycle(node, other)
        head = storage.directories[record.folder_path].highest
        assert [x.draft for x in head.layers] == [None]
        assert content(storage.directories[record.folder_path], head, "vda") == {9: cluster("x")}

    in_world(story, KeeperLimits(segment_bytes=3 * CLUSTER_BYTES))


def test_test_failover_starts_stops_and_leaves_nothing() -> None:
    async def story(world: World) -> None:
        storage = FakeStorage()
        node = await on_fake(world, storage)
        record = await world.create(node)
        first = await send_cycle(node, make_cycle(1, b"", FULL))
        with pytest.raises(Problem) as caught:
            await node.role.tests.start(REPLICA, "77", {})
        assert caught.value.reason is Reason.POINT_NOT_FOUND
        with pytest.raises(Problem) as caught:
            await node.role.tests.start(REPLICA, "latest", {"0": "isolated", "1": "nowhere"})
        assert (caught.value.reason, caught.value.value) == (Reason.NETWORK_UNKNOWN, "nowhere")
        assert "default, isolated" in caught.value.remedy
        assert not (await world.record()).test_failover.operation_id
        networks = {"0": "isolated", "1": "none"}
        started = await node.role.tests.start(REPLICA, "latest", networks)
        again = await node.role.tests.start(REPLICA, "latest", {})
        assert again.operation_id == started.operation_id
        assert started.domain_name == "guest1 - Test"
        await asyncio.sleep(3)
        assert node.host.tests[REPLICA].networks == {"0": "isolated"}
        directory = storage.directories[record.folder_path]
        assert len(directory.overlays) == len(DISKS)
        # Replication goes on meanwhile; the files below the overlays stay.
        delta = make_cycle(2, first.cycle_digest, [raw_frame(0, {1: cluster("d")})])
        await send_cycle(node, delta)
        await asyncio.sleep(10)
        assert directory.highest.pins and directory.highest.runs
        assert await node.role.tests.stop(REPLICA)
        await asyncio.sleep(5)
        assert not await node.host.test_vm_running(REPLICA)
        assert not directory.overlays
        assert not directory.highest.pins and not directory.highest.runs
        test = (await world.record()).test_failover
        assert (test.running, test.last_result) == (False, "stopped")
        assert await node.role.tests.stop(REPLICA) == ""
        # The time of a new test does not stand beside the result of the last one.
        await node.role.tests.start(REPLICA, "latest", {})
        test = (await world.record()).test_failover
        assert (test.running, test.last_result) == (True, "")
        await node.role.tests.stop(REPLICA)
        await asyncio.sleep(5)

    in_world(story)


def test_only_the_point_that_was_booted_is_in_use() -> None:
    async def story(world: World) -> None:
        node = await on_fake(world, FakeStorage())
        await world.create(node)
        api = ReplicaService(NodeAccess(node.role, KEYS.cluster))
        call = Call(identity=Identity(roles=(Role(KEYS.cluster, RoleKind.VIEWER, "v"),)))

        async def points() -> list[tuple[int, bool]]:
            request = replica_pb2.ListPointsRequest(replica_id=REPLICA)
            return [(p.seq, p.in_use) for p in (await api.list_points(call, request)).items]

        first = await send_cycle(node, make_cycle(1, b"", FULL))
        assert await points() == [(1, False)]
        await node.role.tests.start(REPLICA, "", {})
        await asyncio.sleep(3)
        assert await points() == [(1, True)]
        # The next point is read from the same files, and nobody has it open.
        await send_cycle(node, make_cycle(2, first.cycle_digest, [raw_frame(0, {1: cluster("d")})]))
        assert await points() == [(2, False)]

    in_world(story)


def test_a_new_owner_cleans_up_after_a_test_whose_node_died() -> None:
    async def story(world: World) -> None:
        storage = FakeStorage()
        node, other = await on_fake(world, storage), await on_fake(world, storage, "r2")
        record = await world.create(node)
        await send_cycle(node, make_cycle(1, b"", FULL))
        await node.role.tests.start(REPLICA, "", {})
        await asyncio.sleep(3)
        await node.kill()
        await asyncio.sleep(10)
        await world.give(other)
        await asyncio.sleep(5)
        directory = storage.directories[record.folder_path]
        assert directory.highest.pins, "the VM may still run on a host that is only cut off"
        assert await other.role.tests.stop(REPLICA)
        await asyncio.sleep(5)
        assert not directory.highest.pins and not directory.overlays

    in_world(story)


def test_a_node_that_comes_back_ends_the_test_that_its_host_lost() -> None:
    async def story(world: World) -> None:
        storage = FakeStorage()
        node, other = await on_fake(world, storage), await on_fake(world, storage, "r2")
        record = await world.create(node)
        await send_cycle(node, make_cycle(1, b"", FULL))
        await node.role.tests.start(REPLICA, "", {})
        await asyncio.sleep(3)
        await node.kill()
        await world.give(other)
        await asyncio.sleep(10)
        await on_fake(world, storage, "r1")
        await asyncio.sleep(30)
        assert not (await world.record()).test_failover.running
        directory = storage.directories[record.folder_path]
        assert not directory.highest.pins and not directory.overlays

    in_world(story)


def test_a_clean_stop_releases_and_leaves_at_once() -> None:
    async def story(world: World) -> None:
        node = await world.start("r1")
        await world.create(node)
        await send_cycle(node, make_cycle(1, b"", FULL))
        await node.role.stop()
        assert (await world.owner()).released
        assert await world.node_record("r1") is None

    in_world(story)


def test_a_lost_lease_is_a_new_incarnation() -> None:
    async def story(world: World) -> None:
        node = await world.start("r1")
        before = await node.joined()
        assert node.guard.deadlines
        world.server.expire(node.role.membership.lease_id)
        await asyncio.sleep(10)
        after = await node.joined()
        assert after != before
        assert 0 in node.guard.deadlines
        found = (await world.store.range(KEYS.nodes)).items
        assert [parse(NodeRecord, kv.value).incarnation for kv in found] == [after]

    in_world(story)


def test_a_stalled_storage_is_said_within_seconds() -> None:
    async def story(world: World) -> None:
        node = await world.start("r1")
        assert not (await world.node_record("r1")).stalled
        node.guard.ages[LOCATION] = 9_000
        await asyncio.sleep(3)
        assert (await world.node_record("r1")).stalled
        node.guard.ages[LOCATION] = 0
        await asyncio.sleep(3)
        assert not (await world.node_record("r1")).stalled

    in_world(story)
