"""``vmrctl node``: the hosts of the cluster."""

from __future__ import annotations

import click

from vmrctl.completion import complete_nodes
from vmrctl.errors import Failure
from vmrctl.session import Session
from vmrctl.verbs import Noun, verb
from vmrctl.views import NODE
from vmrctl.waiting import wait_for
from vmreplica.v1 import node_pb2 as wire
from vmreplica.v1.types_pb2 import Node
from vmreplica.wire.json_shapes import shape

command = Noun("node", help="The hosts of the cluster.")


@verb(command, "list", "vmrctl node list", "vmrctl node list -o json")
def list_nodes(session: Session) -> None:
    """List the nodes with their state, replicas and free space."""
    session.show_list(NODE, [shape(node) for node in _nodes(session)])


@verb(command, "show", "vmrctl node show r1.example")
@click.argument("node", shell_complete=complete_nodes)
def show(session: Session, node: str) -> None:
    """Show one node in full."""
    nodes = _nodes(session)
    for candidate in nodes:
        if candidate.name == node:
            session.show(NODE, shape(candidate))
            return
    raise Failure(
        "UNKNOWN_NODE",
        f"There is no node named {node}.",
        exit_code=3,
        grpc_code="NOT_FOUND",
        field="node",
        value=node,
        remedy=f"Nodes: {', '.join(sorted(n.name for n in nodes)) or 'none'}.",
    )


@verb(command, "drain", "vmrctl node drain r1.example --wait --timeout 30m")
@click.argument("node", shell_complete=complete_nodes)
def drain(session: Session, node: str) -> None:
    """Move all replicas off a node, losing no cycle, and place no new ones there.

    Interrupting the command does not stop the draining: it goes on, and can be waited for with
    "vmrctl operation wait", or turned round with "vmrctl node undrain".
    """
    answer = session.client.write(
        "NodeService/DrainNode", wire.DrainNodeRequest(node=node), wire.DrainNodeResponse
    )
    result = shape(answer)
    sentence = f"{node} is being drained (operation {answer.operation_id or '-'})."
    if session.options.wait:
        operation = wait_for(session, answer.operation_id, f"drain {node}")
        if operation is not None:
            result["operation"] = shape(operation)
        sentence = f"{node} is drained."
    session.done(result, sentence)


@verb(command, "undrain", "vmrctl node undrain r1.example")
@click.argument("node", shell_complete=complete_nodes)
def undrain(session: Session, node: str) -> None:
    """Let a drained node own replicas again."""
    answer = session.client.write(
        "NodeService/UndrainNode", wire.UndrainNodeRequest(node=node), wire.UndrainNodeResponse
    )
    sentence = f"{node} takes replicas again." if answer.changed else f"{node} was not drained."
    session.done(shape(answer), sentence)


def _nodes(session: Session) -> list[Node]:
    answer = session.client.read(
        "NodeService/ListNodes", wire.ListNodesRequest(), wire.ListNodesResponse
    )
    return list(answer.items)
