"""One host's view of the fake cluster store: implements ports.cluster_store.ClusterStore.

Only asyncio events and loop timers: it runs in a loop of virtual time. What has been sent is
applied even if the sender is cancelled meanwhile, as with a real network.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeVar

from vmreplica.ports.cluster_store import (
    Compacted,
    Compare,
    Get,
    KeyValue,
    Lease,
    Operation,
    OutcomeUnknown,
    RangeResult,
    StoreError,
    StoreRefused,
    StoreUnavailable,
    TransactionResult,
    WatchBatch,
)
from vmreplica.testing import etcd_model as model
from vmreplica.testing.fake_store_server import FakeStoreServer
from vmreplica.testing.store_faults import StoreFaults

T = TypeVar("T")

REFUSED_AFTER_MS = (1.0, 5.0)
RECONNECT_MS = (50.0, 250.0)


class FakeClusterStore:
    """Implements ClusterStore for ``host`` over the server shared with the other hosts."""

    def __init__(self, server: FakeStoreServer, host: str = "host") -> None:
        self.server = server
        self.host = host
        self._closed = False

    @property
    def faults(self) -> StoreFaults:
        """This host's faults."""
        return self.server.faults(self.host)

    # ---- ClusterStore ----

    async def get(self, key: str) -> KeyValue | None:
        """Read one key."""
        request = model.Transaction((), (Get(key),))
        answer = await self._read(lambda: self.server.apply(request))
        assert isinstance(answer, TransactionResult)
        return answer.reads[0]

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
        """Read keys under a prefix."""
        request = model.Range(prefix, limit, after_key, revision, min_mod_revision, count_only)
        answer = await self._read(lambda: self.server.apply(request))
        assert isinstance(answer, RangeResult)
        return answer

    async def transaction(
        self,
        compares: Sequence[Compare],
        success: Sequence[Operation],
        failure: Sequence[Operation] = (),
    ) -> TransactionResult:
        """Guarded, atomic."""
        request = model.Transaction(tuple(compares), tuple(success), tuple(failure))
        faults = self.faults
        planned = faults.planned.popleft() if faults.planned else ""
        answer = await self._call(
            lambda: self.server.apply(request), faults.call_timeout_ms, planned
        )
        assert isinstance(answer, TransactionResult)
        return answer

    async def grant(self, ttl_ms: int) -> Lease:
        """A new lease, in whole seconds, rounded up."""

        def apply() -> Lease:
            answer = self.server.apply(model.Grant(self.server.new_lease_id(), -(-ttl_ms // 1000)))
            assert isinstance(answer, Lease)
            return answer

        return await self._read(apply)

    async def keepalive(self, lease_id: int, timeout_ms: int) -> int:
        """Refresh once."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + timeout_ms / 1000
        pending = self.server.running_out(lease_id)

        def apply() -> int:
            nonlocal pending
            pending = self.server.running_out(lease_id)
            if pending is not None:
                return 0
            answer = self.server.apply(model.Keepalive(lease_id))
            assert isinstance(answer, int)
            return answer * 1000

        try:
            ttl_ms = await self._call(apply, timeout_ms)
        except OutcomeUnknown as error:
            raise StoreUnavailable(str(error)) from error
        if pending is not None:
            # Overdue but not yet ended: etcd answers once the deletion is through.
            try:
                async with asyncio.timeout_at(give_up_at):
                    await pending.wait()
            except TimeoutError as error:
                raise StoreUnavailable("no answer to the keepalive") from error
            return 0
        return ttl_ms

    async def revoke(self, lease_id: int) -> None:
        """End a lease; one already gone is no error."""

        def apply() -> None:
            try:
                self.server.apply(model.Revoke(lease_id))
            except StoreRefused:
                return

        await self._call(apply, self.faults.call_timeout_ms)

    async def watch(self, prefix: str, start_revision: int) -> AsyncIterator[WatchBatch]:
        """Changes from ``start_revision`` on (0: from now on)."""
        server, faults = self.server, self.faults
        waker_id, waker = server.add_waker()
        broken, compacted = faults.broken_watches, faults.compacted_watches
        position = start_revision or server.state.revision + 1
        try:
            while True:
                waker.clear()
                if broken != faults.broken_watches:
                    broken = faults.broken_watches
                    server.fired["watch_broken"] += 1
                    await asyncio.sleep(server.draw(RECONNECT_MS))
                if not self._reaches():
                    await asyncio.sleep(server.draw(RECONNECT_MS))
                    continue
                if compacted != faults.compacted_watches:
                    server.fired["watch_compacted"] += 1
                    raise Compacted(server.state.revision)
                changes = model.events_since(server.state, prefix, position)
                if not changes:
                    await waker.wait()
                    continue
                if faults.watch_delay_ms[1] > 0:
                    server.fired["watch_late"] += 1
                    await asyncio.sleep(server.draw(faults.watch_delay_ms))
                for change in changes:
                    position = change.revision + 1
                    if not server.coin(faults.lose_watch_events, "watch_event_lost"):
                        yield WatchBatch(change.revision, change.events)
        finally:
            server.remove_waker(waker_id)

    async def close(self) -> None:
        """Nothing is held."""
        self._closed = True

    # ---- the way there and back ----

    def _reaches(self) -> bool:
        faults = self.faults
        return self.server.quorum and not faults.cut and not faults.refuse

    async def _read(self, apply: Callable[[], T]) -> T:
        try:
            return await self._call(apply, self.faults.call_timeout_ms)
        except OutcomeUnknown as error:
            raise StoreUnavailable(str(error)) from error

    async def _call(self, apply: Callable[[], T], timeout_ms: float, planned: str = "") -> T:
        server, faults = self.server, self.faults
        loop = asyncio.get_running_loop()
        if self._closed:
            raise StoreUnavailable("the store is closed")
        if planned == "refused" or (not planned and faults.refuse):
            server.fired["refused"] += 1
            await asyncio.sleep(server.draw(REFUSED_AFTER_MS))
            raise StoreUnavailable("connection refused")
        answer: asyncio.Future[T] = loop.create_future()
        fate = planned or self._fate()
        there_s = server.draw(faults.latency_ms) / 2
        if fate == "late_apply":
            there_s += timeout_ms / 1000 * server.random.uniform(1.0, 2.0)
        if server.coin(faults.slow, "slow"):
            there_s += server.draw(faults.slow_ms) / 2

        def arrive() -> None:
            if not self._reaches() or fate == "lost_request":
                server.fired["request_lost"] += 1
                return
            outcome: Callable[[], None]
            try:
                value = apply()
            except StoreError as error:
                refusal = error  # keep: ``error`` is unbound after this block
                outcome = lambda: _fail(answer, refusal)  # noqa: E731
            else:
                outcome = lambda: _set(answer, value)  # noqa: E731
            if fate == "lost_reply":
                server.fired["reply_lost"] += 1
                return
            server.later(there_s, lambda: outcome() if self._reaches() else None)

        server.later(there_s, arrive)
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await answer
        except TimeoutError as error:
            server.fired["outcome_unknown"] += 1
            raise OutcomeUnknown("no answer within the deadline") from error

    def _fate(self) -> str:
        server, faults = self.server, self.faults
        if server.coin(faults.lose_request, "lose_request"):
            return "lost_request"
        if server.coin(faults.lose_reply, "lose_reply"):
            return "lost_reply"
        if server.coin(faults.late_apply, "late_apply"):
            return "late_apply"
        return "ok"


def _set(future: asyncio.Future[T], value: T) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[T], error: StoreError) -> None:
    if not future.done():
        future.set_exception(error)
