"""A copy in memory of all keys under one prefix, that repairs itself."""

from __future__ import annotations

import asyncio
import bisect
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from vmreplica.ports.clock import Clock
from vmreplica.ports.cluster_store import ClusterStore, Compacted, KeyValue, StoreError

log = logging.getLogger(__name__)

PAGE = 1_000
RETRY_MS = 500
SETTLE_MS = 250


@dataclass(frozen=True, slots=True)
class _Deletion:
    """A key known to be deleted at ``revision``; ``create_revision`` of what it was (0 unknown)."""

    revision: int
    create_revision: int


class StoreCache:
    """Watch + verification, because watches are hints.

    Every ``verify_ms`` a linearizable range asks for what changed since the last one, and the
    number of keys must agree; every ``relist_ms`` all is listed at one revision, in pages. A
    compacted watch, or a count that does not agree, lists at once. Lives through outages.
    Changes are applied per key in order of their revision only, whatever way they come.
    """

    def __init__(
        self,
        store: ClusterStore,
        clock: Clock,
        prefix: str,
        *,
        verify_ms: int = 5_000,
        relist_ms: int = 60_000,
    ) -> None:
        self._store = store
        self._clock = clock
        self._prefix = prefix
        self._verify_ms = verify_ms
        self._relist_ms = relist_ms
        self._live: dict[str, KeyValue] = {}
        self._order: list[str] = []
        self._deleted: dict[str, _Deletion] = {}
        self._callbacks: dict[int, Callable[[str], None]] = {}
        self._callback_ids = 0
        self._listed = asyncio.Event()
        self._listing = asyncio.Lock()
        self._verified_revision = 0
        self._listed_revision = 0
        self._heard_ms = -1
        self.revision = 0
        self.relists = 0

    # ---- reading ----

    async def ready(self) -> None:
        """Wait for the first listing."""
        await self._listed.wait()

    def is_ready(self) -> bool:
        """Whether the first listing is done."""
        return self._listed.is_set()

    def get(self, key: str) -> KeyValue | None:
        """The key as far as known here."""
        return self._live.get(key)

    def items(self, prefix: str = "") -> list[KeyValue]:
        """Keys under ``prefix`` (default: all), in key order."""
        prefix = prefix or self._prefix
        found = []
        for index in range(bisect.bisect_left(self._order, prefix), len(self._order)):
            key = self._order[index]
            if not key.startswith(prefix):
                break
            found.append(self._live[key])
        return found

    def heard_age_ms(self) -> int:
        """Time since the store was last heard; very large before the first listing.

        An answered range counts from its sending; a watch event from its arrival.
        """
        if self._heard_ms < 0:
            return 2**62
        return self._clock.boottime_ms() - self._heard_ms

    def subscribe(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Call back with each changed key, synchronously. Returns what ends it."""
        self._callback_ids += 1
        number = self._callback_ids
        self._callbacks[number] = callback
        return lambda: _drop(self._callbacks, number)

    # ---- read your own writes ----

    def note(self, kv: KeyValue) -> None:
        """This is how a key was at its mod revision; older news than known is ignored."""
        if kv.key not in self._live and kv.mod_revision <= self._listed_revision:
            return  # A listing taken later does not have it: it was deleted since.
        self._put(kv)

    def _put(self, kv: KeyValue) -> None:
        known = self._live.get(kv.key)
        deletion = self._deleted.get(kv.key)
        if known is not None and known.mod_revision >= kv.mod_revision:
            return
        if deletion is not None and deletion.revision >= kv.mod_revision:
            return
        if known is None:
            bisect.insort(self._order, kv.key)
        self._live[kv.key] = kv
        self._tell(kv.key)

    def forget(self, key: str, revision: int) -> None:
        """The key was deleted at this revision; older news than known is ignored."""
        known = self._live.get(key)
        if known is not None and known.mod_revision >= revision:
            return
        earlier = self._deleted.get(key)
        if known is None and earlier is not None and earlier.revision >= revision:
            return
        self._deleted[key] = _Deletion(revision, known.create_revision if known else 0)
        if known is not None:
            del self._live[key]
            del self._order[bisect.bisect_left(self._order, key)]
            self._tell(key)

    def _tell(self, key: str) -> None:
        for callback in list(self._callbacks.values()):
            callback(key)

    # ---- running ----

    async def run(self) -> None:
        """Keep the copy true until cancelled."""
        await self._list_until_done()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_forever())
            group.create_task(self._verify_forever())
            group.create_task(self._relist_forever())

    async def _watch_forever(self) -> None:
        while True:
            try:
                async for batch in self._store.watch(self._prefix, self.revision + 1):
                    for event in batch.events:
                        if event.deleted:
                            self.forget(event.kv.key, event.kv.mod_revision)
                        else:
                            self.note(event.kv)
                    self._heard_ms = max(self._heard_ms, self._clock.boottime_ms())
                    self.revision = max(self.revision, batch.revision)
            except Compacted:
                log.info("watch of %s: compacted, listing anew", self._prefix)
                await self._list_until_done()
            except StoreError as error:
                log.warning("watch of %s: %s", self._prefix, error)
                await self._clock.sleep(RETRY_MS)

    async def _verify_forever(self) -> None:
        while True:
            await self._clock.sleep(self._verify_ms)
            try:
                await self.verify()
            except StoreError as error:
                log.info("verification of %s: %s", self._prefix, error)

    async def _relist_forever(self) -> None:
        while True:
            await self._clock.sleep(self._relist_ms)
            await self._list_until_done()

    async def verify(self) -> None:
        """Ask for what changed, compare the number of keys, list anew if it does not agree.

        :raises StoreUnavailable:
        """
        sent_ms, known = self._clock.boottime_ms(), self._verified_revision
        changed = await self._store.range(self._prefix, min_mod_revision=known + 1)
        revision = changed.revision
        if revision < known:
            await self.relist()
            return
        for kv in changed.items:
            self.note(kv)
        try:
            counted = await self._store.range(self._prefix, revision=revision, count_only=True)
        except Compacted:
            return
        if counted.count != self._count_at(revision):
            # The watch may be about to bring a deletion that the range has already seen.
            await self._clock.sleep(SETTLE_MS)
        if counted.count != self._count_at(revision):
            log.warning(
                "%s: %d keys in the store, %d here at revision %d: listing anew",
                self._prefix,
                counted.count,
                self._count_at(revision),
                revision,
            )
            await self.relist()
            return
        self._verified_revision = revision
        self.revision = max(self.revision, revision)
        self._heard_ms = max(self._heard_ms, sent_ms)

    def _count_at(self, revision: int) -> int:
        """How many keys this copy had at ``revision``, which may lie a little back."""
        here = sum(1 for kv in self._live.values() if kv.create_revision <= revision)
        gone_since = sum(
            1
            for deletion in self._deleted.values()
            if deletion.revision > revision and 0 < deletion.create_revision <= revision
        )
        return here + gone_since

    async def _list_until_done(self) -> None:
        while True:
            try:
                await self.relist()
                return
            except StoreError as error:
                log.info("listing of %s: %s", self._prefix, error)
                await self._clock.sleep(RETRY_MS)

    async def relist(self) -> None:
        """List all at one revision and take over what differs.

        :raises StoreUnavailable: what was known stays.
        :raises Compacted: a page came too late; begin again.
        """
        async with self._listing:
            sent_ms, known = self._clock.boottime_ms(), self.revision
            page = await self._store.range(self._prefix, limit=PAGE)
            revision = page.revision
            if revision < known:
                self._begin_anew(known, revision)
            listed = {kv.key: kv for kv in page.items}
            while page.more:
                page = await self._store.range(
                    self._prefix, limit=PAGE, after_key=page.items[-1].key, revision=revision
                )
                listed.update((kv.key, kv) for kv in page.items)
            for key in [key for key in self._order if key not in listed]:
                # Younger than the listing: it stays. ``forget`` compares.
                self.forget(key, revision)
            for kv in listed.values():
                self._put(kv)
            self._listed_revision = max(self._listed_revision, revision)
            self._deleted = {k: d for k, d in self._deleted.items() if d.revision > revision}
            self._verified_revision = max(self._verified_revision, revision)
            self.revision = max(self.revision, revision)
            self._heard_ms = max(self._heard_ms, sent_ms)
            self.relists += 1
            self._listed.set()

    def _begin_anew(self, known: int, revision: int) -> None:
        """The store was rebuilt: its revisions begin again, and what is known compares to none."""
        log.warning(
            "%s: the store is at revision %d and was at %d: it was rebuilt",
            self._prefix,
            revision,
            known,
        )
        self._live = {key: replace(kv, mod_revision=0) for key, kv in self._live.items()}
        self._deleted.clear()
        self.revision = self._verified_revision = self._listed_revision = 0


def _drop(callbacks: dict[int, Callable[[str], None]], number: int) -> None:
    callbacks.pop(number, None)
