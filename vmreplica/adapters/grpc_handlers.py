"""gRPC handlers made from the proto descriptor: plain API objects on one side, grpc.aio on the other.

An API object has one async method for each RPC, named like it in snake_case, taking
``(call, request)``; server streams are async generators; in bidirectional ones the second argument
is an async iterator of requests. What a method raises becomes a status by wire.problem_status.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message

from vmreplica.adapters.grpc_identity import CallReader
from vmreplica.core.problems import Problem, Reason
from vmreplica.v1 import (
    connection_pb2,
    cycle_pb2,
    event_pb2,
    failover_pb2,
    location_pb2,
    manifest_pb2,
    node_pb2,
    operation_pb2,
    replica_pb2,
    replication_pb2,
    settings_pb2,
    store_pb2,
    version_pb2,
)
from vmreplica.wire.call import Call
from vmreplica.wire.local_node_caller import snake_case
from vmreplica.wire.node_caller import RawStream
from vmreplica.wire.problem_status import DETAILS_KEY, problem_of, to_details

_log = logging.getLogger(__name__)

Handler = Any
"""A grpc.RpcMethodHandler; its type arguments exist in the stubs alone."""
_aio: Any = grpc.aio
_OWN = (
    connection_pb2,
    cycle_pb2,
    event_pb2,
    failover_pb2,
    location_pb2,
    manifest_pb2,
    node_pb2,
    operation_pb2,
    replica_pb2,
    replication_pb2,
    settings_pb2,
    store_pb2,
    version_pb2,
)
RawHandler = Callable[[Call, RawStream], Awaitable[None]]


def own_services() -> list[str]:
    """Full names of all services of the contract, offered here or not."""
    return sorted(
        service.full_name for file in _OWN for service in file.DESCRIPTOR.services_by_name.values()
    )


class Refusal(Exception):
    """A bare gRPC status, for services whose contract is not ours (health, reflection)."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class HandlerFactory:
    """Makes the handlers of one server.

    :param trailers: sent behind every answer unless the call sets others.
    """

    def __init__(self, reader: CallReader, trailers: dict[str, str]) -> None:
        self._reader = reader
        self._trailers = trailers
        self._draining = False
        self._watches: set[asyncio.Task[Any]] = set()

    def drain(self) -> None:
        """The server stops: end server streams (they may last for ever) with DRAINING."""
        self._draining = True
        for task in tuple(self._watches):
            task.cancel()

    def service(self, full_name: str, implementation: object) -> dict[str, Handler]:
        """Handlers of all RPCs of a service, by method name.

        :raises KeyError: no such service in the descriptor pool.
        """
        service: ServiceDescriptor = descriptor_pool.Default().FindServiceByName(full_name)
        return {method.name: self._handler(method, implementation) for method in service.methods}

    def raw(self, handler: RawHandler) -> Handler:
        """A handler that gets and gives message bytes unparsed."""

        async def behave(_unused: object, context: Any) -> None:
            call = await self._call(context)
            try:
                await handler(call, _ServerStream(context))
            except Exception as error:  # noqa: BLE001 - the edge: anything becomes a status
                await self._abort(context, call, error)
            self._close(context, call)

        return grpc.stream_stream_rpc_method_handler(behave)

    def _handler(self, method: MethodDescriptor, implementation: object) -> Handler:
        target = getattr(implementation, snake_case(method.name), None)
        request_type = message_factory.GetMessageClass(method.input_type)
        if target is None:
            target = _unimplemented(method)
        match method.client_streaming, method.server_streaming:
            case False, False:
                return grpc.unary_unary_rpc_method_handler(
                    self._unary(target, request_type), None, _serialize
                )
            case False, True:
                return grpc.unary_stream_rpc_method_handler(
                    self._server_stream(target, request_type), None, _serialize
                )
            case True, True:
                return grpc.stream_stream_rpc_method_handler(
                    self._bidirectional(target, request_type), None, _serialize
                )
            case _:
                raise NotImplementedError(f"{method.full_name}: client streams are not used here")

    def _unary(self, target: Any, request_type: type[Message]) -> Any:
        async def behave(raw: bytes, context: Any) -> Message:
            call = await self._call(context)
            try:
                response: Message = await target(call, _parse(request_type, raw))
            except Exception as error:  # noqa: BLE001 - the edge: anything becomes a status
                await self._abort(context, call, error)
            self._close(context, call)
            return response

        return behave

    def _server_stream(self, target: Any, request_type: type[Message]) -> Any:
        async def behave(raw: bytes, context: Any) -> AsyncIterator[Message]:
            call = await self._call(context)
            task = asyncio.current_task()
            assert task is not None
            self._watches.add(task)
            try:
                async with aclosing(target(call, _parse(request_type, raw))) as responses:
                    async for response in responses:
                        yield response
                self._close(context, call)
            except asyncio.CancelledError:
                if not self._draining:
                    raise
                task.uncancel()
                await self._abort(context, call, _draining())
            except Exception as error:  # noqa: BLE001 - the edge: anything becomes a status
                await self._abort(context, call, error)
            finally:
                self._watches.discard(task)

        return behave

    def _bidirectional(self, target: Any, request_type: type[Message]) -> Any:
        async def behave(raws: AsyncIterator[bytes], context: Any) -> AsyncIterator[Message]:
            call = await self._call(context)
            try:
                async with aclosing(target(call, _parse_all(request_type, raws))) as responses:
                    async for response in responses:
                        yield response
                self._close(context, call)
            except Exception as error:  # noqa: BLE001 - the edge: anything becomes a status
                await self._abort(context, call, error)

        return behave

    async def _call(self, context: Any) -> Call:
        try:
            if self._draining:
                raise _draining()
            return self._reader.read(context)
        except Exception as error:  # noqa: BLE001 - the edge: anything becomes a status
            await self._abort(context, None, error)

    async def _abort(self, context: Any, call: Call | None, error: Exception) -> NoReturn:
        trailers = self._trailers_of(call)
        if isinstance(error, Refusal):
            await context.abort(error.code, error.message, tuple(trailers))
        problem = problem_of(error)
        if problem.reason is Reason.INTERNAL and problem is not error:
            _log.error("a call from %s failed", context.peer(), exc_info=error)
        details: list[tuple[str, str | bytes]] = [(DETAILS_KEY, to_details(problem))]
        code = grpc.StatusCode[problem.grpc_code]
        await context.abort(code, problem.message[:1_024], (*trailers, *details))
        raise AssertionError("abort returned")

    def _close(self, context: Any, call: Call) -> None:
        context.set_trailing_metadata(tuple(self._trailers_of(call)))

    def _trailers_of(self, call: Call | None) -> list[tuple[str, str | bytes]]:
        merged = self._trailers if call is None else {**self._trailers, **call.trailers}
        return list(merged.items())


