"""The other cluster over gRPC: implements ports.replica_link.ReplicaLink."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from vmreplica.adapters.grpc_channels import (
    ChannelPool,
    details_of,
    error_of,
    problem_of_rpc,
    write_raw,
)
from vmreplica.core.cycle import (
    Accepted,
    Acknowledged,
    CycleClose,
    CycleOpen,
    CycleReply,
    CycleRequest,
    Durable,
    Frame,
)
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import PolicyRecord
from vmreplica.ports.replica_link import (
    LinkFailed,
    Location,
    NewReplica,
    ReplicaHead,
)
from vmreplica.v1 import cycle_pb2, location_pb2, replica_pb2
from vmreplica.wire.call import REPLICA_ID, REQUEST_ID, TICKET
from vmreplica.wire.cycle_messages import reply_from_message, request_to_bytes
from vmreplica.wire.replica_messages import (
    head_from_message,
    location_from_message,
    new_replica_to_message,
    policy_to_message,
)

CALL_TIMEOUT_MS = 10_000
LOCATE_TIMEOUT_MS = 2_000
CONNECT_TIMEOUT_MS = 2_000
"""A direct way that takes longer counts as closed: the stream goes through the relay."""
SILENCE_S = 2.0
SILENCE_AGAIN_S = 10.0
"""An open that is unanswered so long: is the node still there? A connection whose packets are
dropped looks open for half a minute; a new one tells at once. Later in a stream silence is left to
the transport: a new connection through a link that our own data fill proves nothing."""

_CHANGEABLE = ("frequency_ms", "compression", "route", "bandwidth_limit_bytes_per_s")
"""Fields of a policy that may change after the creation of the replica."""
_REPLICATE = "/vmreplica.v1.CycleService/Replicate"
_LIST_DIGESTS = "/vmreplica.v1.CycleService/ListDigests"
_CUT = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "INTERNAL", "UNKNOWN"})
"""Codes that, without our details, mean that the transport broke."""


class GrpcReplicaLink:
    """Calls through client access points, and streams to owners."""

    def __init__(self, pool: ChannelPool) -> None:
        self._pool = pool

    async def create_replica(self, cap: str, request: NewReplica, request_id: str) -> ReplicaHead:
        """Admission at the access point. :raises Problem, LinkFailed:"""
        answer = await self._unary(
            cap,
            "/vmreplica.v1.ReplicaService/CreateReplica",
            new_replica_to_message(request),
            replica_pb2.CreateReplicaResponse,
            metadata=((REQUEST_ID, request_id),),
        )
        return head_from_message(answer.replica)

    async def update_replica(self, cap: str, replica_id: str, policy: PolicyRecord) -> None:
        """Tell the policy in force; what is fixed at creation stays. :raises Problem, LinkFailed:"""
        await self._unary(
            cap,
            "/vmreplica.v1.ReplicaService/UpdateReplica",
            replica_pb2.UpdateReplicaRequest(
                replica_id=replica_id,
                policy=policy_to_message(policy),
                update_fields=_CHANGEABLE,
            ),
            replica_pb2.UpdateReplicaResponse,
            metadata=((REPLICA_ID, replica_id),),
        )

    async def get_head(self, cap: str, replica_id: str) -> ReplicaHead:
        """The head of the manifest, asked of the owner. :raises Problem, LinkFailed:"""
        answer = await self._unary(
            cap,
            "/vmreplica.v1.ReplicaService/GetReplica",
            replica_pb2.GetReplicaRequest(replica_id=replica_id),
            replica_pb2.GetReplicaResponse,
            metadata=((REPLICA_ID, replica_id),),
        )
        return head_from_message(answer.replica)

    async def locate(self, cap: str, replica_id: str) -> Location:
        """Where the owner is now, perhaps stale. :raises Problem, LinkFailed:"""
        answer = await self._unary(
            cap,
            "/vmreplica.v1.LocationService/Locate",
            location_pb2.LocateRequest(replica_id=replica_id),
            location_pb2.LocateResponse,
            metadata=((REPLICA_ID, replica_id),),
            timeout_ms=LOCATE_TIMEOUT_MS,
        )
        return location_from_message(answer)

    async def replicate(self, cap: str, location: Location) -> GrpcCycleStream:  # noqa: ARG002
        """A stream straight to the owner; ``location.server_name`` must be in its certificate.

        :raises LinkFailed: no connection within CONNECT_TIMEOUT_MS.
        :raises Problem: CERTIFICATE_INVALID: our own files are unusable.
        """
        channel = self._pool.channel(location.address, location.server_name)
        if not await _connects(channel):
            self._pool.forget(location.address, location.server_name)
            raise LinkFailed(f"{location.node} ({location.address}) did not let us in")
        metadata = [(REPLICA_ID, location.replica_id)]
        if location.ticket:
            metadata.append((TICKET, location.ticket))

        async def reachable() -> bool:
            return await self._reachable(location)

        return GrpcCycleStream(channel, location.address, metadata, reachable)

    async def _reachable(self, location: Location) -> bool:
        """Whether a new connection comes about; if not, the old one is not used again."""
        channel = self._pool.unshared_channel(location.address, location.server_name)
        try:
            if await _connects(channel):
                return True
        finally:
            await channel.close()
        self._pool.forget(location.address, location.server_name)
        return False

    async def replicate_relayed(self, cap: str, replica_id: str) -> GrpcCycleStream:
        """A stream through the access point. :raises LinkFailed: on the first use of the stream."""
        return GrpcCycleStream(self._pool.channel(cap), cap, [(REPLICA_ID, replica_id)])

    async def list_digests(
        self, address: str, server_name: str, request: cycle_pb2.ListDigestsRequest
    ) -> AsyncIterator[tuple[int, bytes]]:
        """(first index, digests of 16 bytes a cluster) in rising order. :raises Problem, LinkFailed:"""
        answers = self._pool.stream(
            address,
            server_name,
            _LIST_DIGESTS,
            request,
            cycle_pb2.ListDigestsResponse,
            metadata=((REPLICA_ID, request.replica_id),),
        )
        try:
            async for answer in answers:
                yield answer.first_index, answer.digests
        except Problem as problem:
            raise _cut_or_problem(problem) from problem

    async def _unary(
        self,
        cap: str,
        method: str,
        request: Any,
        response_type: Any,
        *,
        metadata: tuple[tuple[str, str], ...],
        timeout_ms: int = CALL_TIMEOUT_MS,
    ) -> Any:
        try:
            return await self._pool.unary(
                cap, "", method, request, response_type, timeout_ms=timeout_ms, metadata=metadata
            )
        except Problem as problem:
            raise _cut_or_problem(problem) from problem


class GrpcCycleStream:
    """One Replicate call; implements ports.replica_link.CycleStream.

    :param reachable: asked while the open is unanswered; no ends the stream.
    """

    def __init__(
        self,
        channel: Any,
        address: str,
        metadata: list[tuple[str, str]],
        reachable: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        self._address = address
        self._reachable = reachable
        self._wire_bytes = 0
        self._call = channel.stream_stream(_REPLICATE)(metadata=tuple(metadata))

    @property
    def wire_bytes(self) -> int:
        """Message bytes handed to the transport so far."""
        return self._wire_bytes

    async def open(self, request: CycleOpen) -> Accepted | Acknowledged:
        """Send open, wait for the answer. :raises Problem, LinkFailed:"""
        await self._write(request)
        match await self._read():
            case Accepted() | Acknowledged() as reply:
                return reply
            case other:
                self._call.cancel()
                raise _unexpected(self._address, other)

    async def send(self, message: Frame | CycleClose) -> None:
        """Send; waits while the transport is full. :raises Problem, LinkFailed:"""
        await self._write(message)

    async def receive(self) -> Durable | Acknowledged:
        """The next progress message or the acknowledgement. :raises Problem, LinkFailed:"""
        match await self._read():
            case Durable() | Acknowledged() as reply:
                return reply
            case other:
                self._call.cancel()
                raise _unexpected(self._address, other)

    async def cancel(self) -> None:
        """Give up the call. Idempotent."""
        self._call.cancel()

    async def _write(self, value: CycleRequest) -> None:
        raw = request_to_bytes(value)
        try:
            await write_raw(self._call, raw)
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from error
        self._wire_bytes += len(raw)
        if isinstance(value, CycleClose):
            await self._call.done_writing()

    async def _read(self) -> CycleReply:
        try:
            raw = await (self._call.read() if self._reachable is None else self._answer())
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from error
        if not isinstance(raw, bytes):
            raise await self._ended()
        try:
            return reply_from_message(cycle_pb2.ReplicateResponse.FromString(raw))
        except DecodeError as error:
            self._call.cancel()
            raise LinkFailed(f"{self._address} sent something that is no answer") from error

    async def _answer(self) -> Any:
        """The first answer, as long as the node can be reached at all."""
        reachable, self._reachable = self._reachable, None
        assert reachable is not None
        reading = asyncio.ensure_future(self._call.read())
        reading.add_done_callback(_heeded)
        patience_s = SILENCE_S
        try:
            while not (await asyncio.wait({reading}, timeout=patience_s))[0]:
                if not await reachable() and not reading.done():
                    self._call.cancel()
                    raise LinkFailed(f"{self._address} cannot be reached any more")
                patience_s = SILENCE_AGAIN_S
            return reading.result()
        finally:
            reading.cancel()

    async def _ended(self) -> Problem | LinkFailed:
        return self._failure(await error_of(self._call))

    def _failure(self, error: grpc.aio.AioRpcError) -> Problem | LinkFailed:
        ours = details_of(error)
        if ours is not None:
            return ours
        if error.code() is grpc.StatusCode.OK:
            return LinkFailed(f"{self._address} ended the stream before the acknowledgement")
        problem = problem_of_rpc(error, self._address)
        if error.code().name in _CUT:
            return LinkFailed(problem.message)
        return problem


def _heeded(reading: asyncio.Future[Any]) -> None:
    """What a read that nobody waits for any more comes to is no news."""
    if not reading.cancelled():
        reading.exception()


async def _connects(channel: Any) -> bool:
    """Whether there is a connection within CONNECT_TIMEOUT_MS."""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_MS / 1000):
            return await _connected(channel)
    except TimeoutError:
        return False


async def _connected(channel: Any) -> bool:
    """Whether the channel's first attempt to connect succeeds."""
    state = channel.get_state(try_to_connect=True)
    while state is not grpc.ChannelConnectivity.READY:
        if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            return False
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)
    return True


def _cut_or_problem(problem: Problem) -> Problem | LinkFailed:
    """A call of the pool that failed without the other side's own words is a cut."""
    cause = problem.__cause__
    if not isinstance(cause, grpc.aio.AioRpcError) or details_of(cause) is not None:
        return problem
    if cause.code().name in _CUT and problem.reason is not Reason.CERTIFICATE_INVALID:
        return LinkFailed(problem.message)
    return problem


def _unexpected(address: str, reply: CycleReply) -> LinkFailed:
    return LinkFailed(f"{address} answered {type(reply).__name__} out of turn")
