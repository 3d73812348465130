"""The one family of operating errors: every refusal a person or a client can meet.

A problem names its reason (stable, machine-readable), a sentence, the field and value that were
wrong, and the remedy. Bugs are not problems: they raise ordinary exceptions and crash the task.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Every reason a caller can receive; the names are part of the public contract."""

    INTERNAL = "INTERNAL"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    BAD_FIELD = "BAD_FIELD"
    BAD_MANIFEST = "BAD_MANIFEST"
    BAD_CONFIG = "BAD_CONFIG"
    BAD_COMPRESSION = "BAD_COMPRESSION"
    FRAME_TOO_LARGE = "FRAME_TOO_LARGE"
    UNKNOWN_REPLICA = "UNKNOWN_REPLICA"
    UNKNOWN_VM = "UNKNOWN_VM"
    UNKNOWN_NODE = "UNKNOWN_NODE"
    UNKNOWN_OPERATION = "UNKNOWN_OPERATION"
    POINT_NOT_FOUND = "POINT_NOT_FOUND"
    NETWORK_UNKNOWN = "NETWORK_UNKNOWN"
    STATE_REFUSES = "STATE_REFUSES"
    WRONG_SIDE = "WRONG_SIDE"
    AMBIGUOUS_NAME = "AMBIGUOUS_NAME"
    STALE_EPOCH = "STALE_EPOCH"
    NOT_OWNER = "NOT_OWNER"
    SEQ_GAP = "SEQ_GAP"
    PARENT_MISMATCH = "PARENT_MISMATCH"
    DIGEST_MISMATCH = "DIGEST_MISMATCH"
    CLUSTER_OUT_OF_RANGE = "CLUSTER_OUT_OF_RANGE"
    DISK_NOT_TRACKABLE = "DISK_NOT_TRACKABLE"
    DISK_SHAPE_CHANGED = "DISK_SHAPE_CHANGED"
    STORE_NOT_SHARED = "STORE_NOT_SHARED"
    NO_NODE_FITS = "NO_NODE_FITS"
    POINT_IN_USE = "POINT_IN_USE"
    POINT_DAMAGED = "POINT_DAMAGED"
    REPLICA_DAMAGED = "REPLICA_DAMAGED"
    PRIMARY_RUNNING = "PRIMARY_RUNNING"
    PRIMARY_UNREACHABLE = "PRIMARY_UNREACHABLE"
    BUSY = "BUSY"
    REPLICATION_DISABLED = "REPLICATION_DISABLED"
    NO_IDENTITY = "NO_IDENTITY"
    CERTIFICATE_INVALID = "CERTIFICATE_INVALID"
    CERTIFICATE_REVOKED = "CERTIFICATE_REVOKED"
    NOT_AUTHORIZED = "NOT_AUTHORIZED"
    ROLE_REQUIRED = "ROLE_REQUIRED"
    NO_LEADER = "NO_LEADER"
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    LEASE_LOST = "LEASE_LOST"
    NODE_UNREACHABLE = "NODE_UNREACHABLE"
    DRAINING = "DRAINING"
    NO_SPACE = "NO_SPACE"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    TOO_MANY_STREAMS = "TOO_MANY_STREAMS"


@dataclass(frozen=True, slots=True)
class ReasonFacts:
    """How a reason appears outside: gRPC status name, process exit code, worth retrying."""

    grpc_code: str
    exit_code: int
    retryable: bool = False


_INVALID = ReasonFacts("INVALID_ARGUMENT", 2)
_MISSING = ReasonFacts("NOT_FOUND", 3)
_REFUSED = ReasonFacts("FAILED_PRECONDITION", 4)
_ABORTED = ReasonFacts("ABORTED", 4, retryable=True)
_DENIED = ReasonFacts("PERMISSION_DENIED", 5)
_AWAY = ReasonFacts("UNAVAILABLE", 6, retryable=True)
_FULL = ReasonFacts("RESOURCE_EXHAUSTED", 7, retryable=True)

