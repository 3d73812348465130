"""Keeper and receiver over the fake cluster store and the real store on a modelled disk."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from tests.unit.replica_world import (
    DISKS,
    NAMES,
    REPLICA,
    XML,
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
