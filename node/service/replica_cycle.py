"""The parts of one cycle while it arrives; they outlive the stream that began it.

Within one epoch a cut stream is continued from memory: the same process still has the writers
open and knows exactly which frames they hold. A new epoch is a new process; it goes on behind
the sealed segments that the manifest names as drafts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from node.service.replica_wait import others_first
from vmreplica.core.cycle import CycleOpen, Frame
from vmreplica.core.manifest import Layer
from vmreplica.core.receiving import CycleTally
from vmreplica.ports.replica_store import LayerWriter, PartKey, ReplicaFolder

T = TypeVar("T")
SEGMENT_BYTES = 32 << 30
_BITE_CLUSTERS = 16_384


class IncomingCycle:
    """One cycle's open parts. Used by one stream at a time, and by its replica's task to seal."""

    def __init__(
        self, folder: ReplicaFolder, request: CycleOpen, drafts: Sequence[Layer], segment_bytes: int
    ) -> None:
        self.request = request
        self.tally = CycleTally(request.disks)
        self.payload_bytes = 0
        self.durable_frames = 0
        """Frames below this number need not be sent again."""
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._writers: dict[int, LayerWriter] = {}
        self._dirty: set[int] = set()
        self._turn = asyncio.Lock()
        self._drafts = tuple(drafts)
        self._unnamed: tuple[Layer, ...] = ()
        self.discarded = False

    async def restore(self) -> None:
        """Count what the drafts hold. :raises StorageFailed:"""
        places = {disk.target: place for place, disk in enumerate(self.request.disks)}
        for layer in self._drafts:
            digests = sorted((await self._folder.layer_digests(layer)).items())
            for start in range(0, len(digests), _BITE_CLUSTERS):
                # A segment holds half a million clusters: keepalives must come between.
                bite = dict(digests[start : start + _BITE_CLUSTERS])
                self.tally.restore(places[layer.target], bite)
                await others_first()
        frames = max((x.draft.frames for x in self._drafts if x.draft is not None), default=0)
        self.tally.frames = self.durable_frames = frames

    async def append(self, frame: Frame) -> None:
        """Check and store one frame. :raises Problem: nothing of the frame is kept.

        :raises StorageFailed: the parts are useless; ``discard`` them.
        """
        self.tally.check(frame)
        async with self._turn:
            writer = self._writers.get(frame.disk)
            if writer is None:
                disk = self.request.disks[frame.disk]
                key = PartKey(self.request.cycle_id, disk, self.request.epoch)
                writer = await self._folder.open_layer(key, resume=False)
                self._writers[frame.disk] = writer
            await writer.append(frame)
            self.tally.take(frame)
            self.payload_bytes += len(frame.payload)
            self._dirty.add(frame.disk)

    async def sync(self) -> None:
        """Make what was appended before this call durable. :raises StorageFailed:"""
        async with self._turn:
            frames, dirty = self.tally.frames, sorted(self._dirty)
            self._dirty.clear()
            writers = [self._writers[place] for place in dirty if place in self._writers]
            await _all_of([writer.sync() for writer in writers])
            self.durable_frames = max(self.durable_frames, frames)

    @property
    def segment_is_full(self) -> bool:
        """Whether a part has grown beyond one segment."""
        return any(w.bytes_written > self._segment_bytes for w in self._writers.values())

    @property
    def has_parts(self) -> bool:
        """Whether anything is held that no manifest names yet."""
        return bool(self._writers) or bool(self._unnamed)

    async def seal(self) -> tuple[Layer, ...]:
        """Seal every open part, all disks at this frame number.

        :returns: every sealed layer that no manifest names yet. A commit may be refused before
            anything is written (the deadline has passed): the next one must still name them.
        :raises StorageFailed:
        """
        seq = self.request.seq
        async with self._turn:
            writers = [self._writers[place] for place in sorted(self._writers)]
            sealed = await _all_of([writer.seal(seq, seq) for writer in writers])
            self._writers.clear()
            self._dirty.clear()
            self.durable_frames = self.tally.frames
            self._unnamed += tuple(x.layer for x in sealed if x.layer is not None)
        return self._unnamed

    def named(self) -> None:
        """What ``seal`` returned is in a committed manifest."""
        self._unnamed = ()

    async def discard(self) -> None:
        """Forget everything that no manifest names. Idempotent."""
        self.discarded = True
        self._unnamed = ()
        async with self._turn:
            writers = list(self._writers.values())
            self._writers.clear()
            self._dirty.clear()
            for writer in writers:
                await writer.discard()


async def _all_of(steps: Sequence[Awaitable[T]]) -> list[T]:
    """Run steps together; wait for all of them before the first failure is raised."""
    done = await asyncio.gather(*steps, return_exceptions=True)
    results = []
    for result in done:
        if isinstance(result, BaseException):
            raise result
        results.append(result)
    return results
