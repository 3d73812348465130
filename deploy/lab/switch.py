"""The switch: a bridge in a network namespace of its own, and the faults made in it.

A cut names the ports of the bridge, so it works on dead and on paused hosts, and on whatever
address a host holds just now.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from deploy.lab.cgroups import Group, wait_for
from deploy.lab.model import (
    BROKER_PORT,
    BROKER_PROBE_PORT,
    CAP_ADDRESS,
    Host,
    LabError,
    Role,
    Settings,
)
from deploy.lab.processes import command_line, joining, run, spawn

_BRIDGE = "br0"
ANY = "all"
CAP = "cap"


@dataclass(frozen=True, slots=True)
class Cut:
    """What travels from ``source`` to ``target`` (hosts, "all" or "cap") is dropped.

    ``port`` limits it to one TCP port; ``new_only`` to connections that begin now.
    """

    source: str
    target: str
    port: int = 0
    new_only: bool = False


class Switch:
    """The lab's one network. Every call is safe to repeat."""

    def __init__(self, group: Group, log: Path) -> None:
        self._group = group
        self._log = log

    @property
    def pid(self) -> int | None:
        """The process that keeps the namespace, or None."""
        for pid in self._group.pids():
            if command_line(pid)[:1] == ["sleep"]:
                return pid
        return None

    def up(self) -> None:
        if self.pid is not None:
            return
        self._group.create()
        keeper = ["unshare", "--net", "--uts", "sleep", "infinity"]
        spawn(joining(self._group, keeper), self._log)
        wait_for(lambda: self.pid is not None, 5, "the switch's namespace")
        self.batch(
            [
                "link set lo up",
                f"link add {_BRIDGE} type bridge stp_state 0 forward_delay 0",
                f"link set {_BRIDGE} up",
            ]
        )

    def down(self) -> None:
        self._group.kill()
        self._group.wait_empty(5)

    def _inside(self, argv: list[str]) -> list[str]:
        pid = self.pid
        if pid is None:
            raise LabError("the lab's switch is not up (see: lab up)")
        return ["nsenter", "-t", str(pid), "-n", "--", *argv]

    def batch(self, lines: list[str]) -> None:
        """Several ``ip`` commands in one go."""
        run(self._inside(["ip", "-batch", "-"]), text="\n".join(lines) + "\n")

    def plug(self, host: Host, init_pid: int) -> None:
        """A new cable between the switch and the host."""
        run(self._inside(["ip", "link", "del", host.port]), check=False)
        self.batch(
            [
                f"link add {host.port} type veth peer name eth0 address {host.mac} netns {init_pid}",
                f"link set {host.port} master {_BRIDGE} up",
            ]
        )

    def link(self, host: Host, up: bool) -> None:
        """Pull or put back the host's cable."""
        run(self._inside(["ip", "link", "set", host.port, "up" if up else "down"]))

    def rate(self, host: Host, rate: str | None) -> None:
        """Limit what the host receives (``100mbit``); None: no limit."""
        argv = ["tc", "qdisc", "del", "dev", host.port, "root"]
        if rate is None:
            run(self._inside(argv), check=False)
            return
        argv[2] = "replace"
        run(self._inside([*argv, "tbf", "rate", rate, "burst", "512kb", "latency", "100ms"]))

    def apply(self, settings: Settings, cuts: list[Cut]) -> None:
        """Make exactly these cuts, and the firewall of the settings, in one transaction."""
        rules = [rule for cut in cuts for rule in _rules(settings, cut)]
        if settings.firewall:
            rules += _firewall(settings)
        lines = [
            "add table bridge lab",
            "delete table bridge lab",
            "table bridge lab {",
            "chain forward {",
            "type filter hook forward priority 0; policy accept;",
            *rules,
            "}",
            "}",
        ]
        run(self._inside(["nft", "-f", "-"]), text="\n".join(lines) + "\n")


def _rules(settings: Settings, cut: Cut) -> list[str]:
    match = []
    for name, interface, address in (
        (cut.source, "iifname", "saddr"),
        (cut.target, "oifname", "daddr"),
    ):
        if name == CAP:
            match.append(f"ip {address} {CAP_ADDRESS}")
        elif name != ANY:
            match.append(f'{interface} "{settings.host(name).port}"')
    if cut.port:
        match.append(f"tcp dport {cut.port}")
    if cut.new_only:
        match.append("tcp flags & (syn | ack) == syn")
    return [" ".join([*match, "drop"])]


def _firewall(settings: Settings) -> list[str]:
    """Primaries and clients may open connections to the brokers only by the cluster's address."""
    brokers = ", ".join(host.address for host in settings.with_role(Role.BROKER))
    ports = f"{BROKER_PORT}, {BROKER_PROBE_PORT}"
    if not brokers:
        return []
    return [
        f'iifname "{host.port}" ip daddr {{ {brokers} }} tcp dport {{ {ports} }} '
        "tcp flags & (syn | ack) == syn drop"
        for host in settings.all_hosts()
        if host.has(Role.PRIMARY) or host.has(Role.CLIENT)
    ]


def load_cuts(path: Path) -> list[Cut]:
    return [Cut(**raw) for raw in json.loads(path.read_text())] if path.exists() else []


def save_cuts(path: Path, cuts: list[Cut]) -> None:
    path.write_text(json.dumps([asdict(cut) for cut in cuts], indent=1) + "\n")
