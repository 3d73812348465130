"""The qcow2 format (version 3, 64 KiB clusters) as far as layers and overlays need it.

Pure formatting: bytes in, bytes out. Layers are written data first and tables last; unused pages
of tables stay holes, so a layer with few clusters of a large disk stays small.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from node.disk.files import Piece
from vmreplica.core.cycle import CLUSTER_BYTES

CLUSTER_BITS = 16
SECTOR_BYTES = 512
L2_ENTRIES = CLUSTER_BYTES // 8
REFCOUNTS_PER_BLOCK = CLUSTER_BYTES // 2
HEADER_BYTES = 112
ZERO_ENTRY = 1
COPIED = 1 << 63
COMPRESSED = 1 << 62
COMPRESSED_OFFSET_BITS = 62 - (CLUSTER_BITS - 8)
RAW_OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00

BACKING_WORD = b"vmreplica-chain-is-in-the-manifest"
"""Names no file: a layer opened without its explicit chain fails, instead of reading as zeros."""

_PAGE_BYTES = 4_096
_INCOMPATIBLE_COMPRESSION_TYPE = 8
_COMPRESSION_ZSTD = 1
_EXTENSION_BACKING_FORMAT = 0xE2792ACA

Array = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Tables:
    """Everything of an image but its data: where it lies, and the counted end of the file."""

    pieces: tuple[Piece, ...]
    header: bytes
    counted_end: int


def compressed_entry(offset: int, length: int) -> int:
    """The L2 entry of a compressed cluster of ``length`` bytes at ``offset``."""
    sectors = ((offset + length - 1) >> 9) - (offset >> 9)
    return COMPRESSED | sectors << COMPRESSED_OFFSET_BITS | offset


def entry_offset(entry: int) -> int:
    """Where an entry's data begin (0 for zero clusters)."""
    if entry & COMPRESSED:
        return entry & ((1 << COMPRESSED_OFFSET_BITS) - 1)
    return entry & RAW_OFFSET_MASK


def entry_offsets(entries: Array) -> Array:
    """Where the data of many entries begin."""
    packed = (entries & np.uint64(COMPRESSED)) != 0
    compressed = entries & np.uint64((1 << COMPRESSED_OFFSET_BITS) - 1)
    return np.where(packed, compressed, entries & np.uint64(RAW_OFFSET_MASK))


def header(
    size_bytes: int, l1_offset: int, l1_entries: int, rt_offset: int, rt_count: int
) -> bytes:
    """The header's used bytes; the rest of its cluster is zero."""
    extensions = struct.pack(">II", _EXTENSION_BACKING_FORMAT, 5) + b"qcow2".ljust(8, b"\0")
    extensions += struct.pack(">II", 0, 0)
    fixed = struct.pack(
        ">4sIQIIQIIQQIIQQQQIIB7x",
        b"QFI\xfb",
        3,
        HEADER_BYTES + len(extensions),
        len(BACKING_WORD),
        CLUSTER_BITS,
        size_bytes,
        0,
        l1_entries,
        l1_offset,
        rt_offset,
        rt_count,
        0,
        0,
        _INCOMPATIBLE_COMPRESSION_TYPE,
        0,
        0,
        4,
        HEADER_BYTES,
        _COMPRESSION_ZSTD,
    )
    return fixed + extensions + BACKING_WORD


