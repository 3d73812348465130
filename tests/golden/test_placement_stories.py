"""Placement as people read it: each case with the answer's exact words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vmreplica.core.placement import NodeLoad, PlacementRequest, place
from vmreplica.core.problems import Problem
from vmreplica.core.records import DrainState, StorageRecord

GOLDEN = Path(__file__).with_name("placement.txt")
GIB = 1 << 30
REQUEST = PlacementRequest(storage_location="/srv/r", size_bytes=40 * GIB, version="1.4.0")


def store(free: int, path: str = "/srv/r", shared: bool = True) -> StorageRecord:
    return StorageRecord(path=path, shared=shared, total_bytes=1_000 * GIB, free_bytes=free * GIB)


def node(name: str, **fields: object) -> NodeLoad:
    made = NodeLoad(name=name, incarnation="i1", version="1.4.0", storage=(store(600),))
    return replace(made, **fields)  # type: ignore[arg-type]


CASES: dict[str, tuple[PlacementRequest, list[NodeLoad]]] = {
    "three alike": (REQUEST, [node("r1"), node("r2"), node("r3")]),
    "fewest replicas": (REQUEST, [node("r1", replicas=4), node("r2", replicas=1), node("r3", replicas=2)]),
    "running VMs weigh more than replicas": (REQUEST, [node("r1", running_vms=2), node("r2", replicas=3)]),
    "more free memory decides between equals": (REQUEST, [node("r1"), node("r2", memory_free_bytes=GIB)]),
    "full store": (REQUEST, [node("r1", storage=(store(30),))]),
    "reserved growth": (replace(REQUEST, committed_bytes=1_950 * GIB), [node("r1")]),
    "drained and draining": (
        REQUEST,
        [node("r1", drain=DrainState.DRAINED), node("r2", drain=DrainState.DRAINING), node("r3", replicas=9)],
    ),
    "stalled": (REQUEST, [node("r1", stalled=True), node("r2", replicas=9)]),
    "other version": (REQUEST, [node("r1", version="2.0.1"), node("r2", replicas=9)]),
    "location not offered": (REQUEST, [node("r1", storage=(store(600, "/srv/x"),)), node("r2")]),
    "location not shared": (REQUEST, [node("r1", storage=(store(600, shared=False),)), node("r2")]),
    "nobody is alive": (REQUEST, []),
    "nobody fits, one reason a node": (
        REQUEST,
        [
            node("r1", drain=DrainState.DRAINED),
            node("r2", stalled=True),
            node("r3", storage=(store(25),)),
            node("r4", storage=()),
            node("r5", version="0.9"),
        ],
    ),
}  # fmt: skip


def told(request: PlacementRequest, nodes: list[NodeLoad]) -> str:
    decision = place(request, nodes)
    if isinstance(decision, Problem):
        return f"{decision.reason.value}: {decision.message}\n  remedy: {decision.remedy}"
    return f"-> {decision.node}\n  " + "\n  ".join(decision.reasons)


def test_placement_in_words() -> None:
    text = "".join(f"# {name}\n{told(*case)}\n\n" for name, case in CASES.items())
    assert text == GOLDEN.read_text(), f"now it reads:\n{text}"
