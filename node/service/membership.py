"""This process's place in the cluster: its lease, its incarnation, its node record.

Each life of the lease is a new incarnation. The record under ``nodes/N/INCARNATION`` vanishes
with the lease, so nobody has to remove it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from node.service.replica_wait import cancelled, within
from vmreplica.coordination.lease_keeper import LeaseKeeper
from vmreplica.core.keys import Keys
from vmreplica.core.records import NodeRecord, StorageRecord, render
from vmreplica.ports.clock import Clock
from vmreplica.ports.cluster_store import (
    ClusterStore,
    OutcomeUnknown,
    Put,
    StoreRefused,
    StoreUnavailable,
)
from vmreplica.ports.randomness import Randomness

_log = logging.getLogger(__name__)
UPDATE_MS = 10_000
RETRY_MS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """What changes about a node while it runs."""

    storage: tuple[StorageRecord, ...] = ()
    stalled: bool = False
    running_vms: int = 0
    memory_free_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeIdentity:
    """What does not: name, where clients reach it, and by which certificate name."""

    name: str
    address: str
    server_name: str
    version: str


class Membership:
    """Keeps the lease and the record; implements replica_parts.Standing.

    :param facts: measures the node; asked every 10 s and when ``facts_changed`` is called.
    """

    def __init__(
        self,
        store: ClusterStore,
        clock: Clock,
        randomness: Randomness,
        keys: Keys,
        lease: LeaseKeeper,
        identity: NodeIdentity,
        facts: Callable[[], Awaitable[NodeFacts]],
    ) -> None:
        self._store = store
        self._clock = clock
        self._randomness = randomness
        self._keys = keys
        self._lease = lease
        self._identity = identity
        self._facts = facts
        self._incarnation = ""
        self._update = asyncio.Event()
        self._stopping = False
        self._put: NodeRecord | None = None
        self.joined = asyncio.Event()
        """Set while the node record is in the store."""
        self.on_change: list[Callable[[], None]] = []
        """Called when the incarnation changes."""

    @property
    def incarnation(self) -> str:
        """16 hex digits; "" while the node has no lease."""
        return self._incarnation

    @property
    def lease_id(self) -> int:
        """The lease that carries the node record, 0 without one."""
        return self._lease.lease_id if self._incarnation else 0

    def may_act(self) -> bool:
        """Whether the deadline lies ahead."""
        return bool(self._incarnation) and self._lease.may_act()

    def facts_changed(self) -> None:
        """Measure and write the record soon."""
        self._update.set()

    async def run(self) -> None:
        """Join, stay, and join anew as another incarnation whenever the lease is gone."""
        while not self._stopping:
            try:
                await self._lease.acquire()
            except StoreUnavailable as failed:
                _log.warning("no lease: %s", failed)
                await self._clock.sleep(RETRY_MS)
                continue
            await self._live()

    async def _live(self) -> None:
        incarnation = self._randomness.token(8).hex()
        updating = asyncio.ensure_future(self._keep_record(incarnation))
        keeping = asyncio.ensure_future(self._lease.run())
        try:
            await asyncio.wait({updating, keeping}, return_when=asyncio.FIRST_COMPLETED)
            if updating.done():
                updating.result()  # a bug: a record that is never renewed must not pass unseen
            await keeping
        finally:
            await cancelled(updating, keeping)
            self._set(incarnation="")
        if not self._stopping:
            _log.warning("the lease is gone; incarnation %s ends", incarnation)

    async def _keep_record(self, incarnation: str) -> None:
        self._put = None
        while True:
            self._update.clear()
            if await self._write(incarnation) and not self._incarnation:
                self._set(incarnation)
                _log.info("joined as incarnation %s", incarnation)
            pause_ms = UPDATE_MS if self._incarnation else RETRY_MS
            await within(self._clock, pause_ms, self._update)

    async def _write(self, incarnation: str) -> bool:
        """Put the record when it changed; whether it is in the store as far as is known."""
        facts = await self._facts()
        record = NodeRecord(
            name=self._identity.name,
            incarnation=incarnation,
            address=self._identity.address,
            server_name=self._identity.server_name,
            version=self._identity.version,
            storage=facts.storage,
            stalled=facts.stalled,
            running_vms=facts.running_vms,
            memory_free_bytes=facts.memory_free_bytes,
        )
        if record == self._put:
            return True
        key = self._keys.node(self._identity.name, incarnation)
        put = replace(record, op_id=self._randomness.uuid())
        try:
            await self._store.transaction([], [Put(key, render(put), self._lease.lease_id)])
        except (StoreUnavailable, OutcomeUnknown, StoreRefused) as failed:
            # Putting the same record again is harmless, whatever became of this one.
            _log.info("node record not written: %s", failed)
            self._update.set()
            await self._clock.sleep(RETRY_MS)
            return False
        self._put = record
        return True

    def _set(self, incarnation: str) -> None:
        self._incarnation = incarnation
        if incarnation:
            self.joined.set()
        else:
            self.joined.clear()
        for callback in self.on_change:
            callback()

    async def stop(self) -> None:
        """Clean stop: revoke the lease. Replicas are released before (Keeper.release)."""
        self._stopping = True
        try:
            await self._lease.release()
        except (StoreUnavailable, OutcomeUnknown) as failed:
            _log.warning("lease not revoked, it runs out by itself: %s", failed)
