"""Calls to a node that is this very process: implements wire.node_caller.NodeCaller.

For the standalone node, where the broker's API and the node's live together. Messages are handed
over as they are; identity, metadata and trailers are the same Call on both sides.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

from vmreplica.core.problems import Problem, Reason
from vmreplica.wire.call import Call
from vmreplica.wire.node_caller import NodeTarget
from vmreplica.wire.problem_status import problem_of

M = TypeVar("M", bound=Message)


def snake_case(rpc: str) -> str:
    """Name of an API object's method for an RPC: ``GetReplica`` → ``get_replica``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", rpc).lower()


class LocalNodeCaller:
    """Finds the API object by service name, like ``vmreplica.v1.ReplicaService``.

    :param services: may be filled later; looked up at each call.
    """

    def __init__(self, services: Mapping[str, object]) -> None:
        self._services = services

    async def unary(
        self,
        target: NodeTarget,  # noqa: ARG002 - there is one node
        method: str,
        request: Message,
        response_type: type[M],
        call: Call,
        *,
        timeout_ms: int = 10_000,
    ) -> M:
        """One answer. :raises Problem: as the API object does; NODE_UNREACHABLE: out of time."""
        try:
            async with asyncio.timeout(timeout_ms / 1000) as limit:
                answer = await self._method(method)(call, request)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise Problem(
                Reason.NODE_UNREACHABLE,
                f"{method} did not answer within {timeout_ms} ms.",
                remedy="Try again; if it lasts, look at the node's log.",
            ) from error
        assert isinstance(answer, response_type)
        return answer

    async def stream(
        self,
        target: NodeTarget,  # noqa: ARG002 - there is one node
        method: str,
        request: Message,
        response_type: type[M],
        call: Call,
    ) -> AsyncIterator[M]:
        """Many answers to one request. :raises Problem: as the API object does"""
        async with aclosing(self._method(method)(call, request)) as answers:
            async for answer in answers:
                assert isinstance(answer, response_type)
                yield answer

    async def open_raw(
        self,
        target: NodeTarget,  # noqa: ARG002 - there is one node
        method: str,
        call: Call,
    ) -> LocalRawCall:
        """A call of a streaming RPC by bytes."""
        service, _, name = method.removeprefix("/").partition("/")
        described = descriptor_pool.Default().FindServiceByName(service).FindMethodByName(name)
        request_type = message_factory.GetMessageClass(described.input_type)
        one_request = not described.client_streaming
        return LocalRawCall(self._method(method), request_type, call, one_request=one_request)

    def _method(self, path: str) -> Any:
        service, _, name = path.removeprefix("/").partition("/")
        found = getattr(self._services.get(service), snake_case(name), None)
        if found is None:
            raise Problem(
                Reason.UNIMPLEMENTED,
                f"{path} is not offered by this node.",
                remedy="Use a version that has it, or ask the other side's address.",
            )
        return found


class LocalRawCall:
    """Implements wire.node_caller.RawCall: at most one message waits in each direction."""

    def __init__(
        self, method: Any, request_type: type[Message], call: Call, *, one_request: bool
    ) -> None:
        self._requests: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        self._answers: asyncio.Queue[bytes | Problem | None] = asyncio.Queue(1)
        self._type = request_type
        self._ended = asyncio.Event()
        self._task = asyncio.create_task(self._run(method, call, one_request=one_request))

    async def read(self) -> bytes | None:
        """The next answer; None = the call ended well. :raises Problem: as the API object does"""
        answer = await self._answers.get()
        if isinstance(answer, Problem):
            raise answer
        return answer

    async def write(self, message: bytes) -> None:
        """Hand one message over. :raises Problem: DRAINING: the call has ended"""
        putting = asyncio.ensure_future(self._requests.put(message))
        ended = asyncio.ensure_future(self._ended.wait())
        try:
            await asyncio.wait((putting, ended), return_when=asyncio.FIRST_COMPLETED)
            if not putting.done():
                raise Problem(
                    Reason.DRAINING,
                    "The call has ended; its end says why.",
                    remedy="Open again with resume.",
                )
        finally:
            putting.cancel()
            ended.cancel()

    async def done_writing(self) -> None:
        """Nothing more will be written."""
        if not self._ended.is_set():
            await self._requests.put(None)

    def cancel(self) -> None:
        """Give up the call. Idempotent."""
        self._task.cancel()

    def trailers(self) -> dict[str, str]:
        """Already set on the shared Call."""
        return {}

    async def _run(self, method: Any, call: Call, *, one_request: bool) -> None:
        end: Problem | None = None
        try:
            given = await anext(self._parsed()) if one_request else self._parsed()
            async with aclosing(method(call, given)) as answers:
                async for answer in answers:
                    await self._answers.put(answer.SerializeToString())
        except Exception as error:  # noqa: BLE001 - told to the reader as on the network
            end = problem_of(error)
        self._ended.set()
        await self._answers.put(end)

    async def _parsed(self) -> AsyncIterator[Message]:
        while (raw := await self._requests.get()) is not None:
            try:
                yield self._type.FromString(raw)
            except DecodeError as error:
                name = self._type.DESCRIPTOR.full_name
                raise Problem(
                    Reason.BAD_FIELD,
                    f"The message is not a {name}.",
                    field="body",
                    remedy="Use the .proto files of this version.",
                ) from error
