"""Replicas and their owners, indexed: little memory a replica, whole records only on demand.

The cache holds each record as text. Kept beside it is an outline, what lists, names, placement and
authorization need; the few whole records asked for lately are kept parsed.
"""

from __future__ import annotations

import json
import logging
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from sys import intern
from typing import Any

from vmreplica.core.keys import Keys
from vmreplica.core.names import Named, pick
from vmreplica.core.records import OwnerRecord, ReplicaRecord, parse
from vmreplica.core.relocation import OwnedReplica
from vmreplica.ports.cluster_store import KeyValue

log = logging.getLogger(__name__)
PARSED_KEPT = 4_096


@dataclass(frozen=True, slots=True)
class Outline:
    """What is always at hand of a replica. ``size_bytes`` = its disks, excluded ones not."""

    replica_id: str
    vm_uuid: str
    vm_name: str
    domain_name: str
    trust_group: str
    storage_location: str
    size_bytes: int
    custom_folder: str
    tested: bool


@dataclass(frozen=True, slots=True)
class Owned:
    """An owner record (without its op id) with the revision its guards name."""

    record: OwnerRecord
    mod_revision: int


class ReplicaIndex:
    """Fed key by key; see Inventory."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._outlines: dict[str, Outline] = {}
        self._parsed: OrderedDict[str, tuple[int, ReplicaRecord]] = OrderedDict()
        self._owners: dict[str, Owned] = {}
        self._by_owner: dict[tuple[str, str], set[str]] = {}
        self._released: set[str] = set()
        self._ownerless: set[str] = set()
        self._tested: set[str] = set()
        self._by_name: dict[str, str | tuple[str, ...]] = {}
        self._by_uuid: dict[str, str | tuple[str, ...]] = {}
        self._domains: Counter[str] = Counter()
        self._folders: Counter[str] = Counter()
        self._committed: Counter[str] = Counter()

    # ---- asking ----

    def __len__(self) -> int:
        return len(self._outlines)

    def outline(self, replica_id: str) -> Outline | None:
        """One replica's outline."""
        return self._outlines.get(replica_id)

    def outlines(self) -> Iterator[Outline]:
        """All, by rising id."""
        return (self._outlines[i] for i in sorted(self._outlines))

    def tested(self) -> Iterator[Outline]:
        """Those that have or had a test failover, by rising id."""
        return (self._outlines[i] for i in sorted(self._tested))

    def record(self, kv: KeyValue | None) -> ReplicaRecord | None:
        """The whole record that a key holds; None where it is unreadable."""
        if kv is None:
            return None
        known = self._parsed.get(kv.key)
        if known is not None and known[0] == kv.mod_revision:
            self._parsed.move_to_end(kv.key)
            return known[1]
        try:
            record = parse(ReplicaRecord, kv.value)
        except ValueError as error:
            log.error("key %s is ignored: %s", kv.key, error)
            return None
        self._parsed[kv.key] = (kv.mod_revision, record)
        if len(self._parsed) > PARSED_KEPT:
            self._parsed.popitem(last=False)
        return record

    def matching(self, vm: str) -> list[Outline]:
        """Every replica that a name, vm_uuid or replica_id fits."""
        ids = dict.fromkeys((vm, *_ids(self._by_uuid, vm), *_ids(self._by_name, vm)))
        return [outline for i in ids if (outline := self._outlines.get(i)) is not None]

    def of_vm(self, trust_group: str, vm_uuid: str) -> str:
        """The id of the one replica of a VM in a trust group; "" = none."""
        for replica_id in _ids(self._by_uuid, vm_uuid):
            if self._outlines[replica_id].trust_group == trust_group:
                return replica_id
        return ""

    def domain_name_taken(self, name: str) -> bool:
        """Whether a replica is defined under this domain name."""
        return self._domains[name] > 0

    def folder_taken(self, custom: str, storage_location: str) -> bool:
        """Whether a replica lives in a folder of this name there."""
        return self._folders[f"{storage_location}/{custom}"] > 0

    def committed_bytes(self, storage_location: str) -> int:
        """Disk sizes of all replicas in a storage location."""
        return self._committed[storage_location]

    def owner(self, replica_id: str) -> Owned | None:
        """Who owns it, as last heard."""
        return self._owners.get(replica_id)

    def owning_nodes(self) -> set[str]:
        """Names of nodes that replicas are named to."""
        return {name for name, _ in self._by_owner}

    def count_of(self, name: str, incarnation: str = "") -> int:
        """Replicas named to a node, or to one incarnation of it."""
        if incarnation:
            return len(self._by_owner.get((name, incarnation), ()))
        return sum(len(ids) for (n, _), ids in self._by_owner.items() if n == name)

    def locations_of(self, name: str) -> set[str]:
        """Storage locations of the replicas a node owns."""
        ids = (i for (n, _), owned in self._by_owner.items() if n == name for i in owned)
        return {o.storage_location for i in ids if (o := self._outlines.get(i)) is not None}

    def needy(self, working: Iterable[tuple[str, str]]) -> list[OwnedReplica]:
        """Replicas that are released, have no owner, or one that is not among ``working``."""
        good = set(working)
        ids = self._released | self._ownerless
        for key, owned in self._by_owner.items():
            if key not in good:
                ids |= owned
        return [self._owned_replica(i) for i in ids if i in self._outlines]

    def _owned_replica(self, replica_id: str) -> OwnedReplica:
        owned = self._owners.get(replica_id)
        return OwnedReplica(
            replica_id=replica_id,
            storage_location=self._outlines[replica_id].storage_location,
            owner=owned.record if owned else None,
            owner_mod_revision=owned.mod_revision if owned else 0,
        )

    # ---- feeding ----

    def replica_changed(self, replica_id: str, kv: KeyValue | None) -> None:
        """A replica record was written or deleted."""
        old = self._outlines.pop(replica_id, None)
        if old is not None:
            self._count(old, -1)
        if kv is None:
            self._parsed.pop(self._keys.replica(replica_id), None)
        outline = _outline(replica_id, kv, old)
        if outline is not None:
            self._outlines[outline.replica_id] = outline
            self._count(outline, 1)
        self._sort_in(replica_id)

    def owner_changed(self, replica_id: str, kv: KeyValue | None) -> None:
        """An owner record was written or deleted."""
        old = self._owners.pop(replica_id, None)
        if old is not None:
            key = (old.record.node, old.record.incarnation)
            self._by_owner[key].discard(replica_id)
            if not self._by_owner[key]:
                del self._by_owner[key]
        owned = _owned(kv)
        if owned is not None:
            outline = self._outlines.get(replica_id)
            shared_id = outline.replica_id if outline else replica_id
            self._owners[shared_id] = owned
            key = (owned.record.node, owned.record.incarnation)
            self._by_owner.setdefault(key, set()).add(shared_id)
        self._sort_in(replica_id)

    def _count(self, outline: Outline, change: int) -> None:
        self._committed[outline.storage_location] += outline.size_bytes * change
        _tally(self._domains, outline.domain_name, change)
        if outline.custom_folder:
            _tally(self._folders, f"{outline.storage_location}/{outline.custom_folder}", change)
        for index, name in ((self._by_name, outline.vm_name), (self._by_uuid, outline.vm_uuid)):
            others = tuple(i for i in _ids(index, name) if i != outline.replica_id)
            ids = (*others, outline.replica_id) if change > 0 else others
            index.pop(name, None)
            if ids:
                # Nearly always one: then no tuple is kept for it.
                index[name] = ids[0] if len(ids) == 1 else ids
        _belongs(self._tested, outline.replica_id, outline.tested and change > 0)

    def _sort_in(self, replica_id: str) -> None:
        owned = self._owners.get(replica_id)
        _belongs(self._released, replica_id, owned is not None and owned.record.released)
        _belongs(self._ownerless, replica_id, owned is None and replica_id in self._outlines)


