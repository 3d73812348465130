"""A lab as tests use it: brought up once a module, faults made from Python, acknowledgements read
from the primary's own event log.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from deploy.lab.daemons import Daemons
from deploy.lab.guests import Guest
from deploy.lab.lifecycle import Lab
from deploy.lab.model import CAP_NAME
from deploy.lab.place import Place
from deploy.lab.processes import environment

T = TypeVar("T")
CHECKOUT = Path(__file__).resolve().parents[2]
PROGRAM = CHECKOUT / "deploy" / "lab" / "lab"
CAP = f"{CAP_NAME}:7443"
LONG = os.environ.get("VMR_LONG") == "1"
"""Outages as long as people know them; without it they only outlast every lease."""
INTERVAL_S = 5.0
NODES = ("r1", "r2", "r3")
QUICK_LEASES = (
    "node.lease.ttl_s=3",
    "node.lease.keepalive_ms=600",
    "node.lease.try_ms=800",
    "node.lease.margin_ms=500",
    "broker.election.ttl_s=2",
    "broker.election.keepalive_ms=400",
    "broker.election.try_ms=500",
    "broker.election.margin_ms=300",
)
"""For tests whose subject is not the time that a lease takes."""


def eventually(ready: Callable[[], T], what: str, timeout_s: float = 30, step_s: float = 0.1) -> T:
    """Ask until the answer is true; returns it."""
    end = time.monotonic() + timeout_s
    while True:
        found = ready()
        if found:
            return found
        assert time.monotonic() < end, f"not within {timeout_s:g} s: {what}"
        time.sleep(step_s)


class Room:
    """One lab that is up."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lab = Lab(Place(directory))

    # --- commands --------------------------------------------------------------------------

    def run(
        self, *words: str, check: bool = True, timeout_s: float = 200
    ) -> subprocess.CompletedProcess[str]:
        """The lab's command."""
        done = subprocess.run(
            [str(PROGRAM), *words],
            env={**os.environ, "LAB_DIR": str(self.directory)},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert not check or done.returncode == 0, f"lab {words}: {done.stdout}{done.stderr}"
        return done

    def inside(self, host: str, *argv: str, check: bool = True, timeout_s: float = 60) -> str:
        """A command in a host; its output."""
        return self.lab.control_named(host).call(list(argv), check=check, timeout_s=timeout_s)

    def vmrctl_line(self, *words: str) -> list[str]:
        """The command line of vmrctl on the client host."""
        contexts = f"VMRCTL_CONFIG={self.directory / 'vmrctl.yaml'}"
        program = str(CHECKOUT / ".venv" / "bin" / "vmrctl")
        return self.lab.control_named("c1").inside(["env", contexts, program, *words])

    def vmrctl(
        self, context: str, *words: str, check: bool = True, timeout_s: float = 90
    ) -> subprocess.CompletedProcess[str]:
        """vmrctl as a person on the client host uses it."""
        done = subprocess.run(
            self.vmrctl_line("--context", context, *words),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
            env=environment(),
        )
        assert not check or done.returncode == 0, f"vmrctl {words}: {done.stdout}{done.stderr}"
        return done

    def ask(self, context: str, *words: str) -> Any:
        """The JSON answer of vmrctl."""
        return json.loads(self.vmrctl(context, *words, "-o", "json").stdout)

    def ask_patiently(self, context: str, *words: str, timeout_s: float = 30) -> Any:
        """The same while parts of the cluster are away."""

        def answer() -> Any:
            done = self.vmrctl(context, *words, "-o", "json", check=False)
            return json.loads(done.stdout) if done.returncode == 0 else None

        return eventually(answer, f"vmrctl {' '.join(words)}", timeout_s)

    # --- faults ----------------------------------------------------------------------------

    def daemons(self, host: str) -> Daemons:
        """The daemons of a host."""
        settings = self.lab.settings()
        return self.lab.daemons(settings, settings.host(host))

    def kill(self, host: str, *, silent: bool = False) -> None:
        """The whole host: SIGKILL to its init."""
        assert self.lab.control_named(host).kill(silent=silent), f"{host} was not up"

    def start(self, host: str) -> None:
        """A killed host, with the disks it had."""
        self.lab.start(host)

    def leader(self) -> str:
        """The leading broker."""

        def found() -> str:
            items = self.ask_patiently("replica", "broker", "list")["items"]
            return next((b["name"] for b in items if b["leader"]), "")

        return eventually(found, "a leading broker")

    def owner(self, vm: str) -> str:
        """The node that owns a replica."""
        return str(self.ask_patiently("replica", "replica", "show", vm)["owner"])

    def domains(self, host: str, *flags: str) -> list[str]:
        """Names of libvirt's domains on a host."""
        listed = self.inside(host, "virsh", "-q", "list", "--name", *(flags or ("--all",)))
        return [line.strip() for line in listed.splitlines() if line.strip()]

    # --- what happened ---------------------------------------------------------------------

    def events(self, host: str = "p1", name: str = "", vm: str = "") -> list[dict[str, Any]]:
        """Events that a host's node has written down, oldest first."""
        path = self.directory / host / "var-lib-vmreplica" / "node-events.jsonl"
        found = []
        for line in path.read_text("utf-8").splitlines() if path.exists() else []:
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line is still being written
            if name in ("", event["name"]) and vm in ("", event["vm_name"]):
                found.append(event)
        return found

    def acknowledged(self, vm: str) -> list[dict[str, Any]]:
        """The cycles the primary saw acknowledged: seq, epoch, kind, at_s (of its own clock)."""
        return [
            {
                "seq": int(event["data"]["seq"]),
                "epoch": int(event["data"]["epoch"]),
                "kind": event["data"]["kind"],
                "at_s": _seconds(event["time"]),
                "latency_s": int(event["data"]["latency_ms"]) / 1000,
            }
            for event in self.events("p1", "cycle.acknowledged", vm)
        ]

    def last_seq(self, vm: str) -> int:
        """The newest acknowledged cycle, 0 before the first."""
        seen = self.acknowledged(vm)
        return int(seen[-1]["seq"]) if seen else 0

    def next_cycle(self, vm: str, timeout_s: float = 3 * INTERVAL_S) -> dict[str, Any]:
        """Wait for one more acknowledgement than there is now."""
        before = len(self.acknowledged(vm))
        return eventually(
            lambda: self.acknowledged(vm)[before:], f"a cycle of {vm} is acknowledged", timeout_s
        )[0]

    # --- guests ----------------------------------------------------------------------------

    def guest(self, name: str, host: str = "p1") -> Guest:
        """A guest by name."""
        return Guest(self.lab, host, name)

    def protect(self, vm: str, *flags: str) -> dict[str, Any]:
        """Enable with the shortest frequency; returns once the first cycle is acknowledged."""
        words = ("replication", "enable", vm, "--to", CAP, "--frequency", "5s", *flags)
        self.vmrctl("primary", *words, "--wait")
        shown: dict[str, Any] = self.ask("primary", "replication", "show", vm)
        return shown


def _seconds(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


class GuestWatch:
    """What a guest said since the watch began; a guest that met an error or stall is a failure."""

    def __init__(self, room: Room, vm: str, host: str = "p1") -> None:
        self._path = room.directory / host / "console" / f"{vm}.log"

    def text(self) -> str:
        """The console."""
        return self._path.read_text(errors="replace") if self._path.exists() else ""

    def count(self) -> int:
        """The newest record that is on both disks."""
        counts = re.findall(r"^COUNT (\d+)\s*$", self.text(), re.MULTILINE)
        return int(counts[-1]) if counts else 0

    def check(self) -> None:
        """No error, no stall, and it counts on."""
        bad = [x for x in self.text().splitlines() if re.search(r"ERROR|STALL|PANIC|panic", x)]
        assert not bad, f"the guest met trouble: {bad[:3]}"
        before = self.count()
        eventually(lambda: self.count() > before, "the guest counts on", 20)


@contextmanager
def lab_up(directory: Path, *words: str) -> Iterator[Room]:
    """A lab, taken down in the end; its logs stay in ``directory`` until pytest clears it."""
    room = Room(directory)
    room.run("up", *words)
    try:
        yield room
    finally:
        room.run("down")


def quick(*settings: str) -> list[str]:
    """``--set`` words for short leases and more."""
    return [word for each in (*QUICK_LEASES, *settings) for word in ("--set", each)]
