"""Reads a sealed layer back and finds every damage in it: a flipped bit, a cut, an exchange."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import zstandard

from node.disk.files import CloneRange, Files, OpenFile
from node.disk.layer_format import (
    RECORD_BYTES,
    TRAILER_BYTES,
    DigestMap,
    Records,
    Trailer,
    parse_records,
    parse_trailer,
)
from node.disk.qcow2 import entry_offset, entry_offsets, layer_tables
from vmreplica.core.cycle import CLUSTER_BYTES, digest
from vmreplica.ports.replica_store import StorageFailed

_READ_BYTES = 1 << 20


class LayerDamaged(StorageFailed):
    """A layer does not read back as it was written."""


@dataclass(slots=True)
class LayerReader:
    """One open layer. Close it."""

    path: str
    trailer: Trailer
    records: Records
    _files: Files
    _file: OpenFile
    _rows: dict[int, int] | None = field(default=None)

    @classmethod
    async def open(cls, files: Files, path: str) -> LayerReader:
        """Read trailer and records. :raises LayerDamaged, StorageFailed:"""
        try:
            file = await files.open(path)
        except FileNotFoundError as error:
            raise LayerDamaged(f"{path} is missing") from error
        try:
            length = await file.length()
            if length < TRAILER_BYTES + CLUSTER_BYTES:
                raise LayerDamaged(f"{path} is cut short: {length} bytes")
            try:
                trailer = parse_trailer(await file.pread(TRAILER_BYTES, length - TRAILER_BYTES))
            except ValueError as error:
                raise LayerDamaged(f"{path}: {error}") from error
            start = trailer.counted_end
            if start + trailer.count * RECORD_BYTES + TRAILER_BYTES != length:
                raise LayerDamaged(f"{path} has {length} bytes, which its trailer contradicts")
            listed = await file.pread(trailer.count * RECORD_BYTES, start)
            if await files.offload(digest, listed) != trailer.records_digest:
                raise LayerDamaged(f"{path}: the cluster list does not agree with its digest")
        except BaseException:
            await file.close()
            raise
        return cls(path, trailer, parse_records(listed), files, file)

    async def close(self) -> None:
        """Give the file back."""
        await self._file.close()

    def digests(self) -> DigestMap:
        """Plain digest by cluster index."""
        return DigestMap.of(self.records)

    async def check_tables(self) -> None:
        """Compare header and tables with what the cluster list says. :raises LayerDamaged:"""
        trailer = self.trailer
        tables = await self._files.offload(
            layer_tables,
            trailer.size_bytes,
            self.records["index"].astype(np.uint64),
            self.records["entry"].astype(np.uint64),
            trailer.data_end,
        )
        if tables.counted_end != trailer.counted_end:
            raise LayerDamaged(f"{self.path}: the trailer and the cluster list do not agree")
        start = -(-trailer.data_end // CLUSTER_BYTES) * CLUSTER_BYTES
        await self._check_span(0, tables.header.ljust(CLUSTER_BYTES, b"\0"))
        for piece in tables.pieces:
            await self._check_zeros(start, piece.offset)
            await self._check_span(piece.offset, bytes(piece.data))
            start = piece.offset + len(piece.data)
        await self._check_zeros(start, trailer.counted_end)

    async def _check_span(self, offset: int, wanted: bytes) -> None:
        if await self._file.pread(len(wanted), offset) != wanted:
            raise LayerDamaged(f"{self.path}: header or tables at byte {offset} are damaged")

    async def _check_zeros(self, start: int, end: int) -> None:
        while start < end:
            length = min(end - start, _READ_BYTES)
            await self._check_span(start, bytes(length))
            start += length

    async def stored(self, row: int) -> bytes:
        """The stored bytes of one record, not checked."""
        record = self.records[row]
        length = int(record["stored"])
        if length == 0:
            return b""
        return await self._file.pread(length, entry_offset(int(record["entry"])))

    async def read_at(self, length: int, offset: int) -> bytes:
        """Bytes of the file, not checked."""
        return await self._file.pread(length, offset)

    async def clone_into(self, target: OpenFile, ranges: Sequence[CloneRange]) -> bool:
        """Let another file share blocks of this one; False: refused. :raises StorageFailed:"""
        return await target.clone(self._file, ranges)

    async def damaged_clusters(
        self, *, plain: bool, rows: Sequence[int] | None = None
    ) -> tuple[int, ...]:
        """Cluster indexes whose stored bytes (with ``plain``: or content) lost their digest.

        :param rows: only these records (None: all).
        """
        damaged: list[int] = []
        wanted = np.arange(len(self.records)) if rows is None else np.array(rows, dtype=np.intp)
        offsets = entry_offsets(self.records["entry"][wanted].astype(np.uint64))
        batch: list[int] = []
        size = 0
        for row in wanted[np.argsort(offsets, kind="stable")].tolist():
            batch.append(row)
            size += int(self.records["stored"][row])
            if size >= _READ_BYTES or len(batch) >= 1_024:
                damaged += await self._damaged_in(batch, plain)
                batch, size = [], 0
        damaged += await self._damaged_in(batch, plain)
        return tuple(sorted(damaged))

    async def _damaged_in(self, rows: list[int], plain: bool) -> list[int]:
        contents = [await self.stored(row) for row in rows]
        return await self._files.offload(self._faulty, rows, contents, plain)

    def _faulty(self, rows: list[int], contents: list[bytes], plain: bool) -> list[int]:
        decompressor = zstandard.ZstdDecompressor()
        faulty = []
        for row, content in zip(rows, contents, strict=True):
            record = self.records[row]
            sound = digest(content) == bytes(record["stored_digest"])
            if sound and plain and content:
                try:
                    whole = plain_bytes(content, decompressor)
                    sound = digest(whole) == bytes(record["plain"])
                except zstandard.ZstdError:
                    sound = False
            if not sound:
                faulty.append(int(record["index"]))
        return faulty

    async def cluster(self, index: int) -> bytes | None:
        """The 65,536 plain bytes of a cluster, checked; None: not in this layer."""
        if self._rows is None:
            self._rows = {x: row for row, x in enumerate(self.records["index"].tolist())}
        row = self._rows.get(index)
        if row is None:
            return None
        content = await self.stored(row)
        if self._faulty([row], [content], plain=True):
            raise LayerDamaged(f"{self.path}: cluster {index} is damaged")
        return (
            plain_bytes(content, zstandard.ZstdDecompressor()) if content else bytes(CLUSTER_BYTES)
        )


def plain_bytes(content: bytes, decompressor: zstandard.ZstdDecompressor) -> bytes:
    """The content of one stored cluster that is not a zero cluster."""
    if len(content) == CLUSTER_BYTES:
        return content
    return decompressor.decompress(content, max_output_size=CLUSTER_BYTES)
