"""What an error from etcd says about the request: the one table for it."""

from __future__ import annotations

from enum import Enum, auto

import grpc

from vmreplica.ports.cluster_store import (
    OutcomeUnknown,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)


class Verdict(Enum):
    """REFUSED: malformed. COMPACTED. DENIED: not allowed, asking another member is no use.

    NOT_APPLIED: this member did nothing, another may. UNKNOWN: a write may have been applied.
    """

    REFUSED = auto()
    COMPACTED = auto()
    DENIED = auto()
    NOT_APPLIED = auto()
    UNKNOWN = auto()


# Said by etcd before the request is proposed. "request timed out" and "leader changed" are not
# here: the proposal may still be applied.
_BEFORE_PROPOSAL = {
    "etcdserver: no leader",
    "etcdserver: too many requests",
    "etcdserver: mvcc: database space exceeded",
    "etcdserver: not capable",
}

_BY_CODE = {
    grpc.StatusCode.INVALID_ARGUMENT: Verdict.REFUSED,
    grpc.StatusCode.NOT_FOUND: Verdict.REFUSED,
    grpc.StatusCode.FAILED_PRECONDITION: Verdict.REFUSED,
    grpc.StatusCode.OUT_OF_RANGE: Verdict.REFUSED,
    grpc.StatusCode.UNIMPLEMENTED: Verdict.DENIED,
    grpc.StatusCode.PERMISSION_DENIED: Verdict.DENIED,
    grpc.StatusCode.UNAUTHENTICATED: Verdict.DENIED,
}


def classify(code: grpc.StatusCode, details: str) -> Verdict:
    """The verdict on a call that *was sent*; when in doubt, UNKNOWN."""
    if details in _BEFORE_PROPOSAL:
        return Verdict.NOT_APPLIED
    if code is grpc.StatusCode.OUT_OF_RANGE and "compacted" in details:
        return Verdict.COMPACTED
    return _BY_CODE.get(code, Verdict.UNKNOWN)


def as_error(verdict: Verdict, text: str) -> StoreError:
    """The port's error for a verdict (COMPACTED needs a revision: not here)."""
    match verdict:
        case Verdict.REFUSED:
            return StoreRefused(text)
        case Verdict.UNKNOWN:
            return OutcomeUnknown(text)
        case _:
            return StoreUnavailable(text)
