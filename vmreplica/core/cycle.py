"""A cycle: one point in time of all disks of a VM, sent and acknowledged as one unit.

The values here mirror protos/vmreplica/v1/cycle.proto without being wire types, so that sender,
receiver and simulation speak the same language.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from blake3 import blake3

CLUSTER_BYTES = 65_536
DIGEST_BYTES = 16
CYCLE_ID_BYTES = 16
MAX_FRAME_PAYLOAD_BYTES = 1 << 20
MAX_FRAME_CLUSTERS = 1_024
ZERO_DIGEST = bytes(DIGEST_BYTES)
"""The parent digest of a replica's first cycle."""
ZERO_CLUSTER_DIGEST = bytes.fromhex("3bdeaf8f8e98780b318106aafdc3ca25")
"""Plain digest of 65,536 zero bytes."""
EMPTY_DIGEST = bytes.fromhex("af1349b9f5f9a1a6a0404dea36dcc949")
"""Stored digest of a zero cluster: of no bytes."""


def digest(data: bytes | memoryview) -> bytes:
    """The first 16 bytes of BLAKE3 of ``data``."""
    return blake3(data).digest(length=DIGEST_BYTES)


class CycleKind(StrEnum):
    """What the clusters of a cycle are counted from."""

    FULL = "Full"
    DELTA = "Delta"
    RESYNC = "Resync"


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk of a VM. ``target`` as in the domain XML (vda), size a multiple of 512."""

    target: str
    size_bytes: int
    excluded: bool = False

    @property
    def clusters(self) -> int:
        """How many 64 KiB clusters cover the disk."""
        return -(-self.size_bytes // CLUSTER_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class CycleOpen:
    """The first message of a stream; see interfaces: CycleOpen."""

    replica_id: str
    epoch: int
    seq: int
    parent_digest: bytes
    kind: CycleKind
    disks: tuple[Disk, ...]
    cycle_id: bytes
    since_cycle_id: bytes = b""
    resume: bool = False
    domain_xml: bytes = b""


@dataclass(frozen=True, slots=True)
class Frame:
    """Clusters of one disk. ``digests`` and ``stored_digests`` hold 16 bytes a cluster."""

    disk: int
    indexes: tuple[int, ...]
    stored_bytes: tuple[int, ...]
    digests: bytes
    payload: bytes
    stored_digests: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CycleClose:
    """The last message of a sender."""

    clusters: int
    cycle_digest: bytes
    point_time_ms: int
    application_consistent: bool = False
    nvram: bytes = b""
    tpm_state: bytes = b""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The node takes the stream; frames below ``durable_frames`` need not be sent again."""

    durable_frames: int


@dataclass(frozen=True, slots=True)
class Durable:
    """Progress: frames stored durably, and frames received so far (the sender's window)."""

    durable_frames: int
    received_frames: int


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The cycle is a durable point. ``duplicate``: it already was before this stream."""

    seq: int
    cycle_digest: bytes
    duplicate: bool
    epoch: int


CycleRequest = CycleOpen | Frame | CycleClose
CycleReply = Accepted | Durable | Acknowledged


def cycle_digest(
    parent_digest: bytes,
    seq: int,
    disks: Sequence[Disk],
    clusters: Sequence[Mapping[int, bytes] | Iterable[tuple[int, bytes]]],
) -> bytes:
    """The digest that names a cycle's content and its whole past.

    :param disks: the disks that are not excluded, in the order of ``open.disks``.
    :param clusters: for each disk, cluster index → plain digest of the clusters sent.
    :returns: 16 bytes. Source: interfaces, "Digests".
    """
    hasher = blake3(b"vmreplica.cycle.v1\0" + parent_digest + struct.pack(">Q", seq))
    for disk, sent in zip(disks, clusters, strict=True):
        pairs = sorted(sent.items() if isinstance(sent, Mapping) else sent)
        target = disk.target.encode()
        hasher.update(struct.pack(">H", len(target)) + target)
        hasher.update(struct.pack(">QQ", disk.size_bytes, len(pairs)))
        hasher.update(b"".join(struct.pack(">Q", index) + plain for index, plain in pairs))
    return hasher.digest(length=DIGEST_BYTES)
