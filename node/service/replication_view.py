"""What ``replication show`` says of one VM: a value made from its task, for the API to render."""

from __future__ import annotations

from dataclasses import dataclass

from node.service.cycle_runner import CycleSummary
from node.service.replication_task import ProtectedVm
from vmreplica.core.cycle import CycleKind
from vmreplica.core.records import DiskRecord, PolicyRecord, ReplicationRecord
from vmreplica.core.replication_health import Health, HealthFacts, health_of
from vmreplica.core.replication_state import ReplicationState
from vmreplica.ports.clock import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicationView:
    """Names and units as in the JSON of ``replication``; 0 and "" where nothing is known."""

    replica_id: str
    vm_uuid: str
    vm_name: str
    state: ReplicationState
    health: Health
    health_reasons: tuple[str, ...]
    primary_access_point: str
    primary_node: str
    replica_access_point: str
    replica_node: str
    epoch: int
    route: str
    policy: PolicyRecord
    disks: tuple[DiskRecord, ...]
    trust_group: str
    acked_seq: int
    acked_time_ms: int
    pending_bytes: int
    initial_done_bytes: int
    initial_total_bytes: int
    last_cycle: CycleSummary | None
    last_problem: str
    operation_id: str


def view_of(vm: ProtectedVm, clock: Clock) -> ReplicationView:
    """The present view."""
    record, running, location = vm.record, vm.running, vm.route.location
    progress = running.progress if running else None
    full = running is not None and running.kind is not CycleKind.DELTA
    health, reasons = health_of(
        HealthFacts(
            state=vm.standing.state,
            frequency_ms=record.policy.frequency_ms,
            unacked_ms=clock.boottime_ms() - vm.healthy_since_ms,
            problem=vm.problem,
            deferred=vm.deferred,
            relayed_by_need=vm.route.relayed and record.policy.route == "auto",
        )
    )
    epoch = progress.epoch if progress and progress.epoch else 0
    return ReplicationView(
        replica_id=record.replica_id,
        vm_uuid=record.vm_uuid,
        vm_name=record.vm_name,
        state=vm.standing.state,
        health=health,
        health_reasons=reasons,
        primary_access_point=record.primary_access_point,
        primary_node=record.node,
        replica_access_point=record.replica_access_point,
        replica_node=location.node if location else (vm.head.owner if vm.head else ""),
        epoch=epoch or (location.epoch if location else (vm.head.epoch if vm.head else 0)),
        route="relay" if vm.route.relayed else "direct",
        policy=record.policy,
        disks=record.disks,
        trust_group=record.trust_group,
        acked_seq=vm.acked_seq,
        acked_time_ms=vm.acked_time_ms,
        pending_bytes=progress.total_bytes - progress.done_bytes if progress else 0,
        initial_done_bytes=progress.done_bytes if progress and full else vm.initial_bytes,
        initial_total_bytes=progress.total_bytes if progress and full else vm.initial_bytes,
        last_cycle=vm.last_cycle,
        last_problem=vm.problem,
        operation_id=record.operation_id,
    )


def view_of_record(record: ReplicationRecord) -> ReplicationView:
    """What the record alone says: of a VM that another node of this cluster protects."""
    state = ReplicationState(record.state)
    health, reasons = health_of(HealthFacts(state=state, frequency_ms=record.policy.frequency_ms))
    return ReplicationView(
        replica_id=record.replica_id,
        vm_uuid=record.vm_uuid,
        vm_name=record.vm_name,
        state=state,
        health=health,
        health_reasons=reasons,
        primary_access_point=record.primary_access_point,
        primary_node=record.node,
        replica_access_point=record.replica_access_point,
        replica_node="",
        epoch=0,
        route=record.policy.route,
        policy=record.policy,
        disks=record.disks,
        trust_group=record.trust_group,
        acked_seq=record.acked_seq,
        acked_time_ms=record.acked_time_ms,
        pending_bytes=0,
        initial_done_bytes=0,
        initial_total_bytes=0,
        last_cycle=None,
        last_problem=record.last_problem,
        operation_id=record.operation_id,
    )
