"""``vmrctl failover``: turn a copy into a running machine. In this version: to test it."""

from __future__ import annotations

import click

from vmrctl.completion import complete_replicas
from vmrctl.errors import usage
from vmrctl.paging import all_pages
from vmrctl.session import Session
from vmrctl.verbs import Noun, verb
from vmrctl.views import TEST_FAILOVER
from vmrctl.waiting import wait_for
from vmreplica.v1 import failover_pb2 as wire
from vmreplica.wire.json_shapes import shape

command = Noun("failover", help="Turn a copy into a running machine.")
test = Noun("test", path="failover test", help="Boot a copy aside, without touching anything.")
command.add_command(test)
vm_argument = click.argument("vm", metavar="VM", shell_complete=complete_replicas)


@verb(
    test,
    "start",
    "vmrctl failover test start guest1 --wait",
    "vmrctl failover test start guest1 --network 52:54:00:12:34:56=isolated",
)
@vm_argument
@click.option(
    "--point",
    default="latest",
    show_default=True,
    metavar="P",
    help="latest, a seq, or an RFC 3339 time. This version boots the newest point only.",
)
@click.option(
    "--network",
    "networks",
    multiple=True,
    metavar="CARD=NET|none",
    help="Connect a card to a network; may be repeated. Cards not named stay disconnected.",
)
def start(session: Session, vm: str, point: str, networks: tuple[str, ...]) -> None:
    """Boot "VM - Test" from a recovery point; replication goes on meanwhile."""
    answer = session.client.write(
        "FailoverService/StartTestFailover",
        wire.StartTestFailoverRequest(vm=vm, point=point, networks=_networks(networks)),
        wire.StartTestFailoverResponse,
    )
    result = shape(answer)
    name, node = answer.domain_name or f"{vm} - Test", answer.node or "its node"
    sentence = f"{name} is being started on {node} (operation {answer.operation_id or '-'})."
    if session.options.wait:
        operation = wait_for(session, answer.operation_id, f"test failover of {vm}")
        if operation is not None:
            result["operation"] = shape(operation)
            name = operation.result.get("domain_name", name)
            node = operation.result.get("node", node)
        sentence = f"{name} runs on {node}."
    session.done(result, sentence)


@verb(test, "stop", "vmrctl failover test stop guest1 --wait")
@vm_argument
def stop(session: Session, vm: str) -> None:
    """Stop the test VM and remove everything that it made."""
    answer = session.client.write(
        "FailoverService/StopTestFailover",
        wire.StopTestFailoverRequest(vm=vm),
        wire.StopTestFailoverResponse,
    )
    result = shape(answer)
    sentence = f"The test of {vm} is being stopped."
    if session.options.wait:
        operation = wait_for(session, answer.operation_id, f"stop test of {vm}")
        if operation is not None:
            result["operation"] = shape(operation)
        sentence = f"The test of {vm} is stopped; nothing of it is left."
    session.done(result, sentence)


@verb(test, "list", "vmrctl failover test list")
def list_tests(session: Session) -> None:
    """List the tests: those that run, and how the last of each copy ended."""
    items = all_pages(
        lambda token: session.client.read(
            "FailoverService/ListTestFailovers",
            wire.ListTestFailoversRequest(page_size=1000, page_token=token),
            wire.ListTestFailoversResponse,
        )
    )
    session.show_list(TEST_FAILOVER, [shape(item) for item in items])


def _networks(given: tuple[str, ...]) -> dict[str, str]:
    networks: dict[str, str] = {}
    for text in given:
        card, equals, network = text.partition("=")
        if not equals or not card or not network:
            raise usage(
                f"{text!r} is not CARD=NET or CARD=none.",
                field="--network",
                value=text,
                remedy="CARD is the MAC address or number of a card, NET a libvirt network.",
            )
        if card in networks:
            raise usage(f"Card {card} is given twice.", field="--network", value=text)
        networks[card] = network
    return networks