def pick_outline(vm: str, outlines: Iterable[Outline]) -> Outline | None:
    """The one meant by ``vm``. :raises Problem: AMBIGUOUS_NAME"""
    by_id = {o.replica_id: o for o in outlines}
    found = pick(vm, [Named(o.replica_id, o.vm_uuid, o.vm_name) for o in by_id.values()])
    return by_id[found.replica_id] if found else None


def _ids(index: dict[str, str | tuple[str, ...]], name: str) -> tuple[str, ...]:
    found = index.get(name, ())
    return (found,) if isinstance(found, str) else found


def _tally(counter: Counter[str], name: str, change: int) -> None:
    counter[name] += change
    if not counter[name]:
        del counter[name]


def _belongs(group: set[str], member: str, belongs: bool) -> None:
    if belongs:
        group.add(member)
    else:
        group.discard(member)


def _read(kv: KeyValue | None) -> dict[str, Any] | None:
    if kv is None:
        return None
    try:
        data = json.loads(kv.value)
    except ValueError as error:
        log.error("key %s is ignored: %s", kv.key, error)
        return None
    return data if isinstance(data, dict) else None


def _outline(replica_id: str, kv: KeyValue | None, old: Outline | None) -> Outline | None:
    data = _read(kv)
    if data is None:
        return None
    try:
        vm_name = str(data["vm_name"])
        domain = str(data["domain_name"])
        test = data.get("test_failover") or {}
        return Outline(
            replica_id=old.replica_id if old else replica_id,
            vm_uuid=str(data["vm_uuid"]),
            vm_name=vm_name,
            domain_name=vm_name if domain == vm_name else domain,
            trust_group=intern(str(data["trust_group"])),
            storage_location=intern(str(data["storage_location"])),
            size_bytes=sum(d["size_bytes"] for d in data["disks"] if not d.get("excluded")),
            custom_folder=str((data.get("policy") or {}).get("folder", "")),
            tested=bool(test.get("running") or test.get("last_time_ms")),
        )
    except (KeyError, TypeError, AttributeError) as error:
        log.error("the record of replica %s is ignored: %r", replica_id, error)
        return None


def _owned(kv: KeyValue | None) -> Owned | None:
    data = _read(kv)
    if data is None or kv is None:
        return None
    try:
        record = OwnerRecord(
            node=intern(str(data["node"])),
            incarnation=intern(str(data["incarnation"])),
            epoch=int(data["epoch"]),
            released=bool(data.get("released", False)),
        )
    except (KeyError, TypeError, ValueError) as error:
        log.error("key %s is ignored: %r", kv.key, error)
        return None
    return Owned(record, kv.mod_revision)
