"""Which replicas need another owner, who gets them, and in which guarded transactions.

Everything here is a value of what was observed; the guards of each transaction make a stale
observation harmless (data safety: an owner changes only by raising the epoch under guards).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from vmreplica.core.placement import NodeLoad, PlacementRequest, compatible, location_of
from vmreplica.core.records import DrainState, OwnerRecord

MAX_REPLICAS_PER_TRANSACTION = 120
MAX_GUARDS_PER_TRANSACTION = 125
"""The store takes 128 of each; one is the leader's key, two prove what became of the write."""


class Cause(StrEnum):
    """Why a replica needs an owner; also which guard proves it."""

    GONE = "gone"
    RELEASED = "released"
    STALLED = "stalled"
    MISSING = "missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveNode:
    """A node process whose leased key exists. ``mod_revision`` is of that key."""

    load: NodeLoad
    mod_revision: int

    @property
    def key(self) -> tuple[str, str]:
        """(name, incarnation)."""
        return self.load.name, self.load.incarnation


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnedReplica:
    """A replica and who owns it as observed. ``owner`` None: nobody was ever named."""

    replica_id: str
    storage_location: str
    owner: OwnerRecord | None
    owner_mod_revision: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One change of owner, with all that its guards need.

    ``old_node_mod_revision``: of the stalled node's key, where that is the cause.
    """

    replica_id: str
    cause: Cause
    node: str
    incarnation: str
    epoch: int
    owner_mod_revision: int
    old_node: str = ""
    old_incarnation: str = ""
    old_node_mod_revision: int = 0

    @property
    def returns_home(self) -> bool:
        """The same node under a new incarnation, or again: nothing really moves."""
        return self.node == self.old_node


@dataclass(frozen=True, slots=True)
class NodePresent:
    """Guard: the new owner lives."""

    node: str
    incarnation: str


@dataclass(frozen=True, slots=True)
class NodeAbsent:
    """Guard: the old owner's lease is gone."""

    node: str
    incarnation: str


@dataclass(frozen=True, slots=True)
class NodeUnchanged:
    """Guard: the old owner's record still says what was observed (stalled)."""

    node: str
    incarnation: str
    mod_revision: int


@dataclass(frozen=True, slots=True)
class OwnerUnchanged:
    """Guard: the owner record is the one observed; 0 = there is none."""

    replica_id: str
    mod_revision: int


Guard = NodePresent | NodeAbsent | NodeUnchanged | OwnerUnchanged


@dataclass(frozen=True, slots=True)
class Plan:
    """Moves in the order they are to be made, and what nobody can take (replica → sentence)."""

    moves: tuple[Move, ...] = ()
    stuck: Mapping[str, str] = field(default_factory=dict)


def cause_of(replica: OwnedReplica, live: Mapping[tuple[str, str], LiveNode]) -> Cause | None:
    """Why this replica needs a new owner; None: its owner lives and keeps it."""
    owner = replica.owner
    if owner is None:
        return Cause.MISSING
    if owner.released:
        return Cause.RELEASED
    node = live.get((owner.node, owner.incarnation))
    if node is None:
        return Cause.GONE
    return Cause.STALLED if node.load.stalled else None


def plan(
    replicas: Iterable[OwnedReplica],
    nodes: Iterable[LiveNode],
    *,
    version: str = "",
    needs_shared: bool = True,
) -> Plan:
    """Give every replica without a working owner a new one, spread by load.

    The order is fixed by (old owner, replica id), so that planning again after any prefix of the
    moves was made yields the rest. A node that came back takes its own replicas.
    """
    live = {node.key: node for node in nodes}
    loads = {key: node.load for key, node in live.items()}
    needy = [(r, c) for r in replicas if (c := cause_of(r, live)) is not None]
    moves: list[Move] = []
    stuck: dict[str, str] = {}
    for replica, cause in sorted(needy, key=lambda pair: _order(pair[0])):
        request = PlacementRequest(
            storage_location=replica.storage_location,
            size_bytes=0,
            needs_shared=needs_shared,
            version=version,
        )
        target = _target(request, replica, cause, loads)
        if target is None:
            stuck[replica.replica_id] = _why_stuck(request, loads)
            continue
        _shift(loads, replica.owner, target)
        moves.append(_move(replica, cause, target, live))
    return Plan(tuple(moves), stuck)


def batches(moves: Sequence[Move]) -> list[tuple[Move, ...]]:
    """Cut into transactions: at most 120 replicas and 125 guards each, order kept."""
    done: list[tuple[Move, ...]] = []
    current: list[Move] = []
    for move in moves:
        grown = [*current, move]
        too_many = len(grown) > MAX_REPLICAS_PER_TRANSACTION
        if current and (too_many or guard_count(grown) > MAX_GUARDS_PER_TRANSACTION):
            done.append(tuple(current))
            grown = [move]
        current = grown
    if current:
        done.append(tuple(current))
    return done


