"""Receiving one cycle: what is accepted, what is refused and with which remedy (interfaces §4).

Pure. The receiver asks ``check_open`` once, keeps one ``CycleTally`` while frames arrive, and asks
``CycleTally.check_close`` before it seals anything.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from blake3 import blake3

from vmreplica.core.cycle import (
    CLUSTER_BYTES,
    CYCLE_ID_BYTES,
    DIGEST_BYTES,
    MAX_FRAME_CLUSTERS,
    MAX_FRAME_PAYLOAD_BYTES,
    Acknowledged,
    CycleClose,
    CycleKind,
    CycleOpen,
    Disk,
    Frame,
)
from vmreplica.core.manifest import Head, Layer, Manifest
from vmreplica.core.problems import Problem, Reason

MAX_SMALL_FILE_BYTES = 1 << 20
ZSTD_MAGIC = bytes.fromhex("28b52ffd")
_RESYNCHRONIZE = "resynchronize the replication: vmrctl replication resume VM --resync"
_LOCATE = "ask the client access point for the owner again, then open with resume"
_RECORD = struct.Struct(">Q16s")
_BITE_RECORDS = 16_384


@dataclass(frozen=True, slots=True)
class ReplicaPosition:
    """What an open is judged against: the head, the chain's recent cycles, the disks."""

    replica_id: str
    epoch: int
    node: str
    head: Head
    recent_cycle_ids: tuple[bytes, ...]
    disks: tuple[Disk, ...]

    @classmethod
    def of(cls, manifest: Manifest, epoch: int, node: str) -> ReplicaPosition:
        """The position that ``manifest``, in force under ``epoch``, gives."""
        return cls(
            manifest.replica_id,
            epoch,
            node,
            manifest.head,
            manifest.recent_cycle_ids,
            tuple(disk for disk in manifest.disks if not disk.excluded),
        )


def check_open(request: CycleOpen, at: ReplicaPosition) -> Acknowledged | None:
    """Judge an open. ``None``: take the stream. Acknowledged: the head is this very cycle.

    :raises Problem: STALE_EPOCH, NOT_OWNER, BAD_FIELD, PARENT_MISMATCH, SEQ_GAP,
        DISK_SHAPE_CHANGED.
    """
    _check_epoch(request, at)
    _check_fields(request)
    if request.cycle_id == at.head.cycle_id:
        return _duplicate(request, at)
    if request.cycle_id in at.recent_cycle_ids:
        raise Problem(
            Reason.PARENT_MISMATCH,
            f"cycle {request.cycle_id.hex()} was acknowledged earlier and is not the head",
            field="open.cycle_id",
            value=request.cycle_id.hex(),
            remedy="give every cycle an id of its own; GetReplica names the head",
        )
    if request.seq != at.head.seq + 1:
        raise Problem(
            Reason.SEQ_GAP,
            f"cycle {request.seq} does not follow the head, which is cycle {at.head.seq}",
            field="open.seq",
            value=str(request.seq),
            remedy=f"ask GetReplica for the head; if the source has moved on, {_RESYNCHRONIZE}",
        )
    if request.parent_digest != at.head.digest:
        raise Problem(
            Reason.PARENT_MISMATCH,
            f"the parent digest is not that of the head, cycle {at.head.seq}",
            field="open.parent_digest",
            value=request.parent_digest.hex(),
            remedy=f"ask GetReplica for acked_digest; if the source has moved on, {_RESYNCHRONIZE}",
        )
    _check_kind(request, at)
    _check_shape(request, at)
    return None


def _check_epoch(request: CycleOpen, at: ReplicaPosition) -> None:
    if request.epoch == at.epoch:
        return
    older = request.epoch < at.epoch
    raise Problem(
        Reason.STALE_EPOCH if older else Reason.NOT_OWNER,
        f"epoch {request.epoch} is {'over' if older else 'not known here'}; "
        f"this node owns the replica under epoch {at.epoch}",
        field="open.epoch",
        value=str(request.epoch),
        remedy=_LOCATE,
        node=at.node,
        epoch=at.epoch,
    )


