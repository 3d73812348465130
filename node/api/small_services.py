"""vmreplica.v1.EventService and VersionService of one node."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from node.api.access import NodeAccess
from vmreplica.v1 import event_pb2, version_pb2
from vmreplica.wire.call import Call

Own = Callable[[event_pb2.WatchEventsRequest], AsyncIterator[event_pb2.WatchEventsResponse]]


class EventService:
    """This node's own events; the broker merges them.

    :param own: this process's events as messages (adapters.event_ring).
    """

    def __init__(self, access: NodeAccess, own: Own) -> None:
        self._access = access
        self._own = own

    async def watch_events(
        self, call: Call, request: event_pb2.WatchEventsRequest
    ) -> AsyncIterator[event_pb2.WatchEventsResponse]:
        """Old ones, then new ones as they come."""
        self._access.require_reader(call)
        async for event in self._own(request):
            yield event


class VersionService:
    """Who answers here. Any certificate of our authorities may ask."""

    def __init__(self, access: NodeAccess, *, version: str, git_commit: str = "") -> None:
        self._access = access
        self._version = version
        self._git_commit = git_commit

    async def get_version(
        self, _: Call, __: version_pb2.GetVersionRequest
    ) -> version_pb2.GetVersionResponse:
        """Version, name and role."""
        return version_pb2.GetVersionResponse(
            version=self._version,
            server=self._access.role.parts.node,
            role="node",
            cluster=self._access.cluster,
            git_commit=self._git_commit,
        )
