"""Receiving cycles: one stream per call, free of any transport.

``serve`` answers an iterator of requests with an iterator of replies. A cut stream leaves its
parts with the replica's task, so that the next stream of the same cycle goes on behind them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field

from node.service.keeper import Keeper, unknown_replica
from node.service.receiver_stream import ReceiverStream, StreamLimits
from node.service.replica_access import ReplicaAccess
from node.service.replica_actor import ReplicaActor, Session, draining, no_space
from node.service.replica_parts import ReplicaParts
from node.service.replica_wait import cancelled
from vmreplica.core.cycle import Acknowledged, CycleOpen, CycleReply, CycleRequest
from vmreplica.core.identity import Identity
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.receiving import ReplicaPosition, check_open
from vmreplica.ports.replica_store import StorageFailed

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiverLimits:
    """Limits of all streams of this node."""

    streams: int = 256
    wait_for_takeover_ms: int = 2_000
    open_timeout_ms: int = 30_000
    least_free_bytes: int = 64 << 20
    stream: StreamLimits = field(default_factory=StreamLimits)


class Receiver:
    """Serves Replicate calls."""

    def __init__(
        self,
        parts: ReplicaParts,
        keeper: Keeper,
        access: ReplicaAccess,
        limits: ReceiverLimits | None = None,
    ) -> None:
        self._parts = parts
        self._keeper = keeper
        self._access = access
        self._limits = limits or ReceiverLimits()
        self._streams: dict[str, ReceiverStream] = {}
        self.open_streams = 0

    async def serve(
        self, identity: Identity, names: Sequence[str], incoming: AsyncIterator[CycleRequest]
    ) -> AsyncGenerator[CycleReply, None]:
        """Serve one stream.

        :param identity: the caller, for the log.
        :param names: DNS names that authorization judges (of the sender behind a relay).
        :raises Problem: every refusal of interfaces §4; what came so far stays resumable.
        """
        self._check_room()
        self.open_streams += 1
        try:
            request = await self._first(incoming)
            _log.debug("replica %s: opened by %s", request.replica_id, identity.fingerprint)
            actor = await self._admit(names, request)
            session, done = await self._judge(actor, request)
            while done is None and actor.replica_id in self._streams:
                await self._supersede(actor.replica_id)
                # The stream before this one may have committed what is offered here, and another
                # may begin while this is judged: two that served at once would drop each
                # other's drafts.
                session, done = await self._judge(actor, request)
            if done is not None:
                yield done
                return
            stream = self._begin(actor, session, request, names)
            async with contextlib.aclosing(stream.serve(incoming)) as replies:
                async for reply in replies:
                    yield reply
        finally:
            self.open_streams -= 1

    def _check_room(self) -> None:
        if self.open_streams >= self._limits.streams:
            raise Problem(
                Reason.TOO_MANY_STREAMS,
                f"node {self._parts.node} already serves {self.open_streams} streams",
                remedy="try again in a moment",
                node=self._parts.node,
            )

    async def _first(self, incoming: AsyncIterator[CycleRequest]) -> CycleOpen:
        first = asyncio.ensure_future(_next_or_none(incoming))
        timer = asyncio.ensure_future(self._parts.clock.sleep(self._limits.open_timeout_ms))
        try:
            await asyncio.wait({first, timer}, return_when=asyncio.FIRST_COMPLETED)
            message = first.result() if first.done() else None
        finally:
            await cancelled(first, timer)
        if isinstance(message, CycleOpen):
            return message
        raise Problem(
            Reason.BAD_FIELD,
            "a stream begins with open",
            field="body",
            remedy="send CycleOpen first",
        )

    async def _admit(self, names: Sequence[str], request: CycleOpen) -> ReplicaActor:
        record = self._keeper.records.cached_record(request.replica_id)
        if record is None:
            await self._keeper.records.refresh(request.replica_id)
            record = self._keeper.records.cached_record(request.replica_id)
        if record is None:
            raise unknown_replica(request.replica_id)
        self._access.check(names, record)
        self._access.check_receiving()
        if self._keeper.draining:
            raise draining(self._parts.node)
        actor = await self._keeper.locate(request.replica_id, request.epoch)
        if actor.refusal is not None:
            raise actor.refusal
        return actor

    async def _judge(
        self, actor: ReplicaActor, request: CycleOpen
    ) -> tuple[Session, Acknowledged | None]:
        session = await actor.serving(self._limits.wait_for_takeover_ms)
        position = ReplicaPosition.of(session.manifest, session.epoch, self._parts.node)
        done = check_open(request, position)
        actor.check_deadline()
        if done is None:
            await self._check_space(actor)
        return session, done

    async def _check_space(self, actor: ReplicaActor) -> None:
        location = actor.record.storage_location
        try:
            space = await self._parts.replica_store.space(location)
        except StorageFailed:
            return
        if space.free_bytes < self._limits.least_free_bytes:
            raise no_space(location, self._parts.node)

    async def _supersede(self, replica_id: str) -> None:
        """Two streams for one replica: the older one's sender is gone, or mistaken."""
        while (older := self._streams.get(replica_id)) is not None:
            older.stop(
                Problem(
                    Reason.BUSY,
                    "a newer stream for this replica has taken this one's place",
                    remedy="open again with resume",
                )
            )
            await older.ended.wait()

    def _begin(
        self, actor: ReplicaActor, session: Session, request: CycleOpen, names: Sequence[str]
    ) -> ReceiverStream:
        def check() -> None:
            record = self._keeper.records.cached_record(actor.replica_id)
            if record is None or record.removing:
                raise unknown_replica(actor.replica_id)
            self._access.check(names, record)

        idle_ms = self._access.settings().stream_idle_timeout_s * 1000
        stream = ReceiverStream(
            self._parts, actor, session, request, check, self._limits.stream, idle_ms
        )
        stream.on_end = lambda: self._end(actor, stream)
        self._streams[actor.replica_id] = stream
        actor.idle.clear()
        actor.cut_stream = stream.stop
        return stream

    def _end(self, actor: ReplicaActor, stream: ReceiverStream) -> None:
        if self._streams.get(actor.replica_id) is stream:
            del self._streams[actor.replica_id]
            actor.idle.set()


async def _next_or_none(incoming: AsyncIterator[CycleRequest]) -> CycleRequest | None:
    return await anext(incoming, None)