def _check_fields(request: CycleOpen) -> None:
    lengths = (
        ("open.cycle_id", request.cycle_id, {CYCLE_ID_BYTES}),
        ("open.parent_digest", request.parent_digest, {DIGEST_BYTES}),
        ("open.since_cycle_id", request.since_cycle_id, {0, CYCLE_ID_BYTES}),
    )
    for field, value, allowed in lengths:
        if len(value) not in allowed:
            raise Problem(
                Reason.BAD_FIELD,
                f"{field} has {len(value)} bytes, expected {max(allowed)}",
                field=field,
                value=value[:32].hex(),
                remedy="send 16 bytes",
            )
    if request.kind is CycleKind.FULL and request.since_cycle_id:
        raise Problem(
            Reason.BAD_FIELD,
            "a FULL cycle is counted from nothing",
            field="open.since_cycle_id",
            value=request.since_cycle_id.hex(),
            remedy="leave since_cycle_id empty, or send a DELTA",
        )
    if len(request.domain_xml) > MAX_SMALL_FILE_BYTES:
        raise Problem(
            Reason.BAD_FIELD,
            f"the domain XML has {len(request.domain_xml)} bytes, the limit is 1 MiB",
            field="open.domain_xml",
            value=str(len(request.domain_xml)),
            remedy="send the XML of the persistent domain alone",
        )


def _duplicate(request: CycleOpen, at: ReplicaPosition) -> Acknowledged:
    if request.seq != at.head.seq or request.parent_digest != at.head.parent_digest:
        raise Problem(
            Reason.PARENT_MISMATCH,
            f"cycle {request.cycle_id.hex()} is the head as cycle {at.head.seq} on another parent",
            field="open.seq" if request.seq != at.head.seq else "open.parent_digest",
            value=str(request.seq) if request.seq != at.head.seq else request.parent_digest.hex(),
            remedy="GetReplica names the head; give a new cycle an id of its own",
        )
    return Acknowledged(at.head.seq, at.head.digest, duplicate=True, epoch=at.epoch)


def _check_kind(request: CycleOpen, at: ReplicaPosition) -> None:
    match request.kind:
        case CycleKind.FULL:
            return
        case CycleKind.RESYNC:
            if at.head.seq and request.since_cycle_id == at.head.cycle_id:
                return
            raise Problem(
                Reason.PARENT_MISMATCH,
                "a resynchronization counts from the head, whose digests it compared",
                field="open.since_cycle_id",
                value=request.since_cycle_id.hex(),
                remedy="compare with ListDigests of the head and open again"
                if at.head.seq
                else "send a FULL cycle first",
            )
        case CycleKind.DELTA:
            known = (*at.recent_cycle_ids, at.head.cycle_id)
            if at.head.seq and request.since_cycle_id in known:
                return
            raise Problem(
                Reason.SEQ_GAP,
                "the cycle that this delta is counted from is not one of this replica's last 64",
                field="open.since_cycle_id",
                value=request.since_cycle_id.hex(),
                remedy=_RESYNCHRONIZE if at.head.seq else "send a FULL cycle first",
            )


def _check_shape(request: CycleOpen, at: ReplicaPosition) -> None:
    sent = {disk.target: disk.size_bytes for disk in request.disks}
    known = {disk.target: disk.size_bytes for disk in at.disks}
    bad_size = [d for d in request.disks if d.size_bytes <= 0 or d.size_bytes % 512]
    if bad_size or len(sent) != len(request.disks) or any(d.excluded for d in request.disks):
        raise Problem(
            Reason.BAD_FIELD,
            "open.disks holds each disk that is not excluded once, with a size in sectors of 512",
            field="open.disks",
            value=_shape(request.disks),
            remedy="list every replicated disk once with its present size in bytes",
        )
    if sent != known:
        raise Problem(
            Reason.DISK_SHAPE_CHANGED,
            f"the disks sent are {_shape(request.disks)}, the replica's are {_shape(at.disks)}",
            field="open.disks",
            value=_shape(request.disks),
            remedy="remove the replication and enable it again with the new set of disks",
        )


def _shape(disks: Sequence[Disk]) -> str:
    return " ".join(f"{disk.target}={disk.size_bytes}" for disk in disks)


