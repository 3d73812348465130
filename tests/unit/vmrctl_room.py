"""A real gRPC server with canned answers, in a thread, and vmrctl run against it in process."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from vmrctl.app import run
from vmreplica.adapters import certificates, tls
from vmreplica.adapters.grpc_server import GrpcServer
from vmreplica.adapters.system_clock import SystemClock
from vmreplica.core.problems import Problem, Reason
from vmreplica.v1 import (
    connection_pb2,
    event_pb2,
    failover_pb2,
    location_pb2,
    node_pb2,
    operation_pb2,
    replica_pb2,
    replication_pb2,
    settings_pb2,
    store_pb2,
    types_pb2,
    version_pb2,
)
from vmreplica.wire.call import Call
from vmreplica.wire.times import timestamp

CLOCK = SystemClock()
T0 = 1_795_406_400_000
REPLICA_ID = "0d9e4c52-6a0b-4c77-9a55-3f0f3c6d2a11"
VM_UUID = "7f1d2c3b-0000-4000-8000-000000000001"
OPERATION_ID = "6f1c2a0e-6a55-4b0b-9a59-0d6c1f7d9c11"
SERVICES = (
    "ConnectionService EventService FailoverService LocationService NodeService OperationService "
    "ReplicaService ReplicationService SettingsService StoreService VersionService"
).split()


def replication(name: str = "guest1", **changes: Any) -> types_pb2.Replication:
    fields: dict[str, Any] = {
        "replica_id": REPLICA_ID,
        "vm_uuid": VM_UUID,
        "vm_name": name,
        "mode": types_pb2.MODE_PRIMARY,
        "state": types_pb2.REPLICATION_STATE_REPLICATING,
        "health": types_pb2.HEALTH_NORMAL,
        "primary_access_point": "p1.example:7444",
        "primary_node": "p1",
        "replica_access_point": "replica.example:7443",
        "replica_node": "r2",
        "epoch": 41,
        "policy": types_pb2.Policy(frequency_ms=300_000, compression="zstd", route="auto"),
        "acked_seq": 12,
        "acked_time": timestamp(T0),
        "initial_done_bytes": 2**31,
        "initial_total_bytes": 2**32,
        "trust_group": "default",
        "last_cycle": types_pb2.CycleSummary(
            seq=12,
            kind=types_pb2.CYCLE_KIND_DELTA,
            begin_time=timestamp(T0 - 250),
            acked_time=timestamp(T0),
            changed_bytes=131_072,
            wire_bytes=70_000,
            latency_ms=250,
        ),
    }
    return types_pb2.Replication(**(fields | changes))


def replica(name: str = "guest1", **changes: Any) -> types_pb2.Replica:
    fields: dict[str, Any] = {
        "replica_id": REPLICA_ID,
        "vm_uuid": VM_UUID,
        "vm_name": name,
        "domain_name": name,
        "owner": "r2",
        "epoch": 41,
        "trust_group": "default",
        "state": types_pb2.REPLICATION_STATE_REPLICATING,
        "health": types_pb2.HEALTH_NORMAL,
        "acked_seq": 12,
        "acked_digest": bytes(range(16)),
        "acked_time": timestamp(T0),
        "storage_path": "/srv/replicas/x.1",
        "primary_access_point": "p1.example:7444",
        "placement_node": "r2",
        "placement_reasons": ["most free space"],
        "size_bytes": 3 * 2**30,
        "point_count": 2,
        "disks": [types_pb2.Disk(target="vda", size_bytes=2**31)],
    }
    return types_pb2.Replica(**(fields | changes))


def points() -> list[types_pb2.Point]:
    return [
        types_pb2.Point(
            seq=seq,
            time=timestamp(T0 + seq * 1000),
            kind=types_pb2.POINT_KIND_CRASH_CONSISTENT,
            state=types_pb2.POINT_STATE_GOOD,
            size_bytes=65_536 * seq,
            chains=[
                types_pb2.Chain(
                    target="vda",
                    files=[f"layers/vda.{n}.qcow2" for n in range(1, seq + 1)],
                    qemu_json=f'json:{{"driver":"qcow2","seq":{seq}}}',
                )
            ],
        )
        for seq in (1, 2, 3)
    ]


def operation(state: str = "Succeeded", **changes: Any) -> types_pb2.Operation:
    fields: dict[str, Any] = {
        "operation_id": OPERATION_ID,
        "verb": "initial",
        "target": "guest1",
        "state": state,
        "step": "sending",
        "done": 50,
        "total": 100,
        "unit": "bytes",
        "started": timestamp(T0),
    }
    return types_pb2.Operation(**(fields | changes))


def _watch() -> list[operation_pb2.WatchOperationResponse]:
    reports = [operation("Running", done=n * 25) for n in range(4)]
    reports.append(operation("Succeeded", done=100, finished=timestamp(T0 + 5000)))
    return [operation_pb2.WatchOperationResponse(operation=report) for report in reports]


def events() -> list[event_pb2.WatchEventsResponse]:
    names = ("node.joined", "cycle.acknowledged", "cycle.missed")
    return [
        event_pb2.WatchEventsResponse(
            event_id=f"e{number}",
            time=timestamp(T0 + number),
            name=name,
            severity="Info",
            node="r2",
            message=f"event {number}",
            data={"seq": str(number)},
        )
        for number, name in enumerate(names)
    ]


DEFAULTS: dict[str, Any] = {
    "list_nodes": node_pb2.ListNodesResponse(
        items=[
            types_pb2.Node(
                name=name,
                address=f"{name}.example:7444",
                state="Ready",
                replicas=count,
                version="0.1.0",
                storage=[
                    types_pb2.Storage(
                        path="/srv/replicas", shared=True, total_bytes=2**40, free_bytes=2**39
                    )
                ],
            )
            for name, count in (("r1", 0), ("r2", 3))
        ]
    ),
    "drain_node": node_pb2.DrainNodeResponse(operation_id=OPERATION_ID),
    "undrain_node": node_pb2.UndrainNodeResponse(changed=True),
    "list_brokers": node_pb2.ListBrokersResponse(
        items=[
            types_pb2.Broker(
                name="b1",
                address="b1.example:7443",
                leader=True,
                client_access_point="replica.example:7443",
                state="Ready",
                version="0.1.0",
            )
        ]
    ),
    "test_connection": connection_pb2.TestConnectionResponse(
        checks=[
            connection_pb2.ConnectionCheck(
                name="tcp", target="replica.example:7443", ok=True, detail="1 ms"
            )
        ]
    ),
    "enable_replication": replication_pb2.EnableReplicationResponse(
        replication=replication(state=types_pb2.REPLICATION_STATE_WAITING_FOR_INITIAL_REPLICATION),
        changed=True,
    ),
    "start_replication": replication_pb2.StartReplicationResponse(
        operation_id=OPERATION_ID, changed=True
    ),
    "stop_initial_replication": replication_pb2.StopInitialReplicationResponse(changed=True),
    "suspend_replication": replication_pb2.SuspendReplicationResponse(changed=True),
    "resume_replication": replication_pb2.ResumeReplicationResponse(changed=True),
    "update_replication": replication_pb2.UpdateReplicationResponse(
        replication=replication(), changed=True
    ),
    "remove_replication": replication_pb2.RemoveReplicationResponse(changed=True),
    "get_replication": replication_pb2.GetReplicationResponse(replication=replication()),
    "list_replications": replication_pb2.ListReplicationsResponse(
        items=[
            replication(),
            replication(
                "guest2",
                state=types_pb2.REPLICATION_STATE_ERROR,
                health=types_pb2.HEALTH_CRITICAL,
                health_reasons=["no answer for 1 h"],
                last_problem="NODE_UNREACHABLE: r2 does not answer",
            ),
        ]
    ),
    "list_replicas": replica_pb2.ListReplicasResponse(items=[replica()]),
    "get_replica": replica_pb2.GetReplicaResponse(replica=replica()),
    "list_points": replica_pb2.ListPointsResponse(items=points()),
    "delete_replica": replica_pb2.DeleteReplicaResponse(operation_id=OPERATION_ID),
    "locate": location_pb2.LocateResponse(
        replica_id=REPLICA_ID,
        node="r2",
        address="r2.example:7444",
        server_name="r2.example",
        epoch=41,
        ticket="abc",
    ),
    "start_test_failover": failover_pb2.StartTestFailoverResponse(
        operation_id=OPERATION_ID, domain_name="guest1 - Test", node="r2"
    ),
    "stop_test_failover": failover_pb2.StopTestFailoverResponse(operation_id=OPERATION_ID),
    "list_test_failovers": failover_pb2.ListTestFailoversResponse(
        items=[
            types_pb2.TestFailover(
                replica_id=REPLICA_ID,
                vm_name="guest1",
                domain_name="guest1 - Test",
                running=True,
                node="r2",
                seq=12,
            )
        ]
    ),
    "get_settings": settings_pb2.GetSettingsResponse(
        settings={"any_server": "false", "default_frequency_ms": "300000"}, version=7
    ),
    "update_settings": settings_pb2.UpdateSettingsResponse(version=8, changed=True),
    "get_operation": operation_pb2.GetOperationResponse(operation=operation("Running")),
    "watch_operation": _watch(),
    "cancel_operation": operation_pb2.CancelOperationResponse(operation=operation("Cancelled")),
    "list_operations": operation_pb2.ListOperationsResponse(items=[operation("Running")]),
    "watch_events": events(),
    "check_store": store_pb2.CheckStoreResponse(
        checks=[store_pb2.StoreCheck(name="link", node="r1", ok=True, detail="atomic")]
    ),
    "get_version": version_pb2.GetVersionResponse(
        version="0.1.0", server="b1", role="broker", cluster="site2"
    ),
}
STREAMS = {"watch_operation", "watch_events"}


@dataclass(slots=True)
class Heard:
    """One call as the server heard it."""

    method: str
    request: Message
    request_id: str


@dataclass(slots=True)
class Result:
    """One run of vmrctl."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as JSON."""
        return json.loads(self.out)

    @property
    def problem(self) -> dict[str, Any]:
        """The problem on standard error, of a run with ``-o json``."""
        problem: dict[str, Any] = json.loads(self.err)["problem"]
        return problem


