"""A way whose packets are dropped: the connection looks open, and must not be believed for long."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.grpc_room import CLOCK, Pki
from vmreplica.adapters.grpc_channels import ChannelPool
from vmreplica.adapters.grpc_replica_link import SILENCE_S, GrpcReplicaLink
from vmreplica.adapters.grpc_server import GrpcServer
from vmreplica.core.cycle import Accepted, CycleKind, CycleOpen, Disk
from vmreplica.ports.replica_link import LinkFailed, Location
from vmreplica.v1 import cycle_pb2
from vmreplica.wire.call import Call

REPLICA = "5f0c7f5e-8f0e-4f55-9a55-2d7d4a3b0a11"


class SlowNode:
    """Accepts every stream, the second only after longer than a sender keeps still."""

    def __init__(self) -> None:
        self.opens = 0

    async def replicate(
        self, _: Call, requests: AsyncIterator[cycle_pb2.ReplicateRequest]
    ) -> AsyncIterator[cycle_pb2.ReplicateResponse]:
        async for _request in requests:
            self.opens += 1
            if self.opens == 2:
                await CLOCK.sleep(SILENCE_S * 1500)
            yield cycle_pb2.ReplicateResponse(accepted=cycle_pb2.CycleAccepted(durable_frames=2))


class Wire:
    """A TCP proxy that can begin to swallow everything, and to let nobody new in."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._open = asyncio.Event()
        self._open.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.address = ""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        self._open.clear()
        self._server.close()

    async def close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back_reader, back_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        for source, sink in ((reader, back_writer), (back_reader, writer)):
            task = asyncio.ensure_future(self._carry(source, sink))
            self._tasks.add(task)

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65_536):
                await self._open.wait()
                sink.write(data)
                await sink.drain()
        sink.close()


def _open() -> CycleOpen:
    return CycleOpen(
        replica_id=REPLICA,
        epoch=1,
        seq=1,
        parent_digest=bytes(16),
        kind=CycleKind.FULL,
        disks=(Disk("vda", 65_536),),
        cycle_id=bytes(16),
    )


@pytest.fixture
async def way(tmp_path: Path) -> AsyncIterator[tuple[GrpcReplicaLink, Wire]]:
    pki = Pki(tmp_path)
    server = GrpcServer(
        listen="127.0.0.1:0",
        tls_files=pki.files("node", "n1.example"),
        cluster="c1",
        clock=CLOCK,
        node_name="n1",
    )
    server.add("vmreplica.v1.CycleService", SlowNode())
    await server.start()
    wire = Wire(server.port)
    await wire.start()
    pool = ChannelPool(pki.files("sender", "p1.example"), CLOCK)
    try:
        yield GrpcReplicaLink(pool), wire
    finally:
        await pool.close()
        await wire.close()
        await server.stop(0)


def _location(wire: Wire) -> Location:
    return Location(
        replica_id=REPLICA, node="n1", address=wire.address, server_name="n1.example", epoch=1
    )


async def test_a_swallowed_open_fails_soon_and_the_next_try_at_once(
    way: tuple[GrpcReplicaLink, Wire],
) -> None:
    link, wire = way
    stream = await link.replicate("", _location(wire))
    assert await stream.open(_open()) == Accepted(2)
    await stream.cancel()
    wire.cut()
    again = await link.replicate("", _location(wire))  # the connection still looks open
    async with asyncio.timeout(15):  # a transport that is believed takes 20 s and more
        with pytest.raises(LinkFailed, match="any more"):
            await again.open(_open())
        with pytest.raises(LinkFailed, match="did not let us in"):
            await link.replicate("", _location(wire))


async def test_a_node_that_only_takes_its_time_is_waited_for(
    way: tuple[GrpcReplicaLink, Wire],
) -> None:
    link, wire = way
    first = await link.replicate("", _location(wire))
    assert await first.open(_open()) == Accepted(2)
    slow = await link.replicate("", _location(wire))
    begun = time.monotonic()
    assert await slow.open(_open()) == Accepted(2)
    assert time.monotonic() - begun > SILENCE_S
    await first.cancel()
    await slow.cancel()
