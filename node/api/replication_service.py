"""vmreplica.v1.ReplicationService of one node: the VMs that run on this host."""

from __future__ import annotations

from dataclasses import replace

from node.api.access import READERS
from node.service.replication import PrimaryRole
from node.service.replication_view import ReplicationView
from vmreplica.core.filters import key_of, page_size, parse_filter, token_after
from vmreplica.core.identity import RoleKind
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import ReplicationRecord
from vmreplica.v1 import replication_pb2 as pb
from vmreplica.v1 import types_pb2
from vmreplica.wire.call import Call, require_role
from vmreplica.wire.record_messages import CycleFacts, ReplicationFacts, replication_message
from vmreplica.wire.replica_messages import policy_from_message
from vmreplica.wire.times import milliseconds


class ReplicationService:
    """Administrators change, viewers read.

    :param cluster: whose roles count.
    """

    def __init__(self, role: PrimaryRole, cluster: str) -> None:
        self._role = role
        self._cluster = cluster

    async def enable_replication(
        self, call: Call, request: pb.EnableReplicationRequest
    ) -> pb.EnableReplicationResponse:
        """Protect a VM; the initial replication waits for StartReplication."""
        self._change(call)
        _must("vm", request.vm)
        _must("to", request.to)
        policy = policy_from_message(request.policy, self._role.default_policy())
        if policy.recovery_points:
            raise Problem(
                Reason.UNIMPLEMENTED,
                "more than the newest recovery point cannot be kept yet",
                field="policy.recovery_points",
                value=str(policy.recovery_points),
                remedy="Leave --recovery-points out",
            )
        done = await self._role.enable(request.vm, request.to, policy)
        return pb.EnableReplicationResponse(
            replication=message_of(done.view),
            changed=done.changed,
            operation_id=done.operation_id,
        )

    async def start_replication(
        self, call: Call, request: pb.StartReplicationRequest
    ) -> pb.StartReplicationResponse:
        """Begin the initial replication now, or at ``at``."""
        self._change(call)
        _must("vm", request.vm)
        at_ms = milliseconds(request.at) if request.HasField("at") else 0
        done = await self._role.start(request.vm, at_ms)
        return pb.StartReplicationResponse(changed=done.changed, operation_id=done.operation_id)

    async def stop_initial_replication(
        self, call: Call, request: pb.StopInitialReplicationRequest
    ) -> pb.StopInitialReplicationResponse:
        """Give the initial replication up."""
        self._change(call)
        _must("vm", request.vm)
        done = await self._role.stop_initial(request.vm)
        return pb.StopInitialReplicationResponse(changed=done.changed)

    async def suspend_replication(
        self, call: Call, request: pb.SuspendReplicationRequest
    ) -> pb.SuspendReplicationResponse:
        """Pause."""
        self._change(call)
        _must("vm", request.vm)
        return pb.SuspendReplicationResponse(changed=(await self._role.suspend(request.vm)).changed)

    async def resume_replication(
        self, call: Call, request: pb.ResumeReplicationRequest
    ) -> pb.ResumeReplicationResponse:
        """Go on. Resynchronizing on demand is not there yet."""
        self._change(call)
        _must("vm", request.vm)
        if request.resync or request.HasField("at"):
            raise Problem(
                Reason.UNIMPLEMENTED,
                "a resynchronization cannot be asked for yet; where one is needed it starts itself",
                field="resync" if request.resync else "at",
                remedy="Leave --resync and --at out",
            )
        done = await self._role.resume(request.vm)
        return pb.ResumeReplicationResponse(changed=done.changed)

    async def update_replication(
        self, call: Call, request: pb.UpdateReplicationRequest
    ) -> pb.UpdateReplicationResponse:
        """Change the policy; what the message leaves out stays."""
        self._change(call)
        _must("vm", request.vm)
        named = tuple(request.update_fields)
        done = await self._role.set(
            request.vm, lambda base: policy_from_message(request.policy, base, named)
        )
        return pb.UpdateReplicationResponse(replication=message_of(done.view), changed=done.changed)

    async def remove_replication(
        self, call: Call, request: pb.RemoveReplicationRequest
    ) -> pb.RemoveReplicationResponse:
        """End the protection on this side."""
        self._change(call)
        _must("vm", request.vm)
        return pb.RemoveReplicationResponse(changed=await self._role.remove(request.vm))

    async def get_replication(
        self, call: Call, request: pb.GetReplicationRequest
    ) -> pb.GetReplicationResponse:
        """One VM."""
        self._read(call)
        _must("vm", request.vm)
        return pb.GetReplicationResponse(replication=message_of(await self._role.show(request.vm)))

    async def list_replications(
        self, call: Call, request: pb.ListReplicationsRequest
    ) -> pb.ListReplicationsResponse:
        """The VMs of this node, by replica id."""
        self._read(call)
        wanted = parse_filter(request.filter)
        size, after = page_size(request.page_size), key_of(request.page_token)
        fits = [
            view
            for view in self._role.list()
            if view.replica_id > after and wanted.accepts(_facts(view))
        ]
        more = token_after(fits[size - 1].replica_id) if len(fits) > size else ""
        return pb.ListReplicationsResponse(
            items=[message_of(view) for view in fits[:size]], next_page_token=more
        )

    def _change(self, call: Call) -> None:
        require_role(call, self._cluster, RoleKind.ADMINISTRATOR)

    def _read(self, call: Call) -> None:
        require_role(call, self._cluster, *READERS)


def message_of(view: ReplicationView) -> types_pb2.Replication:
    """A view on the wire. ``policy.route`` shows ``relay`` while the relay is what is used."""
    policy = replace(view.policy, route="relay") if view.route == "relay" else view.policy
    record = ReplicationRecord(
        replica_id=view.replica_id,
        vm_uuid=view.vm_uuid,
        vm_name=view.vm_name,
        node=view.primary_node,
        primary_access_point=view.primary_access_point,
        replica_access_point=view.replica_access_point,
        trust_group=view.trust_group,
        state=view.state.value,
        policy=policy,
        disks=view.disks,
        acked_seq=view.acked_seq,
        acked_time_ms=view.acked_time_ms,
        last_problem=view.last_problem,
    )
    cycle = view.last_cycle
    facts = ReplicationFacts(
        health=view.health.value,
        health_reasons=view.health_reasons,
        replica_node=view.replica_node,
        epoch=view.epoch,
        pending_bytes=view.pending_bytes,
        initial_done_bytes=view.initial_done_bytes,
        initial_total_bytes=view.initial_total_bytes,
        last_cycle=None
        if cycle is None
        else CycleFacts(
            seq=cycle.seq,
            kind=cycle.kind,
            begin_time_ms=cycle.begin_time_ms,
            acked_time_ms=cycle.acked_time_ms,
            changed_bytes=cycle.changed_bytes,
            wire_bytes=cycle.wire_bytes,
            latency_ms=cycle.latency_ms,
        ),
    )
    return replication_message(record, facts)


def _facts(view: ReplicationView) -> dict[str, str]:
    return {
        "vm_name": view.vm_name,
        "vm_uuid": view.vm_uuid,
        "state": view.state.value,
        "health": view.health.value,
        "mode": "Primary",
        "owner": view.replica_node,
        "trust_group": view.trust_group,
    }


def _must(field: str, value: str) -> None:
    if not value:
        raise Problem(
            Reason.BAD_FIELD,
            f"{field} is missing",
            field=field,
            remedy="Name the VM by its name, its UUID or its replica id"
            if field == "vm"
            else "Give the other side's client access point as HOST:PORT",
        )
