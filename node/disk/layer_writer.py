"""Writes one immutable qcow2 layer, append-only: clusters as they come, tables and header last.

A frame of the wire enters unchanged: a zstd frame becomes a compressed cluster, a raw cluster a
plain one, a zero cluster only an entry. Inside one frame the compressed clusters go first, so that
plain ones, which qcow2 wants aligned, leave at most one gap (a hole) a frame.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from node.disk.files import Files, OpenFile, Piece
from node.disk.frame_check import SeenClusters, check_frame
from node.disk.layer_format import (
    DigestMap,
    Records,
    Trailer,
    no_records,
    parse_records,
    render_trailer,
)
from node.disk.names import INCOMING, LAYERS, FileNames
from node.disk.part_index import (
    HEADER_BYTES,
    PartFrame,
    entry_bytes,
    render_frames,
    render_header,
)
from node.disk.qcow2 import COPIED, ZERO_ENTRY, compressed_entry, layer_tables
from vmreplica.core.cycle import CLUSTER_BYTES, Disk, Frame, digest
from vmreplica.core.manifest import Layer
from vmreplica.ports.replica_store import PartKey, SealedLayer, StorageFailed

FLUSH_BYTES = 1 << 20
SMALL_BYTES = 2 * CLUSTER_BYTES
SMALL_CLUSTERS = 64

DATA_START = CLUSTER_BYTES
"""The first cluster is the header's."""

NO_NUMBER = -1
"""A frame appended without its number makes the part one that cannot be resumed."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A frame's clusters with their places in the file."""

    pieces: tuple[Piece, ...]
    records: Records
    end: int


