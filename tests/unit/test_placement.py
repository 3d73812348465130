"""Placement: it fits or says why, and the order of the nodes does not matter."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmreplica.core.placement import NodeLoad, Placement, PlacementRequest, compatible, place
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import DrainState, StorageRecord

GIB = 1 << 30


def storage(free: int = 80, total: int = 100, path: str = "/s", shared: bool = True):
    return StorageRecord(path=path, shared=shared, total_bytes=total * GIB, free_bytes=free * GIB)


def node(name: str, **fields: object) -> NodeLoad:
    made = NodeLoad(name=name, incarnation="i1", version="1.2.0", storage=(storage(),))
    return replace(made, **fields)  # type: ignore[arg-type]


REQUEST = PlacementRequest(storage_location="/s", size_bytes=10 * GIB, version="1.0.0")

nodes = st.builds(
    node,
    st.sampled_from([f"n{i}" for i in range(6)]),
    incarnation=st.sampled_from(["i1", "i2"]),
    stalled=st.booleans(),
    drain=st.sampled_from(DrainState),
    replicas=st.integers(0, 5),
    running_vms=st.integers(0, 3),
    memory_free_bytes=st.integers(0, 2),
    version=st.sampled_from(["1.0.0", "1.9", "2.0"]),
    storage=st.lists(
        st.builds(
            storage,
            st.integers(0, 20),
            path=st.sampled_from(["/s", "/t"]),
            shared=st.booleans(),
        ),
        max_size=1,
    ).map(tuple),
)
clusters = st.lists(nodes, max_size=6, unique_by=lambda n: (n.name, n.incarnation))


@given(cluster=clusters, data=st.data())
def test_permutation_invariant(cluster: list[NodeLoad], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(cluster))
    first, second = place(REQUEST, cluster), place(REQUEST, shuffled)
    if isinstance(first, Problem):
        assert isinstance(second, Problem)
        assert first.message == second.message
    else:
        assert first == second


@given(cluster=clusters)
def test_the_chosen_node_fits_and_no_fitting_one_is_less_loaded(cluster: list[NodeLoad]) -> None:
    decision = place(REQUEST, cluster)
    fits = [
        n
        for n in cluster
        if n.drain is DrainState.READY
        and not n.stalled
        and n.version.startswith("1.")
        and any(s.path == "/s" and s.shared and s.free_bytes >= 7 * GIB for s in n.storage)
    ]
    if isinstance(decision, Problem):
        assert not fits
        assert decision.reason is Reason.NO_NODE_FITS
        for n in cluster:
            assert f"{n.name}: " in decision.message
    else:
        chosen = next(
            n for n in cluster if (n.name, n.incarnation) == (decision.node, decision.incarnation)
        )
        assert chosen in fits
        assert chosen.load == min(n.load for n in fits)
        assert len(decision.reasons) == len(cluster)


def test_growth_of_replicas_already_there_is_reserved() -> None:
    """20 of 100 GiB are used; 150 GiB of disks will grow to 75: 55 more, and 2 stay free."""
    tight = replace(REQUEST, committed_bytes=150 * GIB)
    assert isinstance(place(replace(tight, size_bytes=46 * GIB), [node("n1")]), Placement)
    refused = place(replace(tight, size_bytes=47 * GIB), [node("n1")])
    assert isinstance(refused, Problem)
    assert "57.0 GiB of it reserved" in refused.message


def test_shared_is_not_asked_of_a_standalone_node() -> None:
    lonely = [node("n1", storage=(storage(shared=False),))]
    assert isinstance(place(REQUEST, lonely), Problem)
    assert isinstance(place(replace(REQUEST, needs_shared=False), lonely), Placement)


@pytest.mark.parametrize(
    ("mine", "other", "fit"),
    [("1.2", "1.9", True), ("1.2", "2.0", False), ("", "7", True), ("7", "", True)],
)
def test_versions(mine: str, other: str, fit: bool) -> None:
    assert compatible(mine, other) is fit
