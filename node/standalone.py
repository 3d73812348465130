"""The standalone node: the broker's services and API in the node's own process.

One store (SQLite), one watch cache, one port. What only a node can answer goes to the node's API
objects through a caller that stays inside this process.
"""

from __future__ import annotations

from collections.abc import Mapping

from broker.api.event_service import Own
from broker.api.mount import api_objects
from broker.service.composition import build_services
from vmreplica.coordination.guarded import GuardedWriter
from vmreplica.coordination.store_cache import StoreCache
from vmreplica.core.keys import Keys
from vmreplica.core.records import BrokerRecord
from vmreplica.ports.clock import Clock
from vmreplica.ports.cluster_store import ClusterStore
from vmreplica.ports.event_log import EventLog
from vmreplica.ports.randomness import Randomness
from vmreplica.wire.local_node_caller import LocalNodeCaller


class Standalone:
    """``services``: what takes the place of the node's own API objects at its port."""

    def __init__(
        self,
        *,
        store: ClusterStore,
        cache: StoreCache,
        writer: GuardedWriter,
        clock: Clock,
        randomness: Randomness,
        keys: Keys,
        events: EventLog,
        own_events: Own,
        name: str,
        address: str,
        server_name: str,
        version: str,
        node_services: Mapping[str, object],
        node_ttl_ms: int,
    ) -> None:
        self._broker = build_services(
            store=store,
            clock=clock,
            randomness=randomness,
            keys=keys,
            events=events,
            record=BrokerRecord(
                name=name, address=address, server_name=server_name, version=version
            ),
            client_access_point=address,
            cache=cache,
            writer=writer,
            standalone=True,
            node_ttl_ms=node_ttl_ms,
        )
        # Both parts write to one ring: asked through the node as well, each event came twice.
        asked = {k: v for k, v in node_services.items() if not k.endswith(".EventService")}
        caller = LocalNodeCaller(asked)
        api = api_objects(self._broker, caller, own_events=own_events, server=name)
        self.services = api.services

    async def run(self) -> None:
        """The broker's loops until cancelled."""
        await self._broker.run()

    async def stop(self) -> None:
        """Clean stop of the broker's part."""
        await self._broker.stop()

    def can_answer(self) -> bool:
        """Whether reads at the access point are answered."""
        return self._broker.can_answer()
