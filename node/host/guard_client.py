"""The guard as its main process sees it: implements ports.guard.Guard."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

from node.guard_page import MAX_LOCATIONS, GuardPage, boottime_ms

_START_S = 20.0


class GuardClient:
    """Starts the guard and talks to it.

    :param on_gone: called when the guard has died: main must end at once (fail closed).
    """

    def __init__(
        self, node: str, libvirt_uri: str, locations: Sequence[str], on_gone: Callable[[], None]
    ) -> None:
        if len(locations) > MAX_LOCATIONS:
            raise ValueError(f"at most {MAX_LOCATIONS} storage locations")
        self._node = node
        self._uri = libvirt_uri
        self._locations = tuple(locations)
        self._on_gone = on_gone
        self._page = GuardPage.create()
        self._channel: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._heard: dict[int, asyncio.Future[None]] = {}
        self._next = 1
        self._ready = asyncio.Event()

    @property
    def pid(self) -> int:
        """The guard's process id, 0 before start."""
        return self._process.pid if self._process is not None else 0

    async def start(self) -> None:
        """Start the process and wait until it guards."""
        now = boottime_ms()
        for place in range(len(self._locations)):
            self._page.set_answered_ms(place, now)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        arguments = [str(self._page.descriptor), str(theirs.fileno()), str(os.getpid())]
        self._process = subprocess.Popen(  # noqa: ASYNC220 - once, at start
            [
                *(sys.executable, "-m", "node.guard"),
                *(*arguments, self._node, self._uri),
                *self._locations,
            ],
            pass_fds=[self._page.descriptor, theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        ours.setblocking(False)
        self._channel = ours
        self._reader = asyncio.ensure_future(self._read(ours))
        await asyncio.wait_for(self._ready.wait(), _START_S)

    async def _read(self, channel: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                data = await loop.sock_recv(channel, 65_536)
            except OSError:
                data = b""
            if not data:
                self._on_gone()
                return
            message = json.loads(data)
            match message["say"]:
                case "ready":
                    self._ready.set()
                case "deadline":
                    # We run, so our own checks hold: nothing is acknowledged past the deadline.
                    self._page.confirmed_ms = message["at"]
                case "heard":
                    future = self._heard.pop(message["id"], None)
                    if future is not None and not future.done():
                        future.set_result(None)

    async def close(self) -> None:
        """End the guard; it undoes what it was told of."""
        if self._reader is not None:
            self._reader.cancel()
        if self._channel is not None:
            self._channel.close()
        if self._process is not None:
            await asyncio.to_thread(self._process.wait)

    def _say(self, **message: object) -> None:
        if self._channel is not None:
            try:
                self._channel.send(json.dumps(message).encode())
            except OSError:
                self._on_gone()

    async def _tell(self, **message: object) -> None:
        """Say it and wait until the guard has heard it: told *before* each dangerous act."""
        number = self._next
        self._next += 1
        heard: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._heard[number] = heard
        self._say(id=number, **message)
        await heard

    def set_deadline(self, boottime_ms: int) -> None:
        """Shared memory, never blocks."""
        self._page.deadline_ms = boottime_ms

    def register_child(self, pid: int) -> None:
        """A store-writing child: killed at the deadline."""
        self._say(say="child", pid=pid)

    def unregister_child(self, pid: int) -> None:
        """The child has been reaped."""
        self._say(say="reaped", pid=pid)

    async def frozen(self, vm_uuid: str, until_boottime_ms: int) -> None:
        """Told before a freeze."""
        await self._tell(say="frozen", vm=vm_uuid, until=until_boottime_ms)

    async def thawed(self, vm_uuid: str) -> None:
        """The freeze is over."""
        await self._tell(say="thawed", vm=vm_uuid)

    async def job_begins(
        self, vm_uuid: str, scratch_paths: tuple[str, ...], abort_at_boottime_ms: int
    ) -> None:
        """Told before backupBegin."""
        await self._tell(
            say="job", vm=vm_uuid, scratch=list(scratch_paths), until=abort_at_boottime_ms
        )

    async def job_ended(self, vm_uuid: str) -> None:
        """The job is over."""
        await self._tell(say="ended", vm=vm_uuid)

    def probe_ages_ms(self) -> Mapping[str, int]:
        """Age of the last answered probe of each location."""
        now = boottime_ms()
        return {
            location: max(0, now - self._page.answered_ms(place))
            for place, location in enumerate(self._locations)
        }
