"""Makes a frame from the bytes of its clusters: zero, zstd or raw, with both digests of each."""

from __future__ import annotations

from typing import Protocol

from vmreplica.core.cycle import (
    CLUSTER_BYTES,
    EMPTY_DIGEST,
    ZERO_CLUSTER_DIGEST,
    Frame,
    digest,
)
from vmreplica.core.frame_plan import FrameSpec


class Compressor(Protocol):
    """One zstd frame per call, with the content size in its header and no dictionary."""

    def compress(self, data: bytes | memoryview) -> bytes:
        """The frame."""
        ...


def encode_frame(
    spec: FrameSpec, data: bytes | bytearray | memoryview, compressor: Compressor | None
) -> Frame:
    """The frame that ``spec`` plans.

    :param data: the data clusters in order, each 65,536 bytes (the last of a disk zero-padded).
    :param compressor: None stores clusters plain; one that is not smaller is stored plain anyway.
    """
    view = memoryview(data)
    stored: list[int] = []
    digests: list[bytes] = []
    stored_digests: list[bytes] = []
    payload: list[bytes | memoryview] = []
    at = 0
    for run in spec.runs:
        for _ in range(run.count):
            plain = ZERO_CLUSTER_DIGEST
            if not run.zero:
                cluster = view[at : at + CLUSTER_BYTES]
                at += CLUSTER_BYTES
                plain = digest(cluster)
            digests.append(plain)
            # The digest is made anyway, and tells zeros for sure.
            if plain == ZERO_CLUSTER_DIGEST:
                stored.append(0)
                stored_digests.append(EMPTY_DIGEST)
                continue
            packed = compressor.compress(cluster) if compressor else None
            if packed is not None and len(packed) < CLUSTER_BYTES:
                payload.append(packed)
                stored.append(len(packed))
                stored_digests.append(digest(packed))
            else:
                payload.append(cluster)
                stored.append(CLUSTER_BYTES)
                stored_digests.append(plain)
    if at != len(view):
        raise ValueError(f"frame {spec.number} takes {at} bytes, {len(view)} were given")
    return Frame(
        disk=spec.disk,
        indexes=spec.indexes,
        stored_bytes=tuple(stored),
        digests=b"".join(digests),
        payload=b"".join(payload),
        stored_digests=b"".join(stored_digests),
    )
