"""What the broker knows of its cluster: typed views over the watch cache, kept as keys change.

Nothing here asks the store. Everything may be a moment old; the guards of each transaction make
that harmless.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from sys import intern
from typing import Protocol, TypeVar

from broker.service.replica_index import Owned, ReplicaIndex, pick_outline
from vmreplica.core.keys import Keys
from vmreplica.core.leadership import Candidate
from vmreplica.core.names import Named, pick
from vmreplica.core.placement import NodeLoad
from vmreplica.core.records import (
    AuthorizationRecord,
    BrokerRecord,
    DrainState,
    NodeConfigRecord,
    NodeRecord,
    ReplicaRecord,
    ReplicationRecord,
    parse,
)
from vmreplica.core.relocation import LiveNode, OwnedReplica
from vmreplica.core.settings import Settings, SettingsRecord, settings_of
from vmreplica.ports.cluster_store import KeyValue

log = logging.getLogger(__name__)
T = TypeVar("T")


class RecordCache(Protocol):
    """What the broker needs of coordination.StoreCache."""

    @property
    def revision(self) -> int:
        """The store revision up to which the cache is complete."""
        ...

    async def ready(self) -> None:
        """Wait for the first listing."""
        ...

    async def verify(self) -> None:
        """Read what the watch may have missed. :raises StoreUnavailable:"""
        ...

    def get(self, key: str) -> KeyValue | None:
        """One key as last heard."""
        ...

    def items(self, prefix: str) -> list[KeyValue]:
        """Keys under a prefix, in key order."""
        ...

    def heard_age_ms(self) -> int:
        """How long ago the store was last heard."""
        ...

    def subscribe(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Be called with each changed key; returns the way to stop it."""
        ...

    def note(self, kv: KeyValue) -> None:
        """Read your own write before the watch brings it."""
        ...

    def forget(self, key: str, revision: int) -> None:
        """Read your own deletion."""
        ...


