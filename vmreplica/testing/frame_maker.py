"""Frames for tests: clusters of a model disk as a sender would put them on the wire."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import zstandard

from vmreplica.core.cycle import CLUSTER_BYTES, EMPTY_DIGEST, ZERO_CLUSTER_DIGEST, Frame, digest

_CLUSTERS_A_FRAME = 16


def make_frame(
    clusters: Mapping[int, bytes | None], *, disk: int = 0, compress: bool = True
) -> Frame:
    """One frame. None = a zero cluster; shorter content is padded with zeros."""
    compressor = zstandard.ZstdCompressor(level=1)
    stored: list[bytes] = []
    plain_digests: list[bytes] = []
    for content in clusters.values():
        if content is None:
            stored.append(b"")
            plain_digests.append(ZERO_CLUSTER_DIGEST)
            continue
        whole = content.ljust(CLUSTER_BYTES, b"\0")
        packed = compressor.compress(whole) if compress else whole
        stored.append(packed if len(packed) < CLUSTER_BYTES else whole)
        plain_digests.append(digest(whole))
    return Frame(
        disk=disk,
        indexes=tuple(clusters),
        stored_bytes=tuple(len(x) for x in stored),
        digests=b"".join(plain_digests),
        payload=b"".join(stored),
        stored_digests=b"".join(digest(x) if x else EMPTY_DIGEST for x in stored),
    )


def make_frames(
    clusters: Mapping[int, bytes | None], *, disk: int = 0, compress: bool = True
) -> Iterator[Frame]:
    """Frames of at most 16 clusters, in the mapping's order."""
    batch: dict[int, bytes | None] = {}
    for index, content in clusters.items():
        batch[index] = content
        if len(batch) == _CLUSTERS_A_FRAME:
            yield make_frame(batch, disk=disk, compress=compress)
            batch = {}
    if batch:
        yield make_frame(batch, disk=disk, compress=compress)
