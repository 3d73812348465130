"""What the tasks of the replica role share: ports, records and limits, gathered once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from node.service.replica_cycle import SEGMENT_BYTES
from vmreplica.core.keys import Keys
from vmreplica.core.manifest import Manifest
from vmreplica.core.records import ReplicaRecord
from vmreplica.ports.clock import Clock
from vmreplica.ports.cluster_store import (
    ClusterStore,
    Compare,
    KeyValue,
    Operation,
    TransactionResult,
)
from vmreplica.ports.event_log import EventLog
from vmreplica.ports.randomness import Randomness
from vmreplica.ports.replica_store import ReplicaFolder, ReplicaStore


class RecordCache(Protocol):
    """The watched copy of the cluster store (coordination.store_cache.StoreCache)."""

    async def ready(self) -> None: ...

    def get(self, key: str) -> KeyValue | None: ...

    def items(self, prefix: str) -> list[KeyValue]: ...

    def subscribe(self, callback: Callable[[str], None]) -> Callable[[], None]: ...

    def note(self, kv: KeyValue) -> None: ...

    def forget(self, key: str, revision: int) -> None: ...


class RecordWriter(Protocol):
    """Guarded transactions whose outcome is known (coordination.guarded.GuardedWriter)."""

    async def write(
        self, compares: Sequence[Compare], operations: Sequence[Operation], *, op_id: str = ""
    ) -> TransactionResult: ...


class Standing(Protocol):
    """This process's place in the cluster (service.membership.Membership)."""

    @property
    def incarnation(self) -> str:
        """ "" while the node has no lease."""
        ...

    def may_act(self) -> bool:
        """Whether the deadline lies ahead: asked before every acknowledgement, commit, start."""
        ...


class ReplicaDomains(Protocol):
    """Replica VMs at the hypervisor (service.replica_vm.ReplicaVms)."""

    def wanted(self, record: ReplicaRecord, manifest: Manifest, folder: ReplicaFolder) -> None:
        """The replica is ours: have its domain defined from this definition."""
        ...

    def unwanted(self, replica_id: str) -> None:
        """The replica is not ours any more: have its domain undefined."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperLimits:
    """Sizes and times of the replica role."""

    segment_bytes: int = SEGMENT_BYTES
    takeovers_at_once: int = 32
    retry_low_ms: int = 500
    retry_high_ms: int = 30_000
    finish_cycle_ms: int = 60_000
    tidy_after_ms: int = 3_000
    chain_files: int = 17


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaParts:
    """Everything a replica's task is built from."""

    node: str
    keys: Keys
    store: ClusterStore
    cache: RecordCache
    writer: RecordWriter
    clock: Clock
    randomness: Randomness
    replica_store: ReplicaStore
    standing: Standing
    domains: ReplicaDomains
    events: EventLog
    limits: KeeperLimits = KeeperLimits()
