"""What the gRPC tests share: an authority, certificates, a server with a few API objects."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from vmreplica.adapters import certificates, tls
from vmreplica.adapters.grpc_channels import ChannelPool
from vmreplica.adapters.grpc_server import GrpcServer
from vmreplica.adapters.system_clock import SystemClock
from vmreplica.core.problems import Problem, Reason
from vmreplica.v1 import event_pb2, location_pb2, version_pb2
from vmreplica.wire.call import Call

CLOCK = SystemClock()
LOCATE = "/vmreplica.v1.LocationService/Locate"
VERSION = "/vmreplica.v1.VersionService/GetVersion"
WATCH = "/vmreplica.v1.EventService/WatchEvents"
REPLICATE = "/vmreplica.v1.CycleService/Replicate"


class Pki:
    """A directory with an authority; ``files(name, *sans)`` issues what is missing."""

    def __init__(self, directory: Path, name: str = "test authority") -> None:
        self.directory = directory
        self.ca = certificates.create_ca(directory, name, CLOCK.wall_ms())

    def files(self, name: str, *sans: str, **options: Any) -> tls.TlsFiles:
        issued = certificates.issue(
            self.directory, self.directory / name, sans, CLOCK.wall_ms(), **options
        )
        return tls.TlsFiles(issued.certificate, issued.key, self.ca)


class Echo:
    """Answers Locate, GetVersion and WatchEvents in ways the tests can see through."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    async def locate(
        self, call: Call, request: location_pb2.LocateRequest
    ) -> location_pb2.LocateResponse:
        self.calls.append(call)
        reason, _, rest = request.replica_id.partition(":")
        if reason == "bug":
            raise RuntimeError("secret detail")
        if reason in Reason.__members__:
            raise Problem(
                Reason(reason),
                f"because of {rest}",
                field="f",
                value="v",
                remedy="do it",
                cap="cap:7443",
                node="r2",
                epoch=7,
            )
        call.set_trailer("vmreplica-epoch", "41")
        return location_pb2.LocateResponse(
            replica_id=request.replica_id, node=",".join(call.identity.dns_names)
        )

    async def watch_events(
        self, call: Call, request: event_pb2.WatchEventsRequest
    ) -> AsyncIterator[event_pb2.WatchEventsResponse]:
        self.calls.append(call)
        for number in range(3):
            yield event_pb2.WatchEventsResponse(event_id=str(number))
        if request.vm == "broken":
            raise Problem(Reason.UNKNOWN_VM, "no such VM", field="vm", value=request.vm)
        if request.follow:
            await CLOCK.sleep(3_600_000)


class Version:
    async def get_version(
        self, call: Call, request: version_pb2.GetVersionRequest
    ) -> version_pb2.GetVersionResponse:
        return version_pb2.GetVersionResponse(version="1", server=call.peer)


def server(files: tls.TlsFiles | None, **options: Any) -> tuple[GrpcServer, Echo]:
    """An unstarted server on a free port of 127.0.0.1 with Echo's services."""
    made = GrpcServer(
        listen="127.0.0.1:0" if files else "",
        tls_files=files,
        cluster="c1",
        clock=CLOCK,
        node_name="n1",
        **options,
    )
    echo = Echo()
    made.add("vmreplica.v1.LocationService", echo)
    made.add("vmreplica.v1.EventService", echo)
    made.add("vmreplica.v1.VersionService", Version())
    return made, echo


async def locate(
    pool: ChannelPool, address: str, text: str, server_name: str = "n1.example", **options: Any
) -> location_pb2.LocateResponse:
    return await pool.unary(
        address,
        server_name,
        LOCATE,
        location_pb2.LocateRequest(replica_id=text),
        location_pb2.LocateResponse,
        **options,
    )


async def problem_of_call(awaitable: Any) -> Problem:
    try:
        await awaitable
    except Problem as problem:
        return problem
    raise AssertionError("no problem was raised")


def raw_channel(pool: ChannelPool, address: str, name: str = "n1.example") -> grpc.aio.Channel:
    channel: grpc.aio.Channel = pool.channel(address, name)
    return channel
