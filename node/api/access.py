"""Who may call what on a node, and the API's way to an owned replica."""

from __future__ import annotations

from node.service.keeper import unknown_replica
from node.service.replica_actor import ReplicaActor
from node.service.replica_role import ReplicaRole
from vmreplica.core.identity import RoleKind
from vmreplica.core.records import ReplicaRecord
from vmreplica.ports.cluster_store import StoreUnavailable
from vmreplica.wire.call import TRAILER_EPOCH, TRAILER_NODE, Call, require_role

READERS = (
    RoleKind.VIEWER,
    RoleKind.OPERATOR,
    RoleKind.ADMINISTRATOR,
    RoleKind.BROKER,
    RoleKind.NODE,
)

_SEE_ALL = tuple(kind for kind in READERS if kind is not RoleKind.OPERATOR)


class NodeAccess:
    """Roles by certificate, senders by trust group."""

    def __init__(self, role: ReplicaRole, cluster: str) -> None:
        self.role = role
        self.cluster = cluster

    def require_reader(self, call: Call) -> None:
        """:raises Problem: ROLE_REQUIRED"""
        require_role(call, self.cluster, *READERS)

    def require_administrator(self, call: Call) -> None:
        """:raises Problem: ROLE_REQUIRED"""
        require_role(call, self.cluster, RoleKind.ADMINISTRATOR)

    async def record(self, call: Call, replica_id: str) -> ReplicaRecord:
        """The record of a replica that this caller may see.

        :raises Problem: UNKNOWN_REPLICA for all others.
        """
        records = self.role.keeper.records
        record = records.cached_record(replica_id)
        if record is None:
            try:
                await records.refresh(replica_id)
            except StoreUnavailable:
                record = None
            record = records.cached_record(replica_id)
        if record is None:
            raise unknown_replica(replica_id)
        if not call.identity.has_role(self.cluster, *_SEE_ALL):
            self._check_group(call, record)
        return record

    def _check_group(self, call: Call, record: ReplicaRecord) -> None:
        """An operator sees its own trust groups, a sender its own replicas."""
        groups = {
            role.group
            for role in call.identity.roles
            if role.cluster == self.cluster and role.kind is RoleKind.OPERATOR
        }
        if not groups:
            self.role.access.check(call.identity.dns_names, record)
        elif record.trust_group not in groups:
            raise unknown_replica(record.replica_id)

    async def owned(self, call: Call, replica_id: str) -> ReplicaActor:
        """The task of an owned replica that this caller may see.

        :raises Problem: UNKNOWN_REPLICA, NOT_OWNER, NODE_UNREACHABLE
        """
        await self.record(call, replica_id)
        actor = await self.role.keeper.locate(replica_id)
        self.mark(call, actor)
        return actor

    def mark(self, call: Call, actor: ReplicaActor | None) -> None:
        """The trailers that say who answered."""
        call.set_trailer(TRAILER_NODE, self.role.parts.node)
        if actor is not None:
            call.set_trailer(TRAILER_EPOCH, str(actor.epoch))
