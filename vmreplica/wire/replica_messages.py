"""Replicas, their policy, head and place ↔ messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vmreplica.core.cycle import DIGEST_BYTES, Disk
from vmreplica.core.manifest import Head, PointKind, PointState, RecoveryPoint
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import (
    DiskRecord,
    OwnerRecord,
    PolicyRecord,
    ReplicaRecord,
    TestFailoverRecord,
)
from vmreplica.ports.replica_link import Location, NewReplica, ReplicaHead
from vmreplica.v1 import location_pb2, replica_pb2, types_pb2
from vmreplica.wire.cycle_messages import (
    check_uuid,
    disk_to_message,
    disks_from_messages,
)
from vmreplica.wire.enums import value_of
from vmreplica.wire.times import milliseconds, timestamp

MAX_NAME_CHARACTERS = 255
MAX_DOMAIN_XML_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PointFacts:
    """What a point's message says beyond the manifest's point itself.

    :param qemu_json: target → ``json:{…}`` of the whole chain, may be empty.
    """

    size_bytes: int = 0
    in_use: bool = False
    qemu_json: tuple[tuple[str, str], ...] = ()


def policy_to_message(policy: PolicyRecord) -> types_pb2.Policy:
    """A policy, every field."""
    return types_pb2.Policy(
        frequency_ms=policy.frequency_ms,
        compression=policy.compression,
        route=policy.route,
        disks=policy.disks,
        recovery_points=policy.recovery_points,
        folder=policy.folder,
        bandwidth_limit_bytes_per_s=policy.bandwidth_limit_bytes_per_s,
    )


def policy_from_message(
    message: types_pb2.Policy,
    base: PolicyRecord = PolicyRecord(),  # noqa: B008 - frozen
    update_fields: Sequence[str] = (),
) -> PolicyRecord:
    """``base`` with what the message says.

    :param update_fields: names of fields to take over even where they are empty or zero; empty =
        every field of the message that is neither.
    :raises Problem: BAD_FIELD: unknown field name, compression or route.
    """
    known = {field.name for field in message.DESCRIPTOR.fields}
    unknown = sorted(set(update_fields) - known)
    if unknown:
        raise Problem(
            Reason.BAD_FIELD,
            f"A policy has no field {unknown[0]!r}.",
            field="update_fields",
            value=unknown[0],
            remedy="One of " + ", ".join(sorted(known)) + ".",
        )
    _one_of(message.compression, ("", "zstd", "none"), "policy.compression")
    _one_of(message.route, ("", "auto", "direct", "relay"), "policy.route")

    def takes(name: str, value: object) -> bool:
        return name in update_fields if update_fields else bool(value)

    return PolicyRecord(
        frequency_ms=message.frequency_ms
        if takes("frequency_ms", message.frequency_ms)
        else base.frequency_ms,
        compression=(message.compression or "zstd")
        if takes("compression", message.compression)
        else base.compression,
        route=(message.route or "auto") if takes("route", message.route) else base.route,
        disks=tuple(message.disks) if takes("disks", message.disks) else base.disks,
        recovery_points=message.recovery_points
        if takes("recovery_points", message.recovery_points)
        else base.recovery_points,
        folder=message.folder if takes("folder", message.folder) else base.folder,
        bandwidth_limit_bytes_per_s=message.bandwidth_limit_bytes_per_s
        if takes("bandwidth_limit_bytes_per_s", message.bandwidth_limit_bytes_per_s)
        else base.bandwidth_limit_bytes_per_s,
    )


def disk_record(disk: Disk) -> DiskRecord:
    """A disk for the cluster store."""
    return DiskRecord(target=disk.target, size_bytes=disk.size_bytes, excluded=disk.excluded)


def disk_of_record(record: DiskRecord) -> Disk:
    """The reverse."""
    return Disk(record.target, record.size_bytes, record.excluded)


def new_replica_to_message(value: NewReplica) -> replica_pb2.CreateReplicaRequest:
    """CreateReplica's request."""
    return replica_pb2.CreateReplicaRequest(
        vm_uuid=value.vm_uuid,
        vm_name=value.vm_name,
        disks=[disk_to_message(disk) for disk in value.disks],
        domain_xml=value.domain_xml,
        primary_access_point=value.primary_access_point,
        frequency_ms=value.frequency_ms,
        folder=value.folder,
        recovery_points=value.recovery_points,
    )


