"""The thread that turns a plan into frames: reads ahead over NBD, encodes in workers, in order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

import zstandard

from node.host.nbd_reader import NbdExport
from vmreplica.core.cycle import CLUSTER_BYTES, Frame
from vmreplica.core.frame_encode import encode_frame
from vmreplica.core.frame_plan import DATA_CLUSTERS_PER_FRAME, FramePlan, FrameSpec
from vmreplica.ports.change_source import SourceFailed

FRAMES_AHEAD = 8
"""Frames read, being encoded or waiting to be taken: 8 MiB of plain data."""
_POLL_MS = 100
_FULL_BYTES = DATA_CLUSTERS_PER_FRAME * CLUSTER_BYTES
_local = threading.local()


@dataclass
class _Reading:
    """A frame whose requests are under way."""

    spec: FrameSpec
    buffer: bytearray
    left: int = 0
    faults: list[str] = field(default_factory=list)

    def done(self, fault: str) -> None:
        self.left -= 1
        if fault:
            self.faults.append(fault)


class FramePump:
    """Produces frames ``first``, ``first`` + 1, … until the end, an error, or ``stop``.

    :param deliver: takes (number, frame) in order, in this thread; may block.
    :param ended: called once at the end in this thread, with the error or None; not after a stop.
    :param room: one permit a frame not yet taken; None = frames are kept, never wait.
    """

    def __init__(
        self,
        exports: Sequence[NbdExport],
        plan: FramePlan,
        encoders: Executor,
        *,
        compress: bool,
        deliver: Callable[[int, Frame], None],
        ended: Callable[[Exception | None], None],
        room: threading.Semaphore | None = None,
    ) -> None:
        self._exports = exports
        self._plan = plan
        self._encoders = encoders
        self._compress = compress
        self._deliver = deliver
        self._ended = ended
        self._room = room
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._reading: deque[_Reading] = deque()
        self._encoding: deque[tuple[_Reading, Future[Frame]]] = deque()
        self._spare: list[bytearray] = []

    def start(self, first: int) -> None:
        """Begin with frame ``first``."""
        self._thread = threading.Thread(
            target=self._run, args=(first,), name="vmreplica-pump", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End early and wait for the thread. Blocks shortly; idempotent."""
        self._stopped.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self, first: int) -> None:
        error: Exception | None = None
        try:
            self._pump(first)
        except Exception as failed:  # noqa: BLE001 - a thread's error must reach its owner
            error = failed
        finally:
            # Requests still under way write into our buffers: wait for them before these go.
            self._drain()
        if not self._stopped.is_set() or error is None:
            self._ended(error)

    def _pump(self, first: int) -> None:
        specs = self._plan.frames(first)
        following = next(specs, None)
        while following is not None or self._reading or self._encoding:
            if self._stopped.is_set():
                raise SourceFailed("reading was stopped")
            if following is not None and self._may_begin(following):
                self._begin(following)
                following = next(specs, None)
                continue
            self._advance()

    def _may_begin(self, spec: FrameSpec) -> bool:
        under_way = len(self._reading) + len(self._encoding)
        if under_way >= FRAMES_AHEAD:
            return False
        if self._reading and self._reading[-1].spec.disk != spec.disk:
            return False
        if self._room is None:
            return True
        # With nothing else to do, wait here for room; else look after what is under way.
        return self._room.acquire(timeout=0 if under_way else _POLL_MS / 1000)

    def _begin(self, spec: FrameSpec) -> None:
        data = sum(run.count for run in spec.runs if not run.zero)
        export = self._exports[spec.disk]
        reading = _Reading(spec, self._buffer(export, spec, data * CLUSTER_BYTES))
        self._reading.append(reading)
        reading.left = 1 << 30  # completions may come while requests are still being begun
        begun = export.start_read(spec, memoryview(reading.buffer), reading.done)
        reading.left -= (1 << 30) - begun

    def _buffer(self, export: NbdExport, spec: FrameSpec, size: int) -> bytearray:
        """An earlier frame's buffer, all of which will be read over, or a new one of zeros.

        New ones cost more than reading: each page is cleared by the kernel, then by calloc.
        """
        whole = spec.runs[-1].end * CLUSTER_BYTES <= export.size_bytes
        if whole and self._spare and len(self._spare[-1]) == size:
            return self._spare.pop()
        return bytearray(size)

    def _advance(self) -> None:
        if self._reading:
            head = self._reading[0]
            if head.left:
                self._exports[head.spec.disk].poll(_POLL_MS)
            if head.faults:
                raise SourceFailed("; ".join(head.faults))
            if not head.left:
                self._reading.popleft()
                task = self._encoders.submit(_encode, head.spec, head.buffer, self._compress)
                self._encoding.append((head, task))
        while self._encoding and (self._encoding[0][1].done() or not self._reading):
            reading, task = self._encoding[0]
            frame = task.result()
            self._encoding.popleft()
            if len(reading.buffer) == _FULL_BYTES:
                self._spare.append(reading.buffer)  # the frame holds a copy
            self._deliver(reading.spec.number, frame)

    def _drain(self) -> None:
        try:
            while self._reading:
                head = self._reading[0]
                if head.left and head.left < 1 << 29:
                    self._exports[head.spec.disk].poll(_POLL_MS)
                else:
                    self._reading.popleft()
        except SourceFailed:
            # The connection is gone: libnbd has retired its requests.
            self._reading.clear()


def _encode(spec: FrameSpec, buffer: bytearray, compress: bool) -> Frame:
    if not compress:
        return encode_frame(spec, buffer, None)
    compressor = getattr(_local, "compressor", None)
    if compressor is None:
        compressor = _local.compressor = zstandard.ZstdCompressor(level=1)
    return encode_frame(spec, buffer, compressor)