class NodeState(StrEnum):
    """As shown by `node list`."""

    READY = "Ready"
    DRAINING = "Draining"
    DRAINED = "Drained"
    STALLED = "Stalled"
    LOST = "Lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """A node the cluster knows of. ``record`` None: no process of it lives (Lost)."""

    name: str
    state: NodeState
    config: NodeConfigRecord
    record: NodeRecord | None = None
    mod_revision: int = 0
    replicas: int = 0


class Inventory:
    """Typed, indexed view over the cache of one cluster's records."""

    def __init__(self, cache: RecordCache, keys: Keys) -> None:
        self.cache = cache
        self.keys = keys
        self._index = ReplicaIndex(keys)
        self._primaries: Counter[str] = Counter()
        self._replications: dict[str, ReplicationRecord] = {}
        self._nodes: dict[tuple[str, str], tuple[NodeRecord, int]] = {}
        self._configs: dict[str, NodeConfigRecord] = {}
        self._brokers: dict[str, tuple[BrokerRecord, Candidate]] = {}
        self._authorizations: dict[str, AuthorizationRecord] = {}
        self._settings_record = SettingsRecord()
        self._settings = Settings()
        self._routes: tuple[tuple[str, Callable[[str, str, KeyValue | None], None]], ...] = (
            (keys.owners, lambda _, name, kv: self._index.owner_changed(name, kv)),
            (keys.replicas, lambda _, name, kv: self._index.replica_changed(name, kv)),
            (keys.replications, self._replication_changed),
            (keys.nodes, self._node_changed),
            (keys.node_configs, self._config_changed),
            (keys.elections, self._broker_changed),
            (keys.authorizations, self._authorization_changed),
        )
        self._stop = cache.subscribe(self._changed)
        for kv in cache.items(keys.root):
            self._changed(kv.key)

    async def ready(self) -> None:
        """Wait until the cluster's records were listed once."""
        await self.cache.ready()

    def close(self) -> None:
        """Stop following the cache. Idempotent."""
        self._stop()

    # ---- settings and authorization ----

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._settings

    @property
    def settings_record(self) -> SettingsRecord:
        """What was set, with its version."""
        return self._settings_record

    @property
    def authorizations(self) -> Iterable[AuthorizationRecord]:
        """All authorization entries."""
        return self._authorizations.values()

    # ---- replicas ----

    @property
    def index(self) -> ReplicaIndex:
        """Outlines, owners and names of all replicas."""
        return self._index

    def replica(self, replica_id: str) -> ReplicaRecord | None:
        """One replica's whole record."""
        return self._index.record(self.cache.get(self.keys.replica(replica_id)))

    def owner(self, replica_id: str) -> Owned | None:
        """Who owns it, as last heard."""
        return self._index.owner(replica_id)

    def find(self, vm: str) -> ReplicaRecord | None:
        """By name, vm_uuid or replica_id. :raises Problem: AMBIGUOUS_NAME"""
        found = pick_outline(vm, self._index.matching(vm))
        return self.replica(found.replica_id) if found else None

    def replica_of(self, trust_group: str, vm_uuid: str) -> ReplicaRecord | None:
        """The one replica of a VM in a trust group."""
        replica_id = self._index.of_vm(trust_group, vm_uuid)
        return self.replica(replica_id) if replica_id else None

    def domain_name_taken(self, name: str) -> bool:
        """Whether some VM of the cluster is known by this domain name."""
        return self._index.domain_name_taken(name) or self._primaries[name] > 0

    def needy(self) -> list[OwnedReplica]:
        """Replicas that may need another owner: released, ownerless, owner gone or stalled."""
        return self._index.needy(
            key for key, (record, _) in self._nodes.items() if not record.stalled
        )

    # ---- the primary side ----

    def replications(self) -> Iterator[ReplicationRecord]:
        """VMs that this cluster protects, by rising replica id."""
        return (self._replications[i] for i in sorted(self._replications))

    def find_replication(self, vm: str) -> ReplicationRecord | None:
        """By name, vm_uuid or replica_id. :raises Problem: AMBIGUOUS_NAME"""
        named = [
            Named(r.replica_id, r.vm_uuid, r.vm_name)
            for r in self._replications.values()
            if vm in (r.replica_id, r.vm_uuid, r.vm_name)
        ]
        found = pick(vm, named)
        return self._replications[found.replica_id] if found else None

    # ---- nodes ----

    def live_nodes(self) -> tuple[LiveNode, ...]:
        """Node processes whose lease is there, as placement and relocation see them."""
        return tuple(
            LiveNode(load=self._load(record), mod_revision=revision)
            for _, (record, revision) in sorted(self._nodes.items())
        )

    def node_record(self, name: str) -> NodeRecord | None:
        """The living process of a node; where two are left, the one that joined last."""
        found = [(rev, record) for (n, _), (record, rev) in self._nodes.items() if n == name]
        return max(found, key=lambda pair: pair[0])[1] if found else None

    def incarnation(self, name: str, incarnation: str) -> NodeRecord | None:
        """The record of one incarnation while its lease is there."""
        entry = self._nodes.get((name, incarnation))
        return entry[0] if entry else None

    def node_names(self) -> tuple[str, ...]:
        """Every node ever registered, and every one that lives or is named as an owner."""
        living = {name for name, _ in self._nodes}
        return tuple(sorted({*self._configs, *living, *self._index.owning_nodes()}))

    def node_config(self, name: str) -> NodeConfigRecord:
        """What people decided about it."""
        return self._configs.get(name) or NodeConfigRecord(name=name)

    def is_registered(self, name: str) -> bool:
        """Whether its node-config key exists."""
        return name in self._configs

    def nodes(self) -> tuple[NodeView, ...]:
        """All nodes for people."""
        return tuple(self.node_view(name) for name in self.node_names())

    def node_view(self, name: str) -> NodeView:
        """One node for people."""
        config = self.node_config(name)
        record = self.node_record(name)
        if record is None:
            state = NodeState.DRAINED if config.drain is DrainState.DRAINED else NodeState.LOST
        elif config.drain is not DrainState.READY:
            state = NodeState(config.drain.value)
        else:
            state = NodeState.STALLED if record.stalled else NodeState.READY
        return NodeView(
            name=name,
            state=state,
            config=config,
            record=record,
            mod_revision=self._nodes[name, record.incarnation][1] if record else 0,
            replicas=self._index.count_of(name),
        )

    # ---- brokers ----

    def brokers(self) -> tuple[tuple[BrokerRecord, Candidate], ...]:
        """Candidates, the leader first."""
        return tuple(sorted(self._brokers.values(), key=lambda pair: pair[1].create_revision))

    # ---- following the cache ----

    def _changed(self, key: str) -> None:
        kv = self.cache.get(key)
        if key == self.keys.settings:
            record = self._parse(SettingsRecord, kv)
            self._settings_record = record or SettingsRecord()
            self._settings = settings_of(record)
            return
        for prefix, handle in self._routes:
            if key.startswith(prefix):
                handle(key, intern(key[len(prefix) :]), kv)
                return

    def _parse(self, kind: type[T], kv: KeyValue | None) -> T | None:
        if kv is None:
            return None
        try:
            return parse(kind, kv.value)
        except ValueError as error:
            log.error("key %s holds no %s and is ignored: %s", kv.key, kind.__name__, error)
            return None

    def _replication_changed(self, _: str, replica_id: str, kv: KeyValue | None) -> None:
        old = self._replications.pop(replica_id, None)
        record = self._parse(ReplicationRecord, kv)
        for entry, change in ((old, -1), (record, 1)):
            if entry is not None:
                self._primaries[entry.vm_name] += change
        if record is not None:
            self._replications[replica_id] = record

    def _node_changed(self, _: str, rest: str, kv: KeyValue | None) -> None:
        name, _, incarnation = rest.partition("/")
        self._nodes.pop((name, incarnation), None)
        record = self._parse(NodeRecord, kv)
        if record is not None and kv is not None:
            self._nodes[intern(name), intern(incarnation)] = (record, kv.mod_revision)

    def _config_changed(self, _: str, name: str, kv: KeyValue | None) -> None:
        self._configs.pop(name, None)
        record = self._parse(NodeConfigRecord, kv)
        if record is not None:
            self._configs[name] = record

    def _broker_changed(self, key: str, _: str, kv: KeyValue | None) -> None:
        self._brokers.pop(key, None)
        record = self._parse(BrokerRecord, kv)
        if record is not None and kv is not None:
            self._brokers[key] = (record, Candidate(key, kv.create_revision, kv.lease_id))

    def _authorization_changed(self, _: str, primary: str, kv: KeyValue | None) -> None:
        self._authorizations.pop(primary, None)
        record = self._parse(AuthorizationRecord, kv)
        if record is not None:
            self._authorizations[primary] = record

    def _load(self, record: NodeRecord) -> NodeLoad:
        return NodeLoad(
            name=record.name,
            incarnation=record.incarnation,
            version=record.version,
            storage=record.storage,
            stalled=record.stalled,
            drain=self.node_config(record.name).drain,
            replicas=self._index.count_of(record.name, record.incarnation),
            running_vms=record.running_vms,
            memory_free_bytes=record.memory_free_bytes,
        )
