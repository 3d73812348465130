"""An open point in time of a VM: frames out of a running pull backup, and out of the spool."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Executor

from node.host.frame_pump import FRAMES_AHEAD, FramePump
from node.host.nbd_reader import NbdExport
from node.host.spool import FrameSpool, FrameTail
from vmreplica.core.cycle import Frame
from vmreplica.core.frame_plan import FramePlan
from vmreplica.ports.change_source import SourceFailed
from vmreplica.ports.clock import Clock

log = logging.getLogger(__name__)


class LibvirtBackupJob:
    """Implements ports.change_source.BackupJob.

    A delta is read at the disk's speed into the spool, whatever the link does, so that the job at
    the hypervisor ends soon. What is too large for the spool is read as fast as it is sent.

    :param close_job: ends the job at the hypervisor; called once.
    :param age_limit_ms: a job still reading after this long is given up; 0 = never.
    """

    def __init__(
        self,
        exports: Sequence[NbdExport],
        plan: FramePlan,
        encoders: Executor,
        clock: Clock,
        *,
        compress: bool,
        point_time_ms: int,
        spool_directory: str | None,
        close_job: Callable[[], Awaitable[None]],
        age_limit_ms: int,
    ) -> None:
        self._exports = exports
        self._plan = plan
        self._encoders = encoders
        self._clock = clock
        self._compress = compress
        self.point_time_ms = point_time_ms
        self._close_job = close_job
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._lock = asyncio.Lock()
        self._closed = False
        self._read_all = False
        self._error: Exception | None = None
        self._pump: FramePump | None = None
        self._arrived: deque[Frame] = deque()
        self._room = threading.Semaphore(FRAMES_AHEAD)
        self._spool = FrameSpool(spool_directory) if spool_directory is not None else None
        self._tail = FrameTail(0)
        self._ageing = asyncio.ensure_future(self._age(age_limit_ms)) if age_limit_ms else None
        self._ending: asyncio.Task[None] | None = None
        if plan.frame_count == 0:
            self._all_read()
        elif self._spool is not None:
            self._start(0, None)

    @property
    def frame_count(self) -> int:
        """Frames of the cycle."""
        return self._plan.frame_count

    @property
    def cluster_counts(self) -> tuple[int, ...]:
        """Clusters of each disk."""
        return self._plan.clusters

    @property
    def total_bytes(self) -> int:
        """Plain bytes of the data clusters."""
        return self._plan.total_bytes

    def frames(self, first: int) -> AsyncIterator[Frame]:
        """See the port."""
        return self._spooled(first) if self._spool is not None else self._streamed(first)

    async def finish_reading(self) -> None:
        """End the job at the hypervisor. Idempotent."""
        async with self._lock:
            if self._closed:
                return
            if self._pump is not None:
                await asyncio.to_thread(self._pump.stop)
            for export in self._exports:
                await asyncio.to_thread(export.close)
            await self._close_job()
            self._closed = True

    async def end(self) -> None:
        """End the job in any state and free what it holds. Idempotent; not to be interrupted."""
        await asyncio.shield(asyncio.ensure_future(self._end()))

    async def _end(self) -> None:
        if self._ageing is not None:
            self._ageing.cancel()
        if self._error is None and not self._read_all:
            self._error = SourceFailed("the job was ended")
        await self._finish_quietly()
        if self._spool is not None:
            self._spool.close()
        self._tail.close()
        self._arrived.clear()
        self._news.set()

    # --- frames -----------------------------------------------------------------------------

    async def _spooled(self, first: int) -> AsyncIterator[Frame]:
        spool = self._spool
        assert spool is not None
        for number in range(first, self.frame_count):
            while len(spool) <= number:
                await self._wait()
            yield await asyncio.to_thread(spool.read, number)

    async def _streamed(self, first: int) -> AsyncIterator[Frame]:
        if not self._tail.first <= first <= len(self._tail):
            await self._read_again(first)
        for number in range(first, self.frame_count):
            if number < len(self._tail):
                yield self._tail.read(number)
                continue
            if self._pump is None:
                self._start(number, self._room)
            while not self._arrived:
                await self._wait()
            frame = self._arrived.popleft()
            self._room.release()
            self._tail.append(frame)
            yield frame

    async def _read_again(self, first: int) -> None:
        """The owner needs what we have let go of: as long as the job is open it can be reread."""
        if self._closed or self._read_all:
            raise SourceFailed("the point in time is over and must be taken anew")
        if self._pump is not None:
            await asyncio.to_thread(self._pump.stop)
        if self._closed or self._read_all:
            raise SourceFailed("the point in time is over and must be taken anew")
        self._pump = None
        self._arrived.clear()
        self._room = threading.Semaphore(FRAMES_AHEAD)
        self._tail = FrameTail(first)

    def _start(self, first: int, room: threading.Semaphore | None) -> None:
        spool = self._spool

        def deliver(_number: int, frame: Frame) -> None:
            if spool is not None:
                spool.append(frame)
            else:
                self._arrived.append(frame)
            self._loop.call_soon_threadsafe(self._news.set)

        self._pump = FramePump(
            self._exports,
            self._plan,
            self._encoders,
            compress=self._compress,
            deliver=deliver,
            ended=self._tell,
            room=room,
        )
        self._pump.start(first)

    def _tell(self, error: Exception | None) -> None:
        """In the pump's thread: how reading ended."""
        self._loop.call_soon_threadsafe(self._ended, error)

    def _ended(self, error: Exception | None) -> None:
        if error is None:
            self._all_read()
            return
        if isinstance(error, OSError):
            error = SourceFailed(f"the spool cannot be written: {error}")
        self._error = self._error or error
        self._news.set()

    def _all_read(self) -> None:
        """The guest must not pay for a slow link: the job ends now, not after the last frame."""
        self._read_all = True
        self._news.set()
        self._ending = asyncio.ensure_future(self._finish_quietly())

    async def _finish_quietly(self) -> None:
        try:
            await self.finish_reading()
        except Exception as error:  # noqa: BLE001 - tried again by end, the guard or the next begin
            log.warning("ending a backup job: %s", error)

    async def _wait(self) -> None:
        if self._error is not None:
            if isinstance(self._error, SourceFailed):
                raise self._error
            raise SourceFailed(str(self._error)) from self._error
        self._news.clear()
        await self._news.wait()

    async def _age(self, limit_ms: int) -> None:
        await self._clock.sleep(limit_ms)
        if self._read_all:
            return
        self._error = SourceFailed(
            f"reading the changes took longer than {limit_ms // 1000} s; the guest comes first"
        )
        self._news.set()
        await self._finish_quietly()
