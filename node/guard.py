"""The guard: acts when the node's main process cannot (data-safety §1.5, §1.6, §5).

``python -m node.guard PAGE_FD SOCKET_FD MAIN_PID NODE LIBVIRT_URI LOCATION…``; no event loop,
memory locked, started by main. At the deadline it kills the store-writing children, and main if
that does not confirm within 0.5 s. It thaws guests, aborts our backup jobs past their limits, and
ends with main: then everything it was told of is undone.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from node.guard_page import GuardPage, boottime_ms

CONFIRM_MS = 500
LEAST_SCRATCH = 0.20
LEAST_SCRATCH_SECONDS = 10
_TICK_MS = 50
_SCRATCH_MS = 500
_MCL_CURRENT_AND_FUTURE = 3
_ABORT_AGAIN_MS = 1_000
_ABORT_AGAIN_MAX_MS = 60_000
_ABORT = """
xml=$(virsh -c "$1" backup-dumpxml "$2") || exit 1
case $xml in *"'$3'"* | *"\"$3\""*) exec virsh -c "$1" domjobabort "$2" ;; esac
exit 2
"""
"""Others take backups too: only a job whose XML names our scratch file is ours to abort."""


@dataclass
class Job:
    """One of our backup jobs: where its scratch lies, when it is too old (0: never)."""

    scratch: tuple[str, ...]
    abort_at_ms: int
    free_bytes: dict[str, tuple[int, int]] = field(default_factory=dict)
    attempt: subprocess.Popen[bytes] | None = None
    """Its abort under way, or the last one; ended with 0: done."""
    again_ms: int = 0
    pause_ms: int = _ABORT_AGAIN_MS


class GuardProcess:
    """All state of the guard. ``tick`` is one look at the world."""

    def __init__(self, page: GuardPage, channel: socket.socket, main_pid: int, uri: str) -> None:
        self._page = page
        self._channel = channel
        self._main_pid = main_pid
        self._uri = uri
        self._children: set[int] = set()
        self._frozen: dict[str, int] = {}
        self._jobs: dict[str, Job] = {}
        self._helpers: list[subprocess.Popen[bytes]] = []
        self._seen_deadline = 0
        self._passed: int = 0
        self._passed_at_ms = 0
        self._scratch_at_ms = 0

    def run(self) -> None:
        """Until main is gone."""
        while True:
            ready, _, _ = select.select([self._channel], [], [], _TICK_MS / 1000)
            if ready and not self._hear():
                self._main_is_gone()
                return
            self.tick()

    def _hear(self) -> bool:
        """Take one message; False at main's end."""
        try:
            data = self._channel.recv(65_536)
        except OSError:
            return False
        if not data:
            return False
        message: dict[str, Any] = json.loads(data)
        match message["say"]:
            case "child":
                self._children.add(int(message["pid"]))
            case "reaped":
                self._children.discard(int(message["pid"]))
            case "frozen":
                self._frozen[message["vm"]] = int(message["until"])
            case "thawed":
                self._frozen.pop(message["vm"], None)
            case "job":
                self._jobs[message["vm"]] = Job(tuple(message["scratch"]), int(message["until"]))
            case "ended":
                self._jobs.pop(message["vm"], None)
        if message.get("id"):
            self._channel.send(json.dumps({"say": "heard", "id": message["id"]}).encode())
        return True

    def tick(self) -> None:
        """Deadline, freezes and jobs, in the order of their danger."""
        now = boottime_ms()
        self._look_at_deadline(now)
        for vm, until in list(self._frozen.items()):
            if now >= until:
                del self._frozen[vm]
                self._virsh("domfsthaw", vm)
        if now - self._scratch_at_ms >= _SCRATCH_MS:
            self._scratch_at_ms = now
            for vm, job in list(self._jobs.items()):
                self._look_at_job(vm, job, now)
        self._helpers = [helper for helper in self._helpers if helper.poll() is None]

    def _look_at_deadline(self, now: int) -> None:
        deadline = self._page.deadline_ms
        before, self._seen_deadline = self._seen_deadline, deadline
        if deadline == 0:
            if before:
                # The lease is gone and main knows it: its children write no more.
                self._kill_children()
            self._passed = 0
            return
        if now < deadline:
            self._passed = 0
            return
        if self._passed != deadline:
            self._passed, self._passed_at_ms = deadline, now
            self._kill_children()
            with contextlib.suppress(OSError):
                self._channel.send(
                    json.dumps({"say": "deadline", "at": deadline}).encode(), socket.MSG_DONTWAIT
                )
        elif self._page.confirmed_ms != deadline and now - self._passed_at_ms >= CONFIRM_MS:
            _kill(self._main_pid)

    def _look_at_job(self, vm: str, job: Job, now: int) -> None:
        """Abort it where it is over; again and again while libvirt does not do it."""
        if job.attempt is not None and job.attempt.poll() is None:
            return
        if job.attempt is not None and job.attempt.returncode == 0:
            del self._jobs[vm]
        elif self._is_over(job, now) and now >= job.again_ms:
            job.attempt = self._abort(vm, job)
            job.again_ms = now + job.pause_ms
            job.pause_ms = min(2 * job.pause_ms, _ABORT_AGAIN_MAX_MS)

    def _is_over(self, job: Job, now: int) -> bool:
        if job.abort_at_ms and now >= job.abort_at_ms:
            return True
        for path in job.scratch:
            try:
                place = Path(path)
                room = os.statvfs(place if place.is_dir() else place.parent)
            except OSError:
                continue
            free, total = room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize
            if total and free < LEAST_SCRATCH * total:
                return True
            then, before = job.free_bytes.get(path, (now, free))
            job.free_bytes[path] = (now, free)
            rate = (before - free) * 1000 / (now - then) if now > then else 0
            if rate > 0 and free < LEAST_SCRATCH_SECONDS * rate:
                return True
        return False

    def _kill_children(self) -> None:
        for pid in self._children:
            _kill(pid)
        self._children.clear()

    def _main_is_gone(self) -> None:
        self._kill_children()
        for vm in self._frozen:
            self._virsh("domfsthaw", vm)
        for vm, job in self._jobs.items():
            self._abort(vm, job)
        for helper in self._helpers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                helper.wait(10)

    def _virsh(self, verb: str, vm: str) -> None:
        self._start("virsh", "-c", self._uri, verb, vm)

    def _abort(self, vm: str, job: Job) -> subprocess.Popen[bytes] | None:
        """Abort the backup of ``vm`` if the one that runs now writes our scratch files."""
        if not job.scratch:
            return None
        return self._start("sh", "-c", _ABORT, "abort", self._uri, vm, job.scratch[0])

    def _start(self, *command: str) -> subprocess.Popen[bytes] | None:
        """In a child: libvirt may hang, the guard may not."""
        try:
            helper = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except OSError:
            return None
        self._helpers.append(helper)
        return helper


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def main(arguments: list[str]) -> int:
    """The process."""
    page = GuardPage(int(arguments[0]))
    channel = socket.socket(fileno=int(arguments[1]))
    main_pid, node, uri, locations = int(arguments[2]), *arguments[3:5], arguments[5:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A terminal's Ctrl-C or a stopping unit tells main; the guard goes when main is gone.
        signal.signal(number, signal.SIG_IGN)
    if ctypes.CDLL(None, use_errno=True).mlockall(_MCL_CURRENT_AND_FUTURE):
        sys.stderr.write("guard: memory not locked\n")
    probe = None
    if locations:
        probe = subprocess.Popen(
            [sys.executable, "-m", "node.probe", str(page.descriptor), node, *locations],
            pass_fds=[page.descriptor],
        )
    channel.send(json.dumps({"say": "ready"}).encode())
    try:
        GuardProcess(page, channel, main_pid, uri).run()
    finally:
        if probe is not None:
            probe.kill()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