def same_cycle(one: CycleOpen, other: CycleOpen) -> bool:
    """Whether two opens mean one cycle, so that the second may continue the first's parts."""
    return (
        one.cycle_id == other.cycle_id
        and one.epoch == other.epoch
        and one.seq == other.seq
        and one.parent_digest == other.parent_digest
        and one.kind is other.kind
        and one.since_cycle_id == other.since_cycle_id
        and one.disks == other.disks
    )


def drafts_of(layers: Iterable[Layer], cycle_id: bytes) -> tuple[Layer, ...]:
    """The sealed segments of this cycle, in the order they were committed."""
    return tuple(x for x in layers if x.draft is not None and x.draft.cycle_id == cycle_id)


class CycleTally:
    """What of one cycle has arrived: 24 bytes a cluster and one bit a cluster of the disks."""

    __slots__ = ("_records", "_rising", "_seen", "clusters", "disks", "frames")

    def __init__(self, disks: Sequence[Disk]) -> None:
        self.disks = tuple(disks)
        self.frames = 0
        """Frames taken so far, of all disks; the number of the next one."""
        self.clusters = 0
        self._records = [bytearray() for _ in disks]
        self._seen = [bytearray(-(-disk.clusters // 8)) for disk in disks]
        self._rising = [True] * len(self.disks)

    def restore(self, disk: int, digests: Mapping[int, bytes]) -> None:
        """Count clusters of a sealed segment again (a stream that goes on behind drafts)."""
        pairs = sorted(digests.items())
        self._record(disk, [index for index, _ in pairs], lambda place, _: pairs[place][1])

    def check(self, frame: Frame) -> None:
        """Judge a frame without taking it.

        :raises Problem: BAD_FIELD, FRAME_TOO_LARGE, CLUSTER_OUT_OF_RANGE
        """
        _check_sizes(frame, len(self.disks))
        disk = self.disks[frame.disk]
        highest = max(frame.indexes)
        if highest >= disk.clusters or min(frame.indexes) < 0:
            raise Problem(
                Reason.CLUSTER_OUT_OF_RANGE,
                f"cluster {highest} lies outside {disk.target}, which has {disk.clusters} clusters",
                field="clusters.indexes",
                value=str(highest),
                remedy="send clusters of the disk's present size only",
            )
        seen = self._seen[frame.disk]
        twice = [i for i in frame.indexes if seen[i >> 3] & (1 << (i & 7))]
        if twice or len(set(frame.indexes)) != len(frame.indexes):
            first = twice[0] if twice else _first_repeated(frame.indexes)
            raise Problem(
                Reason.BAD_FIELD,
                f"cluster {first} of {disk.target} was sent twice in one cycle",
                field="clusters.indexes",
                value=str(first),
                remedy="send each cluster at most once a cycle",
            )

    def take(self, frame: Frame) -> None:
        """Count a checked frame whose clusters are written."""
        plain = frame.digests
        self._record(
            frame.disk,
            frame.indexes,
            lambda place, _: plain[place * DIGEST_BYTES : (place + 1) * DIGEST_BYTES],
        )
        self.frames += 1

    def _record(
        self, disk: int, indexes: Sequence[int], digest_at: Callable[[int, int], bytes]
    ) -> None:
        seen, records = self._seen[disk], self._records[disk]
        last = _RECORD.unpack_from(records, len(records) - _RECORD.size)[0] if records else -1
        for place, index in enumerate(indexes):
            seen[index >> 3] |= 1 << (index & 7)
            records += _RECORD.pack(index, digest_at(place, index))
            if index < last:
                self._rising[disk] = False
            last = index
        self.clusters += len(indexes)

    def sort_steps(self) -> Iterator[None]:
        """Sort what came out of order, in bites of some milliseconds: a sender may send a disk of
        16 million clusters in any order, and nothing else runs while ``digest`` sorts them.
        """
        size = _RECORD.size
        for disk, records in enumerate(self._records):
            if self._rising[disk]:
                continue
            buckets: dict[bytes, bytearray] = {}
            for start in range(0, len(records), _BITE_RECORDS * size):
                for at in range(start, min(start + _BITE_RECORDS * size, len(records)), size):
                    record = records[at : at + size]
                    # All but the last 14 bits of the index; big-endian, so bytes order it.
                    key = bytes((*record[:6], record[6] & 0xC0))
                    buckets.setdefault(key, bytearray()).extend(record)
                yield
            in_order = bytearray()
            for key in sorted(buckets):
                in_order += _sorted_records(buckets.pop(key))
                yield
            self._records[disk], self._rising[disk] = in_order, True

    def digest(self, parent_digest: bytes, seq: int) -> bytes:
        """The cycle's digest over everything taken; see core.cycle.cycle_digest."""
        hasher = blake3(b"vmreplica.cycle.v1\0" + parent_digest + struct.pack(">Q", seq))
        for disk, records, rising in zip(self.disks, self._records, self._rising, strict=True):
            target = disk.target.encode()
            hasher.update(struct.pack(">H", len(target)) + target)
            hasher.update(struct.pack(">QQ", disk.size_bytes, len(records) // _RECORD.size))
            hasher.update(records if rising else _sorted_records(records))
        return hasher.digest(length=DIGEST_BYTES)

    def check_close(self, request: CycleOpen, close: CycleClose) -> None:
        """Judge the close: everything announced has come, and its digest is the sender's.

        :raises Problem: BAD_FIELD, DIGEST_MISMATCH
        """
        for field, data in (("close.nvram", close.nvram), ("close.tpm_state", close.tpm_state)):
            if data and (len(data) > MAX_SMALL_FILE_BYTES or not data.startswith(ZSTD_MAGIC)):
                raise Problem(
                    Reason.BAD_FIELD,
                    f"{field} is not one zstd frame of at most 1 MiB",
                    field=field,
                    value=f"{len(data)} bytes",
                    remedy="send one zstd frame, or nothing when it has not changed",
                )
        if close.clusters != self.clusters:
            raise Problem(
                Reason.DIGEST_MISMATCH,
                f"the sender closed with {close.clusters} clusters, {self.clusters} arrived",
                field="close.clusters",
                value=str(close.clusters),
                remedy="send the cycle again without resume",
            )
        expected = self.digest(request.parent_digest, request.seq)
        if close.cycle_digest != expected:
            raise Problem(
                Reason.DIGEST_MISMATCH,
                "the cycle's digest differs from the one recomputed from its clusters",
                field="close.cycle_digest",
                value=close.cycle_digest[:DIGEST_BYTES].hex(),
                remedy="send the cycle again without resume",
            )


def _sorted_records(records: bytearray) -> bytes:
    size = _RECORD.size
    return b"".join(sorted(bytes(records[i : i + size]) for i in range(0, len(records), size)))


def _first_repeated(indexes: Sequence[int]) -> int:
    ordered = sorted(indexes)
    return next(a for a, b in itertools.pairwise(ordered) if a == b)


def _check_sizes(frame: Frame, disks: int) -> None:
    count = len(frame.indexes)
    if count > MAX_FRAME_CLUSTERS or len(frame.payload) > MAX_FRAME_PAYLOAD_BYTES:
        raise Problem(
            Reason.FRAME_TOO_LARGE,
            f"a frame of {count} clusters and {len(frame.payload)} payload bytes is too large",
            field="clusters.payload" if count <= MAX_FRAME_CLUSTERS else "clusters.indexes",
            value=str(max(count, len(frame.payload))),
            remedy="send at most 1,024 clusters and 1 MiB of payload a frame",
        )
    wrong = (
        ("clusters.disk", not 0 <= frame.disk < disks),
        ("clusters.indexes", count == 0),
        ("clusters.stored_bytes", len(frame.stored_bytes) != count),
        ("clusters.stored_bytes", any(not 0 <= n <= CLUSTER_BYTES for n in frame.stored_bytes)),
        ("clusters.digests", len(frame.digests) != count * DIGEST_BYTES),
        ("clusters.stored_digests", len(frame.stored_digests) != count * DIGEST_BYTES),
        ("clusters.payload", sum(frame.stored_bytes) != len(frame.payload)),
    )
    for field, bad in wrong:
        if bad:
            raise Problem(
                Reason.BAD_FIELD,
                f"a frame of {count} clusters of disk {frame.disk} does not fit together: {field}",
                field=field,
                value=str(frame.disk) if field == "clusters.disk" else str(count),
                remedy="give each cluster an index, a stored size and two digests of 16 bytes",
            )
