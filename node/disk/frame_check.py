"""What a frame must keep before its clusters may enter a layer (data-safety §3, the wire's Frame).

``qemu-img check`` sees none of this, so the node refuses it here, before anything is written.
"""

from __future__ import annotations

import zstandard

from node.disk.zstd_frame import frame_fault
from vmreplica.core.cycle import (
    CLUSTER_BYTES,
    DIGEST_BYTES,
    EMPTY_DIGEST,
    MAX_FRAME_CLUSTERS,
    MAX_FRAME_PAYLOAD_BYTES,
    ZERO_CLUSTER_DIGEST,
    Disk,
    Frame,
    digest,
)
from vmreplica.core.problems import Problem, Reason


class SeenClusters:
    """Which clusters of a disk a cycle has already brought: one bit each."""

    def __init__(self, disk: Disk) -> None:
        self._bits = bytearray(-(-disk.clusters // 8))

    def __contains__(self, index: int) -> bool:
        return bool(self._bits[index >> 3] >> (index & 7) & 1)

    def add(self, index: int) -> None:
        """Mark one cluster."""
        self._bits[index >> 3] |= 1 << (index & 7)


def check_frame(frame: Frame, disk: Disk, seen: SeenClusters, *, verify_plain: bool) -> None:
    """Refuse a frame that breaks a rule.

    :param seen: clusters of earlier frames; not changed here.
    :param verify_plain: decompress too and check the plain digests (``verify=before-ack``).
    :raises Problem: FRAME_TOO_LARGE, BAD_FIELD, CLUSTER_OUT_OF_RANGE, BAD_COMPRESSION,
        DIGEST_MISMATCH
    """
    _check_shape(frame)
    _check_indexes(frame, disk, seen)
    decompressor = zstandard.ZstdDecompressor() if verify_plain else None
    payload = memoryview(frame.payload)
    position = 0
    for place, (index, stored) in enumerate(zip(frame.indexes, frame.stored_bytes, strict=True)):
        data = payload[position : position + stored]
        position += stored
        span = slice(place * DIGEST_BYTES, (place + 1) * DIGEST_BYTES)
        plain = _check_cluster(
            index, data, frame.digests[span], frame.stored_digests[span], decompressor
        )
        if plain and index == disk.clusters - 1:
            _check_padding(disk, plain)


def _check_shape(frame: Frame) -> None:
    count = len(frame.indexes)
    if count > MAX_FRAME_CLUSTERS or len(frame.payload) > MAX_FRAME_PAYLOAD_BYTES:
        raise Problem(
            Reason.FRAME_TOO_LARGE,
            f"A frame of {count} clusters and {len(frame.payload)} payload bytes is too large.",
            field="clusters.payload",
            value=f"{count} clusters, {len(frame.payload)} bytes",
            remedy="Send at most 1,024 clusters and 1,048,576 payload bytes a frame.",
        )
    lengths = {
        "indexes": (count, 1),
        "stored_bytes": (len(frame.stored_bytes), count),
        "digests": (len(frame.digests), count * DIGEST_BYTES),
        "stored_digests": (len(frame.stored_digests), count * DIGEST_BYTES),
        "payload": (len(frame.payload), sum(frame.stored_bytes)),
    }
    for field, (length, wanted) in lengths.items():
        if length != wanted and not (field == "indexes" and count):
            raise _bad_field(
                field,
                str(length),
                f"The frame's {field} has {length} entries or bytes where {wanted} belong.",
                "Send one index, one length and two digests of 16 bytes for each cluster.",
            )


def _check_indexes(frame: Frame, disk: Disk, seen: SeenClusters) -> None:
    here: set[int] = set()
    for index, stored in zip(frame.indexes, frame.stored_bytes, strict=True):
        if not 0 <= index < disk.clusters:
            raise Problem(
                Reason.CLUSTER_OUT_OF_RANGE,
                f"Cluster {index} lies outside {disk.target}, which has {disk.clusters}.",
                field="clusters.indexes",
                value=str(index),
                remedy="Send clusters of the disk's size as opened; a disk that grew is opened anew.",
            )
        if index in here or index in seen:
            raise _bad_field(
                "indexes",
                str(index),
                f"Cluster {index} of {disk.target} comes twice in this cycle.",
                "Send each cluster at most once a cycle.",
            )
        here.add(index)
        if not 0 <= stored <= CLUSTER_BYTES:
            raise _bad_field(
                "stored_bytes",
                str(stored),
                f"Cluster {index} of {disk.target} is stored in {stored} bytes.",
                "Send a cluster raw (65,536 bytes) where compression does not make it smaller.",
            )


def _check_cluster(
    index: int,
    data: memoryview,
    plain: bytes,
    stored: bytes,
    decompressor: zstandard.ZstdDecompressor | None,
) -> bytes | memoryview:
    """Judge one cluster; its plain bytes where they are known, else empty."""
    if len(data) == 0:
        _check_digest("stored_digests", index, stored, EMPTY_DIGEST)
        _check_digest("digests", index, plain, ZERO_CLUSTER_DIGEST)
        return b""
    found = digest(data)
    _check_digest("stored_digests", index, stored, found)
    if len(data) == CLUSTER_BYTES:
        _check_digest("digests", index, plain, found)
        return data
    fault = frame_fault(data)
    content = b""
    if decompressor is not None and not fault:
        try:
            content = decompressor.decompress(data, max_output_size=CLUSTER_BYTES)
        except zstandard.ZstdError as error:
            fault = f"it does not decompress ({error})"
    if fault:
        raise Problem(
            Reason.BAD_COMPRESSION,
            f"Cluster {index} is not one zstd frame of 65,536 bytes: {fault}.",
            field="clusters.payload",
            value=f"cluster {index}, {len(data)} bytes",
            remedy="Compress each cluster alone, with its content size and without dictionary.",
        )
    if decompressor is not None:
        _check_digest("digests", index, plain, digest(content))
    return content


def _check_digest(field: str, index: int, sent: bytes, found: bytes) -> None:
    if sent != found:
        raise Problem(
            Reason.DIGEST_MISMATCH,
            f"Cluster {index} does not have the digest that was sent with it in {field}.",
            field=f"clusters.{field}",
            value=sent.hex(),
            remedy="Read and send the cluster again; if it comes again, check the sender's memory.",
        )


def _check_padding(disk: Disk, data: bytes | memoryview) -> None:
    tail = data[(disk.size_bytes - 1) % CLUSTER_BYTES + 1 :]
    if bytes(tail).count(0) != len(tail):
        raise _bad_field(
            "payload",
            f"cluster {disk.clusters - 1}",
            f"The last cluster of {disk.target} is not padded with zeros.",
            "Pad the last cluster with zeros to 65,536 bytes before hashing it.",
        )


def _bad_field(field: str, value: str, message: str, remedy: str) -> Problem:
    field = f"clusters.{field}"
    return Problem(Reason.BAD_FIELD, message, field=field, value=value, remedy=remedy)
