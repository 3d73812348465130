"""How well a VM is protected right now, and why not better."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from vmreplica.core.replication_state import ReplicationState

_S = ReplicationState
WARNING_INTERVALS = 2
CRITICAL_INTERVALS = 5


class Health(StrEnum):
    """The names that ``health`` shows."""

    NOT_APPLICABLE = "NotApplicable"
    NORMAL = "Normal"
    WARNING = "Warning"
    CRITICAL = "Critical"


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthFacts:
    """``unacked_ms``: time since the last acknowledgement (or since sending became possible)."""

    state: ReplicationState
    frequency_ms: int
    unacked_ms: int = 0
    problem: str = ""
    deferred: str = ""
    relayed_by_need: bool = False
    warnings: tuple[str, ...] = ()


_STATE_REASONS: dict[ReplicationState, tuple[Health, str]] = {
    _S.NOT_ENABLED: (Health.NOT_APPLICABLE, ""),
    _S.READY_FOR_INITIAL: (Health.WARNING, "the initial replication has not been started"),
    _S.SUSPENDED: (Health.WARNING, "replication is suspended"),
    _S.RESYNC_SUSPENDED: (Health.WARNING, "resynchronization is suspended"),
    _S.WAITING_FOR_RESYNC: (Health.WARNING, "a resynchronization is waiting to start"),
    _S.RESYNCHRONIZING: (Health.WARNING, "a resynchronization is running"),
    _S.ERROR: (Health.CRITICAL, ""),
}
_ORDER = (Health.NOT_APPLICABLE, Health.NORMAL, Health.WARNING, Health.CRITICAL)


def health_of(facts: HealthFacts) -> tuple[Health, tuple[str, ...]]:
    """The worst that any fact says, and the reason of each that is not normal."""
    health, reason = _STATE_REASONS.get(facts.state, (Health.NORMAL, ""))
    if health is Health.NOT_APPLICABLE:
        return health, ()
    found = [(health, reason)]
    if facts.problem:
        found.append((Health.WARNING, facts.problem))
    if facts.deferred:
        found.append((Health.WARNING, facts.deferred))
    if facts.relayed_by_need:
        found.append((Health.WARNING, "the replica's node can only be reached through its broker"))
    found.extend((Health.WARNING, warning) for warning in facts.warnings)
    if facts.state is _S.REPLICATING and facts.unacked_ms > WARNING_INTERVALS * facts.frequency_ms:
        late = facts.unacked_ms > CRITICAL_INTERVALS * facts.frequency_ms
        text = f"no cycle has been acknowledged for {facts.unacked_ms // 1000} s"
        found.append((Health.CRITICAL if late else Health.WARNING, text))
    worst = max((h for h, _ in found), key=_ORDER.index)
    # A problem that also defers the cycle is said once.
    return worst, tuple(dict.fromkeys(text for _, text in found if text))
