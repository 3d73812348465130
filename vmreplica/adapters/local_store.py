"""The cluster store of a standalone node: implements ports.cluster_store.ClusterStore on SQLite.

One process holds the file. Its work is done in one thread, in order. A lease of at most a minute
is a sign of life of a process: when the file is opened, that process is dead, so such leases end
then. Longer ones (kept answers, finished operations) start over with their full TTL: late, never
early.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from vmreplica.adapters.local_database import HISTORY_KEPT, LocalDatabase
from vmreplica.ports.clock import Clock
from vmreplica.ports.cluster_store import (
    Compare,
    KeyValue,
    Lease,
    Operation,
    OutcomeUnknown,
    RangeResult,
    StoreError,
    StoreUnavailable,
    TransactionResult,
    WatchBatch,
)

log = logging.getLogger(__name__)
T = TypeVar("T")

SESSION_TTL_MS = 60_000
EXPIRE_EVERY_MS = 250


class LocalStore:
    """Use :meth:`open`; end with :meth:`close`."""

    def __init__(self, database: LocalDatabase, clock: Clock, thread: ThreadPoolExecutor) -> None:
        self._database = database
        self._clock = clock
        self._thread = thread
        self._loop = asyncio.get_running_loop()
        self._ttl_ms: dict[int, int] = {}
        self._deadline_ms: dict[int, int] = {}
        self._wakers: set[asyncio.Event] = set()
        self._expiry: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    async def open(
        cls, path: str | Path, clock: Clock, *, history_kept: int = HISTORY_KEPT
    ) -> LocalStore:
        """Open or make the file.

        :raises Problem: STORE_UNAVAILABLE naming the file and the remedy.
        """
        loop = asyncio.get_running_loop()
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="local-store")
        try:
            database = await loop.run_in_executor(
                thread, lambda: LocalDatabase(Path(path), history_kept=history_kept)
            )
        except BaseException:
            thread.shutdown(wait=False)
            raise
        store = cls(database, clock, thread)
        await store._take_over_leases()
        store._expiry = asyncio.create_task(store._expire_forever())
        return store

    async def _take_over_leases(self) -> None:
        leases = await self._run(self._database.leases)
        dead = [lease_id for lease_id, ttl_ms in leases if ttl_ms <= SESSION_TTL_MS]
        await self._run(lambda: self._database.end_leases(dead))
        for lease_id, ttl_ms in leases:
            if ttl_ms > SESSION_TTL_MS:
                self._refresh(lease_id, ttl_ms)

    # ---- ClusterStore ----

    async def get(self, key: str) -> KeyValue | None:
        """Read one key."""
        return await self._run(lambda: self._database.get(key))

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
        """Keys under a prefix."""
        return await self._run(
            lambda: self._database.range(
                prefix, limit, after_key, revision, min_mod_revision, count_only
            )
        )

    async def transaction(
        self,
        compares: Sequence[Compare],
        success: Sequence[Operation],
        failure: Sequence[Operation] = (),
    ) -> TransactionResult:
        """Guarded, atomic, on disk when it returns."""

        def write() -> TransactionResult:
            result = self._database.transaction(compares, success, failure)
            self._compact()
            return result

        return await self._run(write, wakes=True)

    def _compact(self) -> None:
        try:
            self._database.compact_if_long()
        except StoreError as error:
            # The write before it is done; the next one tries again.
            log.warning("history of the local store not shortened: %s", error)

    async def grant(self, ttl_ms: int) -> Lease:
        """A new lease, in whole seconds, rounded up."""
        granted_ms = max(1, -(-ttl_ms // 1000)) * 1000
        try:
            lease_id = await self._run(lambda: self._database.grant(granted_ms))
        except OutcomeUnknown as error:
            raise StoreUnavailable(str(error)) from error
        self._refresh(lease_id, granted_ms)
        return Lease(lease_id, granted_ms)

    async def keepalive(self, lease_id: int, timeout_ms: int) -> int:
        """Refresh once; nothing here takes as long as ``timeout_ms``."""
        del timeout_ms
        self._check_open()
        if self._is_overdue(lease_id):
            await self._end(lease_id)
        ttl_ms = self._ttl_ms.get(lease_id, 0)
        if ttl_ms:
            self._refresh(lease_id, ttl_ms)
        return ttl_ms

    async def revoke(self, lease_id: int) -> None:
        """End a lease; one already gone is no error."""
        self._check_open()
        await self._end(lease_id)

    async def watch(self, prefix: str, start_revision: int) -> AsyncIterator[WatchBatch]:
        """Changes from ``start_revision`` on (0: from now on)."""
        position = start_revision or self._database.revision + 1
        waker = asyncio.Event()
        self._wakers.add(waker)
        try:
            while True:
                waker.clear()
                from_revision = position
                batches = await self._run(lambda r=from_revision: self._database.changes(prefix, r))  # type: ignore[misc]
                for batch in batches:
                    position = batch.revision + 1
                    yield batch
                if not batches:
                    await waker.wait()
        finally:
            self._wakers.discard(waker)

    async def compact(self, revision: int) -> None:
        """Forget history below ``revision``. :raises Compacted: it is gone already."""
        await self._run(lambda: self._database.compact(revision), wakes=True)

    async def close(self) -> None:
        """Close the file. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._expiry is not None:
            self._expiry.cancel()
        await self._loop.run_in_executor(self._thread, self._database.close)
        self._thread.shutdown(wait=False)
        self._wake()

    # ---- leases ----

    def _refresh(self, lease_id: int, ttl_ms: int) -> None:
        self._ttl_ms[lease_id] = ttl_ms
        self._deadline_ms[lease_id] = self._clock.boottime_ms() + ttl_ms

    def _is_overdue(self, lease_id: int) -> bool:
        deadline_ms = self._deadline_ms.get(lease_id)
        return deadline_ms is not None and self._clock.boottime_ms() >= deadline_ms

    async def _end(self, lease_id: int) -> None:
        # Forgotten here only once the file says so: a failure is tried again at the next round.
        self._deadline_ms[lease_id] = 0
        await self._run(lambda: self._database.end_leases([lease_id]), wakes=True)
        self._ttl_ms.pop(lease_id, None)
        self._deadline_ms.pop(lease_id, None)

    async def _expire_forever(self) -> None:
        while True:
            await self._clock.sleep(EXPIRE_EVERY_MS)
            for lease_id in [one for one in self._deadline_ms if self._is_overdue(one)]:
                try:
                    await self._end(lease_id)
                except StoreError as error:
                    log.warning("lease %016x could not be ended: %s", lease_id, error)

    # ---- the thread ----

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")

    async def _run(self, work: Callable[[], T], *, wakes: bool = False) -> T:
        self._check_open()

        def in_thread() -> T:
            try:
                return work()
            finally:
                if wakes:
                    # Also when the caller has been cancelled meanwhile.
                    self._loop.call_soon_threadsafe(self._wake)

        return await self._loop.run_in_executor(self._thread, in_thread)

    def _wake(self) -> None:
        for waker in self._wakers:
            waker.set()
