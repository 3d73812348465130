"""Cycle streams, node calls and the relay over real TLS on the loopback."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.contract.grpc_room import (
    CLOCK,
    LOCATE,
    REPLICATE,
    WATCH,
    Echo,
    Pki,
    problem_of_call,
    raw_channel,
    server,
)
from vmreplica.adapters.grpc_channels import ChannelPool
from vmreplica.adapters.grpc_node_caller import GrpcNodeCaller
from vmreplica.adapters.grpc_relay import relay
from vmreplica.adapters.grpc_replica_link import GrpcReplicaLink
from vmreplica.adapters.grpc_server import GrpcServer
from vmreplica.core.cycle import (
    CLUSTER_BYTES,
    Accepted,
    Acknowledged,
    CycleClose,
    CycleKind,
    CycleOpen,
    Disk,
    Durable,
    Frame,
    digest,
)
from vmreplica.core.identity import Identity, Role, RoleKind
from vmreplica.core.problems import Problem, Reason
from vmreplica.ports.replica_link import LinkFailed, Location, NewReplica
from vmreplica.v1 import cycle_pb2, event_pb2, location_pb2, replica_pb2, types_pb2
from vmreplica.wire.call import RELAY_IDENTITY, Call
from vmreplica.wire.cycle_messages import reply_to_message, request_from_message
from vmreplica.wire.node_caller import NodeTarget, RawStream
from vmreplica.wire.relay_identity import sign

REPLICA = "123e4567-e89b-42d3-a456-426614174000"
PAYLOAD = os.urandom(16 * CLUSTER_BYTES)
CLUSTERS = [PAYLOAD[i * CLUSTER_BYTES : (i + 1) * CLUSTER_BYTES] for i in range(16)]
DIGESTS = b"".join(map(digest, CLUSTERS))


def open_message(**changes: Any) -> CycleOpen:
    facts: dict[str, Any] = {
        "replica_id": REPLICA,
        "epoch": 1,
        "seq": 1,
        "parent_digest": bytes(16),
        "kind": CycleKind.FULL,
        "disks": (Disk("vda", 1 << 40),),
        "cycle_id": bytes(range(16)),
    }
    return CycleOpen(**{**facts, **changes})


def frame(number: int) -> Frame:
    indexes = tuple(range(number * 16, number * 16 + 16))
    return Frame(0, indexes, (CLUSTER_BYTES,) * 16, DIGESTS, PAYLOAD, DIGESTS)


CLOSE = CycleClose(clusters=16, cycle_digest=bytes(16), point_time_ms=1_700_000_000_000)


class Receiver:
    """A CycleService that counts; behaviour chosen by the epoch of the open message."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.received = 0
        self.ended: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def replicate(self, call: Call, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        self.calls.append(call)
        try:
            async for message in requests:
                match request_from_message(message):
                    case CycleOpen(epoch=9):
                        raise Problem(Reason.STALE_EPOCH, "old", epoch=10, node="r3")
                    case CycleOpen(seq=77):
                        yield reply_to_message(Acknowledged(77, bytes(16), True, 5))
                    case CycleOpen():
                        call.set_trailer("vmreplica-epoch", "5")
                        yield reply_to_message(Accepted(2))
                    case Frame(disk=66):
                        raise RuntimeError("planted bug")
                    case Frame():
                        await self.gate.wait()
                        self.received += 1
                        yield reply_to_message(Durable(0, self.received))
                    case CycleClose(clusters=0):
                        return
                    case CycleClose() as close:
                        yield reply_to_message(Acknowledged(1, close.cycle_digest, False, 5))
            self.ended.append("half-closed")
        except (asyncio.CancelledError, GeneratorExit):
            self.ended.append("cancelled")
            raise

    async def list_digests(self, call: Call, request: Any) -> AsyncIterator[Any]:
        raise Problem(Reason.POINT_NOT_FOUND, "no such point", value=str(request.seq))
        yield


class Replicas:
    async def create_replica(self, call: Call, request: Any) -> Any:
        assert call.request_id == "q1"
        return replica_pb2.CreateReplicaResponse(replica=self._replica(request.disks))

    async def get_replica(self, call: Call, request: Any) -> Any:
        if request.replica_id != REPLICA:
            raise Problem(Reason.UNKNOWN_REPLICA, "unknown")
        return replica_pb2.GetReplicaResponse(replica=self._replica([]))

    @staticmethod
    def _replica(disks: Any) -> types_pb2.Replica:
        return types_pb2.Replica(
            replica_id=REPLICA,
            owner="n1",
            epoch=5,
            acked_seq=3,
            acked_digest=b"d" * 16,
            disks=disks,
        )


class Room:
    """A node, a broker that relays to it, and a client."""

    node: GrpcServer
    broker: GrpcServer
    receiver: Receiver
    echo: Echo
    denied: list[Problem]
    pool: ChannelPool
    broker_pool: ChannelPool
    caller: GrpcNodeCaller
    target: NodeTarget
    cap: str


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
async def room(pki: Pki) -> AsyncIterator[Room]:
    made = Room()
    made.denied = []
    made.receiver = Receiver()
    made.node, made.echo = server(
        pki.files("n1", "n1.example", "spiffe://c1/node/n1"),
        on_denied=lambda _, problem: made.denied.append(problem),
    )
    made.node.add("vmreplica.v1.CycleService", made.receiver)
    node_port = await made.node.start()
    made.target = NodeTarget("n1", f"127.0.0.1:{node_port}", "n1.example")
    broker_files = pki.files("b1", "b1.example", "localhost", "spiffe://c1/broker/b1")
    made.broker_pool = ChannelPool(broker_files, CLOCK)
    made.caller = GrpcNodeCaller(made.broker_pool, CLOCK)
    made.broker, _ = server(broker_files)

    async def pass_on(call: Call, stream: RawStream) -> None:
        await relay(call, stream, await made.caller.open_raw(made.target, REPLICATE, call))

    made.broker.add_raw_stream(REPLICATE, pass_on)
    made.broker.add("vmreplica.v1.ReplicaService", Replicas())
    made.cap = f"localhost:{await made.broker.start()}"
    made.pool = ChannelPool(pki.files("p1", "p1.example", "cap.example"), CLOCK)
    yield made
    await made.pool.close()
    await made.broker_pool.close()
    await made.broker.stop(0)
    await made.node.stop(0)


def location(room: Room, **changes: Any) -> Location:
    facts = {
        "replica_id": REPLICA,
        "node": "n1",
        "address": room.target.address,
        "server_name": "n1.example",
        "epoch": 5,
        "ticket": "t",
    }
    return Location(**{**facts, **changes})


async def stream_of(room: Room, way: str) -> Any:
    link = GrpcReplicaLink(room.pool)
    if way == "direct":
        return await link.replicate(room.cap, location(room))
    return await link.replicate_relayed(room.cap, REPLICA)


WAYS = pytest.mark.parametrize("way", ["direct", "relay"])


@WAYS
async def test_a_cycle(room: Room, way: str):
    stream = await stream_of(room, way)
    assert await stream.open(open_message()) == Accepted(2)
    for number in range(4):
        await stream.send(frame(number))
        assert await stream.receive() == Durable(0, number + 1)
    assert 4 << 20 < stream.wire_bytes < (4 << 20) + 16_384
    await stream.send(CLOSE)
    assert await stream.receive() == Acknowledged(1, bytes(16), False, 5)
    (call,) = room.receiver.calls
    assert call.identity.dns_names == ("p1.example", "cap.example")
    assert call.replica_id == REPLICA
    assert call.relayed_by == ("b1" if way == "relay" else "")
    assert call.ticket == ("" if way == "relay" else "t")
    assert room.denied == []
    await stream.cancel()


@WAYS
async def test_duplicate_is_told_at_once(room: Room, way: str):
    stream = await stream_of(room, way)
    assert await stream.open(open_message(seq=77)) == Acknowledged(77, bytes(16), True, 5)
    await stream.cancel()


@WAYS
async def test_refusal_of_the_open(room: Room, way: str):
    stream = await stream_of(room, way)
    with pytest.raises(Problem) as caught:
        await stream.open(open_message(epoch=9))
    assert caught.value.reason is Reason.STALE_EPOCH
    assert (caught.value.epoch, caught.value.node) == (10, "r3")


@WAYS
async def test_bad_field_in_the_stream(room: Room, way: str):
    stream = await stream_of(room, way)
    with pytest.raises(Problem) as caught:
        await stream.open(open_message(parent_digest=b"short"))
    assert caught.value.reason is Reason.BAD_FIELD
    assert caught.value.field == "open.parent_digest"


@WAYS
async def test_bug_of_the_receiver_is_internal(room: Room, way: str):
    stream = await stream_of(room, way)
    await stream.open(open_message())
    bad = frame(0)
    await stream.send(Frame(66, bad.indexes, bad.stored_bytes, DIGESTS, PAYLOAD, DIGESTS))
    with pytest.raises(Problem) as caught:
        await stream.receive()
    assert caught.value.reason is Reason.INTERNAL


@WAYS
async def test_end_before_the_acknowledgement_is_a_cut(room: Room, way: str):
    stream = await stream_of(room, way)
    await stream.open(open_message())
    await stream.send(CycleClose(clusters=0, cycle_digest=bytes(16), point_time_ms=1))
    with pytest.raises(LinkFailed):
        await stream.receive()


@WAYS
async def test_sending_after_the_other_side_refused(room: Room, way: str):
    stream = await stream_of(room, way)
    await stream.open(open_message())
    bad = frame(0)
    await stream.send(Frame(66, bad.indexes, bad.stored_bytes, DIGESTS, PAYLOAD, DIGESTS))

    async def go_on() -> None:
        for number in range(200):
            await stream.send(frame(number))
        await stream.receive()

    problem = await problem_of_call(go_on())
    assert problem.reason is Reason.INTERNAL and "internal error occurred" in problem.message


@WAYS
async def test_client_gone_in_mid_cycle(room: Room, way: str):
    stream = await stream_of(room, way)
    await stream.open(open_message())
    await stream.send(frame(0))
    await stream.receive()
    await stream.cancel()
    await until(lambda: bool(room.receiver.ended))
    # The requests may end a moment before the cancellation arrives: no close came, so it is a cut.
    assert room.receiver.ended in (["cancelled"], ["half-closed"])


@WAYS
async def test_truncated_stream(room: Room, way: str):
    address, name = (room.target.address, "n1.example") if way == "direct" else (room.cap, "")
    call = raw_channel(room.pool, address, name).stream_stream(REPLICATE)()
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK
    await until(lambda: bool(room.receiver.ended))
    assert room.receiver.ended == ["half-closed"]
    expected = {"vmreplica-node": "n1"} | ({"vmreplica-route": "relay"} if way == "relay" else {})
    assert {key: value for key, value in await call.trailing_metadata()} == expected  # noqa: C416 - older gRPC has no mapping


async def test_owner_dies_under_a_relayed_stream(room: Room):
    stream = await stream_of(room, "relay")
    await stream.open(open_message())
    await room.node.stop(0)
    with pytest.raises((LinkFailed, Problem)) as caught:
        await stream.receive()
    if isinstance(caught.value, Problem):
        assert caught.value.reason is Reason.NODE_UNREACHABLE


async def test_direct_way_that_is_closed_fails_as_link(room: Room):
    link = GrpcReplicaLink(room.pool)
    with pytest.raises(LinkFailed):
        await link.replicate(room.cap, location(room, address="127.0.0.1:9"))
    with pytest.raises(LinkFailed):
        await link.replicate(room.cap, location(room, server_name="r9.example"))


async def test_unary_calls_of_the_link(room: Room):
    link = GrpcReplicaLink(room.pool)
    request = NewReplica(
        vm_uuid=REPLICA,
        vm_name="guest1",
        disks=(Disk("vda", 512),),
        domain_xml=b"<domain/>",
        primary_access_point="p1.example:7444",
        frequency_ms=5_000,
    )
    head = await link.create_replica(room.cap, request, "q1")
    assert (head.acked_seq, head.acked_digest, head.epoch) == (3, b"d" * 16, 5)
    assert head.disks == (Disk("vda", 512),)
    assert (await link.get_head(room.cap, REPLICA)).owner == "n1"
    with pytest.raises(Problem) as caught:
        await link.get_head(room.cap, REPLICA.replace("1", "2"))
    assert caught.value.reason is Reason.UNKNOWN_REPLICA
    assert (await link.locate(room.cap, "x")).replica_id == "x"
    with pytest.raises(LinkFailed):
        await link.locate("localhost:9", "x")


async def test_node_caller_carries_the_callers_identity(room: Room):
    operator = Role("c1", RoleKind.OPERATOR, "eve", "blue")
    call = Call(
        identity=Identity(dns_names=("x.example",), roles=(operator,), fingerprint="f" * 64),
        metadata={"traceparent": "00-1-2-3"},
        request_id="q",
        replica_id=REPLICA,
    )
    answer = await room.caller.unary(
        room.target,
        LOCATE,
        location_pb2.LocateRequest(replica_id="y"),
        location_pb2.LocateResponse,
        call,
    )
    assert answer.node == "x.example"
    seen = room.echo.calls[0]
    assert seen.identity == call.identity and seen.relayed_by == "b1"
    assert seen.request_id == "q" and seen.metadata["traceparent"] == "00-1-2-3"
    assert call.trailers == {"vmreplica-node": "n1", "vmreplica-epoch": "41"}
    problem = await problem_of_call(
        room.caller.unary(
            room.target,
            LOCATE,
            location_pb2.LocateRequest(replica_id="NOT_OWNER:z"),
            location_pb2.LocateResponse,
            call,
        )
    )
    assert problem.reason is Reason.NOT_OWNER
    events = [
        event.event_id
        async for event in room.caller.stream(
            room.target, WATCH, event_pb2.WatchEventsRequest(), event_pb2.WatchEventsResponse, call
        )
    ]
    assert events == ["0", "1", "2"]
    gone = NodeTarget("n9", "127.0.0.1:9", "n9.example")
    problem = await problem_of_call(
        room.caller.unary(
            gone, LOCATE, location_pb2.LocateRequest(), location_pb2.LocateResponse, call
        )
    )
    assert problem.reason is Reason.NODE_UNREACHABLE and problem.node == "n9"


async def test_identity_from_outside_is_dropped_and_told(room: Room, pki: Pki):
    liar = GrpcNodeCaller(room.pool, CLOCK)
    call = Call(identity=Identity(local_root=True))
    request = location_pb2.LocateRequest(replica_id="y")
    answer = await liar.unary(room.target, LOCATE, request, location_pb2.LocateResponse, call)
    assert answer.node == "p1.example,cap.example"
    seen = room.echo.calls[0]
    assert not seen.identity.local_root and seen.relayed_by == ""
    assert [(p.reason, p.field) for p in room.denied] == [(Reason.NOT_AUTHORIZED, RELAY_IDENTITY)]
    # A broker of another cluster is outside as well.
    other = ChannelPool(pki.files("b9", "b9.example", "spiffe://c9/broker/b9"), CLOCK)
    answer = await GrpcNodeCaller(other, CLOCK).unary(
        room.target, LOCATE, request, location_pb2.LocateResponse, call
    )
    assert answer.node == "b9.example"
    await other.close()


async def test_forged_identity_of_a_broker_is_refused(room: Room, pki: Pki):
    thief = ChannelPool(pki.files("thief", "x.example"), CLOCK).material().private_key
    forged = sign(Identity(local_root=True), "", CLOCK.wall_ms(), thief)
    problem = await problem_of_call(
        room.broker_pool.unary(
            room.target.address,
            "n1.example",
            LOCATE,
            location_pb2.LocateRequest(replica_id="y"),
            location_pb2.LocateResponse,
            metadata=[(RELAY_IDENTITY, forged)],
        )
    )
    assert problem.reason is Reason.NOT_AUTHORIZED
    assert room.echo.calls == []
    assert [p.reason for p in room.denied] == [Reason.NOT_AUTHORIZED]


async def test_list_digests_problem(room: Room):
    link = GrpcReplicaLink(room.pool)
    request = cycle_pb2.ListDigestsRequest(replica_id=REPLICA, target="vda", seq=4)
    answers = link.list_digests(room.target.address, "n1.example", request)
    problem = await problem_of_call(anext(answers))
    assert problem.reason is Reason.POINT_NOT_FOUND and problem.value == "4"


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def test_relay_holds_little_for_a_receiver_that_stands_still(room: Room):
    """Client, relay and node share this process: all their windows together stay bounded."""
    warm = await stream_of(room, "relay")
    await warm.open(open_message())
    for number in range(32):
        await warm.send(frame(number))
        await warm.receive()
    await warm.cancel()
    stream = await stream_of(room, "relay")
    await stream.open(open_message())
    gc.collect()
    before = resident_bytes()
    room.receiver.gate.clear()
    sent = 0

    async def push() -> None:
        nonlocal sent
        for number in range(512):
            await stream.send(frame(number))
            sent += 1

    pushing = asyncio.create_task(push())
    last = -1
    while sent != last:  # until nothing has moved for half a second
        last = sent
        await CLOCK.sleep(500)
    grown = resident_bytes() - before
    pushing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await pushing
    room.receiver.gate.set()
    await stream.cancel()
    print(f"{sent} MiB were taken before all stood still; memory grew by {grown >> 10} KiB")
    # The process holds the windows of two hops, client → broker and broker → node, of which the
    # relay's own are at most 8 MiB; without grpc_options it would be all 512 MiB.
    assert sent <= 16
    assert grown <= 24 << 20


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.01)
