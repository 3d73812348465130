"""vmreplica.v1.NodeService."""

from __future__ import annotations

from broker.api.access import Access
from broker.api.forward import LeaderWrites
from broker.api.messages import node_message
from broker.service.composition import BrokerServices
from vmreplica.core.filters import parse_filter
from vmreplica.core.leadership import leader_of
from vmreplica.v1 import node_pb2 as pb
from vmreplica.wire.call import Call
from vmreplica.wire.record_messages import broker_message

_SERVICE = "/vmreplica.v1.NodeService/"


class NodeService:
    """Nodes and brokers of this cluster."""

    def __init__(self, services: BrokerServices, access: Access, writes: LeaderWrites) -> None:
        self._services = services
        self._access = access
        self._writes = writes

    async def list_nodes(self, call: Call, request: pb.ListNodesRequest) -> pb.ListNodesResponse:
        """Every node that ever joined. Filter keys: name, state."""
        self._access.require_reader(call)
        terms = parse_filter(request.filter, ("name", "state"))
        views = self._services.inventory.nodes()
        return pb.ListNodesResponse(
            items=[
                node_message(v)
                for v in views
                if terms.accepts({"name": v.name, "state": v.state.value})
            ]
        )

    async def list_brokers(
        self, call: Call, request: pb.ListBrokersRequest
    ) -> pb.ListBrokersResponse:
        """Candidates, the leader first. Filter keys: name, state."""
        self._access.require_reader(call)
        terms = parse_filter(request.filter, ("name", "state"))
        pairs = self._services.inventory.brokers()
        leader = leader_of(candidate for _, candidate in pairs)
        cap = self._services.context.client_access_point
        items = [
            broker_message(record, leader=candidate == leader, client_access_point=cap)
            for record, candidate in pairs
        ]
        return pb.ListBrokersResponse(
            items=[i for i in items if terms.accepts({"name": i.name, "state": i.state})]
        )

    async def drain_node(self, call: Call, request: pb.DrainNodeRequest) -> pb.DrainNodeResponse:
        """Administrators only."""
        self._access.require_administrator(call)

        async def act() -> pb.DrainNodeResponse:
            operation_id = await self._services.drain.drain(request.node)
            return pb.DrainNodeResponse(operation_id=operation_id)

        return await self._writes.run(
            call, _SERVICE + "DrainNode", request, pb.DrainNodeResponse, act
        )

    async def undrain_node(
        self, call: Call, request: pb.UndrainNodeRequest
    ) -> pb.UndrainNodeResponse:
        """Administrators only."""
        self._access.require_administrator(call)

        async def act() -> pb.UndrainNodeResponse:
            return pb.UndrainNodeResponse(changed=await self._services.drain.undrain(request.node))

        return await self._writes.run(
            call, _SERVICE + "UndrainNode", request, pb.UndrainNodeResponse, act
        )
