"""vmreplica.v1.ReplicaService at the client access point."""

from __future__ import annotations

import asyncio

from broker.api.access import Access
from broker.api.forward import LeaderWrites
from broker.api.nodes import Nodes
from broker.service.composition import BrokerServices
from broker.service.replica_index import Outline
from vmreplica.core.filters import Filter, page, parse_filter
from vmreplica.core.problems import Problem
from vmreplica.core.records import OwnerRecord, PolicyRecord, ReplicaRecord
from vmreplica.v1 import replica_pb2, types_pb2
from vmreplica.wire.call import Call
from vmreplica.wire.enums import name_of
from vmreplica.wire.replica_messages import (
    new_replica_from_message,
    policy_from_message,
    replica_message,
)

_SERVICE = "/vmreplica.v1.ReplicaService/"
_AT_ONCE = 16
_LIST_TIMEOUT_MS = 2_000


class ReplicaService:
    """Records are the broker's, heads are asked of the owner, never of a cache."""

    def __init__(
        self, services: BrokerServices, access: Access, nodes: Nodes, writes: LeaderWrites
    ) -> None:
        self._services = services
        self._access = access
        self._nodes = nodes
        self._writes = writes

    async def create_replica(
        self, call: Call, request: replica_pb2.CreateReplicaRequest
    ) -> replica_pb2.CreateReplicaResponse:
        """Admission. The same VM with the same disks again answers the same replica."""
        wanted = new_replica_from_message(request)

        async def act() -> replica_pb2.CreateReplicaResponse:
            try:
                admitted = await self._services.admission.admit(call.identity.dns_names, wanted)
            except Problem as problem:
                raise self._access.denied(call, problem) from problem
            message = replica_message(
                admitted.record, admitted.owner, replica_access_point=self._cap
            )
            return replica_pb2.CreateReplicaResponse(replica=message, changed=admitted.changed)

        method = _SERVICE + "CreateReplica"
        return await self._writes.run(call, method, request, replica_pb2.CreateReplicaResponse, act)

    async def get_replica(
        self, call: Call, request: replica_pb2.GetReplicaRequest
    ) -> replica_pb2.GetReplicaResponse:
        """The head of the manifest, asked of the owner."""
        record = self._access.replica(call, request.replica_id)
        answer = await self._nodes.ask_owner(
            record,
            _SERVICE + "GetReplica",
            replica_pb2.GetReplicaRequest(replica_id=record.replica_id),
            replica_pb2.GetReplicaResponse,
            call,
        )
        answer.replica.replica_access_point = self._cap
        return answer

    async def list_replicas(
        self, call: Call, request: replica_pb2.ListReplicasRequest
    ) -> replica_pb2.ListReplicasResponse:
        """What the caller may see; heads of those whose owner answers within 2 s."""
        terms = parse_filter(request.filter)
        inventory = self._services.inventory
        visible = (
            r
            for r in inventory.index.outlines()
            if _fits(terms, self._facts(r)) and self._access.sees(call, r)
        )
        outlines, token = page(
            visible, lambda r: r.replica_id, request.page_size, request.page_token
        )
        records = [r for o in outlines if (r := inventory.replica(o.replica_id)) is not None]
        gate = asyncio.Semaphore(_AT_ONCE)
        items = await asyncio.gather(*(self._shown(call, r, gate) for r in records))
        return replica_pb2.ListReplicasResponse(
            items=[i for i in items if terms.accepts(_shown_facts(i))], next_page_token=token
        )

    async def list_points(
        self, call: Call, request: replica_pb2.ListPointsRequest
    ) -> replica_pb2.ListPointsResponse:
        """Recovery points, asked of the owner."""
        record = self._access.replica(call, request.replica_id)
        asked = replica_pb2.ListPointsRequest()
        asked.CopyFrom(request)
        asked.replica_id = record.replica_id
        return await self._nodes.ask_owner(
            record, _SERVICE + "ListPoints", asked, replica_pb2.ListPointsResponse, call
        )

    async def update_replica(
        self, call: Call, request: replica_pb2.UpdateReplicaRequest
    ) -> replica_pb2.UpdateReplicaResponse:
        """The sender's policy or definition changed."""
        record = self._access.replica(call, request.replica_id)
        self._access.require_sender(call, record)
        fields = tuple(request.update_fields)

        def change(old: PolicyRecord) -> PolicyRecord:
            return policy_from_message(request.policy, old, fields)

        async def act() -> replica_pb2.UpdateReplicaResponse:
            after, changed = await self._services.policy.update(
                record.replica_id,
                change if request.HasField("policy") else None,
                request.domain_xml,
            )
            return replica_pb2.UpdateReplicaResponse(
                replica=replica_message(after, self._owner(after), replica_access_point=self._cap),
                changed=changed,
            )

        method = _SERVICE + "UpdateReplica"
        return await self._writes.run(call, method, request, replica_pb2.UpdateReplicaResponse, act)

    async def delete_replica(
        self, call: Call, request: replica_pb2.DeleteReplicaRequest
    ) -> replica_pb2.DeleteReplicaResponse:
        """Without ``delete_data`` only the record goes. Administrators only."""
        self._access.require_administrator(call)

        async def act() -> replica_pb2.DeleteReplicaResponse:
            record = self._access.replica(call, request.replica_id)
            operation_id = await self._services.remover.remove(
                record.replica_id, delete_data=request.delete_data
            )
            return replica_pb2.DeleteReplicaResponse(operation_id=operation_id)

        method = _SERVICE + "DeleteReplica"
        return await self._writes.run(call, method, request, replica_pb2.DeleteReplicaResponse, act)

    @property
    def _cap(self) -> str:
        return self._services.context.client_access_point

    def _owner(self, record: ReplicaRecord | Outline) -> OwnerRecord | None:
        owned = self._services.inventory.owner(record.replica_id)
        return owned.record if owned else None

    def _facts(self, record: Outline) -> dict[str, str]:
        owner = self._owner(record)
        return {
            "vm_name": record.vm_name,
            "vm_uuid": record.vm_uuid,
            "trust_group": record.trust_group,
            "mode": "Replica",
            "owner": owner.node if owner else "",
        }

    async def _shown(
        self, call: Call, record: ReplicaRecord, gate: asyncio.Semaphore
    ) -> types_pb2.Replica:
        """As the owner tells it; what is on record where it does not answer."""
        asked = Call(identity=call.identity, metadata=call.metadata, remaining=call.remaining)
        asked.replica_id = record.replica_id
        request = replica_pb2.GetReplicaRequest(replica_id=record.replica_id)
        try:
            async with gate:
                _, node = self._services.locator.owner(record)
                target = self._nodes.named(node.name)
                answer = await self._nodes.unary(
                    target,
                    _SERVICE + "GetReplica",
                    request,
                    replica_pb2.GetReplicaResponse,
                    asked,
                    _LIST_TIMEOUT_MS,
                )
        except Problem:
            return replica_message(
                record, self._owner(record), health="Warning", replica_access_point=self._cap
            )
        answer.replica.replica_access_point = self._cap
        return answer.replica


_ASKED_OF_OWNERS = ("state", "health")


def _fits(terms: Filter, facts: dict[str, str]) -> bool:
    """What can be judged without asking the owners."""
    return all(
        facts.get(key, "") in values for key, values in terms.terms if key not in _ASKED_OF_OWNERS
    )


def _shown_facts(item: types_pb2.Replica) -> dict[str, str]:
    return {
        "vm_name": item.vm_name,
        "vm_uuid": item.vm_uuid,
        "trust_group": item.trust_group,
        "mode": "Replica",
        "owner": item.owner,
        "state": name_of(types_pb2.ReplicationState, item.state),
        "health": name_of(types_pb2.Health, item.health),
    }
