"""grpc.health.v1 and server reflection as API objects, so that they go through the same door."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection

from vmreplica.adapters.grpc_handlers import Refusal
from vmreplica.wire.call import Call

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

_reflection: Any = reflection


class HealthService:
    """Implements grpc.health.v1.Health over a table of statuses."""

    def __init__(self) -> None:
        self._serving: dict[str, bool] = {}
        self._changed: set[asyncio.Event] = set()

    def set(self, service: str, serving: bool) -> None:
        """Change one status and tell all watchers."""
        if self._serving.get(service) is not serving:
            self._serving[service] = serving
            for event in self._changed:
                event.set()

    def stop(self) -> None:
        """Everything is NOT_SERVING from now on."""
        for service in tuple(self._serving):
            self.set(service, False)

    async def check(self, _call: Call, request: Any) -> Any:
        """The present status. :raises Refusal: NOT_FOUND, as the health protocol says."""
        serving = self._serving.get(request.service)
        if serving is None:
            raise Refusal(grpc.StatusCode.NOT_FOUND, f"unknown service {request.service!r}")
        return health_pb2.HealthCheckResponse(status=_SERVING if serving else _NOT_SERVING)

    async def watch(self, _call: Call, request: Any) -> AsyncIterator[Any]:
        """The present status and each later one."""
        changed = asyncio.Event()
        self._changed.add(changed)
        try:
            last = None
            while True:
                serving = self._serving.get(request.service)
                status = _UNKNOWN if serving is None else _SERVING if serving else _NOT_SERVING
                if status != last:
                    last = status
                    yield health_pb2.HealthCheckResponse(status=status)
                await changed.wait()
                changed.clear()
        finally:
            self._changed.discard(changed)


class ReflectionService:
    """Implements grpc.reflection.v1alpha.ServerReflection with the library's own answers."""

    def __init__(self, service_names: Iterable[str]) -> None:
        self._servicer: Any = _reflection.aio.ReflectionServicer(service_names)

    async def server_reflection_info(
        self, _call: Call, requests: AsyncIterator[Any]
    ) -> AsyncIterator[Any]:
        """Answers about services and files, one for each request."""
        async for response in self._servicer.ServerReflectionInfo(requests, None):
            yield response
