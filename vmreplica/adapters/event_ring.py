"""The event log of one process: the newest events in memory, all of them in a JSON-lines file.

Implements ports.event_log.EventLog: writing never raises and never waits. The file is written by
a thread of its own, so that a slow disk cannot hold up replication; what it cannot keep up with
is dropped and counted.
"""

from __future__ import annotations

import asyncio
import json
import logging
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from vmreplica.ports.clock import Clock
from vmreplica.ports.event_log import Severity
from vmreplica.wire.event_filter import Event, EventFilter
from vmreplica.wire.times import rfc3339

_log = logging.getLogger(__name__)
CAPACITY = 10_000
MAX_FILE_BYTES = 16 << 20
FILES_KEPT = 4
_QUEUED = 10_000
_WATCH_QUEUED = 1_000
_TAIL_BYTES = 64 << 10
EVERYTHING = EventFilter()


class EventRing:
    """The events of this process.

    :param node: name of this host's node or broker, written into each event.
    :param path: the file, or None for memory only; rotated to ``PATH.1`` … at 16 MiB.
    """

    def __init__(self, clock: Clock, node: str, path: Path | None = None) -> None:
        self._clock = clock
        self._node = node
        self._ring: deque[Event] = deque(maxlen=CAPACITY)
        self._watchers: set[asyncio.Queue[Event]] = set()
        self._last_id = 0
        self._file = _EventFile(path) if path is not None else None
        if path is not None:
            self._last_id = _last_id(path)

    def write(
        self,
        name: str,
        message: str,
        *,
        severity: Severity = Severity.INFO,
        replica_id: str = "",
        vm_name: str = "",
        data: Mapping[str, str] | None = None,
    ) -> None:
        """Record one event at the present time. Ids rise also when the clock goes back."""
        time_ms = self._clock.wall_ms()
        self._last_id = max(self._last_id + 1, time_ms << 12)
        event = Event(
            event_id=f"{self._last_id:016x}",
            time_ms=time_ms,
            name=name,
            message=message,
            severity=severity,
            replica_id=replica_id,
            vm_name=vm_name,
            node=self._node,
            data=dict(data or {}),
        )
        self._ring.append(event)
        for watcher in self._watchers:
            # A watcher that does not read loses events, never memory.
            if watcher.full():
                watcher.get_nowait()
            watcher.put_nowait(event)
        if self._file is not None:
            self._file.put(event)

    def newest(self, wanted: EventFilter = EVERYTHING) -> list[Event]:
        """Matching events still in memory, oldest first."""
        return [event for event in self._ring if wanted.matches(event)]

    async def watch(
        self, wanted: EventFilter = EVERYTHING, *, follow: bool
    ) -> AsyncIterator[Event]:
        """Matching events, oldest first; with ``follow`` the later ones too, without end."""
        queued: asyncio.Queue[Event] = asyncio.Queue(_WATCH_QUEUED)
        if follow:
            self._watchers.add(queued)
        try:
            for event in self.newest(wanted):
                yield event
            while follow:
                event = await queued.get()
                if wanted.matches(event):
                    yield event
        finally:
            self._watchers.discard(queued)

    def close(self) -> None:
        """Write what is queued and end the thread. Idempotent."""
        if self._file is not None:
            self._file.close()


class _EventFile:
    """Appends events in a thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queue: queue.Queue[Event | None] = queue.Queue(_QUEUED)
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="event-file", daemon=True)
        self._thread.start()

    def put(self, event: Event) -> None:
        try:
            self._queue.put_nowait(event)
        except queue.Full:
            self._dropped += 1

    def close(self) -> None:
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join(timeout=5)

    def _run(self) -> None:
        while (event := self._queue.get()) is not None:
            lines = [_line(event)]
            stop = False
            while not self._queue.empty() and not stop:
                later = self._queue.get()
                stop = later is None
                if later is not None:
                    lines.append(_line(later))
            self._append("".join(lines))
            if stop:
                return

    def _append(self, text: str) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text)
                length = file.tell()
            if length > MAX_FILE_BYTES:
                self._rotate()
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                _log.warning("%s: %d events were not written", self._path, dropped)
        except OSError as error:
            _log.warning("%s: events were not written: %s", self._path, error.strerror)

    def _rotate(self) -> None:
        for number in range(FILES_KEPT - 1, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            newer = (
                self._path
                if number == 1
                else self._path.with_name(f"{self._path.name}.{number - 1}")
            )
            if newer.exists():
                newer.replace(older)


def _line(event: Event) -> str:
    facts = {
        "event_id": event.event_id,
        "time": rfc3339(event.time_ms),
        "name": event.name,
        "severity": event.severity.value,
        "replica_id": event.replica_id or None,
        "vm_name": event.vm_name or None,
        "node": event.node,
        "message": event.message,
        "data": dict(event.data),
    }
    return json.dumps(facts, ensure_ascii=False, separators=(",", ":")) + "\n"


def _last_id(path: Path) -> int:
    """The newest id in the file: ids go on rising after a restart, whatever the clock did."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["event_id"], 16)
        except (ValueError, KeyError, TypeError):
            continue
    return 0
