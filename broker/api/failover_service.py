"""vmreplica.v1.FailoverService: test failovers run at the owner."""

from __future__ import annotations

from collections.abc import Callable

from broker.api.access import Access
from broker.api.nodes import Nodes
from broker.service.composition import BrokerServices
from vmreplica.core.filters import page, parse_filter
from vmreplica.core.records import ReplicaRecord
from vmreplica.v1 import failover_pb2 as pb
from vmreplica.wire.call import Call
from vmreplica.wire.node_caller import NodeTarget
from vmreplica.wire.replica_messages import test_failover_message

_SERVICE = "/vmreplica.v1.FailoverService/"
_KEYS = ("vm_name", "vm_uuid", "owner", "trust_group")


class FailoverService:
    """Administrators start and stop, viewers list."""

    def __init__(self, services: BrokerServices, access: Access, nodes: Nodes) -> None:
        self._services = services
        self._access = access
        self._nodes = nodes

    async def start_test_failover(
        self, call: Call, request: pb.StartTestFailoverRequest
    ) -> pb.StartTestFailoverResponse:
        """Forwarded to the owner."""
        self._access.require_administrator(call)
        record = self._access.replica(call, request.vm, "vm")
        asked = pb.StartTestFailoverRequest()
        asked.CopyFrom(request)
        asked.vm = record.replica_id
        return await self._nodes.ask_owner(
            record, _SERVICE + "StartTestFailover", asked, pb.StartTestFailoverResponse, call
        )

    async def stop_test_failover(
        self, call: Call, request: pb.StopTestFailoverRequest
    ) -> pb.StopTestFailoverResponse:
        """Forwarded to where the test VM runs; to the owner where that node is gone."""
        self._access.require_administrator(call)
        record = self._access.replica(call, request.vm, "vm")
        asked = pb.StopTestFailoverRequest(vm=record.replica_id)
        return await self._nodes.ask_owner(
            record,
            _SERVICE + "StopTestFailover",
            asked,
            pb.StopTestFailoverResponse,
            call,
            target=self._where_it_runs(record),
        )

    async def list_test_failovers(
        self, call: Call, request: pb.ListTestFailoversRequest
    ) -> pb.ListTestFailoversResponse:
        """Running ones and the last result of each replica that ever had one."""
        self._access.require_reader(call)
        terms = parse_filter(request.filter, _KEYS)
        inventory = self._services.inventory
        records = (
            record
            for outline in inventory.index.tested()
            if self._access.sees(call, outline)
            and (record := inventory.replica(outline.replica_id)) is not None
            and terms.accepts(_facts(record))
        )
        items, token = page(records, lambda r: r.replica_id, request.page_size, request.page_token)
        return pb.ListTestFailoversResponse(
            items=[test_failover_message(r, r.test_failover) for r in items],
            next_page_token=token,
        )

    def _where_it_runs(self, record: ReplicaRecord) -> Callable[[], NodeTarget] | None:
        node = record.test_failover.node
        if not record.test_failover.running or not node:
            return None
        if self._services.inventory.node_record(node) is None:
            return None

        def target() -> NodeTarget:
            return self._nodes.named(node)

        return target


def _facts(record: ReplicaRecord) -> dict[str, str]:
    return {
        "vm_name": record.vm_name,
        "vm_uuid": record.vm_uuid,
        "owner": record.test_failover.node,
        "trust_group": record.trust_group,
    }