def new_replica_from_message(message: replica_pb2.CreateReplicaRequest) -> NewReplica:
    """CreateReplica's request, checked. :raises Problem: BAD_FIELD"""
    name = message.vm_name
    if not name or len(name) > MAX_NAME_CHARACTERS or "/" in name or not name.isprintable():
        raise _bad("vm_name", "A VM's name has 1 to 255 printable characters, no slash.", name)
    host, colon, port = message.primary_access_point.rpartition(":")
    if not (host and colon and port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise _bad(
            "primary_access_point",
            "The primary's access point must be HOST:PORT.",
            message.primary_access_point,
        )
    if len(message.domain_xml) > MAX_DOMAIN_XML_BYTES:
        raise _bad("domain_xml", "The domain XML may have at most 1 MiB.", "")
    if message.folder and not _plain_folder(message.folder):
        raise _bad("folder", "A folder is one plain name without slashes.", message.folder)
    return NewReplica(
        vm_uuid=check_uuid(message.vm_uuid, "vm_uuid"),
        vm_name=name,
        disks=disks_from_messages(message.disks),
        domain_xml=message.domain_xml,
        primary_access_point=message.primary_access_point,
        frequency_ms=message.frequency_ms,
        folder=message.folder,
        recovery_points=message.recovery_points,
    )


def head_from_message(message: types_pb2.Replica) -> ReplicaHead:
    """What a sender needs of a Replica. :raises Problem: BAD_FIELD where the answer is broken."""
    if len(message.acked_digest) not in (0, DIGEST_BYTES):
        raise _bad("acked_digest", "The answer's digest is not 16 bytes.", "")
    return ReplicaHead(
        replica_id=check_uuid(message.replica_id, "replica_id"),
        trust_group=message.trust_group,
        owner=message.owner,
        epoch=message.epoch,
        acked_seq=message.acked_seq,
        acked_digest=message.acked_digest or bytes(DIGEST_BYTES),
        acked_cycle_id=message.acked_cycle_id,
        acked_time_ms=milliseconds(message.acked_time, "acked_time"),
        disks=tuple(Disk(d.target, d.size_bytes, d.excluded) for d in message.disks),
        placement_reasons=tuple(message.placement_reasons),
    )


def location_to_message(value: Location, *, route: str = "direct") -> location_pb2.LocateResponse:
    """Locate's answer."""
    return location_pb2.LocateResponse(
        replica_id=value.replica_id,
        node=value.node,
        address=value.address,
        server_name=value.server_name,
        epoch=value.epoch,
        ticket=value.ticket,
        route=route,
    )


def location_from_message(message: location_pb2.LocateResponse) -> Location:
    """Locate's answer."""
    return Location(
        replica_id=message.replica_id,
        node=message.node,
        address=message.address,
        server_name=message.server_name,
        epoch=message.epoch,
        ticket=message.ticket,
    )


def replica_message(
    record: ReplicaRecord,
    owner: OwnerRecord | None = None,
    head: Head | None = None,
    *,
    state: str = "",
    health: str = "",
    size_bytes: int = 0,
    point_count: int = 0,
    replica_access_point: str = "",
) -> types_pb2.Replica:
    """A replica as its record, owner and (asked of the owner) head say.

    :param state: CamelCase spelling, as interfaces §3.
    :param health: likewise.
    """
    message = types_pb2.Replica(
        replica_id=record.replica_id,
        vm_uuid=record.vm_uuid,
        vm_name=record.vm_name,
        owner=owner.node if owner else "",
        epoch=owner.epoch if owner else 0,
        trust_group=record.trust_group,
        state=value_of(types_pb2.ReplicationState, state, "state"),
        health=value_of(types_pb2.Health, health, "health"),
        disks=[disk_to_message(disk_of_record(disk)) for disk in record.disks],
        storage_path=record.folder_path,
        domain_name=record.domain_name,
        primary_access_point=record.primary_access_point,
        replica_access_point=replica_access_point,
        placement_node=record.placement_node,
        placement_reasons=record.placement_reasons,
        folder=record.policy.folder,
        policy=policy_to_message(record.policy),
        size_bytes=size_bytes,
        point_count=point_count,
        test_failover=test_failover_message(record, record.test_failover),
    )
    if head is not None:
        message.acked_seq = head.seq
        message.acked_digest = head.digest
        message.acked_cycle_id = head.cycle_id
        set_time(message, "acked_time", head.time_ms)
    return message


def test_failover_message(
    record: ReplicaRecord, test: TestFailoverRecord
) -> types_pb2.TestFailover:
    """The one test failover a replica may have."""
    return types_pb2.TestFailover(
        replica_id=record.replica_id,
        vm_name=record.vm_name,
        domain_name=test.domain_name,
        running=test.running,
        node=test.node,
        last_time=timestamp(test.last_time_ms),
        last_result=test.last_result,
        seq=test.seq,
    )


def point_message(point: RecoveryPoint, facts: PointFacts = PointFacts()) -> types_pb2.Point:
    """One recovery point with its chains."""
    json_of = dict(facts.qemu_json)
    return types_pb2.Point(
        seq=point.seq,
        time=timestamp(point.time_ms),
        kind=value_of(types_pb2.PointKind, PointKind(point.kind).value),
        state=value_of(types_pb2.PointState, PointState(point.state).value),
        size_bytes=facts.size_bytes,
        in_use=facts.in_use,
        chains=[
            types_pb2.Chain(target=target, files=files, qemu_json=json_of.get(target, ""))
            for target, files in point.chain
        ],
    )


def set_time(message: types_pb2.Replica | types_pb2.Replication, field: str, time_ms: int) -> None:
    """Set a Timestamp field; 0 leaves it unset."""
    value = timestamp(time_ms)
    if value is not None:
        getattr(message, field).CopyFrom(value)


def _one_of(value: str, allowed: Sequence[str], field: str) -> None:
    if value not in allowed:
        raise Problem(
            Reason.BAD_FIELD,
            f"{field} cannot be {value!r}.",
            field=field,
            value=value[:64],
            remedy="One of " + ", ".join(filter(None, allowed)) + ".",
        )


def _plain_folder(name: str) -> bool:
    allowed = all(c.isascii() and (c.isalnum() or c in "._-") for c in name)
    return allowed and len(name) <= 128 and not name.startswith(".")


def _bad(field: str, message: str, value: str) -> Problem:
    remedy = "Send it as the comments of the .proto files say."
    return Problem(Reason.BAD_FIELD, message, field=field, value=value[:64], remedy=remedy)
