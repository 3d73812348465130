"""Merging by copying: the clusters shown, packed one behind the other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import numpy as np

from node.disk.files import Piece
from node.disk.layer_writer import DATA_START
from node.disk.merge_parts import MergeParts
from node.disk.overlay_rows import NO_ROW
from node.disk.qcow2 import COPIED, ZERO_ENTRY, compressed_entry, entry_offsets
from vmreplica.core.cycle import CLUSTER_BYTES

_BATCH_BYTES = 1 << 20
_BATCH_CLUSTERS = 4_096


async def copy_clusters(parts: MergeParts) -> int:
    """Write all clusters into the new file; returns where they end."""
    end = DATA_START
    start = 0
    sizes = parts.records["stored"].astype(np.int64)
    ends = np.cumsum(sizes)
    while start < len(sizes):
        done = int(ends[start - 1]) if start else 0
        stop = int(np.searchsorted(ends, done + _BATCH_BYTES, side="right"))
        stop = min(max(stop, start + 1), start + _BATCH_CLUSTERS)
        end = await _copy_batch(parts, start, stop, end)
        start = stop
    return end


async def _copy_batch(parts: MergeParts, start: int, stop: int, end: int) -> int:
    """Compressed clusters first, then plain ones, as the writer does."""
    places = range(start, stop)
    visible = parts.visible
    contents = await _read(parts, start, stop)
    for place in places:
        if visible.keep[place] < CLUSTER_BYTES and visible.row[place] != NO_ROW:
            contents[place - start] = parts.cut(place, contents[place - start])
    pieces: list[Piece] = []
    raw: list[int] = []
    parts.records["entry"][start:stop] = ZERO_ENTRY
    for place in places:
        length = len(contents[place - start])
        if length == CLUSTER_BYTES:
            raw.append(place)
        elif length:
            parts.records["entry"][place] = compressed_entry(end, length)
            pieces.append(Piece(end, contents[place - start]))
            end += length
    if raw:
        end = -(-end // CLUSTER_BYTES) * CLUSTER_BYTES
    for place in raw:
        parts.records["entry"][place] = end | COPIED
        pieces.append(Piece(end, contents[place - start]))
        end += CLUSTER_BYTES
    if pieces:
        await parts.output.pwrite(pieces)
    return end


async def _read(parts: MergeParts, start: int, stop: int) -> list[bytes]:
    """Stored bytes of the batch; neighbours in a file are read together."""
    contents = [b""] * (stop - start)
    visible, sizes = parts.visible, parts.records["stored"][start:stop]
    for number, reader in enumerate(parts.readers):
        here = np.flatnonzero((visible.layer[start:stop] == number) & (sizes > 0))
        rows = visible.row[start:stop][here]
        offsets = entry_offsets(reader.records["entry"][rows].astype(np.uint64))
        await _read_runs(
            reader.read_at,
            list(zip(offsets.tolist(), sizes[here].tolist(), here.tolist(), strict=True)),
            contents,
        )
    return contents


async def _read_runs(
    read: Callable[[int, int], Awaitable[bytes]],
    wanted: list[tuple[int, int, int]],
    contents: list[bytes],
) -> None:
    wanted.sort()
    position = 0
    while position < len(wanted):
        first = end = wanted[position][0]
        run = position
        while run < len(wanted) and wanted[run][0] == end:
            end += wanted[run][1]
            run += 1
        data = await read(end - first, first)
        for offset, length, place in wanted[position:run]:
            contents[place] = data[offset - first : offset - first + length]
        position = run
