"""What a zstd frame says about itself, read without decompressing it (RFC 8878 §3.1)."""

from __future__ import annotations

from vmreplica.core.cycle import CLUSTER_BYTES

MAGIC = b"\x28\xb5\x2f\xfd"
MAX_WINDOW_BYTES = 1 << 27
"""QEMU's decoder refuses frames with a larger window."""

_MAX_BLOCK_BYTES = 128 << 10
_SIZE_BYTES = (0, 2, 4, 8)


def frame_fault(data: bytes | memoryview) -> str:
    """Why ``data`` is not exactly one frame of 65,536 bytes without dictionary; "" = it is.

    Headers of frame and blocks are parsed and must end where the data end. What the blocks
    decompress to is not known from them; the scrub finds out.
    """
    if len(data) < 6 or bytes(data[:4]) != MAGIC:
        return "it does not begin with a zstd frame"
    descriptor = data[4]
    if descriptor & 0x08:
        return "a reserved bit of the frame header is set"
    if descriptor & 0x03:
        return "it names a dictionary"
    single_segment = bool(descriptor & 0x20)
    position = 5
    if not single_segment:
        exponent, mantissa = data[5] >> 3, data[5] & 7
        base = 1 << (10 + exponent)
        if base + base // 8 * mantissa > MAX_WINDOW_BYTES:
            return "its window is larger than 128 MiB"
        position = 6
    size_bytes = _SIZE_BYTES[descriptor >> 6] or int(single_segment)
    if size_bytes == 0:
        return "its header does not name the content size"
    content = int.from_bytes(data[position : position + size_bytes], "little")
    if size_bytes == 2:
        content += 256
    if content != CLUSTER_BYTES:
        return f"its header names a content size of {content}, not {CLUSTER_BYTES}"
    return _blocks_fault(data, position + size_bytes, checksum=bool(descriptor & 0x04))


def _blocks_fault(data: bytes | memoryview, position: int, *, checksum: bool) -> str:
    end = len(data)
    last = 0
    plain = 0
    while not last:
        if position + 3 > end:
            return "its last block is missing"
        header = data[position] | data[position + 1] << 8 | data[position + 2] << 16
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        position += 3
        if kind == 3 or size > _MAX_BLOCK_BYTES:
            return "a block header is invalid"
        plain += size if kind != 2 else 0
        position += 1 if kind == 1 else size
    if plain > CLUSTER_BYTES:
        return "its blocks hold more than 65,536 bytes"
    position += 4 if checksum else 0
    if position > end:
        return "it is cut short"
    return "" if position == end else f"{end - position} bytes lie behind it"
