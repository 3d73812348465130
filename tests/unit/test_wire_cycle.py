"""Cycle messages: what goes out comes in again, and rubbish is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from vmreplica.core.cycle import (
    Accepted,
    Acknowledged,
    CycleClose,
    CycleKind,
    CycleOpen,
    Disk,
    Durable,
    Frame,
)
from vmreplica.core.problems import Problem, Reason
from vmreplica.v1 import cycle_pb2, types_pb2
from vmreplica.wire.cycle_messages import (
    disk_from_message,
    reply_from_message,
    reply_to_message,
    request_from_message,
    request_to_bytes,
    request_to_message,
)

REPLICA = "123e4567-e89b-42d3-a456-426614174000"
OPEN = CycleOpen(
    replica_id=REPLICA,
    epoch=41,
    seq=7,
    parent_digest=b"p" * 16,
    kind=CycleKind.DELTA,
    disks=(Disk("vda", 1 << 30), Disk("vdb", 512)),
    cycle_id=b"c" * 16,
    since_cycle_id=b"s" * 16,
    resume=True,
    domain_xml=b"<domain/>",
)
FRAME = Frame(1, (5, 9), (65_536, 0), b"d" * 32, b"x" * 65_536, b"s" * 32)
CLOSE = CycleClose(
    clusters=2,
    cycle_digest=b"e" * 16,
    point_time_ms=1_700_000_000_123,
    application_consistent=True,
    nvram=b"n",
    tpm_state=b"t",
)
FULL = CycleOpen(
    replica_id=REPLICA,
    epoch=1,
    seq=1,
    parent_digest=bytes(16),
    kind=CycleKind.FULL,
    disks=(Disk("vda", 512, excluded=True),),
    cycle_id=b"c" * 16,
)


@pytest.mark.parametrize("value", [OPEN, FULL, FRAME, CLOSE])
def test_requests_go_both_ways(value: Any) -> None:
    raw = request_to_message(value).SerializeToString()
    assert request_from_message(cycle_pb2.ReplicateRequest.FromString(raw)) == value


LARGE = Frame(
    3, tuple(range(16)), (65_536,) * 16, b"d" * 256, bytes(range(256)) * 4_096, b"s" * 256
)
ZEROS = Frame(0, (7, 300), (0, 0), b"d" * 32, b"", b"s" * 32)


@pytest.mark.parametrize("value", [OPEN, FULL, FRAME, LARGE, ZEROS, CLOSE])
def test_bytes_are_those_of_the_message(value: Any) -> None:
    assert request_to_bytes(value) == request_to_message(value).SerializeToString()


@pytest.mark.parametrize(
    "value", [Accepted(3), Durable(4, 9), Acknowledged(7, b"e" * 16, True, 41), Accepted(0)]
)
def test_replies_go_both_ways(value: Any) -> None:
    raw = reply_to_message(value).SerializeToString()
    assert reply_from_message(cycle_pb2.ReplicateResponse.FromString(raw)) == value


def broken(value: Any, **changes: Any) -> Problem:
    message = request_to_message(value)
    body = getattr(message, message.WhichOneof("body"))
    for name, content in changes.items():
        if isinstance(content, list):
            del getattr(body, name)[:]
            getattr(body, name).extend(content)
        elif isinstance(content, Timestamp):
            getattr(body, name).CopyFrom(content)
        else:
            setattr(body, name, content)
    with pytest.raises(Problem) as caught:
        request_from_message(message)
    return caught.value


@pytest.mark.parametrize(
    ("value", "changes", "field"),
    [
        (OPEN, {"replica_id": REPLICA.upper()}, "open.replica_id"),
        (OPEN, {"replica_id": "../../etc"}, "open.replica_id"),
        (OPEN, {"replica_id": REPLICA + "\n"}, "open.replica_id"),
        (OPEN, {"seq": 0}, "open.seq"),
        (OPEN, {"seq": 1 << 63}, "open.seq"),
        (OPEN, {"kind": 0}, "open.kind"),
        (OPEN, {"kind": 99}, "open.kind"),
        (OPEN, {"parent_digest": b"short"}, "open.parent_digest"),
        (OPEN, {"cycle_id": b""}, "open.cycle_id"),
        (OPEN, {"cycle_id": b"x" * 17}, "open.cycle_id"),
        (OPEN, {"since_cycle_id": b""}, "open.since_cycle_id"),
        (FULL, {"since_cycle_id": b"s" * 16}, "open.since_cycle_id"),
        (OPEN, {"disks": []}, "open.disks"),
        (OPEN, {"disks": [types_pb2.Disk(target="vda", size_bytes=512)] * 2}, "open.disks"),
        (OPEN, {"disks": [types_pb2.Disk(target="../x", size_bytes=512)]}, "open.disks.target"),
        (OPEN, {"disks": [types_pb2.Disk(target="", size_bytes=512)]}, "open.disks.target"),
        (OPEN, {"disks": [types_pb2.Disk(target="vda", size_bytes=513)]}, "open.disks.size_bytes"),
        (OPEN, {"disks": [types_pb2.Disk(target="vda")]}, "open.disks.size_bytes"),
        (OPEN, {"domain_xml": bytes((1 << 20) + 1)}, "open.domain_xml"),
        (FRAME, {"indexes": []}, "clusters.indexes"),
        (FRAME, {"indexes": [5, 5]}, "clusters.indexes"),
        (FRAME, {"indexes": [5, 1 << 47]}, "clusters.indexes"),
        (FRAME, {"stored_bytes": [65_536]}, "clusters.stored_bytes"),
        (FRAME, {"stored_bytes": [65_537, 0]}, "clusters.stored_bytes"),
        (FRAME, {"stored_bytes": [65_536, 1]}, "clusters.stored_bytes"),
        (FRAME, {"digests": b"d" * 31}, "clusters.digests"),
        (FRAME, {"stored_digests": b""}, "clusters.stored_digests"),
        (CLOSE, {"cycle_digest": b""}, "close.cycle_digest"),
        (CLOSE, {"nvram": bytes((1 << 20) + 1)}, "close.nvram"),
        (CLOSE, {"tpm_state": bytes((1 << 20) + 1)}, "close.tpm_state"),
        (CLOSE, {"point_time": Timestamp(seconds=-1)}, "close.point_time"),
        (CLOSE, {"point_time": Timestamp(seconds=1, nanos=-5)}, "close.point_time"),
    ],
)
def test_bad_fields_are_named(value: Any, changes: dict[str, Any], field: str) -> None:
    problem = broken(value, **changes)
    assert (problem.reason, problem.field) == (Reason.BAD_FIELD, field)
    assert problem.message.endswith(".")


def test_frames_have_limits() -> None:
    many = list(range(1_025))
    assert broken(FRAME, indexes=many).reason is Reason.FRAME_TOO_LARGE
    assert broken(FRAME, payload=bytes((1 << 20) + 1)).reason is Reason.FRAME_TOO_LARGE


def test_empty_messages_are_refused() -> None:
    with pytest.raises(Problem, match="neither open"):
        request_from_message(cycle_pb2.ReplicateRequest())
    with pytest.raises(Problem, match="neither accepted"):
        reply_from_message(cycle_pb2.ReplicateResponse())
    with pytest.raises(Problem, match="16 bytes"):
        reply_from_message(
            cycle_pb2.ReplicateResponse(acknowledged=cycle_pb2.CycleAcknowledged(seq=1))
        )
    with pytest.raises(Problem):
        disk_from_message(types_pb2.Disk(target="v" * 33, size_bytes=512))
