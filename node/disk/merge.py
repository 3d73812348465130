"""Merges adjacent layers of one disk into one new file; the old ones are only read.

Stored clusters are copied as they are, with their digests; nothing is decompressed but a cluster
that a shrunk disk's end once cut. The output is read back and checked before it gets its name.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Protocol, cast

import numpy as np
import zstandard

from node.disk.files import Files, OpenFile, Piece
from node.disk.layer_format import RECORD, Records
from node.disk.layer_reader import LayerDamaged, LayerReader, plain_bytes
from node.disk.layer_writer import DATA_START, finish_layer
from node.disk.names import INCOMING, LAYERS
from node.disk.overlay_rows import NO_ROW, Shown, shown
from node.disk.qcow2 import COPIED, ZERO_ENTRY, compressed_entry, entry_offsets
from vmreplica.core.cycle import (
    CLUSTER_BYTES,
    EMPTY_DIGEST,
    ZERO_CLUSTER_DIGEST,
    digest,
)
from vmreplica.core.manifest import Layer

_BATCH_BYTES = 1 << 20
_BATCH_CLUSTERS = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeRequest:
    """``layers`` oldest first; ``part`` and ``name`` are fresh and relative to ``folder``."""

    folder: str
    layers: tuple[Layer, ...]
    size_bytes: int
    part: str
    name: str
    bottom: bool = False


class Merger(Protocol):
    """Whoever carries out merges: a child process, or this one."""

    async def merge(self, request: MergeRequest) -> Layer:
        """:raises LayerDamaged, StorageFailed:"""
        ...


class InlineMerger:
    """Merges in the calling process: simulation, tests, and inside the child process."""

    def __init__(self, files: Files) -> None:
        self._files = files

    async def merge(self, request: MergeRequest) -> Layer:
        """Read, write, check, name."""
        return await merge_layers(self._files, request)


async def merge_layers(files: Files, request: MergeRequest) -> Layer:
    """Carry out one merge; on any error only an unnamed part is left behind."""
    async with AsyncExitStack() as stack:
        readers = [
            await _opened(stack, files, f"{request.folder}/{layer.file}")
            for layer in request.layers
        ]
        visible = shown(
            [reader.records for reader in readers],
            [reader.trailer.size_bytes for reader in readers],
            request.size_bytes,
            bottom=request.bottom,
        )
        part = f"{request.folder}/{request.part}"
        await files.make_directory(f"{request.folder}/{INCOMING}")
        await files.make_directory(part.rpartition("/")[0])
        output = await files.create(part)
        stack.push_async_callback(output.close)
        length = await _Copy(files, readers, visible, output).run(request)
    await _check_output(files, part)
    await files.set_read_only(part)
    await files.rename(part, f"{request.folder}/{request.name}")
    await files.sync_directory(f"{request.folder}/{LAYERS}")
    first, last = request.layers[0], request.layers[-1]
    return replace(
        last,
        file=request.name,
        from_seq=first.from_seq,
        size_bytes=request.size_bytes,
        bytes=length,
    )


async def _opened(stack: AsyncExitStack, files: Files, path: str) -> LayerReader:
    reader = await LayerReader.open(files, path)
    stack.push_async_callback(reader.close)
    return reader


async def _check_output(files: Files, part: str) -> None:
    reader = await LayerReader.open(files, part)
    try:
        await reader.check_tables()
        damaged = await reader.damaged_clusters(plain=False)
    finally:
        await reader.close()
    if damaged:
        # The digests were carried over: one of the inputs is damaged there.
        raise LayerDamaged(f"{part}: {len(damaged)} clusters read from the layers are damaged")


@dataclass(slots=True)
class _Copy:
    """The output while it is written."""

    files: Files
    readers: Sequence[LayerReader]
    visible: Shown
    output: OpenFile
    records: Records = field(init=False)
    end: int = DATA_START

    async def run(self, request: MergeRequest) -> int:
        """Write everything; returns the file's length."""
        self.records = cast(Records, np.zeros(len(self.visible.index), dtype=RECORD))
        self._carry_over()
        start = 0
        sizes = self.records["stored"].astype(np.int64)
        ends = np.cumsum(sizes)
        while start < len(sizes):
            done = int(ends[start - 1]) if start else 0
            stop = int(np.searchsorted(ends, done + _BATCH_BYTES, side="right"))
            stop = min(max(stop, start + 1), start + _BATCH_CLUSTERS)
            await self._copy_batch(start, stop)
            start = stop
        first, last = request.layers[0].from_seq, request.layers[-1].to_seq
        pieces, length = await self.files.offload(
            finish_layer, self.records, request.size_bytes, first, last, self.end
        )
        await self.output.pwrite(pieces)
        await self.output.fdatasync()
        return length

    def _carry_over(self) -> None:
        visible, records = self.visible, self.records
        for number, reader in enumerate(self.readers):
            here = np.flatnonzero((visible.layer == number) & (visible.row != NO_ROW))
            records[here] = reader.records[visible.row[here]]
        records["index"] = visible.index
        hidden = visible.row == NO_ROW
        records["stored"][hidden] = 0
        records["plain"][hidden] = np.void(ZERO_CLUSTER_DIGEST)
        records["stored_digest"][hidden] = np.void(EMPTY_DIGEST)

    async def _copy_batch(self, start: int, stop: int) -> None:
        """Compressed clusters first, then plain ones, as the writer does."""
        places = range(start, stop)
        contents = await self._read(start, stop)
        for place in places:
            if self.visible.keep[place] < CLUSTER_BYTES and self.visible.row[place] != NO_ROW:
                contents[place - start] = self._cut(place, contents[place - start])
        pieces: list[Piece] = []
        raw: list[int] = []
        self.records["entry"][start:stop] = ZERO_ENTRY
        for place in places:
            length = len(contents[place - start])
            if length == CLUSTER_BYTES:
                raw.append(place)
            elif length:
                self.records["entry"][place] = compressed_entry(self.end, length)
                pieces.append(Piece(self.end, contents[place - start]))
                self.end += length
        if raw:
            self.end = -(-self.end // CLUSTER_BYTES) * CLUSTER_BYTES
        for place in raw:
            self.records["entry"][place] = self.end | COPIED
            pieces.append(Piece(self.end, contents[place - start]))
            self.end += CLUSTER_BYTES
        if pieces:
            await self.output.pwrite(pieces)

    async def _read(self, start: int, stop: int) -> list[bytes]:
        """Stored bytes of the batch; neighbours in a file are read together."""
        contents = [b""] * (stop - start)
        for number, reader in enumerate(self.readers):
            mine = (self.visible.layer[start:stop] == number) & (
                self.records["stored"][start:stop] > 0
            )
            here = np.flatnonzero(mine)
            rows = self.visible.row[start:stop][here]
            offsets = entry_offsets(reader.records["entry"][rows].astype(np.uint64))
            await _read_runs(
                reader.read_at,
                [
                    (int(offset), int(length), int(place))
                    for offset, length, place in zip(
                        offsets, self.records["stored"][start:stop][here], here, strict=True
                    )
                ],
                contents,
            )
        return contents

    def _cut(self, place: int, content: bytes) -> bytes:
        """A cluster whose end a smaller disk once cut off: plain, with zeros behind."""
        if not content:
            return content
        whole = plain_bytes(content, zstandard.ZstdDecompressor())
        cut = whole[: int(self.visible.keep[place])].ljust(CLUSTER_BYTES, b"\0")
        record = self.records[place]
        record["plain"] = record["stored_digest"] = np.void(digest(cut))
        record["stored"] = CLUSTER_BYTES
        return cut


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
