"""``vmrctl connection``: check the way to another cluster before anything depends on it."""

from __future__ import annotations

import click

from vmrctl.contexts import with_port
from vmrctl.errors import EXIT_FAULTS_FOUND
from vmrctl.output import Column
from vmrctl.session import Session
from vmrctl.verbs import Noun, verb
from vmrctl.views import view_of
from vmreplica.v1 import connection_pb2 as wire
from vmreplica.wire.json_shapes import shape

command = Noun("connection", help="Check the way to another cluster.")
CHECK = view_of(
    wire.ConnectionCheck,
    Column("CHECK", "name"),
    Column("TARGET", "target"),
    Column("OK", "ok"),
    Column("DETAIL", "detail"),
    Column("NEXT", "remedy"),
)
TIMEOUT_S = 120.0


@verb(
    command,
    "test",
    "vmrctl connection test replica.example:7443",
    "vmrctl --endpoint p1.example:7444 connection test replica.example:7443 --each-node",
)
@click.argument("cap", metavar="CAP")
@click.option("--each-node", is_flag=True, help="Check every node's own address, too.")
def test(session: Session, cap: str, each_node: bool) -> int:
    """Check name, TCP, TLS, certificates both ways and authorization, from the endpoint's side.

    CAP is the other cluster's client access point, HOST:PORT. One row a check; the exit code is 8
    when one of them found a fault.
    """
    answer = session.client.read(
        "ConnectionService/TestConnection",
        wire.TestConnectionRequest(to=with_port(cap), each_node=each_node),
        wire.TestConnectionResponse,
        timeout_s=TIMEOUT_S,
    )
    session.show_list(CHECK, [shape(check) for check in answer.checks])
    return 0 if all(check.ok for check in answer.checks) else EXIT_FAULTS_FOUND
