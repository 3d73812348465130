"""Relocation plans: complete, safe by their guards, steady when replayed, and braked."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmreplica.core.placement import NodeLoad
from vmreplica.core.records import DrainState, OwnerRecord, StorageRecord
from vmreplica.core.relocation import (
    Cause,
    LiveNode,
    Move,
    NodeAbsent,
    NodePresent,
    NodeUnchanged,
    OwnedReplica,
    OwnerUnchanged,
    batches,
    cause_of,
    guard_count,
    guards,
    halves,
    owner_after,
    plan,
)
from vmreplica.core.relocation_brake import Brake, step

SHARED = (StorageRecord(path="/s", shared=True, total_bytes=1, free_bytes=0),)


def live(name: str, incarnation: str = "i1", **fields: object) -> LiveNode:
    load = NodeLoad(name=name, incarnation=incarnation, version="1", storage=SHARED)
    return LiveNode(load=replace(load, **fields), mod_revision=5)  # type: ignore[arg-type]


def owned(number: int, node: str = "gone", **fields: object) -> OwnedReplica:
    owner = OwnerRecord(node=node, incarnation="i1", epoch=4)
    return OwnedReplica(
        replica_id=f"r{number:04d}",
        storage_location="/s",
        owner=replace(owner, **fields),  # type: ignore[arg-type]
        owner_mod_revision=number + 1,
    )


names = st.sampled_from(["a", "b", "c", "d"])
cluster_nodes = st.lists(
    st.builds(
        live,
        names,
        st.sampled_from(["i1", "i2"]),
        stalled=st.booleans(),
        drain=st.sampled_from(DrainState),
        running_vms=st.integers(0, 2),
    ),
    max_size=6,
    unique_by=lambda n: n.key,
)
replica_lists = st.lists(
    st.builds(
        owned,
        st.integers(0, 9999),
        names,
        released=st.booleans(),
        epoch=st.integers(1, 9),
    ),
    max_size=30,
    unique_by=lambda r: r.replica_id,
)


def counted(nodes: list[LiveNode], replicas: list[OwnedReplica]) -> list[LiveNode]:
    """Nodes with the replica counts that the owners say."""

    def count(node: LiveNode) -> int:
        return sum(
            r.owner is not None and (r.owner.node, r.owner.incarnation) == node.key
            for r in replicas
        )

    return [replace(n, load=replace(n.load, replicas=count(n))) for n in nodes]


def applied(replicas: list[OwnedReplica], moves: tuple[Move, ...]) -> list[OwnedReplica]:
    done = {m.replica_id: m for m in moves}
    return [
        replace(r, owner=owner_after(done[r.replica_id], "op"), owner_mod_revision=99)
        if r.replica_id in done
        else r
        for r in replicas
    ]


@given(nodes=cluster_nodes, replicas=replica_lists, data=st.data())
def test_replaying_any_prefix_ends_in_the_same_place(
    nodes: list[LiveNode], replicas: list[OwnedReplica], data: st.DataObject
) -> None:
    whole = plan(replicas, counted(nodes, replicas))
    cut = data.draw(st.integers(0, len(whole.moves)))
    half_way = applied(replicas, whole.moves[:cut])
    rest = plan(data.draw(st.permutations(half_way)), counted(nodes, half_way))
    at_once = {r.replica_id: r.owner for r in applied(replicas, whole.moves)}
    in_two = {r.replica_id: r.owner for r in applied(half_way, rest.moves)}
    assert at_once == in_two
    final = applied(half_way, rest.moves)
    assert not plan(final, counted(nodes, final)).moves


@given(nodes=cluster_nodes, replicas=replica_lists)
def test_every_needy_replica_moves_or_is_stuck_and_nothing_else(
    nodes: list[LiveNode], replicas: list[OwnedReplica]
) -> None:
    by_key = {n.key: n for n in nodes}
    decided = plan(replicas, counted(nodes, replicas))
    needy = {r.replica_id for r in replicas if cause_of(r, by_key) is not None}
    assert {m.replica_id for m in decided.moves} | set(decided.stuck) == needy
    assert not {m.replica_id for m in decided.moves} & set(decided.stuck)
    before = {r.replica_id: r for r in replicas}
    for move in decided.moves:
        target = by_key[move.node, move.incarnation]
        assert target.load.drain is DrainState.READY and not target.load.stalled
        owner = before[move.replica_id].owner
        assert owner is not None and move.epoch == owner.epoch + 1
    if any(n.load.drain is DrainState.READY and not n.load.stalled for n in nodes):
        assert not decided.stuck


def test_moves_are_spread_by_load() -> None:
    nodes = [live("a", replicas=10), live("b", replicas=0), live("c", running_vms=2)]
    moves = plan([owned(i) for i in range(20)], nodes).moves
    assert {n: sum(m.node == n for m in moves) for n in "abc"} == {"a": 2, "b": 11, "c": 7}


def test_a_node_that_came_back_takes_its_own() -> None:
    moves = plan([owned(i, "a") for i in range(9)], [live("a", "i2"), live("b")]).moves
    assert {m.node for m in moves} == {"a"}
    assert all(m.returns_home for m in moves)


def test_who_released_goes_last() -> None:
    alone = plan([owned(1, "a", released=True)], [live("a")]).moves
    assert [m.node for m in alone] == ["a"]
    both = plan([owned(1, "a", released=True)], [live("a"), live("b", replicas=50)]).moves
    assert [m.node for m in both] == ["b"]


def test_a_location_that_is_not_shared_stays_with_its_node() -> None:
    private = (StorageRecord(path="/s", shared=False, total_bytes=1, free_bytes=1),)
    nodes = [live("a", "i2", storage=private), live("b")]
    assert {m.node for m in plan([owned(1, "a")], nodes).moves} == {"a"}
    nodes = [live("b", storage=private)]
    assert plan([owned(1, "a")], nodes).stuck == {"r0001": "no live, undrained node reaches /s"}
    assert plan([owned(1, "a")], []).stuck == {"r0001": "no node is alive"}


@pytest.mark.parametrize(
    ("replica", "nodes", "cause", "expected"),
    [
        (owned(1), [live("b")], Cause.GONE, NodeAbsent("gone", "i1")),
        (
            owned(1, "a"),
            [live("a", stalled=True), live("b")],
            Cause.STALLED,
            NodeUnchanged("a", "i1", 5),
        ),
        (owned(1, "a", released=True), [live("a"), live("b")], Cause.RELEASED, None),
        (
            OwnedReplica(replica_id="r0001", storage_location="/s", owner=None),
            [live("b")],
            Cause.MISSING,
            None,
        ),
    ],
)
def test_guards(
    replica: OwnedReplica, nodes: list[LiveNode], cause: Cause, expected: object
) -> None:
    (move,) = plan([replica], nodes).moves
    assert move.cause is cause
    assert (move.epoch, move.node) == (1 if cause is Cause.MISSING else 5, "b")
    found = guards([move])
    assert OwnerUnchanged("r0001", replica.owner_mod_revision) in found
    assert NodePresent("b", "i1") in found
    assert len(found) == (3 if expected else 2)
    if expected:
        assert expected in found


@given(st.lists(st.tuples(names, names), max_size=400))
def test_batches_keep_order_and_limits(pairs: list[tuple[str, str]]) -> None:
    moves = [
        Move(
            replica_id=f"r{i}",
            cause=Cause.GONE,
            node=new + str(i % 40),
            incarnation="i1",
            epoch=2,
            owner_mod_revision=1,
            old_node=old,
            old_incarnation="i0",
        )
        for i, (old, new) in enumerate(pairs)
    ]
    cut = batches(moves)
    assert [m for batch in cut for m in batch] == moves
    for batch in cut:
        assert len(batch) <= 120
        assert guard_count(batch) == len(guards(batch)) <= 125
    for batch in cut:
        parts = halves(batch)
        assert [m for part in parts for m in part] == (list(batch) if len(batch) > 1 else [])


TTL = 6_000


def brake(before: Brake, now: int, live_names: str, owing: str, registered: str = "abcde") -> Brake:
    return step(before, now, TTL, registered, live_names, owing)


def test_one_of_two_or_three_is_no_reason_to_wait() -> None:
    assert not brake(Brake(), 0, "b", "a", "ab").engaged_until_ms
    assert not brake(Brake(), 0, "bc", "a", "abc").engaged_until_ms


def test_two_of_five_at_once_engage_two_of_six_do_not() -> None:
    assert brake(Brake(), 0, "cde", "ab").engaged_until_ms == TTL
    assert not brake(Brake(), 0, "cdef", "ab", "abcdef").engaged_until_ms


def test_vanishing_one_after_the_other_counts_within_one_ttl() -> None:
    first = brake(Brake(), 0, "bcde", "a")
    assert brake(first, TTL, "cde", "ab").engaged_until_ms == 2 * TTL
    assert not brake(first, TTL + 1, "cde", "ab").engaged_until_ms


def test_it_holds_one_ttl_then_limits_the_rate_then_is_free() -> None:
    engaged = brake(Brake(), 0, "c", "ab", "abc")
    assert engaged.holds(TTL - 1) and not engaged.holds(TTL)
    waiting = brake(engaged, TTL - 1, "c", "ab", "abc")
    assert waiting.holds(TTL - 1)
    moving = brake(waiting, TTL, "c", "ab", "abc")
    assert moving.rate_limited and not moving.engaged_until_ms
    assert brake(moving, TTL + 1, "c", "b", "abc").rate_limited
    assert brake(moving, TTL + 2, "c", "", "abc") == Brake()


def test_nodes_that_come_back_release_it() -> None:
    engaged = brake(Brake(), 0, "c", "ab", "abc")
    assert brake(engaged, 100, "abc", "", "abc") == Brake()


def test_nodes_long_gone_without_replicas_do_not_count() -> None:
    assert not brake(Brake(), 0, "c", "", "abc").vanished