class _ServerStream:
    """RawStream over a grpc.aio servicer context."""

    def __init__(self, context: Any) -> None:
        self._context = context

    async def read(self) -> bytes | None:
        message = await self._context.read()
        return None if message is _aio.EOF else bytes(message)

    async def write(self, message: bytes) -> None:
        await self._context.write(message)


def _unimplemented(method: MethodDescriptor) -> Any:
    problem = Problem(
        Reason.UNIMPLEMENTED,
        f"{method.full_name} is not offered by this server.",
        remedy="A node of a cluster answers for itself alone: use the cluster's client access "
        "point. If this is one, it is of a version that does not have it.",
    )

    async def refuse(_call: Call, _request: object) -> NoReturn:
        raise problem

    async def refuse_stream(_call: Call, _request: object) -> AsyncIterator[Message]:
        raise problem
        yield

    return refuse_stream if method.server_streaming else refuse


def _draining() -> Problem:
    return Problem(
        Reason.DRAINING,
        "This process is stopping.",
        remedy="Try again: another will answer.",
    )


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _parse(kind: type[Message], raw: bytes) -> Message:
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        raise Problem(
            Reason.BAD_FIELD,
            f"The message is not a {kind.DESCRIPTOR.full_name}.",
            field=kind.DESCRIPTOR.name,
            remedy="Use the .proto files of this version.",
        ) from error


async def _parse_all(kind: type[Message], raws: AsyncIterator[bytes]) -> AsyncIterator[Message]:
    async for raw in raws:
        yield _parse(kind, raw)
