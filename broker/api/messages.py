"""What the broker shows where a node's own words are missing."""

from __future__ import annotations

from broker.service.inventory import NodeView
from vmreplica.core.records import ReplicationRecord
from vmreplica.v1 import types_pb2
from vmreplica.wire import record_messages
from vmreplica.wire.record_messages import ReplicationFacts


def node_message(view: NodeView) -> types_pb2.Node:
    """A node as `node list` shows it; a lost one has a name, a state and what it owns."""
    if view.record is None:
        return types_pb2.Node(name=view.name, state=view.state.value, replicas=view.replicas)
    return record_messages.node_message(view.record, view.state.value, view.replicas)


def replication_message(record: ReplicationRecord) -> types_pb2.Replication:
    """A protected VM as its record alone tells: its node does not answer."""
    reasons = (f"node {record.node} does not answer",)
    facts = ReplicationFacts(health="Warning", health_reasons=reasons)
    return record_messages.replication_message(record, facts)
