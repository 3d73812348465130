"""State and health of a replica as its owner sees it (hyperv terms, interfaces §3)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from vmreplica.core.cycle import CycleKind
from vmreplica.core.manifest import Manifest

WARNING_MISSED = 3
CRITICAL_MISSED = 20


class ReplicaPhase(StrEnum):
    """Where the owner's task stands."""

    TAKING_OVER = "TakingOver"
    SERVING = "Serving"
    RELEASING = "Releasing"
    DAMAGED = "Damaged"
    REMOVING = "Removing"
    STOPPED = "Stopped"


@dataclass(frozen=True, slots=True)
class ReplicaHealth:
    """``state`` and ``health`` by their public names, and why."""

    state: str
    health: str
    reasons: tuple[str, ...] = ()


def judge(
    manifest: Manifest | None,
    phase: ReplicaPhase,
    receiving: CycleKind | None,
    frequency_ms: int,
    now_ms: int,
) -> ReplicaHealth:
    """State and health of one replica.

    :param receiving: kind of the cycle that is arriving now, None when none is.
    :param now_ms: wall time; a stepped clock shows as a wrong health, never as lost data.
    """
    if phase is ReplicaPhase.DAMAGED:
        return ReplicaHealth("Error", "Critical", ("the newest manifest does not read back",))
    if manifest is None or manifest.head.seq == 0:
        return ReplicaHealth("WaitingForInitialReplication", "Normal")
    state = "Resynchronizing" if receiving is CycleKind.RESYNC else "Replicating"
    missed = (now_ms - manifest.head.time_ms) // max(frequency_ms, 1)
    why = (f"no cycle for {missed} intervals",)
    if missed > CRITICAL_MISSED:
        return ReplicaHealth(state, "Critical", why)
    if missed > WARNING_MISSED:
        return ReplicaHealth(state, "Warning", why)
    return ReplicaHealth(state, "Normal")
