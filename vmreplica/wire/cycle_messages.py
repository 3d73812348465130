"""The messages of a cycle stream ↔ values of core.cycle.

What comes in is untrusted: every length, id and count is checked here, before anything is done
with it; what depends on the replica (disk numbers, sizes, digests) is checked by the receiver.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NoReturn

from vmreplica.core.cycle import (
    CLUSTER_BYTES,
    CYCLE_ID_BYTES,
    DIGEST_BYTES,
    MAX_FRAME_CLUSTERS,
    MAX_FRAME_PAYLOAD_BYTES,
    Accepted,
    Acknowledged,
    CycleClose,
    CycleKind,
    CycleOpen,
    CycleReply,
    CycleRequest,
    Disk,
    Durable,
    Frame,
)
from vmreplica.core.problems import Problem, Reason
from vmreplica.v1 import cycle_pb2, types_pb2
from vmreplica.wire.times import milliseconds, timestamp

MAX_DISKS = 64
MAX_TARGET_CHARACTERS = 32
MAX_DOMAIN_XML_BYTES = 1 << 20
MAX_STATE_BYTES = 1 << 20
"""Limit of NVRAM and TPM state, each one zstd frame."""

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TARGET = re.compile(r"[A-Za-z0-9_-]{1,32}")

_KIND_FROM = {
    types_pb2.CYCLE_KIND_FULL: CycleKind.FULL,
    types_pb2.CYCLE_KIND_DELTA: CycleKind.DELTA,
    types_pb2.CYCLE_KIND_RESYNC: CycleKind.RESYNC,
}
_KIND_TO = {kind: number for number, kind in _KIND_FROM.items()}


_AS_DOCUMENTED = "Send it as the comments of the .proto files say."


def _bad(field: str, message: str, value: object = "") -> NoReturn:
    text = str(value)[:64]
    raise Problem(Reason.BAD_FIELD, message, field=field, value=text, remedy=_AS_DOCUMENTED)


def check_uuid(value: str, field: str) -> str:
    """``value`` if it is a canonical lower-case UUID. :raises Problem: BAD_FIELD"""
    if not _UUID.fullmatch(value):
        _bad(field, f"{field} must be a UUID in lower case, like 123e4567-e89b-….", value)
    return value


def _exactly(value: bytes, count: int, field: str) -> bytes:
    if len(value) != count:
        _bad(field, f"{field} must have {count} bytes, not {len(value)}.", value.hex())
    return value


def _at_most(value: bytes, count: int, field: str) -> bytes:
    if len(value) > count:
        _bad(field, f"{field} may have at most {count} bytes, not {len(value)}.", len(value))
    return value


def disk_to_message(disk: Disk) -> types_pb2.Disk:
    """One disk."""
    return types_pb2.Disk(target=disk.target, size_bytes=disk.size_bytes, excluded=disk.excluded)


def disk_from_message(message: types_pb2.Disk, field: str = "disks") -> Disk:
    """One disk: target a plain name, size a positive multiple of 512. :raises Problem: BAD_FIELD"""
    if not _TARGET.fullmatch(message.target):
        _bad(f"{field}.target", "A disk's target is a plain name like vda.", message.target)
    if message.size_bytes == 0 or message.size_bytes % 512 or message.size_bytes >= 1 << 63:
        _bad(f"{field}.size_bytes", "A disk's size is a multiple of 512.", message.size_bytes)
    return Disk(message.target, message.size_bytes, message.excluded)


def disks_from_messages(
    messages: Iterable[types_pb2.Disk], field: str = "disks"
) -> tuple[Disk, ...]:
    """All disks: at least one, at most 64, each target once. :raises Problem: BAD_FIELD"""
    listed = list(messages)
    if not 1 <= len(listed) <= MAX_DISKS:
        _bad(field, f"There must be 1 to {MAX_DISKS} disks, not {len(listed)}.", len(listed))
    disks = tuple(disk_from_message(message, field) for message in listed)
    if len({disk.target for disk in disks}) != len(disks):
        _bad(field, "Each target may be named once.", ",".join(disk.target for disk in disks))
    return disks


def open_to_message(value: CycleOpen) -> cycle_pb2.CycleOpen:
    """The first message of a stream."""
    return cycle_pb2.CycleOpen(
        replica_id=value.replica_id,
        epoch=value.epoch,
        seq=value.seq,
        parent_digest=value.parent_digest,
        kind=_KIND_TO[value.kind],
        disks=[disk_to_message(disk) for disk in value.disks],
        resume=value.resume,
        domain_xml=value.domain_xml,
        cycle_id=value.cycle_id,
        since_cycle_id=value.since_cycle_id,
    )


def open_from_message(message: cycle_pb2.CycleOpen) -> CycleOpen:
    """The first message, checked. :raises Problem: BAD_FIELD"""
    kind = _KIND_FROM.get(message.kind)
    if kind is None:
        _bad("open.kind", "The kind must be FULL, DELTA or RESYNC.", message.kind)
    if not 1 <= message.seq < 1 << 63:
        _bad("open.seq", "seq counts from 1.", message.seq)
    since = message.since_cycle_id
    if kind is CycleKind.FULL:
        if since:
            _bad("open.since_cycle_id", "since_cycle_id is empty in a FULL cycle.", since.hex())
    else:
        _exactly(since, CYCLE_ID_BYTES, "open.since_cycle_id")
    return CycleOpen(
        replica_id=check_uuid(message.replica_id, "open.replica_id"),
        epoch=message.epoch,
        seq=message.seq,
        parent_digest=_exactly(message.parent_digest, DIGEST_BYTES, "open.parent_digest"),
        kind=kind,
        disks=disks_from_messages(message.disks, "open.disks"),
        resume=message.resume,
        domain_xml=_at_most(message.domain_xml, MAX_DOMAIN_XML_BYTES, "open.domain_xml"),
        cycle_id=_exactly(message.cycle_id, CYCLE_ID_BYTES, "open.cycle_id"),
        since_cycle_id=since,
    )


def frame_to_message(value: Frame) -> cycle_pb2.ClusterFrame:
    """Clusters of one disk."""
    return cycle_pb2.ClusterFrame(
        disk=value.disk,
        indexes=value.indexes,
        stored_bytes=value.stored_bytes,
        digests=value.digests,
        payload=value.payload,
        stored_digests=value.stored_digests,
    )


def frame_from_message(message: cycle_pb2.ClusterFrame) -> Frame:
    """Clusters of one disk, counts and lengths checked; digests are not (that is the receiver's).

    :raises Problem: FRAME_TOO_LARGE, BAD_FIELD
    """
    indexes = tuple(message.indexes)
    stored = tuple(message.stored_bytes)
    payload = message.payload
    count = len(indexes)
    if len(payload) > MAX_FRAME_PAYLOAD_BYTES or count > MAX_FRAME_CLUSTERS:
        raise Problem(
            Reason.FRAME_TOO_LARGE,
            f"A frame holds at most {MAX_FRAME_CLUSTERS} clusters and {MAX_FRAME_PAYLOAD_BYTES} "
            f"bytes of payload; this one has {count} and {len(payload)}.",
            field="clusters.payload",
            value=str(len(payload)),
            remedy="Send smaller frames; a cycle may have as many as it needs.",
        )
    if count == 0:
        _bad("clusters.indexes", "A frame holds at least one cluster.")
    if len(stored) != count:
        _bad("clusters.stored_bytes", "There must be one length for each index.", len(stored))
    if len(set(indexes)) != count:
        _bad("clusters.indexes", "A cluster may be named once.")
    if max(indexes) >= 1 << 47:
        _bad("clusters.indexes", "The index lies beyond any disk.", max(indexes))
    if max(stored) > CLUSTER_BYTES:
        _bad("clusters.stored_bytes", f"At most {CLUSTER_BYTES} for a cluster.", max(stored))
    if sum(stored) != len(payload):
        _bad("clusters.stored_bytes", "The lengths must add up to the payload.", sum(stored))
    _exactly(message.digests, DIGEST_BYTES * count, "clusters.digests")
    _exactly(message.stored_digests, DIGEST_BYTES * count, "clusters.stored_digests")
    return Frame(message.disk, indexes, stored, message.digests, payload, message.stored_digests)


def close_to_message(value: CycleClose) -> cycle_pb2.CycleClose:
    """The last message of a sender."""
    return cycle_pb2.CycleClose(
        clusters=value.clusters,
        cycle_digest=value.cycle_digest,
        point_time=timestamp(value.point_time_ms),
        application_consistent=value.application_consistent,
        nvram=value.nvram,
        tpm_state=value.tpm_state,
    )


def close_from_message(message: cycle_pb2.CycleClose) -> CycleClose:
    """The last message, checked. :raises Problem: BAD_FIELD"""
    return CycleClose(
        clusters=message.clusters,
        cycle_digest=_exactly(message.cycle_digest, DIGEST_BYTES, "close.cycle_digest"),
        point_time_ms=milliseconds(message.point_time, "close.point_time"),
        application_consistent=message.application_consistent,
        nvram=_at_most(message.nvram, MAX_STATE_BYTES, "close.nvram"),
        tpm_state=_at_most(message.tpm_state, MAX_STATE_BYTES, "close.tpm_state"),
    )


def request_to_message(value: CycleRequest) -> cycle_pb2.ReplicateRequest:
    """Any message of a sender."""
    match value:
        case Frame():
            return cycle_pb2.ReplicateRequest(clusters=frame_to_message(value))
        case CycleOpen():
            return cycle_pb2.ReplicateRequest(open=open_to_message(value))
        case CycleClose():
            return cycle_pb2.ReplicateRequest(close=close_to_message(value))


def request_to_bytes(value: CycleRequest) -> bytes:
    """Any message of a sender as it travels; byte for byte what the message would serialize to.

    A frame's payload is copied once: through a message inside a message it would be copied four
    times, which costs more than its encryption.
    """
    if not isinstance(value, Frame) or not value.payload:
        return request_to_message(value).SerializeToString()
    before = cycle_pb2.ClusterFrame(
        disk=value.disk,
        indexes=value.indexes,
        stored_bytes=value.stored_bytes,
        digests=value.digests,
    ).SerializeToString()
    after = cycle_pb2.ClusterFrame(stored_digests=value.stored_digests).SerializeToString()
    lead = _PAYLOAD_TAG + _varint(len(value.payload))
    length = len(before) + len(lead) + len(value.payload) + len(after)
    return b"".join((_CLUSTERS_TAG, _varint(length), before, lead, value.payload, after))


def _tag(field_number: int) -> bytes:
    """Of a field with a length in front (wire type 2)."""
    return _varint(field_number << 3 | 2)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


_PAYLOAD_TAG = _tag(cycle_pb2.ClusterFrame.PAYLOAD_FIELD_NUMBER)
_CLUSTERS_TAG = _tag(cycle_pb2.ReplicateRequest.CLUSTERS_FIELD_NUMBER)


def request_from_message(message: cycle_pb2.ReplicateRequest) -> CycleRequest:
    """Any message of a sender, checked. :raises Problem: BAD_FIELD, FRAME_TOO_LARGE"""
    match message.WhichOneof("body"):
        case "clusters":
            return frame_from_message(message.clusters)
        case "open":
            return open_from_message(message.open)
        case "close":
            return close_from_message(message.close)
        case _:
            _bad("body", "The message holds neither open nor clusters nor close.")


def reply_to_message(value: CycleReply) -> cycle_pb2.ReplicateResponse:
    """Any message of a receiver."""
    match value:
        case Durable():
            return cycle_pb2.ReplicateResponse(
                durable=cycle_pb2.CycleDurable(
                    durable_frames=value.durable_frames, received_frames=value.received_frames
                )
            )
        case Accepted():
            return cycle_pb2.ReplicateResponse(
                accepted=cycle_pb2.CycleAccepted(durable_frames=value.durable_frames)
            )
        case Acknowledged():
            return cycle_pb2.ReplicateResponse(
                acknowledged=cycle_pb2.CycleAcknowledged(
                    seq=value.seq,
                    cycle_digest=value.cycle_digest,
                    duplicate=value.duplicate,
                    epoch=value.epoch,
                )
            )


def reply_from_message(message: cycle_pb2.ReplicateResponse) -> CycleReply:
    """Any message of a receiver, checked. :raises Problem: BAD_FIELD"""
    match message.WhichOneof("body"):
        case "durable":
            return Durable(message.durable.durable_frames, message.durable.received_frames)
        case "accepted":
            return Accepted(message.accepted.durable_frames)
        case "acknowledged":
            end = message.acknowledged
            digest = _exactly(end.cycle_digest, DIGEST_BYTES, "acknowledged.cycle_digest")
            return Acknowledged(end.seq, digest, end.duplicate, end.epoch)
        case _:
            _bad("body", "The message holds neither accepted nor durable nor acknowledged.")
