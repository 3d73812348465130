"""The state of a replicated VM at its primary: one table of states and inputs.

States bear the names of the public contract. A state that waits (suspended, in error) remembers in
``origin`` where it goes back to. What the table does not allow is refused with a remedy.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from vmreplica.core.problems import Problem, Reason


class ReplicationState(StrEnum):
    """Every state that ``replication show`` can print."""

    NOT_ENABLED = "NotEnabled"
    READY_FOR_INITIAL = "ReadyForInitialReplication"
    WAITING_FOR_INITIAL = "WaitingForInitialReplication"
    REPLICATING = "Replicating"
    SYNCED_COMPLETE = "SyncedReplicationComplete"
    FAIL_OVER_WAITING_COMPLETION = "FailOverWaitingCompletion"
    FAILED_OVER = "FailedOver"
    SUSPENDED = "Suspended"
    ERROR = "Error"
    WAITING_FOR_RESYNC = "WaitingForStartResynchronize"
    RESYNCHRONIZING = "Resynchronizing"
    RESYNC_SUSPENDED = "ResynchronizeSuspended"


class Input(StrEnum):
    """What a person asks for, or what a cycle reports."""

    ENABLE = "enable"
    START = "start"
    STOP_INITIAL = "stop-initial"
    SUSPEND = "suspend"
    RESUME = "resume"
    SET = "set"
    REMOVE = "remove"
    FULL_ACKNOWLEDGED = "full acknowledged"
    DELTA_ACKNOWLEDGED = "delta acknowledged"
    TRACKING_LOST = "tracking lost"
    RESYNC_BEGINS = "resync begins"
    FAILED = "failed"


VERBS = frozenset(
    {
        Input.ENABLE,
        Input.START,
        Input.STOP_INITIAL,
        Input.SUSPEND,
        Input.RESUME,
        Input.SET,
        Input.REMOVE,
    }
)


@dataclass(frozen=True, slots=True)
class Standing:
    """A state, and for states that wait the one to go back to (else the state itself)."""

    state: ReplicationState
    origin: ReplicationState

    @property
    def sends(self) -> bool:
        """Whether cycles are to be sent. In Error they are: success is what heals."""
        return self.state in _SENDING


def standing(state: ReplicationState) -> Standing:
    """A standing that waits for nothing."""
    return Standing(state, state)


_S = ReplicationState
_SENDING = frozenset(
    {
        _S.WAITING_FOR_INITIAL,
        _S.REPLICATING,
        _S.WAITING_FOR_RESYNC,
        _S.RESYNCHRONIZING,
        _S.ERROR,
    }
)


class _Move(StrEnum):
    """A target that depends on the standing."""

    STAY = "stay"
    BACK = "back to origin"
    SUSPEND = "suspended, remembering the origin"
    FAIL = "error, remembering the origin"
    RETARGET = "same state, but going back to resynchronization"


_ORIGINS = (_S.WAITING_FOR_INITIAL, _S.REPLICATING, _S.WAITING_FOR_RESYNC, _S.RESYNCHRONIZING)
_WORKING: dict[Input, ReplicationState | _Move] = {
    Input.ENABLE: _Move.STAY,
    Input.START: _Move.STAY,
    Input.RESUME: _Move.STAY,
    Input.SET: _Move.STAY,
    Input.REMOVE: _S.NOT_ENABLED,
    Input.SUSPEND: _Move.SUSPEND,
    Input.FAILED: _Move.FAIL,
    Input.FULL_ACKNOWLEDGED: _S.REPLICATING,
    Input.DELTA_ACKNOWLEDGED: _S.REPLICATING,
}

TABLE: dict[ReplicationState, dict[Input, ReplicationState | _Move]] = {
    _S.NOT_ENABLED: {Input.ENABLE: _S.READY_FOR_INITIAL, Input.REMOVE: _Move.STAY},
    _S.READY_FOR_INITIAL: {
        Input.ENABLE: _Move.STAY,
        Input.START: _S.WAITING_FOR_INITIAL,
        Input.STOP_INITIAL: _Move.STAY,
        Input.SET: _Move.STAY,
        Input.REMOVE: _S.NOT_ENABLED,
    },
    _S.WAITING_FOR_INITIAL: {
        **_WORKING,
        Input.STOP_INITIAL: _S.READY_FOR_INITIAL,
        # The first full never began or lost its tracker: it simply starts over.
        Input.TRACKING_LOST: _Move.STAY,
    },
    _S.REPLICATING: {**_WORKING, Input.TRACKING_LOST: _S.WAITING_FOR_RESYNC},
    _S.WAITING_FOR_RESYNC: {
        **_WORKING,
        Input.TRACKING_LOST: _Move.STAY,
        Input.RESYNC_BEGINS: _S.RESYNCHRONIZING,
    },
    _S.RESYNCHRONIZING: {
        **_WORKING,
        Input.TRACKING_LOST: _S.WAITING_FOR_RESYNC,
        Input.RESYNC_BEGINS: _Move.STAY,
    },
    _S.ERROR: {
        **_WORKING,
        Input.FAILED: _Move.STAY,
        Input.TRACKING_LOST: _Move.RETARGET,
        Input.RESYNC_BEGINS: _S.RESYNCHRONIZING,
        Input.RESUME: _Move.BACK,
    },
    _S.SUSPENDED: {
        Input.ENABLE: _Move.STAY,
        Input.SET: _Move.STAY,
        Input.SUSPEND: _Move.STAY,
        Input.RESUME: _Move.BACK,
        Input.REMOVE: _S.NOT_ENABLED,
    },
    _S.RESYNC_SUSPENDED: {
        Input.ENABLE: _Move.STAY,
        Input.SET: _Move.STAY,
        Input.SUSPEND: _Move.STAY,
        Input.RESUME: _S.WAITING_FOR_RESYNC,
        Input.REMOVE: _S.NOT_ENABLED,
    },
    # States of failover: reached by later verbs; here they only let themselves be looked at.
    _S.SYNCED_COMPLETE: {Input.ENABLE: _Move.STAY},
    _S.FAIL_OVER_WAITING_COMPLETION: {Input.ENABLE: _Move.STAY},
    _S.FAILED_OVER: {Input.ENABLE: _Move.STAY, Input.REMOVE: _S.NOT_ENABLED},
}

_REMEDIES: dict[ReplicationState, str] = {
    _S.NOT_ENABLED: "Enable it first: vmrctl replication enable VM --to HOST:PORT",
    _S.READY_FOR_INITIAL: "Start it first: vmrctl replication start VM",
    _S.WAITING_FOR_INITIAL: "Wait for the initial replication, or stop it: "
    "vmrctl replication stop-initial VM",
    _S.REPLICATING: "The initial replication is done; to pause use: vmrctl replication suspend VM",
    _S.WAITING_FOR_RESYNC: "It resynchronizes by itself; to pause use: "
    "vmrctl replication suspend VM",
    _S.RESYNCHRONIZING: "It resynchronizes by itself; to pause use: vmrctl replication suspend VM",
    _S.ERROR: "See why with: vmrctl replication show VM; it is tried again by itself",
    _S.SUSPENDED: "Resume it first: vmrctl replication resume VM",
    _S.RESYNC_SUSPENDED: "Resume it first: vmrctl replication resume VM",
    _S.SYNCED_COMPLETE: "A planned failover is prepared; finish or cancel it first",
    _S.FAIL_OVER_WAITING_COMPLETION: "A failover waits to be completed or cancelled",
    _S.FAILED_OVER: "The VM runs on the other side; reverse the replication, or remove it: "
    "vmrctl replication remove VM",
}


def step(now: Standing, what: Input) -> Standing | None:
    """The standing after ``what``; None where the table does not allow it."""
    target = TABLE[now.state].get(what)
    match target:
        case None:
            return None
        case _Move.STAY:
            return now
        case _Move.BACK:
            return standing(now.origin)
        case _Move.SUSPEND:
            return _suspended(now)
        case _Move.FAIL:
            return Standing(_S.ERROR, now.origin)
        case _Move.RETARGET:
            lost = now.origin
            if lost is not _S.WAITING_FOR_INITIAL:
                lost = _S.WAITING_FOR_RESYNC
            return Standing(now.state, lost)
        case ReplicationState():
            return standing(target)


def _suspended(now: Standing) -> Standing:
    if now.origin in (_S.WAITING_FOR_RESYNC, _S.RESYNCHRONIZING):
        return Standing(_S.RESYNC_SUSPENDED, _S.WAITING_FOR_RESYNC)
    return Standing(_S.SUSPENDED, now.origin)


def ask(now: Standing, verb: Input, vm_name: str) -> Standing:
    """``step`` for a person's verb. :raises Problem: STATE_REFUSES with the remedy."""
    after = step(now, verb)
    if after is None:
        raise Problem(
            Reason.STATE_REFUSES,
            f"{verb.value} is not possible while {vm_name} is in state {now.state.value}",
            field="state",
            value=now.state.value,
            remedy=_REMEDIES[now.state].replace("VM", vm_name, 1),
        )
    return after