def layer_tables(size_bytes: int, indexes: Array, entries: Array, data_end: int) -> Tables:
    """Tables of a layer whose data end at ``data_end``.

    :param indexes: cluster indexes in any order, each once.
    :param entries: the L2 entry of each.
    """
    position = _aligned(data_end)
    order = np.argsort(indexes, kind="stable")
    l1 = np.zeros(_l1_entries(size_bytes), dtype=">u8")
    pieces: list[Piece] = []
    for table, table_pieces in _l2_tables(indexes[order], entries[order], position):
        l1[table] = position | COPIED
        pieces += table_pieces
        position += CLUSTER_BYTES
    l1_offset = position
    pieces.append(Piece(l1_offset, l1.tobytes()))
    position = _aligned(position + l1.nbytes)
    blocks, table_clusters = _refcount_room(position // CLUSTER_BYTES)
    total = position // CLUSTER_BYTES + blocks + table_clusters
    counts = _refcounts(entries, total, data_end)
    pieces += _full_pages(position, counts.astype(">u2").tobytes())
    table_offset = position + blocks * CLUSTER_BYTES
    offsets = position + np.arange(blocks, dtype=np.uint64) * CLUSTER_BYTES
    pieces.append(Piece(table_offset, offsets.astype(">u8").tobytes()))
    return Tables(
        tuple(pieces),
        header(size_bytes, l1_offset, len(l1), table_offset, table_clusters),
        total * CLUSTER_BYTES,
    )


def empty_overlay(size_bytes: int) -> tuple[Piece, ...]:
    """A fresh writable overlay: every cluster comes from the explicit chain below it."""
    nothing = np.zeros(0, dtype=np.uint64)
    tables = layer_tables(size_bytes, nothing, nothing, CLUSTER_BYTES)
    end = Piece(tables.counted_end - 1, b"\0")
    return (Piece(0, tables.header), *tables.pieces, end)


def _aligned(position: int) -> int:
    return -(-position // CLUSTER_BYTES) * CLUSTER_BYTES


def _l1_entries(size_bytes: int) -> int:
    clusters = -(-size_bytes // CLUSTER_BYTES)
    return max(1, -(-clusters // L2_ENTRIES))


def _l2_tables(indexes: Array, entries: Array, offset: int) -> Iterator[tuple[int, list[Piece]]]:
    """For each L2 table in use: its number and its non-empty pages."""
    if not len(indexes):
        return
    numbers = indexes // L2_ENTRIES
    used, starts = np.unique(numbers, return_index=True)
    ends = np.append(starts[1:], len(indexes))
    for number, start, end in zip(used.tolist(), starts.tolist(), ends.tolist(), strict=True):
        table = np.zeros(L2_ENTRIES, dtype=">u8")
        table[indexes[start:end] % L2_ENTRIES] = entries[start:end]
        yield number, _full_pages(offset, table.tobytes())
        offset += CLUSTER_BYTES


def _full_pages(offset: int, table: bytes) -> list[Piece]:
    """The pages of a table (whole clusters) that are not all zeros; neighbours in one piece."""
    pages = np.frombuffer(table, dtype=np.uint64).reshape(-1, _PAGE_BYTES // 8)
    full = np.flatnonzero(pages.any(axis=1))
    pieces = []
    for run in np.split(full, np.flatnonzero(np.diff(full) > 1) + 1):
        first, last = int(run[0]), int(run[-1])
        pieces.append(Piece(offset + first * _PAGE_BYTES, pages[first : last + 1].tobytes()))
    return pieces


def _refcount_room(clusters: int) -> tuple[int, int]:
    """Clusters of refcount blocks and of the refcount table that count themselves too."""
    blocks, table = 1, 1
    while True:
        need = -(-(clusters + blocks + table) // REFCOUNTS_PER_BLOCK)
        need_table = -(-need * 8 // CLUSTER_BYTES)
        if need <= blocks and need_table <= table:
            return blocks, table
        blocks, table = max(need, blocks), max(need_table, table)


def _refcounts(entries: Array, total: int, data_end: int) -> npt.NDArray[np.int64]:
    """How often each host cluster is used, rounded up to whole refcount blocks."""
    room = -(-total // REFCOUNTS_PER_BLOCK) * REFCOUNTS_PER_BLOCK
    counts = np.zeros(room, dtype=np.int64)
    counts[0] = 1
    counts[-(-data_end // CLUSTER_BYTES) : total] = 1
    packed = (entries & np.uint64(COMPRESSED)) != 0
    plain = entries[~packed & (entries != ZERO_ENTRY)]
    counts[(plain & np.uint64(RAW_OFFSET_MASK)) >> np.uint64(CLUSTER_BITS)] += 1
    squeezed = entries[packed]
    if len(squeezed):
        first = squeezed & np.uint64((1 << COMPRESSED_OFFSET_BITS) - 1)
        more = (squeezed >> np.uint64(COMPRESSED_OFFSET_BITS)) & np.uint64(0xFF)
        last = (((first >> np.uint64(9)) + more + np.uint64(1)) << np.uint64(9)) - np.uint64(1)
        change = np.zeros(room + 1, dtype=np.int64)
        np.add.at(change, (first >> np.uint64(CLUSTER_BITS)).astype(np.int64), 1)
        np.add.at(change, (last >> np.uint64(CLUSTER_BITS)).astype(np.int64) + 1, -1)
        counts += np.cumsum(change)[:room]
    return counts
