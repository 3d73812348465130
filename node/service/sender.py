"""Sends the frames of an open point in time until the owner, whoever it is, acknowledges them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from node.service.bandwidth import Bandwidth
from node.service.sender_route import OpenedStream, OwnerRoute, may_continue, owner_in_doubt
from node.service.sender_timing import drop
from vmreplica.core.cycle import (
    CLUSTER_BYTES,
    Accepted,
    Acknowledged,
    CycleClose,
    CycleOpen,
    Durable,
    Frame,
)
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.schedule import retry_delay_ms
from vmreplica.core.sending import RunningCycleDigest, Window
from vmreplica.ports.change_source import BackupJob
from vmreplica.ports.clock import Clock
from vmreplica.ports.randomness import Randomness
from vmreplica.ports.replica_link import CycleStream, LinkFailed

QUIET_MS = 1_000
"""Without a word from the owner for this long the broker is asked whether it moved."""
STALL_MS = 120_000
"""An owed answer that does not come for this long: the stream is given up."""
ANSWER_AFTER_BYTES = 4 << 20
"""The node reports progress at the latest after this much payload."""


@dataclass(slots=True)
class Progress:
    """How far a cycle has come; read by others while it runs. Bytes are plain data bytes."""

    total_bytes: int = 0
    done_bytes: int = 0
    wire_bytes: int = 0
    streams: int = 0
    epoch: int = 0
    frames_done: int = 0

    def received(self, number: int, data_bytes: int) -> None:
        """The owner has frame ``number``; what it gets a second time counts once."""
        if number >= self.frames_done:
            self.frames_done = number + 1
            # Clusters planned as data that turn out to be zeros are in the total alone: the end
            # of the cycle sets done to total.
            self.done_bytes = min(self.done_bytes + data_bytes, self.total_bytes)


class CycleSender:
    """Carries one cycle to its acknowledgement over as many streams as it takes.

    :param describe: makes the close message from (clusters, digest).
    """

    def __init__(
        self,
        route: OwnerRoute,
        job: BackupJob,
        request: CycleOpen,
        digest: RunningCycleDigest,
        describe: Callable[[int, bytes], CycleClose],
        *,
        clock: Clock,
        randomness: Randomness,
        bandwidth: Bandwidth,
        frequency_ms: int,
        progress: Progress,
    ) -> None:
        self._route = route
        self._job = job
        self._request = request
        self._digest = digest
        self._describe = describe
        self._clock = clock
        self._randomness = randomness
        self._bandwidth = bandwidth
        self._frequency_ms = frequency_ms
        self._progress = progress

    async def send(self, opened: OpenedStream) -> Acknowledged:
        """Send over ``opened`` and whatever follows it.

        :raises SourceFailed: the point in time is gone.
        :raises Problem: the owner refuses for a reason that trying again cannot cure.
        """
        current: OpenedStream | None = opened
        failures, trouble_since = 0, 0
        while True:
            try:
                if current is None:
                    current = await self._route.open(replace(self._request, resume=True))
                    failures = 0
                return await self._over(current)
            except (LinkFailed, Problem) as error:
                if not may_continue(error):
                    raise
                now = self._clock.boottime_ms()
                trouble_since = trouble_since if failures else now
                failures += 1
                delay = retry_delay_ms(
                    failures,
                    now - trouble_since,
                    owner_in_doubt(error),
                    self._frequency_ms,
                    self._randomness.uniform(0, 1),
                )
            finally:
                if current is not None:
                    self._progress.wire_bytes += current.stream.wire_bytes
                    await current.stream.cancel()
                current = None
            await self._clock.sleep(delay)

    async def _over(self, opened: OpenedStream) -> Acknowledged:
        self._progress.streams += 1
        self._progress.epoch = opened.location.epoch
        match opened.reply:
            case Acknowledged() as already:
                return already
            case Accepted(durable_frames=first):
                pass
        if first > self._digest.frames:
            raise Problem(
                Reason.SEQ_GAP,
                f"the owner says it has {first} frames, {self._digest.frames} were made",
            )
        return await _Stream(self, opened, first).run()

    # What a single stream needs of the cycle.

    async def pump(self, stream: CycleStream, first: int, window: _WindowGate) -> None:
        """Send frames from ``first`` on, then the close."""
        number = first
        async for frame in self._job.frames(first):
            self._digest.add(number, frame)
            await window.admit(frame)
            await self._bandwidth.take(len(frame.payload))
            await stream.send(frame)
            number += 1
        await self._job.finish_reading()
        window.closed()
        await stream.send(self._describe(self._digest.clusters, self._digest.finish()))

    @property
    def clock(self) -> Clock:
        """The clock all waiting is on."""
        return self._clock

    @property
    def route(self) -> OwnerRoute:
        """The way to the owner."""
        return self._route

    @property
    def progress(self) -> Progress:
        """What people see."""
        return self._progress


class _WindowGate:
    """Holds the sender back while 8 MiB are under way, and counts what has arrived."""

    def __init__(self, first: int, progress: Progress) -> None:
        self._window = Window(first)
        self._next = first
        self._under_way: deque[tuple[int, int]] = deque()
        self._progress = progress
        self._closed = False
        self._moved = asyncio.Event()

    async def admit(self, frame: Frame) -> None:
        while not self._window.fits(len(frame.payload)):
            self._moved.clear()
            await self._moved.wait()
        self._window.sent(len(frame.payload))
        data = sum(1 for size in frame.stored_bytes if size)
        self._under_way.append((self._next, data * CLUSTER_BYTES))
        self._next += 1

    def received(self, frames: int) -> None:
        self._window.received(frames)
        while self._under_way and self._under_way[0][0] < frames:
            self._progress.received(*self._under_way.popleft())
        self._moved.set()

    def closed(self) -> None:
        self._closed = True

    @property
    def owes_answer(self) -> bool:
        """Whether the node must speak soon: enough is under way, or all was sent."""
        return self._closed or self._window.bytes >= ANSWER_AFTER_BYTES


class _Stream:
    """One stream of a cycle: sends, listens, and watches whether the owner is still the owner."""

    def __init__(self, sender: CycleSender, opened: OpenedStream, first: int) -> None:
        self._sender = sender
        self._opened = opened
        self._first = first
        self._gate = _WindowGate(first, sender.progress)
        self._heard_ms = sender.clock.boottime_ms()

    async def run(self) -> Acknowledged:
        listening = asyncio.ensure_future(self._listen())
        sending = asyncio.ensure_future(
            self._sender.pump(self._opened.stream, self._first, self._gate)
        )
        watching = asyncio.ensure_future(self._watch())
        tasks: set[asyncio.Task[Acknowledged] | asyncio.Task[None]]
        tasks = {listening, sending, watching}
        try:
            while True:
                done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if listening in done:
                    return listening.result()
                if sending in done and isinstance(sending.exception(), LinkFailed):
                    await self._refusal_first(listening)
                for task in done:
                    task.result()
        finally:
            await drop(listening, sending, watching)

    async def _refusal_first(self, listening: asyncio.Task[Acknowledged]) -> None:
        """A broken send says only that the stream ended; the reason comes by the other way."""
        timer = asyncio.ensure_future(self._sender.clock.sleep(QUIET_MS))
        try:
            await asyncio.wait({listening, timer}, return_when=asyncio.FIRST_COMPLETED)
            if listening.done() and isinstance(listening.exception(), Problem):
                listening.result()
        finally:
            await drop(timer)

    async def _listen(self) -> Acknowledged:
        while True:
            message = await self._opened.stream.receive()
            self._heard_ms = self._sender.clock.boottime_ms()
            match message:
                case Acknowledged():
                    return message
                case Durable(received_frames=frames):
                    self._gate.received(frames)

    async def _watch(self) -> None:
        """A dead host sends no farewell: ask the broker while the stream is silent."""
        clock = self._sender.clock
        owed_since_ms = 0
        while True:
            await clock.sleep(QUIET_MS)
            now = clock.boottime_ms()
            if now - self._heard_ms < QUIET_MS:
                continue
            if not self._gate.owes_answer:
                owed_since_ms = 0
            elif owed_since_ms <= self._heard_ms:
                owed_since_ms = now
            elif now - owed_since_ms > STALL_MS:
                raise LinkFailed("the owner has been silent for too long")
            if await self._sender.route.has_moved(self._opened.location):
                raise LinkFailed(f"the owner moved away from {self._opened.location.node}")
