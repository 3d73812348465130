"""vmreplica.v1.FailoverService of one node: test failovers of replicas that it owns."""

from __future__ import annotations

from node.api.access import NodeAccess
from vmreplica.core.identity import RoleKind
from vmreplica.v1 import failover_pb2
from vmreplica.wire.call import Call, require_role


class FailoverService:
    """Administrators and operators; ``vm`` is a replica id (the broker resolved the name)."""

    def __init__(self, access: NodeAccess) -> None:
        self._access = access

    async def start_test_failover(
        self, call: Call, request: failover_pb2.StartTestFailoverRequest
    ) -> failover_pb2.StartTestFailoverResponse:
        """Start `<name> - Test` from the newest point on isolated networks."""
        await self._allowed(call, request.vm)
        started = await self._access.role.tests.start(
            request.vm, request.point, dict(request.networks)
        )
        return failover_pb2.StartTestFailoverResponse(
            operation_id=started.operation_id,
            domain_name=started.domain_name,
            node=started.node,
        )

    async def stop_test_failover(
        self, call: Call, request: failover_pb2.StopTestFailoverRequest
    ) -> failover_pb2.StopTestFailoverResponse:
        """Destroy the test VM and everything made for it."""
        await self._allowed(call, request.vm)
        operation_id = await self._access.role.tests.stop(request.vm)
        return failover_pb2.StopTestFailoverResponse(operation_id=operation_id)

    async def _allowed(self, call: Call, replica_id: str) -> None:
        require_role(call, self._access.cluster, RoleKind.ADMINISTRATOR, RoleKind.OPERATOR)
        record = await self._access.record(call, replica_id)
        if call.identity.has_role(self._access.cluster, RoleKind.ADMINISTRATOR):
            return
        groups = {
            role.group
            for role in call.identity.roles
            if role.cluster == self._access.cluster and role.kind is RoleKind.OPERATOR
        }
        if record.trust_group not in groups:
            self._access.require_administrator(call)