@dataclass
class Side:
    """The canned side: ``answers[method]`` may be a message, a Problem, a list or a function."""

    answers: dict[str, Any] = field(default_factory=lambda: dict(DEFAULTS))
    heard: list[Heard] = field(default_factory=list)
    port: int = 0
    files: tls.TlsFiles | None = None
    socket: Path | None = None

    def requests(self, method: str) -> list[Any]:
        """What was asked of one method."""
        return [heard.request for heard in self.heard if heard.method == method]

    def reset(self) -> None:
        """As new."""
        self.answers = dict(DEFAULTS)
        self.heard.clear()

    @property
    def environ(self) -> dict[str, str]:
        """What vmrctl needs to find this side."""
        assert self.files is not None
        return {
            "VMRCTL_ENDPOINT": f"localhost:{self.port}",
            "VMRCTL_CA": str(self.files.ca),
            "VMRCTL_CERTIFICATE": str(self.files.certificate),
            "VMRCTL_KEY": str(self.files.key),
        }


class _Api:
    """Every RPC of one service, answered from the side's table."""

    def __init__(self, side: Side) -> None:
        self._side = side

    def __getattr__(self, name: str) -> Any:
        if name not in DEFAULTS:
            raise AttributeError(name)
        return self._stream(name) if name in STREAMS else self._unary(name)

    def _answer(self, name: str, call: Call, request: Message) -> Any:
        self._side.heard.append(Heard(name, request, call.request_id))
        answer = self._side.answers[name]
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _unary(self, name: str) -> Callable[[Call, Message], Any]:
        async def method(call: Call, request: Message) -> Any:
            return self._answer(name, call, request)

        return method

    def _stream(self, name: str) -> Callable[[Call, Message], AsyncIterator[Message]]:
        async def method(call: Call, request: Message) -> AsyncIterator[Message]:
            for message in self._answer(name, call, request):
                if isinstance(message, Exception):
                    raise message
                yield message

        return method


