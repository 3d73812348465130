"""Replica VMs at the hypervisor follow ownership: defined where owned, undefined elsewhere.

Beside the replica's own task: libvirt may be slow or away, and a cycle never waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from node.service.replica_parts import RecordCache
from node.service.replica_wait import within
from vmreplica.core.keys import Keys
from vmreplica.core.manifest import Manifest
from vmreplica.core.problems import Problem
from vmreplica.core.records import ReplicaRecord
from vmreplica.ports.clock import Clock
from vmreplica.ports.cluster_store import ClusterStore, StoreUnavailable
from vmreplica.ports.event_log import EventLog, Severity
from vmreplica.ports.replica_store import ReplicaFolder, StorageFailed
from vmreplica.ports.vm_host import VmHost

_RETRY_MS = 5_000
_DRIFT_MS = 60_000
_FIRST_LOOK_MS = 5_000
"""After a start: a host that comes back still has the domains of replicas it has lost."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Wish:
    record: ReplicaRecord
    manifest: Manifest
    folder: ReplicaFolder


class ReplicaVms:
    """Implements replica_parts.ReplicaDomains."""

    def __init__(
        self,
        host: VmHost,
        store: ClusterStore,
        cache: RecordCache,
        keys: Keys,
        clock: Clock,
        events: EventLog,
    ) -> None:
        self._host = host
        self._store = store
        self._cache = cache
        self._keys = keys
        self._clock = clock
        self._events = events
        self._wishes: dict[str, _Wish | None] = {}
        self._defined: dict[str, _Wish] = {}
        self._changed = asyncio.Event()

    def wanted(self, record: ReplicaRecord, manifest: Manifest, folder: ReplicaFolder) -> None:
        """Have the domain defined from the head's definition."""
        self._wishes[record.replica_id] = _Wish(record, manifest, folder)
        self._changed.set()

    def unwanted(self, replica_id: str) -> None:
        """Have the domain undefined."""
        self._defined.pop(replica_id, None)
        self._wishes[replica_id] = None
        self._changed.set()

    async def run(self) -> None:
        """Carry wishes out, look for drift, and remove domains of replicas that are not ours."""
        await self._cache.ready()
        look_at_ms = self._clock.boottime_ms() + _FIRST_LOOK_MS
        while True:
            self._changed.clear()
            failed = await self._carry_out()
            left_ms = max(0, look_at_ms - self._clock.boottime_ms())
            if left_ms == 0:
                look_at_ms = self._clock.boottime_ms() + _DRIFT_MS
                await self._look_for_drift()
            else:
                await within(
                    self._clock, min(left_ms, _RETRY_MS) if failed else left_ms, self._changed
                )

    async def _carry_out(self) -> bool:
        failed = False
        for replica_id in sorted(self._wishes):
            wish = self._wishes.pop(replica_id)
            try:
                if wish is None:
                    await self._host.undefine_replica(replica_id)
                else:
                    await self._define(wish)
            except (Problem, StorageFailed, StoreUnavailable) as problem:
                failed = True
                self._wishes.setdefault(replica_id, wish)
                _log.warning("replica %s: its VM is not as it should be: %s", replica_id, problem)
        return failed

    async def _define(self, wish: _Wish) -> None:
        xml = await self._definition(wish)
        if not xml:
            return
        record = wish.record
        await self._host.define_replica(
            xml,
            domain_name=record.domain_name,
            vm_uuid=record.vm_uuid,
            replica_id=record.replica_id,
            disks=[disk.target for disk in wish.manifest.disks if not disk.excluded],
            folder=record.folder_path,
        )
        self._defined[record.replica_id] = wish

    async def _definition(self, wish: _Wish) -> str:
        """The head's definition; before the first cycle the one given at creation."""
        stored = wish.manifest.head.definition.xml
        if stored is not None:
            return (await wish.folder.read_small(stored)).decode()
        kv = await self._store.get(self._keys.definition(wish.record.replica_id))
        return "" if kv is None else kv.value

    async def _look_for_drift(self) -> None:
        """Somebody undefined a replica VM, or one is here that should not be: put it right."""
        try:
            present = set(await self._host.list_replica_ids())
        except Problem as problem:
            _log.info("domains not listed: %s", problem)
            return
        for replica_id in sorted(set(self._defined) - present):
            wish = self._defined[replica_id]
            self._events.write(
                "replication.state_changed",
                f"the replica VM {wish.record.domain_name} was undefined by somebody; "
                "it is defined again",
                severity=Severity.WARNING,
                replica_id=replica_id,
                vm_name=wish.record.vm_name,
            )
            self._wishes.setdefault(replica_id, wish)
        for replica_id in sorted(present - set(self._defined) - set(self._wishes)):
            self._wishes[replica_id] = None
        if self._wishes:
            self._changed.set()
