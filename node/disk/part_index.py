"""The side file of a ``.part``: which frames it holds, so that it can be continued.

It is written at a sync, after the part itself is durable, and is worthless once the layer is
sealed. An entry that does not agree with its digest ends the list: what lies behind it was not
durable when somebody died.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from node.disk.layer_format import RECORD_BYTES
from vmreplica.core.cycle import DIGEST_BYTES, Disk, digest
from vmreplica.ports.replica_store import PartKey

HEADER_BYTES = 256

_HEADER = struct.Struct(">16s16sQQ64s")
_ENTRY = struct.Struct(">QQI")
_MAGIC = b"vmreplica-part-1"


@dataclass(frozen=True, slots=True)
class PartFrame:
    """One frame of the part: its number in the cycle, where its data end, its records."""

    number: int
    end: int
    records: bytes


def render_header(key: PartKey) -> bytes:
    """The first 256 bytes."""
    target = key.disk.target.encode()
    fixed = _HEADER.pack(_MAGIC, key.cycle_id, key.epoch, key.disk.size_bytes, target)
    padded = fixed.ljust(HEADER_BYTES - DIGEST_BYTES, b"\0")
    return padded + digest(padded)


def render_frames(frames: Sequence[PartFrame]) -> bytes:
    """Entries to append."""
    pieces = []
    for frame in frames:
        head = _ENTRY.pack(frame.number, frame.end, len(frame.records) // RECORD_BYTES)
        pieces += [head, digest(head + frame.records), frame.records]
    return b"".join(pieces)


def entry_bytes(frame: PartFrame) -> int:
    """Length of one entry."""
    return _ENTRY.size + DIGEST_BYTES + len(frame.records)


def parse_header(data: bytes) -> PartKey | None:
    """Whose part it is; None: damaged."""
    head = data[:HEADER_BYTES]
    if len(head) < HEADER_BYTES or digest(head[:-DIGEST_BYTES]) != head[-DIGEST_BYTES:]:
        return None
    _, cycle_id, epoch, size_bytes, target = _HEADER.unpack_from(head)
    return PartKey(cycle_id, Disk(target.rstrip(b"\0").decode(), size_bytes), epoch)


def parse_frames(data: bytes) -> Iterator[PartFrame]:
    """The entries that are whole."""
    position = HEADER_BYTES
    while position + _ENTRY.size + DIGEST_BYTES <= len(data):
        head = data[position : position + _ENTRY.size]
        number, end, count = _ENTRY.unpack(head)
        position += _ENTRY.size
        seal = data[position : position + DIGEST_BYTES]
        position += DIGEST_BYTES
        records = data[position : position + count * RECORD_BYTES]
        position += count * RECORD_BYTES
        if digest(head + records) != seal:
            return
        yield PartFrame(number, end, records)
