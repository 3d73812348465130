"""After any outage replication goes on by itself: acknowledged within three intervals of its end,
as a delta, without a command; the guest met no error. ``VMR_LONG=1``: outages of two minutes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.lab.place import VENV_BIN
from deploy.lab.processes import spawn
from tests.support.lab_room import (
    INTERVAL_S,
    LONG,
    NODES,
    GuestWatch,
    Room,
    eventually,
    lab_up,
    quick,
)
from tests.support.system_calls import Held

pytestmark = [
    pytest.mark.needs("root", "netns", "etcd", "libvirt", "qemu", "xfs", "strace"),
    pytest.mark.timeout(400),
]
VM = "g1"
OUTAGE_S = 120.0 if LONG else 8.0


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    with lab_up(tmp_path_factory.mktemp("healing"), "--compact", "--xfs", *quick()) as room:
        room.run("guest", "create", "p1", VM, "--small", "--rate", "256K")
        room.protect(VM)
        yield room


@contextmanager
def healing(room: Room, outage: str) -> Iterator[None]:
    """Around a fault that begins and ends inside: what has to hold afterwards."""
    guest = GuestWatch(room, VM)
    known = len(room.acknowledged(VM))
    before = room.acknowledged(VM)[-1]
    counted = guest.count()
    yield
    ended, acked = time.monotonic(), len(room.acknowledged(VM))
    eventually(
        lambda: len(room.acknowledged(VM)) > acked,
        f"acknowledged again within three intervals after: {outage}",
        3 * INTERVAL_S,
    )
    print(f"{outage}: acknowledged {time.monotonic() - ended:.1f} s after its end")
    since = room.acknowledged(VM)[known:]
    assert {cycle["kind"] for cycle in since} == {"Delta"}
    assert [c["seq"] for c in since] == list(
        range(before["seq"] + 1, before["seq"] + 1 + len(since))
    )
    shown = room.ask_patiently("primary", "replication", "show", VM)
    assert shown["state"] == "Replicating", shown
    assert guest.count() > counted
    guest.check()


def _restart(room: Room, host: str, name: str) -> None:
    room.daemons(host).start(name)
    room.daemons(host).wait_ready(name)


def test_each_broker_is_killed(room: Room) -> None:
    with healing(room, "each broker"):
        for host in NODES:
            room.daemons(host).kill("broker")
            room.next_cycle(VM)
            _restart(room, host, "broker")


def test_all_brokers_away_do_not_stop_replication_to_a_living_owner(room: Room) -> None:
    with healing(room, "all brokers"):
        for host in NODES:
            room.daemons(host).kill("broker")
        gone = time.time()
        time.sleep(OUTAGE_S)
        during = [c for c in room.acknowledged(VM) if c["at_s"] > gone]
        assert len(during) >= OUTAGE_S // INTERVAL_S - 1, during
        for host in NODES:
            room.daemons(host).start("broker")
        for host in NODES:
            room.daemons(host).wait_ready("broker")


def test_no_etcd_quorum(room: Room) -> None:
    with healing(room, "etcd quorum"):
        for host in NODES[:2]:
            room.daemons(host).kill("etcd")
        lost = time.time()
        time.sleep(OUTAGE_S)
        # Past its deadline nobody may acknowledge: somebody else might own the replica.
        late = [c for c in room.acknowledged(VM) if c["at_s"] > lost + 3.5]
        assert not late
        for host in NODES[:2]:
            room.daemons(host).start("etcd")
        for host in NODES[:2]:
            room.daemons(host).wait_ready("etcd")


def test_libvirtd_restarts_on_the_primary(room: Room) -> None:
    with healing(room, "libvirtd"):
        room.daemons("p1").kill("libvirtd")
        _restart(room, "p1", "libvirtd")


def test_the_agent_on_the_primary_is_killed(room: Room) -> None:
    with healing(room, "agent"):
        room.daemons("p1").kill("node")
        _restart(room, "p1", "node")


def test_the_agent_is_killed_while_a_backup_job_runs(room: Room, tmp_path: Path) -> None:
    agent = room.daemons("p1").pid("node")
    assert agent is not None
    with healing(room, "agent with a job open"):
        # Its channels are open: what it connects to next is the job's NBD server.
        held = Held(agent, "connect", tmp_path / "strace.log")
        try:
            assert "AF_UNIX" in held.wait()
            assert "Backup" in room.inside("p1", "virsh", "domjobinfo", VM)
            room.daemons("p1").kill("node")
        finally:
            held.release()
        _restart(room, "p1", "node")


def test_the_network_of_the_primary_is_cut(room: Room) -> None:
    with healing(room, "network"):
        room.run("cut", "p1", "all")
        cut = time.time()
        time.sleep(OUTAGE_S)
        assert not [c for c in room.acknowledged(VM) if c["at_s"] > cut + 1]
        room.run("heal")


def test_the_store_is_full_and_is_freed(room: Room) -> None:
    ballast = "/srv/replicas/ballast"
    with healing(room, "full store"):
        script = (
            "import os,sys\n"
            "f=os.open(sys.argv[1], os.O_CREAT|os.O_RDWR)\n"
            "size=0\n"
            "step=1<<34\n"
            "while step>=4096:\n"
            "  try: os.posix_fallocate(f,size,step); size+=step\n"
            "  except OSError: step//=2\n"
        )
        room.inside("r1", "python3", "-c", script, ballast)
        full = time.time()
        eventually(lambda: room.events("p1", "cycle.failed", VM)[-1:], "a cycle fails", 30)
        time.sleep(INTERVAL_S)
        failed = [e for e in room.events("p1", "cycle.failed", VM) if "NO_SPACE" in str(e)]
        assert failed, room.events("p1", "cycle.failed", VM)[-2:]
        assert not [c for c in room.acknowledged(VM) if c["at_s"] > full + INTERVAL_S]
        room.inside("r1", "rm", ballast)


@pytest.mark.needs("faketime")
@pytest.mark.parametrize("days", ["+1d", "-1d"])
def test_the_clock_of_the_primary_is_wrong_by_a_day(room: Room, days: str) -> None:
    log = room.directory / "p1" / "log" / "node-faketime.log"
    with healing(room, f"clock {days}"):
        room.daemons("p1").kill("node")
        _start_with_clock(room, days, log)
        began = len(room.acknowledged(VM))
        eventually(lambda: len(room.acknowledged(VM)) > began, "a cycle with a wrong clock", 20)
        off = room.acknowledged(VM)[-1]["at_s"] - time.time()
        assert abs(abs(off) - 86_400) < 600, "the clock was not wrong at all"
        room.daemons("p1").kill("node")
        _restart(room, "p1", "node")


def _start_with_clock(room: Room, offset: str, log: Path) -> None:
    """The node's daemon and all its children see a wall clock that is wrong by ``offset``."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    variables = [f"LD_PRELOAD={library}", f"FAKETIME={offset}", "NO_FAKE_STAT=1"]
    variables.append("FAKETIME_DONT_FAKE_MONOTONIC=1")
    program = [str(VENV_BIN / "vmreplica-node"), "--config", "/etc/vmreplica/node.yaml"]
    daemons = room.daemons("p1")
    spawn(daemons.control.inside(["setsid", "-f", "env", *variables, *program]), log)
    daemons.wait_ready("node")