def guards(moves: Sequence[Move]) -> tuple[Guard, ...]:
    """What must hold for ``moves`` to be made in one transaction (beside the leader's key)."""
    found: dict[Guard, None] = {}
    for move in moves:
        found[OwnerUnchanged(move.replica_id, move.owner_mod_revision)] = None
        found[NodePresent(move.node, move.incarnation)] = None
        match move.cause:
            case Cause.GONE:
                found[NodeAbsent(move.old_node, move.old_incarnation)] = None
            case Cause.STALLED:
                found[
                    NodeUnchanged(move.old_node, move.old_incarnation, move.old_node_mod_revision)
                ] = None
            case Cause.RELEASED | Cause.MISSING:
                pass  # the owner record itself says so, and is guarded
    return tuple(found)


def guard_count(moves: Sequence[Move]) -> int:
    """How many guards ``moves`` need: one a replica, one a node named."""
    olds = {
        (m.old_node, m.old_incarnation) for m in moves if m.cause in (Cause.GONE, Cause.STALLED)
    }
    return len(moves) + len({(m.node, m.incarnation) for m in moves}) + len(olds)


def halves(batch: Sequence[Move]) -> tuple[tuple[Move, ...], ...]:
    """A batch whose guard failed, split; a single move is given up until the next look."""
    if len(batch) < 2:
        return ()
    middle = len(batch) // 2
    return tuple(batch[:middle]), tuple(batch[middle:])


def owner_after(move: Move, op_id: str) -> OwnerRecord:
    """The owner record that the move writes."""
    return OwnerRecord(node=move.node, incarnation=move.incarnation, epoch=move.epoch, op_id=op_id)


def _shift(
    loads: dict[tuple[str, str], NodeLoad], owner: OwnerRecord | None, target: tuple[str, str]
) -> None:
    """Count the replica at its new owner, and no more at the old one if that still lives."""
    old = (owner.node, owner.incarnation) if owner else ("", "")
    for key, change in ((old, -1), (target, 1)):
        if key in loads:
            loads[key] = replace(loads[key], replicas=loads[key].replicas + change)


def _order(replica: OwnedReplica) -> tuple[str, str, str]:
    owner = replica.owner
    return (
        (owner.node, owner.incarnation, replica.replica_id)
        if owner
        else (
            "",
            "",
            replica.replica_id,
        )
    )


def _target(
    request: PlacementRequest,
    replica: OwnedReplica,
    cause: Cause,
    loads: Mapping[tuple[str, str], NodeLoad],
) -> tuple[str, str] | None:
    owner = replica.owner
    fitting = {key: n for key, n in loads.items() if not _refuses(request, n, owner)}
    if owner is not None and cause is Cause.GONE:
        home = [key for key in fitting if key[0] == owner.node]
        if home:
            return max(home)
    # Whoever released it goes last: it is being drained or stopped.
    return min(
        fitting,
        key=lambda key: (
            owner is not None and key == (owner.node, owner.incarnation),
            loads[key].load,
            key,
        ),
        default=None,
    )


def _refuses(request: PlacementRequest, node: NodeLoad, owner: OwnerRecord | None) -> bool:
    """The data lie where they lie: room is not asked for, only that the node reaches them."""
    if node.drain is not DrainState.READY or node.stalled:
        return True
    if not compatible(request.version, node.version):
        return True
    storage = location_of(node, request.storage_location)
    if storage is None:
        return True
    at_home = owner is not None and owner.node == node.name
    return request.needs_shared and not storage.shared and not at_home


def _move(
    replica: OwnedReplica,
    cause: Cause,
    target: tuple[str, str],
    live: Mapping[tuple[str, str], LiveNode],
) -> Move:
    owner = replica.owner
    old = live.get((owner.node, owner.incarnation)) if owner else None
    return Move(
        replica_id=replica.replica_id,
        cause=cause,
        node=target[0],
        incarnation=target[1],
        epoch=(owner.epoch if owner else 0) + 1,
        owner_mod_revision=replica.owner_mod_revision,
        old_node=owner.node if owner else "",
        old_incarnation=owner.incarnation if owner else "",
        old_node_mod_revision=old.mod_revision if old else 0,
    )


def _why_stuck(request: PlacementRequest, loads: Mapping[tuple[str, str], NodeLoad]) -> str:
    if not loads:
        return "no node is alive"
    return f"no live, undrained node reaches {request.storage_location}"
