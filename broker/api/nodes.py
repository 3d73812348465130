"""Calls to the nodes of this cluster, by name or as owner of a replica."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import Message

from broker.service.composition import BrokerServices
from broker.service.drain import unknown_node
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import NodeRecord, ReplicaRecord
from vmreplica.wire.call import TRAILER_EPOCH, Call
from vmreplica.wire.node_caller import NodeCaller, NodeTarget

M = TypeVar("M", bound=Message)
OWNER_WAIT_MS = 3_000
_AGAIN_MS = 150
_LOOK_AGAIN = (Reason.NOT_OWNER, Reason.STALE_EPOCH, Reason.DRAINING, Reason.NODE_UNREACHABLE)


class Nodes:
    """Every call bears the caller's identity; the node decides."""

    def __init__(self, services: BrokerServices, caller: NodeCaller) -> None:
        self._services = services
        self.caller = caller

    def live(self) -> list[NodeTarget]:
        """All living nodes, by name; of two processes of one node the younger."""
        inventory = self._services.inventory
        names = sorted({node.load.name for node in inventory.live_nodes()})
        records = (inventory.node_record(name) for name in names)
        return [target_of(record) for record in records if record is not None]

    def named(self, name: str) -> NodeTarget:
        """:raises Problem: UNKNOWN_NODE, NODE_UNREACHABLE where no process of it lives."""
        inventory = self._services.inventory
        record = inventory.node_record(name)
        if record is not None:
            return target_of(record)
        if name not in inventory.node_names():
            raise unknown_node(name, inventory.node_names())
        raise Problem(
            Reason.NODE_UNREACHABLE,
            f"Node {name} is not alive.",
            field="node",
            value=name,
            node=name,
            remedy=f"Start it; `vmrctl node show {name}` tells its state.",
        )

    async def unary(
        self,
        target: NodeTarget,
        method: str,
        request: Message,
        response_type: type[M],
        call: Call,
        timeout_ms: int = 10_000,
    ) -> M:
        """One call to one node."""
        return await self.caller.unary(
            target, method, request, response_type, call, timeout_ms=timeout_ms
        )

    async def ask_owner(
        self,
        record: ReplicaRecord,
        method: str,
        request: Message,
        response_type: type[M],
        call: Call,
        *,
        wait_ms: int = OWNER_WAIT_MS,
        target: Callable[[], NodeTarget] | None = None,
    ) -> M:
        """One call to the owner, following it for a few seconds while it changes.

        :param target: somewhere else than at the owner.
        :raises Problem: as the owner answered; NODE_UNREACHABLE, DRAINING, STORE_UNAVAILABLE.
        """
        clock = self._services.context.clock
        give_up_ms = clock.boottime_ms() + wait_ms
        call.replica_id = record.replica_id
        while True:
            try:
                if target is not None:
                    return await self.unary(target(), method, request, response_type, call)
                owner, node = self._services.locator.owner(record)
                answer = await self.unary(target_of(node), method, request, response_type, call)
            except Problem as problem:
                if problem.reason not in _LOOK_AGAIN or clock.boottime_ms() >= give_up_ms:
                    raise
                await clock.sleep(_AGAIN_MS)
                continue
            call.trailers.setdefault(TRAILER_EPOCH, str(owner.epoch))
            return answer


def target_of(record: NodeRecord) -> NodeTarget:
    """Where a node's process listens."""
    return NodeTarget(record.name, record.address, record.server_name)
