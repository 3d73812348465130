"""``vmrctl replica``: the copies that this side keeps."""

from __future__ import annotations

import click

from vmrctl.completion import complete_replicas
from vmrctl.errors import usage
from vmrctl.output import Column, View
from vmrctl.paging import all_pages
from vmrctl.points import chosen_point
from vmrctl.session import Session
from vmrctl.verbs import Noun, verb
from vmrctl.views import POINT, REPLICA, view_of
from vmrctl.waiting import wait_for
from vmreplica.v1 import location_pb2, types_pb2
from vmreplica.v1 import replica_pb2 as wire
from vmreplica.wire.json_shapes import shape

command = Noun("replica", help="The copies that this side keeps.")
vm_argument = click.argument("vm", metavar="VM", shell_complete=complete_replicas)
LOCATION = view_of(
    location_pb2.LocateResponse,
    Column("REPLICA", "replica_id"),
    Column("NODE", "node"),
    Column("ADDRESS", "address"),
    Column("EPOCH", "epoch", right=True),
    Column("ROUTE", "route"),
)
CHAIN = View(
    "Chain",
    (Column("DISK", "target"), Column("IMAGE", "qemu_json")),
    ("target", "files", "qemu_json"),
)
POINTS_A_PAGE = 50
"""Chains are long: a page of them must stay below the limit of one message."""


@verb(command, "list", "vmrctl replica list", "vmrctl replica list -o wide")
def list_replicas(session: Session) -> None:
    """List the copies kept here."""
    items = all_pages(
        lambda token: session.client.read(
            "ReplicaService/ListReplicas",
            wire.ListReplicasRequest(page_size=1000, page_token=token),
            wire.ListReplicasResponse,
        )
    )
    session.show_list(REPLICA, [shape(item) for item in items])


@verb(command, "show", "vmrctl replica show guest1")
@vm_argument
def show(session: Session, vm: str) -> None:
    """Show one copy in full, as its owner sees it."""
    answer = session.client.read(
        "ReplicaService/GetReplica", wire.GetReplicaRequest(replica_id=vm), wire.GetReplicaResponse
    )
    session.show(REPLICA, shape(answer.replica))


@verb(command, "locate", "vmrctl replica locate guest1", "vmrctl replica locate guest1 --relay")
@vm_argument
@click.option("--relay", is_flag=True, help="Ask for the way through the broker.")
def locate(session: Session, vm: str, relay: bool) -> None:
    """Say which node owns a copy, and where it is reached."""
    answer = session.client.read(
        "LocationService/Locate",
        location_pb2.LocateRequest(replica_id=vm, relay=relay),
        location_pb2.LocateResponse,
    )
    session.show(LOCATION, shape(answer))


@verb(command, "points", "vmrctl replica points guest1")
@vm_argument
def points(session: Session, vm: str) -> None:
    """List the recovery points of a copy, newest last."""
    session.show_list(POINT, [shape(point) for point in _points(session, vm)])


@verb(
    command,
    "chain",
    "vmrctl replica chain guest1 --point latest",
    "vmrctl replica chain guest1 --point 2026-11-23T04:00:00Z -o json",
)
@vm_argument
@click.option(
    "--point",
    default="latest",
    show_default=True,
    metavar="P",
    help="latest, a seq, or an RFC 3339 time: the newest point not after it.",
)
def chain(session: Session, vm: str, point: str) -> None:
    """Print how unmodified QEMU tools open each disk of a point, read-only.

    Use it as in: qemu-img compare "$(vmrctl replica chain guest1 -o json | jq -r
    .items[0].qemu_json)" other.img
    """
    found = chosen_point(_points(session, vm), point)
    session.show_list(CHAIN, [shape(disk) for disk in found.chains])


@verb(
    command,
    "remove",
    "vmrctl replica remove guest1 --yes",
    "vmrctl replica remove guest1 --delete-data --yes --wait",
)
@vm_argument
@click.option("--delete-data", is_flag=True, help="Delete the files, too. This cannot be undone.")
def remove(session: Session, vm: str, delete_data: bool) -> None:
    """Forget a copy. Its files stay unless --delete-data is given."""
    if delete_data:
        session.confirm(f"Delete the copy of {vm} with all its recovery points?")
    answer = session.client.write(
        "ReplicaService/DeleteReplica",
        wire.DeleteReplicaRequest(replica_id=vm, delete_data=delete_data),
        wire.DeleteReplicaResponse,
    )
    result = shape(answer)
    data = "with its data" if delete_data else "its data stay"
    sentence = f"The copy of {vm} is being removed, {data}."
    if session.options.wait:
        operation = wait_for(session, answer.operation_id, f"remove {vm}")
        if operation is not None:
            result["operation"] = shape(operation)
        sentence = f"The copy of {vm} is removed, {data}."
    session.done(result, sentence)


def _points(session: Session, vm: str) -> list[types_pb2.Point]:
    if not vm:
        raise usage("The VM has no name.", field="VM")
    return all_pages(
        lambda token: session.client.read(
            "ReplicaService/ListPoints",
            wire.ListPointsRequest(replica_id=vm, page_size=POINTS_A_PAGE, page_token=token),
            wire.ListPointsResponse,
        )
    )
