"""One stream of one cycle: frames into parts, progress back, the commit at its end.

Memory: one frame in hand, and the cycle's tally. The reader is never torn inside a write: it is
interrupted only while it waits for the sender.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass

from node.service.keeper import seal_segment
from node.service.receiver_commit import commit_cycle
from node.service.replica_actor import ReplicaActor, Session, no_space, storage_failed
from node.service.replica_cycle import IncomingCycle
from node.service.replica_parts import ReplicaParts
from node.service.replica_wait import cancelled, others_first
from vmreplica.core.cycle import (
    Accepted,
    CycleClose,
    CycleOpen,
    CycleReply,
    CycleRequest,
    Durable,
    Frame,
)
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.receiving import drafts_of, same_cycle
from vmreplica.core.receiving_manifest import without_drafts
from vmreplica.ports.replica_store import StorageFailed


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLimits:
    """How often progress is told and checks are repeated."""

    progress_bytes: int = 2 << 20
    progress_frames: int = 64
    unsynced_bytes: int = 32 << 20
    recheck_ms: int = 30_000
    watch_ms: int = 1_000


class ReceiverStream:
    """Serves one stream whose open was judged good."""

    def __init__(
        self,
        parts: ReplicaParts,
        actor: ReplicaActor,
        session: Session,
        request: CycleOpen,
        recheck: Callable[[], None],
        limits: StreamLimits,
        idle_ms: int,
    ) -> None:
        self.ended = asyncio.Event()
        self.on_end: Callable[[], None] = lambda: None
        self._parts = parts
        self._actor = actor
        self._session = session
        self._request = request
        self._recheck = recheck
        self._limits = limits
        self._idle_ms = idle_ms
        self._replies: asyncio.Queue[CycleReply | None] = asyncio.Queue()
        self._pump: asyncio.Task[None] | None = None
        self._reading = False
        self._why: Problem | None = None
        self._heard_ms = parts.clock.boottime_ms()
        self._untold_bytes = 0
        self._untold_frames = 0
        self._unsynced_bytes = 0
        self._syncing: asyncio.Task[None] | None = None

    def stop(self, why: Problem) -> None:
        """End the stream with this problem at the next point between two frames."""
        if self._why is None:
            self._why = why
        if self._reading and self._pump is not None:
            self._pump.cancel()

    async def serve(
        self, incoming: AsyncIterator[CycleRequest]
    ) -> AsyncGenerator[CycleReply, None]:
        """The replies of this stream. :raises Problem:"""
        pump = self._pump = asyncio.ensure_future(self._run(incoming))
        watch = asyncio.ensure_future(self._watch())
        try:
            while (reply := await self._replies.get()) is not None:
                yield reply
            await pump
        finally:
            self.stop(_truncated())
            await asyncio.wait({pump})
            if not pump.cancelled():
                pump.exception()
            await cancelled(watch)

    async def _run(self, incoming: AsyncIterator[CycleRequest]) -> None:
        try:
            await self._receive(incoming)
        finally:
            if self._syncing is not None:
                await asyncio.wait({self._syncing})
            # Whoever waits for this stream's end waits for its work, never for its reader.
            self.on_end()
            self.ended.set()
            self._replies.put_nowait(None)

    async def _watch(self) -> None:
        """Ends the stream when the sender is silent, loses its right, or the replica leaves."""
        clock, checked_ms = self._parts.clock, self._heard_ms
        while True:
            await clock.sleep(self._limits.watch_ms)
            now = clock.boottime_ms()
            try:
                if self._session.ended.is_set():
                    raise self._actor.away()
                if self._reading and now - self._heard_ms > self._idle_ms:
                    raise _idle(self._idle_ms)
                if now - checked_ms >= self._limits.recheck_ms:
                    checked_ms = now
                    self._recheck()
            except Problem as problem:
                self.stop(problem)

    async def _receive(self, incoming: AsyncIterator[CycleRequest]) -> None:
        try:
            cycle = await self._begin()
        except StorageFailed as failed:
            raise self._failed(failed) from failed
        self._replies.put_nowait(Accepted(cycle.durable_frames))
        while True:
            message = await self._next(incoming)
            match message:
                case Frame():
                    await self._frame(cycle, message)
                case CycleClose():
                    await self._close(cycle, message)
                    return
                case CycleOpen():
                    raise Problem(
                        Reason.BAD_FIELD,
                        "a stream carries one open",
                        field="body",
                        remedy="use a stream of its own for each cycle",
                    )
                case None:
                    raise _truncated()

    async def _next(self, incoming: AsyncIterator[CycleRequest]) -> CycleRequest | None:
        if self._why is not None:
            raise self._why
        self._reading = True
        try:
            message = await anext(incoming, None)
        except asyncio.CancelledError:
            if self._why is not None:
                raise self._why from None
            raise
        finally:
            self._reading = False
        self._heard_ms = self._parts.clock.boottime_ms()
        return message

    async def _begin(self) -> IncomingCycle:
        """The parts to go on with, or fresh ones behind the drafts of this cycle."""
        session, request = self._session, self._request
        held = session.incoming
        if held is not None:
            if request.resume and not held.discarded and same_cycle(held.request, request):
                held.request = request
                await held.sync()
                return held
            session.incoming = None
            await held.discard()
        drafts = drafts_of(session.manifest.layers, request.cycle_id)
        if drafts and not request.resume:
            await self._actor.submit(session, self._drop_drafts)
            drafts = ()
        limits = self._parts.limits
        cycle = IncomingCycle(session.folder, request, drafts, limits.segment_bytes)
        await cycle.restore()
        session.incoming = cycle
        return cycle

    async def _drop_drafts(self, session: Session) -> None:
        await self._actor.commit(session, without_drafts(session.manifest, self._request.cycle_id))

    async def _frame(self, cycle: IncomingCycle, frame: Frame) -> None:
        try:
            await cycle.append(frame)
        except StorageFailed as failed:
            await self._drop(cycle)
            raise self._failed(failed) from failed
        size = len(frame.payload)
        self._untold_bytes += size
        self._untold_frames += 1
        self._unsynced_bytes += size
        if cycle.segment_is_full:
            await self._settle()
            await self._actor.submit(self._session, lambda s: seal_segment(self._actor, s))
            self._unsynced_bytes = 0
            self._tell(cycle)
            return
        limits = self._limits
        if (
            self._untold_bytes >= limits.progress_bytes
            or self._untold_frames >= limits.progress_frames
        ):
            self._tell(cycle)
            if self._unsynced_bytes >= limits.unsynced_bytes:
                await self._settle()
                self._unsynced_bytes = 0
                self._syncing = asyncio.ensure_future(self._sync(cycle))

    def _tell(self, cycle: IncomingCycle) -> None:
        self._untold_bytes = self._untold_frames = 0
        self._replies.put_nowait(Durable(cycle.durable_frames, cycle.tally.frames))

    async def _sync(self, cycle: IncomingCycle) -> None:
        """Beside the reader: what was appended becomes durable, and the sender hears of it."""
        try:
            await cycle.sync()
        except StorageFailed as failed:
            cycle.discarded = True
            self.stop(self._failed(failed))
        else:
            self._replies.put_nowait(Durable(cycle.durable_frames, cycle.tally.frames))

    async def _settle(self) -> None:
        if self._syncing is not None:
            await asyncio.wait({self._syncing})
        if self._why is not None:
            raise self._why

    async def _close(self, cycle: IncomingCycle, close: CycleClose) -> None:
        await self._settle()
        for _ in cycle.tally.sort_steps():
            await others_first()
        try:
            cycle.tally.check_close(self._request, close)
        except Problem:
            # What is stored is not what the sender meant: nothing of it may be continued.
            await self._drop(cycle)
            raise
        reply = await self._actor.submit(
            self._session, lambda s: commit_cycle(self._parts, self._actor, s, cycle, close)
        )
        self._replies.put_nowait(reply)

    async def _drop(self, cycle: IncomingCycle) -> None:
        if self._session.incoming is cycle:
            self._session.incoming = None
        try:
            await cycle.discard()
        except StorageFailed:
            # The parts stay behind as unnamed files; a later owner removes them.
            return

    def _failed(self, failed: StorageFailed) -> Problem:
        if failed.no_space:
            return no_space(self._actor.record.storage_location, self._parts.node)
        return storage_failed(failed, self._parts.node)


def _truncated() -> Problem:
    return Problem(
        Reason.BAD_FIELD,
        "the stream ended before close",
        field="body",
        remedy="open again with resume and go on from durable_frames",
    )


def _idle(idle_ms: int) -> Problem:
    return Problem(
        Reason.BUSY,
        f"nothing was sent for {idle_ms // 1000} s",
        field="stream_idle_timeout_s",
        value=str(idle_ms // 1000),
        remedy="open again with resume when there is something to send",
    )
