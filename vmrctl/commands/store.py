"""``vmrctl store``: whether a directory is fit to hold replicas."""

from __future__ import annotations

import click

from vmrctl.completion import complete_nodes
from vmrctl.errors import EXIT_FAULTS_FOUND
from vmrctl.output import Column
from vmrctl.session import Session
from vmrctl.verbs import Noun, verb
from vmrctl.views import view_of
from vmreplica.v1 import store_pb2 as wire
from vmreplica.wire.json_shapes import shape

command = Noun("store", help="Check a storage location.")
CHECK = view_of(
    wire.StoreCheck,
    Column("CHECK", "name"),
    Column("NODE", "node"),
    Column("OK", "ok"),
    Column("DETAIL", "detail"),
    Column("NEXT", "remedy"),
)
TIMEOUT_S = 120.0


@verb(
    command,
    "check",
    "vmrctl store check /srv/replicas",
    "vmrctl store check /srv/replicas --node r1.example",
)
@click.argument("directory", metavar="DIR")
@click.option("--node", default="", shell_complete=complete_nodes, help="Ask this node only.")
def check(session: Session, directory: str, node: str) -> int:
    """Prove between the nodes that a directory is shared and keeps what it promises.

    One row a check; the exit code is 8 when one of them found a fault.
    """
    answer = session.client.read(
        "StoreService/CheckStore",
        wire.CheckStoreRequest(path=directory, node=node),
        wire.CheckStoreResponse,
        timeout_s=TIMEOUT_S,
    )
    session.show_list(CHECK, [shape(row) for row in answer.checks])
    return 0 if all(row.ok for row in answer.checks) else EXIT_FAULTS_FOUND
