"""Records of the broker as messages of its own services."""

from __future__ import annotations

from broker.service.inventory import NodeView
from vmreplica.core.leadership import Candidate
from vmreplica.core.records import BrokerRecord, OperationRecord, ReplicationRecord
from vmreplica.v1 import types_pb2
from vmreplica.wire.cycle_messages import disk_to_message
from vmreplica.wire.enums import value_of
from vmreplica.wire.replica_messages import disk_of_record, policy_to_message
from vmreplica.wire.times import timestamp


def node_message(view: NodeView) -> types_pb2.Node:
    """A node as `node list` shows it."""
    record = view.record
    message = types_pb2.Node(name=view.name, state=view.state.value, replicas=view.replicas)
    if record is not None:
        message.address = record.address
        message.version = record.version
        for storage in record.storage:
            message.storage.add(
                path=storage.path,
                shared=storage.shared,
                total_bytes=storage.total_bytes,
                free_bytes=storage.free_bytes,
            )
    return message


def broker_message(
    record: BrokerRecord, candidate: Candidate, leader: Candidate | None, access_point: str
) -> types_pb2.Broker:
    """A candidate as `broker list` shows it."""
    leads = leader is not None and candidate == leader
    return types_pb2.Broker(
        name=record.name,
        address=record.address,
        leader=leads,
        client_access_point=access_point,
        state="Leader" if leads else "Standby",
        version=record.version,
    )


def operation_message(record: OperationRecord) -> types_pb2.Operation:
    """An operation with its problem's fields apart."""
    problem = dict(record.problem or {})
    return types_pb2.Operation(
        operation_id=record.operation_id,
        verb=record.verb,
        target=record.target,
        state=record.state.value,
        step=record.step,
        done=record.done,
        total=record.total,
        unit=record.unit,
        problem_reason=problem.get("reason", ""),
        problem_message=problem.get("message", ""),
        problem_details=problem,
        result=record.result or {},
        started=timestamp(record.started_ms),
        finished=timestamp(record.finished_ms),
    )


def replication_message(record: ReplicationRecord) -> types_pb2.Replication:
    """A protected VM as its record alone tells: its node does not answer."""
    return types_pb2.Replication(
        replica_id=record.replica_id,
        vm_uuid=record.vm_uuid,
        vm_name=record.vm_name,
        mode=types_pb2.Mode.MODE_PRIMARY,
        state=value_of(types_pb2.ReplicationState, record.state, "state"),
        health=types_pb2.Health.HEALTH_WARNING,
        health_reasons=[f"node {record.node} does not answer"],
        primary_access_point=record.primary_access_point,
        primary_node=record.node,
        replica_access_point=record.replica_access_point,
        policy=policy_to_message(record.policy),
        acked_seq=record.acked_seq,
        acked_time=timestamp(record.acked_time_ms),
        trust_group=record.trust_group,
        last_problem=record.last_problem,
        disks=[disk_to_message(disk_of_record(disk)) for disk in record.disks],
    )
