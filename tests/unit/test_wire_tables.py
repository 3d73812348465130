"""Problems, enums, times, roles, relayed identities, JSON shapes and records on the wire."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from google.rpc import error_details_pb2, status_pb2

from vmreplica.core.cycle import CycleKind, Disk
from vmreplica.core.identity import Identity, Role, RoleKind
from vmreplica.core.manifest import Head, PointState, RecoveryPoint
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import (
    BrokerRecord,
    DiskRecord,
    NodeRecord,
    OperationRecord,
    OperationState,
    OwnerRecord,
    PolicyRecord,
    ReplicaRecord,
    ReplicationRecord,
    StorageRecord,
)
from vmreplica.ports.cluster_store import OutcomeUnknown, StoreRefused, StoreUnavailable
from vmreplica.ports.event_log import Severity
from vmreplica.ports.replica_link import Location, NewReplica
from vmreplica.v1 import event_pb2, location_pb2, replica_pb2, types_pb2
from vmreplica.wire import json_shapes, problem_status
from vmreplica.wire.call import Call, require_role
from vmreplica.wire.enums import name_of, spellings, value_of
from vmreplica.wire.event_filter import Event, event_message, filter_from_message
from vmreplica.wire.record_messages import (
    CycleFacts,
    ReplicationFacts,
    broker_message,
    node_message,
    operation_message,
    problem_of_record,
    problem_record,
    replication_message,
)
from vmreplica.wire.relay_identity import LIFETIME_MS, sign, verify
from vmreplica.wire.replica_messages import (
    PointFacts,
    location_from_message,
    location_to_message,
    new_replica_from_message,
    new_replica_to_message,
    point_message,
    policy_from_message,
    policy_to_message,
    replica_message,
)
from vmreplica.wire.role_uri import parse_role, role_uri
from vmreplica.wire.times import parse_rfc3339, rfc3339

REPLICA = "123e4567-e89b-42d3-a456-426614174000"
NOW = 1_700_000_000_123


@pytest.mark.parametrize("reason", list(Reason))
def test_problem_survives_the_wire(reason: Reason) -> None:
    problem = Problem(
        reason,
        "because",
        field="f",
        value="v",
        remedy="r",
        retryable=reason is not Reason.BUSY,
        cap="c:1",
        node="n",
        epoch=9,
    )
    back = problem_status.from_status(
        problem.grpc_code, "other text", problem_status.to_details(problem)
    )
    facts = ("reason", "message", "field", "value", "remedy", "retryable", "cap", "node", "epoch")
    assert [getattr(back, f) for f in facts] == [getattr(problem, f) for f in facts]


@pytest.mark.parametrize(
    ("code", "text", "reason"),
    [
        ("UNAVAILABLE", "connection refused", Reason.NODE_UNREACHABLE),
        ("UNAVAILABLE", "Ssl handshake: CERTIFICATE_VERIFY_FAILED", Reason.CERTIFICATE_INVALID),
        ("UNAVAILABLE", "Peer name x is not in peer certificate", Reason.CERTIFICATE_INVALID),
        ("DEADLINE_EXCEEDED", "", Reason.NODE_UNREACHABLE),
        ("CANCELLED", "", Reason.NODE_UNREACHABLE),
        ("UNAUTHENTICATED", "", Reason.NO_IDENTITY),
        ("PERMISSION_DENIED", "", Reason.NOT_AUTHORIZED),
        ("UNIMPLEMENTED", "", Reason.UNIMPLEMENTED),
        ("RESOURCE_EXHAUSTED", "Received message larger than max", Reason.FRAME_TOO_LARGE),
        ("RESOURCE_EXHAUSTED", "too many", Reason.TOO_MANY_STREAMS),
        ("INTERNAL", "x", Reason.INTERNAL),
        ("UNKNOWN", "x", Reason.INTERNAL),
        ("NEVER_HEARD_OF", "x", Reason.INTERNAL),
    ],
)
def test_foreign_statuses(code: str, text: str, reason: Reason) -> None:
    problem = problem_status.from_status(code, text)
    assert problem.reason is reason and problem.message


def test_details_that_are_not_ours() -> None:
    assert problem_status.problem_from_details(b"\xff\xff") is None
    status = status_pb2.Status(code=5, message="m")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="BUSY", domain="other.example"))
    assert problem_status.problem_from_details(status.SerializeToString()) is None
    newer = status_pb2.Status(code=5, message="m")
    newer.details.add().Pack(
        error_details_pb2.ErrorInfo(
            reason="FROM_THE_FUTURE", domain="vmreplica.dev", metadata={"epoch": "-1"}
        )
    )
    problem = problem_status.problem_from_details(newer.SerializeToString())
    assert problem is not None and problem.reason is Reason.INTERNAL
    assert problem.message == "FROM_THE_FUTURE: m" and problem.epoch == 0


def test_exceptions_as_problems() -> None:
    of = problem_status.problem_of
    busy = Problem(Reason.BUSY, "x")
    assert of(busy) is busy
    assert of(StoreUnavailable("secret")).reason is Reason.STORE_UNAVAILABLE
    assert "request id" in of(OutcomeUnknown("secret")).remedy
    assert of(StoreRefused("secret")).reason is Reason.LEASE_LOST
    bug = of(ValueError("secret"))
    assert bug.reason is Reason.INTERNAL and "secret" not in bug.message


def test_enum_spellings() -> None:
    assert name_of(types_pb2.ReplicationState, 6) == "FailOverWaitingCompletion"
    assert name_of(types_pb2.Mode, 4) == "TestReplica"
    assert name_of(types_pb2.Mode, 0) == "" and name_of(types_pb2.Mode, 77) == ""
    for enum in (types_pb2.ReplicationState, types_pb2.Mode, types_pb2.PointState):
        for number, name in spellings(enum.DESCRIPTOR).items():
            assert value_of(enum, name) == number
    assert value_of(types_pb2.Mode, "") == 0
    with pytest.raises(Problem, match="Health") as caught:
        value_of(types_pb2.Health, "Ill", "health")
    assert caught.value.field == "health" and "Critical" in caught.value.remedy


def test_times() -> None:
    assert rfc3339(NOW) == "2023-11-14T22:13:20.123Z"
    assert rfc3339(0) is None
    assert parse_rfc3339("2023-11-14T22:13:20.123Z") == NOW
    assert parse_rfc3339("2023-11-14T23:13:20.123+01:00") == NOW
    for bad in ("", "now", "2023-11-14", "2023-11-14T22:13:20", "99999999"):
        with pytest.raises(Problem):
            parse_rfc3339(bad)


@pytest.mark.parametrize(
    ("uri", "role"),
    [
        ("spiffe://c1/broker/b1", Role("c1", RoleKind.BROKER, "b1")),
        ("spiffe://c1/operator/blue/eve", Role("c1", RoleKind.OPERATOR, "eve", "blue")),
        ("spiffe://c1/operator/eve", None),
        ("spiffe://c1/broker", None),
        ("spiffe://c1/broker/", None),
        ("spiffe://c1/broker/a/b", None),
        ("spiffe:///broker/b1", None),
        ("spiffe://c1/king/k", None),
        ("https://c1/broker/b1", None),
    ],
)
def test_roles(uri: str, role: Role | None) -> None:
    assert parse_role(uri) == role
    if role is not None:
        assert role_uri(role) == uri


def test_require_role() -> None:
    operator = Identity(roles=(Role("c1", RoleKind.OPERATOR, "eve", "blue"),))
    require_role(Call.local(), "c1", RoleKind.ADMINISTRATOR)
    require_role(Call(operator), "c1", RoleKind.ADMINISTRATOR, RoleKind.OPERATOR)
    with pytest.raises(Problem) as caught:
        require_role(Call(operator), "c2", RoleKind.OPERATOR)
    assert caught.value.reason is Reason.ROLE_REQUIRED and "spiffe://c2" in caught.value.remedy


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65_537, 2048),
    ],
    ids=["ec", "ed25519", "rsa"],
)
def test_relayed_identity(key: Any) -> None:
    identity = Identity(("p1.example",), (Role("c1", RoleKind.VIEWER, "v"),), "f" * 64)
    value = sign(identity, REPLICA, NOW, key)
    back = verify(value, NOW + 1, key.public_key())
    assert back.identity == identity and back.replica_id == REPLICA
    for flipped in (2, len(value) // 2, len(value) - 1):
        forged = bytearray(value)
        forged[flipped] ^= 1
        with pytest.raises(Problem):
            verify(bytes(forged), NOW, key.public_key())
    for late in (LIFETIME_MS + 300_000, -10 * 60_000):
        with pytest.raises(Problem, match="time is over"):
            verify(value, NOW + late, key.public_key())
    for rubbish in (b"", b"\0", b"\xff\xff", value[:40], bytes(20_000)):
        with pytest.raises(Problem):
            verify(rubbish, NOW, key.public_key())


def test_policy_updates() -> None:
    base = PolicyRecord(frequency_ms=5_000, recovery_points=3, bandwidth_limit_bytes_per_s=9)
    assert policy_from_message(policy_to_message(base)) == base
    assert policy_from_message(types_pb2.Policy(route="relay"), base) == PolicyRecord(
        frequency_ms=5_000, recovery_points=3, bandwidth_limit_bytes_per_s=9, route="relay"
    )
    zeroed = policy_from_message(types_pb2.Policy(), base, ["bandwidth_limit_bytes_per_s"])
    assert zeroed.bandwidth_limit_bytes_per_s == 0 and zeroed.recovery_points == 3
    for message, fields in (
        (types_pb2.Policy(route="north"), []),
        (types_pb2.Policy(compression="lzma"), []),
        (types_pb2.Policy(), ["speed"]),
    ):
        with pytest.raises(Problem):
            policy_from_message(message, base, fields)


NEW = NewReplica(
    vm_uuid=REPLICA,
    vm_name="guest 1",
    disks=(Disk("vda", 1024),),
    domain_xml=b"<domain/>",
    primary_access_point="p1.example:7444",
    frequency_ms=5_000,
    folder="blue-1",
    recovery_points=2,
)


def test_new_replica_goes_both_ways_and_is_checked() -> None:
    message = new_replica_to_message(NEW)
    assert new_replica_from_message(message) == NEW
    for field, value in (
        ("vm_uuid", "x"),
        ("vm_name", ""),
        ("vm_name", "a/b"),
        ("vm_name", "a\nb"),
        ("primary_access_point", "p1"),
        ("primary_access_point", "p1:0"),
        ("primary_access_point", ":7443"),
        ("folder", "../x"),
        ("folder", ".hidden"),
        ("folder", "a/b"),
    ):
        broken = replica_pb2.CreateReplicaRequest()
        broken.CopyFrom(message)
        setattr(broken, field, value)
        with pytest.raises(Problem) as caught:
            new_replica_from_message(broken)
        assert caught.value.field == field


def test_location_goes_both_ways() -> None:
    where = Location(
        replica_id=REPLICA, node="r2", address="h:1", server_name="r2.x", epoch=4, ticket="t"
    )
    assert location_from_message(location_to_message(where)) == where
    assert json_shapes.shape(location_to_message(where)) == {
        "replica_id": REPLICA,
        "node": "r2",
        "address": "h:1",
        "server_name": "r2.x",
        "epoch": 4,
        "route": "direct",
        "ticket": "t",
    }
    assert json_shapes.shape(location_pb2.LocateResponse())["ticket"] is None


RECORD = ReplicaRecord(
    replica_id=REPLICA,
    vm_uuid=REPLICA,
    vm_name="guest1",
    domain_name="guest1 (123e4567)",
    trust_group="blue",
    primary_access_point="p1:7444",
    storage_location="/s",
    folder_path="/s/x.1",
    disks=(DiskRecord(target="vda", size_bytes=1 << 40),),
    placement_node="r2",
    placement_reasons=("most free space",),
)


def test_replica_in_json() -> None:
    head = Head(seq=4, cycle_id=b"c" * 16, digest=b"\xab" * 16, time_ms=NOW)
    owner = OwnerRecord(node="r2", incarnation="i", epoch=1 << 62)
    message = replica_message(
        RECORD, owner, head, state="Replicating", health="Normal", size_bytes=5, point_count=1
    )
    shaped = json_shapes.shape(message)
    wanted = {
        "replica_id": REPLICA,
        "state": "Replicating",
        "health": "Normal",
        "owner": "r2",
        "epoch": 1 << 62,
        "storage_path": "/s/x.1",
        "acked_seq": 4,
        "acked_digest": "ab" * 16,
        "acked_time": "2023-11-14T22:13:20.123Z",
        "size_bytes": 5,
        "point_count": 1,
        "placement": {"node": "r2", "reasons": ["most free space"]},
        "trust_group": "blue",
        "domain_name": "guest1 (123e4567)",
    }
    assert {key: shaped[key] for key in wanted} == wanted
    test = shaped["test_failover"]
    assert test["running"] is False and test["last_time"] is None and test["last_result"] is None
    bare = json_shapes.shape(replica_message(RECORD))
    assert bare["owner"] is None and bare["acked_digest"] is None and bare["acked_time"] is None
    assert bare["state"] is None
    json.dumps(shaped)


def test_replication_in_json() -> None:
    record = ReplicationRecord(
        replica_id=REPLICA,
        vm_uuid=REPLICA,
        vm_name="guest1",
        node="p1",
        primary_access_point="p1:7444",
        replica_access_point="r:7443",
        trust_group="blue",
        state="Replicating",
        policy=PolicyRecord(frequency_ms=5_000),
        disks=(DiskRecord(target="vda", size_bytes=512),),
        acked_seq=3,
        acked_time_ms=NOW,
    )
    cycle = CycleFacts(
        seq=3,
        kind=CycleKind.DELTA,
        begin_time_ms=NOW,
        acked_time_ms=NOW + 5,
        changed_bytes=1,
        wire_bytes=2,
        latency_ms=5,
    )
    facts = ReplicationFacts(health="Warning", health_reasons=("late",), last_cycle=cycle)
    shaped = json_shapes.shape(replication_message(record, facts))
    named = (
        "replica_id vm_name vm_uuid mode state health health_reasons primary_access_point "
        "primary_node replica_access_point replica_node epoch route frequency_ms compression "
        "trust_group disks acked_seq acked_time pending_bytes initial last_cycle last_problem"
    ).split()
    assert set(named) <= set(shaped)
    assert (shaped["mode"], shaped["state"], shaped["health"]) == (
        "Primary",
        "Replicating",
        "Warning",
    )
    assert (shaped["frequency_ms"], shaped["compression"], shaped["route"]) == (
        5_000,
        "zstd",
        "auto",
    )
    assert shaped["disks"] == [{"target": "vda", "size_bytes": 512, "excluded": False}]
    assert shaped["last_cycle"]["kind"] == "Delta"
    assert shaped["last_cycle"]["acked_time"] == "2023-11-14T22:13:20.128Z"
    assert shaped["initial"] == {"done_bytes": 0, "total_bytes": 0}
    assert shaped["last_problem"] is None
    assert json_shapes.shape(replication_message(record))["last_cycle"] is None


def test_point_in_json() -> None:
    point = RecoveryPoint(
        seq=9, time_ms=NOW, state=PointState.GOOD, chain=(("vda", ("a.qcow2", "b.qcow2")),)
    )
    shaped = json_shapes.shape(
        point_message(point, PointFacts(size_bytes=7, in_use=True, qemu_json=(("vda", "json:{}"),)))
    )
    assert shaped == {
        "seq": 9,
        "time": "2023-11-14T22:13:20.123Z",
        "kind": "CrashConsistent",
        "state": "Good",
        "size_bytes": 7,
        "in_use": True,
        "chain": {"vda": ["a.qcow2", "b.qcow2"]},
        "qemu_json": {"vda": "json:{}"},
    }


def test_operation_in_json() -> None:
    problem = Problem(Reason.NO_SPACE, "full", field="storage", remedy="delete something")
    record = OperationRecord(
        operation_id="o",
        verb="drain",
        target="r2",
        state=OperationState.FAILED,
        started_ms=NOW,
        problem=problem_record(problem),
        result={"moved": "3"},
    )
    shaped = json_shapes.shape(operation_message(record))
    assert shaped["state"] == "Failed" and shaped["finished"] is None
    assert shaped["problem"] == json_shapes.problem_shape(problem)
    assert shaped["problem"]["grpc_code"] == "RESOURCE_EXHAUSTED"
    assert shaped["result"] == {"moved": "3"}
    assert problem_of_record(problem_record(problem)).remedy == "delete something"
    running = json_shapes.shape(
        operation_message(OperationRecord(operation_id="o", verb="v", target="t"))
    )
    assert running["problem"] is None


def test_node_and_broker_in_json() -> None:
    node = NodeRecord(
        name="r1",
        incarnation="i",
        address="r1:7444",
        server_name="r1",
        version="1",
        storage=(StorageRecord(path="/s", shared=True, total_bytes=9, free_bytes=4),),
    )
    assert json_shapes.shape(node_message(node, "Ready", 3)) == {
        "name": "r1",
        "address": "r1:7444",
        "state": "Ready",
        "replicas": 3,
        "version": "1",
        "storage": [{"path": "/s", "shared": True, "total_bytes": 9, "free_bytes": 4}],
    }
    broker = BrokerRecord(name="b1", address="b1:7443", server_name="b1", version="1")
    leader = json_shapes.shape(broker_message(broker, leader=True, client_access_point="c:7443"))
    assert leader["leader"] is True and leader["client_access_point"] == "c:7443"
    standby = json_shapes.shape(broker_message(broker, leader=False, client_access_point="c:7443"))
    assert standby["client_access_point"] is None and standby["state"] == "Standby"


def test_events_are_filtered() -> None:
    event = Event(
        event_id="1",
        time_ms=NOW,
        name="failover.test.started",
        message="m",
        severity=Severity.WARNING,
        vm_name="guest1",
        replica_id=REPLICA,
        data={"a": "b"},
    )
    request = event_pb2.WatchEventsRequest

    def wanted(**fields: Any) -> bool:
        return filter_from_message(request(**fields)).matches(event)

    assert wanted() and wanted(vm="guest1") and wanted(vm=REPLICA)
    assert wanted(name_glob="failover.*") and not wanted(name_glob="cycle.*")
    assert not wanted(vm="guest2")
    assert wanted(since={"seconds": 1_700_000_000}) and not wanted(since={"seconds": 1_800_000_000})
    shaped = json_shapes.shape(event_message(event))
    assert shaped["severity"] == "Warning" and shaped["data"] == {"a": "b"}
