"""One event, and which events a watcher asked for."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field

from vmreplica.ports.event_log import Severity
from vmreplica.v1 import event_pb2
from vmreplica.wire.times import milliseconds, timestamp


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """``event_id``: 16 hex digits, rising with time within one process's log."""

    event_id: str
    time_ms: int
    name: str
    message: str
    severity: Severity = Severity.INFO
    replica_id: str = ""
    vm_name: str = ""
    node: str = ""
    data: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFilter:
    """What ``WatchEvents`` asks for; empty = everything.

    :ivar vm: name of a VM or a replica_id.
    :ivar name_glob: shell pattern over event names, like ``failover.*``.
    :ivar since_ms: events at or after this time.
    """

    vm: str = ""
    name_glob: str = ""
    since_ms: int = 0

    def matches(self, event: Event) -> bool:
        """Whether the watcher wants this event."""
        return (
            (not self.vm or self.vm in (event.vm_name, event.replica_id))
            and (not self.name_glob or fnmatch.fnmatchcase(event.name, self.name_glob))
            and event.time_ms >= self.since_ms
        )


def filter_from_message(request: event_pb2.WatchEventsRequest) -> EventFilter:
    """A watcher's request. :raises Problem: BAD_FIELD"""
    return EventFilter(
        vm=request.vm,
        name_glob=request.name_glob,
        since_ms=milliseconds(request.since, "since"),
    )


def event_message(event: Event) -> event_pb2.WatchEventsResponse:
    """One event as it travels."""
    return event_pb2.WatchEventsResponse(
        event_id=event.event_id,
        time=timestamp(event.time_ms),
        name=event.name,
        severity=event.severity.value,
        replica_id=event.replica_id,
        vm_name=event.vm_name,
        node=event.node,
        message=event.message,
        data=dict(event.data),
    )
