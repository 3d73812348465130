"""The primary side's records in the cluster store: what must survive a restart of the agent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from vmreplica.core.keys import Keys
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import OperationRecord, ReplicationRecord, parse, render
from vmreplica.ports.cluster_store import (
    Compare,
    Delete,
    KeyValue,
    Operation,
    Put,
    TransactionResult,
    unchanged,
)


class RecordCache(Protocol):
    """What is read from (coordination's StoreCache)."""

    async def ready(self) -> None:
        """The first listing is there."""
        ...

    def get(self, key: str) -> KeyValue | None:
        """One key as last seen."""
        ...

    def items(self, prefix: str = "") -> list[KeyValue]:
        """Keys under a prefix, in key order."""
        ...

    def note(self, kv: KeyValue) -> None:
        """Read-your-writes."""
        ...

    def forget(self, key: str, revision: int) -> None:
        """Read-your-deletes."""
        ...


class RecordWriter(Protocol):
    """What is written through (coordination's GuardedWriter)."""

    async def write(
        self, compares: Sequence[Compare], operations: Sequence[Operation], *, op_id: str = ""
    ) -> TransactionResult:
        """One guarded transaction with a known outcome."""
        ...


class ReplicationRecords:
    """Reads and writes ``replications/ID`` and the operations of long verbs."""

    def __init__(self, cache: RecordCache, writer: RecordWriter, keys: Keys) -> None:
        self._cache = cache
        self._writer = writer
        self._keys = keys

    async def ready(self) -> None:
        """Wait for the first listing."""
        await self._cache.ready()

    def all(self) -> tuple[ReplicationRecord, ...]:
        """Every record of this cluster's primaries."""
        return tuple(
            parse(ReplicationRecord, kv.value) for kv in self._cache.items(self._keys.replications)
        )

    def get(self, replica_id: str) -> ReplicationRecord | None:
        """One record."""
        kv = self._cache.get(self._keys.replication(replica_id))
        return parse(ReplicationRecord, kv.value) if kv else None

    async def save(self, record: ReplicationRecord) -> None:
        """Write the record. :raises StoreUnavailable, OutcomeUnknown, Problem: BUSY"""
        key = self._keys.replication(record.replica_id)
        known = self._cache.get(key)
        text = render(record)
        result = await self._writer.write(
            [unchanged(key, known.mod_revision if known else 0)], [Put(key, text)]
        )
        if not result.succeeded:
            raise _collision(record.vm_name)
        self._cache.note(
            KeyValue(
                key,
                text,
                known.create_revision if known else result.revision,
                result.revision,
                known.version + 1 if known else 1,
            )
        )

    async def delete(self, record: ReplicationRecord) -> None:
        """Remove the record. Idempotent."""
        key = self._keys.replication(record.replica_id)
        known = self._cache.get(key)
        if known is None:
            return
        result = await self._writer.write([unchanged(key, known.mod_revision)], [Delete(key)])
        if not result.succeeded:
            raise _collision(record.vm_name)
        self._cache.forget(key, result.revision)

    def operation(self, operation_id: str) -> OperationRecord | None:
        """One operation as last seen."""
        kv = self._cache.get(self._keys.operation(operation_id)) if operation_id else None
        return parse(OperationRecord, kv.value) if kv else None

    async def save_operation(self, record: OperationRecord) -> None:
        """Write an operation; this node alone reports on its own."""
        await self._writer.write(
            [], [Put(self._keys.operation(record.operation_id), render(record))]
        )


def _collision(vm_name: str) -> Problem:
    return Problem(
        Reason.BUSY,
        f"somebody else changed the replication of {vm_name} at the same time",
        field="vm",
        value=vm_name,
        remedy="Ask again",
    )
