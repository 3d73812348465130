"""Relocation, brake, drain and removal in virtual time."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from broker_world import KEYS, World, play

from broker.service.inventory import NodeState
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import (
    DrainState,
    NodeConfigRecord,
    NodeRecord,
    OperationRecord,
    OperationState,
    ReplicaRecord,
    parse,
    render,
)
from vmreplica.ports.cluster_store import Delete, Put


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
            await world.release(replica_id)


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


def test_a_lost_node_stays_lost_until_it_is_back_to_be_drained() -> None:
    async def story(world: World) -> None:
        await world.settings()
        broker = world.broker("b1")
        await world.leader()
        await world.node("n1")
        await world.node("n2")
        inventory = broker.services.inventory
        await world.until(lambda: len(inventory.live_nodes()) == 2)
        for n in range(4):
            await world.admit(broker, n)
        world.kill_node("n1")
        await world.until(lambda: inventory.node_view("n1").state is NodeState.LOST)
        operation_id = await broker.services.drain.drain("n1")
        await world.until(lambda: inventory.node_view("n1").replicas == 0, 60)
        await asyncio.sleep(10)
        assert inventory.node_view("n1").state is NodeState.LOST
        kv = world.server.state.live[KEYS.operation(operation_id)]
        assert "lost" in parse(OperationRecord, kv.value).step
        assert drain_state(world, "n1") is DrainState.DRAINING
        await world.node("n1", "i2")
        await world.until(lambda: inventory.node_view("n1").state is NodeState.DRAINED, 10)
        done = await broker.services.operations.wait(operation_id, 5_000)
        assert done.state is OperationState.SUCCEEDED

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
