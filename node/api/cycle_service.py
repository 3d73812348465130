"""vmreplica.v1.CycleService of one node: cycles of replicas that it owns."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from node.api.access import NodeAccess
from vmreplica.core.cycle import DIGEST_BYTES, CycleRequest
from vmreplica.core.problems import Problem, Reason
from vmreplica.v1 import cycle_pb2
from vmreplica.wire.call import Call
from vmreplica.wire.cycle_messages import reply_to_message, request_from_message

_WAIT_MS = 2_000
_DIGESTS_A_MESSAGE = 16_384


class CycleService:
    """Senders of the replica's trust group."""

    def __init__(self, access: NodeAccess) -> None:
        self._access = access

    async def replicate(
        self, call: Call, requests: AsyncIterator[cycle_pb2.ReplicateRequest]
    ) -> AsyncIterator[cycle_pb2.ReplicateResponse]:
        """One cycle: open, frames, close; progress and the acknowledgement back."""
        self._access.mark(call, None)

        async def incoming() -> AsyncIterator[CycleRequest]:
            async for message in requests:
                yield request_from_message(message)

        receiver = self._access.role.receiver
        names = call.identity.dns_names
        async with aclosing(receiver.serve(call.identity, names, incoming())) as replies:
            async for reply in replies:
                yield reply_to_message(reply)

    async def list_digests(
        self, call: Call, request: cycle_pb2.ListDigestsRequest
    ) -> AsyncIterator[cycle_pb2.ListDigestsResponse]:
        """Plain digests of one disk at the head, zeros where nothing was ever written."""
        actor = await self._access.owned(call, request.replica_id)
        session = await actor.serving(_WAIT_MS)
        manifest = session.manifest
        if request.seq != manifest.head.seq or not request.seq:
            raise Problem(
                Reason.POINT_NOT_FOUND,
                f"point {request.seq} is not kept; the head is {manifest.head.seq}",
                field="seq",
                value=str(request.seq),
                remedy="ask GetReplica for acked_seq",
            )
        disk = next((d for d in manifest.disks if d.target == request.target), None)
        if disk is None or disk.excluded:
            raise Problem(
                Reason.BAD_FIELD,
                f"the replica has no disk {request.target}",
                field="target",
                value=request.target,
                remedy="ask GetReplica for the disks",
            )
        digests = await session.folder.plain_digests(disk.target, manifest, request.seq)
        nothing = bytes(DIGEST_BYTES)
        for first in range(request.first_index, disk.clusters, _DIGESTS_A_MESSAGE):
            last = min(first + _DIGESTS_A_MESSAGE, disk.clusters)
            yield cycle_pb2.ListDigestsResponse(
                first_index=first,
                digests=b"".join(digests.get(i, nothing) for i in range(first, last)),
            )
