"""vmreplica.v1.ReplicationService: every verb goes to the node that has the VM."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from google.protobuf.message import Message

from broker.api.access import Access
from broker.api.messages import replication_message
from broker.api.nodes import Nodes
from broker.service.composition import BrokerServices
from vmreplica.core.filters import page, parse_filter
from vmreplica.core.problems import Problem, Reason
from vmreplica.v1 import replication_pb2 as pb
from vmreplica.v1 import types_pb2
from vmreplica.wire.call import Call
from vmreplica.wire.enums import name_of
from vmreplica.wire.node_caller import NodeTarget

M = TypeVar("M", bound=Message)
_SERVICE = "/vmreplica.v1.ReplicationService/"
_ENABLE_TIMEOUT_MS = 30_000
_LIST_TIMEOUT_MS = 3_000
_NODE_PAGE = 1_000


class ReplicationService:
    """Administrators change, viewers read. Names are resolved over the whole cluster."""

    def __init__(self, services: BrokerServices, access: Access, nodes: Nodes) -> None:
        self._services = services
        self._access = access
        self._nodes = nodes

    async def enable_replication(
        self, call: Call, request: pb.EnableReplicationRequest
    ) -> pb.EnableReplicationResponse:
        """Forwarded to the node on which the VM runs.

        Where no node knows the VM by name, each is asked in turn: the refusal of the one that has
        it (a disk that cannot be tracked, say) is what people need to read.
        """
        verb = "EnableReplication"
        try:
            return await self._write(call, verb, request, request.vm, pb.EnableReplicationResponse)
        except Problem as problem:
            if problem.reason is not Reason.UNKNOWN_VM:
                raise
            unknown = problem
        for target in self._nodes.live():
            try:
                return await self._nodes.unary(
                    target,
                    _SERVICE + verb,
                    request,
                    pb.EnableReplicationResponse,
                    call,
                    _ENABLE_TIMEOUT_MS,
                )
            except Problem as problem:
                if problem.reason not in (Reason.UNKNOWN_VM, Reason.NODE_UNREACHABLE):
                    raise
        raise unknown

    async def start_replication(
        self, call: Call, request: pb.StartReplicationRequest
    ) -> pb.StartReplicationResponse:
        """Forwarded."""
        return await self._write(
            call, "StartReplication", request, request.vm, pb.StartReplicationResponse
        )

    async def stop_initial_replication(
        self, call: Call, request: pb.StopInitialReplicationRequest
    ) -> pb.StopInitialReplicationResponse:
        """Forwarded."""
        return await self._write(
            call, "StopInitialReplication", request, request.vm, pb.StopInitialReplicationResponse
        )

    async def suspend_replication(
        self, call: Call, request: pb.SuspendReplicationRequest
    ) -> pb.SuspendReplicationResponse:
        """Forwarded."""
        return await self._write(
            call, "SuspendReplication", request, request.vm, pb.SuspendReplicationResponse
        )

    async def resume_replication(
        self, call: Call, request: pb.ResumeReplicationRequest
    ) -> pb.ResumeReplicationResponse:
        """Forwarded."""
        return await self._write(
            call, "ResumeReplication", request, request.vm, pb.ResumeReplicationResponse
        )

    async def update_replication(
        self, call: Call, request: pb.UpdateReplicationRequest
    ) -> pb.UpdateReplicationResponse:
        """Forwarded."""
        return await self._write(
            call, "UpdateReplication", request, request.vm, pb.UpdateReplicationResponse
        )

    async def remove_replication(
        self, call: Call, request: pb.RemoveReplicationRequest
    ) -> pb.RemoveReplicationResponse:
        """Forwarded."""
        return await self._write(
            call, "RemoveReplication", request, request.vm, pb.RemoveReplicationResponse
        )

    async def get_replication(
        self, call: Call, request: pb.GetReplicationRequest
    ) -> pb.GetReplicationResponse:
        """As its node tells it; what is on record where that does not answer."""
        self._access.require_reader(call)
        record = self._access.replication(request.vm)
        target = await self._target(call, request.vm)
        try:
            return await self._nodes.unary(
                target, _SERVICE + "GetReplication", request, pb.GetReplicationResponse, call
            )
        except Problem as problem:
            if record is None or problem.reason is not Reason.NODE_UNREACHABLE:
                raise
            return pb.GetReplicationResponse(replication=replication_message(record))

    async def list_replications(
        self, call: Call, request: pb.ListReplicationsRequest
    ) -> pb.ListReplicationsResponse:
        """All protected VMs of the cluster, by rising replica id."""
        self._access.require_reader(call)
        terms = parse_filter(request.filter)
        lists = await asyncio.gather(*(self._of_node(call, t) for t in self._nodes.live()))
        found = {item.replica_id: item for items in lists for item in items}
        for record in self._services.inventory.replications():
            if record.replica_id not in found:
                found[record.replica_id] = replication_message(record)
        items, token = page(
            (i for i in found.values() if terms.accepts(_facts(i))),
            lambda i: i.replica_id,
            request.page_size,
            request.page_token,
        )
        return pb.ListReplicationsResponse(items=items, next_page_token=token)

    async def _of_node(self, call: Call, target: NodeTarget) -> list[types_pb2.Replication]:
        asked = Call(identity=call.identity, metadata=call.metadata, remaining=call.remaining)
        items: list[types_pb2.Replication] = []
        token = ""
        while True:
            try:
                answer = await self._nodes.unary(
                    target,
                    _SERVICE + "ListReplications",
                    pb.ListReplicationsRequest(page_size=_NODE_PAGE, page_token=token),
                    pb.ListReplicationsResponse,
                    asked,
                    _LIST_TIMEOUT_MS,
                )
            except Problem:
                return items
            items.extend(answer.items)
            token = answer.next_page_token
            if not token:
                return items

    async def _write(
        self, call: Call, verb: str, request: Message, vm: str, response_type: type[M]
    ) -> M:
        self._access.require_administrator(call)
        target = await self._target(call, vm)
        return await self._nodes.unary(
            target, _SERVICE + verb, request, response_type, call, _ENABLE_TIMEOUT_MS
        )

    async def _target(self, call: Call, vm: str) -> NodeTarget:
        """The node that has the VM, by record, else by asking all.

        :raises Problem: BAD_FIELD, UNKNOWN_VM, AMBIGUOUS_NAME, WRONG_SIDE, NODE_UNREACHABLE.
        """
        if not vm:
            raise Problem(
                Reason.BAD_FIELD,
                "No VM is named.",
                field="vm",
                remedy="Give its name, UUID or replica id.",
            )
        record = self._services.inventory.find_replication(vm)
        if record is not None:
            return self._nodes.named(record.node)
        live = self._nodes.live()
        answers = await asyncio.gather(*(self._has(call, target, vm) for target in live))
        having = [target for target, has in zip(live, answers, strict=True) if has is True]
        if len(having) == 1:
            return having[0]
        if having:
            names = ", ".join(target.name for target in having)
            raise Problem(
                Reason.AMBIGUOUS_NAME,
                f"VMs named {vm!r} are on {names}.",
                field="vm",
                value=vm,
                remedy="Name the VM by its UUID.",
            )
        self._access.replication(vm)
        raise self._unknown(
            vm, [t.name for t, has in zip(live, answers, strict=True) if has is None]
        )

    async def _has(self, call: Call, target: NodeTarget, vm: str) -> bool | None:
        """Whether the VM is there; None = the node did not answer."""
        asked = Call(identity=call.identity, metadata=call.metadata, remaining=call.remaining)
        try:
            await self._nodes.unary(
                target,
                _SERVICE + "GetReplication",
                pb.GetReplicationRequest(vm=vm),
                pb.GetReplicationResponse,
                asked,
                _LIST_TIMEOUT_MS,
            )
        except Problem as problem:
            if problem.reason is Reason.AMBIGUOUS_NAME:
                raise
            if problem.reason is Reason.STATE_REFUSES:
                # It is there, only not protected.
                return True
            away = problem.reason in (Reason.NODE_UNREACHABLE, Reason.LEASE_LOST)
            return None if away else False
        return True

    @staticmethod
    def _unknown(vm: str, silent: list[str]) -> Problem:
        hint = f" {', '.join(silent)} did not answer." if silent else ""
        return Problem(
            Reason.UNKNOWN_VM,
            f"No node of this cluster has a VM {vm!r}.{hint}",
            field="vm",
            value=vm,
            remedy="Ask the client access point of the side on which the VM runs.",
        )


def _facts(item: types_pb2.Replication) -> dict[str, str]:
    return {
        "vm_name": item.vm_name,
        "vm_uuid": item.vm_uuid,
        "trust_group": item.trust_group,
        "owner": item.primary_node,
        "mode": name_of(types_pb2.Mode, item.mode),
        "state": name_of(types_pb2.ReplicationState, item.state),
        "health": name_of(types_pb2.Health, item.health),
    }
