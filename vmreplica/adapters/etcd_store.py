"""The cluster store over etcd: implements ports.cluster_store.ClusterStore."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import grpc.aio
from aetcd import rpc

from vmreplica.adapters.etcd_channels import METADATA, EtcdChannels, unary
from vmreplica.adapters.etcd_messages import (
    key_value,
    range_bounds,
    transaction_message,
    transaction_result,
)
from vmreplica.adapters.etcd_settings import EtcdSettings
from vmreplica.adapters.etcd_watch import EtcdWatch
from vmreplica.ports.clock import Clock
from vmreplica.ports.cluster_store import (
    MAX_OPERATIONS_PER_TRANSACTION,
    Compacted,
    Compare,
    KeyValue,
    Lease,
    Operation,
    OutcomeUnknown,
    RangeResult,
    StoreRefused,
    StoreUnavailable,
    TransactionResult,
    WatchBatch,
)
from vmreplica.ports.randomness import Randomness


class EtcdStore:
    """etcd 3.4 or newer, through mutual TLS.

    Made inside the event loop that uses it. Nothing is sent before the first call; an etcd that
    is down shows as StoreUnavailable there.

    :raises Problem: BAD_CONFIG: credentials missing or unreadable.
    """

    def __init__(self, settings: EtcdSettings, clock: Clock, randomness: Randomness) -> None:
        self._channels = EtcdChannels(settings, clock, randomness)
        self._clock = clock
        self._randomness = randomness

    @property
    def endpoint(self) -> str:
        """The member that is asked next; for status output."""
        return self._channels.endpoint

    async def get(self, key: str) -> KeyValue | None:
        """Linearizable read of one key."""
        answer = await self._range(rpc.RangeRequest(key=key.encode()))
        return key_value(answer.kvs[0]) if answer.kvs else None

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
        """Keys under a prefix; ``count`` is of all of them beyond ``after_key``."""
        first, end = range_bounds(prefix, after_key)
        request = rpc.RangeRequest(
            key=first,
            range_end=end,
            limit=limit,
            revision=revision,
            min_mod_revision=min_mod_revision,
            count_only=count_only,
        )
        answer = await self._range(request)
        items = tuple(key_value(kv) for kv in answer.kvs)
        return RangeResult(revision or answer.header.revision, items, answer.count, answer.more)

    async def _range(self, request: Any) -> Any:
        try:
            return await self._channels.read(unary(lambda c: rpc.KVStub(c).Range, request))
        except OutcomeUnknown as error:
            raise StoreUnavailable(str(error)) from error

    async def transaction(
        self,
        compares: Sequence[Compare],
        success: Sequence[Operation],
        failure: Sequence[Operation] = (),
    ) -> TransactionResult:
        """Guarded, atomic."""
        if max(len(compares), len(success), len(failure)) > MAX_OPERATIONS_PER_TRANSACTION:
            raise StoreRefused("too many operations in txn request")
        request = transaction_message(compares, success, failure)
        answer = await self._channels.write(unary(lambda c: rpc.KVStub(c).Txn, request))
        return transaction_result(answer)

    async def grant(self, ttl_ms: int) -> Lease:
        """A new lease, in whole seconds, rounded up. One whose answer is lost runs out unused."""
        request = rpc.LeaseGrantRequest(TTL=-(-ttl_ms // 1000))
        try:
            answer = await self._channels.write(
                unary(lambda c: rpc.LeaseStub(c).LeaseGrant, request)
            )
        except OutcomeUnknown as error:
            raise StoreUnavailable(str(error)) from error
        return Lease(answer.ID, answer.TTL * 1000)

    async def keepalive(self, lease_id: int, timeout_ms: int) -> int:
        """Refresh once, on a stream of its own, so that a stuck stream costs one try."""

        async def call(channel: grpc.aio.Channel, timeout_s: float) -> int:
            stream = rpc.LeaseStub(channel).LeaseKeepAlive(timeout=timeout_s, metadata=METADATA)
            try:
                await stream.write(rpc.LeaseKeepAliveRequest(ID=lease_id))
                answer = await stream.read()
            finally:
                stream.cancel()
            if not isinstance(answer, rpc.LeaseKeepAliveResponse):
                raise OutcomeUnknown("etcd ended the keepalive stream without an answer")
            return max(0, int(answer.TTL)) * 1000

        try:
            return await self._channels.once(timeout_ms, call)
        except (OutcomeUnknown, StoreRefused) as error:
            raise StoreUnavailable(str(error)) from error

    async def revoke(self, lease_id: int) -> None:
        """End a lease; one already gone is no error."""
        request = rpc.LeaseRevokeRequest(ID=lease_id)
        try:
            await self._channels.write(unary(lambda c: rpc.LeaseStub(c).LeaseRevoke, request))
        except StoreRefused:
            return

    def watch(self, prefix: str, start_revision: int) -> AsyncIterator[WatchBatch]:
        """Changes under ``prefix`` from ``start_revision`` on (0: from now on)."""
        watch = EtcdWatch(self._channels, self._clock, self._randomness, prefix, start_revision)
        return watch.batches()

    async def compact(self, revision: int) -> None:
        """Forget history below ``revision``. :raises Compacted: it is gone already."""
        request = rpc.CompactionRequest(revision=revision, physical=True)
        try:
            await self._channels.write(unary(lambda c: rpc.KVStub(c).Compact, request))
        except Compacted:
            raise Compacted(revision) from None

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        await self._channels.close()
