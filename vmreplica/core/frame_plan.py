"""Which clusters each frame of a cycle carries: a pure function of the extents of the point.

Frames go disk by disk, by rising cluster index, each of one disk, at most 16 data clusters (1 MiB)
and at most 1,024 clusters in all. The same extents give the same frames, so that a cycle that was
cut is resent exactly; rising indexes let the cycle's digest be computed while sending.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vmreplica.core.cycle import CLUSTER_BYTES, MAX_FRAME_CLUSTERS, MAX_FRAME_PAYLOAD_BYTES
from vmreplica.core.extents import ClusterRun

DATA_CLUSTERS_PER_FRAME = MAX_FRAME_PAYLOAD_BYTES // CLUSTER_BYTES
_MARK_EVERY = 256


@dataclass(frozen=True, slots=True)
class FrameSpec:
    """What frame ``number`` carries; ``runs`` rise and do not touch clusters of other frames."""

    number: int
    disk: int
    runs: tuple[ClusterRun, ...]

    @property
    def indexes(self) -> tuple[int, ...]:
        """Every cluster of the frame, rising."""
        return tuple(index for run in self.runs for index in range(run.first, run.end))


@dataclass(frozen=True, slots=True)
class _Mark:
    """Where frame ``number`` begins, so that a resume need not count from the start."""

    number: int
    disk: int
    run: int
    offset: int


class FramePlan:
    """All frames of one cycle. ``disks[i]`` are the runs of disk i in the order of the open."""

    def __init__(self, disks: Sequence[Sequence[ClusterRun]]) -> None:
        self._disks = tuple(tuple(runs) for runs in disks)
        self.clusters = tuple(sum(run.count for run in runs) for runs in self._disks)
        self.data_clusters = sum(run.count for runs in self._disks for run in runs if not run.zero)
        self._marks: list[_Mark] = []
        self.frame_count = self._count()

    @property
    def total_bytes(self) -> int:
        """Plain bytes of the data clusters."""
        return self.data_clusters * CLUSTER_BYTES

    def frames(self, first: int = 0) -> Iterator[FrameSpec]:
        """Frames ``first``, ``first`` + 1, … to the end."""
        if first >= self.frame_count:
            return
        mark = self._marks[bisect_right(self._marks, first, key=lambda m: m.number) - 1]
        for spec, _ in self._walk(mark):
            if spec.number >= first:
                yield spec

    def _count(self) -> int:
        count = 0
        for spec, mark in self._walk(_Mark(0, 0, 0, 0)):
            if spec.number % _MARK_EVERY == 0:
                self._marks.append(mark)
            count = spec.number + 1
        return count

    def _walk(self, mark: _Mark) -> Iterator[tuple[FrameSpec, _Mark]]:
        number, run_index, offset = mark.number, mark.run, mark.offset
        for disk in range(mark.disk, len(self._disks)):
            runs = self._disks[disk]
            while run_index < len(runs):
                begin = _Mark(number, disk, run_index, offset)
                taken, run_index, offset = _take(runs, run_index, offset)
                yield FrameSpec(number, disk, taken), begin
                number += 1
            run_index = offset = 0


def _take(
    runs: tuple[ClusterRun, ...], index: int, offset: int
) -> tuple[tuple[ClusterRun, ...], int, int]:
    taken: list[ClusterRun] = []
    data_left, all_left = DATA_CLUSTERS_PER_FRAME, MAX_FRAME_CLUSTERS
    while index < len(runs) and all_left:
        run = runs[index]
        count = min(run.count - offset, all_left)
        if not run.zero:
            count = min(count, data_left)
            data_left -= count
        if count == 0:
            break
        taken.append(ClusterRun(run.first + offset, count, run.zero))
        all_left -= count
        offset += count
        if offset == run.count:
            index, offset = index + 1, 0
    return tuple(taken), index, offset