def place_frame(frame: Frame, position: int) -> Placed:
    """Give every cluster of a checked frame its place from ``position`` on."""
    count = len(frame.indexes)
    records = np.zeros(count, dtype=no_records().dtype)
    records["index"] = frame.indexes
    records["stored"] = frame.stored_bytes
    records["plain"] = np.frombuffer(frame.digests, dtype="V16")
    records["stored_digest"] = np.frombuffer(frame.stored_digests, dtype="V16")
    entries = np.full(count, ZERO_ENTRY, dtype=np.uint64)
    payload = memoryview(frame.payload)
    pieces: list[Piece] = []
    raw: list[tuple[int, memoryview]] = []
    start = 0
    for place, stored in enumerate(frame.stored_bytes):
        data = payload[start : start + stored]
        start += stored
        if stored == CLUSTER_BYTES:
            raw.append((place, data))
        elif stored:
            entries[place] = compressed_entry(position, stored)
            pieces.append(Piece(position, data))
            position += stored
    if raw:
        position = -(-position // CLUSTER_BYTES) * CLUSTER_BYTES
    for place, data in raw:
        entries[place] = position | COPIED
        pieces.append(Piece(position, data))
        position += CLUSTER_BYTES
    records["entry"] = entries
    return Placed(tuple(pieces), records, position)


def finish_layer(
    records: Records, size_bytes: int, from_seq: int, to_seq: int, data_end: int
) -> tuple[list[Piece], int]:
    """Everything a layer file still lacks when its clusters are in; and how many bytes that is."""
    tables = layer_tables(
        size_bytes,
        records["index"].astype(np.uint64),
        records["entry"].astype(np.uint64),
        data_end,
    )
    listed = records.tobytes()
    trailer = render_trailer(
        Trailer(
            from_seq,
            to_seq,
            size_bytes,
            data_end,
            tables.counted_end,
            len(records),
            digest(listed),
        )
    )
    tail = Piece(tables.counted_end, listed + trailer)
    pieces = [*tables.pieces, tail, Piece(0, tables.header)]
    return pieces, sum(len(piece.data) for piece in pieces)


class DiskLayerWriter:
    """Implements ports.replica_store.LayerWriter. One task at a time uses it."""

    def __init__(
        self,
        files: Files,
        folder: str,
        names: FileNames,
        key: PartKey,
        *,
        verify_plain: Callable[[], bool],
        made: set[str],
    ) -> None:
        self._files = files
        self._folder = folder
        self._names = names
        self._key = key
        self._verify_plain = verify_plain
        self._made = made
        self._part = names.part()
        self._file: OpenFile | None = None
        self._index: OpenFile | None = None
        self._index_end = HEADER_BYTES
        self._seen = SeenClusters(key.disk)
        self._records = bytearray()
        self._unsynced: list[PartFrame] = []
        self._pending: list[Piece] = []
        self._pending_bytes = 0
        self._end = DATA_START
        self._writing: asyncio.Future[None] | None = None
        self._resumable = True
        self._broken = False
        self._done = False

    # ---- reading ----

    @property
    def disk(self) -> Disk:
        """The disk whose clusters come here."""
        return self._key.disk

    @property
    def clusters(self) -> int:
        """Clusters appended so far."""
        return len(self._records) // no_records().dtype.itemsize

    @property
    def bytes_written(self) -> int:
        """Length of the part so far, the header's cluster not counted."""
        return self._end - DATA_START

    def digests(self) -> Mapping[int, bytes]:
        """Plain digest by cluster index."""
        return DigestMap.of(parse_records(bytes(self._records)))

    # ---- writing ----

    def continue_part(
        self, part: str, file: OpenFile, index: OpenFile, frames: list[PartFrame]
    ) -> None:
        """Go on behind the durable ``frames`` of an earlier writer's part."""
        self._part, self._file, self._index = part, file, index
        for frame in frames:
            self._records += frame.records
            self._index_end += entry_bytes(frame)
            self._end = frame.end
        for cluster in parse_records(bytes(self._records))["index"].tolist():
            self._seen.add(cluster)

    async def append(self, frame: Frame, number: int = NO_NUMBER) -> None:
        """Check the frame and take it in; see the port."""
        self._usable()
        if len(frame.payload) <= SMALL_BYTES and len(frame.indexes) <= SMALL_CLUSTERS:
            # Faster than the way to a thread and back.
            placed = self._check_and_place(frame)
        else:
            placed = await self._files.offload(self._check_and_place, frame)
        for index in frame.indexes:
            self._seen.add(index)
        records = placed.records.tobytes()
        self._records += records
        self._end = placed.end
        self._resumable = self._resumable and number != NO_NUMBER
        if self._resumable:
            self._unsynced.append(PartFrame(number, placed.end, records))
        self._pending += placed.pieces
        self._pending_bytes += len(frame.payload)
        if self._pending_bytes >= FLUSH_BYTES:
            await self._flush()

    def _check_and_place(self, frame: Frame) -> Placed:
        check_frame(frame, self._key.disk, self._seen, verify_plain=self._verify_plain())
        return place_frame(frame, self._end)

    async def sync(self) -> None:
        """fdatasync of the part, then its frame list; nothing to do where nothing came."""
        self._usable()
        if self._file is None and not self._records:
            return
        try:
            await (await self._write_out()).fdatasync()
            if self._resumable and self._unsynced:
                await self._sync_index()
        except BaseException:
            self._broken = True
            raise

    async def seal(self, from_seq: int, to_seq: int) -> SealedLayer:
        """Finish the file and give it its name under layers/; see the port."""
        self._usable()
        if not self._records:
            await self.discard()
            return SealedLayer(None, 0)
        records = parse_records(bytes(self._records))
        disk = self._key.disk
        try:
            asked = (records, disk.size_bytes, from_seq, to_seq, self._end)
            if len(records) <= SMALL_CLUSTERS:
                pieces, added = finish_layer(*asked)
            else:
                pieces, added = await self._files.offload(finish_layer, *asked)
            self._pending += pieces
            file = await self._write_out()
            await file.fdatasync()
            await file.close()
            # From now on nobody may continue the part: it is about to become a layer.
            if await self._drop_index():
                await self._files.sync_directory(f"{self._folder}/{self._names.incoming()}")
            await self._files.set_read_only(f"{self._folder}/{self._part}")
            name = self._names.layer(disk.target, from_seq, to_seq)
            await self._files.rename(f"{self._folder}/{self._part}", f"{self._folder}/{name}")
            await self._files.sync_directory(f"{self._folder}/{LAYERS}")
        except BaseException:
            self._broken = True
            raise
        self._done = True
        layer = Layer(
            file=name,
            target=disk.target,
            from_seq=from_seq,
            to_seq=to_seq,
            size_bytes=disk.size_bytes,
            bytes=int(records["stored"].sum(dtype=np.int64)) + added,
        )
        return SealedLayer(layer, len(records))

    async def discard(self) -> None:
        """Unlink the part. Idempotent; a sealed layer is no part any more."""
        if self._done:
            return
        self._done = True
        if self._writing is not None:
            await asyncio.wait([self._writing])
        if self._file is not None:
            await self._file.close()
            await self._drop_index()
            await self._files.unlink(f"{self._folder}/{self._part}")

    # ---- inside ----

    def _usable(self) -> None:
        if self._done or self._broken:
            state = "sealed or discarded" if self._done else "left in an unknown state by an error"
            raise StorageFailed(f"{self._folder}/{self._part} was {state}")

    async def _flush(self) -> None:
        """Hand what is pending to the file; the next frame is checked while it goes down."""
        await self._settle()
        pieces, self._pending, self._pending_bytes = self._pending, [], 0
        try:
            if self._file is None:
                await self._make_directory()
                self._file = await self._files.create(f"{self._folder}/{self._part}")
        except BaseException:
            self._broken = True
            raise
        if pieces:
            self._writing = asyncio.ensure_future(self._file.pwrite(pieces))
            # Its error is raised by whoever settles it; nobody may be left to after a cut.
            self._writing.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _make_directory(self) -> None:
        directory = self._names.incoming()
        if directory not in self._made:
            await self._files.make_directory(f"{self._folder}/{directory}")
            self._made.add(directory)

    async def _settle(self) -> None:
        """Wait for the write on its way."""
        if self._writing is None:
            return
        try:
            await asyncio.shield(self._writing)
        except BaseException:
            # A short or refused write: what the part holds behind the last sync is not known.
            self._broken = True
            raise
        self._writing = None

    async def _write_out(self) -> OpenFile:
        """Everything appended so far is in the file (not yet durable)."""
        await self._flush()
        await self._settle()
        assert self._file is not None
        return self._file

    async def _sync_index(self) -> None:
        pieces = [Piece(self._index_end, render_frames(self._unsynced))]
        if self._index is None:
            self._index = await self._files.create(f"{self._folder}/{index_name(self._part)}")
            pieces.insert(0, Piece(0, render_header(self._key)))
        await self._index.pwrite(pieces)
        await self._index.fdatasync()
        if self._index_end == HEADER_BYTES:
            await self._files.sync_directory(f"{self._folder}/{self._names.incoming()}")
            await self._files.sync_directory(f"{self._folder}/{INCOMING}")
        self._index_end += len(pieces[-1].data)
        self._unsynced = []

    async def _drop_index(self) -> bool:
        if self._index is None:
            return False
        await self._index.close()
        return await self._files.unlink(f"{self._folder}/{index_name(self._part)}")


def index_name(part: str) -> str:
    """The side file of a part."""
    return part.removesuffix(".part") + ".frames"
