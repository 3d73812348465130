"""The command line of the lab. Progress and problems on stderr, results on stdout."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from deploy.lab.lifecycle import Lab
from deploy.lab.model import (
    COMPACT_HOSTS,
    COMPACT_ROLES,
    DEFAULT_HOSTS,
    LabError,
    Role,
    Settings,
    host_table,
)
from deploy.lab.place import VENV_BIN, Place
from deploy.lab.processes import environment
from deploy.lab.switch import ANY, CAP, Cut

Arguments = argparse.Namespace


def _up(lab: Lab, a: Arguments) -> None:
    names = a.hosts.split(",") if a.hosts else list(COMPACT_HOSTS if a.compact else DEFAULT_HOSTS)
    defaults = [option for option in COMPACT_ROLES if option.split("=")[0] in names]
    settings = Settings(
        hosts=host_table(names, [*(defaults if a.compact else []), *a.roles]),
        firewall=a.firewall,
        etcd_fast=a.etcd_fast,
        daemons=not a.no_daemons,
        xfs=a.xfs,
        closed=a.closed,
        overrides=tuple(a.set),
    )
    from deploy.lab.guests import prepare, up_guest

    with lab.place.locked():
        prepare(lab.say)
        lab.up(settings)
        if a.guest:
            up_guest(lab)
    lab.say("up")


def _down(lab: Lab, a: Arguments) -> None:
    with lab.place.locked():
        lab.down(keep_data=a.keep_data, purge=a.purge)


def _status(lab: Lab, a: Arguments) -> None:
    items = lab.status()
    if a.output == "json":
        print(json.dumps({"items": items}, indent=1))
        return
    print(f"{'NAME':5}{'ROLES':20}{'ADDRESS':14}{'STATE':9}{'PID':8}DAEMONS")
    for item in items:
        daemons = " ".join(f"{n}={p or 'down'}" for n, p in item["daemons"].items())
        roles, pid = ",".join(item["roles"]), item["pid"] or "-"
        name, address, state = item["name"], item["address"], item["state"]
        print(f"{name:5}{roles:20}{address:14}{state:9}{pid!s:8}{daemons}")


def _shell(lab: Lab, a: Arguments) -> None:
    argv = a.command or [os.environ.get("SHELL", "/bin/bash")]
    if a.host in {host.name for host in lab.settings().with_role(Role.CLIENT)}:
        # The client host has no daemon's socket to ask.
        os.environ.setdefault("VMRCTL_CONFIG", str(lab.place.contexts_file))
    _replace(lab, a.host, argv)


def _vmrctl(lab: Lab, a: Arguments) -> None:
    settings = lab.settings()
    places = [*settings.with_role(Role.CLIENT), *settings.with_role(Role.PRIMARY)]
    if not places:
        raise LabError("no client and no primary host in this lab")
    os.environ.setdefault("VMRCTL_CONFIG", str(lab.place.contexts_file))
    _replace(lab, places[0].name, [str(VENV_BIN / "vmrctl"), *a.command])


def _replace(lab: Lab, host: str, argv: Sequence[str]) -> None:
    """Become the command, inside the host."""
    directory = str(Path.cwd())
    inside = lab.control_named(host).inside(list(argv), directory)
    os.execvpe(inside[0], inside, environment())


def _kill(lab: Lab, a: Arguments) -> None:
    with lab.place.locked():
        for name in a.host:
            victims = lab.control_named(name).kill(silent=a.silent)
            print(json.dumps({"host": name, "killed_pids": victims}))


def _start(lab: Lab, a: Arguments) -> None:
    with lab.place.locked():
        lab.start(a.host)


def _pause(lab: Lab, a: Arguments) -> None:
    lab.control_named(a.host).pause()


def _resume(lab: Lab, a: Arguments) -> None:
    lab.control_named(a.host).resume()


def _cut(lab: Lab, a: Arguments) -> None:
    settings = lab.settings()
    for name in (a.a, a.b):
        if name not in (ANY, CAP):
            settings.host(name)
    if a.a == a.b == ANY:
        raise LabError("cut all all: name at least one host")
    cuts = [Cut(a.a, a.b, a.port, a.new)]
    if not a.one_way:
        cuts.append(Cut(a.b, a.a, a.port, a.new))
    with lab.place.locked():
        lab.change_cuts(lambda old: [*old, *(cut for cut in cuts if cut not in old)])


def _heal(lab: Lab, _: Arguments) -> None:
    with lab.place.locked():
        lab.heal()


def _link(lab: Lab, a: Arguments) -> None:
    lab.switch.link(lab.settings().host(a.host), up=a.state == "up")


def _rate(lab: Lab, a: Arguments) -> None:
    lab.switch.rate(lab.settings().host(a.host), None if a.rate == "none" else a.rate)


def _daemon(lab: Lab, a: Arguments) -> None:
    settings = lab.settings()
    daemons = lab.daemons(settings, settings.host(a.host))
    match a.act:
        case "start":
            daemons.start(a.name)
            if not a.no_wait:
                daemons.wait_ready(a.name)
        case "stop":
            daemons.stop(a.name)
        case "kill":
            daemons.kill(a.name)
        case _:
            print(daemons.pid(a.name) or "")


def _guest(lab: Lab, a: Arguments) -> None:
    from deploy.lab import guests

    guests.command(lab, a)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lab", description="A whole cluster on one machine. LAB_DIR tells labs apart."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, run: Callable[[Lab, Arguments], None], text: str) -> _Verb:
        sub = verbs.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    up = verb("up", _up, "bring the lab up and wait until it is ready")
    up.add_argument("--hosts", help=f"comma list (default {','.join(DEFAULT_HOSTS)})")
    up.add_argument("--roles", action="append", default=[], metavar="HOST=ROLE,…")
    up.add_argument("--compact", action="store_true", help="r1-r3 carry node, broker and etcd")
    up.add_argument("--no-daemons", action="store_true", help="without broker and node")
    up.add_argument("--firewall", action="store_true", help="brokers only by the cluster's address")
    up.add_argument("--etcd-fast", action="store_true", help="heartbeat 50 ms, election 300 ms")
    up.add_argument("--xfs", action="store_true", help="shared storage on an XFS loop image")
    up.add_argument("--closed", action="store_true", help="the replica cluster admits nobody yet")
    up.add_argument("--set", action="append", default=[], metavar="[HOST/]node.KEY=VALUE")
    up.add_argument("--guest", action="store_true", help="with the running guest guest1 on p1")
    down = verb("down", _down, "remove everything (logs stay)")
    down.add_argument("--keep-data", action="store_true", help="disks and stores stay")
    down.add_argument("--purge", action="store_true", help="the directory goes as well")
    status = verb("status", _status, "hosts with their namespaces and daemons")
    status.add_argument("-o", "--output", choices=("table", "json"), default="table")
    shell = verb("shell", _shell, "a shell or a command in a host: shell HOST [-- CMD …]")
    shell.add_argument("host")
    shell.add_argument("command", nargs=argparse.REMAINDER)
    vmrctl = verb("vmrctl", _vmrctl, "vmrctl in the client host: vmrctl [-- ARGS …]")
    vmrctl.add_argument("command", nargs=argparse.REMAINDER)
    kill = verb("kill", _kill, "SIGKILL to the hosts' pid 1")
    kill.add_argument("host", nargs="+")
    kill.add_argument("--silent", action="store_true", help="cable first: no FIN, no RST")
    for name, act, text in (
        ("start", _start, "a killed host, with the disks it had"),
        ("pause", _pause, "freeze a host"),
        ("resume", _resume, "thaw a host"),
    ):
        verb(name, act, text).add_argument("host")
    cut = verb("cut", _cut, "drop packets between two hosts (also: all, cap)")
    cut.add_argument("a")
    cut.add_argument("b")
    cut.add_argument("--one-way", action="store_true", help="only from A to B")
    cut.add_argument("--port", type=int, default=0, help="only to this TCP port")
    cut.add_argument("--new", action="store_true", help="only new connections")
    verb("heal", _heal, "undo cuts, pulled cables and rates")
    link = verb("link", _link, "pull or put back a cable")
    link.add_argument("host")
    link.add_argument("state", choices=("up", "down"))
    rate = verb("rate", _rate, "limit what a host receives: 100mbit or none")
    rate.add_argument("host")
    rate.add_argument("rate")
    daemon = verb("daemon", _daemon, "one daemon of a host")
    daemon.add_argument("host")
    daemon.add_argument("act", choices=("start", "stop", "kill", "pid"))
    daemon.add_argument("name", choices=("broker", "node", "etcd", "libvirtd"))
    daemon.add_argument("--no-wait", action="store_true")
    _guest_parser(verb("guest", _guest, "guests of a host"))
    return parser


_Verb = argparse.ArgumentParser


def _guest_parser(parser: _Verb) -> None:
    acts = parser.add_subparsers(dest="act", required=True, metavar="ACT")
    for name, text in (
        ("create", "make disks and definition of a guest, and start it"),
        ("add", "the same as create"),
        ("start", "start it"),
        ("stop", "pull its plug (libvirt destroy)"),
        ("shutdown", "press its power button"),
        ("remove", "destroy, undefine, delete disks"),
        ("console", "print what its serial port said"),
        ("rate", "background writes, bytes per second (suffix K or M)"),
        ("check", "let it read back its filling; prints FILL on the console"),
    ):
        act = acts.add_parser(name, help=text, description=text)
        act.add_argument("host")
        act.add_argument("name")
        if name in ("create", "add"):
            act.add_argument("--small", action="store_true", help="64 MiB disks, 16 MiB filled")
            act.add_argument("--vda-mib", type=int)
            act.add_argument("--vdb-mib", type=int)
            act.add_argument("--fill-mib", type=int)
            act.add_argument("--seed", type=int, default=1)
            act.add_argument("--rate", default="64K")
            act.add_argument("--period-ms", type=int, default=100)
            act.add_argument("--memory-mib", type=int, default=96)
            act.add_argument("--no-start", action="store_true")
        if name == "console":
            act.add_argument("-f", "--follow", action="store_true")
        if name == "rate":
            act.add_argument("rate")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    command = getattr(arguments, "command", None)
    if command and command[0] == "--":
        del command[0]
    try:
        if os.geteuid() != 0:
            raise LabError("the lab makes namespaces and needs root")
        lab = Lab(Place.from_environment())
        arguments.run(lab, arguments)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted; `lab down` removes whatever is up", file=sys.stderr)
        return 130
    return 0
