"""A long lease shared by many small keys that must be kept at least for a while."""

from __future__ import annotations

import asyncio

from vmreplica.ports.clock import Clock
from vmreplica.ports.cluster_store import ClusterStore


class SharedLease:
    """Hands out a lease that lives at least ``keep_ms`` from now.

    Nothing refreshes it: every ``keep_ms / 6`` a new one is granted, so that a lease is not
    needed for each key, and a key lives at most 7/6 of ``keep_ms`` (plus the store's lateness).
    """

    def __init__(self, store: ClusterStore, clock: Clock, *, keep_ms: int) -> None:
        self._store = store
        self._clock = clock
        self._keep_ms = keep_ms
        self._rotate_ms = keep_ms // 6
        self._lease_id = 0
        self._fresh_until_ms = 0
        self._lock = asyncio.Lock()

    async def lease_id(self) -> int:
        """The lease to attach a key to now. :raises StoreUnavailable:"""
        async with self._lock:
            if not self._lease_id or self._clock.boottime_ms() >= self._fresh_until_ms:
                asked_ms = self._clock.boottime_ms()
                lease = await self._store.grant(self._keep_ms + self._rotate_ms)
                self._lease_id = lease.lease_id
                self._fresh_until_ms = asked_ms + self._rotate_ms
            return self._lease_id

    def forget(self, lease_id: int) -> None:
        """The store does not know this lease (any more): grant another next time."""
        if self._lease_id == lease_id:
            self._lease_id = 0
