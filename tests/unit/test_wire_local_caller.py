"""LocalNodeCaller: a node in the same process behaves like one on the network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from vmreplica.core.problems import Problem, Reason
from vmreplica.v1 import cycle_pb2, event_pb2, location_pb2
from vmreplica.wire.call import Call
from vmreplica.wire.local_node_caller import LocalNodeCaller
from vmreplica.wire.node_caller import NodeTarget

TARGET = NodeTarget("n1", "local", "n1")
LOCATE = "/vmreplica.v1.LocationService/Locate"
REPLICATE = "/vmreplica.v1.CycleService/Replicate"


class Node:
    def __init__(self) -> None:
        self.cancelled = False

    async def locate(self, call: Call, request: Any) -> location_pb2.LocateResponse:
        if request.replica_id == "slow":
            await asyncio.Event().wait()
        if request.replica_id == "bad":
            raise Problem(Reason.NOT_OWNER, "not mine")
        call.set_trailer("vmreplica-epoch", "4")
        return location_pb2.LocateResponse(replica_id=request.replica_id)

    async def watch_events(
        self, call: Call, request: Any
    ) -> AsyncIterator[event_pb2.WatchEventsResponse]:
        yield event_pb2.WatchEventsResponse(event_id="1")
        yield event_pb2.WatchEventsResponse(event_id="2")

    async def replicate(
        self, call: Call, requests: AsyncIterator[Any]
    ) -> AsyncIterator[cycle_pb2.ReplicateResponse]:
        try:
            async for request in requests:
                if request.open.seq == 9:
                    raise RuntimeError("planted")
                yield cycle_pb2.ReplicateResponse(
                    accepted=cycle_pb2.CycleAccepted(durable_frames=request.open.seq)
                )
        except asyncio.CancelledError:
            self.cancelled = True
            raise

    async def list_digests(
        self, call: Call, request: cycle_pb2.ListDigestsRequest
    ) -> AsyncIterator[cycle_pb2.ListDigestsResponse]:
        yield cycle_pb2.ListDigestsResponse(first_index=request.first_index)


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
def caller(node: Node) -> LocalNodeCaller:
    names = ("LocationService", "EventService", "CycleService")
    return LocalNodeCaller({f"vmreplica.v1.{name}": node for name in names})


async def locate(caller: LocalNodeCaller, text: str, call: Call, **options: Any) -> Any:
    request = location_pb2.LocateRequest(replica_id=text)
    return await caller.unary(TARGET, LOCATE, request, location_pb2.LocateResponse, call, **options)


async def test_unary(caller: LocalNodeCaller) -> None:
    call = Call.local()
    assert (await locate(caller, "x", call)).replica_id == "x"
    assert call.trailers == {"vmreplica-epoch": "4"}
    for text, reason in (("bad", Reason.NOT_OWNER), ("slow", Reason.NODE_UNREACHABLE)):
        with pytest.raises(Problem) as caught:
            await locate(caller, text, call, timeout_ms=20)
        assert caught.value.reason is reason
    with pytest.raises(Problem) as caught:
        await caller.unary(
            TARGET,
            "/vmreplica.v1.ReplicaService/GetReplica",
            location_pb2.LocateRequest(),
            location_pb2.LocateResponse,
            call,
        )
    assert caught.value.reason is Reason.UNIMPLEMENTED


async def test_stream(caller: LocalNodeCaller) -> None:
    events = caller.stream(
        TARGET,
        "/vmreplica.v1.EventService/WatchEvents",
        event_pb2.WatchEventsRequest(),
        event_pb2.WatchEventsResponse,
        Call.local(),
    )
    assert [event.event_id async for event in events] == ["1", "2"]


def opened(seq: int) -> bytes:
    return cycle_pb2.ReplicateRequest(open=cycle_pb2.CycleOpen(seq=seq)).SerializeToString()


async def test_raw_call(caller: LocalNodeCaller, node: Node) -> None:
    raw = await caller.open_raw(TARGET, REPLICATE, Call.local())
    for seq in (1, 2):
        await raw.write(opened(seq))
        answer = await raw.read()
        assert answer is not None
        assert cycle_pb2.ReplicateResponse.FromString(answer).accepted.durable_frames == seq
    await raw.done_writing()
    assert await raw.read() is None
    await raw.done_writing()


async def test_raw_call_that_fails(caller: LocalNodeCaller) -> None:
    raw = await caller.open_raw(TARGET, REPLICATE, Call.local())
    await raw.write(opened(9))
    with pytest.raises(Problem) as caught:
        await raw.read()
    assert caught.value.reason is Reason.INTERNAL and "planted" not in caught.value.message
    await raw.write(opened(1))  # fits into the queue that nobody reads any more
    with pytest.raises(Problem) as caught:
        await raw.write(opened(1))
    assert caught.value.reason is Reason.DRAINING


async def test_raw_call_with_rubbish_and_cancel(caller: LocalNodeCaller, node: Node) -> None:
    raw = await caller.open_raw(TARGET, REPLICATE, Call.local())
    await raw.write(b"\xff\xff")
    with pytest.raises(Problem) as caught:
        await raw.read()
    assert caught.value.reason is Reason.BAD_FIELD
    gone = await caller.open_raw(TARGET, REPLICATE, Call.local())
    await gone.write(opened(1))
    await gone.read()
    gone.cancel()
    await asyncio.wait([gone._task])
    assert node.cancelled


async def test_raw_call_of_one_request(caller: LocalNodeCaller) -> None:
    raw = await caller.open_raw(TARGET, "/vmreplica.v1.CycleService/ListDigests", Call.local())
    await raw.write(cycle_pb2.ListDigestsRequest(first_index=7).SerializeToString())
    answer = await raw.read()
    assert answer is not None
    assert cycle_pb2.ListDigestsResponse.FromString(answer).first_index == 7
    assert await raw.read() is None
