"""``vmrctl events``: what happened, and what happens."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase

import click

from vmrctl import output
from vmrctl.completion import complete_replications
from vmrctl.errors import Failure
from vmrctl.output import Column
from vmrctl.session import Session
from vmrctl.values import SINCE
from vmrctl.verbs import Verb, with_session
from vmrctl.views import view_of
from vmreplica.v1 import event_pb2 as wire
from vmreplica.wire.json_shapes import shape
from vmreplica.wire.times import milliseconds

EVENT = view_of(
    wire.WatchEventsResponse,
    Column("TIME", "time"),
    Column("SEVERITY", "severity"),
    Column("EVENT", "name"),
    Column("VM", "vm_name"),
    Column("NODE", "node"),
    Column("MESSAGE", "message"),
)
AGAIN_AFTER_S = 1.0
OVERLAP_MS = 60_000
REMEMBERED = 10_000


def show_events(
    session: Session, follow: bool, vm: str, since_ms: int | None, name_glob: str
) -> None:
    """Show events, oldest first; with --follow go on as they happen, until Ctrl-C.

    With --follow, -o json prints one object a line.
    """
    request = wire.WatchEventsRequest(vm=vm, name_glob=name_glob, follow=follow)
    if since_ms:
        request.since.FromMilliseconds(since_ms)
    if follow:
        for event in _followed(session, request):
            session.write(_line(shape(event), session.options.output))
        return
    events = session.client.stream(
        "EventService/WatchEvents", request, wire.WatchEventsResponse, timeout_s=60.0
    )
    items = [shape(event) for event in events if _fits(event, name_glob)]
    session.show_list(EVENT, items)


def _followed(
    session: Session, request: wire.WatchEventsRequest
) -> Iterator[wire.WatchEventsResponse]:
    """Events without end: a stream that breaks is opened again a little before where it stood.

    Clocks of nodes differ, so what was seen is known by id, not by time.
    """
    seen: dict[str, None] = {}
    newest_ms = 0
    while True:
        try:
            for event in session.client.stream(
                "EventService/WatchEvents", request, wire.WatchEventsResponse
            ):
                if event.event_id in seen or not _fits(event, request.name_glob):
                    continue
                seen[event.event_id] = None
                if len(seen) > REMEMBERED:
                    del seen[next(iter(seen))]
                newest_ms = max(newest_ms, milliseconds(event.time))
                yield event
        except Failure as failure:
            if failure.grpc_code != "UNAVAILABLE" or not newest_ms:
                raise
        if newest_ms:
            request.since.FromMilliseconds(max(newest_ms - OVERLAP_MS, 1))
        time.sleep(AGAIN_AFTER_S)


def _fits(event: wire.WatchEventsResponse, name_glob: str) -> bool:
    return not name_glob or fnmatchcase(event.name, name_glob)


def _line(event: output.Shape, form: str) -> str:
    match form:
        case "json":
            return output.json_line(event)
        case "yaml":
            return "---\n" + output.yaml_text(event)
        case "csv" | "wide":
            cells = [output.plain(output.text_of(event.get(name))) for name in EVENT.names]
            if form == "wide":
                return "  ".join(cells).rstrip() + "\n"
            csv.writer(sys.stdout, lineterminator="\n").writerow(cells)
            return ""
        case _:
            cells = [output.plain(output.text_of(event.get(c.path))) for c in EVENT.columns]
            moment, severity, name, vm, node, message = cells
            return f"{moment}  {severity:<7}  {name:<26}  {vm or '-'}  {node or '-'}  {message}\n"


command = Verb(
    "events",
    callback=with_session(show_events),
    help=show_events.__doc__,
    examples=(
        "vmrctl events --since 2026-11-23T04:00:00Z",
        "vmrctl events --since 1h",
        "vmrctl events --follow --vm guest1",
        "vmrctl events --name 'cycle.*' -o json",
    ),
    params=[
        click.Option(["--follow"], is_flag=True, help="Go on as events happen."),
        click.Option(
            ["--vm"],
            default="",
            metavar="VM",
            shell_complete=complete_replications,
            help="Only events of this VM.",
        ),
        click.Option(
            ["--since", "since_ms"],
            type=SINCE,
            metavar="RFC3339|DURATION",
            help="From then on: a time, or how long ago.",
        ),
        click.Option(["--name", "name_glob"], default="", metavar="GLOB", help="Such as node.*"),
    ],
)
