"""The cluster's store: linearizable keys, leases, guarded transactions, watches (etcd's model).

Keys and values are text; values are JSON by convention of the callers. The facts every adapter
and the fake must share (contract suite): a transaction is at most one revision; a read-only or
empty transaction, or deleting nothing, raises none; a missing key compares as 0 by number and
every VALUE comparison with it is false; duplicate keys in one transaction are refused; lease
expiry is late, never early, and deletes all its keys at one revision.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key as the store holds it. ``lease_id`` is 0 when no lease is attached."""

    key: str
    value: str
    create_revision: int
    mod_revision: int
    version: int
    lease_id: int = 0


class CompareTarget(StrEnum):
    """What of a key is compared."""

    CREATE = "create"
    MOD = "mod"
    VERSION = "version"
    LEASE = "lease"
    VALUE = "value"


@dataclass(frozen=True, slots=True)
class Compare:
    """One guard. ``operator`` is one of = != < >; ``operand`` is text for VALUE, else a number."""

    target: CompareTarget
    key: str
    operator: str
    operand: int | str


def exists(key: str) -> Compare:
    """Guard: the key is there."""
    return Compare(CompareTarget.CREATE, key, ">", 0)


def absent(key: str) -> Compare:
    """Guard: the key is not there."""
    return Compare(CompareTarget.CREATE, key, "=", 0)


def created_at(key: str, revision: int) -> Compare:
    """Guard: the key is the very one created at ``revision`` (an election key still held)."""
    return Compare(CompareTarget.CREATE, key, "=", revision)


def unchanged(key: str, mod_revision: int) -> Compare:
    """Guard: the key was not written since ``mod_revision`` (0: it does not exist)."""
    return Compare(CompareTarget.MOD, key, "=", mod_revision)


@dataclass(frozen=True, slots=True)
class Put:
    """Write a key; ``lease_id`` 0 detaches it from any lease."""

    key: str
    value: str
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove one key; removing a missing key is no error."""

    key: str


@dataclass(frozen=True, slots=True)
class Get:
    """Read one key inside a transaction."""

    key: str


Operation = Put | Delete | Get


@dataclass(frozen=True, slots=True)
class TransactionResult:
    """``reads`` holds the answers of the Gets of the branch taken, in order."""

    succeeded: bool
    revision: int
    reads: tuple[KeyValue | None, ...] = ()


@dataclass(frozen=True, slots=True)
class RangeResult:
    """Keys under a prefix in key order at ``revision``; ``more`` = the limit cut the list."""

    revision: int
    items: tuple[KeyValue, ...]
    count: int
    more: bool = False


@dataclass(frozen=True, slots=True)
class Lease:
    """A granted lease; ``ttl_ms`` is what was granted, which may exceed what was asked."""

    lease_id: int
    ttl_ms: int


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One change. For a deletion ``deleted`` is true and ``kv.value`` is empty."""

    kv: KeyValue
    deleted: bool


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """All changes up to and including ``revision``; empty = progress only."""

    revision: int
    events: tuple[WatchEvent, ...] = field(default=())


class StoreError(Exception):
    """Base of what a cluster store raises."""


class StoreUnavailable(StoreError):
    """The request certainly had no effect: nobody answered, or the answer was a refusal."""


class OutcomeUnknown(StoreError):
    """A write was sent and no answer came: it may or may not have been applied."""


class StoreRefused(StoreError):
    """The store rejected the request as malformed or its lease as unknown; nothing applied."""


class Compacted(StoreError):
    """The asked-for revision is gone; ``compact_revision`` is the oldest one still there."""

    def __init__(self, compact_revision: int) -> None:
        super().__init__(f"history below revision {compact_revision} is compacted")
        self.compact_revision = compact_revision


MAX_OPERATIONS_PER_TRANSACTION = 128


class ClusterStore(Protocol):
    """Linearizable unless said otherwise. Every call has its deadline inside the adapter."""

    async def get(self, key: str) -> KeyValue | None:
        """Linearizable read of one key. :raises StoreUnavailable:"""
        ...

    async def range(
        self,
        prefix: str,
        *,
        limit: int = 0,
        after_key: str = "",
        revision: int = 0,
        min_mod_revision: int = 0,
        count_only: bool = False,
    ) -> RangeResult:
        """Keys under ``prefix`` in key order, beyond ``after_key``.

        :param revision: read at this revision (0: the newest, linearizable).
        :raises StoreUnavailable, Compacted:
        """
        ...

    async def transaction(
        self,
        compares: Sequence[Compare],
        success: Sequence[Operation],
        failure: Sequence[Operation] = (),
    ) -> TransactionResult:
        """If all guards hold do ``success`` else ``failure``, atomically.

        :raises StoreUnavailable: certainly not applied.
        :raises OutcomeUnknown: perhaps applied; resolve by an op id, never by blind retry.
        :raises StoreRefused: duplicate key, too many operations, unknown lease.
        """
        ...

    async def grant(self, ttl_ms: int) -> Lease:
        """Create a lease; read ``ttl_ms`` from the answer. :raises StoreUnavailable:"""
        ...

    async def keepalive(self, lease_id: int, timeout_ms: int) -> int:
        """Refresh once; the granted TTL in ms, or 0 when the lease is gone.

        :raises StoreUnavailable: no answer within ``timeout_ms``; the lease may still be refreshed.
        """
        ...

    async def revoke(self, lease_id: int) -> None:
        """End a lease and delete its keys; a lease already gone is no error."""
        ...

    def watch(self, prefix: str, start_revision: int) -> AsyncIterator[WatchBatch]:
        """Changes under ``prefix`` from ``start_revision`` on, in revision order, each once.

        The adapter reconnects and resumes by itself. :raises Compacted: start over from a range.
        """
        ...

    async def close(self) -> None:
        """Release connections. Idempotent."""
        ...
