"""vmreplica.v1.ReplicaService of one node: the replicas that it owns, asked of their manifests."""

from __future__ import annotations

from node.api.access import NodeAccess
from node.service.replica_actor import Session
from vmreplica.core.manifest import RecoveryPoint
from vmreplica.core.records import OwnerRecord
from vmreplica.core.replica_state import judge
from vmreplica.v1 import replica_pb2, types_pb2
from vmreplica.wire.call import Call
from vmreplica.wire.replica_messages import PointFacts, point_message, replica_message

_WAIT_MS = 2_000


class ReplicaService:
    """Only what an owner can answer; everything else is the broker's."""

    def __init__(self, access: NodeAccess) -> None:
        self._access = access

    async def get_replica(
        self, call: Call, request: replica_pb2.GetReplicaRequest
    ) -> replica_pb2.GetReplicaResponse:
        """The head of the manifest in force; a damaged replica is shown as such."""
        actor = await self._access.owned(call, request.replica_id)
        parts = self._access.role.parts
        if actor.session is None and actor.phase.value != "Damaged":
            await actor.serving(_WAIT_MS)
        session = actor.session
        if session is not None:
            actor.check_deadline()
        manifest = session.manifest if session is not None else None
        receiving = None
        if session is not None and session.incoming is not None:
            receiving = session.incoming.request.kind
        verdict = judge(
            manifest,
            actor.phase,
            receiving,
            actor.record.policy.frequency_ms,
            parts.clock.wall_ms(),
        )
        owner = OwnerRecord(node=parts.node, incarnation=actor.incarnation, epoch=actor.epoch)
        return replica_pb2.GetReplicaResponse(
            replica=replica_message(
                actor.record,
                owner,
                manifest.head if manifest is not None else None,
                state=verdict.state,
                health=verdict.health,
                size_bytes=sum(x.bytes for x in manifest.layers) if manifest else 0,
                point_count=len(manifest.points) if manifest else 0,
            )
        )

    async def list_points(
        self, call: Call, request: replica_pb2.ListPointsRequest
    ) -> replica_pb2.ListPointsResponse:
        """Recovery points, newest last, with the chain of each disk."""
        actor = await self._access.owned(call, request.replica_id)
        session = await actor.serving(_WAIT_MS)
        points = session.manifest.points
        return replica_pb2.ListPointsResponse(items=[_point(session, p) for p in points])


def _point(session: Session, point: RecoveryPoint) -> types_pb2.Point:
    manifest = session.manifest
    files = {file for _, chain in point.chain for file in chain}
    disks = {disk.target: disk for disk in manifest.disks}
    facts = PointFacts(
        size_bytes=sum(x.bytes for x in manifest.layers if x.file in files),
        # Points share files: that somebody reads a file does not say which point is meant.
        in_use=any(run.seq == point.seq for run in manifest.runs),
        qemu_json=tuple(
            (target, session.folder.qemu_json(disks[target], chain))
            for target, chain in point.chain
        ),
    )
    return point_message(point, facts)
