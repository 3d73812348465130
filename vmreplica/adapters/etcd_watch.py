"""One watch on etcd that outlives its streams."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc.aio
from aetcd import rpc

from vmreplica.adapters.etcd_channels import METADATA, EtcdChannels, Member
from vmreplica.adapters.etcd_messages import prefix_end, watch_event
from vmreplica.ports.clock import Clock
from vmreplica.ports.cluster_store import Compacted, StoreUnavailable, WatchBatch, WatchEvent
from vmreplica.ports.randomness import Randomness

log = logging.getLogger(__name__)

CONNECT_MS = 3_000
CREATED_S = 5.0
RECONNECT_MS = (50.0, 250.0)
RECONNECT_MAX_MS = 2_000.0


class EtcdWatch:
    """Events under a prefix, each once, in order, whole revisions only.

    A stream that ends for any reason is made anew on the next member, from the revision behind
    the last one delivered. Only compaction ends the watch.
    """

    def __init__(
        self,
        channels: EtcdChannels,
        clock: Clock,
        randomness: Randomness,
        prefix: str,
        start_revision: int,
    ) -> None:
        self._channels = channels
        self._clock = clock
        self._randomness = randomness
        self._prefix = prefix
        self._next_revision = start_revision
        self._failures = 0

    async def batches(self) -> AsyncIterator[WatchBatch]:
        """The watch itself. :raises Compacted: :raises StoreUnavailable: the store was closed."""
        while True:
            try:
                member = await self._channels.connected(CONNECT_MS)
            except StoreUnavailable:
                if self._channels.closed:
                    raise
                await self._pause()
                continue
            call = rpc.WatchStub(member.channel).Watch(metadata=METADATA)
            try:
                async with aclosing(self._stream(call)) as stream:
                    async for batch in stream:
                        self._failures = 0
                        yield batch
            except (grpc.aio.AioRpcError, TimeoutError) as error:
                log.info("watch of %s at %s: %s", self._prefix, member.endpoint, _text(error))
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                # The channel was closed under the stream.
            finally:
                call.cancel()
            await self._lost(member)

    async def _lost(self, member: Member) -> None:
        if self._channels.closed:
            raise StoreUnavailable("the store is closed")
        self._channels.avoid(member.endpoint)
        await self._pause()

    async def _pause(self) -> None:
        factor = 2 ** min(self._failures, 5)
        self._failures += 1
        wait_ms = self._randomness.uniform(*RECONNECT_MS) * factor
        await self._clock.sleep(min(wait_ms, RECONNECT_MAX_MS))

    async def _stream(self, call: Any) -> AsyncGenerator[WatchBatch, None]:
        """Everything one stream brings; returns when it ends."""
        await call.write(self._create_request())
        async with asyncio.timeout(CREATED_S):
            answer = await call.read()
        parts: list[WatchEvent] = []
        while isinstance(answer, rpc.WatchResponse):
            if answer.canceled:
                if answer.compact_revision:
                    raise Compacted(answer.compact_revision)
                log.info("watch of %s cancelled: %s", self._prefix, answer.cancel_reason)
                return
            if answer.created and not self._next_revision:
                # "From now on" must mean the same moment after a reconnect.
                self._next_revision = answer.header.revision + 1
            parts.extend(watch_event(event) for event in answer.events)
            if not answer.fragment and not answer.created:
                yield self._batch(parts)
                parts = []
            answer = await call.read()

    def _batch(self, parts: list[WatchEvent]) -> WatchBatch:
        # A resumed stream may bring again what was delivered: drop it.
        events = tuple(e for e in parts if e.kv.mod_revision >= self._next_revision)
        if events:
            self._next_revision = events[-1].kv.mod_revision + 1
        # The header may be ahead of what was delivered (a watcher that lags), so it is not used.
        return WatchBatch(self._next_revision - 1, events)

    def _create_request(self) -> Any:
        prefix = self._prefix.encode()
        create = rpc.WatchCreateRequest(
            key=prefix or b"\0",
            range_end=prefix_end(prefix),
            start_revision=self._next_revision,
            progress_notify=True,
            fragment=True,
        )
        return rpc.WatchRequest(create_request=create)


def _text(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or type(error).__name__
