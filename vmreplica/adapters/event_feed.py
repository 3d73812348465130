"""One process's events on the wire: for EventService, and what a server notes of its refusals."""

from __future__ import annotations

from collections.abc import AsyncIterator

from vmreplica.adapters.event_ring import EventRing
from vmreplica.core.identity import Identity
from vmreplica.core.problems import Problem
from vmreplica.ports.event_log import Severity
from vmreplica.v1 import event_pb2
from vmreplica.wire.event_filter import event_message, filter_from_message


class EventFeed:
    """A ring of events as the API and the gRPC server want it."""

    def __init__(self, ring: EventRing) -> None:
        self._ring = ring

    async def watch(
        self, request: event_pb2.WatchEventsRequest
    ) -> AsyncIterator[event_pb2.WatchEventsResponse]:
        """The events asked for, as messages."""
        wanted = filter_from_message(request)
        async for event in self._ring.watch(wanted, follow=request.follow):
            yield event_message(event)

    def denied(self, identity: Identity, problem: Problem) -> None:
        """A caller was refused."""
        self._ring.write(
            "access.denied",
            problem.message,
            severity=Severity.WARNING,
            data={"names": ", ".join(identity.dns_names), "reason": problem.reason.value},
        )
