"""A cluster store under test: the fake, SQLite or etcd behind one face."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from vmreplica.adapters.etcd_store import EtcdStore
from vmreplica.adapters.local_store import LocalStore
from vmreplica.adapters.system_clock import SystemClock
from vmreplica.adapters.system_randomness import SystemRandomness
from vmreplica.ports.clock import Clock
from vmreplica.ports.cluster_store import (
    ClusterStore,
    Compare,
    Delete,
    Put,
    WatchEvent,
)
from vmreplica.testing import etcd_model as model
from vmreplica.testing.fake_clock import FakeClock
from vmreplica.testing.fake_cluster_store import FakeClusterStore
from vmreplica.testing.fake_store_server import FakeStoreServer

_numbers = itertools.count(1)


class Room:
    """A store under test, a second client of the same one, and a prefix of one's own."""

    def __init__(
        self,
        store: ClusterStore,
        other: ClusterStore,
        compact: Callable[[int], Awaitable[None]],
        clock: Clock,
    ) -> None:
        self.clock = clock
        self.store = store
        self.other = other
        self.compact = compact
        self.prefix = f"/t{os.getpid()}-{next(_numbers)}/"
        self._leases: list[int] = []

    def key(self, name: str) -> str:
        return self.prefix + name

    async def put(self, name: str, value: str = "v", lease_id: int = 0) -> int:
        result = await self.store.transaction([], [Put(self.key(name), value, lease_id)])
        return result.revision

    async def delete(self, name: str) -> int:
        return (await self.store.transaction([], [Delete(self.key(name))])).revision

    async def grant(self, ttl_ms: int = 60_000) -> int:
        lease = await self.store.grant(ttl_ms)
        self._leases.append(lease.lease_id)
        return lease.lease_id

    async def revision(self) -> int:
        return (await self.store.range(self.prefix)).revision

    async def holds(self, *compares: Compare) -> bool:
        return (await self.store.transaction(compares, [])).succeeded

    async def events(self, start: int, count: int, prefix: str = "") -> list[WatchEvent]:
        """The next ``count`` events; checks order, atomicity and that each comes once."""
        found: list[WatchEvent] = []
        last = start - 1
        async with asyncio.timeout(10), aclosing(self.watch(start, prefix)) as watch:
            async for batch in watch:
                if not batch.events:
                    continue
                revisions = [event.kv.mod_revision for event in batch.events]
                assert revisions == sorted(revisions), "events out of order"
                assert revisions[0] > last, "a revision came twice or in two parts"
                assert batch.revision == revisions[-1]
                last = batch.revision
                found.extend(batch.events)
                if len(found) >= count:
                    return found
        raise AssertionError("the watch ended")

    def watch(self, start: int, prefix: str = "") -> Any:
        return self.store.watch(prefix or self.prefix, start)

    async def tidy(self) -> None:
        for lease_id in self._leases:
            await self.store.revoke(lease_id)


@asynccontextmanager
async def fake_room(step: Any = None) -> AsyncIterator[Room]:
    server = FakeStoreServer(1, step=step)

    async def compact(revision: int) -> None:
        server.apply(model.Compact(revision))
        server.faults("a").on_change()

    yield Room(FakeClusterStore(server, "a"), FakeClusterStore(server, "b"), compact, FakeClock())
    server.close()


@asynccontextmanager
async def local_room(directory: Path) -> AsyncIterator[Room]:
    store = await LocalStore.open(directory / "store.db", SystemClock())
    yield Room(store, store, store.compact, SystemClock())
    await store.close()


@asynccontextmanager
async def etcd_room(cluster: Any) -> AsyncIterator[Room]:
    store = EtcdStore(cluster.settings(), SystemClock(), SystemRandomness())
    other = EtcdStore(cluster.settings(), SystemClock(), SystemRandomness())
    yield Room(store, other, store.compact, SystemClock())
    await store.close()
    await other.close()