REASONS: dict[Reason, ReasonFacts] = {
    Reason.INTERNAL: ReasonFacts("INTERNAL", 1),
    Reason.UNIMPLEMENTED: ReasonFacts("UNIMPLEMENTED", 2),
    Reason.BAD_FIELD: _INVALID,
    Reason.BAD_MANIFEST: _INVALID,
    Reason.BAD_CONFIG: _INVALID,
    Reason.BAD_COMPRESSION: _INVALID,
    Reason.FRAME_TOO_LARGE: _INVALID,
    Reason.UNKNOWN_REPLICA: _MISSING,
    Reason.UNKNOWN_VM: _MISSING,
    Reason.UNKNOWN_NODE: _MISSING,
    Reason.UNKNOWN_OPERATION: _MISSING,
    Reason.POINT_NOT_FOUND: _MISSING,
    Reason.NETWORK_UNKNOWN: _MISSING,
    Reason.STATE_REFUSES: _REFUSED,
    Reason.WRONG_SIDE: _REFUSED,
    Reason.AMBIGUOUS_NAME: _REFUSED,
    Reason.STALE_EPOCH: _ABORTED,
    Reason.NOT_OWNER: _ABORTED,
    Reason.SEQ_GAP: ReasonFacts("OUT_OF_RANGE", 4),
    Reason.PARENT_MISMATCH: _REFUSED,
    Reason.DIGEST_MISMATCH: ReasonFacts("DATA_LOSS", 4),
    Reason.CLUSTER_OUT_OF_RANGE: ReasonFacts("OUT_OF_RANGE", 4),
    Reason.DISK_NOT_TRACKABLE: _REFUSED,
    Reason.DISK_SHAPE_CHANGED: _REFUSED,
    Reason.STORE_NOT_SHARED: _REFUSED,
    Reason.NO_NODE_FITS: _REFUSED,
    Reason.POINT_IN_USE: _REFUSED,
    Reason.POINT_DAMAGED: ReasonFacts("DATA_LOSS", 4),
    Reason.REPLICA_DAMAGED: ReasonFacts("DATA_LOSS", 4),
    Reason.PRIMARY_RUNNING: _REFUSED,
    Reason.PRIMARY_UNREACHABLE: _REFUSED,
    Reason.BUSY: _ABORTED,
    Reason.REPLICATION_DISABLED: _REFUSED,
    Reason.NO_IDENTITY: ReasonFacts("UNAUTHENTICATED", 5),
    Reason.CERTIFICATE_INVALID: ReasonFacts("UNAUTHENTICATED", 5),
    Reason.CERTIFICATE_REVOKED: ReasonFacts("UNAUTHENTICATED", 5),
    Reason.NOT_AUTHORIZED: _DENIED,
    Reason.ROLE_REQUIRED: _DENIED,
    Reason.NO_LEADER: _AWAY,
    Reason.STORE_UNAVAILABLE: _AWAY,
    Reason.LEASE_LOST: _AWAY,
    Reason.NODE_UNREACHABLE: _AWAY,
    Reason.DRAINING: _AWAY,
    Reason.NO_SPACE: _FULL,
    Reason.QUOTA_EXCEEDED: _FULL,
    Reason.TOO_MANY_STREAMS: _FULL,
}

EXIT_CHECK_FOUND_FAULTS = 8


class Problem(Exception):
    """A typed refusal.

    :param reason: what kind of refusal; decides gRPC status, exit code and default retryability.
    :param message: one sentence for a person.
    :param field: the field, key, flag or file that was wrong ("" where none is).
    :param value: the offending value as text, shortened by the caller if long.
    :param remedy: the next step for a person, as a sentence or a command.
    :param cap: the client access point to ask instead (WRONG_SIDE).
    :param node: the node concerned (NOT_OWNER: the owner as far as known).
    :param epoch: the epoch the refusing side knows (STALE_EPOCH), 0 where none applies.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        field: str = "",
        value: str = "",
        remedy: str = "",
        retryable: bool | None = None,
        cap: str = "",
        node: str = "",
        epoch: int = 0,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field
        self.value = value
        self.remedy = remedy
        self.retryable = REASONS[reason].retryable if retryable is None else retryable
        self.cap = cap
        self.node = node
        self.epoch = epoch

    @property
    def grpc_code(self) -> str:
        """Name of the gRPC status code, e.g. ``FAILED_PRECONDITION``."""
        return REASONS[self.reason].grpc_code

    @property
    def exit_code(self) -> int:
        """Exit code of a command that ends with this problem."""
        return REASONS[self.reason].exit_code

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"

    def __repr__(self) -> str:
        return (
            f"Problem({self.reason}, {self.message!r}, field={self.field!r}, value={self.value!r})"
        )