def serving(directory: Path) -> Iterator[Side]:
    """A side that serves on a free port of localhost until the generator is closed."""
    ca = certificates.create_ca(directory, "room", CLOCK.wall_ms())
    issued = certificates.issue(directory, directory / "server", ["localhost"], CLOCK.wall_ms())
    sockets = directory / "run"
    sockets.mkdir(mode=0o700)
    side = Side(
        files=tls.TlsFiles(issued.certificate, issued.key, ca), socket=sockets / "broker.sock"
    )
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> GrpcServer:
        server = GrpcServer(
            listen="localhost:0",
            tls_files=side.files,
            cluster="site2",
            clock=CLOCK,
            unix_socket=side.socket,
        )
        for service in SERVICES:
            server.add(f"vmreplica.v1.{service}", _Api(side))
        side.port = await server.start()
        return server

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(20)
    try:
        yield side
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(0), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
        loop.close()


class Vmrctl:
    """Runs command lines against a side."""

    def __init__(self, side: Side, capture: pytest.CaptureFixture[str]) -> None:
        self.side = side
        self._capture = capture

    def __call__(self, *arguments: str) -> Result:
        self._capture.readouterr()
        code = run(arguments)
        captured = self._capture.readouterr()
        return Result(code, captured.out, captured.err)


def refused(reason: Reason = Reason.UNKNOWN_VM, **details: Any) -> Problem:
    return Problem(reason, "There is no such thing.", **details)
