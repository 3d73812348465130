"""Extents of a disk in bytes, and runs of whole clusters made from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vmreplica.core.cycle import CLUSTER_BYTES


@dataclass(frozen=True, slots=True)
class Extent:
    """``zero``: known to read as zeros without reading it."""

    offset: int
    length: int
    zero: bool = False

    @property
    def end(self) -> int:
        """First byte behind it."""
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class ClusterRun:
    """``count`` clusters from ``first`` on, all data or all known zeros."""

    first: int
    count: int
    zero: bool = False

    @property
    def end(self) -> int:
        """First cluster behind it."""
        return self.first + self.count


def cluster_runs(
    extents: Iterable[Extent], size_bytes: int, *, keep_zeros: bool
) -> tuple[ClusterRun, ...]:
    """Runs of clusters that cover ``extents``, rounded outward, rising and without overlap.

    A cluster is zero only if zero extents cover all of it (up to the end of the disk); touched
    by any data it is data. With ``keep_zeros`` false (a full cycle, where what is not sent reads
    as zero) zero clusters are left out.

    :param extents: rising by offset, not overlapping.
    """
    data: list[tuple[int, int]] = []
    zeros: list[tuple[int, int]] = []
    for extent in extents:
        if extent.length <= 0:
            continue
        target = zeros if extent.zero else data
        if target and target[-1][1] == extent.offset:
            target[-1] = (target[-1][0], extent.end)
        else:
            target.append((extent.offset, extent.end))
    runs = _data_runs(data, size_bytes)
    if keep_zeros:
        # A zero extent that ends inside a cluster cannot stand for it: that cluster is read.
        whole, ragged = _zero_runs(zeros, size_bytes)
        runs = _merge(runs, ragged)
        runs = _overlay(runs, whole)
    return tuple(runs)


def _data_runs(ranges: list[tuple[int, int]], size_bytes: int) -> list[ClusterRun]:
    runs: list[ClusterRun] = []
    limit = -(-size_bytes // CLUSTER_BYTES)
    for start, end in ranges:
        first, last = start // CLUSTER_BYTES, min(limit, -(-end // CLUSTER_BYTES))
        if runs and first <= runs[-1].end:
            last = max(last, runs[-1].end)
            runs[-1] = ClusterRun(runs[-1].first, last - runs[-1].first)
        elif last > first:
            runs.append(ClusterRun(first, last - first))
    return runs


def _zero_runs(
    ranges: list[tuple[int, int]], size_bytes: int
) -> tuple[list[ClusterRun], list[ClusterRun]]:
    whole: list[ClusterRun] = []
    ragged: list[ClusterRun] = []
    limit = -(-size_bytes // CLUSTER_BYTES)
    for start, end in ranges:
        first = -(-start // CLUSTER_BYTES)
        last = limit if end >= size_bytes else end // CLUSTER_BYTES
        if first < last:
            whole.append(ClusterRun(first, last - first, zero=True))
        edges = {start // CLUSTER_BYTES, (end - 1) // CLUSTER_BYTES}
        ragged.extend(
            ClusterRun(edge, 1) for edge in edges if not first <= edge < last and edge < limit
        )
    return whole, sorted(ragged, key=lambda run: run.first)


def _merge(left: list[ClusterRun], right: list[ClusterRun]) -> list[ClusterRun]:
    merged: list[ClusterRun] = []
    for run in sorted((*left, *right), key=lambda r: r.first):
        if merged and run.first <= merged[-1].end:
            end = max(run.end, merged[-1].end)
            merged[-1] = ClusterRun(merged[-1].first, end - merged[-1].first)
        else:
            merged.append(run)
    return merged


def _overlay(data: list[ClusterRun], zeros: list[ClusterRun]) -> list[ClusterRun]:
    """Data wins where both claim a cluster."""
    result = list(data)
    position = 0
    for zero in zeros:
        first = zero.first
        while position < len(data) and data[position].end <= first:
            position += 1
        scan = position
        while first < zero.end:
            if scan < len(data) and data[scan].first < zero.end:
                if data[scan].first > first:
                    result.append(ClusterRun(first, data[scan].first - first, zero=True))
                first = max(first, data[scan].end)
                scan += 1
            else:
                result.append(ClusterRun(first, zero.end - first, zero=True))
                first = zero.end
    return sorted(result, key=lambda run: run.first)
