"""vmreplica.v1.EventService: this broker's events, the other brokers' and all nodes', merged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

from broker.api.access import Access
from broker.api.nodes import Nodes
from broker.service.composition import BrokerServices
from vmreplica.core.problems import Problem
from vmreplica.v1 import event_pb2
from vmreplica.wire.call import Call
from vmreplica.wire.node_caller import NodeTarget

log = logging.getLogger(__name__)
_METHOD = "/vmreplica.v1.EventService/WatchEvents"
_AHEAD = 256
Own = Callable[[event_pb2.WatchEventsRequest], AsyncIterator[event_pb2.WatchEventsResponse]]


class EventService:
    """Viewers watch.

    :param own: this process's events as messages (adapters.event_ring).
    """

    def __init__(self, services: BrokerServices, access: Access, nodes: Nodes, own: Own) -> None:
        self._services = services
        self._access = access
        self._nodes = nodes
        self._own = own

    async def watch_events(
        self, call: Call, request: event_pb2.WatchEventsRequest
    ) -> AsyncIterator[event_pb2.WatchEventsResponse]:
        """Old ones in the order of time, then new ones as they come."""
        self._access.require_reader(call)
        if call.relayed_by:
            # Another broker merges; it wants only what happened here.
            async for event in self._own(request):
                yield event
            return
        past = event_pb2.WatchEventsRequest()
        past.CopyFrom(request)
        past.follow = False
        seen: set[tuple[str, str]] = set()
        if not request.follow or request.HasField("since"):
            lists = await asyncio.gather(*(self._all(s) for s in self._sources(call, past)))
            events = [event for events in lists for event in events]
            for event in sorted(events, key=lambda e: (e.time.ToMilliseconds(), e.event_id)):
                if (event.node, event.event_id) not in seen:
                    seen.add((event.node, event.event_id))
                    yield event
        if request.follow:
            async for event in self._merged(self._sources(call, request)):
                if (event.node, event.event_id) not in seen:
                    yield event

    def _sources(
        self, call: Call, request: event_pb2.WatchEventsRequest
    ) -> list[AsyncIterator[event_pb2.WatchEventsResponse]]:
        if self._services.context.standalone:
            return [self._own(request)]  # node and broker are one process with one log
        election = self._services.election
        brokers = [
            NodeTarget(record.name, record.address, record.server_name)
            for record, _ in self._services.inventory.brokers()
            if not election.is_me(record)
        ]
        others = [
            self._nodes.caller.stream(
                target,
                _METHOD,
                request,
                event_pb2.WatchEventsResponse,
                Call(identity=call.identity, metadata=call.metadata),
            )
            for target in [*self._nodes.live(), *brokers]
        ]
        return [self._own(request), *others]

    async def _all(
        self, source: AsyncIterator[event_pb2.WatchEventsResponse]
    ) -> list[event_pb2.WatchEventsResponse]:
        events = []
        try:
            async with asyncio.timeout(5):
                async for event in source:
                    events.append(event)  # noqa: PERF401 - what came before a cut is kept
        except (Problem, TimeoutError) as error:
            log.info("events of one source are missing: %s", error)
        return events

    async def _merged(
        self, sources: list[AsyncIterator[event_pb2.WatchEventsResponse]]
    ) -> AsyncIterator[event_pb2.WatchEventsResponse]:
        queue: asyncio.Queue[event_pb2.WatchEventsResponse] = asyncio.Queue(_AHEAD)

        async def follow(source: AsyncIterator[event_pb2.WatchEventsResponse]) -> None:
            try:
                async for event in source:
                    await queue.put(event)
            except Problem as error:
                log.info("a source of events ended: %s", error)

        tasks = [asyncio.create_task(follow(source)) for source in sources]
        try:
            while True:
                yield await queue.get()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
