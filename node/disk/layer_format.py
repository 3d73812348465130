"""What a layer file holds behind its qcow2 image: the cluster list, the digests, the trailer.

``records`` has one entry a cluster in arrival order. The trailer is the file's last 128 bytes; it
seals the records by digest and itself, and the qcow2 tables follow from the records, so every byte
in use of the file can be checked. Between the clusters lie gaps, and in a file that shares blocks
with the layers it was merged from, clusters no longer shown: no record names them, and qcow2 counts
only what is named.
"""

from __future__ import annotations

import struct
from collections.abc import ItemsView, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from vmreplica.core.cycle import digest

RECORD = np.dtype(
    [
        ("index", ">u8"),
        ("entry", ">u8"),
        ("stored", ">u4"),
        ("plain", "V16"),
        ("stored_digest", "V16"),
    ]
)
RECORD_BYTES = RECORD.itemsize
TRAILER_BYTES = 128

_MAGIC = b"vmreplica-layer1"
_FIXED = struct.Struct(">16sQQQQQQ16s32x16s")
_SEALED_BYTES = TRAILER_BYTES - 16

Records = np.ndarray[tuple[int], np.dtype[np.void]]


@dataclass(frozen=True, slots=True)
class Trailer:
    """``data_end`` = first byte behind the clusters, ``counted_end`` = where qcow2's file ends."""

    from_seq: int
    to_seq: int
    size_bytes: int
    data_end: int
    counted_end: int
    count: int
    records_digest: bytes


def no_records() -> Records:
    """An empty list."""
    return np.zeros(0, dtype=RECORD)


def parse_records(data: bytes | bytearray | memoryview) -> Records:
    """Records from their bytes (not copied)."""
    return cast(Records, np.frombuffer(data, dtype=RECORD))


def render_trailer(trailer: Trailer) -> bytes:
    """The last 128 bytes of a layer file."""
    sealed = _FIXED.pack(
        _MAGIC,
        trailer.from_seq,
        trailer.to_seq,
        trailer.size_bytes,
        trailer.data_end,
        trailer.counted_end,
        trailer.count,
        trailer.records_digest,
        bytes(16),
    )[:_SEALED_BYTES]
    return sealed + digest(sealed)


def parse_trailer(data: bytes) -> Trailer:
    """:raises ValueError: damaged, or no layer."""
    if len(data) != TRAILER_BYTES or digest(data[:_SEALED_BYTES]) != data[_SEALED_BYTES:]:
        raise ValueError("the trailer does not agree with its digest")
    magic, from_seq, to_seq, size, data_end, counted_end, count, records, _ = _FIXED.unpack(data)
    if magic != _MAGIC:
        raise ValueError("the trailer is of another format")
    return Trailer(from_seq, to_seq, size, data_end, counted_end, count, records)


class _Pairs(ItemsView[int, bytes]):
    """Iterates without a search per key."""

    _mapping: DigestMap

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        return self._mapping.pairs()


class DigestMap(Mapping[int, bytes]):
    """Plain digest by cluster index, rising; 24 bytes a cluster where a dict takes five times."""

    def __init__(self, indexes: npt.NDArray[np.uint64], plain: npt.NDArray[np.void]) -> None:
        order = np.argsort(indexes, kind="stable")
        self._indexes = indexes[order].astype(np.uint64)
        self._plain = plain[order]

    @classmethod
    def of(cls, records: Records) -> DigestMap:
        """The digests of a layer's records."""
        return cls(records["index"], records["plain"])

    def __len__(self) -> int:
        return len(self._indexes)

    def __iter__(self) -> Iterator[int]:
        return iter(self._indexes.tolist())

    def __getitem__(self, index: int) -> bytes:
        place = int(np.searchsorted(self._indexes, np.uint64(index)))
        if place == len(self._indexes) or self._indexes[place] != index:
            raise KeyError(index)
        return bytes(self._plain[place])

    def items(self) -> ItemsView[int, bytes]:
        """By rising index."""
        return _Pairs(self)

    def pairs(self) -> Iterator[tuple[int, bytes]]:
        """As ``items``."""
        plain = self._plain.tobytes()
        for place, index in enumerate(self._indexes.tolist()):
            yield index, plain[place * 16 : place * 16 + 16]

    def packed(self) -> bytes:
        """Index (u64, big-endian) and digest of each cluster, as a cycle's digest takes them."""
        rows = np.empty(len(self), dtype=[("index", ">u8"), ("plain", "V16")])
        rows["index"] = self._indexes
        rows["plain"] = self._plain
        return rows.tobytes()
