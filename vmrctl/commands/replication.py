"""``vmrctl replication``: protect virtual machines that run on this side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from vmrctl.completion import complete_replications
from vmrctl.contexts import with_port
from vmrctl.errors import usage
from vmrctl.paging import all_pages
from vmrctl.session import Session
from vmrctl.values import DURATION, RATE, time_ms
from vmrctl.verbs import Noun, later_flag, verb
from vmrctl.views import REPLICATION
from vmrctl.waiting import wait_for
from vmreplica.v1 import replication_pb2 as wire
from vmreplica.v1 import types_pb2 as types
from vmreplica.wire.enums import spellings
from vmreplica.wire.json_shapes import shape

command = Noun("replication", help="Protect virtual machines that run on this side.")
vm_argument = click.argument("vm", metavar="VM", shell_complete=complete_replications)
ENABLE_TIMEOUT_S = 120.0
"""Enabling asks both sides, defines the replica and checks every disk before it answers."""

_NOT_YET = (
    types.REPLICATION_STATE_UNSPECIFIED,
    types.REPLICATION_STATE_NOT_ENABLED,
)


def policy_options(callback: Callable[..., Any]) -> Callable[..., Any]:
    """The flags that ``enable`` and ``set`` share."""
    options = (
        click.option("--frequency", type=DURATION, help="Time between cycles: 5s or more."),
        click.option(
            "--compression", type=click.Choice(["zstd", "none"]), help="On the wire and on disk."
        ),
        click.option(
            "--route",
            type=click.Choice(["auto", "direct", "relay"]),
            help="The way to the owner: straight, or through the broker.",
        ),
        click.option("--disks", metavar="TARGET,...", help="Only these disks, such as vda,vdb."),
        click.option(
            "--recovery-points",
            type=int,
            expose_value=False,
            callback=later_flag("--recovery-points"),
            hidden=True,
        ),
        click.option("--folder", metavar="NAME", help="Folder name on the replica side."),
        click.option("--bandwidth", type=RATE, help="Limit for this VM: 10MiB/s; 0 = none."),
    )
    for option in reversed(options):
        callback = option(callback)
    return callback


@verb(
    command,
    "enable",
    "vmrctl replication enable guest1 --to replica.example:7443",
    "vmrctl replication enable guest1 --to replica.example:7443 --frequency 30s --wait",
    "vmrctl replication enable guest1 --to replica.example:7443 --start 2026-11-23T22:00:00Z",
)
@vm_argument
@click.option("--to", metavar="CAP", required=True, help="The other side: HOST:PORT.")
@click.option(
    "--start",
    default="now",
    show_default=True,
    metavar="now|later|RFC3339",
    help="When the initial replication begins.",
)
@policy_options
def enable(session: Session, vm: str, to: str, start: str, **policy: Any) -> None:
    """Begin to replicate a running VM to another cluster.

    What cannot be tracked or run is said now, all at once, with remedies. With --wait the command
    returns when the initial replication is done.
    """
    at_ms = _start_ms(start)
    request = wire.EnableReplicationRequest(vm=vm, to=with_port(to), policy=_policy(policy)[0])
    answer = session.client.write(
        "ReplicationService/EnableReplication",
        request,
        wire.EnableReplicationResponse,
        timeout_s=ENABLE_TIMEOUT_S,
    )
    result = shape(answer)
    name = answer.replication.vm_name or vm
    operation_id = answer.operation_id
    if start != "later":
        replication = answer.replication
        if operation_id and replication.state in _NOT_YET:
            wait_for(session, operation_id, f"enable {name}")
            replication = _get(session, vm)
        if replication.state == types.REPLICATION_STATE_READY_FOR_INITIAL_REPLICATION:
            operation_id = _start(session, vm, at_ms).operation_id
            result |= {
                "replication": shape(_get(session, vm)),
                "changed": True,
                "operation_id": operation_id,
            }
    how = "is protected" if result["changed"] else "was protected already"
    sentence = f"{name} {how}: {result['replication']['state']}, every cycle goes to {to}."
    if session.options.wait and at_ms is None and start != "later":
        operation = wait_for(session, operation_id, f"initial replication of {name}")
        if operation is not None:
            result |= {
                "operation": shape(operation),
                "replication": shape(_get(session, vm)),
            }
            sentence = f"{name} {how}; the initial replication is done."
    session.done(result, sentence)


@verb(command, "start", "vmrctl replication start guest1 --wait")
@vm_argument
@click.option("--at", metavar="RFC3339", default="", help="Begin then, not now.")
def start_initial(session: Session, vm: str, at: str) -> None:
    """Begin the initial replication of a VM that was enabled with --start later."""
    answer = _start(session, vm, _start_ms(at) if at else None)
    _finish(session, answer, f"initial replication of {vm}", vm, "begins", "had begun already")


@verb(command, "stop-initial", "vmrctl replication stop-initial guest1")
@vm_argument
def stop_initial(session: Session, vm: str) -> None:
    """Stop a running initial replication; "start" begins it again."""
    answer = session.client.write(
        "ReplicationService/StopInitialReplication",
        wire.StopInitialReplicationRequest(vm=vm),
        wire.StopInitialReplicationResponse,
    )
    _said(session, answer, f"{vm}: initial replication", "stopped", "was not running")


@verb(command, "suspend", "vmrctl replication suspend guest1")
@vm_argument
def suspend(session: Session, vm: str) -> None:
    """Send no more cycles until "resume". Changes go on being tracked."""
    answer = session.client.write(
        "ReplicationService/SuspendReplication",
        wire.SuspendReplicationRequest(vm=vm),
        wire.SuspendReplicationResponse,
    )
    _said(session, answer, f"{vm}: replication", "suspended", "was suspended already")


@verb(command, "resume", "vmrctl replication resume guest1")
@vm_argument
@click.option(
    "--resync",
    is_flag=True,
    expose_value=False,
    callback=later_flag("--resync"),
    hidden=True,
)
@click.option("--at", expose_value=False, callback=later_flag("--at"), hidden=True)
def resume(session: Session, vm: str) -> None:
    """Go on after "suspend" or an error."""
    answer = session.client.write(
        "ReplicationService/ResumeReplication",
        wire.ResumeReplicationRequest(vm=vm),
        wire.ResumeReplicationResponse,
    )
    _finish(session, answer, f"resume {vm}", vm, "goes on", "was not suspended")


@verb(
    command,
    "set",
    "vmrctl replication set guest1 --frequency 30s --bandwidth 20MiB/s",
    "vmrctl replication set guest1 --route relay",
)
@vm_argument
@policy_options
def set_policy(session: Session, vm: str, **policy: Any) -> None:
    """Change how a VM is replicated; what is not named stays."""
    message, names = _policy(policy)
    if not names:
        raise usage(
            "There is nothing to set.",
            remedy="vmrctl replication set --help shows the flags.",
        )
    answer = session.client.write(
        "ReplicationService/UpdateReplication",
        wire.UpdateReplicationRequest(vm=vm, policy=message, update_fields=names),
        wire.UpdateReplicationResponse,
    )
    _said(session, answer, f"{vm}: policy", "changed", "unchanged: it was like this already")


@verb(command, "remove", "vmrctl replication remove guest1")
@vm_argument
def remove(session: Session, vm: str) -> None:
    """End the replication on this side. The copy on the other side stays with its data."""
    answer = session.client.write(
        "ReplicationService/RemoveReplication",
        wire.RemoveReplicationRequest(vm=vm),
        wire.RemoveReplicationResponse,
    )
    _said(session, answer, f"{vm}: replication", "removed", "was not enabled")


@verb(
    command,
    "list",
    "vmrctl replication list",
    "vmrctl replication list --state Error,Suspended -o json",
)
@click.option("--state", metavar="STATE,...", help="Only these states.")
@click.option("--health", metavar="HEALTH,...", help="Only these: Normal, Warning, Critical.")
def list_replications(session: Session, state: str | None, health: str | None) -> None:
    """List the VMs that are replicated from this side."""
    states = _numbers(types.ReplicationState, "--state", state)
    healths = _numbers(types.Health, "--health", health)
    items = all_pages(
        lambda token: session.client.read(
            "ReplicationService/ListReplications",
            wire.ListReplicationsRequest(page_size=1000, page_token=token),
            wire.ListReplicationsResponse,
        )
    )
    chosen = [
        item
        for item in items
        if (not states or item.state in states) and (not healths or item.health in healths)
    ]
    session.show_list(REPLICATION, [shape(item) for item in chosen])


@verb(command, "show", "vmrctl replication show guest1")
@vm_argument
def show(session: Session, vm: str) -> None:
    """Show one replication in full."""
    session.show(REPLICATION, shape(_get(session, vm)))


def _start(session: Session, vm: str, at_ms: int | None) -> wire.StartReplicationResponse:
    request = wire.StartReplicationRequest(vm=vm)
    if at_ms is not None:
        request.at.FromMilliseconds(at_ms)
    return session.client.write(
        "ReplicationService/StartReplication", request, wire.StartReplicationResponse
    )


def _get(session: Session, vm: str) -> types.Replication:
    answer = session.client.read(
        "ReplicationService/GetReplication",
        wire.GetReplicationRequest(vm=vm),
        wire.GetReplicationResponse,
    )
    return answer.replication


def _policy(given: dict[str, Any]) -> tuple[types.Policy, list[str]]:
    """The policy message of the flags that were given, and the names of its fields."""
    disks = given.get("disks")
    values = {
        "frequency_ms": given.get("frequency"),
        "compression": given.get("compression"),
        "route": given.get("route"),
        "disks": None if disks is None else [d.strip() for d in disks.split(",") if d.strip()],
        "folder": given.get("folder"),
        "bandwidth_limit_bytes_per_s": given.get("bandwidth"),
    }
    named: dict[str, Any] = {key: value for key, value in values.items() if value is not None}
    return types.Policy(**named), list(named)


def _start_ms(start: str) -> int | None:
    if start in ("now", "later"):
        return None
    try:
        return time_ms(start)
    except ValueError as error:
        raise usage(str(error), field="--start", value=start) from error


def _numbers(enum: Any, flag: str, text: str | None) -> set[int]:
    known = {spelling.casefold(): number for number, spelling in spellings(enum.DESCRIPTOR).items()}
    numbers = set()
    for word in (text or "").split(","):
        if not word.strip():
            continue
        number = known.get(word.strip().casefold())
        if number is None:
            names = ", ".join(spellings(enum.DESCRIPTOR).values())
            raise usage(
                f"{word!r} is no value of {flag}.",
                field=flag,
                value=word,
                remedy=f"One of {names}.",
            )
        numbers.add(number)
    return numbers


def _said(session: Session, answer: Any, what: str, changed: str, unchanged: str) -> None:
    session.done(shape(answer), f"{what} {changed if answer.changed else unchanged}.")


def _finish(
    session: Session, answer: Any, title: str, vm: str, changed: str, unchanged: str
) -> None:
    result = shape(answer)
    sentence = f"{vm}: replication {changed if answer.changed else unchanged}."
    if session.options.wait:
        operation = wait_for(session, answer.operation_id, title)
        if operation is not None:
            result["operation"] = shape(operation)
            sentence = f"{title}: done."
    session.done(result, sentence)
