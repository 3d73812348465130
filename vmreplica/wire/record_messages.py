"""Records of the cluster store → messages: operations, nodes, brokers, replications."""

from __future__ import annotations

from dataclasses import dataclass

from vmreplica.core.cycle import CycleKind
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import (
    BrokerRecord,
    NodeRecord,
    OperationRecord,
    ReplicationRecord,
)
from vmreplica.v1 import types_pb2
from vmreplica.wire.cycle_messages import disk_to_message
from vmreplica.wire.enums import value_of
from vmreplica.wire.problem_status import problem_from_map, problem_to_map
from vmreplica.wire.replica_messages import disk_of_record, policy_to_message, set_time
from vmreplica.wire.times import timestamp


@dataclass(frozen=True, slots=True, kw_only=True)
class CycleFacts:
    """The last acknowledged cycle as the sender saw it."""

    seq: int
    kind: CycleKind
    begin_time_ms: int
    acked_time_ms: int
    changed_bytes: int
    wire_bytes: int
    latency_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicationFacts:
    """What a Replication's message says beyond its record.

    :ivar mode: CamelCase spelling, as interfaces §3; health likewise.
    """

    mode: str = "Primary"
    health: str = ""
    health_reasons: tuple[str, ...] = ()
    replica_node: str = ""
    epoch: int = 0
    pending_bytes: int = 0
    initial_done_bytes: int = 0
    initial_total_bytes: int = 0
    last_cycle: CycleFacts | None = None


def problem_record(problem: Problem) -> dict[str, str]:
    """A problem as OperationRecord.problem holds it."""
    return {
        "reason": problem.reason.value,
        "message": problem.message,
        **problem_to_map(problem),
    }


def problem_of_record(record: dict[str, str]) -> Problem:
    """The reverse."""
    reason = record.get("reason", Reason.INTERNAL.value)
    return problem_from_map(reason, record.get("message", ""), record)


def operation_message(record: OperationRecord) -> types_pb2.Operation:
    """A long-running verb."""
    message = types_pb2.Operation(
        operation_id=record.operation_id,
        verb=record.verb,
        target=record.target,
        state=record.state.value,
        step=record.step,
        done=record.done,
        total=record.total,
        unit=record.unit,
        started=timestamp(record.started_ms),
        finished=timestamp(record.finished_ms),
        result=record.result or {},
    )
    if record.problem is not None:
        message.problem_reason = record.problem.get("reason", "")
        message.problem_message = record.problem.get("message", "")
        for key, value in record.problem.items():
            if key not in ("reason", "message"):
                message.problem_details[key] = value
    return message


def node_message(record: NodeRecord, state: str, replicas: int) -> types_pb2.Node:
    """A node. :param state: Ready, Draining, Drained, Stalled or Lost."""
    return types_pb2.Node(
        name=record.name,
        address=record.address,
        state=state,
        replicas=replicas,
        version=record.version,
        storage=[
            types_pb2.Storage(
                path=storage.path,
                shared=storage.shared,
                total_bytes=storage.total_bytes,
                free_bytes=storage.free_bytes,
            )
            for storage in record.storage
        ],
    )


def broker_message(
    record: BrokerRecord, *, leader: bool, client_access_point: str
) -> types_pb2.Broker:
    """A broker candidate."""
    return types_pb2.Broker(
        name=record.name,
        address=record.address,
        leader=leader,
        client_access_point=client_access_point if leader else "",
        state="Leader" if leader else "Standby",
        version=record.version,
    )


def replication_message(
    record: ReplicationRecord,
    facts: ReplicationFacts = ReplicationFacts(),
) -> types_pb2.Replication:
    """A protected VM. ``record.state`` is the CamelCase spelling."""
    message = types_pb2.Replication(
        replica_id=record.replica_id,
        vm_uuid=record.vm_uuid,
        vm_name=record.vm_name,
        mode=value_of(types_pb2.Mode, facts.mode, "mode"),
        state=value_of(types_pb2.ReplicationState, record.state, "state"),
        health=value_of(types_pb2.Health, facts.health, "health"),
        health_reasons=facts.health_reasons,
        primary_access_point=record.primary_access_point,
        primary_node=record.node,
        replica_access_point=record.replica_access_point,
        replica_node=facts.replica_node,
        epoch=facts.epoch,
        policy=policy_to_message(record.policy),
        acked_seq=record.acked_seq,
        pending_bytes=facts.pending_bytes,
        initial_done_bytes=facts.initial_done_bytes,
        initial_total_bytes=facts.initial_total_bytes,
        trust_group=record.trust_group,
        last_problem=record.last_problem,
        disks=[disk_to_message(disk_of_record(disk)) for disk in record.disks],
    )
    set_time(message, "acked_time", record.acked_time_ms)
    cycle = facts.last_cycle
    if cycle is not None:
        message.last_cycle.CopyFrom(
            types_pb2.CycleSummary(
                seq=cycle.seq,
                kind=value_of(types_pb2.CycleKind, cycle.kind.value),
                begin_time=timestamp(cycle.begin_time_ms),
                acked_time=timestamp(cycle.acked_time_ms),
                changed_bytes=cycle.changed_bytes,
                wire_bytes=cycle.wire_bytes,
                latency_ms=cycle.latency_ms,
            )
        )
    return message
