"""``vmrctl broker``: the brokers behind the client access point."""

from __future__ import annotations

from vmrctl.session import Session
from vmrctl.verbs import Noun, verb
from vmrctl.views import BROKER
from vmreplica.v1 import node_pb2 as wire
from vmreplica.wire.json_shapes import shape

command = Noun("broker", help="The brokers behind the client access point.")


@verb(command, "list", "vmrctl broker list")
def list_brokers(session: Session) -> None:
    """List the candidates, who leads, and the client access point."""
    answer = session.client.read(
        "NodeService/ListBrokers", wire.ListBrokersRequest(), wire.ListBrokersResponse
    )
    session.show_list(BROKER, [shape(broker) for broker in answer.items])
