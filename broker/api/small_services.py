"""vmreplica.v1.ConnectionService, StoreService and VersionService at the client access point."""

from __future__ import annotations

from broker.api.access import Access
from broker.api.nodes import Nodes
from broker.service.composition import BrokerServices
from vmreplica.core.authorization import authorize
from vmreplica.core.problems import Problem, Reason
from vmreplica.v1 import connection_pb2, store_pb2, version_pb2
from vmreplica.wire.call import Call
from vmreplica.wire.node_caller import NodeTarget

_CHECK_TIMEOUT_MS = 60_000


class ConnectionService:
    """The checks run where replication runs: on a node."""

    def __init__(self, services: BrokerServices, access: Access, nodes: Nodes) -> None:
        self._services = services
        self._access = access
        self._nodes = nodes

    async def list_addresses(
        self, call: Call, request: connection_pb2.ListAddressesRequest
    ) -> connection_pb2.ListAddressesResponse:
        """Admission's own question, without admitting anything."""
        inventory = self._services.inventory
        decision = authorize(
            call.identity.dns_names,
            inventory.settings,
            inventory.authorizations,
            None,
            request.primary_access_point,
        )
        if isinstance(decision, Problem):
            raise self._access.denied(call, decision)
        return connection_pb2.ListAddressesResponse(
            items=[
                connection_pb2.NodeAddress(
                    node=target.name, address=target.address, server_name=target.server_name
                )
                for target in self._nodes.live()
            ]
        )

    async def test_connection(
        self, call: Call, request: connection_pb2.TestConnectionRequest
    ) -> connection_pb2.TestConnectionResponse:
        """Forwarded to a node; with ``each_node`` to every one of ours."""
        self._access.require_administrator(call)
        live = self._nodes.live()
        if not live:
            raise Problem(
                Reason.NODE_UNREACHABLE,
                "No node of this cluster is alive to test the connection from.",
                remedy="Start a node.",
            )
        answer = connection_pb2.TestConnectionResponse()
        for target in live if request.each_node else live[:1]:
            answer.checks.extend(await self._checks(call, target, request))
        return answer

    async def _checks(
        self, call: Call, target: NodeTarget, request: connection_pb2.TestConnectionRequest
    ) -> list[connection_pb2.ConnectionCheck]:
        try:
            answer = await self._nodes.unary(
                target,
                "/vmreplica.v1.ConnectionService/TestConnection",
                request,
                connection_pb2.TestConnectionResponse,
                call,
                _CHECK_TIMEOUT_MS,
            )
        except Problem as problem:
            return [
                connection_pb2.ConnectionCheck(
                    name="node",
                    target=target.name,
                    ok=False,
                    detail=problem.message,
                    remedy=problem.remedy,
                )
            ]
        return list(answer.checks)


class StoreService:
    """`store check` runs on a node that offers the directory."""

    def __init__(self, services: BrokerServices, access: Access, nodes: Nodes) -> None:
        self._services = services
        self._access = access
        self._nodes = nodes

    async def check_store(
        self, call: Call, request: store_pb2.CheckStoreRequest
    ) -> store_pb2.CheckStoreResponse:
        """Forwarded to the named node, else to one that offers the path."""
        self._access.require_administrator(call)
        return await self._nodes.unary(
            self._target(request),
            "/vmreplica.v1.StoreService/CheckStore",
            request,
            store_pb2.CheckStoreResponse,
            call,
            _CHECK_TIMEOUT_MS,
        )

    def _target(self, request: store_pb2.CheckStoreRequest) -> NodeTarget:
        if request.node:
            return self._nodes.named(request.node)
        live = self._services.inventory.live_nodes()
        offered = sorted({s.path for n in live for s in n.load.storage})
        for node in live:
            if any(s.path == request.path for s in node.load.storage):
                return self._nodes.named(node.load.name)
        raise Problem(
            Reason.BAD_FIELD,
            f"No node offers {request.path!r}.",
            field="path",
            value=request.path,
            remedy="Offered: " + (", ".join(offered) or "nothing") + ".",
        )


class VersionService:
    """Who answers here. Any certificate of our authorities may ask."""

    def __init__(self, services: BrokerServices, *, server: str, git_commit: str = "") -> None:
        self._services = services
        self._server = server
        self._git_commit = git_commit

    async def get_version(
        self, _: Call, __: version_pb2.GetVersionRequest
    ) -> version_pb2.GetVersionResponse:
        """Version, name and role."""
        context = self._services.context
        role = "leader" if context.election.may_act() else "standby"
        return version_pb2.GetVersionResponse(
            version=context.version,
            server=self._server,
            role="standalone" if context.standalone else role,
            cluster=context.keys.cluster,
            git_commit=self._git_commit,
        )
