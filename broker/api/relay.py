"""CycleService at the client access point: bytes passed on unparsed to the owner."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from broker.api.access import Access
from broker.api.nodes import target_of
from broker.service.composition import BrokerServices
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import OwnerRecord, ReplicaRecord
from vmreplica.wire.call import REPLICA_ID, TRAILER_EPOCH, TRAILER_ROUTE, Call
from vmreplica.wire.node_caller import NodeCaller, RawCall, RawStream

Pump = Callable[[Call, RawStream, RawCall], Awaitable[None]]
METHODS = (
    "/vmreplica.v1.CycleService/Replicate",
    "/vmreplica.v1.CycleService/ListDigests",
)
MAX_STREAMS = 1_000


class Relay:
    """Routed by the metadata ``vmreplica-replica-id``; ends when the owner changes.

    :param pump: passes messages both ways in bounded memory (adapters.grpc_relay.relay).
    """

    def __init__(
        self, services: BrokerServices, access: Access, caller: NodeCaller, pump: Pump
    ) -> None:
        self._services = services
        self._access = access
        self._caller = caller
        self._pump = pump
        self._streams = 0

    def handler(self, method: str) -> Callable[[Call, RawStream], Awaitable[None]]:
        """What GrpcServer.add_raw_stream mounts at ``method``."""

        async def handle(call: Call, stream: RawStream) -> None:
            await self.serve(method, call, stream)

        return handle

    async def serve(self, method: str, call: Call, stream: RawStream) -> None:
        """One call from its beginning to its end.

        :raises Problem: BAD_FIELD, UNKNOWN_REPLICA, NODE_UNREACHABLE, DRAINING,
            STORE_UNAVAILABLE, TOO_MANY_STREAMS; and as the node answers.
        """
        call.set_trailer(TRAILER_ROUTE, "relay")
        if not call.replica_id:
            raise Problem(
                Reason.BAD_FIELD,
                "A relayed stream must name its replica in the metadata.",
                field=REPLICA_ID,
                remedy=f"Send the metadata {REPLICA_ID}.",
            )
        record = self._access.replica(call, call.replica_id)
        call.replica_id = record.replica_id
        owner, node = self._services.locator.owner(record)
        if self._streams >= MAX_STREAMS:
            raise Problem(
                Reason.TOO_MANY_STREAMS,
                f"This broker already relays {MAX_STREAMS} streams.",
                remedy="Try again later, or let the sender reach the nodes directly.",
            )
        self._streams += 1
        try:
            to_node = await self._caller.open_raw(target_of(node), method, call)
            await self._until_owner_changes(record, owner, self._pump(call, stream, to_node))
        finally:
            self._streams -= 1
            call.trailers.setdefault(TRAILER_EPOCH, str(owner.epoch))

    async def _until_owner_changes(
        self, record: ReplicaRecord, owner: OwnerRecord, pumping: Awaitable[None]
    ) -> None:
        changed = asyncio.Event()
        owner_key = self._services.context.keys.owner(record.replica_id)
        node_key = self._services.context.keys.node(owner.node, owner.incarnation)

        def look(key: str) -> None:
            if key in (owner_key, node_key) and not self._still(record, owner):
                changed.set()

        stop = self._services.inventory.cache.subscribe(look)
        pump = asyncio.ensure_future(pumping)
        change = asyncio.create_task(changed.wait())
        try:
            if not self._still(record, owner):
                changed.set()
            await asyncio.wait((pump, change), return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                await pump
                return
            raise Problem(
                Reason.NODE_UNREACHABLE,
                f"The replica of {record.vm_name} left {owner.node} in the middle of the stream.",
                field="replica_id",
                value=record.replica_id,
                node=owner.node,
                remedy="Locate again and open with resume.",
            )
        finally:
            stop()
            change.cancel()
            pump.cancel()
            with contextlib.suppress(asyncio.CancelledError, Problem):
                await pump

    def _still(self, record: ReplicaRecord, owner: OwnerRecord) -> bool:
        """Whether the owner may still serve this stream. A releasing owner ends it by itself."""
        inventory = self._services.inventory
        owned = inventory.owner(record.replica_id)
        if owned is None:
            return False
        now = owned.record
        if (now.node, now.incarnation, now.epoch) != (owner.node, owner.incarnation, owner.epoch):
            return False
        return inventory.incarnation(owner.node, owner.incarnation) is not None
