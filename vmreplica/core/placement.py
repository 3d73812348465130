"""Which node takes a replica: capacity first, then load, with the reasons for people.

The answer does not depend on the order of the nodes given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import DrainState, StorageRecord

EXPECTED_SHARE_PERCENT = 50
"""How much of its disks' size a replica is expected to take: compressed data plus its points."""
HEADROOM_PERCENT = 2
"""Of a storage location's size, kept free for compaction and for what nobody expected."""
_VM_WEIGHT = 2
"""A running VM loads a node like this many replicas."""
_GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLoad:
    """One live node as placement sees it."""

    name: str
    incarnation: str
    version: str
    storage: tuple[StorageRecord, ...] = ()
    stalled: bool = False
    drain: DrainState = DrainState.READY
    replicas: int = 0
    running_vms: int = 0
    memory_free_bytes: int = 0

    @property
    def load(self) -> int:
        """Replicas kept plus the weight of the VMs that run here."""
        return self.replicas + _VM_WEIGHT * self.running_vms


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementRequest:
    """What is to be placed. ``committed_bytes`` = disk sizes of the replicas already there."""

    storage_location: str
    size_bytes: int
    committed_bytes: int = 0
    needs_shared: bool = True
    version: str = ""


@dataclass(frozen=True, slots=True)
class Placement:
    """The node chosen, and one reason for it and for each other node."""

    node: str
    incarnation: str
    reasons: tuple[str, ...] = field(default=())


def place(request: PlacementRequest, nodes: Iterable[NodeLoad]) -> Placement | Problem:
    """The fitting node with the least load; NO_NODE_FITS with one reason a node otherwise."""
    ordered = sorted(nodes, key=lambda n: (n.name, n.incarnation))
    refusals = {(n.name, n.incarnation): refusal(request, n) for n in ordered}
    fitting = [n for n in ordered if not refusals[n.name, n.incarnation]]
    if not fitting:
        return _no_node_fits(request, ordered, [refusals[n.name, n.incarnation] for n in ordered])
    best = min(fitting, key=_rank)
    reasons = [f"{best.name}: chosen, {_state_text(request, best)}"]
    for node in ordered:
        if node is best:
            continue
        why = refusals[node.name, node.incarnation] or f"not less loaded, {_load_text(node)}"
        reasons.append(f"{node.name}: {why}")
    return Placement(best.name, best.incarnation, tuple(reasons))


def refusal(request: PlacementRequest, node: NodeLoad) -> str:
    """Why ``node`` cannot take it; "" if it can."""
    if node.drain is not DrainState.READY:
        return "it is drained" if node.drain is DrainState.DRAINED else "it is being drained"
    if node.stalled:
        return "its storage does not answer"
    if not compatible(request.version, node.version):
        return f"its version {node.version} does not fit version {request.version}"
    return refusal_of_storage(request, node)


def refusal_of_storage(request: PlacementRequest, node: NodeLoad) -> str:
    """Why the node's storage cannot take it; "" if it can."""
    storage = location_of(node, request.storage_location)
    if storage is None:
        return f"it does not offer {request.storage_location}"
    if request.needs_shared and not storage.shared:
        return f"{request.storage_location} is not shared between the nodes there"
    needed = request.size_bytes * EXPECTED_SHARE_PERCENT // 100
    if needed > room(request, storage):
        return (
            f"{request.storage_location} has {_size(storage.free_bytes)} free, "
            f"{_size(_reserved(request, storage))} of it reserved for growth and compaction, "
            f"{_size(needed)} needed"
        )
    return ""


def room(request: PlacementRequest, storage: StorageRecord) -> int:
    """Bytes free there that no replica is expected to grow into; never below 0."""
    return max(0, storage.free_bytes - _reserved(request, storage))


def location_of(node: NodeLoad, path: str) -> StorageRecord | None:
    """The node's storage location at ``path``."""
    return next((s for s in node.storage if s.path == path), None)


def compatible(mine: str, other: str) -> bool:
    """Whether two versions may share replicas: the first number is equal ("" fits all)."""
    if not mine or not other:
        return True
    return mine.split(".", 1)[0] == other.split(".", 1)[0]


def _reserved(request: PlacementRequest, storage: StorageRecord) -> int:
    used = max(0, storage.total_bytes - storage.free_bytes)
    growth = max(0, request.committed_bytes * EXPECTED_SHARE_PERCENT // 100 - used)
    return growth + storage.total_bytes * HEADROOM_PERCENT // 100


def _rank(node: NodeLoad) -> tuple[int, int, str, str]:
    return (node.load, -node.memory_free_bytes, node.name, node.incarnation)


def _state_text(request: PlacementRequest, node: NodeLoad) -> str:
    storage = location_of(node, request.storage_location)
    assert storage is not None
    return f"{_load_text(node)}, {_size(room(request, storage))} to spare in {storage.path}"


def _load_text(node: NodeLoad) -> str:
    return f"{_count(node.replicas, 'replica')}, {_count(node.running_vms, 'VM')} running"


def _no_node_fits(
    request: PlacementRequest, nodes: Sequence[NodeLoad], refusals: Sequence[str]
) -> Problem:
    reasons = [f"{n.name}: {why}" for n, why in zip(nodes, refusals, strict=True)]
    return Problem(
        Reason.NO_NODE_FITS,
        "No node can take the replica: " + ("; ".join(reasons) or "no node is alive") + ".",
        field="storage_location",
        value=request.storage_location,
        remedy="Make room, undrain or add a node that offers this storage location.",
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _size(count: int) -> str:
    return f"{count / _GIB:.1f} GiB"
