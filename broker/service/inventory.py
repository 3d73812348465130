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
    OwnerRecord,
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


@dataclass(frozen=True, slots=True)
class Owned:
    """An owner record with the revision its guards name."""

    record: OwnerRecord
    mod_revision: int


class Inventory:
    """Typed, indexed view over the cache of one cluster's records."""

    def __init__(self, cache: RecordCache, keys: Keys) -> None:
        self.cache = cache
        self.keys = keys
        self._replicas: dict[str, ReplicaRecord] = {}
        self._owners: dict[str, Owned] = {}
        self._by_owner: dict[tuple[str, str], set[str]] = {}
        self._released: set[str] = set()
        self._ownerless: set[str] = set()
        self._by_name: dict[str, tuple[str, ...]] = {}
        self._by_uuid: dict[str, tuple[str, ...]] = {}
        self._domains: Counter[str] = Counter()
        self._committed: Counter[str] = Counter()
        self._replications: dict[str, ReplicationRecord] = {}
        self._nodes: dict[tuple[str, str], tuple[NodeRecord, int]] = {}
        self._configs: dict[str, NodeConfigRecord] = {}
        self._brokers: dict[str, tuple[BrokerRecord, Candidate]] = {}
        self._authorizations: dict[str, AuthorizationRecord] = {}
        self._settings_record = SettingsRecord()
        self._settings = Settings()
        self._routes: tuple[tuple[str, Callable[[str, str, KeyValue | None], None]], ...] = (
            (keys.owners, self._owner_changed),
            (keys.replicas, self._replica_changed),
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

    def replica(self, replica_id: str) -> ReplicaRecord | None:
        """One replica's record."""
        return self._replicas.get(replica_id)

    def owner(self, replica_id: str) -> Owned | None:
        """Who owns it, as last heard."""
        return self._owners.get(replica_id)

    def replicas(self) -> Iterator[ReplicaRecord]:
        """All replicas, by rising id."""
        return (self._replicas[i] for i in sorted(self._replicas))

    @property
    def replica_count(self) -> int:
        """How many replicas the cluster keeps."""
        return len(self._replicas)

    def matching(self, vm: str) -> list[ReplicaRecord]:
        """Every replica that a name, vm_uuid or replica_id fits."""
        ids = {vm, *self._by_uuid.get(vm, ()), *self._by_name.get(vm, ())}
        return [record for i in ids if (record := self._replicas.get(i)) is not None]

    def find(self, vm: str) -> ReplicaRecord | None:
        """By name, vm_uuid or replica_id. :raises Problem: AMBIGUOUS_NAME"""
        return pick_replica(vm, self.matching(vm))

    def replica_of(self, trust_group: str, vm_uuid: str) -> ReplicaRecord | None:
        """The one replica of a VM in a trust group."""
        for replica_id in self._by_uuid.get(vm_uuid, ()):
            record = self._replicas[replica_id]
            if record.trust_group == trust_group:
                return record
        return None

    def domain_name_taken(self, name: str) -> bool:
        """Whether some VM of the cluster is known by this domain name."""
        return self._domains[name] > 0

    def folder_taken(self, folder_path: str) -> bool:
        """Whether a replica lives in this directory."""
        return any(r.folder_path == folder_path for r in self._replicas.values())

    def committed_bytes(self, storage_location: str) -> int:
        """Disk sizes of all replicas in a storage location."""
        return self._committed[storage_location]

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
        owning = {name for (name, _), ids in self._by_owner.items() if ids}
        return tuple(sorted({*self._configs, *(n for n, _ in self._nodes), *owning}))

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
            replicas=self.owned_count(name),
        )

    def owned_count(self, name: str) -> int:
        """Replicas named to any incarnation of a node."""
        return sum(len(ids) for (n, _), ids in self._by_owner.items() if n == name)

    def locations_used_by(self, name: str) -> set[str]:
        """Storage locations of the replicas a node owns."""
        ids = (i for (n, _), owned in self._by_owner.items() if n == name for i in owned)
        return {r.storage_location for i in ids if (r := self._replicas.get(i)) is not None}

    def needy(self) -> list[OwnedReplica]:
        """Replicas that may need another owner: released, ownerless, owner gone or stalled."""
        ids = self._released | self._ownerless
        for key, owned in self._by_owner.items():
            node = self._nodes.get(key)
            if node is None or node[0].stalled:
                ids = ids | owned
        return [self._owned_replica(i) for i in ids if i in self._replicas]

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

    def _replica_changed(self, _: str, replica_id: str, kv: KeyValue | None) -> None:
        old = self._replicas.pop(replica_id, None)
        if old is not None:
            self._count(old, -1)
        record = self._parse(ReplicaRecord, kv)
        if record is not None and record.replica_id == replica_id:
            record = _interned(record)
            self._replicas[replica_id] = record
            self._count(record, 1)
        self._sort_in(replica_id)

    def _count(self, record: ReplicaRecord, change: int) -> None:
        size = sum(d.size_bytes for d in record.disks if not d.excluded)
        self._committed[record.storage_location] += size * change
        self._domains[record.domain_name] += change
        if not self._domains[record.domain_name]:
            del self._domains[record.domain_name]
        for index, name in ((self._by_name, record.vm_name), (self._by_uuid, record.vm_uuid)):
            others = tuple(i for i in index.pop(name, ()) if i != record.replica_id)
            ids = (*others, record.replica_id) if change > 0 else others
            if ids:
                index[name] = ids

    def _owner_changed(self, _: str, replica_id: str, kv: KeyValue | None) -> None:
        old = self._owners.pop(replica_id, None)
        if old is not None:
            self._by_owner[old.record.node, old.record.incarnation].discard(replica_id)
            if not self._by_owner[old.record.node, old.record.incarnation]:
                del self._by_owner[old.record.node, old.record.incarnation]
        record = self._parse(OwnerRecord, kv)
        if record is not None and kv is not None:
            node, incarnation = intern(record.node), intern(record.incarnation)
            slim = OwnerRecord(
                node=node,
                incarnation=incarnation,
                epoch=record.epoch,
                released=record.released,
            )
            self._owners[replica_id] = Owned(slim, kv.mod_revision)
            self._by_owner.setdefault((node, incarnation), set()).add(replica_id)
        self._sort_in(replica_id)

    def _sort_in(self, replica_id: str) -> None:
        owned = self._owners.get(replica_id)
        for group, belongs in (
            (self._released, owned is not None and owned.record.released),
            (self._ownerless, owned is None and replica_id in self._replicas),
        ):
            if belongs:
                group.add(replica_id)
            else:
                group.discard(replica_id)

    def _replication_changed(self, _: str, replica_id: str, kv: KeyValue | None) -> None:
        old = self._replications.pop(replica_id, None)
        record = self._parse(ReplicationRecord, kv)
        for entry, change in ((old, -1), (record, 1)):
            if entry is not None:
                self._domains[entry.vm_name] += change
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

    def _owned_replica(self, replica_id: str) -> OwnedReplica:
        owned = self._owners.get(replica_id)
        return OwnedReplica(
            replica_id=replica_id,
            storage_location=self._replicas[replica_id].storage_location,
            owner=owned.record if owned else None,
            owner_mod_revision=owned.mod_revision if owned else 0,
        )

    def _load(self, record: NodeRecord) -> NodeLoad:
        return NodeLoad(
            name=record.name,
            incarnation=record.incarnation,
            version=record.version,
            storage=record.storage,
            stalled=record.stalled,
            drain=self.node_config(record.name).drain,
            replicas=len(self._by_owner.get((record.name, record.incarnation), ())),
            running_vms=record.running_vms,
            memory_free_bytes=record.memory_free_bytes,
        )


def pick_replica(vm: str, records: Iterable[ReplicaRecord]) -> ReplicaRecord | None:
    """The one meant by ``vm``. :raises Problem: AMBIGUOUS_NAME"""
    by_id = {r.replica_id: r for r in records}
    found = pick(vm, [Named(r.replica_id, r.vm_uuid, r.vm_name) for r in by_id.values()])
    return by_id[found.replica_id] if found else None


def _interned(record: ReplicaRecord) -> ReplicaRecord:
    """The same record, sharing the texts that many replicas have in common."""
    for name in ("trust_group", "storage_location", "primary_access_point", "placement_node"):
        object.__setattr__(record, name, intern(getattr(record, name)))
    return record
