"""A broker's calls to nodes in the name of its callers: implements wire.node_caller.NodeCaller."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from vmreplica.adapters.grpc_channels import (
    ChannelPool,
    error_of,
    known_trailers,
    problem_of_rpc,
    write_raw,
)
from vmreplica.core.problems import Problem, Reason
from vmreplica.ports.clock import Clock
from vmreplica.wire.call import RELAY_IDENTITY, Call
from vmreplica.wire.node_caller import NodeTarget
from vmreplica.wire.relay_identity import sign

M = TypeVar("M", bound=Message)


class GrpcNodeCaller:
    """Signs the caller's identity with our own key; our certificate must bear the role broker."""

    def __init__(self, pool: ChannelPool, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock

    async def unary(
        self,
        target: NodeTarget,
        method: str,
        request: Message,
        response_type: type[M],
        call: Call,
        *,
        timeout_ms: int = 10_000,
    ) -> M:
        """One answer; the node's trailers become the call's. :raises Problem:"""
        remaining = call.time_remaining_ms()
        try:
            return await self._pool.unary(
                target.address,
                target.server_name,
                method,
                request,
                response_type,
                timeout_ms=timeout_ms if remaining is None else min(timeout_ms, max(remaining, 1)),
                metadata=self._metadata(call),
                trailers=call.trailers,
            )
        except Problem as problem:
            raise _named(problem, target) from problem

    async def stream(
        self,
        target: NodeTarget,
        method: str,
        request: Message,
        response_type: type[M],
        call: Call,
    ) -> AsyncIterator[M]:
        """Many answers to one request. :raises Problem:"""
        try:
            async for answer in self._pool.stream(
                target.address,
                target.server_name,
                method,
                request,
                response_type,
                metadata=self._metadata(call),
                trailers=call.trailers,
            ):
                yield answer
        except Problem as problem:
            raise _named(problem, target) from problem

    async def open_raw(self, target: NodeTarget, method: str, call: Call) -> GrpcRawCall:
        """A call whose messages are passed on unparsed. :raises Problem: CERTIFICATE_INVALID"""
        channel = self._pool.channel(target.address, target.server_name)
        stream = channel.stream_stream(method)(metadata=tuple(self._metadata(call)))
        return GrpcRawCall(stream, target)

    def _metadata(self, call: Call) -> list[tuple[str, str | bytes]]:
        material = self._pool.material()
        vouched = sign(call.identity, call.replica_id, self._clock.wall_ms(), material.private_key)
        return [*call.forwarded_metadata(), (RELAY_IDENTITY, vouched)]


class GrpcRawCall:
    """Implements wire.node_caller.RawCall over a grpc.aio stream."""

    def __init__(self, call: Any, target: NodeTarget) -> None:
        self._call = call
        self._target = target
        self._trailers: dict[str, str] = {}

    async def read(self) -> bytes | None:
        """The next message of the node; None = it ended the call well. :raises Problem:"""
        try:
            raw = await self._call.read()
            if isinstance(raw, bytes):
                return raw
            self._trailers = known_trailers(await self._call.trailing_metadata())
            if await self._call.code() is grpc.StatusCode.OK:
                return None
            raise await error_of(self._call)
        except grpc.aio.AioRpcError as error:
            self._trailers = known_trailers(_pairs(error))
            raise _named(problem_of_rpc(error, self._target.address), self._target) from error

    async def write(self, message: bytes) -> None:
        """Send one message; waits while the transport is full. :raises Problem:"""
        try:
            await write_raw(self._call, message)
        except grpc.aio.AioRpcError as error:
            raise _named(problem_of_rpc(error, self._target.address), self._target) from error

    async def done_writing(self) -> None:
        """Nothing more will be written."""
        await self._call.done_writing()

    def cancel(self) -> None:
        """Give up the call. Idempotent."""
        self._call.cancel()

    def trailers(self) -> dict[str, str]:
        """The node's trailers, known once ``read`` has answered None or raised."""
        return self._trailers


def _pairs(error: grpc.aio.AioRpcError) -> Any:
    return error.trailing_metadata()


def _named(problem: Problem, target: NodeTarget) -> Problem:
    """An unreachable node is named, so that people need not know addresses."""
    if problem.reason is Reason.NODE_UNREACHABLE and not problem.node:
        problem.node = target.name
    return problem
